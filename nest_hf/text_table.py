"""Tables for the terminal."""

import unicodedata
from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """
    Aligns columns: the first to the left, the others to the right; East Asian characters take two cells.

    >>> print(text_table(["system", "CER %"], [["ours", "4.5"], ["基线", "12.25"]]))
    system  CER %
    ours      4.5
    基线    12.25
    """
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        spaces = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [row[0] + spaces[0], *(space + cell for cell, space in zip(row[1:], spaces[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(value: float | None, digits: int = 2) -> str:
    """A share as per cent; `-` where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def percent_range(interval: Sequence[float] | None, digits: int = 2) -> str:
    """An interval of shares as per cent."""
    return "-" if interval is None else " to ".join(percent(value, digits) for value in interval)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


__all__ = ["percent", "percent_range", "text_table"]
