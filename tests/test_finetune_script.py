"""training/finetune.py from the command line: short runs of both tasks, exact resume, refusals in one line."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spoken_tones import CHARACTERS, make_utterances
from tiny_asr import chatml_tokenizer, text_config
from transformers import AutoProcessor, Qwen3ForCausalLM, Wav2Vec2Processor

from nest_hf.modeling_nest import NestForCTC
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration
from nest_hf.processing_nest_asr import NestAsrProcessor

SCRIPT = Path(__file__).parents[1] / "training" / "finetune.py"
SIZES = '{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "subsampling_conv_channels": 8}'
TINY = ["--preset", "tiny", "--config_overrides", SIZES]
RUN = "--use_cpu true --report_to none --disable_tqdm true --logging_steps 1 --learning_rate 1e-3".split()
CTC = ["--task", "ctc", *TINY, *RUN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    make_utterances(folder / "train", 12, length=None, seed=0)
    make_utterances(folder / "dev", 5, length=None, seed=1)
    tokenizer = chatml_tokenizer([CHARACTERS])
    torch.manual_seed(0)
    Qwen3ForCausalLM(text_config(len(tokenizer), initializer_range=0.1)).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    return folder


@pytest.fixture
def run(monkeypatch):
    def run(*argv) -> None:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, argv)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@pytest.fixture
def error_of(run, folder, tmp_path):
    def error_of(*argv, task=CTC) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(
                *task,
                "--train_data",
                folder / "train" / "manifest.jsonl",
                "--output_dir",
                tmp_path / "run",
                "--max_steps",
                1,
                *argv,
            )
        message = exit_.value.code.lstrip()
        assert message.startswith("error: ") and "\n" not in message
        return message.removeprefix("error: ")

    return error_of


def data(folder) -> list:
    return ["--train_data", folder / "train" / "manifest.jsonl", "--eval_data", f"dev={folder / 'dev'}/manifest.jsonl"]


def asr(folder) -> list:
    adaptor = '{"kind": "mlp", "projector_hidden_size": 32}'
    return ["--language_model", folder / "lm", "--adaptor_config", adaptor, *TINY, *RUN]


def weights(path) -> dict:
    return load_file(Path(path) / "model.safetensors")


def same(first, second) -> bool:
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- runs


def test_ctc_is_trained_validated_and_loads(run, folder, tmp_path):
    options = ["--batch_budget", 10, "--max_steps", 3, "--eval_steps", 2, "--load_best_model_at_end", "true"]
    run(*CTC, *data(folder), *options, "--save_steps", 2, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert {"eval_dev_ctc_cer", "eval_dev_ctc_loss"} <= results.keys() and "eval_dev_cer" not in results
    assert "ctc_loss=" in (tmp_path / "train.log").read_text()
    predictions = (tmp_path / "predictions" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in predictions] == [f"dev-{i:03d}" for i in range(5)]
    model = NestForCTC.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, Wav2Vec2Processor)
    assert model.config.vocab_size == len(processor.tokenizer) and model.config.pad_token_id == 0


def test_a_recogniser_of_parts_is_trained_validated_and_goes_on(run, folder, tmp_path):
    options = ["--batch_budget", 150, "--budget_unit", "llm_tokens", "--gradient_accumulation_steps", 2]
    first = tmp_path / "first"
    run(*asr(folder), *data(folder), *options, "--max_steps", 2, "--eval_steps", 1, "--save_steps", 1,
        "--load_best_model_at_end", "true", "--activation_checkpointing", "true", "--output_dir", first)  # fmt: skip
    results = json.loads((first / "eval_results.json").read_text())
    assert {"eval_dev_cer", "eval_dev_ctc_cer", "eval_dev_lm_loss", "eval_dev_ctc_loss"} <= results.keys()
    model = NestAsrForConditionalGeneration.from_pretrained(first)
    assert model.generation_config.eos_token_id == NestAsrProcessor.from_pretrained(first).end_token_ids
    run("--model_name_or_path", first, *RUN, *data(folder), "--max_steps", 1, "--output_dir", tmp_path / "second")
    assert not same(first, tmp_path / "second")


def test_a_recogniser_of_parts_remembers_how_long_its_recordings_were(run, folder, tmp_path):
    def remembers(name, *options) -> float | None:
        run(*options, *RUN, *data(folder)[:2], "--max_steps", 1, "--output_dir", tmp_path / name)
        return json.loads((tmp_path / name / "config.json").read_text()).get("max_audio_s")

    rows = [json.loads(line) for line in (folder / "train" / "manifest.jsonl").read_text().splitlines()]
    *_, third_s, second_s, longest_s = sorted({row["duration"] for row in rows})
    shorter = ["--max_duration_s", (second_s + longest_s) / 2]
    assert third_s < remembers("short", *asr(folder), *shorter) <= second_s + 0.01
    long_s = remembers("long", "--model_name_or_path", tmp_path / "short")
    assert second_s < long_s <= longest_s + 0.01
    assert remembers("less", "--model_name_or_path", tmp_path / "long", *shorter) == long_s
    config = tmp_path / "less" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_audio_s": None}))
    (tmp_path / "less" / "stage.json").unlink()  # as a model from elsewhere
    assert remembers("elsewhere", "--model_name_or_path", tmp_path / "less") is None


@pytest.mark.parametrize(("task", "muon"), [("ctc", "false"), ("asr", "false"), ("asr", "true")])
def test_a_resumed_run_ends_as_an_uninterrupted_one(run, folder, tmp_path, task, muon):
    model = CTC if task == "ctc" else asr(folder)
    options = [*model, *data(folder), "--batch_budget", 8, "--save_steps", 2, "--eval_steps", 2, "--use_muon", muon]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(*options, "--lr_scheduler_type", "constant", "--max_steps", 5, "--output_dir", whole)
    run(*options, "--lr_scheduler_type", "constant", "--max_steps", 2, "--output_dir", parts)
    assert not same(whole, parts)
    run(*options, "--lr_scheduler_type", "constant", "--max_steps", 5, "--output_dir", parts)
    assert same(whole, parts)


def test_the_probe_changes_nothing(run, folder, tmp_path):
    options = [*CTC, *data(folder), "--batch_budget", 8, "--max_steps", 2]
    run(*options, "--output_dir", tmp_path / "with")
    run(*options, "--probe", "false", "--output_dir", tmp_path / "without")
    assert same(tmp_path / "with", tmp_path / "without")


def test_the_channel_changes_what_is_learned(run, folder, tmp_path):
    options = [*CTC, *data(folder), "--batch_budget", 8, "--max_steps", 2]
    run(*options, "--output_dir", tmp_path / "wide")
    run(*options, "--channel", "physical", "--output_dir", tmp_path / "phoned")
    run(*options, "--channel", "physical", "--wideband_share", "1.0", "--output_dir", tmp_path / "kept")
    assert same(tmp_path / "wide", tmp_path / "kept") and not same(tmp_path / "wide", tmp_path / "phoned")


def test_each_loss_can_be_left_out(run, folder, tmp_path):
    short = [*data(folder), "--batch_budget", 8, "--max_steps", 1]
    run(*asr(folder), *short, "--ctc_weight", 0, "--output_dir", tmp_path / "lm")
    results = json.loads((tmp_path / "lm" / "eval_results.json").read_text())
    assert "eval_dev_cer" in results and "eval_dev_ctc_cer" not in results
    assert NestAsrForConditionalGeneration.from_pretrained(tmp_path / "lm").ctc_head is None
    every = ["--save_steps", 1, "--eval_steps", 1, "--load_best_model_at_end", "true"]
    run(*asr(folder), *short, "--lm_weight", 0, *every, "--output_dir", tmp_path / "ctc")
    results = json.loads((tmp_path / "ctc" / "eval_results.json").read_text())
    assert "eval_dev_ctc_cer" in results and "eval_dev_cer" not in results


def test_an_encoder_starts_a_recogniser_and_a_ctc_model_goes_on(run, folder, tmp_path):
    short = [*data(folder), *RUN, "--batch_budget", 8, "--max_steps", 1, "--save_strategy", "no"]
    run("--task", "ctc", *TINY, *short, "--output_dir", tmp_path / "ctc")
    run("--task", "ctc", "--model_name_or_path", tmp_path / "ctc", *short, "--learning_rate", 0,
        "--output_dir", tmp_path / "on")  # fmt: skip
    first, second = weights(tmp_path / "ctc"), weights(tmp_path / "on")
    assert all(
        torch.equal(first[name], second[name]) for name in first if "running" not in name and "num_" not in name
    )
    run("--audio_tower", tmp_path / "ctc", "--language_model", folder / "lm", *short, "--learning_rate", 0,
        "--output_dir", tmp_path / "asr")  # fmt: skip
    name = "layers.0.self_attn.q_proj.weight"
    asr_weights = weights(tmp_path / "asr")
    (found,) = [key for key in asr_weights if key.endswith(f"audio_tower.{name}")]
    assert torch.equal(asr_weights[found], first[f"encoder.{name}"])


def test_recordings_that_cannot_be_read_are_left_out_and_named(run, error_of, folder, tmp_path):
    lines = (folder / "train" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{**json.loads(line), "id": f"r{i}"} for i, line in enumerate(lines)]
    for record in records:
        record["audio_filepath"] = str(folder / "train" / record["audio_filepath"])
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    records[3]["audio_filepath"] = str(tmp_path / "broken.wav")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "r3" in error_of("--train_data", bad, "--per_device_train_batch_size", 1, "--max_steps", 12)
    options = ["--train_data", bad, "--per_device_train_batch_size", 1, "--max_steps", 12, "--on_bad_audio", "skip"]
    run(*CTC, *options, "--output_dir", tmp_path / "run")
    report = [json.loads(line) for line in (tmp_path / "run" / "audio_report.jsonl").read_text().splitlines()]
    assert [line["id"] for line in report if line["kind"] == "bad"] == ["r3"]


# ---- refusals


def test_options_without_effect_are_refused(error_of, folder):
    assert error_of("--wideband_share", 0.5).startswith("`wideband_share` has no effect without `channel`")
    assert error_of("--lm_weight", 0.5) == "`lm_weight` has no effect with `task` ctc; leave it out."
    assert error_of("--budget_unit", "mel_frames").startswith("`budget_unit` has no effect without `batch_budget`")
    assert error_of("--schedule", "noam").startswith("`schedule` and `min_lr` have no effect")
    assert error_of("--model_name_or_path", folder).startswith("`preset` has no effect with `model_name_or_path`")
    assert error_of("--probe", "false", "--max_memory_gb", 1).startswith("`max_memory_gb` has no effect")
    assert "llm_tokens needs a language model" in error_of("--batch_budget", 90, "--budget_unit", "llm_tokens")
    assert error_of("--bach_budget", 3) == "command line: unknown key `bach_budget`; did you mean `batch_budget`?"
    assert error_of(task=RUN).startswith("`language_model` is missing")


def test_a_language_model_folder_is_no_recogniser(error_of, folder):
    message = error_of("--model_name_or_path", folder / "lm", task=RUN)
    assert "is of type 'qwen3', which is not a whole model of `task` asr" in message


def test_a_batch_beyond_the_memory_is_refused_with_a_budget_that_fits(error_of):
    message = error_of("--batch_budget", 20, "--max_memory_gb", 0.01)
    assert "needs" in message and "`max_memory_gb` is 0.01" in message and "`max_duration_s`" in message
