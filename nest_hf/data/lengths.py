"""How long a row is, in the units that a batch's budget may be declared in."""

from collections.abc import Callable, Sequence

import datasets
import numpy as np

from ..configuration_nest_asr import num_encoder_frames

UNITS = ("seconds", "mel_frames", "encoder_frames", "llm_tokens", "frames_and_tokens")


def row_lengths(
    rows: datasets.Dataset,
    unit: str = "seconds",
    *,
    subsampling_factor: int = 8,
    num_audio_tokens: Callable[[np.ndarray], np.ndarray] | None = None,
    prompt_tokens: int | Sequence[int] = 0,
    target_tokens: Sequence[int] | None = None,
    tokenize: Callable[[list[str]], list[list[int]]] | None = None,
) -> np.ndarray:
    """
    The length of every row, for [`TokenBudgetBatchSampler`].

    Args:
        rows (`datasets.Dataset`): From [`load_speech_dataset`], with `duration` in seconds.
        unit (`str`, *optional*, defaults to `"seconds"`):
            `seconds`; `mel_frames` of 10 ms, 100 to the second; `encoder_frames`, after the subsampling;
            `llm_tokens`: prompt, audio and target, as the language model reads them; or `frames_and_tokens`: mel
            frames of 10 ms and the target's tokens, as FunASR's token batches count.
        subsampling_factor (`int`, *optional*, defaults to 8): Mel frames per encoder frame, for `encoder_frames`.
        num_audio_tokens (`Callable`, *optional*):
            From mel frames to placeholders, for `llm_tokens`: `NestAsrConfig.num_audio_tokens`.
        prompt_tokens (`int` or `Sequence[int]`, *optional*, defaults to 0):
            For `llm_tokens`, tokens of the template around audio and target, of all rows or of each.
        target_tokens (`Sequence[int]`, *optional*):
            For `llm_tokens` and `frames_and_tokens`, tokens of each row's text, already counted.
        tokenize (`Callable`, *optional*):
            In place of `target_tokens`: from texts to their tokens,
            `lambda texts: tokenizer(texts, add_special_tokens=False).input_ids`.

    Returns:
        `np.ndarray` of shape `(rows,)`: float64.

    Raises:
        ValueError: for another unit, a row without duration, or counts that are missing or have no effect.

    Example:

    ```python
    lengths = row_lengths(rows, "llm_tokens", num_audio_tokens=config.num_audio_tokens, prompt_tokens=20, tokenize=f)
    sampler = TokenBudgetBatchSampler(lengths, budget=4000, max_length=1000, unit="llm_tokens", ids=rows["id"])
    ```
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` is {unit!r}; choose one of {', '.join(UNITS)}.")
    durations = np.array(rows["duration"][:], dtype=np.float64)
    if missing := int(np.isnan(durations).sum()):
        raise ValueError(f"{missing} of {len(durations)} rows have no `duration`; load them with `need_duration`.")
    no_effect = {"num_audio_tokens": num_audio_tokens} if unit != "llm_tokens" else {}
    if unit not in ("llm_tokens", "frames_and_tokens"):
        no_effect.update(target_tokens=target_tokens, tokenize=tokenize)
    for name, value in no_effect.items():
        if value is not None:
            raise ValueError(f"`{name}` has no effect on {unit}; leave it out.")
    if unit == "seconds":
        return durations
    frames = mel_frames(durations)
    if unit == "mel_frames":
        return frames.astype(np.float64)
    if unit == "encoder_frames":
        return num_encoder_frames(frames, subsampling_factor).astype(np.float64)
    if unit == "llm_tokens" and num_audio_tokens is None:
        raise ValueError("`llm_tokens` needs `num_audio_tokens`.")
    if (target_tokens is None) == (tokenize is None):
        raise ValueError(f"`{unit}` needs either `target_tokens` or `tokenize`.")
    target_tokens = np.asarray(_count_tokens(rows, tokenize) if target_tokens is None else target_tokens)
    if len(target_tokens) != len(frames):
        raise ValueError(f"`target_tokens` has {len(target_tokens)} counts for {len(frames)} rows; give one per row.")
    if unit == "frames_and_tokens":
        return np.sum([frames, target_tokens], axis=0, dtype=np.float64)
    prompt_tokens = np.broadcast_to(prompt_tokens, frames.shape)
    return np.sum([num_audio_tokens(frames), target_tokens, prompt_tokens], axis=0, dtype=np.float64)


def mel_frames(durations_s: np.ndarray) -> np.ndarray:
    """Valid frames of 10 ms, as [`NestFeatureExtractor`] counts them: whole hops of a recording's whole samples."""
    samples = np.floor(np.asarray(durations_s) * 16000 + 1e-6).astype(np.int64)  # 0.29 s are 29 frames
    return samples // 160


def _count_tokens(rows: datasets.Dataset, tokenize: Callable[[list[str]], list[list[int]]]) -> np.ndarray:
    counts = [
        len(tokens)
        for start in range(0, len(rows), 10_000)
        for tokens in tokenize([text or "" for text in rows["text"][start : start + 10_000]])
    ]
    return np.array(counts, dtype=np.int64)
