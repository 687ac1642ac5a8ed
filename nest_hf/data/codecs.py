"""Telephone codecs as a recording hears them: encoded and decoded again, the same number of samples.

G.711 is a table here; GSM 06.10, G.721, G.723 and Opus come from libsndfile, G.726 and AMR-NB from FFmpeg (the extra
`av`). N is the number of samples.
"""

import io
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import soundfile

LINE_RATE = 8000  # Hz; all of these codecs are defined at it


def on_16_bits(wave: np.ndarray, scale: float = 1 / 32768) -> np.ndarray:
    """float32, full scale 1 -> whole numbers from -32768 to 32767, times `scale`, still float32; (N,)."""
    values = wave * np.float32(32768)
    np.rint(values, out=values)
    np.clip(values, -32768, 32767, out=values)
    return values if scale == 1 else np.multiply(values, np.float32(scale), out=values)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32, full scale 1 -> int16, rounded and clipped; (N,)."""
    return on_16_bits(wave, scale=1).astype(np.int16)


def to_float32(samples: np.ndarray) -> np.ndarray:
    """int16 -> float32 with full scale 1; (N,)."""
    return samples * np.float32(1 / 32768)


def g711(samples: np.ndarray, law: str = "mu") -> np.ndarray:
    """
    What G.711 leaves of 16-bit samples.

    The bits are libsndfile's, for all 65,536 values. The reference code of ITU-T G.191 differs on 127 values per law:
    negative ones on the boundary between two codes, where it decides for the other.

    Args:
        samples (`np.ndarray` of shape `(N,)`): int16.
        law (`str`, *optional*, defaults to `"mu"`): `"mu"` (North America, Japan) or `"a"` (elsewhere).

    Returns:
        `np.ndarray` of shape `(N,)`: int16, decoded.

    Raises:
        ValueError: if the samples are not int16 or the law is unknown.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data.telephone import g711

    >>> g711(np.array([0, 100, -1000, 32767], np.int16), law="a")
    array([    8,   104, -1008, 32256], dtype=int16)

    ```
    """
    samples = np.asarray(samples)
    if samples.dtype != np.int16:
        raise ValueError(f"`samples` is {samples.dtype}; G.711 takes int16.")
    return _g711_table(law)[samples.view(np.uint16)]


@lru_cache
def _g711_table(law: str) -> np.ndarray:
    """What every 16-bit value becomes, by its bits as an unsigned number; int16 of shape (65536,)."""
    if law not in ("mu", "a"):
        raise ValueError(f'`law` is {law!r}; choose "mu" or "a".')
    samples = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.abs(samples)
    # ITU-T G.711, tables 1 and 2: eight segments, each of 16 steps twice as wide as those of the segment before.
    if law == "mu":
        biased = np.minimum(magnitude >> 2, 8158) + 33  # 14 bits
        segment = np.floor(np.log2(biased)).astype(np.int64) - 5
        step = (biased >> (segment + 1)) & 15
        decoded = (((2 * step + 33) << segment) - 33) << 2
    else:
        coarse = np.minimum(magnitude >> 4, 2047)  # 13 bits
        segment = np.maximum(np.floor(np.log2(np.maximum(coarse, 1))).astype(np.int64) - 3, 0)
        shift = np.maximum(segment - 1, 0)
        step = (coarse >> shift) & 15
        decoded = (2 * step + 1 + 32 * (segment > 0)) << (shift + 3)
    return np.where(samples < 0, -decoded, decoded).astype(np.int16)


def _with_soundfile(samples: np.ndarray, *, container: str, subtype: str) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, LINE_RATE, format=container, subtype=subtype)
    file.seek(0)
    return soundfile.read(file, dtype="int16")[0]


def _with_av(samples: np.ndarray, *, codec: str, container: str, bit_rate: int, delay: int = 0) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ValueError(f'the codec {codec} needs PyAV: `pip install "nest_hf[av]"`.') from error

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=LINE_RATE, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.pad(samples, (0, delay + 160))[None], format="s16", layout="mono")
        frame.sample_rate = LINE_RATE
        for block in (frame, None):
            out.mux(stream.encode(block))
    file.seek(0)
    to_int = av.AudioResampler(format="s16", layout="mono", rate=LINE_RATE)
    with av.open(file) as encoded:
        blocks = [block.to_ndarray()[0] for frame in encoded.decode(audio=0) for block in to_int.resample(frame)]
    return np.concatenate(blocks)[delay:]


AMR_DELAY = 40  # samples; its encoder looks 5 ms ahead (3GPP TS 26.090)

# name -> int16 samples at 8 kHz to int16 samples, which may be longer or shorter
CODECS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "g711_mu": partial(g711, law="mu"),
    "g711_a": partial(g711, law="a"),
    "gsm": partial(_with_soundfile, container="WAV", subtype="GSM610"),
    "g721_32": partial(_with_soundfile, container="AU", subtype="G721_32"),
    "g723_24": partial(_with_soundfile, container="AU", subtype="G723_24"),
    "g723_40": partial(_with_soundfile, container="AU", subtype="G723_40"),
    "opus": partial(_with_soundfile, container="OGG", subtype="OPUS"),
    "g726_16": partial(_with_av, codec="g726", container="wav", bit_rate=16000),
    "g726_24": partial(_with_av, codec="g726", container="wav", bit_rate=24000),
    "g726_32": partial(_with_av, codec="g726", container="wav", bit_rate=32000),
    "g726_40": partial(_with_av, codec="g726", container="wav", bit_rate=40000),
    "amr_nb_4.75": partial(_with_av, codec="libopencore_amrnb", container="amr", bit_rate=4750, delay=AMR_DELAY),
    "amr_nb_7.4": partial(_with_av, codec="libopencore_amrnb", container="amr", bit_rate=7400, delay=AMR_DELAY),
    "amr_nb_12.2": partial(_with_av, codec="libopencore_amrnb", container="amr", bit_rate=12200, delay=AMR_DELAY),
}


def transcode(samples: np.ndarray, codec: str) -> np.ndarray:
    """
    What a codec leaves of 16-bit samples at 8 kHz.

    Args:
        samples (`np.ndarray` of shape `(N,)`): int16.
        codec (`str`): One of `CODECS`.

    Returns:
        `np.ndarray` of shape `(N,)`: int16. Codecs work on whole frames (GSM 06.10 returns 8,320 samples for 8,000);
        what is too long is cut, what is too short gets zeros.
    """
    decoded = CODECS[codec](samples)
    if len(decoded) < len(samples):
        return np.pad(decoded, (0, len(samples) - len(decoded)))
    return decoded[: len(samples)]
