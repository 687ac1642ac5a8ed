"""Whether a recogniser listens: recordings swapped for others of equal length, silence, and noise."""

from collections.abc import Sequence

import numpy as np

from .error_rates import character_errors

SILENCE_S = (0.5, 1.0, 2.0, 5.0, 10.0)
HISS = 1e-3  # -60 dBFS, the noise of a quiet line


def swapped_cer(rows: Sequence[dict], *, level: str) -> tuple[float, float]:
    """
    Character error rate of every reference against what was heard in another recording, the next in length.

    One that writes what its language model likes, whatever it hears, would do as well as on its own recordings.

    Args:
        rows (`Sequence[dict]`): `id`, `text`, `reference`, `duration_s`; those without reference are left out.
        level (`str`): Of the normaliser.

    Returns:
        `tuple[float, float]`: The rate, and the median difference in length, in seconds.

    Raises:
        ValueError: where fewer than two recordings have a reference.
    """
    rows = sorted((row for row in rows if row.get("reference")), key=lambda row: row["duration_s"])
    if len(rows) < 2:
        raise ValueError(f"`rows` has {len(rows)} recordings with a reference; swapping needs two.")
    ids = [row["id"] for row in rows]
    heard = dict(zip(ids, [row["text"] for row in rows[1:] + rows[:1]], strict=True))
    counts = character_errors(heard, {row["id"]: row["reference"] for row in rows}, level=level)
    durations = np.array([row["duration_s"] for row in rows])
    apart = np.abs(np.diff(durations, append=durations[:1]))
    return float(counts.errors.sum() / counts.num_tokens.sum()), float(np.median(apart))


def heard_without_speech(recogniser, *, seed: int = 0) -> dict[str, list[str]]:
    """
    What is written for digital silence and for faint noise, of 0.5 to 10 seconds: empty texts, if all is well. As
    features are normalised for each recording, noise is as loud to a model as speech.

    Args:
        recogniser: Of [`~recognisers.open_recogniser`].
        seed (`int`, *optional*, defaults to 0): Of the noise.

    Returns:
        `dict[str, list[str]]`: The texts of `silence` and of `noise`.
    """
    rng = np.random.default_rng(seed)
    rate = recogniser.sampling_rate
    silence = [np.zeros(round(seconds * rate), np.float32) for seconds in SILENCE_S]
    noise = [HISS * rng.standard_normal(len(wave)).astype(np.float32) for wave in silence]
    texts = [heard.text for heard in recogniser(silence + noise, sampling_rate=rate)]
    return {"silence": texts[: len(silence)], "noise": texts[len(silence) :]}


__all__ = ["heard_without_speech", "swapped_cer"]
