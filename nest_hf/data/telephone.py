"""The telephone channel: wideband recordings become what the other end of a call hears.

Each example draws its parameters from (seed, epoch, id) into a [`ChannelDraw`]; applying a draw is a pure function.
The result lies on 16-bit values, so that a FLAC file and the samples in memory are the same bits.
"""

import copy
import json
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import yaml

from ..parsing import check_keys, of_type
from .audio import decode_audio
from .audio_encoding import encode_audio
from .codecs import g711, on_16_bits
from .noise_pool import NoisePool
from .seeding import generator_of
from .telephone_steps import POOLED, STEPS, Place, Step

DOWN, UP = {"resample": {"rate": 8000}}, {"resample": {"rate": "input"}}
SINGLE_EFFECTS = ("codec", "band_pass", "packet_loss", "level", "hum", "babble", "noise", "reverb")

# name -> steps, each {name: parameters}
PRESETS: dict[str, list[dict[str, dict]]] = {
    # 16 -> 8 kHz, G.711, 300-3400 Hz, frame loss, babble, 8 -> 16 kHz
    "seed_order": [DOWN, {"codec": {}}, {"band_pass": {}}, {"packet_loss": {}}, {"babble": {}}, UP],
    # what a line does: noise at the microphone, the line's band, its codec, lost packets that the receiver conceals
    "physical": [
        {"babble": {}},
        {"level": {}},
        {"band_pass": {}},
        DOWN,
        {"codec": {}},
        {"packet_loss": {"mean_burst": 2.0, "concealment": "pitch"}},
        UP,
    ],
    "clean_8k": [DOWN, UP],
    # recordings of real calls: nothing but the resampling to the model's rate, which decoding does
    "real_8k": [],
    # each effect alone, on a line of 8 kHz; `clean_8k` is what to compare them with
    **{f"only_{name}": [DOWN, {name: {}}, UP] for name in SINGLE_EFFECTS},
}


