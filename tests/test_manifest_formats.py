"""Manifests of NeMo, FunASR and Kaldi: the same rows from each, the same rows back, and no line taken for another."""

import json
import logging
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import soundfile

from nest_hf.data.funasr import num_fbank_frames
from nest_hf.data.manifests import Origin, manifest_rows
from nest_hf.data.sources import load_speech_dataset
from nest_hf.data.tables import manifest_block, manifest_table, rows_to_table
from nest_hf.data.writers import whole_file, write_chatml_manifest, write_nemo_manifest

NUM_FILES = 4
TEXTS = ["今天", "你好 吗", "", "查话费"]


@pytest.fixture
def folder(tmp_path):
    """`wavs/0.wav` lasts 0.5 s, `wavs/1.wav` 1.0 s, and so on."""
    (tmp_path / "wavs").mkdir()
    for index in range(NUM_FILES):
        samples = np.full(8000 * (index + 1), 0.1, np.float32)
        soundfile.write(tmp_path / "wavs" / f"{index}.wav", samples, 16000)
    return tmp_path


def write(path, lines) -> str:
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return str(path)


def chatml(path: str, text: str | None, **more) -> dict:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": f"语音转写：<|startofspeech|>!{path}<|endofspeech|>"},
        *([{"role": "assistant", "content": text}] if text is not None else []),
    ]
    return {"messages": messages, "speech_length": 9, "text_length": 99, **more}


def schema(rows) -> list[tuple]:
    return [(row["id"], row["audio"]["path"], row["duration"], row["text"], row["speaker"]) for row in rows]


# ---- readers


def test_every_format_gives_the_same_rows(folder):
    names = [f"utt{index}" for index in range(NUM_FILES)]
    paths = [f"wavs/{index}.wav" for index in range(NUM_FILES)]
    both = list(zip(names, paths, TEXTS, strict=True))
    nemo = write(
        folder / "nemo.json", [{"audio_filepath": p, "text": t, "id": n, "speaker": "s1"} for n, p, t in both]
    )
    messages = write(folder / "chat.jsonl", [chatml(p, t, key=n, speaker="s1") for n, p, t in both])
    source = write(
        folder / "source.jsonl",
        [{"key": n, "source": p, "target": t, "source_len": 1, "target_len": 2, "speaker": "s1"} for n, p, t in both],
    )
    kaldi = folder / "kaldi"
    kaldi.mkdir()
    write(kaldi / "wav.scp", [f"{n} ../{p}" for n, p, _ in both])
    write(kaldi / "text", [f"{n} {t}" for n, _, t in both])
    write(kaldi / "utt2spk", [f"{n}\ts1" for n in names])
    expected = schema(load_speech_dataset(nemo))
    assert [row[2] for row in expected] == [0.5, 1.0, 1.5, 2.0]  # measured, whatever the lengths in the file are
    assert schema(load_speech_dataset(messages)) == schema(load_speech_dataset(source)) == expected
    rows = load_speech_dataset(kaldi)
    assert [(i, os.path.normpath(p), *rest) for i, p, *rest in schema(rows)] == expected
    for data in (messages, source, str(kaldi)):
        plain, streamed = load_speech_dataset(data, need_duration=False), load_speech_dataset(data, streaming=True)
        assert list(streamed) == list(plain)
    mixed = write(folder / "mixed.jsonl", [json.dumps({"audio_filepath": paths[0]}), chatml(paths[1], "a")])
    assert load_speech_dataset(mixed)["id"][:] == paths[:2]  # told apart line by line


