"""Sources: every form of the same recordings gives the same rows, and bad input is named where it is."""

import json
import os
import pickle

import datasets
import numpy as np
import pytest
import soundfile
from datasets.distributed import split_dataset_by_node

from nest_hf.data import AudioError, decode_audio, load_speech_dataset, load_with_report

COLUMNS = ["id", "audio", "offset", "duration", "text", "speaker", "domain", "source"]
NUM_FILES = 5


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def folder(tmp_path):
    """`wavs/0.wav` lasts 0.1 s, `wavs/1.wav` 0.2 s, and so on."""
    (tmp_path / "data" / "wavs").mkdir(parents=True)
    for index in range(NUM_FILES):
        samples = np.full(1600 * (index + 1), 0.1 * (index + 1), np.float32)
        soundfile.write(tmp_path / "data" / "wavs" / f"{index}.wav", samples, 16000)
    return tmp_path / "data"


def record(index: int, **more) -> dict:
    return {"audio_filepath": f"wavs/{index}.wav", "duration": 0.1 * (index + 1), "text": f"text {index}", **more}


def manifest(folder, records, name: str = "train.json") -> str:
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def parquet(folder, name: str = "train.parquet", **without) -> str:
    rows = [
        {
            "id": f"utt{index}",
            "audio": {"bytes": (folder / "wavs" / f"{index}.wav").read_bytes(), "path": f"{index}.wav"},
            "text": f"text {index}",
            "speaker": f"s{index % 2}",
            "duration": 0.1 * (index + 1),
        }
        for index in range(NUM_FILES)
    ]
    rows = [{key: value for key, value in row.items() if key not in without} for row in rows]
    # `Audio` in the features, as on the Hub: plain access would ask for torchcodec.
    saved = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    saved = saved.cast_column("audio", datasets.Audio(sampling_rate=16000))
    saved.to_parquet(str(folder / name))
    return str(folder / name)


def levels(dataset) -> list[float]:
    rows = [decode_audio(row["audio"], offset_s=row["offset"], duration_s=row["duration"]) for row in dataset]
    return [round(float(row.samples.mean()), 2) for row in rows]


def test_a_manifest_resolves_relative_paths_from_its_own_folder(folder, monkeypatch):
    monkeypatch.chdir(os.sep)
    dataset = load_speech_dataset(manifest(folder, [record(index) for index in range(NUM_FILES)]))
    assert dataset.column_names == COLUMNS
    assert dataset["id"][:2] == ["wavs/0.wav", "wavs/1.wav"]
    assert dataset[3]["text"] == "text 3" and dataset[3]["speaker"] is None and dataset[3]["offset"] == 0.0
    assert levels(dataset) == [0.1, 0.2, 0.3, 0.4, 0.5]
    absolute = [{"audio_filename": str(folder / "wavs" / "1.wav"), "duration": 0.2}]
    assert load_speech_dataset(manifest(folder, absolute))[0]["id"] == dataset["id"][1]


def test_offsets_make_ids_and_the_rest_is_kept_where_its_type_is_consistent(folder):
    lines = [
        record(4, offset=0.0, domain="bank", snr=1, odd="a", nested={"a": 1}),
        record(4, offset=0.25, duration=0.1, domain="bank", snr=2.5, odd=3, nested={"a": 2}),
        record(1, id="mine", speaker=7),
    ]
    dataset = load_speech_dataset(manifest(folder, lines))
    assert dataset["id"][:] == ["wavs/4.wav", "wavs/4.wav@0.25", "mine"]
    assert dataset.column_names == [*COLUMNS, "snr"]
    assert dataset["snr"][:] == [1.0, 2.5, None] and dataset["speaker"][2] == "7"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'audio_filepath': 'x.wav'}", "is not JSON"),
        ("[1, 2]", "is no JSON object"),
        ({"duration": 1.0}, "has no `audio_filepath`"),
        ({"audio_filepath": "wavs/0.wav", "duration": "1.0"}, "`duration` is '1.0'"),
        ({"audio_filepath": "wavs/0.wav", "duration": -1.0}, "`duration` is -1.0"),
        ('{"audio_filepath": "wavs/0.wav", "duration": NaN}', "`duration` is nan"),
        ({"audio_filepath": "wavs/0.wav", "offset": -0.5, "duration": 1.0}, "`offset` is -0.5"),
        ({"audio_filepath": "wavs/0.wav", "text": 5, "duration": 1.0}, "`text` is 5"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(folder, line, message, streaming):
    path = manifest(folder, [record(0), "", line if isinstance(line, str) else {**line, "long": "x" * 500}])
    with pytest.raises(ValueError) as caught:
        list(load_speech_dataset(path, streaming=streaming))
    assert f"{path}:3 " in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value)) < len(path) + 300 and "\n" not in str(caught.value)


