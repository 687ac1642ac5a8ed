"""Stage 0's script: the same recordings by id however it is run, nothing lost or doubled, clear words on bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import make_recordings

from nest_hf.data import decode_audio, load_speech_dataset
from nest_hf.data import preparation as stage0
from nest_hf.data.audio_encoding import write_whole
from nest_hf.data.telephone import ChannelDraw, TelephoneChannel

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training" / "prepare_data.py"
CHANNEL = str(ROOT / "configs" / "telephone.yaml")


def command(*arguments) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def prepare(*arguments, ok: bool = True) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    run = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=500, env=environment)
    text = run.stdout + run.stderr
    assert (run.returncode == 0) == ok, text
    assert "Traceback" not in text, text
    return text


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    return make_recordings(tmp_path_factory.mktemp("data") / "wide", number=14)


def samples(source) -> dict[str, np.ndarray]:
    return {row["id"]: decode_audio(row["audio"]).samples for row in load_speech_dataset(str(source))}


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in (".flac", ".jsonl") and path.name != "settings.json"}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(wide, tmp_path_factory) -> Path:
    """One process, FLAC: what every other way must equal."""
    out = tmp_path_factory.mktemp("out") / "one"
    text = prepare(CHANNEL, "--data", wide, "--output_dir", out, "--num_proc", 1, "--rows_per_part", 4, "--seed", 7)
    assert "14 rows to be simulated" in text and "x real time" in text
    return out


def test_the_files_hold_what_the_channel_gives_in_memory(prepared, wide):
    rows = load_speech_dataset(wide)
    channel = TelephoneChannel.from_yaml(CHANNEL).with_noise(rows, seed=7)
    written = {row["id"]: row for row in load_speech_dataset(str(prepared / "train.jsonl"))}
    assert len(written) == 14
    for row in rows:
        call, draw = channel(decode_audio(row["audio"]).samples, sampling_rate=16000, seed=7, id=row["id"])
        np.testing.assert_array_equal(decode_audio(written[row["id"]]["audio"]).samples, call)
        assert ChannelDraw.from_json(written[row["id"]]["channel"]) == draw


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    ["--num_proc", 2, "--rows_per_part", 3],
    ["--format", "wav"],
    ["--format", "parquet", "--num_proc", 2],
    ["--engine", "ray", "--rows_per_part", 4],
    ["--engine", "ray", "--format", "parquet", "--rows_per_part", 2],
])  # fmt: skip
def test_processes_formats_and_engines_give_the_same_samples(prepared, wide, tmp_path, options):
    text = prepare(CHANNEL, "--data", wide, "--output_dir", tmp_path / "out", "--seed", 7, *options)
    assert "ray" not in options or "2 workers of Ray took part" in text
    source = tmp_path / "out" / ("train" if "parquet" in options else "train.jsonl")
    assert_equal(samples(prepared / "train.jsonl"), samples(source))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_killed_at_random_moments_nothing_is_lost_or_doubled(prepared, wide, tmp_path):
    """SIGKILL to the whole group; after the last run every file equals those of the undisturbed one."""
    out, rng, kills = tmp_path / "out", random.Random(0), 0
    run = command(CHANNEL, "--data", wide, "--output_dir", out, "--num_proc", 2, "--rows_per_part", 4, "--seed", 7)
    start = time.monotonic()
    subprocess.run(command("--help"), capture_output=True)
    starting_s = time.monotonic() - start  # imports; a kill before the work begins would show nothing
    for _ in range(5):
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + starting_s + 10
        before = len(list(out.rglob("*.flac")))
        while process.poll() is None and time.monotonic() < deadline and len(list(out.rglob("*.flac"))) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.02))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    prepare(*run[2:])
    assert kills >= 1
    whole = {name: data for name, data in files(out).items()}
    expected = files(prepared)
    assert whole.keys() == expected.keys()
    for name in expected:
        if not name.endswith(".chatml.jsonl"):  # its paths are absolute
            assert whole[name] == expected[name], name
    assert not list(out.rglob("*.incomplete"))


def test_skipping_what_is_missing_keeps_what_is_there(wide, tmp_path):
    """`missing_noise: skip` leaves out the noise that nobody gave, and not the babble, which the data give."""
    (tmp_path / "channel.yaml").write_text("steps: [noise, babble]\nmissing_noise: skip\n")
    prepare(tmp_path / "channel.yaml", "--data", wide, "--output_dir", tmp_path / "out", "--num_proc", 1)
    for row in load_speech_dataset(str(tmp_path / "out" / "train.jsonl")):
        noise, babble = ChannelDraw.from_json(row["channel"]).steps
        assert "skipped" in noise and len(babble["talkers"]) >= 3


def test_a_finished_job_is_not_done_again_and_another_is_refused(prepared, wide):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.flac")}
    same = ["--data", wide, "--output_dir", prepared, "--num_proc", 1, "--rows_per_part", 4, "--seed", 7]
    assert "4 of them done already" in prepare(CHANNEL, *same)
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*.flac")}
    other = [*same[:-1], 8]
    assert "`seed` 7, now 8" in prepare(CHANNEL, *other, ok=False)


def test_files_of_another_kind_are_not_replaced(wide, tmp_path):
    (tmp_path / "train.jsonl").write_text("mine")
    assert "would replace" in prepare(CHANNEL, "--data", wide, "--output_dir", tmp_path, ok=False)
    text = prepare(CHANNEL, "--data", wide, "--output_dir", tmp_path, "--overwrite", "true", ok=False)
    assert "would replace" in text and (tmp_path / "train.jsonl").read_text() == "mine"


def test_overwriting_replaces_an_earlier_job_alone(wide, tmp_path):
    rows = {"train": load_speech_dataset(wide)}
    (tmp_path / "notes.txt").write_text("mine")
    stage0.claim_folder(tmp_path, rows, {"seed": 1})
    (tmp_path / "audio").mkdir()
    with pytest.raises(ValueError, match="`seed` 1, now 2"):
        stage0.claim_folder(tmp_path, rows, {"seed": 2})
    stage0.claim_folder(tmp_path, rows, {"seed": 2}, overwrite=True)
    assert not (tmp_path / "audio").exists() and (tmp_path / "notes.txt").read_text() == "mine"


def test_real_calls_are_only_resampled_and_odd_recordings_counted(wide, tmp_path):
    calls = make_recordings(tmp_path / "calls", number=3, seed=9)
    lines = [json.loads(line) for line in Path(calls).read_text().splitlines()]
    tone = (0.3 * np.sin(2 * np.pi * 500 * np.arange(8000) / 8000)).astype(np.float32)
    for name, wave in (("call", tone), ("stereo", np.stack([tone, tone], axis=1)), ("empty", tone[:0]),
                       ("nan", np.full(100, np.nan, np.float32))):  # fmt: skip
        soundfile.write(tmp_path / "calls" / f"{name}.wav", wave, 8000, subtype="FLOAT")
        lines.append({"audio_filepath": f"{name}.wav", "id": name, "text": "好"})
    (tmp_path / "calls" / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    lines += [{"audio_filepath": "broken.flac", "id": "broken"}, {"audio_filepath": "gone.wav", "id": "gone"}]
    lines += [{"audio_filepath": "call.wav", "id": "marked", "text": "你<ANNOTATION_ERROR>"}]
    Path(calls).write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    text = prepare("--preset", "only_codec", "--data", wide, "--real_data", calls, "--output_dir", out)
    assert "3 recordings: a call sampled at 16000 Hz" in text and "1 recordings: 2 channels averaged" in text
    rows = {row["id"]: row for row in load_speech_dataset(str(out / "train.jsonl"))}
    assert len(rows) == 14 + 5
    assert rows["call"]["channel"] is None and rows["call"]["real"] and rows["call"]["text"] == "好"
    upsampled = decode_audio(rows["call"]["audio"]).samples
    direct = decode_audio(str(tmp_path / "calls" / "call.wav")).samples
    assert np.abs(upsampled - direct).max() <= 0.5 / 32768
    rejected = {row["id"]: row["reason"] for line in (out / "rejected.jsonl").read_text().splitlines()
                for row in [json.loads(line)]}  # fmt: skip
    assert rejected == {
        "empty": "zero length", "nan": "NaN samples", "broken": "unreadable", "gone": "missing file",
        "marked": "annotation",
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["rows"] + sum(report["rejected"].values()) == 14 + 10


def test_a_development_set_by_speaker_shares_no_speaker(wide, tmp_path):
    lines = [json.loads(line) for line in Path(wide).read_text().splitlines()]
    for number, line in enumerate(lines):
        line |= {"speaker": f"s{number % 5}", "audio_filepath": str(Path(wide).parent / line["audio_filepath"])}
    manifest = tmp_path / "speakers.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    prepare("--preset", "clean_8k", "--data", manifest, "--dev_share", 0.3, "--output_dir", out, "--num_proc", 1)
    train, dev = (load_speech_dataset(str(out / f"{split}.jsonl")) for split in ("train", "dev"))
    assert len(train) + len(dev) == 14 and not set(train["speaker"]) & set(dev["speaker"])


def test_the_check_prints_every_stage_and_leaves_pictures_and_recordings(wide, tmp_path):
    pytest.importorskip("matplotlib")
    text = prepare(CHANNEL, "--data", wide, "--output_dir", tmp_path, "--check", 2)
    for stage in ("readable   2 of 2", "simulated  2 of 2", "converted  2 of 2", "validated  2 of 2", "counted    2"):
        assert f"pass  {stage}" in text
    assert len(list((tmp_path / "check").glob("*.png"))) == 2
    assert len(list((tmp_path / "check").glob("*-after.wav"))) == 2
    assert not (tmp_path / "train.jsonl").exists()


def test_a_check_of_a_broken_recording_fails(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio_filepath": "gone.wav", "duration": 2.0}')
    text = prepare("--preset", "clean_8k", "--data", manifest, "--output_dir", tmp_path / "o", "--check", 1, ok=False)
    assert "fail  readable" in text and "gone.wav" in text


def test_a_full_disk_stops_with_one_line_and_leaves_no_half_file(wide, tmp_path, monkeypatch):
    rows = load_speech_dataset(wide)
    writer = stage0.PartWriter({"train": rows}, TelephoneChannel.from_preset("clean_8k"), frozenset(), str(tmp_path))
    first, second = stage0.plan_parts({"train": rows}, 7)
    writer(first)
    real_write = Path.write_bytes

    def full(self, data):
        real_write(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        writer(second)
    monkeypatch.undo()
    assert stage0.is_done(str(tmp_path), first) and not stage0.is_done(str(tmp_path), second)
    assert not list(tmp_path.rglob("*.incomplete"))
    assert len(list(tmp_path.rglob("*.flac"))) == 7
    writer(second)
    assert sorted(row["id"] for row in stage0.kept_rows(str(tmp_path), [first, second])) == sorted(rows["id"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_the_systems_own_full_disk_is_an_error(tmp_path):
    (tmp_path / "x.flac.incomplete").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x.flac", bytes(10_000_000))
    assert not (tmp_path / "x.flac").exists()


def test_a_damaged_record_of_a_part_is_an_error(wide, tmp_path):
    rows = load_speech_dataset(wide)
    writer = stage0.PartWriter({"train": rows}, TelephoneChannel.from_preset("clean_8k"), frozenset(), str(tmp_path))
    (part,) = stage0.plan_parts({"train": rows}, 100)
    writer(part)
    record = tmp_path / "parts" / "train-00000.jsonl"
    record.write_text("\n".join(record.read_text().splitlines()[1:]))
    with pytest.raises(ValueError, match="13 [+] 0 rows where 14 are due; delete it"):
        stage0.read_part(str(tmp_path), part)


def test_file_names_are_safe_and_unique():
    ids = ["a/b", "a_b", "../../etc/passwd", "你好", "x" * 500, "", "a\n"]
    names = [stage0.file_name(one) for one in ids]
    assert len(set(names)) == len(ids)
    assert all("/" not in name and not name.startswith(".") and len(name) < 80 for name in names)


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "`data` and `real_data` are missing"),
    (["--data", "none.json", "--preset", "clean_8k"], "`none.json` does not exist"),
    (["--data", "WIDE", "--preset", "phisical"], "did you mean `physical`"),
    (["--data", "WIDE", "--preset", "clean_8k", "--formt", "wav"], "did you mean `format`"),
    (["--data", "WIDE", "--preset", "clean_8k", "--format", "mp3"], "flac, wav, parquet"),
    (["--data", "WIDE"], "either `steps`"),
    (["--data", "WIDE", "--preset", "only_noise"], "--noise_data"),
    (["--data", "WIDE", "--preset", "clean_8k", "--noise_data", "WIDE"], "`noise` has no effect"),
    (["--data", "WIDE", "--preset", "clean_8k", "--dev_data", "WIDE"], "14 ids are in the training and in the"),
    (["--data", "WIDE", "--preset", "clean_8k", "--dev_share", "2"], "between 0 and 1"),
])  # fmt: skip
def test_bad_input_gets_one_line(wide, tmp_path, monkeypatch, capsys, arguments, message):
    sys.path.insert(0, str(SCRIPT.parent))
    import prepare_data

    given = [wide if part == "WIDE" else part for part in arguments]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *given, "--output_dir", str(tmp_path / "out")])
    with pytest.raises((ValueError, OSError), match=message):
        prepare_data.main()


def test_an_empty_manifest_is_said_to_be_empty(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    text = prepare("--preset", "clean_8k", "--data", tmp_path / "none.jsonl", "--output_dir", tmp_path / "o", ok=False)
    assert "is empty" in text.strip().splitlines()[-1]
