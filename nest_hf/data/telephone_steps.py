"""The steps of a telephone channel. Each draws its parameters, then applies them as a pure function.

`draw` returns what is random about a step as plain values (for a column of a data set), `apply` uses nothing else. N
is the number of samples where the step stands.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import soxr

from .codecs import CODECS, LINE_RATE, to_float32, to_int16, transcode
from .noise_pool import NoisePool
from .packet_loss import CONCEALMENTS, conceal, draw_losses
from .speech_level import active_level_dbov, noise_gain

Range = list[float] | float


def low_high(name: str, value: Range, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """`[low, high]`, or one number for both."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
        raise ValueError(f"`{name}` is {value}; give [low, high] in order, between {least} and {most}, or one number.")
    return pair


def draw_between(rng: np.random.Generator, pair: tuple[float, float]) -> float:
    return float(rng.uniform(*pair))


@dataclass(frozen=True)
class Place:
    """Where a step stands: number of samples, Hz, the recording's id and its own pool of recordings, if it has one."""

    num_samples: int
    rate: int
    input_rate: int
    id: str
    pool: NoisePool | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """
    Args:
        prob (`float`, *optional*, defaults to 1.0): Share of the recordings that the step is applied to.
    """

    prob: float = 1.0

    def __post_init__(self):
        low_high("prob", self.prob, 0, 1)
        self.check()

    def check(self) -> None:
        """Refuses values that make no sense."""

    def draw(self, rng: np.random.Generator, place: Place) -> dict:
        """The parameters for one recording."""
        return {}

    def apply(self, wave: np.ndarray, rate: int, drawn: Mapping, pool: NoisePool | None) -> np.ndarray:
        """(N,) float32 -> (N,) float32; the input is not changed."""
        raise NotImplementedError

    def rate_after(self, rate: int, input_rate: int) -> int:
        return rate