def test_what_is_missing_or_empty_is_named(folder, tmp_path):
    for absent in ("absent.json", "absent/*.parquet", "./absent/folder", "absent.parquet"):
        with pytest.raises(FileNotFoundError, match="absent"):
            load_speech_dataset(str(tmp_path / absent) if "./" not in absent else absent)
    (tmp_path / "void").mkdir()
    for empty in (manifest(folder, [""], "empty.json"), str(tmp_path / "void")):
        for streaming in (False, True):
            with pytest.raises(ValueError, match="is empty"):
                load_speech_dataset(empty, streaming=streaming)
    with pytest.raises(ValueError, match="names no source"):
        load_speech_dataset(" , ")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt` is no manifest"):
        load_speech_dataset(str(tmp_path / "notes.txt"))


def test_a_duplicate_id_names_both_places(folder):
    first = manifest(folder, [record(0, id="a"), record(1, id="b")], "a.json")
    second = manifest(folder, [record(2, id="c"), record(3, id="b")], "b.json")
    with pytest.raises(ValueError) as caught:
        load_speech_dataset([first, second])
    for part in ("'b'", f"`{first}` row 2", f"`{second}` row 2", "1.wav", "3.wav"):
        assert part in str(caught.value)


def test_ids_that_two_domains_share_are_led_by_them(folder):
    first = manifest(folder, [record(0, id="a"), record(1, id="b")], "a.json")
    second = manifest(folder, [record(2, id="c"), record(3, id="b")], "b.json")
    rows = load_speech_dataset([f"wide={first}", f"calls={second}"])
    assert (
        rows["id"][:] == ["wide/a", "wide/b", "calls/c", "calls/b"]
        and rows["domain"][:] == ["wide"] * 2 + ["calls"] * 2
    )
    assert rows["audio"][3]["path"].endswith("3.wav")
    assert load_speech_dataset([f"wide={first}", f"calls={manifest(folder, [record(2, id='c')], 'c.json')}"])["id"][
        :
    ] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="'wide/b' is in"):  # one domain is no excuse
        load_speech_dataset([f"wide={first}", f"wide={second}", f"calls={first}"])


def test_sources_come_as_list_or_comma_separated_and_made_ids_do_not_clash(folder):
    one, two = manifest(folder, [record(0), record(1)], "one.json"), manifest(folder, [record(1)], "two.json")
    from_list, from_string = load_speech_dataset([one, two]), load_speech_dataset(f"{one}, {two}")
    assert from_list["id"][:] == from_string["id"][:] == ["one/wavs/0.wav", "one/wavs/1.wav", "two/wavs/1.wav"]
    assert from_list["source"][:] == [one, one, two]
    mixed = load_speech_dataset([one, parquet(folder)])
    assert len(mixed) == 2 + NUM_FILES and levels(mixed)[:4] == [0.1, 0.2, 0.1, 0.2]


def test_missing_durations_are_read_from_the_headers(folder):
    lines = [{"audio_filepath": f"wavs/{index}.wav"} for index in range(NUM_FILES)]
    lines.append({"audio_filepath": "wavs/4.wav", "offset": 0.4})
    path = manifest(folder, lines)
    assert np.allclose(load_speech_dataset(path)["duration"][:], [0.1, 0.2, 0.3, 0.4, 0.5, 0.1])
    assert load_speech_dataset(path, need_duration=False)["duration"][:] == [None] * 6
    assert np.allclose(load_speech_dataset(parquet(folder, duration=True))["duration"][:], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_unreadable_headers_fail_or_are_counted_and_named(folder):
    (folder / "wavs" / "bad.wav").write_bytes(b"no audio " * 50)
    lines = [{"audio_filepath": name} for name in ("wavs/0.wav", "wavs/bad.wav", "wavs/absent.wav")]
    lines.append({"audio_filepath": "wavs/1.wav", "offset": 9.0})
    path = manifest(folder, lines)
    with pytest.raises(AudioError, match="bad.wav"):
        load_speech_dataset(path)
    dataset, report = load_with_report(path, on_bad_audio="skip", name="dev")
    assert dataset["id"][:] == ["wavs/0.wav"] and dataset["duration"][:] == [0.1]
    assert report.dropped == {"unreadable": 1, "missing file": 1, "offset past the end": 1}
    assert report.examples["missing file"] == ["wavs/absent.wav"]
    assert "dev: dropped 1 rows, missing file: wavs/absent.wav" in str(report)
    with pytest.raises(ValueError, match="on_bad_audio"):
        load_speech_dataset(path, on_bad_audio="ignore")


def test_duration_limits_are_counted_by_reason(folder):
    path = manifest(folder, [record(index) for index in range(NUM_FILES)])
    dataset, report = load_with_report(path, min_duration_s=0.25, max_duration_s=0.45)
    assert dataset["id"][:] == ["wavs/2.wav", "wavs/3.wav"]
    assert (report.rows, report.dropped) == (2, {"shorter than 0.25 s": 2, "longer than 0.45 s": 1})
    assert report.hours == pytest.approx(0.7 / 3600)
    assert [row["id"] for row in load_speech_dataset(path, streaming=True, min_duration_s=0.25)] == [
        f"wavs/{index}.wav" for index in (2, 3, 4)
    ]
    with pytest.raises(ValueError, match="none of 5 rows is left .5 shorter than 2.0 s"):
        load_speech_dataset(path, min_duration_s=2.0)


def test_a_folder_is_read_with_its_metadata(folder):
    plain = load_speech_dataset(folder)
    assert plain["id"][:] == [f"wavs/{index}.wav" for index in range(NUM_FILES)]
    assert np.allclose(plain["duration"][:], [0.1, 0.2, 0.3, 0.4, 0.5])
    (folder / "metadata.csv").write_text("file_name,text,speaker,duration\nwavs/3.wav,three,x,\nwavs/1.wav,one,y,.2\n")
    listed = load_speech_dataset(folder)
    assert listed["id"][:2] == ["wavs/3.wav", "wavs/1.wav"] and len(listed) == NUM_FILES
    assert listed["text"][:3] == ["three", "one", None] and listed["speaker"][1] == "y"
    assert levels(listed) == [0.4, 0.2, 0.1, 0.3, 0.5]
    (folder / "metadata.csv").unlink()
    manifest(folder, [{"file_name": "wavs/9.wav"}], "metadata.jsonl")
    with pytest.raises(FileNotFoundError, match="9.wav"):
        load_speech_dataset(folder)


def test_parquet_never_decodes_and_keeps_its_ids(folder):
    path = parquet(folder)
    dataset = load_speech_dataset(path)
    assert isinstance(dataset.features["audio"], dict) and dataset.column_names == COLUMNS
    assert dataset["id"][:] == [f"utt{index}" for index in range(NUM_FILES)] and dataset["speaker"][1] == "s1"
    assert levels(dataset) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(pickle.dumps(dataset)) < 20_000  # the audio stays memory-mapped, also on its way to a worker
    for same in (str(folder / "*.parquet"), str(folder)):
        assert load_speech_dataset(same)["id"][:] == dataset["id"][:]
    assert load_speech_dataset(parquet(folder, "anonymous.parquet", id=True))["id"][1] == "1.wav"


def test_parquet_with_bad_columns_is_refused(folder):
    for row, message in [
        ({"sound": "x", "text": "a"}, "no column `audio`"),
        ({"audio": {"bytes": b"", "path": "x"}, "duration": -2.0}, "`duration` -2.0"),
        ({"audio": {"bytes": b"", "path": "x"}, "duration": "long"}, "`duration` is string"),
    ]:
        datasets.Dataset.from_list([row]).to_parquet(str(folder / "odd.parquet"))
        with pytest.raises(ValueError, match=message):
            load_speech_dataset(str(folder / "odd.parquet"))


def test_a_saved_dataset_is_read_by_split(folder):
    source = datasets.load_dataset("parquet", data_files=parquet(folder), split="train")
    source.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"dev": source}).save_to_disk(str(folder / "both"))
    assert levels(load_speech_dataset(folder / "saved")) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(load_speech_dataset(folder / "both", split="dev")) == NUM_FILES
    with pytest.raises(ValueError, match='no split "train", there are dev'):
        load_speech_dataset(folder / "both")


def test_a_hub_id_may_name_config_and_split(folder, monkeypatch):
    calls, real = [], datasets.load_dataset
    path = parquet(folder)

    def load_dataset(name, config=None, *, split, streaming):
        calls.append((name, config, split))
        return real("parquet", data_files=path, split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("some/corpus", "some/corpus:zh", "some/corpus:zh:test"):
        assert len(load_speech_dataset(name, split="validation")) == NUM_FILES
    assert calls == [("some/corpus", c, s) for c, s in ((None, "validation"), ("zh", "validation"), ("zh", "test"))]


def test_streaming_equals_plain(folder):
    lines = [record(index % NUM_FILES, id=str(index), domain="d" * index) for index in range(40)]
    saved = datasets.load_dataset("parquet", data_files=parquet(folder), split="train")
    saved.save_to_disk(str(folder / "saved"))
    path = manifest(folder, lines)
    for data in (path, parquet(folder), str(folder / "saved"), str(folder / "wavs"), [path, parquet(folder)]):
        plain = load_speech_dataset(data, need_duration=False)
        streamed = load_speech_dataset(data, streaming=True)
        assert isinstance(streamed, datasets.IterableDataset)
        assert list(streamed) == list(plain)


def test_a_streamed_manifest_is_dealt_to_processes_without_loss(folder):
    path = manifest(folder, [record(index % NUM_FILES, id=str(index)) for index in range(50)])
    for world_size in (1, 2, 3, 5):
        stream = load_speech_dataset(path, streaming=True)
        parts = [split_dataset_by_node(stream, rank=rank, world_size=world_size) for rank in range(world_size)]
        ids = [row["id"] for part in parts for row in part]
        assert sorted(ids, key=int) == [str(index) for index in range(50)]


def test_a_streamed_manifest_refuses_a_column_that_changes_its_type(folder):
    lines = [record(index % NUM_FILES, id=str(index), snr=1.0) for index in range(1001)]
    path = manifest(folder, [*lines, record(0, id="last", snr="loud")])
    with pytest.raises(ValueError, match=r"train.json:1002 `snr` is 'loud' where float64"):
        list(load_speech_dataset(path, streaming=True))
