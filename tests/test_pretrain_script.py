"""training/pretrain.py from the command line: one clear line for bad input, and short runs of every kind."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recordings import make_recordings
from safetensors.torch import load_file

from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining, NestModel
from nest_hf.convert_nemo import to_nemo

SCRIPT = Path(__file__).parents[1] / "training" / "pretrain.py"
TINY = "--preset tiny --use_cpu true --report_to none --max_steps 2 --batch_duration_s 8".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    for seed, name in enumerate(("speech", "other", "noise")):
        make_recordings(folder / name, number=6, seed=seed, min_s=1.2, max_s=2.5)
    return folder


def manifest(tmp_path, folder, **odd) -> str:
    """The recordings of `speech` and odd ones: name -> (samples, rate), or bytes."""
    lines = (folder / "speech" / "manifest.jsonl").read_text().splitlines()
    records = [
        {**json.loads(line), "audio_filepath": str(folder / "speech" / f"{i}.wav")} for i, line in enumerate(lines)
    ]
    for name, content in odd.items():
        path = tmp_path / f"{name}.wav"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, *content, subtype="FLOAT")
        records.append({"id": name, "audio_filepath": str(path), "duration": 1.5})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path / "train.jsonl")


def tone(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, shape).astype(np.float32)


# ---- bad input


@pytest.fixture
def error_of(monkeypatch, tmp_path):
    """The script's last words, without the seconds that a new process needs to start."""

    def error_of(*argv: str) -> str:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *TINY, "--output_dir", str(tmp_path / "run"), *argv])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        message = exit_.value.code.lstrip()  # a string: the interpreter prints it to stderr and returns 1
        assert message.startswith("error: ") and "\n" not in message
        return message.removeprefix("error: ")

    return error_of


def test_data_that_is_not_there_or_not_readable(error_of, tmp_path):
    assert error_of() == "`train_data` is missing: give recordings, --train_data manifest.json (README: Data)."
    missing = str(tmp_path / "missing.json")
    assert error_of("--train_data", missing) == f"`{missing}` does not exist; correct the path."
    bad = tmp_path / "bad.json"
    bad.write_text("\n")
    assert error_of("--train_data", str(bad)) == f"`{bad}` is empty: it holds no recording; point to one that does."
    bad.write_text('{"audio_filepath": "a.wav", "duration": 2.0}\naudio_filepath=b.wav\n')
    assert (
        error_of("--train_data", str(bad)) == f"{bad}:2 is not JSON; correct or delete the line: audio_filepath=b.wav"
    )
    bad.write_text('{"duration": 2.0}\n')
    assert error_of("--train_data", str(bad)).startswith(f"{bad}:1 has no `audio_filepath`")


def test_no_recording_within_the_limits_says_how_many_fail_by_which(error_of, folder, tmp_path):
    data = manifest(tmp_path, folder)
    durations = [json.loads(line)["duration"] for line in Path(data).read_text().splitlines()]
    middle = sorted(durations)[2] + 1e-6
    limits = ["--min_duration_s", str(middle), "--max_duration_s", str(middle + 1e-6)]
    assert error_of("--train_data", data, *limits) == (
        f"train: none of 6 rows is left (3 shorter than {middle} s, 3 longer than {middle + 1e-6} s); "
        "widen the limits or mend the data."
    )
    assert "longer than 0.5 s" in error_of("--train_data", data, "--max_duration_s", "0.5", "--min_duration_s", "0.1")


