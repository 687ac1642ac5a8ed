"""Lost packets of a telephone call, and what a receiver plays in their place.

P packets of S samples, N samples of the recording.
"""

import numpy as np

CONCEALMENTS = ("silence", "repeat", "pitch")


def draw_losses(
    num_packets: int,
    rate: float,
    rng: np.random.Generator,
    *,
    mean_burst: float | None = None,
    loss_in_burst: float = 1.0,
) -> np.ndarray:
    """
    Which packets are lost.

    Args:
        num_packets (`int`): P.
        rate (`float`): Expected share of lost packets, 0 to 1.
        rng (`np.random.Generator`): Source of randomness.
        mean_burst (`float`, *optional*):
            Mean length of a burst in packets, 1 or more. The line is then a Gilbert-Elliott channel: it passes
            between a good state, in which nothing is lost, and a bad one, both of geometric length. Without it every
            packet is lost or not on its own.
        loss_in_burst (`float`, *optional*, defaults to 1.0): Probability of a loss in the bad state (1: Gilbert).

    Returns:
        `np.ndarray` of shape `(P,)`: bool.
    """
    if mean_burst is None:
        return rng.random(num_packets) < rate
    bad_share = rate / loss_in_burst
    if bad_share <= 0:
        return np.zeros(num_packets, bool)
    mean_good = mean_burst * (1 - bad_share) / bad_share
    # Runs last one packet at least, so that this many are enough.
    lengths = np.empty(num_packets + 2, np.int64)
    first_bad = int(rng.random() >= bad_share)  # whether run 0 or 1 is the first bad one
    lengths[first_bad::2] = rng.geometric(1 / mean_burst, len(lengths[first_bad::2]))
    lengths[1 - first_bad :: 2] = rng.geometric(min(1.0, 1 / mean_good), len(lengths[1 - first_bad :: 2]))
    ends = np.cumsum(lengths)
    run = np.searchsorted(ends, np.arange(num_packets), side="right")
    lost = run % 2 == first_bad
    return lost if loss_in_burst >= 1 else lost & (rng.random(num_packets) < loss_in_burst)


def conceal(
    wave: np.ndarray, lost: np.ndarray, *, packet_size: int, sampling_rate: int, method: str = "silence",
    fade: float = 0.7,
) -> np.ndarray:  # fmt: skip
    """
    Replaces lost packets.

    Args:
        wave (`np.ndarray` of shape `(N,)`): float32; it is not changed.
        lost (`np.ndarray` of shape `(P,)`): bool, or indices of the lost packets; P = ceil(N / S).
        packet_size (`int`): S, in samples.
        sampling_rate (`int`): Hz.
        method (`str`, *optional*, defaults to `"silence"`):
            `"silence"`; `"repeat"`: the last packet received again, `fade` times as loud each time; `"pitch"`: its
            last pitch periods repeated and faded out within 60 ms, in the manner of ITU-T G.711 Appendix I.
        fade (`float`, *optional*, defaults to 0.7): Of `"repeat"`.

    Returns:
        `np.ndarray` of shape `(N,)`: float32.
    """
    if method not in CONCEALMENTS:
        raise ValueError(f"`method` is {method!r}; choose one of {', '.join(CONCEALMENTS)}.")
    num_packets = -(-len(wave) // packet_size)
    mask = np.zeros(num_packets, bool)
    mask[np.asarray(lost)] = True
    if not mask.any():
        return wave.copy()
    if method == "pitch":
        return _conceal_by_pitch(wave, mask, packet_size, sampling_rate)
    packets = np.zeros((num_packets, packet_size), np.float32)
    packets.reshape(-1)[: len(wave)] = wave
    if method == "silence":
        packets[mask] = 0.0
    else:
        index = np.arange(num_packets)
        received = np.maximum.accumulate(np.where(mask, -1, index))  # the last packet that came, -1 before the first
        gain = np.where(received >= 0, np.float32(fade) ** (index - received), 0.0).astype(np.float32)
        packets[mask] = packets[received[mask]] * gain[mask, None]
    return packets.reshape(-1)[: len(wave)]


# Appendix I's figures, in seconds.
SHORTEST_PERIOD, LONGEST_PERIOD, HISTORY, CORRELATED = 0.005, 0.015, 0.04875, 0.02
STEP, LONGEST_FADE_IN = 0.01, 0.01
FADE_PER_STEP = 0.2


def _conceal_by_pitch(wave: np.ndarray, lost: np.ndarray, packet_size: int, rate: int) -> np.ndarray:
    """One burst after the other; there are a few per recording."""
    out = wave.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        start, end = first * packet_size, min(last * packet_size, len(wave))
        history = np.zeros(round(HISTORY * rate), np.float32)
        known = out[max(0, start - len(history)) : start]
        if len(known):
            history[-len(known) :] = known
        period = _pitch_period(history, rate)
        quarter = max(1, period // 4)
        # 4 ms more of cross-fade for every 10 ms that were lost, up to 10 ms.
        fade_in = min(quarter + round(0.4 * (end - start)), round(LONGEST_FADE_IN * rate), len(wave) - end)
        filled = _continue(history, period, end - start + fade_in, rate)
        out[start:end] = filled[: end - start]
        if fade_in:
            ramp = (np.arange(1, fade_in + 1) / (fade_in + 1)).astype(np.float32)
            out[end : end + fade_in] = ramp * wave[end : end + fade_in] + (1 - ramp) * filled[end - start :]
    return out


def _pitch_period(history: np.ndarray, rate: int) -> int:
    """The lag, in samples, at which the last 20 ms are most like what was before (normalised correlation)."""
    shortest, longest, size = (round(s * rate) for s in (SHORTEST_PERIOD, LONGEST_PERIOD, CORRELATED))
    recent = history[-size:]
    past = history[len(history) - size - longest : len(history) - shortest]  # lags longest ... shortest
    products = np.correlate(past, recent, mode="valid")
    sums = np.concatenate([[0.0], np.cumsum(past.astype(np.float64) ** 2)])
    energies = sums[size:] - sums[:-size]
    scores = products / np.sqrt(np.maximum(energies, 1e-12))
    return longest - int(np.argmax(scores))


def _continue(history: np.ndarray, period: int, length: int, rate: int) -> np.ndarray:
    """`length` samples after the history: one pitch period repeated, after 10 ms two, then three; faded out."""
    step = round(STEP * rate)
    quarter = max(1, period // 4)
    ramp = (np.arange(1, quarter + 1) / (quarter + 1)).astype(np.float32)
    out = np.empty(length, np.float32)
    phase = 0
    for number, start in enumerate(range(0, length, step)):
        if number * FADE_PER_STEP > 1:  # silent from here on
            out[start:] = 0.0
            break
        span = period * min(number + 1, 3)
        cycle = history[-span:].copy()
        before = history[-span - quarter : -span]
        cycle[-quarter:] = (1 - ramp) * cycle[-quarter:] + ramp * before  # its end leads smoothly to its beginning
        count = min(step, length - start)
        out[start : start + count] = cycle[(phase + np.arange(count)) % span]
        phase = (phase + count) % span
    steps = np.arange(length) / step
    return out * np.clip(1 - FADE_PER_STEP * np.maximum(steps - 1, 0), 0, 1).astype(np.float32)
