"""Noise and second speakers for denoising pretraining (NEST, arXiv:2408.13106).

An augmentation draws the parameters of an utterance into a [`NoiseDraw`], then [`render_noise`] applies them. The
distributions are NeMo 3.0's. Dimensions: B utterances, N samples of the longest one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .audio import AudioError, decode_audio


@dataclass(frozen=True)
class MixSegment:
    """
    One stretch of an utterance that gets noise.

    Args:
        start, length (`int`): in samples of the utterance.
        source (`str` or `int`): id of the utterance mixed in; `None` is the utterance's own noise clip.
        offset (`int`): first sample taken from the source, which is repeated where it is too short.
    """

    start: int
    length: int
    source: str | int | None
    offset: int


@dataclass(frozen=True)
class NoiseDraw:
    """
    All random parameters of one utterance's noise. `dataclasses.asdict` turns it into a row to store.

    Args:
        kind (`str`): `"none"` (clean), `"noise"`, `"speech"` (second speakers), or `"raw"` (skipped under
            `keep_raw_noise_when_skipped`).
        ratio_db (`float`): 10 log10 of speech power over noise power; `None` adds the source unscaled.
        ratio_over (`str`): where the noise's power is taken. `"utterance"`: the mixed noise, averaged over the whole
            utterance, so that `ratio_db` is the SNR of the utterance. `"clip"`: the source, averaged over its own
            length, so that `ratio_db` is about the SNR within the segment.
        segments (`tuple[MixSegment, ...]`): in order of `start`, without overlap.
    """

    kind: Literal["none", "noise", "speech", "raw"] = "none"
    ratio_db: float | None = None
    ratio_over: Literal["utterance", "clip"] = "utterance"
    segments: tuple[MixSegment, ...] = ()


def render_noise(
    draw: NoiseDraw, *, wave: np.ndarray, noise: np.ndarray, utterances: Mapping, out: np.ndarray | None = None
) -> np.ndarray:
    """
    The noise that `draw` describes, without any randomness. Silent speech or a silent source gives zeros.

    Args:
        wave (`np.ndarray` of shape `(length,)`): the utterance, float32.
        noise (`np.ndarray` of shape `(noise_length,)`): its own noise clip, float32.
        utterances (`Mapping`): id -> float32 wave, for every second speaker in `draw`.
        out (`np.ndarray` of shape `(length,)`, *optional*): zeros to write into, float32.

    Returns:
        `np.ndarray` of shape `(length,)`: the noise to add to `wave`.
    """
    out = np.zeros(len(wave), np.float32) if out is None else out
    sources = [noise if segment.source is None else utterances[segment.source] for segment in draw.segments]
    pieces = [_cut(source, segment) for source, segment in zip(sources, draw.segments, strict=True)]
    scale = 1.0
    if draw.ratio_db is not None:
        if draw.ratio_over == "utterance":
            noise_power = sum(map(_energy, pieces)) / len(wave)
        else:  # NeMo measures a clip that is too short after repeating it
            clip = max(sources[0], pieces[0], key=len)
            noise_power = _energy(clip) / len(clip)
        speech_power = _energy(wave) / len(wave)
        scale = math.sqrt(speech_power / noise_power / 10 ** (draw.ratio_db / 10)) if noise_power > 0 else 0.0
    for segment, piece in zip(draw.segments, pieces, strict=True):
        np.multiply(piece, np.float32(scale), out=out[segment.start : segment.start + segment.length])
    return out


def _cut(source: np.ndarray, segment: MixSegment) -> np.ndarray:
    """A view of the source, or a copy where it must be repeated."""
    end = segment.offset + segment.length
    return (source if end <= len(source) else np.resize(source, end))[segment.offset : end]


def _energy(samples: np.ndarray) -> float:
    # Blocks too short for BLAS to split among threads: the same bits for any number of them. Their sum is double.
    return sum(float(np.dot(block, block)) for block in (samples[i : i + 8192] for i in range(0, len(samples), 8192)))


@dataclass(frozen=True, kw_only=True)
class SpeakerNoise:
    """
    Adds one segment of noise or of another utterance (NeMo's `SpeakerNoiseAugmentation`). The ratio holds within the
    segment. The defaults are those of NeMo's nest_fast-conformer.yaml.

    Args:
        prob (`float`, *optional*, defaults to 0.5): share of utterances that get noise. The others stay clean.
        noise_ratio (`float`, *optional*, defaults to 0.5): share of those that get their noise clip; the rest get
            speech. An utterance that is alone in its batch gets its noise clip.
        min_r_speech, max_r_speech (`float`, *optional*, default to -5.0 and 5.0): ratio to added speech, in dB.
        min_r_noise, max_r_noise (`float`, *optional*, default to -5.0 and 20.0): ratio to noise, in dB.
        min_mix_rate, max_mix_rate (`float`, *optional*, default to 0.5): share of the utterance that is mixed.
        keep_raw_noise_when_skipped (`bool`, *optional*, defaults to `False`): adds to every utterance outside `prob`
            its whole noise clip unscaled, which is what NeMo does. For recipes tuned that way.

    Example:

    ```python
    >>> import zlib
    >>> import numpy as np
    >>> from nest_hf.data import SpeakerNoise

    >>> augment = SpeakerNoise(prob=1.0)
    >>> waves, noise = np.random.default_rng(0).normal(0, 0.1, (2, 2, 16000)).astype(np.float32)
    >>> lengths, ids, seed, epoch = np.array([16000, 12000]), ["a", "b"], 0, 0
    >>> rngs = [np.random.default_rng([seed, epoch, zlib.crc32(id.encode())]) for id in ids]
    >>> added, draws = augment(waves, lengths, noise, lengths, rngs=rngs, ids=ids)
    >>> (waves + added).shape, all(draw.kind in ("noise", "speech") for draw in draws)
    ((2, 16000), True)

    ```
    """

    prob: float = 0.5
    noise_ratio: float = 0.5
    min_r_speech: float = -5.0
    max_r_speech: float = 5.0
    min_r_noise: float = -5.0
    max_r_noise: float = 20.0
    min_mix_rate: float = 0.5
    max_mix_rate: float = 0.5
    keep_raw_noise_when_skipped: bool = False

    _ratio_over: ClassVar[str] = "clip"

    def __post_init__(self):
        for name, share in (("prob", self.prob), ("noise_ratio", self.noise_ratio)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` is {share}; pass a share between 0 and 1.")
        _check_range("r_speech", self.min_r_speech, self.max_r_speech)
        _check_range("r_noise", self.min_r_noise, self.max_r_noise)
        _check_range("mix_rate", self.min_mix_rate, self.max_mix_rate, least=0, most=1)

    def __call__(
        self,
        waves: np.ndarray,
        lengths: np.ndarray,
        noise: np.ndarray,
        noise_lengths: np.ndarray,
        *,
        rngs: Sequence[np.random.Generator],
        ids: Sequence[str] | Sequence[int] | None = None,
    ) -> tuple[np.ndarray, list[NoiseDraw]]:
        """
        Noise for a batch. An utterance's noise depends on its own generator and, given `ids`, on which utterances are
        in the batch, not on their order.

        Args:
            waves (`np.ndarray` of shape `(B, N)`): clean speech, float32, zero padded. It is not changed.
            lengths (`np.ndarray` of shape `(B,)`): valid samples.
            noise (`np.ndarray` of shape `(B, N)`): a noise clip for each utterance, float32 (see [`NoiseSource`]).
                Without any noise data pass zeros: an utterance that would get noise then stays clean.
            noise_lengths (`np.ndarray` of shape `(B,)`): valid samples of `noise`; 0 is allowed.
            rngs (`Sequence[np.random.Generator]`): one for each utterance.
            ids (`Sequence`, *optional*, defaults to the row numbers): rows of equal id are never mixed.

        Returns:
            `tuple`: the noise to add, float32 of shape `(B, N)`, zero past `lengths`, and a list of B [`NoiseDraw`]s.

        Raises:
            `ValueError`: if the arguments differ in B, a length exceeds its row, or the samples are not float32.
        """
        ids = range(len(waves)) if ids is None else ids
        rows = {"lengths": lengths, "noise": noise, "noise_lengths": noise_lengths, "rngs": rngs, "ids": ids}
        for name, value in rows.items():
            if len(value) != len(waves):
                raise ValueError(f"`{name}` has {len(value)} rows but `waves` has {len(waves)}; pass one for each.")
        speech = _valid("waves", waves, lengths)
        clips = _valid("noise", noise, noise_lengths)
        by_id = dict(zip(ids, speech, strict=True))
        utterances = {key: by_id[key] for key in sorted(by_id) if len(by_id[key])}
        out = np.zeros(waves.shape, np.float32)
        draws = []
        for own, wave, clip, rng, target in zip(ids, speech, clips, rngs, out, strict=True):
            others = {key: len(other) for key, other in utterances.items() if key != own}
            draw = self.draw(len(wave), noise_length=len(clip), others=others, rng=rng)
            render_noise(draw, wave=wave, noise=clip, utterances=utterances, out=target[: len(wave)])
            draws.append(draw)
        return out, draws

    def draw(self, length: int, *, noise_length: int, others: Mapping, rng: np.random.Generator) -> NoiseDraw:
        """
        The parameters of an utterance of `length` samples with a noise clip of `noise_length` samples. `others` maps
        the ids of all possible second speakers to their samples, at least 1.
        """
        if length == 0 or rng.random() >= self.prob:
            if self.keep_raw_noise_when_skipped and min(length, noise_length) > 0:
                return NoiseDraw("raw", segments=(MixSegment(0, min(length, noise_length), None, 0),))
            return NoiseDraw()
        wants_speech = rng.random() >= self.noise_ratio  # drawn also where there is no other utterance
        if others and wants_speech:
            ratio_db = float(rng.uniform(self.min_r_speech, self.max_r_speech))
            return NoiseDraw("speech", ratio_db, self._ratio_over, self._draw_segments(length, others, rng))
        if noise_length == 0:
            return NoiseDraw()
        ratio_db = float(rng.uniform(self.min_r_noise, self.max_r_noise))
        return NoiseDraw("noise", ratio_db, self._ratio_over, self._draw_segments(length, {None: noise_length}, rng))

    def _draw_segments(self, length: int, sources: Mapping, rng: np.random.Generator) -> tuple[MixSegment, ...]:
        mix_length = max(1, _integer(rng, int(length * self.min_mix_rate), int(length * self.max_mix_rate)))
        start = _integer(rng, 0, length - mix_length)
        source = list(sources)[rng.integers(len(sources))]
        return (MixSegment(start, mix_length, source, _integer(rng, 0, sources[source] - mix_length)),)


@dataclass(frozen=True, kw_only=True)
class MultiSpeakerNoise(SpeakerNoise):
    """
    Adds segments of noise or of other utterances (NeMo's `MultiSpeakerNoiseAugmentation`, nest_fast-conformer.yaml's
    defaults). The ratio is that of the whole utterance: when half of it is mixed, the SNR within the segments is 3 dB
    lower. It is used as [`SpeakerNoise`] is and has its arguments and these:

    Args:
        min_num_segments, max_num_segments (`int`, *optional*, default to 1): number of segments.
        min_num_speakers, max_num_speakers (`int`, *optional*, default to 1): second speakers, who take turns.

    Example:

    ```python
    >>> import zlib
    >>> import numpy as np
    >>> from nest_hf.data import MultiSpeakerNoise

    >>> augment = MultiSpeakerNoise(prob=1.0)
    >>> waves, noise = np.random.default_rng(0).normal(0, 0.1, (2, 2, 16000)).astype(np.float32)
    >>> lengths, ids, seed, epoch = np.array([16000, 12000]), ["a", "b"], 0, 0
    >>> rngs = [np.random.default_rng([seed, epoch, zlib.crc32(id.encode())]) for id in ids]
    >>> added, draws = augment(waves, lengths, noise, lengths, rngs=rngs, ids=ids)
    >>> (waves + added).shape, all(draw.kind in ("noise", "speech") for draw in draws)
    ((2, 16000), True)

    ```
    """

    min_num_segments: int = 1
    max_num_segments: int = 1
    min_num_speakers: int = 1
    max_num_speakers: int = 1

    _ratio_over: ClassVar[str] = "utterance"

    def __post_init__(self):
        super().__post_init__()
        _check_range("num_segments", self.min_num_segments, self.max_num_segments, least=1)
        _check_range("num_speakers", self.min_num_speakers, self.max_num_speakers, least=1)

    def _draw_segments(self, length: int, sources: Mapping, rng: np.random.Generator) -> tuple[MixSegment, ...]:
        mix_length = max(1, int(length * rng.uniform(self.min_mix_rate, self.max_mix_rate)))
        num_segments = int(rng.integers(self.min_num_segments, self.max_num_segments + 1))
        num_speakers = min(int(rng.integers(self.min_num_speakers, self.max_num_speakers + 1)), len(sources))
        # NeMo puts every sample into a random segment and counts: this multinomial. Empty segments are dropped.
        sizes = [int(size) for size in rng.multinomial(mix_length, [1 / num_segments] * num_segments) if size]
        speakers = [list(sources)[i] for i in rng.choice(len(sources), num_speakers, replace=False)]
        segments, turn, end, last_start, consumed = [], 0, 0, length - mix_length, 0
        for size in sizes:
            start = _integer(rng, end, last_start)  # leaves room for the segments to come
            source = speakers[turn]
            # The noise clip is used up from its beginning, a speaker is cut anywhere.
            offset = consumed % sources[source] if source is None else _integer(rng, 0, sources[source] - size)
            segments.append(MixSegment(start, size, source, offset))
            end, last_start, consumed = start + size, last_start + size, consumed + size
            # NeMo's turns: all in order, then in order again from a random one on.
            turn = turn + 1 if turn + 1 < num_speakers else int(rng.integers(num_speakers))
        return tuple(segments)


def _check_range(name: str, low: float, high: float, *, least: float = -math.inf, most: float = math.inf):
    if not least <= low <= high <= most:
        bounds = f"`min_{name}` is {low} and `max_{name}` is {high}"
        raise ValueError(f"{bounds}; pass them in order, between {least} and {most}.")


def _valid(name: str, samples: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """(B, N) -> B views without padding."""
    if samples.dtype != np.float32:
        raise ValueError(f"`{name}` is {samples.dtype}; pass float32 samples.")
    for length in lengths:
        if not 0 <= length <= samples.shape[1]:
            raise ValueError(f"`{name}` has {samples.shape[1]} samples per row but a length is {length}; pad it.")
    return [row[:length] for row, length in zip(samples, lengths, strict=True)]


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform in `[low, high)`; `low` where that is empty."""
    return int(rng.integers(low, high)) if low < high else low


class NoiseSource:
    """
    Random noise clips. A draw depends on its generator alone, never on earlier draws. The counters are this object's:
    every worker process of a data loader has its own.

    Args:
        rows (`datasets.Dataset` or any sequence of dicts): columns `id`, `audio` (`{"bytes": ..., "path": ...}`),
            `offset` and `duration` in seconds (`None`: 0, and the rest, which is then decoded whole at each draw).
        sampling_rate (`int`, *optional*, defaults to 16000): of the samples drawn, in Hz.
        resample (`bool`, *optional*, defaults to `True`): resamples clips of another rate; else they are unreadable.
        short_noise (`str`, *optional*, defaults to `"repeat"`): a clip shorter than asked is repeated, or, with
            `"zero"`, followed by zeros as in NeMo.

    Attributes: `num_draws`, `num_repeated` (too short), `num_silent` (replaced by white noise), and `bad_clips` (id ->
    reason).

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data import NoiseSource

    >>> hum = np.sin(np.arange(32000) / 20, dtype=np.float32)  # or {"path": "hum.wav"}
    >>> audio = {"array": hum, "sampling_rate": 16000}
    >>> source = NoiseSource([{"id": "hum", "audio": audio, "offset": 0.0, "duration": 2.0}])
    >>> samples, noise_length = source.draw(8000, np.random.default_rng(0))
    >>> samples.shape, noise_length
    ((8000,), 8000)

    ```
    """

    def __init__(
        self,
        rows: Sequence[Mapping],
        *,
        sampling_rate: int = 16000,
        resample: bool = True,
        short_noise: str = "repeat",
    ):
        if len(rows) == 0:
            raise ValueError("`rows` has no noise clips; without noise data use zeros as noise, and no `NoiseSource`.")
        if short_noise not in ("repeat", "zero"):
            raise ValueError(f'`short_noise` is {short_noise!r}; pass "repeat" or "zero".')
        self.rows, self.sampling_rate, self.resample, self.short_noise = rows, sampling_rate, resample, short_noise
        self.num_draws, self.num_repeated, self.num_silent = 0, 0, 0
        self.bad_clips: dict[str, str] = {}

    def draw(self, num_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """
        A random window of a random clip. Only the window is decoded.

        Returns:
            `tuple`: float32 samples of shape `(num_samples,)`, and how many of them are noise (with `"repeat"`, all).

        Raises:
            `ValueError`: if 20 clips in a row cannot be read.
        """
        for _ in range(20):
            row = self.rows[int(rng.integers(len(self.rows)))]
            try:
                samples = self._read(row, num_samples, rng)
            except AudioError as error:
                self.bad_clips[row["id"]] = error.reason
                continue
            self.num_draws += 1
            if not samples.any():  # NeMo's white noise for an empty clip
                amplitude = 10 ** (int(rng.integers(-90, -46)) / 20)
                samples = amplitude * rng.standard_normal(len(samples), dtype=np.float32)
                self.num_silent += 1
            if len(samples) == num_samples:
                return samples, num_samples
            if self.short_noise == "zero":
                return np.pad(samples, (0, num_samples - len(samples))), len(samples)
            self.num_repeated += 1
            return np.resize(samples, num_samples), num_samples
        raise ValueError(f"20 noise clips in a row cannot be read: {self.bad_clips}; repair or remove them.")

    def _read(self, row: Mapping, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """A random window of `num_samples` samples, or the whole of a shorter clip."""
        offset_s, duration_s = row["offset"] or 0.0, row["duration"]
        window_s = num_samples / self.sampling_rate + 0.001  # a rate that does not divide ours must not lose a sample
        if duration_s is not None and duration_s > window_s:
            offset_s, duration_s = offset_s + rng.uniform(0, duration_s - window_s), window_s
        rate = {"sampling_rate": self.sampling_rate, "resample": self.resample}
        samples = decode_audio(row["audio"], offset_s=offset_s, duration_s=duration_s, **rate).samples
        start = _integer(rng, 0, len(samples) - num_samples + 1)
        return samples[start : start + num_samples]
