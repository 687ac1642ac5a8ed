"""A fixed choice of recordings in memory, to be mixed into others: babble, noises, impulse responses."""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from .audio import AudioError, decode_audio
from .speech_level import active_frames, frame_powers

logger = logging.getLogger(__name__)


class NoisePool:
    """
    As many recordings of a data set as fit into `pool_s` seconds.

    Which ones follows from the seed and their ids alone, not from the order of the rows, so that every process (and
    another machine) mixes in the same. They are decoded at the first use, once per process and sampling rate; memory
    does not grow with the data set.

    Args:
        rows (`datasets.Dataset` or a sequence of dicts):
            Columns `id`, `audio` (`{"bytes", "path"}`), and, where there are any, `offset` and `duration` in seconds.
        pool_s (`float`, *optional*, defaults to 1200.0): Seconds to hold (38 MB at 8 kHz).
        seed (`int`, *optional*, defaults to 0): Seeds the choice.

    Raises:
        ValueError: if there is no row.
    """

    def __init__(self, rows: Sequence[Mapping], *, pool_s: float = 1200.0, seed: int = 0):
        if not len(rows):
            raise ValueError("`rows` has no recording to mix in; pass some.")
        columns = getattr(rows, "column_names", None)
        column = (lambda key: rows[key][:] if key in columns else None) if columns else None
        ids = column("id") if column else [row["id"] for row in rows]
        seconds = column("duration") if column else [row.get("duration") for row in rows]
        order = sorted(range(len(rows)), key=lambda index: self._rank(seed, ids[index]))
        self.rows, total_s = [], 0.0
        for index in order:
            self.rows.append(rows[index])
            total_s += (seconds[index] if seconds else None) or 5.0  # where the length is unknown
            if total_s >= pool_s:
                break
        self.bad: dict[str, str] = {}
        self._decoded: dict[int, dict[str, np.ndarray]] = {}

    @staticmethod
    def _rank(seed: int, example_id: str) -> bytes:
        return hashlib.blake2b(f"{seed}\x1f{example_id}".encode(), digest_size=8).digest()

    def __getstate__(self) -> dict:
        """Without the samples: another process decodes them anew, which is quicker than to send them."""
        return {**self.__dict__, "_decoded": {}}

    def waves(self, sampling_rate: int) -> dict[str, np.ndarray]:
        """
        The recordings at a rate: id -> float32 samples (N,), scaled to unit power while they are active.
        Silent ones and those that cannot be read are left out, and named in `bad` (id -> reason) and in the log.

        Raises:
            ValueError: if none can be used.
        """
        if sampling_rate not in self._decoded:
            waves: dict[str, np.ndarray] = {}
            for row in self.rows:
                try:
                    wave = decode_audio(
                        row["audio"],
                        sampling_rate=sampling_rate,
                        offset_s=row.get("offset") or 0.0,
                        duration_s=row.get("duration"),
                    ).samples
                except AudioError as error:
                    self.bad[row["id"]] = error.reason
                    continue
                powers = frame_powers(wave, sampling_rate)
                active = active_frames(powers)
                if not active.any():
                    self.bad[row["id"]] = "silence"
                    continue
                waves[row["id"]] = wave * np.float32(1 / np.sqrt(powers[active].mean()))
            if self.bad:
                logger.warning(
                    "%d of %d recordings cannot be mixed into others and are left out: %s",
                    len(self.bad), len(self.rows), ", ".join(f"{k} ({v})" for k, v in list(self.bad.items())[:5]),
                )  # fmt: skip
            if not waves:
                raise ValueError(f"none of {len(self.rows)} recordings can be mixed in: {self.bad}; mend the data.")
            self._decoded[sampling_rate] = waves
        return self._decoded[sampling_rate]
