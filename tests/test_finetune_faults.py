"""training/finetune.py when things go wrong, and from every kind of encoder: kills, precision, files, recordings."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import soundfile
import torch
from spoken_tones import make_utterances
from test_finetune_script import CTC, RUN, SCRIPT, asr, data, error_of, folder, run, same, weights  # noqa: F401
from tiny_asr import feature_extractor, tower_config
from transformers import AutoModel, ParakeetFeatureExtractor

from nest_hf.convert_nemo import convert, read_archive
from nest_hf.modeling_nest import NestForCTC
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration
from nest_hf.processing_nest_asr import NestAsrProcessor

SOAK = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "kill_resume.py"
SHORT = ["--batch_budget", 10, "--max_steps", 2, "--save_strategy", "no"]


# ---- kills


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(folder, tmp_path, monkeypatch):  # noqa: F811
    spec = importlib.util.spec_from_file_location("kill_resume", SOAK)
    soak = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_resume", soak)
    spec.loader.exec_module(soak)
    soak.PRETRAIN, soak.MAX_STEPS = SCRIPT, 60
    soak.OPTIONS = [*CTC, "--num_threads", "1", "--batch_budget", "8", "--gradient_accumulation_steps", "2"]
    soak.OPTIONS += ["--max_steps", "60", "--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "2"]
    soak.OPTIONS += ["--load_best_model_at_end", "true", "--channel", "physical", "--wideband_share", "0.3"]
    manifests = list(map(str, data(folder)))
    startup_s, training_s = soak.run_to_the_end(manifests, tmp_path / "whole", 2)
    moments_s = (startup_s, startup_s + training_s / 3)
    found = soak.run_under_kills(manifests, tmp_path / "killed", 2, 2, moments_s, random.Random(0))
    assert found["kills"] >= 1
    assert soak.differences(tmp_path / "whole", tmp_path / "killed") == []


# ---- encoders


def learned(first: dict, second: dict) -> bool:
    """Whether the encoder's weights are `first`'s, moved by a few steps: near, but not equal."""
    assert first.keys() == second.keys()
    moved = [(first[name] - second[name]).abs().max().item() for name in first if first[name].is_floating_point()]
    return 0 < max(moved) < 0.05


@pytest.mark.parametrize("task", ["ctc", "asr"])
def test_a_nemo_archive_is_an_encoder(run, folder, tmp_path, task):  # noqa: F811
    archive = golden.FOLDER / "tiny" / "tiny.nemo"
    parts = ["--task", "ctc"] if task == "ctc" else ["--language_model", folder / "lm"]
    run("--audio_tower", archive, *parts, *RUN, *data(folder), *SHORT, "--output_dir", tmp_path)
    encoder = convert(*read_archive(archive), source=archive)[0].encoder
    if task == "ctc":
        trained = NestForCTC.from_pretrained(tmp_path).encoder
    else:
        trained = NestAsrForConditionalGeneration.from_pretrained(tmp_path).model.audio_tower
    names = dict(encoder.named_parameters()).keys()
    assert learned(*({name: model.state_dict()[name] for name in names} for model in (encoder, trained)))


def test_a_parakeet_folder_is_an_encoder(run, error_of, folder, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    encoder = AutoModel.from_config(tower_config("parakeet_encoder"))
    encoder.save_pretrained(tmp_path / "parakeet")
    feature_extractor("parakeet_encoder").save_pretrained(tmp_path / "parakeet")
    options = ["--audio_tower", tmp_path / "parakeet", "--language_model", folder / "lm"]
    run(*options, *RUN, *data(folder), *SHORT, "--output_dir", tmp_path / "asr")
    trained = NestAsrForConditionalGeneration.from_pretrained(tmp_path / "asr").model.audio_tower
    assert type(trained) is type(encoder)
    names = dict(encoder.named_parameters()).keys()
    assert learned(*({name: model.state_dict()[name] for name in names} for model in (encoder, trained)))
    processor = NestAsrProcessor.from_pretrained(tmp_path / "asr")
    assert isinstance(processor.feature_extractor, ParakeetFeatureExtractor)
    message = error_of("--audio_tower", tmp_path / "parakeet", task=["--task", "ctc", *RUN])
    assert message == "`audio_tower` is of type 'parakeet_encoder'; `task` ctc takes a nest encoder."


# ---- precision


@pytest.mark.parametrize("task", ["ctc", "asr"])
def test_bf16_computes_in_half_and_keeps_whole_weights(run, folder, tmp_path, task):  # noqa: F811
    model = CTC if task == "ctc" else asr(folder)
    results = {}
    for bf16 in ("true", "false"):
        output = tmp_path / bf16
        run(*model, *data(folder), *SHORT, "--bf16", bf16, "--output_dir", output)
        results[bf16] = json.loads((output / "eval_results.json").read_text())
    half, whole = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert {tensor.dtype for tensor in half.values() if tensor.is_floating_point()} == {torch.float32}
    assert any(not torch.equal(half[name], whole[name]) for name in half)
    losses = [results[bf16]["eval_dev_ctc_loss"] for bf16 in ("true", "false")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# ---- prompts


def test_columns_of_the_prompt_are_learned_where_there_is_one(run, folder, tmp_path):  # noqa: F811
    lines = (folder / "train" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["audio_filepath"] = str(folder / "train" / record["audio_filepath"])
    for name, more in (("plain", {}), ("asked", {"language": "zh", "keywords": ["天地"], "itn": False})):
        text = "".join(json.dumps({**record, **more}) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
        for task, model in (("ctc", CTC), ("asr", asr(folder))):
            options = ["--train_data", tmp_path / f"{name}.jsonl", *SHORT, "--output_dir", tmp_path / task / name]
            run(*model, *options)
    assert same(tmp_path / "ctc" / "plain", tmp_path / "ctc" / "asked")
    assert not same(tmp_path / "asr" / "plain", tmp_path / "asr" / "asked")


# ---- recordings and manifests


def altered(folder, tmp_path, wave, rate=16000) -> Path:  # noqa: F811
    """The training manifest, its second recording replaced."""
    lines = (folder / "train" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["audio_filepath"] = str(folder / "train" / record["audio_filepath"])
    soundfile.write(tmp_path / "other.wav", wave, rate, subtype="FLOAT")
    records[1] |= {"audio_filepath": str(tmp_path / "other.wav"), "duration": len(wave) / rate}
    path = tmp_path / "altered.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_recording_with_nan_is_named(error_of, folder, tmp_path):  # noqa: F811
    wave = np.zeros(16000, dtype=np.float32)
    wave[500] = np.nan
    path = altered(folder, tmp_path, wave)
    message = error_of("--train_data", path, "--batch_budget", 200)
    assert "train-001" in message and "NaN" in message


def test_stereo_counts_as_the_average_of_its_channels(run, folder, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    stereo = rng.normal(0, 0.1, (32000, 2)).astype(np.float32)
    for name, wave in (("stereo", stereo), ("mono", stereo.mean(1))):
        (tmp_path / name).mkdir()
        path = altered(folder, tmp_path / name, wave)
        run(*CTC, "--train_data", path, *SHORT, "--output_dir", tmp_path / name / "run")
    first, second = (weights(tmp_path / name / "run") for name in ("stereo", "mono"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_manifests_that_cannot_be_used_are_named(error_of, tmp_path):  # noqa: F811
    assert "none.jsonl` does not exist" in error_of("--train_data", tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl` is empty" in error_of("--train_data", tmp_path / "empty.jsonl")
    make_utterances(tmp_path / "silent", 2, texts=["", ""])
    assert "text" in error_of("--train_data", tmp_path / "silent" / "manifest.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"audio_filepath": \n')
    assert "broken.jsonl:1 is not JSON" in error_of("--train_data", tmp_path / "broken.jsonl")


def test_a_misspelt_option_is_answered_with_the_right_one(error_of, folder, tmp_path):  # noqa: F811
    assert "did you mean `max_steps`" in error_of("--max_step_s", 3)
    (tmp_path / "run.yaml").write_text("learning_rte: 1.0e-3\n")
    assert "did you mean `learning_rate`" in error_of(task=[tmp_path / "run.yaml", *CTC])
