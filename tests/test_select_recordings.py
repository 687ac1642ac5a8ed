"""training/select_recordings.py: balanced shares, one inside the other, and the rows that options name."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest
from real_digits import FIXTURE

from nest_hf.data import decode_audio, load_speech_dataset

SCRIPT = Path(__file__).parents[1] / "training" / "select_recordings.py"
TRAIN = str(FIXTURE / "train.parquet")
WORDS = ["大小", "小", "大", "小多", "多", "大"]


@pytest.fixture
def select(monkeypatch, tmp_path):
    def select(*options, source=TRAIN):
        path = tmp_path / "chosen" / "rows.parquet"
        monkeypatch.setattr("sys.argv", [str(SCRIPT), source, str(path), *map(str, options)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return load_speech_dataset(str(path))

    return select


def test_a_share_has_every_value_equally_often(select):
    rows = select("--share", 0.5, "--balance", "text", "speaker")
    assert set(Counter(zip(rows["text"][:], rows["speaker"][:], strict=True)).values()) == {1}
    assert len(rows) == 15
    few = select("--share", 0.2, "--balance", "text", "speaker")
    assert set(Counter(few["text"][:]).values()) == {2} and max(Counter(few["speaker"][:]).values()) == 2


def test_a_smaller_share_lies_inside_a_larger_one_of_the_same_seed(select):
    options = ("--balance", "text", "speaker", "--seed")
    small, large, other = (
        set(select("--share", share, *options, seed)["id"][:]) for share, seed in ((0.2, 3), (0.5, 3), (0.2, 4))
    )
    assert small < large and small != other


def test_ids_speakers_and_known_characters_select(select, tmp_path):
    assert set(select("--ids", "*_5")["id"][:]) == {name for name in select()["id"][:] if name.endswith("_5")}
    seen, unseen = select("--without_speakers", "theo"), select("--speakers", "theo")
    assert set(unseen["speaker"][:]) == {"theo"} and "theo" not in seen["speaker"][:]
    assert len(seen) + len(unseen) == len(select())
    select("--ids", "[01]_*")
    (tmp_path / "chosen" / "rows.parquet").rename(tmp_path / "zero_and_one.parquet")
    assert set(select("--known_from", tmp_path / "zero_and_one.parquet")["text"][:]) == {"0", "1"}


def test_the_recordings_stay_as_they_are(select):
    before = {row["id"]: row for row in load_speech_dataset(TRAIN)}
    for row in select("--share", 0.2):
        assert row["audio"]["bytes"] == before[row["id"]]["audio"]["bytes"]
        assert len(decode_audio(row["audio"], sampling_rate=16000).samples)


def test_the_most_common_characters_are_those_of_the_source(select, tmp_path):
    lines = [{"audio_filepath": f"{TRAIN}-{i}.wav", "duration": 1.0, "text": text} for i, text in enumerate(WORDS)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = select("--most_common", 2, source=str(tmp_path / "words.jsonl"))
    assert rows["text"][:] == ["大小", "小", "大", "大"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "0"], "`share` is 0.0"),
        (["--balance", "text"], "`balance` has no effect without `share`"),
        (["--speakers", "nobody"], "`speakers` names nobody; the speakers are"),
        (["--ids", "x*"], "no recording is left"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(select, options, message):
    with pytest.raises(SystemExit) as exit_:
        select(*options)
    assert message in exit_.value.code and "\n" not in exit_.value.code
