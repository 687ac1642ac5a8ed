"""Guards against what a language model writes that nobody said: text on silence, loops, answers without an end.

The CTC head hears the audio frame by frame and cannot loop, so it decides, and its text is the fallback.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .ctc_decoding import best_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardSettings:
    """
    When a text is not trusted.

    Args:
        min_silence_blank (`float`, *optional*, defaults to 0.9):
            Least mean blank probability of silence, in audio where the CTC head writes nothing.
        min_loop_excess (`int`, *optional*, defaults to 10):
            Characters by which a repetition exceeds twice the longest one of the same period in the CTC text, from
            which it is a loop.
        max_loop_period (`int`, *optional*, defaults to 40): Longest repeated phrase that is looked for, in characters.
        max_length_ratio (`float`, *optional*, defaults to 3.0), length_slack (`int`, *optional*, defaults to 12):
            A text longer than `max_length_ratio` x the CTC text + `length_slack` characters is not from the audio.
    """

    min_silence_blank: float = 0.9
    min_loop_excess: int = 10
    max_loop_period: int = 40
    max_length_ratio: float = 3.0
    length_slack: int = 12


@dataclass(frozen=True)
class BlankStatistics:
    """
    How much of an utterance the CTC head takes for silence.

    Attributes:
        share (`float`): Share of frames whose most probable class is the blank; 1 without frames.
        mean (`float`): Mean probability of the blank; 1 without frames.
    """

    share: float
    mean: float


@dataclass(frozen=True)
class GuardDecision:
    """
    The text of an utterance, and why it is this one.

    Attributes:
        text (`str`): The text to use.
        source (`str`): `"lm"`, `"ctc"`, or `"empty"`.
        reason (`str`):
            `"ok"`; `"silence"`: the CTC head hears nothing; `"loop"`: a repetition that it does not hear;
            `"no end"`: the language model was cut off at `max_new_tokens`; `"too long"`: far more text than it hears.
        lm_text, ctc_text (`str`): Both texts.
        blank_share, blank_mean (`float`): See [`BlankStatistics`].
        loop_period, loop_length (`int`): Period and length in characters of the language model's longest repetition.
        ctc_loop_length (`int`): Length of the longest repetition of this period in the CTC text.
        num_tokens, max_new_tokens (`int`, *optional*): Tokens generated, the end token not counted, and their limit.
    """

    text: str
    source: str
    reason: str
    lm_text: str
    ctc_text: str
    blank_share: float
    blank_mean: float
    loop_period: int
    loop_length: int
    ctc_loop_length: int
    num_tokens: int | None
    max_new_tokens: int | None

    def to_dict(self) -> dict:
        """The record as JSON takes it."""
        return dataclasses.asdict(self)


def guard_text(
    lm_text: str,
    ctc_text: str,
    blank: BlankStatistics,
    *,
    num_tokens: int | None = None,
    max_new_tokens: int | None = None,
    settings: GuardSettings | None = None,
    warn: bool = True,
) -> GuardDecision:
    """
    Decides between the language model's text, the CTC text and none.

    A repetition counts as a loop only if the CTC text has none of this period that is half as long: 哈哈哈哈, 谢谢谢谢
    or the digits 88888888 stay where they are heard, in whatever script the CTC head writes them.

    Args:
        lm_text, ctc_text (`str`): What the language model and the CTC head write.
        blank ([`BlankStatistics`]): From [`blank_statistics`].
        num_tokens, max_new_tokens (`int`, *optional*):
            Tokens generated, the end token not counted, and their limit. Where all of the limit is used, the text has
            no end: a warning is logged, and the CTC text used.
        settings ([`GuardSettings`], *optional*): Thresholds.
        warn (`bool`, *optional*, defaults to `True`): `False` where the caller counts the texts without an end.
    """
    settings = settings or GuardSettings()
    period, length = longest_repetition(lm_text, settings.max_loop_period)
    ctc_length = repetition_length(ctc_text, period) if period else 0
    cut_off = num_tokens is not None and max_new_tokens is not None and num_tokens >= max_new_tokens
    if is_silence(ctc_text, blank, settings):
        source, reason = "empty", "silence"
    elif length >= 2 * ctc_length + settings.min_loop_excess:
        source, reason = "ctc", "loop"
    elif cut_off:
        source, reason = "ctc", "no end"
    elif len(lm_text) > settings.max_length_ratio * len(ctc_text) + settings.length_slack:
        source, reason = "ctc", "too long"
    else:
        source, reason = "lm", "ok"
    if cut_off and warn:
        logger.warning(
            "a text was cut off at `max_new_tokens` %d (%s: %r ...); if real speech was cut, raise `tokens_per_s`.",
            max_new_tokens, reason, lm_text[:20],
        )  # fmt: skip
    return GuardDecision(
        text={"lm": lm_text, "ctc": ctc_text, "empty": ""}[source],
        source=source,
        reason=reason,
        lm_text=lm_text,
        ctc_text=ctc_text,
        blank_share=blank.share,
        blank_mean=blank.mean,
        loop_period=period,
        loop_length=length,
        ctc_loop_length=ctc_length,
        num_tokens=num_tokens,
        max_new_tokens=max_new_tokens,
    )


def is_silence(ctc_text: str, blank: BlankStatistics, settings: GuardSettings) -> bool:
    """Whether the CTC head hears nothing, so that the language model need not be asked."""
    return not ctc_text.strip() and blank.mean >= settings.min_silence_blank


def blank_statistics(
    log_probs: torch.Tensor, lengths: torch.Tensor | None = None, *, blank_id: int
) -> list[BlankStatistics]:
    """`(B, T, V)` log-probabilities, `(B,)` valid frames -> one [`BlankStatistics`] per utterance."""
    path = best_path(log_probs, lengths, blank_id=blank_id)
    valid = torch.arange(path.ids.shape[1], device=path.ids.device) < path.lengths[:, None]
    count = path.lengths.clamp_min(1)
    shares = ((path.ids == blank_id) & valid).sum(1) / count
    means = log_probs[..., blank_id].float().exp().masked_fill(~valid, 0.0).sum(1) / count
    silent = path.lengths == 0
    rows = torch.stack([shares, means]).masked_fill(silent, 1.0).T.tolist()
    return [BlankStatistics(round(share, 4), round(mean, 4)) for share, mean in rows]


def longest_repetition(text: Sequence, max_period: int = 40) -> tuple[int, int]:
    """
    The longest stretch of `text` (a string, or token ids) in which a unit follows itself.

    Returns:
        `(period, length)` of the stretch; the shortest period of equally long ones. `(0, 0)` without a repetition.
    """
    codes = _codes(text)
    lengths = [_stretch(codes, period) for period in range(1, min(max_period, len(codes) // 2) + 1)]
    if not lengths or max(lengths) == 0:
        return 0, 0
    length = max(lengths)
    return lengths.index(length) + 1, length


def repetition_length(text: Sequence, period: int) -> int:
    """Length of the longest stretch of `text` that repeats with `period`; 0 where no unit follows itself."""
    return _stretch(_codes(text), period)


def _codes(text: Sequence) -> np.ndarray:
    return np.array([ord(character) for character in text] if isinstance(text, str) else text, dtype=np.int64)


def _stretch(codes: np.ndarray, period: int) -> int:
    """The longest run of positions that equal the one `period` before, plus the unit in front."""
    equal = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
    edges = np.flatnonzero(equal[1:] != equal[:-1])
    run = int((edges[1::2] - edges[::2]).max(initial=0))
    return run + period if run >= period else 0


def max_new_tokens(
    duration_s: float | Sequence[float], *, tokens_per_s: float = 12.0, extra: int = 16, limit: int = 1024
) -> int:
    """
    Room for what can be said in `duration_s`, so that a loop ends early.

    Args:
        duration_s (`float` or `Sequence[float]`): Seconds of audio; of a batch the longest counts.
        tokens_per_s (`float`, *optional*, defaults to 12.0):
            Fastest speech in tokens of the language model. Mandarin reaches 9 syllables per second, a token of Qwen
            holds 1-2 characters but each digit is one; 12 leaves a third. See [`tokens_per_second`].
        extra (`int`, *optional*, defaults to 16): For punctuation, language tags and the end token.
        limit (`int`, *optional*, defaults to 1024): The largest result.
    """
    durations = np.asarray(duration_s, dtype=np.float64)
    if not (np.isfinite(durations) & (durations >= 0)).all():
        raise ValueError(f"`duration_s` is {duration_s}; pass finite seconds of audio.")
    if tokens_per_s <= 0 or extra < 1:
        raise ValueError(f"`tokens_per_s` {tokens_per_s} must be positive and `extra` {extra} at least 1.")
    return min(limit, math.ceil(durations.max(initial=0.0) * tokens_per_s) + extra)


def tokens_per_second(
    texts: Sequence[str], durations_s: Sequence[float], tokenizer, *, quantile: float = 0.999, headroom: float = 1.5
) -> float:
    """
    The fastest speech of a data set in a tokenizer's tokens, for [`max_new_tokens`].

    Args:
        texts (`Sequence[str]`), durations_s (`Sequence[float]`): Transcripts and the seconds of their audio.
        tokenizer: The language model's.
        quantile (`float`, *optional*, defaults to 0.999): Of the utterances; the rest are wrong transcripts.
        headroom (`float`, *optional*, defaults to 1.5): Factor on the result.
    """
    if not len(texts) or len(texts) != len(durations_s) or min(durations_s) <= 0:
        raise ValueError(f"pass as many `durations_s` above 0 as `texts`, not {len(durations_s)} and {len(texts)}.")
    counts = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    return headroom * float(np.quantile(np.array(counts) / np.asarray(durations_s), quantile))


__all__ = [
    "BlankStatistics",
    "GuardDecision",
    "GuardSettings",
    "blank_statistics",
    "guard_text",
    "is_silence",
    "longest_repetition",
    "max_new_tokens",
    "repetition_length",
    "tokens_per_second",
]