def test_funasr_lines_keep_what_else_they_say_but_not_their_lengths(folder):
    lines = [chatml("wavs/0.wav", None, task="asr"), chatml("wavs/1.wav", "x", domain="call")]
    dataset = load_speech_dataset(write(folder / "chat.jsonl", lines))
    assert dataset["id"][:] == ["wavs/0.wav", "wavs/1.wav"] and dataset["text"][:] == [None, "x"]
    assert dataset["prompt"][0] == "语音转写：" and dataset["task"][:] == ["asr", None]
    assert dataset["domain"][:] == [None, "call"]
    assert not {"speech_length", "text_length", "messages"} & set(dataset.column_names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": "hello"}, "`messages` must be a list"),
        ({"messages": [{"role": "user"}]}, "`messages` must be a list"),
        ({"messages": [{"role": "user", "content": "no speech"}]}, "must name one recording"),
        ({"messages": [{"role": "user", "content": "<|startofspeech|>a.wav<|endofspeech|>"}]}, "must name one"),
        ({"messages": [{"role": "user", "content": "<|startofspeech|>!!x<|endofspeech|>"}]}, "must name one"),
        (chatml("a.wav", "x")["messages"] * 2, "is no JSON object"),
        ({"messages": chatml("a.wav", "x")["messages"] * 2}, "several turns of `system`"),
        (chatml("https://example.org/a.wav", "x"), "names a URL"),
        ({"source": 7, "target": "x"}, "has no `audio_filepath`"),
        ({"source": "a.wav", "target": 5}, "`text` is 5"),
    ],
)
def test_a_bad_funasr_line_is_named_by_file_and_line(folder, line, message):
    path = write(folder / "chat.jsonl", [chatml("wavs/0.wav", "a"), line])
    for streaming in (False, True):
        with pytest.raises(ValueError) as caught:
            list(load_speech_dataset(path, streaming=streaming))
        assert f"{path}:2 " in str(caught.value) and message in str(caught.value)


def kaldi_folder(folder, **files):
    for name, lines in files.items():
        write(folder / {"scp": "wav.scp"}.get(name, name), lines)
    return folder


def test_kaldi_segments_cut_recordings_and_say_their_length(folder, caplog):
    data = kaldi_folder(
        folder,
        scp=["rec0 wavs/3.wav", f"rec1 {folder}/wavs/1.wav"],
        segments=["a rec0 0.25 1.0", "b rec0 1.0 -1", "c rec1 0 0.5"],
        text=["a 今天", "b", "z nowhere"],
        utt2spk=["a s1", "b s2"],
        utt2dur=["a 9.9", "b 9.9"],
    )
    with caplog.at_level(logging.WARNING, logger="nest_hf"):
        dataset = load_speech_dataset({"call": data}, need_duration=False)
    assert dataset["id"][:] == ["a", "b", "c"] and dataset["offset"][:] == [0.25, 1.0, 0.0]
    assert dataset["duration"][:] == [0.75, 9.9, 0.5]  # utt2dur where the segment goes to the end
    assert dataset["text"][:] == ["今天", "", None] and dataset["speaker"][:] == ["s1", "s2", None]
    assert dataset["domain"][:] == ["call"] * 3
    assert dataset[2]["audio"]["path"] == str(folder / "wavs" / "1.wav")
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "1 utterances have no text: c",
        "1 utterances have text but no audio, and are left out: z",
    ]
    (folder / "utt2dur").unlink()
    assert load_speech_dataset(data)["duration"][:] == [0.75, 1.0, 0.5]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"scp": ["a wavs/0.wav", "b touch {here}/ran; cat wavs/0.wav |"]}, "wav.scp:2 is a command, which is never"),
        ({"scp": ["a feats.ark:17"]}, "wav.scp:1 names no audio file"),
        ({"scp": ["a"]}, "wav.scp:1 names no audio file"),
        ({"scp": ["a wavs/0.wav", "a wavs/1.wav"]}, "wav.scp:2 gives `a` again, as line 1"),
        ({"scp": ["r wavs/0.wav"], "segments": ["a r 0.3"]}, "segments:1 is not `utterance recording start end`"),
        ({"scp": ["r wavs/0.wav"], "segments": ["a q 0 1"]}, "segments:1 names the recording `q`"),
        ({"scp": ["r wavs/0.wav"], "segments": ["a r 0.3 0.2"]}, "segments:1 ends at 0.2 s and starts at 0.3"),
        ({"scp": ["r wavs/0.wav"], "segments": ["a r x 0.2"]}, "segments:1 has 'x' where seconds"),
        ({"scp": ["a wavs/0.wav"], "utt2dur": ["a -3"]}, "utt2dur: a has '-3' where seconds"),
        ({"scp": ["a wavs/0.wav"], "text": ["a x", "a y"]}, "text:2 gives `a` again"),
    ],
)
def test_kaldi_folders_in_disorder_are_refused_and_commands_never_run(folder, files, message):
    here = {name: [line.replace("{here}", str(folder)) for line in lines] for name, lines in files.items()}
    with pytest.raises(ValueError, match=message):
        load_speech_dataset(kaldi_folder(folder, **here))
    assert not (folder / "ran").exists()


