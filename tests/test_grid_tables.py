"""Tables of experiments: what is pooled, what is compared, and what is drawn."""

import json

import numpy as np
import pytest

from nest_hf.grid_tables import cells_of, count_errors, draw, markdown_table, pooled


def result(start: str, seed: int, errors: list[int], tokens: list[int] | None = None, **axes) -> dict:
    tokens = [10] * len(errors) if tokens is None else tokens
    counts = {"errors": dict(enumerate(errors)), "tokens": dict(enumerate(tokens))}
    return {"start": start, "seed": str(seed), **axes, **counts}


def test_a_rate_is_that_of_all_tokens_and_no_mean_of_rates():
    (cell,) = cells_of([result("nest", 0, [1, 0], [1, 99]), result("nest", 1, [0, 9], [1, 99])], rows=["start"])
    assert cell["rate"] == pytest.approx(10 / 200) and cell["runs"] == pytest.approx([0.01, 0.09])


def test_an_utterance_that_several_runs_heard_is_drawn_as_one():
    errors = np.random.default_rng(0).integers(0, 5, 60).tolist()
    once = cells_of([result("nest", 0, errors)], rows=["start"])[0]
    thrice = cells_of([result("nest", seed, errors) for seed in range(3)], rows=["start"])[0]
    assert thrice["interval"] == pytest.approx(once["interval"])
    assert pooled([result("nest", seed, [1, 2]) for seed in range(3)])[0].tolist() == [3, 6]


def test_rows_are_compared_with_the_first_where_they_heard_the_same():
    same = [result("scratch", 0, [5, 5, 5, 5]), result("nest", 0, [2, 2, 2, 2])]
    first, second = cells_of(same, rows=["start"])
    assert "against_first_row" not in first
    assert second["against_first_row"]["difference"] == pytest.approx(-0.3)
    assert second["against_first_row"]["interval"] == pytest.approx((-0.3, -0.3))
    other = cells_of([same[0], result("nest", 0, [2, 2], [10, 10])], rows=["start"])
    assert "against_first_row" not in other[1]


def test_a_table_has_a_line_per_row_and_a_gap_where_nothing_was_run():
    results = [
        result("scratch", 0, [5], share="1"),
        result("nest", 0, [2], share="1"),
        result("scratch", 0, [1], share="10"),
    ]
    cells = cells_of(results, rows=["start"], columns=["share"])
    lines = markdown_table(cells, corner="start", rate="WER").splitlines()
    assert lines[0] == "| start | 1 | 10 |"
    assert lines[2] == "| scratch | 50.00 (50.00 to 50.00) | 10.00 (10.00 to 10.00) |"
    assert lines[3] == "| nest | 20.00 (20.00 to 20.00); -30.00 (-30.00 to -30.00) | - |"


def test_errors_are_counted_by_utterance_and_need_references(tmp_path):
    rows = [{"id": "a", "text": "123", "reference": "1234"}, {"id": "b", "text": "", "reference": "9"}]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert count_errors(path, level="raw") == {"errors": {"a": 1, "b": 1}, "tokens": {"a": 4, "b": 1}}
    path.write_text(json.dumps({"id": "a", "text": "123"}) + "\n")
    with pytest.raises(ValueError, match="'a' has no reference"):
        count_errors(path)


def test_curves_of_runs_that_were_validated_differently_share_their_updates(tmp_path):
    pytest.importorskip("matplotlib")
    cells = cells_of([result("scratch", 0, [5, 1])], rows=["start"])
    curves = {"scratch": [{100: 0.9, 200: 0.5}, {200: 0.4, 300: 0.3}]}
    assert draw(cells, curves, tmp_path / "a.png", title="digits", rate="WER")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
