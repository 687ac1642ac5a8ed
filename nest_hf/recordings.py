"""Recordings to be heard: the rows of a data set whose length is known, and what was left out and why."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np

from .data import load_with_report
from .data.audio import AudioError, audio_duration


@dataclass
class Recordings:
    """
    Attributes:
        rows (`datasets.Dataset`): Of [`load_speech_dataset`].
        durations (`np.ndarray` of shape `(rows,)`): Seconds.
        skipped (`dict[str, str]`): The reason by id, of each row that was left out.
    """

    rows: datasets.Dataset
    durations: np.ndarray
    skipped: dict[str, str] = field(default_factory=dict)


def read_recordings(
    data, *, min_duration_s: float = 0.0, max_duration_s: float | None = None, on_bad_audio: str = "fail"
) -> Recordings:
    """
    Args:
        data: As [`load_speech_dataset`] takes it; rows need no text.
        min_duration_s, max_duration_s (`float`, *optional*): Recordings outside are left out.
        on_bad_audio (`str`, *optional*, defaults to `"fail"`):
            What a header that cannot be read does, where the data give no duration: `"fail"` or `"skip"`.

    Raises:
        ValueError: for a recording that cannot be read, if it may not be skipped, and where none is left.
    """
    rows, _ = load_with_report(data, name="data", need_duration=False)
    ids = rows["id"][:]
    durations = np.array([np.nan if value is None else value for value in rows["duration"][:]], dtype=np.float64)
    skipped: dict[str, str] = {}

    def length(index: int) -> float | AudioError:
        row = rows[index]
        try:
            return audio_duration(row["audio"]) - (row["offset"] or 0.0)
        except AudioError as error:
            return error

    unknown = np.flatnonzero(np.isnan(durations)).tolist()
    with ThreadPoolExecutor() as pool:
        for index, found in zip(unknown, pool.map(length, unknown), strict=True):
            if not isinstance(found, AudioError):
                durations[index] = found
            elif on_bad_audio == "fail":
                raise ValueError(f"recording {ids[index]!r}: {found} (--on_bad_audio skip leaves it out)") from found
            else:
                skipped[ids[index]] = f"{found.reason}: {found}"
    highest = np.inf if max_duration_s is None else max_duration_s
    for index in np.flatnonzero(durations < min_duration_s).tolist():
        skipped[ids[index]] = f"{durations[index]:g} s, shorter than {min_duration_s:g} s"
    for index in np.flatnonzero(durations > highest).tolist():
        skipped[ids[index]] = f"{durations[index]:g} s, longer than {highest:g} s"
    keep = [index for index, key in enumerate(ids) if key not in skipped]
    if not keep:
        raise ValueError(f"data: none of {len(rows)} recordings is left; the first: {next(iter(skipped.values()))}")
    return Recordings(rows.select(keep), durations[keep], skipped)


__all__ = ["Recordings", "read_recordings"]