def test_a_domain_is_given_to_rows_that_have_none(folder):
    calls = write(folder / "calls.json", [{"audio_filepath": f"wavs/{i}.wav"} for i in range(2)])
    wide = write(folder / "wide.json", [{"audio_filepath": "wavs/2.wav", "domain": "radio"}, {"audio_filepath": "x"}])
    for data in ({"call": calls, "general": [wide]}, [f"call={calls}", f"general={wide}"], f"call={calls},g={wide}"):
        domains = load_speech_dataset(data, need_duration=False)["domain"][:]
        assert domains[:3] == ["call", "call", "radio"] and domains[3] in ("general", "g")
        assert [row["domain"] for row in load_speech_dataset(data, streaming=True)] == domains
    assert load_speech_dataset(calls, need_duration=False)["domain"][:] == [None, None]
    odd = write(folder / "a=b.json", [{"audio_filepath": "wavs/0.wav"}])
    assert load_speech_dataset(odd)["domain"][:] == [None]  # a path that exists is a path
    rows = [{"audio": {"bytes": b"", "path": "1.wav"}, "domain": d, "duration": 1.0} for d in (None, "radio")]
    datasets.Dataset.from_list(rows).select([1]).to_parquet(folder / "p.parquet")
    assert load_speech_dataset({"call": str(folder / "p.parquet")}, need_duration=False)["domain"][:] == ["radio"]