@dataclass(frozen=True, kw_only=True)
class Resample(Step):
    """
    Another sampling rate (soxr, high quality: flat to 91 % of the lower Nyquist frequency).

    Args:
        rate (`int` or `str`, *optional*, defaults to 8000): Hz, or `"input"`, the rate of the recording as it came.
    """

    rate: int | str = LINE_RATE

    def check(self):
        if self.prob != 1:
            raise ValueError("`prob` has no effect on `resample`; leave it out.")
        if self.rate != "input" and (not isinstance(self.rate, int) or self.rate < 1000):
            raise ValueError(f'`rate` is {self.rate!r}; give Hz, 1000 or more, or "input".')

    def rate_after(self, rate: int, input_rate: int) -> int:
        return input_rate if self.rate == "input" else self.rate

    @staticmethod
    def num_samples_after(num_samples: int, rate: int, new_rate: int) -> int:
        return max(1, (num_samples * new_rate + rate // 2) // rate)

    def draw(self, rng, place):
        return {"rate": self.rate_after(place.rate, place.input_rate)}

    def apply(self, wave, rate, drawn, pool):
        return resample_to(wave, rate, drawn["rate"], self.num_samples_after(len(wave), rate, drawn["rate"]))


def resample_to(wave: np.ndarray, rate: int, new_rate: int, num_samples: int) -> np.ndarray:
    """Resamples to exactly this many samples."""
    if new_rate != rate:
        wave = soxr.resample(wave, rate, new_rate, quality="HQ")
    return wave[:num_samples] if len(wave) >= num_samples else np.pad(wave, (0, num_samples - len(wave)))


@dataclass(frozen=True, kw_only=True)
class Codec(Step):
    """
    One of several codecs, drawn for each recording. Only at 8 kHz.

    Args:
        names (`list[str]`, *optional*, defaults to `["g711_a", "g711_mu"]`): Of `nest_hf.data.codecs.CODECS`.
    """

    names: list[str] = field(default_factory=lambda: ["g711_a", "g711_mu"])

    def check(self):
        unknown = [name for name in self.names if name not in CODECS]
        if unknown or not self.names:
            raise ValueError(f"`names` is {self.names}; choose from {', '.join(CODECS)}.")

    def draw(self, rng, place):
        if place.rate != LINE_RATE:
            raise ValueError(f"`codec` stands at {place.rate} Hz; put `resample: {{rate: {LINE_RATE}}}` before it.")
        return {"name": self.names[int(rng.integers(len(self.names)))]}

    def apply(self, wave, rate, drawn, pool):
        return to_float32(transcode(to_int16(wave), drawn["name"]))


@dataclass(frozen=True, kw_only=True)
class BandPass(Step):
    """
    The band of a telephone line: an elliptic high-pass and low-pass of the lowest order that keeps within `ripple_db`
    from `low_hz` to `high_hz` and is `stop_db` down below `low_stop_hz` and above `high_stop_hz`.

    Args:
        low_hz, high_hz (`float`, *optional*, default to 300.0 and 3400.0): The band.
        low_stop_hz, high_stop_hz (`float`, *optional*, default to 100.0 and 3900.0): Where it ends.
        ripple_db (`float`, *optional*, defaults to 0.5), stop_db (`float`, *optional*, defaults to 35.0): See above.
    """

    low_hz: float = 300.0
    high_hz: float = 3400.0
    low_stop_hz: float = 100.0
    high_stop_hz: float = 3900.0
    ripple_db: float = 0.5
    stop_db: float = 35.0

    def check(self):
        edges = [0, self.low_stop_hz, self.low_hz, self.high_hz, self.high_stop_hz]
        if edges != sorted(set(edges)):
            raise ValueError(f"the edges of `band_pass` are {edges[1:]} Hz; give them in rising order.")
        if not 0 < self.ripple_db < self.stop_db:
            raise ValueError(f"`ripple_db` is {self.ripple_db} and `stop_db` {self.stop_db}; the second is larger.")

    def draw(self, rng, place):
        if place.rate <= 2 * self.high_stop_hz:
            raise ValueError(f"`band_pass` to {self.high_stop_hz} Hz stands at {place.rate} Hz; it needs more.")
        return {}

    def apply(self, wave, rate, drawn, pool):
        from scipy.signal import sosfilt

        return sosfilt(self.sections(rate), wave).astype(np.float32)

    def sections(self, rate: int) -> np.ndarray:
        """The filter at a sampling rate, as second-order sections (sections, 6) for scipy."""
        return _elliptic_band(dataclasses.replace(self, prob=1.0), rate)


@lru_cache
def _elliptic_band(band: BandPass, rate: int) -> np.ndarray:
    """High-pass and low-pass together, so that their odd poles share a section."""
    from scipy.signal import ellip, ellipord, zpk2sos

    zeros, poles, gain = [], [], 1.0
    for edge, stop, kind in ((band.low_hz, band.low_stop_hz, "high"), (band.high_hz, band.high_stop_hz, "low")):
        order, edge = ellipord(edge, stop, band.ripple_db / 2, band.stop_db, fs=rate)
        z, p, k = ellip(order, band.ripple_db / 2, band.stop_db, edge, kind, fs=rate, output="zpk")
        zeros, poles, gain = [*zeros, *z], [*poles, *p], gain * k
    return zpk2sos(zeros, poles, gain)


@dataclass(frozen=True, kw_only=True)
class PacketLoss(Step):
    """
    Lost packets, and what the receiver plays in their place.

    Args:
        rate (`list[float]`, *optional*, defaults to `[0.01, 0.02]`): Range of the share of packets that are lost.
        packet_ms (`float`, *optional*, defaults to 20.0): Milliseconds of speech in a packet.
        mean_burst (`float`, *optional*):
            Mean number of packets lost in a row (Gilbert-Elliott); by default every loss is independent.
        loss_in_burst (`float`, *optional*, defaults to 1.0): Probability that a packet of a burst is lost.
        concealment (`str`, *optional*, defaults to `"silence"`): `"silence"`, `"repeat"` or `"pitch"`; see `conceal`.
        fade (`float`, *optional*, defaults to 0.7): Loudness of each repetition relative to the one before.
    """

    rate: Range = field(default_factory=lambda: [0.01, 0.02])
    packet_ms: float = 20.0
    mean_burst: float | None = None
    loss_in_burst: float = 1.0
    concealment: str = "silence"
    fade: float = 0.7

    def check(self):
        low_high("fade", self.fade, 0, 1)
        low_high("packet_ms", self.packet_ms, 1, 1000)
        if self.mean_burst is not None:
            low_high("mean_burst", self.mean_burst, 1)
            low_high("rate", self.rate, 0, self.loss_in_burst * 0.99)
        elif self.loss_in_burst != 1:
            raise ValueError("`loss_in_burst` has no effect without `mean_burst`; give both.")
        low_high("rate", self.rate, 0, 1)
        if not 0 < self.loss_in_burst <= 1:
            raise ValueError(f"`loss_in_burst` is {self.loss_in_burst}; give a probability above 0.")
        if self.concealment not in CONCEALMENTS:
            raise ValueError(f"`concealment` is {self.concealment!r}; choose one of {', '.join(CONCEALMENTS)}.")

    def draw(self, rng, place):
        rate = draw_between(rng, low_high("rate", self.rate))
        num_packets = -(-place.num_samples // self._packet_size(place.rate))
        options = {"mean_burst": self.mean_burst, "loss_in_burst": self.loss_in_burst}
        return {"rate": rate, "lost": np.flatnonzero(draw_losses(num_packets, rate, rng, **options)).tolist()}

    def apply(self, wave, rate, drawn, pool):
        size = self._packet_size(rate)
        options = {"method": self.concealment, "fade": self.fade}
        return conceal(wave, np.array(drawn["lost"], np.int64), packet_size=size, sampling_rate=rate, **options)

    def _packet_size(self, rate: int) -> int:
        return max(1, round(self.packet_ms * rate / 1000))


@dataclass(frozen=True, kw_only=True)
class Level(Step):
    """
    How loud the call is.

    Args:
        active_dbov (`list[float]`, *optional*, defaults to `[-36.0, -16.0]`):
            Range of the level of active speech, in dB relative to full scale (ITU-T P.56).
    """

    active_dbov: Range = field(default_factory=lambda: [-36.0, -16.0])

    def check(self):
        low_high("active_dbov", self.active_dbov, -100, 0)

    def draw(self, rng, place):
        return {"active_dbov": draw_between(rng, low_high("active_dbov", self.active_dbov))}

    def apply(self, wave, rate, drawn, pool):
        level = active_level_dbov(wave, rate)
        return wave if level == -np.inf else wave * np.float32(10 ** ((drawn["active_dbov"] - level) / 20))


@dataclass(frozen=True, kw_only=True)
class Hum(Step):
    """
    Hum of the mains: a tone and its harmonics, each half as loud as the one before.

    Args:
        frequency_hz (`list[float]`, *optional*, defaults to `[49.9, 50.1]`): Range of the mains' frequency.
        num_harmonics (`int`, *optional*, defaults to 10): Tones.
        snr_db (`list[float]`, *optional*, defaults to `[20.0, 40.0]`): Range of active speech over hum.
    """

    frequency_hz: Range = field(default_factory=lambda: [49.9, 50.1])
    num_harmonics: int = 10
    snr_db: Range = field(default_factory=lambda: [20.0, 40.0])

    def check(self):
        low_high("frequency_hz", self.frequency_hz, 1, 1000)
        low_high("num_harmonics", self.num_harmonics, 1, 100)
        low_high("snr_db", self.snr_db, -100, 100)

    def draw(self, rng, place):
        return {
            "frequency_hz": draw_between(rng, low_high("frequency_hz", self.frequency_hz)),
            "phases": rng.uniform(0, 2 * np.pi, self.num_harmonics).tolist(),
            "snr_db": draw_between(rng, low_high("snr_db", self.snr_db)),
        }

    def apply(self, wave, rate, drawn, pool):
        turns = drawn["frequency_hz"] / rate * np.arange(len(wave))
        hum = np.zeros(len(wave), np.float32)
        for number, phase in enumerate(drawn["phases"], 1):
            if number * drawn["frequency_hz"] < rate / 2:
                angle = (number * turns % 1 * 2 * np.pi + phase).astype(np.float32)
                hum += np.sin(angle) * np.float32(0.5 ** (number - 1))
        return wave + hum * np.float32(noise_gain(wave, hum, rate, drawn["snr_db"]))


@dataclass(frozen=True, kw_only=True)
class Babble(Step):
    """
    Other people talking: the sum of other utterances, equally loud, never the utterance itself.

    Args:
        num_talkers (`list[int]`, *optional*, defaults to `[3, 8]`): Range of their number.
        snr_db (`list[float]`, *optional*, defaults to `[10.0, 25.0]`):
            Range of the ratio of speech to babble, both measured while there is speech.
    """

    num_talkers: list[int] | int = field(default_factory=lambda: [3, 8])
    snr_db: Range = field(default_factory=lambda: [10.0, 25.0])

    def check(self):
        low_high("num_talkers", self.num_talkers, 1)
        low_high("snr_db", self.snr_db, -100, 100)

    def draw(self, rng, place):
        low, high = low_high("num_talkers", self.num_talkers)
        count = int(rng.integers(low, high + 1))
        snr_db = draw_between(rng, low_high("snr_db", self.snr_db))
        waves = place.pool.waves(place.rate)
        others = [talker for talker in waves if talker != place.id]
        if not others:
            raise ValueError(f"`babble` has no utterance but {place.id!r} itself; give more (`with_noise`).")
        chosen = [others[index] for index in rng.choice(len(others), min(count, len(others)), replace=False)]
        return {
            "snr_db": snr_db,
            "talkers": [{"id": talker, "offset": int(rng.integers(len(waves[talker])))} for talker in chosen],
        }

    def apply(self, wave, rate, drawn, pool):
        waves = pool.waves(rate)
        babble = np.zeros(len(wave), np.float32)
        for talker in drawn["talkers"]:
            add_repeated(babble, waves[talker["id"]], talker["offset"])
        return wave + babble * np.float32(noise_gain(wave, babble, rate, drawn["snr_db"]))


def add_repeated(out: np.ndarray, source: np.ndarray, offset: int) -> None:
    """Adds `source`, from `offset` on and over again, to all of `out`."""
    done = 0
    while done < len(out):
        piece = source[offset : offset + len(out) - done]
        out[done : done + len(piece)] += piece
        done, offset = done + len(piece), 0


@dataclass(frozen=True, kw_only=True)
class Noise(Step):
    """
    One recording of a noise data set.

    Args:
        snr_db (`list[float]`, *optional*, defaults to `[10.0, 25.0]`): As for `babble`.
    """

    snr_db: Range = field(default_factory=lambda: [10.0, 25.0])

    def check(self):
        low_high("snr_db", self.snr_db, -100, 100)

    def draw(self, rng, place):
        waves = place.pool.waves(place.rate)
        chosen = list(waves)[int(rng.integers(len(waves)))]
        snr_db = draw_between(rng, low_high("snr_db", self.snr_db))
        return {"snr_db": snr_db, "id": chosen, "offset": int(rng.integers(len(waves[chosen])))}

    def apply(self, wave, rate, drawn, pool):
        noise = np.zeros(len(wave), np.float32)
        add_repeated(noise, pool.waves(rate)[drawn["id"]], drawn["offset"])
        return wave + noise * np.float32(noise_gain(wave, noise, rate, drawn["snr_db"]))


@dataclass(frozen=True, kw_only=True)
class Reverb(Step):
    """A room: convolution with one of the impulse responses supplied. The direct sound stays in place and as loud."""

    def draw(self, rng, place):
        waves = place.pool.waves(place.rate)
        return {"id": list(waves)[int(rng.integers(len(waves)))]}

    def apply(self, wave, rate, drawn, pool):
        from scipy.signal import oaconvolve

        response = pool.waves(rate)[drawn["id"]]
        direct = int(np.argmax(np.abs(response)))
        wet = oaconvolve(wave, response / response[direct])[direct : direct + len(wave)]
        return wet.astype(np.float32)


STEPS: dict[str, type[Step]] = {
    "resample": Resample,
    "codec": Codec,
    "band_pass": BandPass,
    "packet_loss": PacketLoss,
    "level": Level,
    "hum": Hum,
    "babble": Babble,
    "noise": Noise,
    "reverb": Reverb,
}
# What the steps that mix in other recordings take them from: the argument of `TelephoneChannel.with_noise`.
POOLED: dict[str, str] = {"babble": "talkers", "noise": "noise", "reverb": "impulse_responses"}
