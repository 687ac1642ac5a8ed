"""How loud speech is while somebody speaks: levels and signal-to-noise ratios over active speech only."""

import numpy as np

FRAME_S = 0.02
MARGIN = 10**-1.59  # ITU-T P.56: what lies 15.9 dB below the level of active speech is a pause


def frame_powers(wave: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Mean square of each 20-ms frame, (N,) -> (max(1, N // frame),); a shorter rest is left out."""
    size = max(1, round(FRAME_S * sampling_rate))
    if len(wave) < size:
        return np.atleast_1d(np.einsum("i,i->", wave, wave) / len(wave))
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    return np.einsum("ij,ij->i", frames, frames) / size


def active_frames(powers: np.ndarray) -> np.ndarray:
    """
    Which frames are speech: those above the level of active speech less 15.9 dB, as in ITU-T P.56, which finds both
    together; here by iteration over frames.

    Args:
        powers (`np.ndarray` of shape `(F,)`): From [`frame_powers`].

    Returns:
        `np.ndarray` of shape `(F,)`: bool; all False for digital silence.
    """
    active = powers > 0
    for _ in range(5):
        if not active.any():
            break
        active = powers > powers[active].mean() * MARGIN
    return active


def active_level_dbov(wave: np.ndarray, sampling_rate: int) -> float:
    """Level of active speech in dBov (0 is a full-scale square wave); minus infinity for digital silence."""
    powers = frame_powers(wave, sampling_rate)
    active = active_frames(powers)
    return float(10 * np.log10(powers[active].mean())) if active.any() else -np.inf


def noise_gain(speech: np.ndarray, noise: np.ndarray, sampling_rate: int, snr_db: float) -> float:
    """
    The factor that brings noise to `snr_db` below speech, both measured over the frames where there is speech.

    Args:
        speech, noise (`np.ndarray` of shape `(N,)`): float32.
        sampling_rate (`int`): Hz.
        snr_db (`float`): 10 log10 of speech power over noise power.

    Returns:
        `float`: 0 where speech or noise is silent.
    """
    powers = frame_powers(speech, sampling_rate)
    active = active_frames(powers)
    if not active.any():
        return 0.0
    noise_power = float(frame_powers(noise, sampling_rate)[active].mean())
    return float(np.sqrt(powers[active].mean() / noise_power / 10 ** (snr_db / 10))) if noise_power > 0 else 0.0
