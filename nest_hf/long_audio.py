"""Long recordings in pieces: which samples make up which piece, and how their results become one.

Overlapping windows are joined inside their overlap, away from their edges, where an encoder lacks context: at a frame
that both take for a blank, so that no character is lost or doubled. A language model reads better what begins and ends
where speakers do: for it the CTC path of the windows, joined, shows the pauses at which the recording is cut. For
segments by voice activity see `nest_hf.vad`.

Dimensions: T frames of a window, V classes with the blank.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .timestamps import TimedText, is_spoken

# Blank frames on either side of a cut, beyond which a wider pause is no better: spikes move by a frame or two.
WIDEST_MARGIN = 3
EDGE_FRAMES = 4  # of a window, where an encoder lacks context
SAME_CHARACTER_S = 0.24  # how far apart two windows may place the same character
PAUSE_S = 0.2  # of quiet, at most, at the beginning and the end of a piece
QUIET = 1e-3  # of the power of speech


class Window(NamedTuple):
    """Samples `start` to `end` (exclusive) of a recording."""

    start: int
    end: int


def plan_windows(
    num_samples: int,
    *,
    sampling_rate: int = 16000,
    window_s: float = 20.0,
    overlap_s: float = 4.0,
    samples_per_frame: int = 1280,
) -> list[Window]:
    """
    Windows that cover a recording; a shorter one is a single window, an empty one has none.

    Args:
        num_samples (`int`): Length of the recording.
        sampling_rate (`int`, *optional*, defaults to 16000): Hz.
        window_s (`float`, *optional*, defaults to 20.0): Seconds of a window.
        overlap_s (`float`, *optional*, defaults to 4.0): Seconds that neighbours share; at most half a window.
        samples_per_frame (`int`, *optional*, defaults to 1280):
            `config.inputs_to_logits_ratio`; windows begin at whole encoder frames.

    Example:

    ```python
    >>> from nest_hf.long_audio import plan_windows

    >>> [(w.start / 16000, w.end / 16000) for w in plan_windows(45 * 16000)]
    [(0.0, 20.0), (16.0, 36.0), (32.0, 45.0)]

    ```
    """
    if num_samples < 0:
        raise ValueError(f"`num_samples` is {num_samples}; it must be 0 or more.")
    window = round(window_s * sampling_rate / samples_per_frame)
    overlap = round(overlap_s * sampling_rate / samples_per_frame)
    if overlap_s <= window_s / 2:
        overlap = min(overlap, window // 2)  # half of an odd number of frames
    if not 1 <= overlap <= window // 2:
        raise ValueError(
            f"`overlap_s` is {overlap_s} and `window_s` {window_s}; windows share at least one frame of "
            f"{samples_per_frame} samples and at most half of themselves."
        )
    if num_samples == 0:
        return []
    size, hop = window * samples_per_frame, (window - overlap) * samples_per_frame
    num_windows = 1 + max(0, -(-(num_samples - size) // hop))
    return [Window(k * hop, min(k * hop + size, num_samples)) for k in range(num_windows)]


def find_cuts(log_probs: Sequence[torch.Tensor], starts: Sequence[int], *, blank_id: int) -> list[int]:
    """
    The frames at which neighbouring windows are joined: the left one counts before, the right one from there on.

    Of the overlap's frames that both windows take for a blank, the one that is farthest from any character (up to
    three frames) and then nearest to the middle; where there is none, the same among frames on which they agree; else
    the middle.

    Args:
        log_probs (`Sequence[torch.FloatTensor]` of shape `(T, V)` each):
            Posteriors of the windows, in order; or, to save memory, their best classes alone, integers `(T,)`.
        starts (`Sequence[int]`): First frame of each: `window.start // samples_per_frame`.
        blank_id (`int`): Class of the CTC blank.

    Returns:
        `list[int]`: Frames of the recording, one fewer than there are windows.
    """
    if len(log_probs) != len(starts):
        raise ValueError(f"`starts` has {len(starts)} entries for {len(log_probs)} windows.")
    cuts = []
    for left, right, left_start, right_start in zip(log_probs, log_probs[1:], starts, starts[1:], strict=False):
        overlap = min(left_start + len(left), right_start + len(right)) - right_start
        if overlap < 0 or right_start < left_start:
            raise ValueError(
                f"a window of {len(left)} frames from frame {left_start} on does not reach the next at {right_start}; "
                "pass windows of `plan_windows` in their order."
            )
        first = right_start - left_start
        left_ids, right_ids = _best_classes(left[first : first + overlap]), _best_classes(right[:overlap])
        agree = left_ids == right_ids
        if overlap >= 4 * EDGE_FRAMES:
            agree[:EDGE_FRAMES] = agree[-EDGE_FRAMES:] = False
        margin = _margin(agree & (left_ids == blank_id))
        if not margin.any():
            margin = _margin(agree)
        distance = np.abs(np.arange(overlap) - (overlap - 1) / 2)
        # of an overlap without frames the cut is its beginning
        best = int(np.argmax(margin - distance / (overlap + 1))) if overlap else 0
        cuts.append(right_start + best)
    return cuts


def _best_classes(piece: torch.Tensor) -> np.ndarray:
    return (piece if piece.ndim == 1 else piece.argmax(-1)).cpu().numpy()


def _margin(mask: np.ndarray) -> np.ndarray:
    """(T,) bool -> (T,): how many of k = 0, 1, ... have all frames within k in `mask`, up to `WIDEST_MARGIN`."""
    margin = np.zeros(len(mask), dtype=np.int64)
    for k in range(WIDEST_MARGIN if len(mask) else 0):
        margin += np.lib.stride_tricks.sliding_window_view(np.pad(mask, k), 2 * k + 1).all(-1)
    return margin


def join_posteriors(log_probs: Sequence[torch.Tensor], starts: Sequence[int], cuts: Sequence[int]) -> torch.Tensor:
    """
    Posteriors of the whole recording.

    Args:
        log_probs, starts: See [`find_cuts`].
        cuts (`Sequence[int]`): Its result.

    Returns:
        `torch.FloatTensor` of shape `(frames of the recording, V)`.
    """
    if not len(log_probs):
        raise ValueError("`log_probs` has no window; an empty recording has no posteriors.")
    ends = [*cuts, starts[-1] + len(log_probs[-1])]
    begins = [starts[0], *cuts]
    return torch.cat(
        [piece[b - s : e - s] for piece, s, b, e in zip(log_probs, starts, begins, ends, strict=True)], dim=0
    )


def cut_at_pauses(
    path: torch.Tensor, levels: np.ndarray, *, blank_id: int, max_frames: int, padding_frames: int
) -> list[tuple[int, int]]:
    """
    Pieces of a recording that begin and end in pauses. What is too long is cut where the path is blank for longest,
    again and again. A character's frame may lie at its beginning or its end: how far a pause reaches, loudness says.

    Args:
        path (`torch.LongTensor` of shape `(T,)`): Best class of each frame.
        levels (`np.ndarray` of shape `(T,)`): Power of each frame.
        blank_id (`int`): Class of the CTC blank.
        max_frames (`int`): No piece is longer; without a pause it is cut near its middle.
        padding_frames (`int`): How much of the quiet of a pause belongs to a piece, up to its middle.

    Returns:
        `list[tuple[int, int]]`: First frame and end (exclusive) of each, in order; every frame that is no blank is in
        one of them. Empty where all is blank.
    """
    spoken = np.flatnonzero(path.cpu().numpy() != blank_id).tolist()
    if not spoken:
        return []
    loud = float(np.median(levels[spoken]))
    gaps, middles = np.diff(spoken) - 1, (np.array(spoken[1:]) + spoken[:-1]) / 2
    start = max(0, _quiet(levels, 0, spoken[0], loud)[1] - padding_frames)
    stop = min(len(path), _quiet(levels, spoken[-1] + 1, len(path), loud)[0] + padding_frames)
    done, open_pieces = [], [(0, len(spoken), start, stop)]
    while open_pieces:
        first, end, start, stop = open_pieces.pop()
        if stop - start <= max_frames or end - first == 1:
            start = max(start, spoken[first] - max_frames + 1)
            done.append((start, min(stop, start + max_frames)))
            continue
        off_middle = np.abs(middles[first : end - 1] - (start + stop) / 2)
        cut = first + 1 + int(np.lexsort((off_middle, -gaps[first : end - 1]))[0])
        quiet = _quiet(levels, spoken[cut - 1] + 1, spoken[cut], loud)
        middle = sum(quiet) // 2
        open_pieces.append((cut, end, max(middle, quiet[1] - padding_frames), stop))
        open_pieces.append((first, cut, start, min(middle, quiet[0] + padding_frames)))
    return done


def _quiet(levels: np.ndarray, first: int, end: int, loud: float) -> tuple[int, int]:
    """The quiet frames around the quietest one of a pause: those below the middle, in dB, of it and of speech."""
    if first == end:
        return first, end
    pause = levels[first:end]
    off_middle = np.abs(np.arange(len(pause)) - (len(pause) - 1) / 2)
    quietest = int(np.lexsort((off_middle, pause))[0])  # of equals the middle one
    not_quiet = np.flatnonzero(pause > max(np.sqrt(pause[quietest] * loud), pause[quietest], QUIET * loud))
    at = int(np.searchsorted(not_quiet, quietest))
    before = int(not_quiet[at - 1]) + 1 if at else 0
    after = int(not_quiet[at]) if at < len(not_quiet) else len(pause)
    return first + before, first + after


def frame_levels(wave: np.ndarray, samples_per_frame: int, num_frames: int) -> np.ndarray:
    """`(samples,)` -> `(num_frames,)`: mean power of each frame and its two neighbours."""
    power = np.zeros(num_frames * samples_per_frame, dtype=np.float32)
    number = min(len(wave), len(power))
    power[:number] = np.square(wave[:number])
    frames = np.pad(power.reshape(num_frames, samples_per_frame).mean(-1), 1, mode="edge")
    return (frames[:-2] + frames[1:-1] + frames[2:]) / 3


def join_timed_texts(
    texts: Sequence[Sequence[TimedText]], offsets_s: Sequence[float], cuts_s: Sequence[float]
) -> list[TimedText]:
    """
    Joins what was written of each window, such as by a language model.

    Of the characters that both neighbours write at the same time the one nearest to the cut is the joint: the left
    text goes up to it, the right one follows. Where the texts have no character in common the cut itself decides.

    Args:
        texts (`Sequence[Sequence[TimedText]]`): Per window its characters, in seconds of the window.
        offsets_s (`Sequence[float]`): Where each window begins, in seconds.
        cuts_s (`Sequence[float]`): Where neighbours meet: [`find_cuts`] x seconds per frame.

    Returns:
        `list[TimedText]`: Characters in seconds of the recording.
    """
    if len(texts) != len(offsets_s) or len(cuts_s) != max(len(texts) - 1, 0):
        raise ValueError(
            f"{len(texts)} `texts`, {len(offsets_s)} `offsets_s` and {len(cuts_s)} `cuts_s` do not fit; pass one "
            "offset per text and one cut less."
        )
    joined: list[TimedText] = []
    for index, (text, offset_s) in enumerate(zip(texts, offsets_s, strict=True)):
        right = shift(text, offset_s)
        if index == 0:
            joined = right
            continue
        cut_s = cuts_s[index - 1]
        keep, skip = _joint(joined, right, offset_s, cut_s)
        joined = joined[:keep]
        now = joined[-1].end_s if joined else 0.0
        joined += [
            dataclasses.replace(item, start_s=max(item.start_s, now), end_s=max(item.end_s, now))
            for item in right[skip:]
        ]
    return joined


def _joint(left: list[TimedText], right: list[TimedText], overlap_start_s: float, cut_s: float) -> tuple[int, int]:
    """How many items of `left` are kept, and how many of `right` left out."""
    left_s, right_s = _middles(left), _middles(right)
    # only the overlap can have pairs; a minute of text would make a large matrix
    first = int(np.searchsorted(left_s, overlap_start_s - SAME_CHARACTER_S))
    last = int(np.searchsorted(right_s, (left_s[-1] if len(left) else 0.0) + SAME_CHARACTER_S))
    near = np.abs(left_s[first:, None] - right_s[None, :last])
    same = np.array([[a.text == b.text and is_spoken(a.text) for b in right[:last]] for a in left[first:]], dtype=bool)
    near[~same.reshape(near.shape)] = np.inf
    if near.size:
        rows = np.arange(len(near))
        partner = near.argmin(1)
        is_pair = (near[rows, partner] <= SAME_CHARACTER_S) & (near.argmin(0)[partner] == rows)
        if is_pair.any():
            place = np.where(is_pair, np.abs((left_s[first:] + right_s[partner]) / 2 - cut_s), np.inf).argmin()
            return first + int(place) + 1, int(partner[place]) + 1
    return int(np.searchsorted(left_s, cut_s)), int(np.searchsorted(right_s, cut_s))


def _middles(text: Sequence[TimedText]) -> np.ndarray:
    return np.array([(item.start_s + item.end_s) / 2 for item in text])


def shift(text: Sequence[TimedText], offset_s: float) -> list[TimedText]:
    """The same characters or words, `offset_s` later."""
    return [
        dataclasses.replace(item, start_s=round(item.start_s + offset_s, 4), end_s=round(item.end_s + offset_s, 4))
        for item in text
    ]


__all__ = [
    "Window",
    "cut_at_pauses",
    "find_cuts",
    "frame_levels",
    "join_posteriors",
    "join_timed_texts",
    "plan_windows",
    "shift",
]
