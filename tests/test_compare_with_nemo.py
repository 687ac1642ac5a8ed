"""compare_with_nemo.py on stored results of NeMo: passes where they are ours, and says which stage is not."""

import importlib.util
import sys
from pathlib import Path

import golden
import pytest
import soundfile
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[1] / "evaluation" / "compare_with_nemo.py"


@pytest.fixture
def compare(monkeypatch, capsys):
    """Runs the script; returns its exit code and what it printed."""
    spec = importlib.util.spec_from_file_location("compare_with_nemo", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            script.main()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out + printed.err

    return run


def write_waves(folder: Path, case: str) -> list[Path]:
    paths = [folder / f"{index}.wav" for index in range(4)]
    for path, wave in zip(paths, golden.waves(case)[1], strict=True):
        soundfile.write(path, wave.numpy(), 16000, subtype="FLOAT")
    return paths


@pytest.fixture(params=golden.CASES)
def example(request, tmp_path):
    """(.nemo, noisy recordings, NeMo's results); the stored tokens are those of the clean ones, so ours stand in."""
    case = request.param
    io, features = golden.tensors(f"{case}/io"), golden.inputs(case)["input_features"]
    tokens, log_probs = golden.model(case).quantizer(features), io["log_probs_masked"].transpose(2, 3)
    in_loss = io["loss_frame_mask"]
    stages = {
        "samples": io["audio_lengths"],
        "lengths": io["feature_lengths"],
        "encoded_lengths": io["encoded_lengths"],
        "mask": io["mask"],
        "features": features,
        "tokens": tokens,
        "encoder": io["encoded_masked"].transpose(1, 2),
        "log_probs": log_probs,
        "loss": -log_probs[in_loss].gather(-1, tokens[in_loss][..., None]).mean(),
    }
    file = tmp_path / "golden.safetensors"
    save_file({name: t.contiguous() for name, t in stages.items()}, file, metadata={"nemo_version": "3.0.0"})
    return golden.FOLDER / case / f"{case}.nemo", write_waves(tmp_path, case), file


def test_equal_stages_pass(compare, example):
    nemo, audio, file = example
    code, output = compare(nemo, *audio, "--golden", file)
    assert code == 0, output
    assert [line.split()[-1] for line in output.splitlines()[2:7]] == ["yes"] * 5


@pytest.mark.parametrize("stage, change", [("encoder", 1e-4), ("log_probs", 1e-4), ("loss", 1e-3), ("tokens", 1)])
def test_a_missed_bar_is_named(compare, example, stage, change):
    nemo, audio, file = example
    stages = load_file(file)
    stages[stage].view(-1)[0] += change
    save_file(stages, file, metadata={"nemo_version": "3.0.0"})
    code, output = compare(nemo, *audio, "--golden", file)
    assert code == 1
    assert [line.split()[0] for line in output.splitlines() if line.endswith("NO")] == [stage]


def test_what_is_needed_is_said(compare, tmp_path, monkeypatch):
    nemo, audio = golden.FOLDER / "tiny" / "tiny.nemo", write_waves(tmp_path, "tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, output = compare(nemo, *audio)
    assert code == 2 and "NeMo is not installed here" in output and "--golden" in output


def test_other_recordings_are_refused(compare, example):
    nemo, audio, file = example
    code, output = compare(nemo, *audio[:2], "--golden", file)
    assert code == 2 and "pass the same files in the same order" in output


def test_stereo_is_refused(compare, tmp_path):
    soundfile.write(tmp_path / "stereo.wav", [[0.0, 0.0]] * 100, 16000)
    code, output = compare(golden.FOLDER / "tiny" / "tiny.nemo", tmp_path / "stereo.wav", "--golden", "x")
    assert code == 2 and "has 16000 Hz and 2 channels; pass mono audio of 16000 Hz" in output
