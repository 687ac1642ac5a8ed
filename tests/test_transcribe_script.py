"""transcribe.py: every recording once, whatever kills it; conditions by fixed seeds; the impossible is said first."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recordings import make_recordings
from tiny_asr import tiny_model, tiny_processor
from tiny_peers import whisper
from transformers import Wav2Vec2Processor

from nest_hf import NestConfig, NestFeatureExtractor, NestForCTC
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.data import ChannelDraw, decode_audio
from nest_hf.hypotheses import read_hypotheses, read_meta
from nest_hf.transcription import Transcriber

SCRIPT = Path(__file__).parents[1] / "evaluation" / "transcribe.py"
NUMBER = 12


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CTC model and a recogniser with random weights, and twelve recordings with texts and further columns."""
    folder = tmp_path_factory.mktemp("transcribe")
    torch.manual_seed(0)
    tokenizer = build_ctc_tokenizer(["一二三四五"])
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "subsampling_conv_channels": 8}
    config = NestConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = NestForCTC(config)
    for parameter in model.ctc_head.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder / "ctc")
    Wav2Vec2Processor(NestFeatureExtractor(), tokenizer).save_pretrained(folder / "ctc")
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(folder / "asr")
    processor.save_pretrained(folder / "asr")
    manifest = Path(make_recordings(folder / "wavs", number=NUMBER, min_s=0.4, max_s=2.0))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, line in enumerate(lines):
        line |= {"text": "一二三", "speaker": f"s{index % 2}", "snr_db": 10.0 + index}
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def run(script, folder, monkeypatch, tmp_path, caplog):
    def run(*argv: str, model: str = "ctc", data: str | None = None) -> Path:
        data = data or str(folder / "wavs" / "manifest.jsonl")
        output = tmp_path / "hyp.jsonl"
        given = ["--model", str(folder / model), "--data", data, "--output", str(output), "--device", "cpu", *argv]
        monkeypatch.setattr("sys.argv", ["transcribe.py", *given])
        with caplog.at_level("INFO"):
            script.main()
        return output

    return run


def command(folder: Path, output: Path, *argv: str) -> list[str]:
    data = str(folder / "wavs" / "manifest.jsonl")
    return [str(SCRIPT), "--model", str(folder / "asr"), "--data", data, "--output", str(output), "--device", "cpu",
            "--batch_duration_s", "8", *argv]  # fmt: skip


def texts(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in read_hypotheses(path)]


def test_each_line_says_what_was_heard_and_what_was_known(run, folder):
    output = run("--timestamps", "true", "--batch_duration_s", "4")
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [f"wavs{index}" for index in range(NUMBER)]
    transcriber = Transcriber.from_pretrained(str(folder / "ctc"))
    for line in lines:
        wave = decode_audio(line["audio"]).samples
        (alone,) = transcriber([wave], timestamps=True)
        assert line["text"] == line["ctc_text"] == alone.text
        assert [part["text"] for part in line["characters"]] == [part.text for part in alone.characters]
        assert line["duration_s"] == pytest.approx(len(wave) / 16000, abs=1e-3) and line["rtf"] > 0
        assert line["reference"] == "一二三" and line["speaker"] in ("s0", "s1") and line["snr_db"] >= 10
    assert any(line["text"] for line in lines)


def test_the_meta_file_says_how_and_how_fast(run):
    meta = read_meta(run())
    assert meta["complete"] and meta["num_recordings"] == NUMBER and meta["skipped"] == {}
    assert meta["settings"]["decoding"]["mode"] == "ctc" and len(meta["settings"]["sha256"][0]) == 64
    assert meta["rtf"] * meta["rtfx"] == pytest.approx(1)
    assert meta["rtf"] == pytest.approx(meta["compute_s"] / (meta["hours"] * 3600))
    assert meta["threads"] == torch.get_num_threads() and meta["device"] == "cpu"


def test_a_language_model_gives_both_texts_and_the_guards_decision(run):
    (line, *_) = [json.loads(line) for line in run(model="asr").read_text(encoding="utf-8").splitlines()]
    assert {"text", "ctc_text", "lm_text", "decisions", "hotwords", "hit_max_new_tokens"} <= line.keys()


def test_the_same_command_again_hears_nothing_anew(run, monkeypatch):
    output = run()
    before = output.read_bytes()
    monkeypatch.setattr("nest_hf.transcription_run.as_row", None)  # would be called for any recording
    assert run().read_bytes() == before


def test_new_recordings_alone_are_heard(run, folder, tmp_path):
    manifest = tmp_path / "some.jsonl"
    lines = (folder / "wavs" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.dumps(json.loads(line) | {"audio_filepath": str(folder / "wavs" / f"{i}.wav")})
             for i, line in enumerate(lines)]  # fmt: skip
    manifest.write_text("\n".join(lines[:4]))
    first = read_hypotheses(run(data=str(manifest)))
    manifest.write_text("\n".join(lines))
    again = read_hypotheses(run(data=str(manifest)))
    assert len(again) == NUMBER and again[:4] == first  # `rtf` included: they were not heard twice


