"""Recordings in a page: their samples or a link to them, and what they look like."""

import base64
import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ..conditions import CONDITIONS, condition_channel
from ..data.audio import AudioError, decode_audio
from ..data.audio_encoding import encode_audio
from ..data.telephone import ChannelDraw, TelephoneChannel
from ..recordings import read_recordings

RATE = 16000  # Hz, of the recognisers
MAX_CLIP_S = 60.0
BINS = 96  # rows of a spectrogram
MAX_FRAMES = 1000
RANGE_DB = 70.0  # below the loudest point, down to which there is a grey
SILENCE_DB = 0.0  # of a point (a sine at full scale has about 40), below which nothing is made louder


def has_channel(settings: Mapping) -> bool:
    """Whether the recogniser heard the data through a channel, and not as they were recorded."""
    condition = settings.get("condition")
    return condition is not None and CONDITIONS.get(condition, condition) is not None


def channel_of(settings: Mapping) -> TelephoneChannel | None:
    """
    The channel through which `transcribe.py --domain` played the data to a recogniser, with its noise.

    Args:
        settings (`Mapping`): Of the hypotheses: `condition`, `data`, `seed`.

    Raises:
        ValueError or OSError: where the data are not there any more.
    """
    if not has_channel(settings):
        return None
    talkers = read_recordings(settings["data"], on_bad_audio="skip").rows
    return condition_channel(settings["condition"], talkers, seed=settings.get("seed") or 0)


def clip_of(row: Mapping, *, embed: bool, channel: TelephoneChannel | None = None) -> dict:
    """
    A recording for the page.

    Args:
        row (`Mapping`): With `audio` (a path), and where it is a piece of a longer file `offset_s` and `duration_s`.
        embed (`bool`): Whether its samples go into the page, or the picture alone.
        channel ([`TelephoneChannel`], *optional*): That it was heard through, as `channel` of the row was drawn.

    Returns:
        `dict`: `spectrogram` (a PNG as a data URL), `duration_s`, `shown_s`, `top_hz`, and if embedded `flac`
        (base64); or `problem`.
    """
    offset, length = row.get("offset_s") or 0.0, row.get("duration_s")
    if channel is None:
        length = min(length or MAX_CLIP_S, MAX_CLIP_S)
    elif not offset:
        length = None  # all of the file, of which `duration_s` is rounded
    try:
        wave = decode_audio(row["audio"], sampling_rate=RATE, offset_s=offset, duration_s=length).samples
    except (AudioError, OSError) as error:
        return {"problem": f"The audio cannot be read: {error}"}
    if channel is not None:  # lost packets and noise were drawn for the whole of it
        if not row.get("channel"):
            return {"problem": "Without a hypothesis nothing is known of the channel that it was to be heard through."}
        try:
            wave = channel.apply(wave, ChannelDraw.from_json(row["channel"]))[: round(MAX_CLIP_S * RATE)]
        except KeyError as error:
            return {"problem": f"The recording {error} that was mixed in is not in the data any more."}
    shown_s = len(wave) / RATE
    clip = {
        "spectrogram": "data:image/png;base64," + _base64(spectrogram_png(wave, RATE)),
        "duration_s": row.get("duration_s") or shown_s,
        "shown_s": shown_s,
        "top_hz": RATE / 2,
    }
    if embed:
        clip["flac"] = _base64(encode_audio(wave, RATE))
    return clip


def link_to(row: Mapping, page: Path) -> str:
    """
    The address of a row's recording for a page in another folder, relative where that is possible, so that both can
    be moved together. A piece of a longer file is played alone.
    """
    audio = Path(row["audio"]).absolute()
    try:
        address = quote(Path(os.path.relpath(audio, page.absolute().parent)).as_posix())
    except ValueError:  # another drive
        address = audio.as_uri()
    if row.get("offset_s") and row.get("duration_s"):
        address += f"#t={row['offset_s']:.10g},{row['offset_s'] + row['duration_s']:.10g}"
    return address


def spectrogram_png(wave: np.ndarray, sampling_rate: int) -> bytes:
    """
    The spectrogram of a recording as a PNG of 16 greys, time to the right, frequency upwards, loud is white.

    Args:
        wave (`np.ndarray` of shape `(N,)`): float32.
        sampling_rate (`int`): Hz; the uppermost row is half of it.
    """
    width = round(0.025 * sampling_rate)
    hop = max(round(0.005 * sampling_rate), -(-len(wave) // MAX_FRAMES))
    padded = np.pad(wave, (width // 2, width))
    frames = np.lib.stride_tricks.sliding_window_view(padded, width)[: max(len(wave), 1) : hop]
    size = 1 << (width - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hanning(width).astype(np.float32), n=size)) ** 2  # (frames, size // 2 + 1)
    edges = np.linspace(0, size // 2, BINS + 1).astype(int)
    rows = np.add.reduceat(power[:, :-1], edges[:-1], axis=1) / np.diff(edges)  # (frames, BINS)
    level = 10 * np.log10(rows + 1e-12)
    top = max(float(level.max()), SILENCE_DB)
    shade = np.clip((level - top) / RANGE_DB + 1, 0, 1)
    return grey_png(np.round(15 * shade).astype(np.uint8).T[::-1])


def grey_png(image: np.ndarray) -> bytes:
    """A PNG of 4 bits a pixel, from values 0 to 15 of shape (height, width)."""
    height, width = image.shape
    even = np.pad(image, ((0, 0), (0, width % 2)))
    lines = even[:, ::2] << 4 | even[:, 1::2]
    raw = np.pad(lines, ((0, 0), (1, 0))).tobytes()  # the first byte of a line says that it is not filtered
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return file.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


__all__ = ["channel_of", "clip_of", "grey_png", "has_channel", "link_to", "spectrogram_png"]