def test_weighted_streams_mix_domains_in_their_shares_and_are_seeded(folder):
    one, two, three = (
        write(folder / f"{name}.json", [{"audio_filepath": f"{name}{i}", "id": f"{name}{i}"} for i in range(count)])
        for name, count in (("a", 300), ("b", 50), ("c", 50))
    )
    data = {"call": one, "general": [two, three]}

    def ids(seed: int) -> list[str]:
        weights = {"general": 1.0, "call": 3.0}
        return [row["id"] for row in load_speech_dataset(data, streaming=True, mix_weights=weights, seed=seed)]

    drawn = ids(0)
    assert set(drawn) >= {f"a{i}" for i in range(300)} | {f"{n}{i}" for n in "bc" for i in range(50)}
    assert sum(key[0] == "a" for key in drawn[:200]) / 200 == pytest.approx(0.75, abs=0.08)
    assert drawn == ids(0) != ids(1)
    assert drawn[:3] != [row["id"] for row in load_speech_dataset(data, streaming=True)][:3]
    by_source = load_speech_dataset([one, two], streaming=True, mix_weights=[1, 9])
    assert sum(row["id"][0] == "b" for row in by_source.take(100)) > 75
    for weights, message in [
        ({"call": 1.0}, "the domains of `data` are call, general"),
        ([1.0], "must hold 3 weights above 0"),
        ([1.0, 0.0, 1.0], "must hold 3 weights above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_speech_dataset(data, streaming=True, mix_weights=weights)
    with pytest.raises(ValueError, match="no effect without `streaming`"):
        load_speech_dataset(data, mix_weights={"call": 1.0, "general": 1.0})


# ---- blocks of ordinary lines


ORDINARY = {"audio_filepath": "wavs/0.wav", "duration": 1, "text": "今天", "speaker": 7, "snr": 1.5}
ODD_LINES = [
    {"audio_filepath": "~/a.wav"},
    {"audio_filename": "b.wav", "offset": 0.25},
    {"audio_filepath": "/abs/c.wav", "offset": 1e-3, "duration": 2.5, "id": 12},
    {"audio_filepath": "d.wav", "text": None, "speaker": "s", "domain": "radio"},
    {"audio_filepath": "d.wav", "text": "2026-11-24"},  # Arrow takes it for a date
    {"audio_filepath": "e.wav", "snr": "loud", "nested": {"a": [1]}},
    {"audio_filepath": "f.wav", "sentence": "x", "source": "y", "big": 2**70},
    chatml("g.wav", "x"),
    {"key": "h", "source": "h.wav", "target": "x"},
    "",
    "   ",
]


@pytest.mark.parametrize("block_bytes", [64, 300, 1 << 20])
def test_a_table_of_blocks_equals_one_of_lines(folder, monkeypatch, block_bytes):
    monkeypatch.setattr("nest_hf.data.tables.BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    for trial in range(40):
        lines = [{**ORDINARY, "audio_filepath": f"wavs/{i}.wav"} for i in range(int(rng.integers(1, 12)))]
        for odd in rng.choice(len(ODD_LINES), trial % 4):
            lines.insert(int(rng.integers(len(lines) + 1)), ODD_LINES[odd])
        path = write(folder / "m.json", lines)
        origin = Origin("m", prefix="p/" if trial % 2 else "", domain="call" if trial % 3 else None)
        fast, slow = manifest_table([path], origin), rows_to_table(manifest_rows(path, origin))
        assert sorted(fast.column_names) == sorted(slow.column_names)
        assert fast.select(slow.column_names).to_pylist() == slow.to_pylist()


@pytest.mark.parametrize("odd", [[], [""], [chatml("x.wav", "x")], [{"audio_filepath": "y", "snr": 3}]])
def test_ranges_of_a_manifest_share_its_lines_wherever_they_are_cut(folder, odd):
    lines = [{**ORDINARY, "audio_filepath": f"{i}.wav", "text": "今天" * i} for i in range(3)]
    path, origin = write(folder / "m.json", lines[:2] + odd + lines[2:]), Origin("m", domain="call")
    whole = manifest_table([path], origin)
    size = os.path.getsize(path)
    for cut in range(size + 1):
        parts = [manifest_block(path, *ends, origin, schema=whole.schema) for ends in ((0, cut), (cut, size))]
        assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()


def test_ordinary_lines_are_not_read_one_by_one(folder, monkeypatch):
    lines = [{**ORDINARY, "audio_filepath": f"wavs/{i}.wav", "id": f"u{i}"} for i in range(100)]
    path = write(folder / "m.json", lines)
    monkeypatch.setattr("nest_hf.data.tables.manifest_rows", None)
    assert manifest_table([path], Origin("m")).num_rows == 100


@pytest.mark.parametrize(
    "line", ["{} {}", '{"audio_filepath": "a"} {"audio_filepath": "b"}', '{"audio_filepath": ""}']
)
def test_a_line_that_arrow_would_take_is_still_refused(folder, line):
    path = write(folder / "m.json", [ORDINARY, line])
    with pytest.raises(ValueError, match="m.json:2 "):
        manifest_table([path], Origin("m"))


# ---- writers


def written_rows(folder) -> datasets.Dataset:
    lines = [
        {"audio_filepath": f"wavs/{i}.wav", "id": f"u{i}", "text": TEXTS[i], "speaker": f"s{i}", "domain": "call"}
        for i in range(NUM_FILES)
    ]
    lines[3] |= {"text": None, "speaker": None, "snr": 2.5}
    return load_speech_dataset(write(folder / "in.json", lines))


@pytest.mark.parametrize("writer", [write_nemo_manifest, write_chatml_manifest])
def test_what_is_written_is_read_back(folder, writer):
    rows = written_rows(folder)
    assert writer(rows, folder / "out.jsonl") == NUM_FILES
    back = load_speech_dataset(str(folder / "out.jsonl"))
    kept = [key for key in rows.column_names if key != "source"]
    assert list(back.select_columns(kept)) == list(rows.select_columns(kept))
    again = folder / "again.jsonl"
    writer(load_speech_dataset(str(folder / "out.jsonl"), streaming=True), again)
    assert again.read_text() == (folder / "out.jsonl").read_text()


def test_nemo_lines_hold_what_nemo_asks_for_and_move_with_their_audio(folder):
    lines = [{"audio_filepath": "wavs/3.wav", "offset": 0.5, "duration": 1.0, "text": "a"}]
    write_nemo_manifest(load_speech_dataset(write(folder / "in.json", lines)), folder / "out.json")
    (line,) = map(json.loads, (folder / "out.json").read_text().splitlines())
    expected = {"audio_filepath": "wavs/3.wav", "offset": 0.5, "duration": 1.0, "text": "a", "id": "wavs/3.wav@0.5"}
    assert line == expected
    unknown = load_speech_dataset(str(folder / "in.json"), need_duration=False).remove_columns("duration")
    write_nemo_manifest(unknown, folder / "wavs" / "out.json")
    line = json.loads((folder / "wavs" / "out.json").read_text())
    assert line["audio_filepath"] == str(folder / "wavs" / "3.wav")  # NeMo would not look beside the manifest
    assert line["duration"] == 1.5  # from the offset to the end


def test_chatml_lines_are_funasrs_and_state_measured_lengths(folder):
    rows = written_rows(folder)
    write_chatml_manifest(rows, folder / "out.jsonl", tokenize=str.split)
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert lines[1]["messages"] == chatml(str(folder / "wavs" / "1.wav"), "你好 吗")["messages"]
    assert [line["text_length"] for line in lines] == [1, 2, 0, 0]
    assert [line["speech_length"] for line in lines] == [48, 98, 148, 198]  # windows of 25 ms, one every 10 ms
    assert [turn["role"] for turn in lines[3]["messages"]] == ["system", "user"]
    write_chatml_manifest(rows, folder / "other.jsonl", prompt="Transcribe: ")
    assert "Transcribe: <|startofspeech|>!" in (folder / "other.jsonl").read_text()
    assert json.loads((folder / "other.jsonl").read_text().splitlines()[1])["text_length"] == 4
    assert [num_fbank_frames(s) for s in (0.0, 0.02, 0.025, 0.035, 1.0)] == [0, 0, 1, 2, 98]


def test_what_a_manifest_cannot_say_is_refused(folder):
    piece = [{"audio_filepath": "wavs/3.wav", "duration": 1.0, "id": "cut"}]
    for line in (piece, [{**piece[0], "offset": 0.5}]):
        rows = load_speech_dataset(write(folder / "in.json", line))
        with pytest.raises(ValueError, match="row 'cut' is a piece of .*3.wav"):
            write_chatml_manifest(rows, folder / "out.jsonl")
    inside = [{"id": "b", "audio": {"bytes": b"RIFF", "path": "b.wav"}, "duration": 1.0}]
    for writer in (write_nemo_manifest, write_chatml_manifest):
        with pytest.raises(ValueError, match="audio of row 'b' is not in a file"):
            writer(inside, folder / "out.jsonl")
    assert sorted(path.name for path in folder.iterdir()) == ["in.json", "wavs"]  # nothing half-written


def test_a_manifest_is_never_replaced_silently_nor_before_it_is_whole(folder):
    rows = written_rows(folder)
    out = folder / "out.jsonl"
    out.write_text("precious")
    for writer in (write_nemo_manifest, write_chatml_manifest):
        with pytest.raises(FileExistsError, match="out.jsonl` exists; .*overwrite=True"):
            writer(rows, out)
    with pytest.raises(OSError, match="No space left"):
        with whole_file(out, overwrite=True) as file:
            file.write("half")
            raise OSError(28, "No space left on device")
    assert out.read_text() == "precious"
    with pytest.raises(FileExistsError):  # another process was faster
        with whole_file(folder / "new.jsonl"):
            (folder / "new.jsonl").write_text("theirs")
    assert (folder / "new.jsonl").read_text() == "theirs"
    write_nemo_manifest(rows, out, overwrite=True)
    assert out.read_text().count("\n") == NUM_FILES
    assert not list(folder.glob("*.incomplete"))


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, going_on, other = (
        tmp_path / f"{name}.{pid}.incomplete"
        for name, pid in (("a.jsonl", ended.pid), ("a.jsonl", os.getppid()), ("b.jsonl", ended.pid))
    )
    for file in (left, going_on, other):
        file.touch()
    with whole_file(tmp_path / "a.jsonl"):
        assert not left.exists() and going_on.exists() and other.exists()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.jsonl", going_on, other])
