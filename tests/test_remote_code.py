"""Folders that carry their code: the auto classes with nest_hf, and without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_asr import tiny_model, tiny_processor, waves
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, Wav2Vec2Processor
from transformers.dynamic_module_utils import get_imports

import nest_hf
from nest_hf import NestConfig, NestFeatureExtractor, NestForCTC, NestForPreTraining
from nest_hf.asr_audio import read_waves
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.remote_code import AUTO_MAPS

TEXTS = ["一二三四五"]
PACKAGE = Path(nest_hf.__file__).parent
# a process of its own, in which nest_hf does not exist
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nest_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
import torch, transformers
torch.set_num_threads(1)
folder, out = sys.argv[1:]
trusted = {"trust_remote_code": True}
"""


def without_nest_hf(script: str, folder, out) -> None:
    environment = {**os.environ, "HF_MODULES_CACHE": str(Path(out) / "modules"), "HF_HUB_OFFLINE": "1"}
    Path(out).mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + script, str(folder), str(out)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=out,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


def tiny_ctc(folder, model_class=NestForCTC):
    """A folder with a model of `model_class` and the processor of a CTC recogniser; the model."""
    torch.manual_seed(0)
    tokenizer = build_ctc_tokenizer(TEXTS)
    model = model_class(NestConfig.from_preset("tiny", vocab_size=len(tokenizer), pad_token_id=0)).eval()
    model.save_pretrained(folder)
    Wav2Vec2Processor(NestFeatureExtractor(), tokenizer).save_pretrained(folder)
    return model


def tiny_asr(folder):
    processor = tiny_processor(TEXTS)
    model = tiny_model(processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def code_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.py")}


def test_every_kind_of_folder_carries_the_same_code_and_the_whole_map(tmp_path):
    tiny_ctc(tmp_path / "ctc")
    tiny_asr(tmp_path / "asr")
    NestFeatureExtractor().save_pretrained(tmp_path / "extractor")
    code = code_of(tmp_path / "ctc")
    assert code == code_of(tmp_path / "asr") == code_of(tmp_path / "extractor")
    for name, kind in (("ctc", "nest"), ("asr", "nest_asr")):
        assert json.loads((tmp_path / name / "config.json").read_text())["auto_map"] == AUTO_MAPS[kind]
    for classes in AUTO_MAPS.values():
        for auto_class, reference in classes.items():
            module, name = reference.split(".")
            assert f"class {name}(".encode() in code[f"{module}.py"], auto_class


def test_the_maps_name_the_registered_classes():
    for kind, classes in AUTO_MAPS.items():
        config = AutoConfig.for_model(kind)
        for auto_class, reference in classes.items():
            if auto_class.startswith("AutoModel"):
                mapping = getattr(transformers, auto_class)._model_mapping
                assert mapping[type(config)].__name__ == reference.split(".")[1]


def test_the_code_imports_public_libraries_and_files_of_the_same_folder_only(tmp_path):
    tiny_asr(tmp_path)
    libraries = {library for path in tmp_path.glob("*.py") for library in get_imports(path)}
    # soxr and soundfile are asked for where audio is resampled or read: a missing one would stop transformers amid its
    # copying of the files, and what it had copied would fail for good
    assert libraries - set(sys.stdlib_module_names) == {"huggingface_hub", "numpy", "torch", "transformers"}


def test_a_missing_library_is_named_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    wave = waves(0.5)[0]
    assert len(read_waves(wave, 16000, 16000)[0]) == len(wave)
    for resample in (lambda: read_waves(wave, 8000, 16000), lambda: NestFeatureExtractor()(wave, 8000, resample=True)):
        with pytest.raises(ImportError, match="from 8000 to 16000 Hz needs soxr: `pip install soxr`"):
            resample()
    with pytest.raises(ImportError, match="call.wav needs soundfile"):
        read_waves("call.wav", None, 16000)


def test_a_saved_folder_names_no_path_of_this_machine(tmp_path):
    tiny_asr(tmp_path / "asr")
    tiny_ctc(tmp_path / "ctc")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".py", ".jinja"):
            text = path.read_text(encoding="utf-8")
            assert str(PACKAGE.parent) not in text and str(tmp_path) not in text, path


def test_with_nest_hf_the_auto_classes_take_its_own_and_ask_nothing(tmp_path, monkeypatch):
    tiny_ctc(tmp_path / "ctc")
    tiny_ctc(tmp_path / "pretraining", NestForPreTraining)
    tiny_asr(tmp_path / "asr")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether the code is trusted"))
    expected = {
        "ctc": ("AutoModelForCTC", "AutoModel", "AutoModelForAudioXVector"),
        "pretraining": ("AutoModelForPreTraining", "AutoModel"),
        "asr": ("AutoModelForMultimodalLM",),
    }
    for name, auto_classes in expected.items():
        for trust in (None, True):
            folder = tmp_path / name
            for auto_class in auto_classes:
                model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=trust)
                assert type(model).__module__.startswith("nest_hf."), auto_class
            assert type(AutoConfig.from_pretrained(folder, trust_remote_code=trust)).__module__.startswith("nest_hf.")
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)
            assert type(extractor) is NestFeatureExtractor
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust)
            assert type(processor.feature_extractor) is NestFeatureExtractor


