"""Hypothesis files: what a kill leaves is mended, what does not belong together is refused, bad input is named."""

import json

import pytest

from nest_hf.hypotheses import HypothesisFile, read_hypotheses, read_meta

SETTINGS = {"model": "a", "decoding": {"num_beams": 1}}


def rows(*ids: str) -> list[dict]:
    return [{"id": key, "text": f"text of {key}"} for key in ids]


def opened(path, settings=SETTINGS, **options) -> HypothesisFile:
    file = HypothesisFile(path, settings, **options)
    file.open()
    return file


def test_a_half_written_line_is_dropped_and_its_recording_done_again(tmp_path):
    path = tmp_path / "hyp.jsonl"
    killed = opened(path)
    killed.add(rows("a", "b"))
    killed.close()
    part = tmp_path / "hyp.jsonl.part0"
    part.write_bytes(part.read_bytes() + '{"id": "c", "text": "半'.encode()[:-1])
    again = opened(path)
    assert again.done == {"a", "b"}
    again.add(rows("c"))
    again.close()
    again.finish(["c", "a", "b"])
    assert [row["id"] for row in read_hypotheses(path)] == ["c", "a", "b"]
    assert not part.exists()


def test_parts_of_all_processes_become_one_file_without_what_was_skipped(tmp_path):
    path = tmp_path / "new" / "hyp.jsonl"
    first, second = opened(path), opened(path, rank=1)
    second.add(rows("b"))
    first.add([*rows("c"), {"id": "x", "skipped": "unreadable"}])
    first.close(), second.close()
    assert {row["id"] for row in first.finish(["a", "b", "c", "x"])} == {"b", "c", "x"}
    assert [row["id"] for row in read_hypotheses(path)] == ["b", "c"]


def test_a_kill_between_joining_and_deleting_repeats_no_row(tmp_path):
    path = tmp_path / "hyp.jsonl"
    file = opened(path)
    file.add(rows("a", "b"))
    file.close()
    part = (tmp_path / "hyp.jsonl.part0").read_bytes()
    file.finish(["a", "b"])
    (tmp_path / "hyp.jsonl.part0").write_bytes(part)
    again = opened(path)
    again.close()
    again.finish(["a", "b"])
    assert [row["id"] for row in read_hypotheses(path)] == ["a", "b"]


def test_other_settings_are_refused_by_name_until_overwritten(tmp_path):
    path = tmp_path / "hyp.jsonl"
    file = opened(path)
    file.add(rows("a"))
    file.close()
    other = {"model": "a", "decoding": {"num_beams": 4}}
    with pytest.raises(ValueError, match="`decoding`.*--overwrite true"):
        HypothesisFile(path, other)
    assert opened(path, other, overwrite=True).done == set()
    assert read_meta(path)["settings"] == other


def test_a_file_of_unknown_origin_is_never_overwritten_by_itself(tmp_path):
    path = tmp_path / "hyp.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="has no .meta.json"):
        HypothesisFile(path, SETTINGS)
    assert path.read_text() == '{"id": "a", "text": "b"}\n'


def test_nemo_and_kaldi_lines_are_read(tmp_path):
    nemo, kaldi = tmp_path / "nemo.jsonl", tmp_path / "text.txt"
    nemo.write_text(json.dumps({"id": "a", "text": "said", "pred_text": "heard", "audio_filepath": "a.wav"}))
    kaldi.write_text("a 你 好\nb\n", encoding="utf-8")
    assert read_hypotheses(nemo) == [{"id": "a", "text": "heard", "reference": "said", "audio_filepath": "a.wav"}]
    assert read_hypotheses(kaldi) == [{"id": "a", "text": "你 好"}, {"id": "b", "text": ""}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"id": "a", "text": "x"}\n{"id": "b"}', "line 2 lacks `id` or `text`"),
        (b'{"id": "a", "text": 3}', "line 1: `text` is 3"),
        (b'{"id": "a", "text": "x"', "line 1 is no JSON"),
        (b'["a"]', "line 1 lacks"),
        (b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "id 'a' is in lines 1 and 2"),
        (
            b'{"id": "a", "text": "x"}\n' + '{"id": "b", "text": "你好"}'.encode("gbk"),
            "line 2, byte 22 .0xc4. is not UTF-8, it may be GBK; convert the file: iconv -f GB18030",
        ),
    ],
)
def test_bad_input_gets_one_message_with_its_place(tmp_path, content, message):
    path = tmp_path / "hyp.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_hypotheses(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.jsonl does not exist"):
        read_hypotheses(tmp_path / "nothing.jsonl")
