"""Recordings of any rate -> waveforms at the rate of the audio tower, and how many frames they give."""

import os

import numpy as np
import torch
from transformers.models.fun_asr_nano.feature_extraction_fun_asr_nano import FunAsrNanoFeatureExtractor

MIN_DURATION_S = 0.1  # shorter audio is completed with silence, so that every front end gives frames


def is_single(audio) -> bool:
    """Whether `audio` is one recording: a path, an array, or a list of numbers."""
    return not isinstance(audio, (list, tuple)) or (len(audio) > 0 and isinstance(audio[0], (float, int)))


def read_waves(audio, sampling_rate: int | None, target_rate: int) -> list[np.ndarray]:
    """
    Args:
        audio: Mono waveforms `(samples,)` or paths: one, or a list. Channels of a file are averaged.
        sampling_rate (`int`, *optional*): Rate of the waveforms in Hz, `target_rate` by default; a file has its own.
        target_rate (`int`): Rate of the result in Hz.

    Returns:
        float32 waveforms, of at least 0.1 s.
    """
    waves = []
    for index, item in enumerate([audio] if is_single(audio) else audio):
        rate = sampling_rate or target_rate
        if isinstance(item, (str, os.PathLike)):
            item, rate = read_file(item)
        wave = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item, dtype=np.float32)
        if wave.ndim != 1 or not len(wave):
            raise ValueError(
                f"recording {index} of `audio` has shape {wave.shape}; pass mono waveforms (samples,), not empty. "
                "Average the channels of stereo audio first."
            )
        wave = resample(wave, rate, target_rate)
        missing = min_samples(target_rate) - len(wave)
        waves.append(np.pad(wave, (0, missing)) if missing > 0 else wave)
    if not waves:
        raise ValueError("`audio` is empty; pass at least one recording.")
    return waves


def read_file(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """A file's samples `(N,)`, the average of its channels, and its rate in Hz."""
    try:  # as in `resample`
        import soundfile
    except ImportError as error:
        raise ImportError(f"reading {path} needs soundfile: `pip install soundfile`.") from error
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return wave.mean(1), rate


def resample(wave: np.ndarray, sampling_rate: int, target_rate: int) -> np.ndarray:
    """`(N,)` at `sampling_rate` -> `(resampled_length(N),)` at `target_rate`, by soxr."""
    if sampling_rate == target_rate:
        return wave
    try:  # in a `try`: as remote code this file loads without it, and transformers asks for nothing beforehand
        import soxr
    except ImportError as error:
        raise ImportError(
            f"resampling from {sampling_rate} to {target_rate} Hz needs soxr: `pip install soxr`."
        ) from error
    resampled = soxr.resample(wave, sampling_rate, target_rate)
    length = resampled_length(len(wave), sampling_rate, target_rate)
    return np.pad(resampled, (0, max(0, length - len(resampled))))[:length]


def resampled_length(num_samples, sampling_rate: int, target_rate: int):
    """Samples after resampling, rounded up in whole numbers (an integer or an array)."""
    return (num_samples * target_rate + sampling_rate - 1) // sampling_rate


def min_samples(sampling_rate: int) -> int:
    """Samples of the shortest waveform that is not completed with silence."""
    return round(MIN_DURATION_S * sampling_rate)


def num_feature_frames(extractor, num_samples):
    """Valid frames that a feature extractor makes of `num_samples` samples at its rate (an integer or an array)."""
    if isinstance(extractor, FunAsrNanoFeatureExtractor):
        window, hop = (ms * extractor.sampling_rate // 1000 for ms in (extractor.frame_length, extractor.frame_shift))
        num_frames = 1 + (num_samples - window) // hop
        return (num_frames + extractor.stride_lfr - 1) // extractor.stride_lfr
    # by name: where this is remote code, each auto class loads a copy of its own
    if type(extractor).__name__ == "NestFeatureExtractor":
        return extractor.num_frames(num_samples)
    return num_samples // extractor.hop_length
