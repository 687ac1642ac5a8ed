"""`DecodingSettings`: how audio becomes text."""

from dataclasses import dataclass, replace

from .guards import GuardSettings

MODES = ("lm", "ctc")
LONG_AUDIO = ("pauses", "windows", "vad")
MAX_WINDOW_S, MAX_OVERLAP_S = 30.0, 4.0  # where nothing else is known


@dataclass(frozen=True)
class DecodingSettings:
    """
    How audio becomes text.

    Args:
        mode (`str`, *optional*, defaults to `"lm"`):
            `"lm"`: by the language model; `"ctc"`: by the CTC head alone, which is fast.
        num_beams (`int`, *optional*, defaults to 1): Beams of the language model; 1 is greedy.
        ctc_beam_size (`int`, *optional*, defaults to 1): Prefixes of the CTC beam search; 1 is the best path.
        ctc_weight (`float`, *optional*, defaults to 0.0):
            With more than 0, both heads choose among the beams of the language model, the `ctc_beam_size` best texts
            of CTC, and the best of each with a hotword where CTC admits it: by
            `(1 - ctc_weight) log p_LM + ctc_weight log p_CTC`. What the CTC head cannot write, it does not judge.
        hotword_bonus (`float`, *optional*, defaults to 1.5):
            Nats for each character of a hotword in a text among which is chosen. By CTC alone the choice is among its
            own texts, where there are hotwords.
        guard ([`~guards.GuardSettings`], *optional*, defaults to `GuardSettings()`):
            When the CTC head overrules the language model; None: never.
        tokens_per_s (`float`, *optional*, defaults to 12.0): Fastest speech, see [`~guards.max_new_tokens`].
        hotwords_in_prompt (`bool`, *optional*, defaults to `True`):
            Whether prompts name the hotwords that may have been said. `False` for a language model that saw none in
            training, which they only confuse; with `ctc_weight` they still count.
        max_hotwords (`int`, *optional*, defaults to 20): Most hotwords of a recording.
        hotword_threshold (`float`, *optional*, defaults to -2.0): See [`~hotwords.HotwordFilter`].
        long_audio (`str`, *optional*):
            How a recording longer than `max_window_s` is divided: into overlapping `"windows"`; at `"pauses"` that CTC
            finds in such windows; or by voice activity, `"vad"`, for which silero-vad is needed. By default at pauses
            for the language model, in windows for CTC alone.
        max_window_s (`float`, *optional*):
            Longest audio that is decoded in one piece. By default 30 s, for a language model `config.max_audio_s`
            where that is known.
        overlap_s (`float`, *optional*):
            Seconds that neighbouring windows share: 4 s by default, and a third of `max_window_s` at most.
        batch_duration_s (`float`, *optional*, defaults to 160.0):
            Seconds of a batch, padding included. With a language model each recording counts 4 s more for its prompt,
            and once for every beam: a second is at most 25 tokens in the cache, of Qwen3-0.6B in bfloat16 3 MB.

    Example:

    ```python
    >>> from nest_hf import DecodingSettings

    >>> settings = DecodingSettings(num_beams=4, long_audio="vad")
    >>> DecodingSettings(mode="fast")
    Traceback (most recent call last):
        ...
    ValueError: `mode` is 'fast'; choose one of lm, ctc.

    ```
    """

    mode: str = "lm"
    num_beams: int = 1
    ctc_beam_size: int = 1
    ctc_weight: float = 0.0
    hotword_bonus: float = 1.5
    guard: GuardSettings | None = GuardSettings()
    tokens_per_s: float = 12.0
    hotwords_in_prompt: bool = True
    max_hotwords: int = 20
    hotword_threshold: float = -2.0
    long_audio: str | None = None
    max_window_s: float | None = None
    overlap_s: float | None = None
    batch_duration_s: float = 160.0

    def __post_init__(self):
        if self.long_audio is None:
            object.__setattr__(self, "long_audio", "windows" if self.mode == "ctc" else "pauses")
        for name, choices in (("mode", MODES), ("long_audio", LONG_AUDIO)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name in ("num_beams", "ctc_beam_size", "max_hotwords"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be 1 or more.")
        for name in ("tokens_per_s", "max_window_s", "overlap_s", "batch_duration_s"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        if None not in (self.overlap_s, self.max_window_s) and self.overlap_s > self.max_window_s / 2:
            raise ValueError(
                f"`overlap_s` is {self.overlap_s:g} and `max_window_s` {self.max_window_s:g}; windows may share half "
                "of their length at most."
            )
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"`ctc_weight` is {self.ctc_weight}; it must lie between 0 and 1.")
        if not 0 <= self.hotword_bonus < float("inf"):
            raise ValueError(f"`hotword_bonus` is {self.hotword_bonus}; it must be 0 or more.")
        for name, default in (("num_beams", 1), ("ctc_weight", 0.0)):
            if self.mode == "ctc" and getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but `mode` 'ctc' runs no language model; leave it out."
                )

    def for_model(self, config) -> "DecodingSettings":
        """The same with lengths in place of those that were left open, for a model of this `config`."""
        max_window_s, overlap_s = self.max_window_s, self.overlap_s
        if max_window_s is None:
            max_window_s = (self.mode == "lm" and getattr(config, "max_audio_s", None)) or MAX_WINDOW_S
        if overlap_s is None:
            overlap_s = min(MAX_OVERLAP_S, max_window_s / 3)
        return replace(self, max_window_s=max_window_s, overlap_s=overlap_s)


__all__ = ["DecodingSettings"]
