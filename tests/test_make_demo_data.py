"""The demo data generator keeps its promises: amounts, reproducibility, disjoint speakers, honest manifests."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[1] / "training" / "make_demo_data.py"
MANIFESTS = ("train.jsonl", "validation.jsonl", "noise_train.jsonl", "noise_validation.jsonl")
SMALL = ("--num_files", "24", "--num_noise_files", "12", "--noise_s", "2", "--validation_share", "0.5", "--seed", "3")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Runs the script in a process of its own, for espeak-ng keeps state in a process."""
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def read(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("demo") / "data"
    result = run(folder, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_demo_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_demo_data"]


def test_the_number_of_files_is_exact(made):
    assert [len(read(made / name)) for name in MANIFESTS] == [12, 12, 6, 6]
    assert len(list((made / "speech").iterdir())) == 24 and len(list((made / "noise").iterdir())) == 12


def test_at_least_the_hours_are_made_also_in_flac(made, tmp_path):
    result = run(tmp_path, "--hours", "0.02", "--format", "flac", "--num_noise_files", "0")
    assert result.returncode == 0, result.stderr
    splits = [[row["duration"] for row in read(tmp_path / name)] for name in MANIFESTS[:2]]
    longest_s = 12
    for share, durations in zip((0.9, 0.1), splits, strict=True):
        assert share * 72 <= sum(durations) + 1e-6 < share * 72 + longest_s
    assert not (tmp_path / "noise_train.jsonl").exists()
    assert {path.suffix for path in (tmp_path / "speech").iterdir()} == {".flac"}
    assert result.stdout.index("at least 0.02 hours") < result.stdout.index("train.jsonl: ")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(made, tmp_path):
    assert run(tmp_path / "same", *SMALL).returncode == 0
    assert contents(tmp_path / "same") == contents(made)
    assert run(tmp_path / "other", *SMALL[:-1], "4").returncode == 0
    other, first = contents(tmp_path / "other"), contents(made)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name.endswith(".wav"))
    texts, other_texts = (
        {row["text"] for row in read(folder / "train.jsonl")} for folder in (made, tmp_path / "other")
    )
    assert len(texts & other_texts) < 3


def test_manifests_tell_the_truth_about_the_audio(made):
    ids = []
    for name in MANIFESTS:
        for row in read(made / name):
            ids.append(row["id"])
            assert not Path(row["audio_filepath"]).is_absolute()
            info = soundfile.info(made / row["audio_filepath"])
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert info.frames / 16000 == row["duration"]
            peak = np.abs(soundfile.read(made / row["audio_filepath"])[0]).max()
            assert 0.05 < peak < 1, f"{row['id']} has the peak {peak}"
            assert 1 <= row["duration"] <= 12 if "text" in row else row["duration"] == 2
    assert len(set(ids)) == len(ids)


def test_splits_share_no_speaker_and_both_speak_both_languages(made, script):
    splits = [read(made / name) for name in MANIFESTS[:2]]
    train, validation = ({row["speaker"] for row in rows} for rows in splits)
    assert len(train) >= 5 and len(validation) >= 5 and not train & validation
    for rows in splits:
        assert [row["lang"] for row in rows] == ["zh", "en"] * 6
        for row in rows:
            assert row["text"].isascii() == (row["lang"] == "en") and not any(c.isdigit() for c in row["text"])
    speakers = script.draw_speakers(0.1, 0)
    variants = [{speaker.variant for speaker in speakers[split]} for split in ("train", "validation")]
    assert len(variants[0]) >= 10 and not variants[0] & variants[1]


def test_every_kind_of_noise_is_there_and_has_its_spectrum(made):
    for name in MANIFESTS[2:]:
        low_share = {}
        for row in read(made / name):
            wave = soundfile.read(made / row["audio_filepath"])[0]
            power = np.abs(np.fft.rfft(wave)) ** 2  # (samples,) -> (samples / 2 + 1,), 0.5 Hz apart
            low_share[row["kind"]] = power[: 2 * 1000].sum() / power.sum()
        assert set(low_share) == {"babble", "ventilation", "hum", "pink", "brown", "white"}
        assert low_share["white"] < 0.2 < low_share["pink"] < low_share["brown"] and low_share["hum"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "is not empty; pass a new folder or `--overwrite`"),
        (("--overwrite", "--hours", "1", "--num_files", "5"), "not both"),
        (("--overwrite", "--num_files", "1"), "`num_files` is 1"),
        (("--overwrite", "--num_file", "5"), "--num_file"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_the_folder_alone(made, options, message):
    before = contents(made)
    result = run(made, *options)
    assert result.returncode != 0 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and contents(made) == before


def test_overwrite_replaces_its_own_files_only(made, tmp_path):
    (tmp_path / "speech").mkdir()
    for name in ("notes.txt", "speech/mine.wav", "speech/train-99999.wav", "train.jsonl"):
        (tmp_path / name).write_text("old")
    assert run(tmp_path, *SMALL, "--overwrite").returncode == 0
    kept = {"notes.txt": b"old", "speech/mine.wav": b"old"}
    assert contents(tmp_path) == contents(made) | kept


def test_without_espeak_the_remedy_is_named(tmp_path):
    code = "import runpy, sys; sys.modules['espeakng_loader'] = None\n"
    code += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", code, str(SCRIPT), "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert 'pip install "nest_hf[demo]"' in result.stderr


@pytest.mark.parametrize(
    ("number", "mandarin", "english"),
    [
        (7, "七", "seven"),
        (10, "十", "ten"),
        (15, "十五", "fifteen"),
        (40, "四十", "forty"),
        (315, "三百一十五", "three hundred fifteen"),
        (1001, "一千零一", "one thousand one"),
        (2050, "二千零五十", "two thousand fifty"),
        (9900, "九千九百", "nine thousand nine hundred"),
    ],
)
def test_numbers_are_read_out(script, number, mandarin, english):
    assert (script.read_mandarin(number), script.read_english(number)) == (mandarin, english)