class OwnConfig(NestConfig):
    model_type = "own"


class OwnRecogniser(NestForCTC):
    config: OwnConfig
    _auto_class = "AutoModelForCTC"


def test_a_class_of_somebody_else_is_named_for_itself(tmp_path):
    OwnRecogniser(OwnConfig(**NestConfig.from_preset("tiny").to_diff_dict())).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCTC"] == "test_remote_code.OwnRecogniser"
    assert auto_map["AutoConfig"] == "test_remote_code.OwnConfig"
    assert auto_map["AutoModel"] == "modeling_nest.NestModel"


def test_what_was_loaded_is_saved_as_it_was(tmp_path):
    tiny_asr(tmp_path / "asr")
    AutoConfig.from_pretrained(tmp_path / "asr").save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(tmp_path / "asr").save_pretrained(tmp_path / "again")
    for name in ("config.json", "processor_config.json"):
        first, again = (json.loads((tmp_path / folder / name).read_text()) for folder in ("asr", "again"))
        assert first == again, name


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [NestForCTC, NestForPreTraining])
def test_a_nest_folder_works_without_nest_hf(tmp_path, model_class):
    model = tiny_ctc(tmp_path / "nest", model_class)
    wave = waves(1.0)[0]
    inputs = NestFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
    torch.save(wave, tmp_path / "wave.pt")
    script = """
from transformers import *
config = AutoConfig.from_pretrained(folder, **trusted)
processor = AutoProcessor.from_pretrained(folder, **trusted)
wave = torch.load(out + "/../wave.pt", weights_only=False)
inputs = processor(wave, sampling_rate=16000, return_tensors="pt")
extractor = AutoFeatureExtractor.from_pretrained(folder, **trusted)
assert torch.equal(extractor(wave, return_tensors="pt").input_features, inputs.input_features)
loaded = {}
for name in config.auto_map:
    if name == "AutoModelForPreTraining" and config.architectures == ["NestForCTC"]:
        continue  # refused: such a folder lacks the quantizer
    if name.startswith("AutoModel"):
        loaded[name] = getattr(transformers, name).from_pretrained(folder, **trusted).eval()
with torch.no_grad():
    hidden = loaded["AutoModel"](**inputs).last_hidden_state
    logits = loaded["AutoModelForCTC"](**inputs).logits
torch.save((inputs.input_features, hidden, logits), out + "/out.pt")
loaded["AutoModelForCTC"].save_pretrained(out + "/again")
processor.save_pretrained(out + "/again")
"""
    without_nest_hf(script, tmp_path / "nest", tmp_path / "out")
    features, hidden, logits = torch.load(tmp_path / "out" / "out.pt", weights_only=True)
    assert torch.equal(features, inputs.input_features)
    with torch.no_grad():
        encoder = model.encoder
        torch.testing.assert_close(hidden, encoder(**inputs).last_hidden_state)
        if model_class is NestForCTC:
            torch.testing.assert_close(logits, model(**inputs).logits)
    # what is saved there carries the code on
    assert code_of(tmp_path / "out" / "again") == code_of(tmp_path / "nest")
    again = json.loads((tmp_path / "out" / "again" / "config.json").read_text())
    assert again["auto_map"] == AUTO_MAPS["nest"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nest", "parakeet_encoder"])
def test_an_asr_folder_works_without_nest_hf(tmp_path, kind):
    processor = tiny_processor(TEXTS, kind)
    model = tiny_model(processor, kind)
    model.save_pretrained(tmp_path / "asr")
    processor.save_pretrained(tmp_path / "asr")
    wave = waves(1.0)[0]
    torch.save(wave, tmp_path / "wave.pt")
    expected = model.generate(**processor(audio=wave, sampling_rate=16000), max_new_tokens=8)
    script = """
from transformers import *
wave = torch.load(out + "/../wave.pt", weights_only=False)
processor = AutoProcessor.from_pretrained(folder, **trusted)
model = AutoModelForMultimodalLM.from_pretrained(folder, **trusted)
AutoModel.from_pretrained(folder, **trusted)
ids = model.generate(**processor(audio=wave, sampling_rate=16000), max_new_tokens=8)
num_frames = int(processor.num_frames(16000))
torch.save((ids, num_frames), out + "/out.pt")
model.save_pretrained(out + "/again")
processor.save_pretrained(out + "/again")
"""
    without_nest_hf(script, tmp_path / "asr", tmp_path / "out")
    ids, num_frames = torch.load(tmp_path / "out" / "out.pt", weights_only=True)
    assert torch.equal(ids, expected) and num_frames == processor.num_frames(16000)
    assert code_of(tmp_path / "out" / "again") == code_of(tmp_path / "asr")


def test_two_lines_give_the_features_of_a_recording(tmp_path):
    model = tiny_ctc(tmp_path)
    wave = waves(1.0)[0]
    extractor, encoder = AutoFeatureExtractor.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        features, expected = encoder(**inputs), model.encoder(**inputs)
    assert features.attention_mask.sum() == 13  # 1 s in frames of 80 ms
    torch.testing.assert_close(features.last_hidden_state, expected.last_hidden_state)
