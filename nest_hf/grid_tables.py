"""Runs of one experiment side by side: errors pooled over runs, their rates with intervals, a table, a figure."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .bootstrap import bootstrap_interval, paired_bootstrap
from .error_rates import character_errors
from .hypotheses import read_hypotheses
from .text_table import percent, percent_range


def count_errors(path: str | Path, *, level: str = "zh") -> dict[str, dict[str, int]]:
    """
    Character errors of a file of hypotheses.

    Args:
        path (`str`): What `evaluation/transcribe.py` writes, with references.
        level (`str`, *optional*, defaults to `"zh"`): [`~text.normalize`] of both texts.

    Returns:
        `dict`: `errors` and `tokens`, each a mapping from the id of an utterance to its count.
    """
    rows = read_hypotheses(path)
    if untold := [row["id"] for row in rows if row.get("reference") is None]:
        raise ValueError(f"{path}: {untold[0]!r} has no reference text; test on labelled recordings.")
    texts, references = ({row["id"]: row[key] for row in rows} for key in ("text", "reference"))
    found = character_errors(texts, references, level=level)
    counts = {"errors": found.errors, "tokens": found.num_tokens}
    return {name: dict(zip(found.ids, values.tolist(), strict=True)) for name, values in counts.items()}


def pooled(results: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Errors and tokens of each utterance, summed over results of [`count_errors`]; each `(utterances,)`."""
    errors, tokens = Counter(), Counter()
    for result in results:
        errors.update(result["errors"])
        tokens.update(result["tokens"])
    return np.array([errors[key] for key in tokens]), np.array(list(tokens.values()))


def cells_of(results: Sequence[dict], *, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> list[dict]:
    """
    The cells of a table. Results that differ in other axes alone, such as the seed, are one cell.

    Args:
        results (`Sequence[dict]`): Of [`count_errors`], with the value of each axis beside `errors` and `tokens`.
        rows, columns (`Sequence[str]`): Axes.

    Returns:
        `list[dict]`: `row` and `column` (values), `rate` over all tokens, `interval` (95 %, drawing utterances anew),
        `runs` (the rate of each), `num_tokens`; and `against_first_row`, a [`~bootstrap.Comparison`], where the first
        row of that column heard the same utterances as often.
    """
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        groups.setdefault(tuple(result[axis] for axis in (*rows, *columns)), []).append(result)
    first_row = next(iter(groups))[: len(rows)]
    cells = []
    for key, group in groups.items():
        row, column = key[: len(rows)], key[len(rows) :]
        errors, tokens = pooled(group)
        cell = {
            "row": row,
            "column": column,
            "rate": float(errors.sum() / tokens.sum()),
            "interval": bootstrap_interval(errors, tokens),
            "runs": [sum(result["errors"].values()) / sum(result["tokens"].values()) for result in group],
            "num_tokens": int(tokens.sum()),
        }
        first = groups.get((*first_row, *column), [])
        if row != first_row and [one["tokens"] for one in first] == [one["tokens"] for one in group]:
            cell["against_first_row"] = paired_bootstrap(errors, pooled(first)[0], tokens)._asdict()
        cells.append(cell)
    return cells


def named(values: Sequence[str]) -> str:
    return ", ".join(values)


def markdown_table(cells: list[dict], *, corner: str, rate: str) -> str:
    """
    Rate, interval, lowest and highest run, and difference to the first row with its interval, all in percent.

    Args:
        cells (`list[dict]`): Of [`cells_of`].
        corner (`str`): Head of the first column.
        rate (`str`): Head of the column where there is but one.
    """
    rows, columns = (list(dict.fromkeys(cell[part] for cell in cells)) for part in ("row", "column"))
    found = {(cell["row"], cell["column"]): cell for cell in cells}
    lines = [[corner, *(named(column) or rate for column in columns)], ["---"] * (len(columns) + 1)]
    lines += [[named(row), *(_cell(found.get((row, column))) for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: dict | None) -> str:
    if cell is None:
        return "-"
    text = f"{percent(cell['rate'])} ({percent_range(cell['interval'])})"
    if len(cell["runs"]) > 1:
        text += f"; runs {percent_range((min(cell['runs']), max(cell['runs'])))}"
    if other := cell.get("against_first_row"):
        sign = "+" if other["difference"] > 0 else ""
        text += f"; {sign}{percent(other['difference'])} ({percent_range(other['interval'])})"
    return text


def draw(
    cells: list[dict], curves: dict[str, list[dict[int, float]]], path: str | Path, *, title: str, rate: str
) -> bool:
    """
    Draws a table as bars and, beside it, curves of training.

    Args:
        cells (`list[dict]`): Of [`cells_of`].
        curves (`dict`): Name -> update -> rate on the validation, of each run of that name.
        path (`str`): PNG to write.
        title, rate (`str`): What it is about.

    Returns:
        `bool`: False where matplotlib (the extra `plots`) is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = (list(dict.fromkeys(cell[part] for cell in cells)) for part in ("row", "column"))
    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        of_column = [cell for cell in cells if cell["column"] == column]
        places = [rows.index(cell["row"]) + (number - (len(columns) - 1) / 2) * width for cell in of_column]
        rates = np.array([cell["rate"] for cell in of_column])
        spread = np.abs(np.array([cell["interval"] for cell in of_column]).T - rates)
        bars.bar(places, 100 * rates, width, yerr=100 * spread, capsize=2, label=named(column) or None)
    turn = {"rotation": 40, "ha": "right"} if len(rows) > 4 else {}
    bars.set_xticks(range(len(rows)), [named(row) for row in rows], **turn)
    bars.set(ylabel=f"{rate}, %", title=f"{title}, 95 % intervals")
    for name, runs in curves.items():
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        values = 100 * np.array([[run[step] for step in steps] for run in runs])
        (line,) = lines.plot(steps, values.mean(0), marker=".", label=name or None)
        if len(runs) > 1:
            lines.plot(steps, values.T, color=line.get_color(), linewidth=0.7, alpha=0.4)
    lines.set(xlabel="update", ylabel=f"{rate}, %", title="validation; pale: single runs", ylim=(0, 105))
    for panel in (bars, lines):
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True


__all__ = ["cells_of", "count_errors", "draw", "markdown_table", "pooled"]
