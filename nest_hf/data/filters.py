"""Rows whose transcript cannot be used, left out and counted."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .report import NUM_EXAMPLES, LoadReport

ANNOTATION_ERROR = "<ANNOTATION_ERROR>"
WITHOUT_TEXT = "without text"


def filter_annotation_errors(
    dataset: datasets.Dataset | datasets.IterableDataset,
    *,
    marks: Sequence[str] = (ANNOTATION_ERROR,),
    need_text: bool = True,
    name: str = "train",
) -> tuple[datasets.Dataset | datasets.IterableDataset, LoadReport]:
    """
    Leaves out rows whose text holds a mark of a failed annotation, or is empty where text is needed.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): With the columns `id`, `text`, `duration`.
        marks (`Sequence[str]`, *optional*): Strings that mark a failed annotation wherever they stand in a text.
        need_text (`bool`, *optional*, defaults to `True`): Whether rows without text, or with blanks only, go too.
        name (`str`, *optional*, defaults to `"train"`): What to call the data in messages.

    Returns:
        The rows that are left, and a [`LoadReport`] of the others by reason. Of a stream the report grows while it is
        read, by every pass, and in the process that reads it: worker processes of a loader count for themselves.

    Raises:
        ValueError: if no row is left, or `marks` holds an empty string.
    """
    marks = [marks] if isinstance(marks, str) else list(marks)
    if not all(marks):
        raise ValueError("`marks` holds an empty string, which every text contains; leave it out.")
    report = LoadReport(name, ["filter_annotation_errors"])
    if isinstance(dataset, datasets.IterableDataset):
        keep = _Keep(marks, need_text, report)
        return dataset.filter(keep, input_columns=["id", "text"], batched=True), report

    columns = dataset.select_columns(["id", "text"]).with_format("arrow")[:]
    keep = _count(columns["id"], columns["text"], marks, need_text, report)
    if not keep.any():
        counts = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise ValueError(f"{name}: none of {len(dataset)} rows is left ({counts}); mend the texts or the marks.")
    kept = dataset if keep.all() else dataset.select(np.flatnonzero(keep))
    report.rows = len(kept)
    report.hours = (
        float(np.nansum(np.array(kept["duration"][:], float))) / 3600 if "duration" in kept.features else 0.0
    )
    return kept, report


class _Keep:
    """Which rows of a batch of a stream stay; the others are counted in its report."""

    def __init__(self, marks: list[str], need_text: bool, report: LoadReport):
        self.marks, self.need_text, self.report = marks, need_text, report

    def __call__(self, ids: list[str], texts: list[str | None]) -> list[bool]:
        arrays = pa.array(ids, pa.string()), pa.array(texts, pa.string())
        return _count(*arrays, self.marks, self.need_text, self.report).tolist()


def _count(ids, texts, marks: list[str], need_text: bool, report: LoadReport) -> np.ndarray:
    """Whether each row stays; a row goes, and counts, for its first reason."""
    keep = np.ones(len(texts), bool)
    reasons = [(f"marked {mark}", pc.match_substring(texts, mark)) for mark in marks]
    if need_text:
        reasons.append((WITHOUT_TEXT, pc.equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), "")))
    for reason, found in reasons:
        drop = np.flatnonzero(pc.fill_null(found, False).to_numpy(zero_copy_only=False) & keep)
        keep[drop] = False
        report.drop(reason, len(drop), ids.take(pa.array(drop[:NUM_EXAMPLES])).to_pylist())
    return keep