@dataclass(frozen=True)
class ChannelDraw:
    """
    All that was random about one recording's call.

    Args:
        id (`str`), seed (`int`), epoch (`int`): What it follows from.
        sampling_rate (`int`): Hz, of the recording.
        steps (`tuple[dict, ...]`):
            One for each step of the channel, in order: `{"step": name, ...}` with its parameters, or with `skipped`
            and the reason where the step was not applied.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data import TelephoneChannel

    >>> channel = TelephoneChannel.from_preset("only_codec")
    >>> _, draw = channel(np.zeros(1600, dtype=np.float32), sampling_rate=16000, seed=0, id="utt1", epoch=3)
    >>> draw.id, draw.epoch, draw.steps[0]["step"]
    ('utt1', 3, 'resample')

    ```
    """

    id: str
    seed: int
    epoch: int
    sampling_rate: int
    steps: tuple[dict, ...]

    def to_json(self) -> str:
        """One line, for a column of a data set."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ChannelDraw":
        values = json.loads(text)
        return cls(**{**values, "steps": tuple(values["steps"])})


class TelephoneChannel:
    """
    A list of steps that turn a recording into a telephone call.

    Args:
        steps (`Sequence[Mapping]`):
            `{name: parameters}` each, such as `{"babble": {"snr_db": [10, 25]}}`; names and parameters are those of
            the classes in `nest_hf.data.telephone_steps`, `configs/telephone.yaml` explains them.
        missing_noise (`str`, *optional*, defaults to `"error"`):
            What a step does that mixes in other recordings where [`~TelephoneChannel.with_noise`] gave none:
            `"error"` raises, `"skip"` leaves it out, which every draw then records.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data import TelephoneChannel

    >>> channel = TelephoneChannel.from_preset("only_codec")
    >>> wave = np.sin(np.arange(16000) / 10, dtype=np.float32)
    >>> phoned, draw = channel(wave, sampling_rate=16000, seed=0, id="utt1", epoch=0)
    >>> phoned.shape, [step["step"] for step in draw.steps]
    ((16000,), ['resample', 'codec', 'resample'])

    ```
    """

    def __init__(self, steps: Sequence[Mapping], *, missing_noise: str = "error"):
        if missing_noise not in ("error", "skip"):
            raise ValueError(f'`missing_noise` is {missing_noise!r}; choose "error" or "skip".')
        self.missing_noise = missing_noise
        self.steps: list[tuple[str, Step]] = [_make_step(step) for step in steps]
        self.pools: dict[str, NoisePool] = {}
        rates = [step.rate for name, step in self.steps if name == "resample"]
        if rates and rates[-1] != "input":
            raise ValueError("the channel must end at the rate it began with: add `resample: {rate: input}`.")

    @classmethod
    def from_preset(cls, name: str, *, missing_noise: str = "error") -> "TelephoneChannel":
        """One of `PRESETS`: `seed_order`, `physical`, `clean_8k`, `real_8k`, or a single effect as `only_codec`."""
        check_keys({name: None}, list(PRESETS), "preset")
        return cls(PRESETS[name], missing_noise=missing_noise)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> "TelephoneChannel":
        """
        Reads `steps` or the name of a `preset`, and `missing_noise`.

        Raises:
            ValueError: if the file does not exist, or for an unknown key, step, parameter or type, with the closest
                known name.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; give the YAML of a channel, or one of {', '.join(PRESETS)}.")
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold `steps:` or `preset:`.")
        check_keys(values, ["steps", "preset", "missing_noise"], str(path))
        try:
            return cls.from_config(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_config(
        cls, *, steps: Sequence[Mapping] | None = None, preset: str | None = None, missing_noise: str = "error"
    ) -> "TelephoneChannel":
        """From the keys of a YAML: `steps`, or the name of a `preset`."""
        if (steps is None) == (preset is None):
            raise ValueError("give either `steps` (a YAML such as configs/telephone.yaml has them) or `preset`.")
        if preset is not None:
            return cls.from_preset(preset, missing_noise=missing_noise)
        if not isinstance(steps, list | tuple):
            raise ValueError(f"`steps` is {steps!r} where a list is due.")
        return cls(steps, missing_noise=missing_noise)

    def with_noise(
        self,
        talkers: Sequence[Mapping] | None = None,
        *,
        noise: Sequence[Mapping] | None = None,
        impulse_responses: Sequence[Mapping] | None = None,
        pool_s: float = 1200.0,
        seed: int = 0,
    ) -> "TelephoneChannel":
        """
        The same channel with recordings to mix in, from [`load_speech_dataset`].

        Args:
            talkers (`datasets.Dataset` or a sequence of rows, *optional*): Utterances for `babble`.
            noise (the same, *optional*): Noises for `noise`.
            impulse_responses (the same, *optional*): Responses of rooms for `reverb`.
            pool_s (`float`, *optional*, defaults to 1200.0):
                Seconds of each that are chosen, by seed and id, and held in memory; all data sets may be larger.
            seed (`int`, *optional*, defaults to 0): Seeds the choice.
        """
        channel = copy.copy(self)
        given = {"talkers": talkers, "noise": noise, "impulse_responses": impulse_responses}
        pools = {key: NoisePool(rows, pool_s=pool_s, seed=seed) for key, rows in given.items() if rows is not None}
        channel.pools = {**self.pools, **pools}
        return channel

    def missing(self) -> list[str]:
        """Arguments of `with_noise` that the steps need and have not got."""
        needed = [POOLED[name] for name, _ in self.steps if name in POOLED]
        return [source for source in dict.fromkeys(needed) if source not in self.pools]

    def __call__(
        self, wave: np.ndarray, *, sampling_rate: int, seed: int = 0, id: str = "", epoch: int = 0
    ) -> tuple[np.ndarray, ChannelDraw]:
        """
        One recording through the channel.

        Args:
            wave (`np.ndarray` of shape `(N,)`): float32, full scale is 1; it is not changed.
            sampling_rate (`int`): Hz; any.
            seed (`int`), id (`str`), epoch (`int`): All randomness follows from these three.

        Returns:
            `tuple`: float32 of shape `(N,)` at the same rate, multiples of 1 / 32768, and the [`ChannelDraw`].

        Raises:
            ValueError: if the samples are not one channel of finite float32, or recordings to mix in are missing.
        """
        self._check(wave)
        draw = self.draw(len(wave), sampling_rate=sampling_rate, seed=seed, id=id, epoch=epoch)
        return self.apply(wave, draw), draw

    def draw(
        self, num_samples: int, *, sampling_rate: int, seed: int = 0, id: str = "", epoch: int = 0
    ) -> ChannelDraw:
        """The parameters for a recording of `num_samples` samples. A step's depend on no other step."""
        rate, drawn, count = sampling_rate, [], {}
        for name, step in self.steps:
            count[name] = count.get(name, 0) + 1
            rng = generator_of(seed, epoch, id, f"telephone {name} {count[name]}")
            pool = self.pools.get(POOLED.get(name, ""))
            if name in POOLED and pool is None:
                if self.missing_noise == "error":
                    raise ValueError(
                        f"`{name}` has no recordings to mix in; give them by `with_noise({POOLED[name]}=...)`, or set "
                        "`missing_noise: skip`."
                    )
                drawn.append({"step": name, "skipped": "nothing to mix in"})
            elif step.prob < 1 and rng.random() >= step.prob:
                drawn.append({"step": name, "skipped": "not drawn"})
            else:
                place = Place(num_samples, rate, sampling_rate, id, pool)
                drawn.append({"step": name, **step.draw(rng, place)})
            new_rate = step.rate_after(rate, sampling_rate)
            if new_rate != rate:
                num_samples, rate = step.num_samples_after(num_samples, rate, new_rate), new_rate
        return ChannelDraw(id, seed, epoch, sampling_rate, tuple(drawn))

    def apply(self, wave: np.ndarray, draw: ChannelDraw) -> np.ndarray:
        """What a draw makes of the recording that it was made for; (N,) -> (N,)."""
        rate, call = draw.sampling_rate, wave
        for (name, step), drawn in zip(self.steps, draw.steps, strict=True):
            if "skipped" in drawn:
                continue
            call = step.apply(call, rate, drawn, self.pools.get(POOLED.get(name, "")))
            rate = step.rate_after(rate, draw.sampling_rate)
        # resampling there and back may be off by a sample
        call = call[: len(wave)] if len(call) >= len(wave) else np.pad(call, (0, len(wave) - len(call)))
        return on_16_bits(call)

    @staticmethod
    def _check(wave: np.ndarray) -> None:
        if not isinstance(wave, np.ndarray) or wave.dtype != np.float32 or wave.ndim != 1:
            kind = f"{wave.dtype} of shape {wave.shape}" if isinstance(wave, np.ndarray) else type(wave).__name__
            raise ValueError(f"`wave` is {kind}; pass one channel as float32 of shape (samples,).")
        if not len(wave):
            raise ValueError("`wave` holds no samples; leave the recording out.")
        if not np.isfinite(wave).all():
            raise ValueError("`wave` holds NaN or infinite samples; leave the recording out.")

    def map_function(
        self,
        *,
        audio: str = "audio",
        id: str = "id",
        column: str = "channel",
        seed: int = 0,
        epoch: int = 0,
        sampling_rate: int = 16000,
        format: str = "flac",
    ) -> "ChannelMap":
        """
        A function for `dataset.map`, for any number of processes.

        Args:
            audio (`str`, *optional*, defaults to `"audio"`): Column with the recording, as [`decode_audio`] takes it.
            id (`str`, *optional*, defaults to `"id"`): Column that seeds the draw.
            column (`str`, *optional*, defaults to `"channel"`): Column to store the draw in, as JSON.
            seed (`int`), epoch (`int`): As in the call.
            sampling_rate (`int`, *optional*, defaults to 16000): Hz to decode to before the channel.
            format (`str`, *optional*, defaults to `"flac"`): Of the bytes in the column `audio`, or `"wav"`.

        Example:

        ```python
        dataset = dataset.map(channel.map_function(audio="audio", id="id"), num_proc=2)
        ```
        """
        return ChannelMap(self, audio, id, column, seed, epoch, sampling_rate, format)


@dataclass(frozen=True)
class ChannelMap:
    """From a row to a row, for `dataset.map`; see [`TelephoneChannel.map_function`]."""

    channel: TelephoneChannel
    audio: str
    id: str
    column: str
    seed: int
    epoch: int
    sampling_rate: int
    format: str

    def __call__(self, row: Mapping) -> dict:
        for name, key in (("audio", self.audio), ("id", self.id)):
            if key not in row:
                raise ValueError(f"`{name}` names the column `{key}`, but there are only {', '.join(row)}.")
        wave, draw = self.simulate(row)
        return {
            self.audio: {"bytes": encode_audio(wave, self.sampling_rate, format=self.format), "path": None},
            self.column: draw.to_json(),
            "offset": 0.0,
            "duration": len(wave) / self.sampling_rate,
        }

    def simulate(self, row: Mapping) -> tuple[np.ndarray, ChannelDraw]:
        """Decodes a row and sends it through the channel."""
        wave = decode_audio(
            row[self.audio],
            sampling_rate=self.sampling_rate,
            offset_s=row.get("offset") or 0.0,
            duration_s=row.get("duration"),
        ).samples
        return self.channel(wave, sampling_rate=self.sampling_rate, seed=self.seed, id=row[self.id], epoch=self.epoch)


def _make_step(given: Mapping) -> tuple[str, Step]:
    """`{name: parameters}` -> the step, with names and types checked."""
    if isinstance(given, str):
        given = {given: None}
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ValueError(f"a step is {given!r} where one `name: {{parameters}}` is due.")
    (name, parameters), *_ = given.items()
    check_keys({name: None}, list(STEPS), "steps")
    kinds = typing.get_type_hints(STEPS[name])
    if not isinstance(parameters or {}, Mapping):
        raise ValueError(f"step `{name}`: {parameters!r} where a mapping of parameters is due.")
    check_keys(parameters or {}, [field.name for field in fields(STEPS[name])], f"step `{name}`")
    values = {key: of_type(value, kinds[key], f"step `{name}`: `{key}`") for key, value in (parameters or {}).items()}
    return name, STEPS[name](**values)


__all__ = ["PRESETS", "ChannelDraw", "ChannelMap", "TelephoneChannel", "g711"]
