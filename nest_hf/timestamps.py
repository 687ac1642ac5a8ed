"""When each character and word was said: forced alignment of a text with CTC posteriors.

The text need not come from the CTC head: characters that it does not know (digits, Latin letters, rare characters of a
language model's text) are aligned together as one wildcard between their neighbours.

Dimensions: B utterances, T frames, V classes with the blank, U distinct tokens of a text.
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .ctc_decoding import best_path

logger = logging.getLogger(__name__)

WILDCARD = -1  # stands for characters without a token
SPOKEN_SIGNS = frozenset("%％‰℃°+=$¥￥€£&@#")  # read aloud, though no letters or digits
# Log-probability that a wildcard loses on a frame whose best class is the blank: it bridges the blanks inside a word
# that it stands for, but does not grow into the pauses around it.
WILDCARD_ON_BLANK = -1.0
LOWEST = -100.0  # in place of log-probabilities of -inf, with which no path would be better than another


@dataclass(frozen=True)
class TimedText:
    """
    A character or word and when it was said.

    Attributes:
        text (`str`): The character or word.
        start_s, end_s (`float`): Seconds from the beginning of the audio; equal where nothing is said (punctuation).
        score (`float`, *optional*):
            Mean posterior probability in [0, 1] of its frames; None where the time is only interpolated.
    """

    text: str
    start_s: float
    end_s: float
    score: float | None


def character_timestamps(
    log_probs: torch.Tensor,
    lengths: torch.Tensor | None,
    texts: Sequence[str],
    tokenizer,
    *,
    blank_id: int,
    frame_s: float = 0.08,
    first_frame_s: float = 0.0,
    boundary: str = "midpoint",
    max_extension_s: float | None = 0.15,
) -> list[list[TimedText]]:
    """
    Start, end and score of every character.

    A CTC head marks a character by one or two frames somewhere inside it. With `boundary="midpoint"` two characters
    meet in the middle between their marks, and none reaches further than `max_extension_s` from its own mark, so that
    pauses stay free; `"mark"` returns the marked frames alone. A text that has more characters than its audio has
    frames is spread evenly, with scores of None and a warning. Spaces and punctuation take no time, also where the CTC
    head has tokens for them.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, T, V)`): Log-probabilities of the CTC head.
        lengths (`torch.LongTensor` of shape `(B,)`, *optional*): Valid frames; all where None.
        texts (`Sequence[str]`): One text per utterance, as the recogniser wrote it.
        tokenizer: The CTC head's tokenizer, see [`tokens_with_offsets`].
        blank_id (`int`): Class of the CTC blank.
        frame_s (`float`, *optional*, defaults to 0.08): Seconds between frames.
        first_frame_s (`float`, *optional*, defaults to 0.0):
            Time of the middle of frame 0. Frames of NEST and Parakeet are centred at multiples of `frame_s`.
        boundary (`str`, *optional*, defaults to `"midpoint"`): `"midpoint"` or `"mark"`.
        max_extension_s (`float`, *optional*, defaults to 0.15): See above; None for no limit.

    Returns:
        `list[list[TimedText]]`: All characters of all texts, in their order.
    """
    if boundary not in ("midpoint", "mark"):
        raise ValueError(f"`boundary` is {boundary!r}; choose `midpoint` or `mark`.")
    if len(texts) != len(log_probs):
        raise ValueError(f"`texts` has {len(texts)} texts for {len(log_probs)} utterances of `log_probs`.")
    pieces = [spoken_pieces(*row) for row in zip(texts, tokens_with_offsets(texts, tokenizer), strict=True)]
    token_ids = [[token for token, _, _ in row] for row in pieces]
    spans = align_tokens(log_probs, lengths, token_ids, blank_id=blank_id)
    num_frames = [log_probs.shape[1]] * len(texts) if lengths is None else torch.as_tensor(lengths).tolist()
    results = []
    for index, (text, row, span, count) in enumerate(zip(texts, pieces, spans, num_frames, strict=True)):
        duration_s = max(0.0, first_frame_s + (count - 0.5) * frame_s)
        if span is None:
            logger.warning(
                "text %d has %d tokens but its audio %d frames; its characters are spread evenly.",
                index, len(row), count,
            )  # fmt: skip
            row, starts, ends, scores = [(WILDCARD, 0, len(text))], [0.0], [duration_s], [None]
        else:
            first, last, scores = span
            starts = (first - 0.5) * frame_s + first_frame_s
            ends = (last + 0.5) * frame_s + first_frame_s
            if boundary == "midpoint":
                starts, ends = _extend(starts, ends, duration_s, max_extension_s)
            starts, ends = np.clip(starts, 0, duration_s).tolist(), np.clip(ends, 0, duration_s).tolist()
        results.append(_characters(text, row, starts, ends, scores))
    return results


def align_tokens(
    log_probs: torch.Tensor, lengths: torch.Tensor | None, token_ids: Sequence[Sequence[int]], *, blank_id: int
) -> list[tuple[np.ndarray, np.ndarray, list[float | None]] | None]:
    """
    The frames of every token on the best path through all of them (Viterbi).

    torchaudio 2.11's `forced_align` does the same for one utterance, but misses the best path where a token has low
    posteriors everywhere, as one that the CTC head did not hear.

    Args:
        log_probs, lengths, blank_id: See [`character_timestamps`].
        token_ids (`Sequence[Sequence[int]]`): Tokens per utterance; `WILDCARD` (-1) stands for any tokens.

    Returns:
        Per utterance its first frames (int), last frames (int), and scores (None at wildcards) by token; None where
        the tokens need more frames than there are.
    """
    path = best_path(log_probs, lengths, blank_id=blank_id)
    tokens = [np.asarray(row, dtype=np.int64) for row in token_ids]
    for index, row in enumerate(tokens):
        if len(row) and (row.max() >= log_probs.shape[2] or row.min() < WILDCARD or blank_id in row):
            raise ValueError(
                f"`token_ids` of utterance {index} reach {row.max()} or hold the blank {blank_id}; the CTC head has "
                f"{log_probs.shape[2]} classes. Use the tokenizer that it was trained with."
            )
    # Only the columns of the text's own tokens are copied: column 0 is the blank, the rest by ascending token.
    classes = [np.unique(row, return_inverse=True) for row in tokens]
    most = max((len(known) for known, _ in classes), default=0)
    columns = np.full((len(tokens), most + 1), blank_id)
    for row, (known, _) in zip(columns, classes, strict=True):
        row[1 : len(known) + 1] = known
    columns = torch.from_numpy(columns).to(log_probs.device)
    picked = columns.clamp_min(0)[:, None].expand(-1, log_probs.shape[1], -1)
    emissions = log_probs.gather(2, picked).float()  # (B, T, 1 + U)
    wildcard = path.log_probs + WILDCARD_ON_BLANK * (path.ids == blank_id)
    emissions = torch.where((columns == WILDCARD)[:, None], wildcard[..., None].float(), emissions)
    emissions = emissions.clamp_min(LOWEST).cpu().numpy()

    lengths = path.lengths.cpu().numpy()
    states, possible = _viterbi(emissions, lengths, [labels + 1 for _, labels in classes])
    spans = []
    for emission, length, row, (_, labels), along, fits in zip(
        emissions, lengths, tokens, classes, states, possible, strict=True
    ):
        if not fits:
            spans.append(None)
            continue
        along = along[:length]  # never falls, and the odd states are the tokens
        first = np.searchsorted(along, 2 * np.arange(len(row)) + 1, side="left")
        last = np.searchsorted(along, 2 * np.arange(len(row)) + 1, side="right") - 1
        column = np.where(along % 2, np.append(labels + 1, 0)[along // 2], 0)
        sums = np.append(0.0, np.exp(emission[np.arange(length), column], dtype=np.float64).cumsum())
        scores = ((sums[last + 1] - sums[first]) / (last - first + 1)).tolist()
        spans.append((first, last, [None if t == WILDCARD else score for t, score in zip(row, scores, strict=True)]))
    return spans


def _viterbi(emissions: np.ndarray, lengths: np.ndarray, labels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    The best CTC path through the labels of every utterance, all of them together, one pass over the frames.

    Args:
        emissions (`np.ndarray` of shape `(B, T, 1 + U)`): Log-probabilities; column 0 is the blank.
        lengths (`np.ndarray` of shape `(B,)`): Valid frames.
        labels (`list[np.ndarray]`): Columns of the L tokens of each utterance.

    Returns:
        `(B, T)` states from 0 to 2 L: the odd ones are tokens, the even ones the blanks around them; and `(B,)` bool,
        whether there are frames enough for a path.
    """
    batch, num_frames, _ = emissions.shape
    counts = np.array([len(row) for row in labels], dtype=np.int64)
    columns = np.zeros((batch, 2 * int(counts.max(initial=0)) + 1), dtype=np.int64)
    for row, label in zip(columns, labels, strict=True):
        row[1 : 2 * len(label) : 2] = label
    # Two steps go from a token to the next without a blank, unless it is the same, and from the start to the first.
    skip = np.full(columns.shape, -np.inf, dtype=np.float32)
    skip[:, 1:2] = 0.0
    skip[:, 3::2][columns[:, 3::2] != columns[:, 1:-2:2]] = 0.0

    # In front of the states lie two more: one that nothing reaches, and the start, which is left at the first frame.
    score = np.full((batch, columns.shape[1] + 2), -np.inf, dtype=np.float32)
    score[:, 1] = 0.0
    final = np.full((batch, columns.shape[1]), -np.inf, dtype=np.float32)
    steps = np.zeros((num_frames, *columns.shape), dtype=np.int8)  # how many states the path moved on
    for frame in range(num_frames):
        stay, one, two = score[:, 2:], score[:, 1:-1], score[:, :-2] + skip
        best = np.maximum(stay, one)
        steps[frame] = np.where(two > best, 2, one > stay)
        score[:, 2:] = np.maximum(best, two) + np.take_along_axis(emissions[:, frame], columns, axis=1)
        score[:, 1] = -np.inf
        final[lengths == frame + 1] = score[lengths == frame + 1, 2:]

    rows = np.arange(batch)
    state, before = 2 * counts, np.maximum(2 * counts - 1, 0)  # a path ends in the last blank or the last token
    state = np.where(final[rows, before] > final[rows, state], before, state)
    possible = (final[rows, state] > -np.inf) | (counts == 0)
    states = np.zeros((batch, num_frames), dtype=np.int64)
    for frame in reversed(range(num_frames)):
        states[:, frame] = state
        state = np.where(frame < lengths, state - steps[frame, rows, state], state).clip(0)
    return states, possible


def tokens_with_offsets(texts: Sequence[str], tokenizer) -> list[list[tuple[int, int, int]]]:
    """
    Of each text `(token id, first character, end character)` of every token, `WILDCARD` in place of the unknown token.

    A fast tokenizer gives its own offsets, so that tokens may be parts or groups of characters; any other, such as
    `Wav2Vec2CTCTokenizer`, is asked for each different character alone.
    """
    if not texts:
        return []
    if tokenizer.is_fast:
        encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        rows = [list(zip(ids, offsets, strict=True)) for ids, offsets in pairs]
    else:
        alphabet = list(dict.fromkeys("".join(texts)))
        encoded = tokenizer(alphabet, add_special_tokens=False)["input_ids"] if alphabet else []
        ids = dict(zip(alphabet, encoded, strict=True))
        rows = [[(token, (n, n + 1)) for n, letter in enumerate(text) for token in ids[letter]] for text in texts]
    unknown = tokenizer.unk_token_id
    return [[(WILDCARD if token == unknown else token, *offsets) for token, offsets in row] for row in rows]


def is_spoken(character: str) -> bool:
    """Whether a character is heard: letters, digits and signs such as %, but neither punctuation nor spaces."""
    return character in SPOKEN_SIGNS or unicodedata.category(character)[0] in "LNM"


def spoken_pieces(text: str, tokens: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The tokens that are heard, with one wildcard for each run of spoken characters that have no token."""
    pieces = []
    position = 0
    for token, start, end in [*tokens, (WILDCARD, len(text), len(text))]:
        known = token != WILDCARD and any(map(is_spoken, text[start:end]))
        until = start if known else end  # an unknown token, and what the tokenizer left out
        if any(map(is_spoken, text[position:until])):
            first = pieces.pop()[1] if pieces and pieces[-1][0] == WILDCARD else position
            pieces.append((WILDCARD, first, until))
        if known:
            pieces.append((token, start, end))
        position = max(position, end)
    return pieces


def _extend(starts, ends, duration_s: float, limit_s: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Marks (L,) -> intervals that meet half-way between them, and reach `limit_s` beyond them at most."""
    middles = (ends[:-1] + starts[1:]) / 2
    lower, upper = np.append(0.0, middles), np.append(middles, duration_s)
    if limit_s is None:
        return lower, upper
    return np.maximum(lower, starts - limit_s), np.minimum(upper, ends + limit_s)


def _characters(text: str, pieces, starts, ends, scores) -> list[TimedText]:
    """Times of pieces -> times of characters: those of one piece share it evenly, silent ones have none."""
    times: list[tuple[float, float, float | None] | None] = [None] * len(text)
    for (_, first, end), start_s, end_s, score in zip(pieces, starts, ends, scores, strict=True):
        heard = [index for index in range(first, end) if is_spoken(text[index])]
        step_s = (end_s - start_s) / max(len(heard), 1)
        for number, index in enumerate(heard):
            before = times[index]  # where one character has several tokens
            span = (start_s + number * step_s, start_s + (number + 1) * step_s, score)
            times[index] = span if before is None else (before[0], span[1], min(before[2], score))
    known = [span for span in times if span is not None]
    now = known[0][0] if known else 0.0
    characters = []
    for character, span in zip(text, times, strict=True):
        start_s, end_s, score = (now, now, None) if span is None else span
        characters.append(TimedText(character, round(start_s, 4), round(end_s, 4), score))
        now = end_s
    return characters


def word_timestamps(characters: Sequence[TimedText], words: Sequence[str] | None = None) -> list[TimedText]:
    """
    Groups characters into words.

    Args:
        characters (`Sequence[TimedText]`): From [`character_timestamps`].
        words (`Sequence[str]`, *optional*):
            A segmentation of the same text (jieba's, say). By default an ideograph, kana or the like is a word, as
            is a run of other letters, digits and signs. Spaces separate words; punctuation goes to the word before.

    Returns:
        `list[TimedText]`: The score is the mean of the known ones.
    """
    groups: list[list[TimedText]] = []
    if words is None:
        joins = False
        for timed in characters:
            if timed.text.isspace():
                joins = False
                continue
            spoken = is_spoken(timed.text)
            alphabetic = spoken and not _is_ideograph(timed.text)
            inside = timed.text in "'’.-" and joins  # as in don't, 3.5
            if groups and (inside or not spoken or (alphabetic and joins)):
                groups[-1].append(timed)
            else:
                groups.append([timed])
            joins = alphabetic or inside
    else:
        rest = [timed for timed in characters if not timed.text.isspace()]
        if "".join("".join(words).split()) != "".join(timed.text for timed in rest):
            raise ValueError(f"`words` {''.join(words)!r} is not the text {''.join(t.text for t in rest)!r}.")
        for word in words:
            if count := len("".join(word.split())):
                groups.append(rest[:count])
                rest = rest[count:]
    return [_word(group) for group in groups]


def _word(group: list[TimedText]) -> TimedText:
    scores = [timed.score for timed in group if timed.score is not None]
    heard = [timed for timed in group if timed.end_s > timed.start_s] or group
    score = sum(scores) / len(scores) if scores else None
    return TimedText("".join(timed.text for timed in group), heard[0].start_s, heard[-1].end_s, score)


def _is_ideograph(character: str) -> bool:
    """Han, Hiragana and Katakana, which are written without spaces."""
    return unicodedata.name(character, "").startswith(("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"))


__all__ = [
    "TimedText",
    "align_tokens",
    "character_timestamps",
    "spoken_pieces",
    "tokens_with_offsets",
    "word_timestamps",
]
