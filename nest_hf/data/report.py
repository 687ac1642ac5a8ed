"""What was read and what was left out, in the words of a log."""

from collections.abc import Sequence
from dataclasses import dataclass, field

NUM_EXAMPLES = 5


@dataclass
class LoadReport:
    """
    What was read and what was left out.

    Attributes:
        name (`str`): what the data is for, such as `"train"`.
        sources (`list[str]`): as given.
        rows (`int`, *optional*): rows kept; None where they are streamed.
        hours (`float`, *optional*): hours kept, of the rows whose duration is known; None where they are streamed.
        dropped (`dict[str, int]`): rows left out, by reason.
        examples (`dict[str, list[str]]`): up to five of their ids, by reason.

    Example:

    ```python
    >>> from nest_hf.data import LoadReport

    >>> report = LoadReport("train", ["calls.json"], rows=120, hours=0.5)
    >>> report.drop("longer than 30 s", 2, ["a", "b"])
    >>> print(report)
    train: 120 rows, 0.50 h from calls.json
    train: dropped 2 rows, longer than 30 s: a, b

    ```
    """

    name: str
    sources: list[str]
    rows: int | None = None
    hours: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, count: int, ids: Sequence[str]) -> None:
        """Counts rows left out; the first five of their `ids` are kept."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count
            known = self.examples.setdefault(reason, [])
            known.extend(ids[: NUM_EXAMPLES - len(known)])

    def lines(self) -> list[str]:
        """One line for what was kept, one per reason for what was dropped."""
        size = "streamed, counted as it is read" if self.rows is None else f"{self.rows:,} rows, {self.hours:.2f} h"
        kept = f"{self.name}: {size} from {', '.join(self.sources)}"
        return [kept] + [
            f"{self.name}: dropped {count:,} rows, {reason}: {', '.join(self.examples[reason])}"
            + (", ..." if count > len(self.examples[reason]) else "")
            for reason, count in self.dropped.items()
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())
