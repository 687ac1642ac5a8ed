"""Annotation errors: what is marked or empty goes, is counted by reason and named; the rest is untouched."""

import datasets
import pytest

from nest_hf.data.filters import filter_annotation_errors

MARK = "<ANNOTATION_ERROR>"
TEXTS = ["一", MARK, None, f"二 {MARK} 三", "", " \t　", "四", "[NOISE]"] + [MARK] * 6
ROWS = [{"id": f"u{i}", "text": text, "duration": 1800.0} for i, text in enumerate(TEXTS)]


def both_forms(rows=ROWS):
    dataset = datasets.Dataset.from_list(rows)
    return dataset, dataset.to_iterable_dataset()


def test_marked_and_empty_rows_go_and_are_counted_by_reason():
    for dataset in both_forms():
        kept, report = filter_annotation_errors(dataset)
        assert [row["id"] for row in kept] == ["u0", "u6", "u7"]
        assert report.dropped == {"marked <ANNOTATION_ERROR>": 8, "without text": 3}
        assert report.examples["without text"] == ["u2", "u4", "u5"]
        assert report.examples["marked <ANNOTATION_ERROR>"] == ["u1", "u3", "u8", "u9", "u10"]
        assert "train: dropped 3 rows, without text: u2, u4, u5" in str(report)
    assert (report.rows, filter_annotation_errors(datasets.Dataset.from_list(ROWS))[1].hours) == (None, 1.5)


def test_marks_are_a_list_and_text_may_not_be_needed():
    for dataset in both_forms():
        kept, report = filter_annotation_errors(dataset, marks=["[NOISE]", "二"], need_text=False)
        assert report.dropped in ({}, {"marked [NOISE]": 1, "marked 二": 1})  # of a stream nothing is read yet
        assert len(list(kept)) == len(ROWS) - 2
        assert report.dropped == {"marked [NOISE]": 1, "marked 二": 1}
    with pytest.raises(ValueError, match="empty string"):
        filter_annotation_errors(dataset, marks=[""])


def test_a_row_counts_once_for_its_first_reason():
    rows = [{"id": key, "text": text, "duration": 1.0} for key, text in (("a", "XY"), ("b", "Y"), ("c", "z"))]
    _, report = filter_annotation_errors(datasets.Dataset.from_list(rows), marks=["X", "Y"])
    assert report.dropped == {"marked X": 1, "marked Y": 1} and report.examples["marked Y"] == ["b"]


def test_rows_selected_before_stay_selected():
    dataset = datasets.Dataset.from_list(ROWS).select([7, 1, 0])
    kept, report = filter_annotation_errors(dataset)
    assert kept["id"][:] == ["u7", "u0"] and report.examples == {"marked <ANNOTATION_ERROR>": ["u1"]}


def test_a_data_set_of_which_nothing_is_left_is_an_error():
    with pytest.raises(ValueError, match="none of 2 rows is left .1 marked <ANNOTATION_ERROR>, 1 without text"):
        filter_annotation_errors(datasets.Dataset.from_list(ROWS[1:3]))
