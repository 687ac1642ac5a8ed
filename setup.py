"""Package of nest_hf. `pip install .` for the library, extras for what not every user needs."""

from setuptools import find_packages, setup

setup(
    name="nest_hf",
    version="0.2.0",
    description="NEST speech pretraining and telephone speech recognition in the Hugging Face ecosystem",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["nest_hf", "nest_hf.*"]),
    package_data={"nest_hf": ["report/assets/*"]},
    install_requires=[
        "torch>=2.10,<2.15",
        "torchaudio>=2.11,<2.12",
        "transformers>=5.23,<5.24",
        "accelerate>=1.15,<2",
        "datasets>=5.2,<6",
        "huggingface_hub>=1.0,<3",
        "safetensors>=0.5,<1",
        "soundfile>=0.13,<1",
        "soxr>=0.5,<2",
        "scipy>=1.11,<2",
        "evaluate>=0.4.6,<0.5",
        "peft>=0.21,<0.22",
        "rapidfuzz>=3,<4",
        "opencc>=1.2,<2",
        "regex>=2024.5",
        "pyarrow>=18",
        "numpy>=1.26,<3",
        "psutil>=5.9",
        "PyYAML>=6,<7",
        "tensorboard>=2.16,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "av": ["av>=14"],  # m4a, AMR, webm
        "demo": ["espeakng-loader>=0.2.4,<0.3", "jieba>=0.42,<1"],
        "plots": ["matplotlib>=3.8,<4"],
        "ray": ["ray[data]>=2.50,<3"],  # prepare_data.py on several machines
        "vad": ["silero-vad>=6.2,<7"],  # speech segments of long recordings
        "segmenter": ["jieba>=0.42,<1"],  # words of Chinese text, for WER
        "dev": [
            "av>=14",
            "cn2an>=0.5.23,<0.6",
            "espeakng-loader>=0.2.4,<0.3",
            "jieba>=0.42,<1",
            "jiwer>=4,<5",
            "matplotlib>=3.8,<4",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ray[data]>=2.50,<3",
            "ruff>=0.12,<1",
            "silero-vad>=6.2,<7",
            "websocket-client>=1.7,<2",  # drives Chromium in the tests of the report
        ],
    },
)