def test_other_settings_for_an_output_are_refused(run):
    run()
    with pytest.raises(ValueError, match="`timestamps` False then, True now.*--overwrite true"):
        run("--timestamps", "true")
    assert all("characters" in json.loads(line) for line in run("--timestamps", "true", "--overwrite", "true").open())


def test_conditions_are_heard_in_files_of_their_own_with_the_same_draws_each_time(run, tmp_path):
    run("--domain", "clean_16k", "g711", "loss", "babble")
    read = {name: (tmp_path / f"hyp.{name}.jsonl").read_text(encoding="utf-8") for name in
            ("clean_16k", "g711", "loss", "babble")}  # fmt: skip
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in read.items()}
    assert all(len(lines) == NUMBER for lines in rows.values()) and "channel" not in rows["clean_16k"][0]

    def steps(name: str, index: int) -> dict:
        draw = ChannelDraw.from_json(rows[name][index]["channel"])
        return {step["step"]: {**step} for step in draw.steps if step["step"] != "resample"}

    for index in range(NUMBER):
        assert list(steps("babble", index)) == ["codec", "packet_loss", "babble"]
        assert steps("g711", index)["codec"] == steps("loss", index)["codec"] == steps("babble", index)["codec"]
        assert steps("loss", index)["packet_loss"] == steps("babble", index)["packet_loss"]
    run("--domain", "clean_16k", "g711", "loss", "babble", "--overwrite", "true", "--batch_duration_s", "3")
    for name, lines in rows.items():
        again = [json.loads(line) for line in (tmp_path / f"hyp.{name}.jsonl").open(encoding="utf-8")]
        assert [(a["text"], a.get("channel")) for a in again] == [(b["text"], b.get("channel")) for b in lines]


def test_bad_audio_is_skipped_by_name_and_reason_or_stops_the_run(run, tmp_path):
    good = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "good.wav", good, 16000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF nonsense")
    (tmp_path / "late.wav").write_bytes(b"no audio either")
    lines = [{"audio_filepath": "good.wav", "id": "good"}, {"audio_filepath": "bad.wav", "id": "bad"},
             {"audio_filepath": "late.wav", "id": "late", "duration": 1.0},
             {"audio_filepath": "good.wav", "id": "long", "duration": 99.0}]  # fmt: skip
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="'bad'.*--on_bad_audio skip"):
        run(data=str(manifest))
    output = run("--on_bad_audio", "skip", "--max_duration_s", "20", data=str(manifest))
    assert [row["id"] for row in read_hypotheses(output)] == ["good"]
    skipped = read_meta(output)["skipped"]
    assert skipped.keys() == {"bad", "late", "long"} and skipped["long"] == "99 s, longer than 20 s"


@pytest.mark.parametrize(
    ("argv", "model", "message"),
    [
        (["--timestamps", "true"], "whisper", "`timestamps` need a CTC head"),
        (["--language", "zh"], "ctc", "`language` has no effect"),
        (["--mode", "lm"], "ctc", "`mode` is 'lm'"),
        (["--domain", "moon"], "ctc", "`domain` is 'moon'; choose from clean_16k"),
        (["--domain", "g711", "g711"], "ctc", "twice"),
        (["--dtype", "int8"], "ctc", "`dtype` is 'int8'"),
        ([], "nothing", "cannot be loaded"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(run, folder, tmp_path, argv, model, message):
    if model == "whisper" and not (folder / "whisper").exists():
        whisper(folder / "whisper")
    with pytest.raises(ValueError, match=message):
        run(*argv, model=model)
    assert not list(tmp_path.glob("hyp*"))


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_nothing(folder, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(folder, whole)], env=environment, check=True, timeout=200)
    part = Path(f"{killed}.part0")
    for wanted in (1, 5):  # killed twice, at whatever moment that is
        process = subprocess.Popen([sys.executable, *command(folder, killed)], env=environment)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if part.exists() and part.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not killed.exists()  # it was in the middle
        if part.exists():
            part.write_bytes(part.read_bytes() + b'{"id": "wavs11", "te')
    subprocess.run([sys.executable, *command(folder, killed)], env=environment, check=True, timeout=200)
    assert texts(killed) == texts(whole) and len(texts(whole)) == NUMBER


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_write_what_one_does(folder, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(folder, one)], env=environment, check=True, timeout=200)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launch, *command(folder, two)], env=environment, check=True, timeout=200)
    assert texts(two) == texts(one) and read_meta(two)["processes"] == 2
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.jsonl", "two.jsonl.meta.json"]
