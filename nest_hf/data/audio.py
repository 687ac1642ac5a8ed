"""Decoding: any recording to a mono float32 array at one sampling rate.

soundfile reads WAV, FLAC, MP3, Ogg Vorbis, Opus and AIFF, from a path or from bytes, without FFmpeg or torchcodec;
PyAV, an extra, reads the rest (m4a, AMR, webm).
"""

import io
import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SOUNDFILE_EXTENSIONS = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
AV_EXTENSIONS = frozenset(".m4a .mp4 .aac .amr .awb .3gp .webm .mka .mkv .wma .ac3".split())
AUDIO_EXTENSIONS = SOUNDFILE_EXTENSIONS | AV_EXTENSIONS

# libsndfile's error numbers for a container and for an encoding that it does not know; FFmpeg may.
UNKNOWN_FORMAT = {1, 4}
# libsndfile trims a shortened WAV, W64, AIFF or AU silently and only logs what the header promised.
PROMISED_BYTES = re.compile(r"^ *(?:data|riff|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
# A writer that streams cannot know the length and leaves a placeholder near 2 or 4 GiB; others miscount by a header.
PLACEHOLDER_BYTES, SLOPPY_BYTES = 0x7FFF0000, 128
# An MP3 may end up to two frames of 1152 samples before the length in its header.
MP3_SLACK = 2 * 1152
# -0.2 dB: G.711 ends at 0.98 of full scale.
CLIPPING_LEVEL = 0.977
# A streamed FLAC says nothing of its length; libsndfile then reports 2^63 - 1 frames.
UNKNOWN_FRAMES = 2**40


class AudioError(ValueError):
    """
    A recording that cannot be used.

    Args:
        message (`str`):
            What is wrong, where, and the remedy.
        reason (`str`, *optional*, defaults to `"unreadable"`):
            Stable words to count by: `"missing file"`, `"unreadable"`, `"zero length"`, `"NaN samples"`,
            `"wrong sampling rate"` or `"offset past the end"`.

    Example:

    ```python
    >>> from nest_hf.data import AudioError, decode_audio

    >>> try:
    ...     decode_audio("no_such_file.wav")
    ... except AudioError as error:
    ...     print(error.reason)
    missing file

    ```
    """

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class DecodedAudio:
    """
    One decoded recording.

    Attributes:
        samples (`np.ndarray` of shape `(num_samples,)`): float32, mono, full scale is 1.
        sampling_rate (`int`): Hz, of `samples`.
        original_sampling_rate (`int`): Hz, of the file.
        num_channels (`int`): channels of the file, averaged in `samples`.
        num_clipped (`int`): samples of all channels that clipping cut flat: three or more in a row at a peak within
            0.2 dB of full scale.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data import decode_audio

    >>> stereo = np.zeros((2, 8000), dtype=np.float32)
    >>> decoded = decode_audio({"array": stereo, "sampling_rate": 8000}, sampling_rate=16000)
    >>> decoded.samples.shape, decoded.sampling_rate, decoded.original_sampling_rate, decoded.num_channels
    ((16000,), 16000, 8000, 2)

    ```
    """

    samples: np.ndarray
    sampling_rate: int
    original_sampling_rate: int
    num_channels: int
    num_clipped: int = 0


def decode_audio(
    audio: str | os.PathLike | bytes | dict,
    *,
    sampling_rate: int = 16000,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    resample: bool = True,
) -> DecodedAudio:
    """
    Decodes a recording, or a piece of it, to mono float32 at `sampling_rate`.

    Args:
        audio (`str`, `os.PathLike`, `bytes` or `dict`):
            A path, a file's bytes, `{"path", "bytes"}` as `datasets.Audio(decode=False)` gives it (bytes first), or
            `{"array", "sampling_rate"}` with an array of shape `(num_samples,)`, or two-dimensional with the shorter
            axis as channels; signed integers are scaled by their full scale.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Hz, of the result.
        offset_s (`float`, *optional*, defaults to 0.0):
            Where to start, in seconds.
        duration_s (`float`, *optional*):
            How much to read, in seconds; to the end by default, and no further than the end. Offset and duration are
            cut to whole samples at the file's own rate, as NeMo does.
        resample (`bool`, *optional*, defaults to `True`):
            Whether a recording at another rate is resampled (soxr, high quality) or refused.

    Raises:
        AudioError: if the recording is missing, unreadable, truncated, empty or not finite, if it ends before
            `offset_s`, or if its rate differs and `resample` is off.

    Example:

    ```python
    samples = decode_audio("call.wav", offset_s=1.5, duration_s=10.0).samples
    ```
    """
    if not offset_s >= 0 or (duration_s is not None and not duration_s >= 0):
        raise ValueError(f"`offset_s` is {offset_s} and `duration_s` {duration_s}; both are 0 or more seconds.")
    source, where = _locate(audio)
    if isinstance(source, dict):
        samples, rate, channels = _read_array(source, where, offset_s, duration_s)
    else:
        with _open(source, where) as file:
            if file is None:
                samples, rate, channels = _read_with_av(source, where, offset_s, duration_s)
            else:
                samples, rate, channels = _read_with_soundfile(file, where, offset_s, duration_s)

    low, high = float(samples.min()), float(samples.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN if one sample is
        raise AudioError(f"{where} holds NaN or infinite samples; write it anew or leave it out.", "NaN samples")
    num_clipped = _num_clipped(samples, low, high) if max(-low, high) > CLIPPING_LEVEL else 0
    if samples.ndim == 2:
        samples = samples.mean(axis=1)  # (N, C) -> (N,)
    if rate != sampling_rate:
        if not resample:
            raise AudioError(
                f"{where} is sampled at {rate} Hz and {sampling_rate} Hz is asked for; pass `resample=True` "
                f"(`--resample true`) or convert it.",
                "wrong sampling rate",
            )
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
        if not len(samples):
            raise AudioError(f"{where} has no sample left at {sampling_rate} Hz; leave it out.", "zero length")
    return DecodedAudio(samples, sampling_rate, rate, channels, num_clipped)


def _num_clipped(samples: np.ndarray, low: float, high: float) -> int:
    """Samples of `(N,)` or `(N, C)` in runs of three or more at one of the peaks that is near full scale."""
    flat = np.zeros(samples.shape, bool)
    for peak in (low, high):
        if abs(peak) > CLIPPING_LEVEL:
            at_peak = samples == np.float32(peak)
            middle = at_peak[:-2] & at_peak[1:-1] & at_peak[2:]
            for start in range(3):
                flat[start : start + len(middle)] |= middle
    return int(flat.sum())


def audio_duration(audio: str | os.PathLike | bytes | dict) -> float:
    """
    Length of a recording in seconds, from its header.

    Args:
        audio (`str`, `os.PathLike`, `bytes` or `dict`):
            As for [`decode_audio`].

    Raises:
        AudioError: if the recording is missing or empty, or its header cannot be read or promises more than there is.
    """
    source, where = _locate(audio)
    if isinstance(source, dict):
        samples, rate, _ = _read_array(source, where, 0.0, None)
        return len(samples) / rate
    with _open(source, where) as file:
        if file is not None and file.frames < UNKNOWN_FRAMES:
            _span(file.frames, file.samplerate, 0.0, None, where)
            return file.frames / file.samplerate
        if file is None:
            promised = _duration_with_av(source, where)
            if promised is not None:
                return promised
            samples, rate, _ = _read_with_av(source, where, 0.0, None)
        else:
            samples, rate, _ = _read_with_soundfile(file, where, 0.0, None)
        return len(samples) / rate


def _locate(audio) -> tuple[str | bytes | dict, str]:
    """What to read (a path, bytes, or a dict with an array) and its name in messages."""
    if isinstance(audio, dict):
        path = audio.get("path")
        if audio.get("array") is not None:
            return audio, f"`{path or 'array'}`"
        if audio.get("bytes") is not None:
            return audio["bytes"], f"`{path or 'audio bytes'}`"
        if path is None:
            raise AudioError("`audio` has neither `bytes`, `path` nor `array`; give one of them.", "missing file")
        audio = path
    if isinstance(audio, bytes | bytearray | memoryview):
        return audio, "`audio bytes`"
    return os.fspath(audio), f"`{os.fspath(audio)}`"


@contextmanager
def _open(source: str | bytes, where: str):
    """An open `SoundFile`, or None where only PyAV may know the format; libsndfile's errors become `AudioError`s."""
    is_path = isinstance(source, str)
    size = len(source) if not is_path else os.stat(source).st_size if os.path.isfile(source) else None
    if size is None:
        if os.path.exists(source):
            raise AudioError(f"{where} is not a file; give the path of one recording.")
        raise AudioError(f"{where} does not exist; correct its path or leave it out.", "missing file")
    if size == 0:
        raise AudioError(f"{where} is empty (0 bytes); write it anew or leave it out.", "zero length")
    try:
        file = soundfile.SoundFile(source if is_path else io.BytesIO(source))
    except soundfile.LibsndfileError as error:
        if error.code not in UNKNOWN_FORMAT:
            raise _corrupt(where, error) from error
        file = None
    except TypeError as error:
        # soundfile asks for format and rate where a name ends in `.raw`.
        raise AudioError(f"{where} has no header; convert it to WAV or FLAC.") from error
    if file is None:
        yield None
        return
    with file:
        for promised, present in PROMISED_BYTES.findall(file.extra_info):
            if SLOPPY_BYTES < int(promised) - int(present) and int(promised) < PLACEHOLDER_BYTES:
                raise AudioError(
                    f"{where} is truncated: its header promises {promised} bytes and {present} are there; "
                    f"copy it again or leave it out."
                )
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise _corrupt(where, error) from error


def _corrupt(where: str, error: soundfile.LibsndfileError) -> AudioError:
    return AudioError(f"{where} is corrupt ({error.error_string.rstrip('.')}); write it anew or leave it out.")


def _span(frames: int, rate: int, offset_s: float, duration_s: float | None, where: str) -> tuple[int, int]:
    """First sample and number of samples of a piece of a recording that has `frames` samples."""
    if frames == 0:
        raise AudioError(f"{where} holds no samples; write it anew or leave it out.", "zero length")
    start = int(offset_s * rate)
    if start >= frames:
        raise AudioError(
            f"{where} lasts {frames / rate:.3f} s and the offset is {offset_s} s; correct the offset.",
            "offset past the end",
        )
    count = frames - start if duration_s is None else min(int(duration_s * rate), frames - start)
    if count == 0:
        raise AudioError(
            f"{where}: {duration_s} s is less than a sample at {rate} Hz; ask for more or leave it out.", "zero length"
        )
    return start, count


def _read_array(audio: dict, where: str, offset_s: float, duration_s: float | None) -> tuple[np.ndarray, int, int]:
    if audio.get("sampling_rate") is None:
        raise AudioError(f"{where} comes without `sampling_rate`; give it in Hz.", "wrong sampling rate")
    samples, rate = np.asarray(audio["array"]), int(audio["sampling_rate"])
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T  # (C, N) -> (N, C)
    channels = samples.shape[1] if samples.ndim == 2 else 1
    start, count = _span(len(samples), rate, offset_s, duration_s, where)
    samples = samples[start : start + count]
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    return samples.astype(np.float32, copy=False), rate, channels


def _read_with_soundfile(
    file: soundfile.SoundFile, where: str, offset_s: float, duration_s: float | None
) -> tuple[np.ndarray, int, int]:
    rate, channels = file.samplerate, file.channels
    if file.frames >= UNKNOWN_FRAMES:
        blocks = []
        while not blocks or len(blocks[-1]):
            blocks.append(file.read(rate, dtype="float32"))
        samples = np.concatenate(blocks)
        start, count = _span(len(samples), rate, offset_s, duration_s, where)
        return samples[start : start + count], rate, channels

    start, count = _span(file.frames, rate, offset_s, duration_s, where)
    if start:
        file.seek(start)
    samples = file.read(count, dtype="float32")
    if len(samples) < count - (MP3_SLACK if file.format == "MP3" else 0) or not len(samples):
        raise AudioError(
            f"{where} is truncated or corrupt: {count} samples are due from {offset_s} s and {len(samples)} there; "
            f"write it anew or leave it out."
        )
    return samples, rate, channels


@contextmanager
def _open_with_av(source: str | bytes, where: str):
    """PyAV's container and its first audio stream; FFmpeg's errors become `AudioError`s."""
    try:
        import av
    except ImportError as error:
        known = Path(where.strip("`")).suffix.lower() in AV_EXTENSIONS
        hint = "needs PyAV" if known else "is no format that libsndfile knows; PyAV may read it"
        raise AudioError(f'{where} {hint}: `pip install "nest_hf[av]"`, or convert it to FLAC.') from error
    try:
        with av.open(source if isinstance(source, str) else io.BytesIO(source)) as container:
            if not container.streams.audio:
                raise AudioError(f"{where} has no audio track; leave it out.")
            yield container, container.streams.audio[0]
    except av.FFmpegError as error:
        raise AudioError(f"{where} is corrupt or no audio ({error.strerror}); convert it or leave it out.") from error


def _duration_with_av(source: str | bytes, where: str) -> float | None:
    with _open_with_av(source, where) as (container, stream):
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return None if container.duration is None else container.duration / 1e6  # FFmpeg counts microseconds


def _read_with_av(
    source: str | bytes, where: str, offset_s: float, duration_s: float | None
) -> tuple[np.ndarray, int, int]:
    with _open_with_av(source, where) as (container, stream):
        from av import AudioResampler

        rate, channels = stream.rate, stream.channels
        to_float = AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        end = None if duration_s is None else int(offset_s * rate) + int(duration_s * rate)
        blocks, length = [np.zeros((0, channels), np.float32)], 0
        for frame in container.decode(stream):
            for block in to_float.resample(frame):
                blocks.append(block.to_ndarray().T)  # (C, N) -> (N, C)
                length += block.samples
            if end is not None and length >= end:
                break
        # Only these containers state a length; for AMR or ADTS FFmpeg estimates it from the bit rate.
        if (end is None or length < end) and {"mov", "matroska"} & set(container.format.name.split(",")):
            promised = (
                float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            )
            if length / rate < promised - 0.2:
                raise AudioError(
                    f"{where} is truncated: its header promises {promised:.2f} s and {length / rate:.2f} s are there; "
                    f"copy it again or leave it out."
                )
    samples = np.concatenate(blocks)
    start, count = _span(len(samples), rate, offset_s, duration_s, where)
    return samples[start : start + count], rate, channels
