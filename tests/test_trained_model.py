"""What must hold of a recogniser that was trained, in pipelines and on the Hub; such as that of `make demo`:

python -m pytest tests/test_trained_model.py --trained_model demo/full/6_lora --recordings demo/full/calls/test.jsonl
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from huggingface_hub import constants
from test_hub_push import TOKEN, hub, push_broken_once, python  # noqa: F401  fixtures
from test_pipelines import TASK, no_ffmpeg  # noqa: F401  a fixture
from test_remote_code import without_nest_hf
from transformers import Wav2Vec2Processor, pipeline

from nest_hf import DecodingSettings, NestAsrForConditionalGeneration, NestAsrProcessor, NestForCTC, Transcriber
from nest_hf.arguments import NestTrainingArguments
from nest_hf.data import decode_audio, load_speech_dataset
from nest_hf.error_rates import character_errors
from nest_hf.handover import follow_pointer
from nest_hf.hub import push_run

RATE = 16000


@pytest.fixture(scope="module")
def folder(request) -> Path:
    if not (given := request.config.getoption("--trained_model")):
        pytest.skip("needs --trained_model and --recordings")
    return Path(follow_pointer(given)).resolve()


@pytest.fixture(scope="module")
def recordings(request):
    """Waveforms, paths and texts; of many lengths."""
    rows = load_speech_dataset(request.config.getoption("--recordings"))
    waves = [decode_audio(row["audio"], sampling_rate=RATE).samples for row in rows]
    return waves, [row["audio"]["path"] for row in rows], rows["text"][:]


@pytest.fixture(scope="module")
def speakers(request) -> list[str]:
    return load_speech_dataset(request.config.getoption("--recordings"))["speaker"][:]


@pytest.fixture(scope="module")
def ctc_folder(folder, tmp_path_factory) -> Path:
    """The encoder and the CTC head as a [`NestForCTC`], which runs in transformers' own pipeline."""
    whole, processor = (
        NestAsrForConditionalGeneration.from_pretrained(folder),
        NestAsrProcessor.from_pretrained(folder),
    )
    tower, tokenizer = whole.model.audio_tower, processor.ctc_tokenizer
    tower.config.vocab_size, tower.config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    model = NestForCTC(tower.config)
    model.encoder = tower
    linear = whole.ctc_head.classifier
    with torch.no_grad():
        model.ctc_head.weight.copy_(linear.weight[..., None])
        model.ctc_head.bias.copy_(linear.bias)
    out = tmp_path_factory.mktemp("ctc")
    model.save_pretrained(out)
    Wav2Vec2Processor(processor.feature_extractor, tokenizer).save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=["asr", "asr by both heads", "ctc"])
def recognise(request, folder, ctc_folder):
    if request.param == "ctc":
        return pipeline(TASK, model=str(ctc_folder), device="cpu")
    settings = DecodingSettings(ctc_weight=0.5, ctc_beam_size=4) if "both" in request.param else None
    return pipeline(TASK, model=str(folder), device="cpu", settings=settings)


def cer(texts, references) -> float:
    return character_errors(list(texts), list(references), level="zh").result()["cer"]


def test_a_batch_of_mixed_lengths_gives_the_texts_of_each_alone(recognise, recordings):
    waves, _, references = (items[:48] for items in recordings)
    alone = [recognise(wave)["text"] for wave in waves]
    assert cer(alone, references) < 0.5, "it is not trained"
    assert [result["text"] for result in recognise(waves, batch_size=16)] == alone


def test_every_form_and_rate_of_a_recording_is_heard_alike(recognise, recordings, no_ffmpeg):  # noqa: F811
    waves, paths, _ = (items[:32] for items in recordings)
    expected = [result["text"] for result in recognise(waves)]
    assert [result["text"] for result in recognise(paths)] == expected
    assert [result["text"] for result in recognise([Path(path).read_bytes() for path in paths])] == expected
    raised = [{"array": soxr.resample(wave, RATE, 44_100), "sampling_rate": 44_100} for wave in waves]
    assert cer([result["text"] for result in recognise(raised)], expected) < 0.02


def test_a_minute_in_chunks_is_heard_as_its_parts(recognise, recordings, speakers, request):
    """For a language model chunks are no longer than what it was trained on; CTC has more use for what is around."""
    waves, _, references = recordings
    groups, pause = [], np.zeros(RATE // 4, np.float32)
    for speaker in dict.fromkeys(speakers):
        own = [index for index, name in enumerate(speakers) if name == speaker]
        ends = np.cumsum([len(waves[index]) + len(pause) for index in own]) // (60 * RATE)
        minutes = [
            [index for index, end in zip(own, ends, strict=True) if end == minute] for minute in range(ends[-1])
        ]
        groups += minutes[:2]
    assert groups, "no speaker of the recordings has a minute"
    joined = ["".join(references[i] for i in group) for group in groups]
    alone = ["".join(result["text"] for result in recognise([waves[i] for i in group])) for group in groups]
    minutes = [np.concatenate([piece for i in group for piece in (waves[i], pause)]) for group in groups]
    chunk_s = request.config.getoption("--chunk_length_s") or (15.0 if recognise.transcriber is None else 6.0)
    whole = [result["text"] for result in recognise(minutes, chunk_length_s=chunk_s)]
    parts, chunks = cer(alone, joined), cer(whole, joined)
    print(f"{len(groups)} minutes: parts alone {parts:.4f}, in chunks of {chunk_s:g} s {chunks:.4f}")
    assert chunks <= parts + 0.01


def test_a_copy_without_nest_hf_writes_the_same(folder, recordings, tmp_path):
    wave = recordings[0][0]
    torch.save(wave, tmp_path / "wave.pt")
    script = """
from transformers import *
wave = torch.load(out + "/../wave.pt", weights_only=False)
processor = AutoProcessor.from_pretrained(folder, **trusted)
model = AutoModelForMultimodalLM.from_pretrained(folder, **trusted).eval()
ids = model.generate(**processor(audio=wave, sampling_rate=16000), max_new_tokens=80)
open(out + "/text", "w", encoding="utf-8").write(processor.decode_answers(ids)[0])
"""
    without_nest_hf(script, folder, tmp_path / "out")
    text = (tmp_path / "out" / "text").read_text(encoding="utf-8")
    assert text and text == Transcriber.from_pretrained(folder)([wave])[0].lm_text


def test_a_push_that_breaks_five_times_ends_whole(hub, python, folder, recordings, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda s: None)
    run = tmp_path / "run"
    shutil.copytree(folder, run, ignore=shutil.ignore_patterns("checkpoint-*"))

    def push(name: str) -> None:
        args = NestTrainingArguments(
            output_dir=str(run), hub_model_id=name, report_to="none", use_cpu=True, push_to_hub=True
        )
        push_run(args, commit_message="the demo's recogniser")

    push("lab/whole")
    total, due = hub.carried, hub.repositories["lab/whole"].head.files
    for moment in random.Random(0).sample(range(total), 5):
        name = f"lab/broken{moment}"
        push_broken_once(hub, push, name, moment)
        assert hub.repositories[name].head.files.keys() == due.keys()
    there = tmp_path / "there"
    script = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
    done = python("-c", script, name, there)
    assert done.returncode == 0, done.stderr
    weights = [Path(copy, "model.safetensors").read_bytes() for copy in (run, there)]
    assert weights[0] == weights[1]
    waves = recordings[0][:8]
    assert Transcriber.from_pretrained(there)(waves) == Transcriber.from_pretrained(folder)(waves)