ODD = {
    "corrupt": (b"RIFF no wave at all", "is no format that libsndfile knows|is corrupt", "unreadable"),
    "empty": (b"", "is empty \\(0 bytes\\); write it anew or leave it out", "zero length"),
    "zero": ((tone(0), 16000), "holds no samples; write it anew or leave it out", "zero length"),
    "nan": ((np.full(24000, np.nan, np.float32), 16000), "holds NaN or infinite samples", "NaN samples"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_recording_that_cannot_be_used_is_named_with_the_remedy(error_of, folder, tmp_path, name):
    content, problem, _ = ODD[name]
    message = error_of("--train_data", manifest(tmp_path, folder, **{name: content}))
    assert re.match(rf"recording '{name}': `{tmp_path}/{name}.wav` .*({problem})", message)
    assert message.endswith("(--on_bad_audio skip leaves such recordings out)")


def test_another_sampling_rate_is_refused_where_resampling_is_off(error_of, folder, tmp_path):
    data = manifest(tmp_path, folder, phone=(tone(12000), 8000))
    message = error_of("--train_data", data, "--resample", "false")
    assert re.match(
        "recording 'phone': .* is sampled at 8000 Hz and 16000 Hz is asked for; .*--resample true", message
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch_duration", "8"], "command line: unknown key `batch_duration`; did you mean `batch_duration_s`?"),
        (["--config_overrides", '{"hiden_size": 8}'], "unknown key `hiden_size`; did you mean `hidden_size`?"),
        (["--noise", '{"probe": 1}'], "noise: unknown key `probe`; did you mean `prob`?"),
        (["--preset", "huge"], "`preset` is 'huge'; choose one of tiny, small"),
        (["--streaming", "true", "--max_steps", "-1"], "a streamed data set has no length: set `max_steps`."),
        (["--streaming", "true", "--join_to_s", "2"], "`join_to_s` and `mix` need the whole data set"),
        (["--join_to_s", "7"], "`join_to` is 7.0 and the batch budget 8.0"),
        (["--batch_duration_s", "1"], "no recording fits into a batch of 1.0; raise the budget."),
        (["--eval_conditions", "dirty", "--eval_data", "{data}"], "`eval_conditions` is ['dirty']; choose from clean"),
        (["--on_bad_audio", "ignore"], "`on_bad_audio` is"),
        (["--sampling_rate", "8000", "--model_name_or_path", "{model}"], "`sampling_rate` is 8000, the model's 16000"),
        (["--model_name_or_path", "{folder}/no-such-model"], "no-such-model"),
        (["--channel", "phisical"], "phisical does not exist; give the YAML of a channel, or one of seed_order"),
        (["--channel", "only_noise"], "mixes in noise, of which there is none here"),
        (["--wideband_share", "0.5"], "`wideband_share` has no effect without `channel`"),
        (["--eval_conditions", "telephone", "--eval_data", "{data}"], "`eval_conditions` has telephone; say by which"),
        (["--output_dir", ""], "`output_dir` is missing: say where the run goes"),
    ],
)  # fmt: skip
def test_wrong_options_are_explained(error_of, folder, tmp_path, monkeypatch, argv, message):
    if "--model_name_or_path" in argv:
        monkeypatch.setattr(sys.modules[__name__], "TINY", TINY[2:])  # a model that is given has its size
    places = {"data": folder / "speech" / "manifest.jsonl", "model": save_model(tmp_path), "folder": tmp_path}
    argv = [re.sub(r"\{(data|model|folder)\}", lambda match: str(places[match[1]]), part) for part in argv]
    assert message in error_of("--train_data", str(places["data"]), *argv)


def save_model(tmp_path) -> Path:
    torch.manual_seed(1)
    NestForPreTraining(NestConfig.from_preset("tiny")).save_pretrained(tmp_path / "model")
    NestFeatureExtractor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---- whole runs, each in a process of its own


def launch(*argv: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170)


def fields_of(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", line)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_error_is_one_line_without_a_traceback(folder, tmp_path, workers):
    data = manifest(tmp_path, folder, corrupt=b"no audio")
    run = launch(
        "--train_data", data, *TINY, "--dataloader_num_workers", workers, "--output_dir", str(tmp_path / "run")
    )
    lines = (run.stdout + run.stderr).splitlines()
    (error,) = [line for line in lines if line.startswith("error:")]
    assert run.returncode == 1 and "Traceback" not in run.stdout + run.stderr
    assert error.startswith("error: recording 'corrupt': ") and "--on_bad_audio skip" in error


@pytest.mark.slow
def test_a_run_goes_on_without_bad_recordings_and_reports_all(folder, tmp_path):
    odd = {name: content for name, (content, *_) in ODD.items()}
    odd |= {"stereo": (tone(24000, 2), 16000), "phone": (tone(12000), 8000)}
    out = tmp_path / "run"
    (tmp_path / "config.yaml").write_text(
        f"preset: tiny\nuse_cpu: true\nbatch_duration_s: 8\neval_data: {{read: {folder}/other/manifest.jsonl}}\n"
    )
    run = launch(
        str(tmp_path / "config.yaml"),
        *("--train_data", manifest(tmp_path, folder, **odd), "--noise_data", f"{folder}/noise/manifest.jsonl"),
        *("--eval_data", f"read={folder}/other/manifest.jsonl", f"calls={folder}/speech/manifest.jsonl"),
        *"--eval_conditions clean noisy --on_bad_audio skip --max_steps 5 --eval_steps 5 --save_steps 5".split(),
        *"--warmup_steps 2 --learning_rate 0.01 --logging_steps 1 --run_name".split(),
        *("名字", "--output_dir", str(out)),
    )
    assert run.returncode == 0, run.stderr
    # what was odd is counted and named
    for line in (
        "4 recordings left out since they could not be used: corrupt",
        "1 recordings down-mixed to mono: stereo",
        "1 recordings resampled: phone",
    ):
        assert line in run.stdout
    report = {
        record["id"]: record for record in map(json.loads, (out / "audio_report.jsonl").read_text().splitlines())
    }
    assert set(report) == set(odd)
    assert all(report[name]["message"].startswith(f"{reason}: ") for name, (*_, reason) in ODD.items())
    # one line per step, with Noam's learning rate
    lines = (out / "train.log").read_text().splitlines()
    steps = [fields_of(line) for line in lines if " train " in line]
    assert [fields["step"] for fields in steps] == [1, 2, 3, 4, 5]
    for fields in steps:
        step = max(1, fields["step"] - 1)  # the rate of this update; the first two have the same, as in NeMo
        assert fields["learning_rate"] == pytest.approx(0.01 * 64**-0.5 * min(step**-0.5, step * 2**-1.5), rel=1e-4)
        assert {"loss", "accuracy", "audio_s_per_s", "padding", "memory_gb"} <= set(fields)
        assert 0 <= fields["padding"] < 1 and fields["audio_s_per_s"] > 0
    # both sets under both conditions
    results = json.loads((out / "eval_results.json").read_text())
    sets = ("read_clean", "read_noisy", "calls_clean", "calls_noisy")
    for name in sets:
        assert 0 < results[f"eval_{name}_loss"] < 10
        assert sum(f"eval_{name}_loss=" in line for line in lines) >= 1
    assert results["eval_read_clean_loss"] != results["eval_read_noisy_loss"]
    assert results["eval_read_clean_unigram_entropy"] == results["eval_read_noisy_unigram_entropy"]  # of clean targets
    # events for TensorBoard, a config that can be given again, and a model
    assert list(out.rglob("events.out.tfevents.*"))
    assert "batch_duration_s: 8" in (out / "config_resolved.yaml").read_text(encoding="utf-8")
    assert (out / "checkpoint-5" / "model.safetensors").exists()
    for saved in (out, out / "checkpoint-5"):
        assert NestForPreTraining.from_pretrained(saved).config.hidden_size == 64
        NestFeatureExtractor.from_pretrained(saved)
        NestModel.from_pretrained(saved)


@pytest.mark.slow
def test_a_run_through_the_telephone_channel_validates_calls_beside_clean_speech(folder, tmp_path):
    out = tmp_path / "run"
    channel = ["--channel", "physical", "--wideband_share", "0.2", "--eval_conditions", "clean", "telephone"]
    run = launch(
        *("--train_data", f"{folder}/speech/manifest.jsonl", "--eval_data", f"{folder}/other/manifest.jsonl"),
        *(*TINY, *channel, "--output_dir", str(out), "--max_steps", "3"),
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((out / "eval_results.json").read_text())
    entropies = [results[f"eval_validation_{name}_unigram_entropy"] for name in ("clean", "telephone")]
    assert entropies[0] != entropies[1]  # codes of the call, not of the recording


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "nemo"])
def test_a_run_starts_from_a_folder_or_a_nemo_archive(folder, tmp_path, kind):
    start = save_model(tmp_path)
    first = load_file(start / "model.safetensors")
    streaming = ["--streaming", "true"] if kind == "nemo" else ["--join_to_s", "3"]
    if kind == "nemo":
        to_nemo(start, tmp_path / "model.nemo")
        start = tmp_path / "model.nemo"
    out = tmp_path / "run"
    run = launch(
        *(
            "--model_name_or_path",
            str(start),
            "--output_dir",
            str(out),
            "--train_data",
            f"{folder}/speech",
            *streaming,
        ),
        *"--use_cpu true --report_to none --batch_duration_s 10 --max_steps 3 --logging_steps 1".split(),
        *"--schedule trainer --lr_scheduler_type linear --learning_rate 1e-6 --warmup_steps 0".split(),
    )
    assert run.returncode == 0, run.stderr
    steps = [fields_of(line) for line in (out / "train.log").read_text().splitlines()]
    assert [fields["step"] for fields in steps] == [1, 2, 3]
    assert all(np.isfinite(fields["loss"]) for fields in steps)
    last = load_file(out / "model.safetensors")
    assert last.keys() == first.keys()
    moved = {name for name, x in first.items() if x.dtype == torch.float32 and not torch.equal(x, last[name])}
    for name in moved:
        if "running" not in name:  # BatchNorm's statistics follow the data
            assert (last[name] - first[name]).abs().max() < 1e-5  # so the weights were read, and trained a little
    assert any("layers.0" in name for name in moved) and not any("quantizer" in name for name in moved)
