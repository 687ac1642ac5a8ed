"""Hotwords: which of a long list may have been said, so that the recogniser's prompt names only those.

Every hotword is searched for at every position of the CTC posteriors (keyword spotting: a CTC lattice with a free
beginning and end), all of them at once. A path is scored relative to the best path over the same frames: 0 where
greedy decoding itself writes the hotword, and the more negative the less the posteriors admit it.

Dimensions: B utterances, T frames, V classes with the blank, W hotwords, C pairs of an utterance and a hotword that it
may have, S states and U classes of these.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .ctc_decoding import best_path
from .timestamps import WILDCARD, WILDCARD_ON_BLANK, tokens_with_offsets

logger = logging.getLogger(__name__)

START = -2  # the state before the first token of a word
RIVAL_NATS = 3.0  # 20 : 1
SAME_END = 2  # frames
LOWEST = -30.0  # per frame; a class that the posteriors exclude, without the -inf that no sum comes back from


@dataclass(frozen=True)
class FoundHotword:
    """
    A hotword that may have been said.

    Attributes:
        text (`str`): The hotword.
        score (`float`): Log-likelihood ratio to the best path, per token; at most 0.
        end (`int`, *optional*): The frame in which it ends; None where unknown.
    """

    text: str
    score: float = 0.0
    end: int | None = None


class HotwordFilter:
    """
    Picks from a list of hotwords those that the CTC posteriors of an utterance admit; of words that sound alike, those
    that no other one at the same place outdoes.

    Args:
        hotwords (`Sequence[str]`): Words or phrases; the same one twice counts once.
        tokenizer: The CTC head's tokenizer, see [`~nest_hf.timestamps.tokens_with_offsets`].
        blank_id (`int`): Class of the CTC blank.

    Attributes:
        unscored (`list[str]`):
            Hotwords of which less than two of three tokens are known to the CTC head: one character is heard almost
            everywhere, and "X" may be any sound. They are never found, and named in one warning.

    Example:

    ```python
    >>> from nest_hf.hotwords import HotwordFilter

    >>> hotword_filter = HotwordFilter(["上海", "上班"], tokenizer, blank_id=0)  # doctest: +SKIP
    >>> hotword_filter(log_probs, lengths)  # doctest: +SKIP
    [[FoundHotword(text='上海', score=-0.4, end=17)]]

    ```
    """

    def __init__(self, hotwords: Sequence[str], tokenizer, *, blank_id: int):
        self.blank_id = blank_id
        self.hotwords: list[str] = []
        self.unscored: list[str] = []
        rows = []
        words = list(dict.fromkeys(hotwords))
        for word, tokens in zip(words, tokens_with_offsets(words, tokenizer), strict=True):
            tokens = [token for token, _, _ in tokens]
            num_known = sum(token != WILDCARD for token in tokens)
            if 3 * num_known >= 2 * len(tokens):
                self.hotwords.append(word)
                rows.append(tokens)
            else:
                self.unscored.append(word)
        if self.unscored:
            logger.warning(
                "%d of %d hotwords have too many characters unknown to the CTC tokenizer and are never found: %s%s",
                len(self.unscored), len(self.unscored) + len(rows), ", ".join(map(repr, self.unscored[:5])),
                ", ..." if len(self.unscored) > 5 else "",
            )  # fmt: skip
        # The lattice lies in one vector: of each word a start state and its tokens; "one state back" is a shift.
        self.num_tokens = np.array([sum(token != WILDCARD for token in row) for row in rows], dtype=np.float32)
        self.sizes = np.array([len(row) + 1 for row in rows], dtype=np.int64)  # states of every word
        self.states = np.array([token for row in rows for token in [START, *row]], dtype=np.int64)

    def __call__(
        self,
        log_probs: torch.Tensor,
        lengths: torch.Tensor | None = None,
        *,
        max_hotwords: int = 20,
        threshold: float = -2.0,
    ) -> list[list[FoundHotword]]:
        """
        Args:
            log_probs (`torch.FloatTensor` of shape `(B, T, V)`): Log-probabilities of the CTC head.
            lengths (`torch.LongTensor` of shape `(B,)`, *optional*): Valid frames; all by default.
            max_hotwords (`int`, *optional*, defaults to 20): Most hotwords per utterance.
            threshold (`float`, *optional*, defaults to -2.0):
                Lowest score (nats per token) that is kept; lower finds more hotwords that the CTC head has misheard,
                and more that were not said.

        Returns:
            `list[list[FoundHotword]]`: Per utterance, best first; of equal scores the longer one first.
        """
        if max_hotwords < 1:
            raise ValueError(f"`max_hotwords` is {max_hotwords}; it must be 1 or more.")
        rows, words, totals, ends = self._search(log_probs, lengths, threshold)
        num_tokens = self.num_tokens[words]
        scores = totals / num_tokens
        found = []
        for row in range(len(log_probs)):
            kept = np.flatnonzero((rows == row) & (scores >= threshold))
            kept = kept[~_outdone(totals[kept], ends[kept], num_tokens[kept])]
            # of equal scores the longer word first, then the earlier one of the list
            order = kept[np.lexsort((-num_tokens[kept], -scores[kept].round(3)))]
            found.append(
                [FoundHotword(self.hotwords[words[n]], float(scores[n]), int(ends[n])) for n in order[:max_hotwords]]
            )
        return found

    def score(self, log_probs: torch.Tensor, lengths: torch.Tensor | None = None) -> np.ndarray:
        """`(B, T, V)`, `(B,)` -> float32 scores `(B, W)` of `self.hotwords`, nats per token."""
        _, words, totals, _ = self._search(log_probs, lengths, -np.inf)
        return (totals / self.num_tokens[words]).reshape(len(log_probs), len(self.hotwords))

    @torch.inference_mode()
    def _search(self, log_probs: torch.Tensor, lengths: torch.Tensor | None, threshold: float):
        """
        Where each word may be said.

        Returns:
            Four `np.ndarray` of shape `(C,)`: utterances and words that may reach `threshold` together, in this order;
            the sums along their paths, and the frames in which these end.
        """
        path = best_path(log_probs, lengths, blank_id=self.blank_id)
        batch, num_frames, num_classes = log_probs.shape
        if not (batch and num_frames and self.hotwords):
            rows, words = np.indices((batch, len(self.hotwords))).reshape(2, -1)
            totals = LOWEST * self.num_tokens[words]
            return rows, words, totals.astype(np.float32), np.zeros(len(words), dtype=np.int64)
        if self.states.max() >= num_classes:
            raise ValueError(
                f"`tokenizer` gives token {self.states.max()}, but `log_probs` has {num_classes} classes; use the "
                "tokenizer that the CTC head was trained with."
            )
        beyond = torch.arange(num_frames, device=log_probs.device) >= path.lengths[:, None]
        relative = log_probs.float() - path.log_probs[..., None].float()
        relative = relative.masked_fill_(beyond[..., None], LOWEST).clamp_min_(LOWEST)

        # Most words have a token that is likely nowhere. A path holds every token in one frame at least, and no frame
        # adds more than 0, so that the highest values of the tokens bound the score.
        peaks = relative.amax(1).cpu().numpy()[:, self.states.clip(0)]
        peaks[:, self.states < 0] = 0.0
        starts = self.sizes.cumsum() - self.sizes
        bounds = np.add.reduceat(peaks, starts, axis=1) / self.num_tokens
        rows, words = (bounds >= threshold - 1e-3).nonzero()  # sums in another order

        # the states of all these words, one after the other, and of which utterance each is
        sizes = self.sizes[words]
        first = (starts[words] - (sizes.cumsum() - sizes)).repeat(sizes)
        states, utterances = self.states[first + np.arange(len(first))], rows.repeat(sizes)

        # only the classes of candidates are copied to the CPU; START and WILDCARD come first
        classes, columns = np.unique(states, return_inverse=True)
        blank = relative[..., self.blank_id]
        wildcard = torch.where(path.ids == self.blank_id, WILDCARD_ON_BLANK, 0.0).masked_fill_(beyond, LOWEST)
        emissions = relative[..., torch.from_numpy(classes).clamp_min(0).to(relative.device)]
        emissions[..., torch.from_numpy(classes == WILDCARD)] = wildcard[..., None]
        emissions[..., torch.from_numpy(classes == START)] = 0.0
        emissions, blank = (values.transpose(0, 1).contiguous().cpu().numpy() for values in (emissions, blank))
        return rows, words, *self._spot(emissions, blank, states, utterances * len(classes) + columns, utterances)

    def _spot(self, emissions, blank, states: np.ndarray, columns: np.ndarray, utterances: np.ndarray):
        """
        The best path through every word, by one pass over the frames.

        Args:
            emissions (`np.ndarray` of shape `(T, B, U)`): Relative log-probabilities of the classes.
            blank (`np.ndarray` of shape `(T, B)`): Those of the blank.
            states (`np.ndarray` of shape `(S,)`): `START` and the tokens of each of C words, one after the other.
            columns (`np.ndarray` of shape `(S,)`): Which of the B x U emissions of a frame each state has.
            utterances (`np.ndarray` of shape `(S,)`): Of which utterance each state is.

        Returns:
            Two `np.ndarray` of shape `(C,)`: Sums along the path, at most 0, and the frames in which it ends.
        """
        repeated = (states[1:] == states[:-1]) & (states[1:] >= 0)
        step = np.where(repeated, -np.inf, 0.0).astype(np.float32)  # needs a blank in between
        is_last = np.flatnonzero(np.append(states[1:] == START, True)[: len(states)])
        # Score of the best path that ends in each state, and in the blank behind it. A start state is always at 0:
        # no sum exceeds that, and its emission is 0.
        token = np.full(len(states), -np.inf, dtype=np.float32)
        token[states == START] = 0.0
        after = np.full(len(states), -np.inf, dtype=np.float32)
        best = np.full(len(is_last), -np.inf, dtype=np.float32)
        last = np.zeros(len(best), dtype=np.int64)
        arriving, emission = np.empty_like(token[1:]), np.empty_like(token)
        for number, (frame, blank_value) in enumerate(zip(emissions.reshape(len(emissions), -1), blank, strict=True)):
            np.add(token[:-1], step, out=arriving)
            np.maximum(arriving, after[:-1], out=arriving)
            np.maximum(after, token, out=after)
            after += np.take(blank_value, utterances, out=emission, mode="clip")  # indices need no check
            np.maximum(token[1:], arriving, out=token[1:])
            token += np.take(frame, columns, out=emission, mode="clip")
            ended = token[is_last]
            last[ended > best] = number
            np.maximum(best, ended, out=best)
        return best, last


def _outdone(totals: np.ndarray, ends: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """
    Words that were not said because another one was at their place: it ends with them, explains as many tokens, and is
    more likely by `RIVAL_NATS`.

    Args:
        totals, ends, num_tokens (`np.ndarray` of shape `(W,)`): Of the words that may have been said.

    Returns:
        `np.ndarray` of shape `(W,)`, bool.
    """
    together = np.abs(ends[:, None] - ends) <= SAME_END
    rivals = together & (num_tokens[:, None] <= num_tokens) & (totals[:, None] < totals - RIVAL_NATS)
    return rivals.any(1)


__all__ = ["FoundHotword", "HotwordFilter"]
