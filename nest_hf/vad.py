"""Speech segments of a recording by silero-vad, an extra, with its own model file: no download, no torchaudio."""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from .long_audio import Window

SILERO_RATES = (8000, 16000)


def speech_segments(
    wave: np.ndarray,
    *,
    sampling_rate: int,
    max_segment_s: float = 30.0,
    max_pause_s: float = 1.0,
    padding_s: float = 0.2,
    threshold: float = 0.5,
) -> list[Window]:
    """
    Where somebody speaks, in segments that can be recognised one by one.

    Args:
        wave (`np.ndarray` of shape `(samples,)`): Mono waveform in [-1, 1].
        sampling_rate (`int`): Hz; 8000 and 16000 are taken as they are, other rates resampled for the detection.
        max_segment_s, max_pause_s, padding_s: See [`merge_segments`]; too long speech is cut at its longest pauses.
        threshold (`float`, *optional*, defaults to 0.5): Speech probability from which a frame is speech.

    Returns:
        `list[Window]`: Samples of `wave`; empty where nobody speaks.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(
            f"`wave` has shape {wave.shape}, or samples that are not finite; pass (samples,) of mono audio."
        )
    model, find_speech = _silero()
    detected, rate = wave, sampling_rate
    if rate not in SILERO_RATES:
        import soxr

        detected, rate = soxr.resample(wave, sampling_rate, 16000), 16000
    if not len(detected):
        return []
    speech = find_speech(
        torch.from_numpy(detected),
        model,
        threshold=threshold,
        sampling_rate=rate,
        max_speech_duration_s=max_segment_s - 2 * padding_s,
        speech_pad_ms=0,
    )
    scale = sampling_rate / rate
    segments = [Window(round(part["start"] * scale), min(round(part["end"] * scale), len(wave))) for part in speech]
    return merge_segments(
        segments,
        len(wave),
        sampling_rate=sampling_rate,
        max_segment_s=max_segment_s,
        max_pause_s=max_pause_s,
        padding_s=padding_s,
    )


def merge_segments(
    segments: Sequence[Window],
    num_samples: int,
    *,
    sampling_rate: int,
    max_segment_s: float = 30.0,
    max_pause_s: float = 1.0,
    padding_s: float = 0.2,
) -> list[Window]:
    """
    Pads segments, joins neighbours, and divides what is too long.

    Args:
        segments (`Sequence[Window]`): Stretches of speech in order, without overlap.
        num_samples (`int`): Length of the recording.
        sampling_rate (`int`): Hz.
        max_segment_s (`float`, *optional*, defaults to 30.0): No segment is longer, padding included.
        max_pause_s (`float`, *optional*, defaults to 1.0): Neighbours with a longer pause between them stay apart.
        padding_s (`float`, *optional*, defaults to 0.2): Added on both sides, up to the middle of a pause.

    Returns:
        `list[Window]`: In order, without overlap; every sample of `segments` is in one of them.
    """
    longest = int(max_segment_s * sampling_rate)
    if longest < 1:
        raise ValueError(f"`max_segment_s` is {max_segment_s}; it must hold at least one sample.")
    if not len(segments):
        return []
    padding, pause = round(padding_s * sampling_rate), max_pause_s * sampling_rate
    starts, ends = (np.array(side, dtype=np.int64) for side in zip(*segments, strict=True))
    if (starts[1:] < ends[:-1]).any() or (ends <= starts).any() or starts[0] < 0 or ends[-1] > num_samples:
        raise ValueError(f"`segments` must be in order, apart, and inside the {num_samples} samples of the recording.")
    middles = (ends[:-1] + starts[1:]) // 2
    padded_starts = np.maximum(starts - padding, np.append(0, middles)).tolist()
    padded_ends = np.minimum(ends + padding, np.append(middles, num_samples)).tolist()

    merged: list[Window] = []
    previous_end = None
    for start, end, speech_start, speech_end in zip(padded_starts, padded_ends, starts, ends, strict=True):
        joins = previous_end is not None and speech_start - previous_end <= pause
        if joins and end - merged[-1].start <= longest:
            merged[-1] = Window(merged[-1].start, end)
        else:
            number = -(-(end - start) // longest)
            edges = np.linspace(start, end, number + 1).round().astype(int).tolist()
            merged += [Window(*edge) for edge in zip(edges[:-1], edges[1:], strict=True)]
        previous_end = speech_end
    return merged


@functools.cache
def _silero():
    """The model and its search for speech; importing silero-vad sets torch to one thread, which is undone."""
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise ImportError("segments at pauses need silero-vad: pip install silero-vad, or use windows.") from error
    finally:
        torch.set_num_threads(threads)
    return load_silero_vad(), get_speech_timestamps


__all__ = ["merge_segments", "speech_segments"]
