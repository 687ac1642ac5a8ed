"""Writing audio: 16-bit FLAC or WAV as bytes, and files that are whole when they have their name."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile

from .codecs import to_int16

FORMATS = ("flac", "wav")


def encode_audio(wave: np.ndarray, sampling_rate: int, *, format: str = "flac") -> bytes:
    """
    A recording as the bytes of a 16-bit file.

    Args:
        wave (`np.ndarray` of shape `(N,)`): float32 with full scale 1, or int16. Multiples of 1 / 32768 are kept bit
            for bit; other values are rounded, and clipped at full scale.
        sampling_rate (`int`): Hz.
        format (`str`, *optional*, defaults to `"flac"`): `"flac"` or `"wav"`.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` is {format!r}; choose one of {', '.join(FORMATS)}.")
    file = io.BytesIO()
    samples = wave if wave.dtype == np.int16 else to_int16(wave)
    soundfile.write(file, samples, sampling_rate, format=format.upper(), subtype="PCM_16")
    return file.getvalue()


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes under a temporary name and renames: a file that is there is whole. Makes the folder; OSError if full."""
    path = Path(path)
    partial = path.with_name(path.name + ".incomplete")
    try:
        try:
            partial.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
