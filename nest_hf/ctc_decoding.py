"""Text from CTC posteriors: the best path, and prefix beam search (Graves 2006; Hannun et al., arXiv 1408.2873).

Dimensions: B utterances, T frames, V classes with the blank, K beams, N pruned classes of a frame.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

# A prefix's key is a polynomial in its tokens modulo 2^64; this odd factor spreads it (Knuth, TAOCP vol. 2, 3.3.4).
HASH_FACTOR = 6364136223846793005


@dataclass(frozen=True)
class BestPath:
    """
    The most probable class of every frame.

    Attributes:
        ids (`torch.LongTensor` of shape `(B, T)`): The classes; blanks at padding.
        log_probs (`torch.FloatTensor` of shape `(B, T)`): Their log-probabilities; 0 at padding.
        lengths (`torch.LongTensor` of shape `(B,)`): Valid frames.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Hypothesis:
    """
    One text of an n-best list.

    Attributes:
        token_ids (`list[int]`): The tokens, without blanks.
        score (`float`): Natural log of the probability, summed over all alignments that the beam kept.
    """

    token_ids: list[int]
    score: float


def frame_lengths(log_probs: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Checks `log_probs` (B, T, V) and `lengths` (B,) and returns the lengths; all frames where they are None."""
    if log_probs.ndim != 3 or not log_probs.is_floating_point():
        raise ValueError(
            f"`log_probs` has shape {tuple(log_probs.shape)} and type {log_probs.dtype}; pass (batch, "
            "frames, classes) log-probabilities."
        )
    batch, num_frames, _ = log_probs.shape
    if lengths is None:
        return torch.full((batch,), num_frames, device=log_probs.device)
    lengths = torch.as_tensor(lengths, device=log_probs.device).long()
    if lengths.shape != (batch,) or (batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= num_frames):
        raise ValueError(
            f"`lengths` is {lengths.tolist()} for {batch} utterances of at most {num_frames} frames; pass one number "
            "of valid frames per utterance."
        )
    return lengths


def best_path(log_probs: torch.Tensor, lengths: torch.Tensor | None = None, *, blank_id: int) -> BestPath:
    """
    The most probable class of every frame, from which greedy text, blank shares and hotword scores derive.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, T, V)`): Log-probabilities (`log_softmax` of the logits).
        lengths (`torch.LongTensor` of shape `(B,)`, *optional*): Valid frames; all by default.
        blank_id (`int`): Class of the CTC blank.

    Raises:
        `ValueError`: for a NaN in a valid frame, with the utterance's number.
    """
    lengths = frame_lengths(log_probs, lengths)
    if not 0 <= blank_id < log_probs.shape[2]:
        raise ValueError(f"`blank_id` is {blank_id}, but `log_probs` has {log_probs.shape[2]} classes.")
    values, ids = log_probs.max(-1)
    valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    broken = (values.isnan() & valid).any(1)  # `max` passes NaN on
    if broken.any():
        raise ValueError(
            f"`log_probs` of utterance {int(broken.nonzero()[0])} has NaN; check its audio, or decode in float32."
        )
    return BestPath(ids.where(valid, blank_id), values.where(valid, 0.0), lengths)


def collapse(path_ids: torch.Tensor, *, blank_id: int) -> list[list[int]]:
    """`path_ids` (B, T) -> token ids of every utterance: repetitions merged, blanks dropped."""
    previous = F.pad(path_ids, (1, 0), value=blank_id)[:, :-1]
    kept = (path_ids != blank_id) & (path_ids != previous)
    tokens, counts = path_ids[kept].tolist(), kept.sum(1).tolist()
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [tokens[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def ctc_greedy(log_probs: torch.Tensor, lengths: torch.Tensor | None = None, *, blank_id: int) -> list[list[int]]:
    """
    Token ids of the best path of every utterance. For the arguments see [`best_path`].

    Example:

    ```python
    >>> import torch
    >>> from nest_hf.ctc_decoding import ctc_greedy

    >>> path = torch.tensor([[1, 1, 0, 1, 2], [2, 2, 2, 1, 1]])
    >>> log_probs = torch.nn.functional.one_hot(path, 3).float().log_softmax(-1)
    >>> ctc_greedy(log_probs, torch.tensor([5, 3]), blank_id=0)
    [[1, 1, 2], [2]]

    ```
    """
    return collapse(best_path(log_probs, lengths, blank_id=blank_id).ids, blank_id=blank_id)


def ctc_text(tokenizer, ids: list[int]) -> str:
    """Ids of a decoded path, collapsed already, as text."""
    options = {} if tokenizer.is_fast else {"group_tokens": False}  # which `Wav2Vec2CTCTokenizer` would do again
    return tokenizer.decode(ids, skip_special_tokens=True, **options)


@torch.inference_mode()
def ctc_beam_search(
    log_probs: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    blank_id: int,
    beam_size: int = 10,
    top_k: int = 20,
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """
    Prefix beam search over a batch: the most probable texts, not alignments.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, T, V)`): Log-probabilities.
        lengths (`torch.LongTensor` of shape `(B,)`, *optional*): Valid frames; all by default.
        blank_id (`int`): Class of the CTC blank.
        beam_size (`int`, *optional*, defaults to 10): Prefixes K kept after each frame.
        top_k (`int`, *optional*, defaults to 20): Most probable classes N of a frame by which prefixes are extended.
        num_best (`int`, *optional*, defaults to 1): Longest n-best list.

    Returns:
        `list[list[Hypothesis]]`: Per utterance, at most `num_best` texts, the best first.
    """
    if beam_size < 1 or top_k < 1 or not 1 <= num_best <= beam_size:
        raise ValueError(
            f"`beam_size` is {beam_size}, `top_k` {top_k} and `num_best` {num_best}; all must be 1 or more, and "
            "`num_best` at most `beam_size`."
        )
    lengths = best_path(log_probs, lengths, blank_id=blank_id).lengths
    batch, num_frames, num_classes = log_probs.shape
    if batch == 0:
        return []
    num_frames = int(lengths.max())
    device, never = log_probs.device, float("-inf")
    # Padding is a certain blank, which changes no prefix and no score.
    padding = torch.arange(num_frames, device=device) >= lengths[:, None]
    top = log_probs[:, :num_frames].topk(min(top_k, num_classes), dim=-1)
    top_values = top.values.float().masked_fill(padding[..., None] | (top.indices == blank_id), never)
    blanks = log_probs[:, :num_frames, blank_id].float().masked_fill(padding, 0.0)

    # Log-probability of every prefix when it ends in a blank, and in its last token.
    scores = torch.full((batch, beam_size, 2), never, device=device)
    scores[:, 0, 0] = 0.0
    # Its key, its parent's key and its last token.
    prefixes = torch.tensor([0, -1, blank_id], device=device).repeat(batch, beam_size, 1)
    parents, tokens = [], []  # per frame (B, K): the beam it came from, and its new token or -1
    for frame in range(num_frames):
        last_value = log_probs[:, frame].gather(1, prefixes[..., 2]).float()
        last_value = last_value.masked_fill(padding[:, frame, None], never)
        scores, prefixes, parent, token = _step(
            scores, prefixes, blanks[:, frame, None], last_value, top_values[:, frame], top.indices[:, frame], blank_id
        )
        parents.append(parent)
        tokens.append(token)
    scores, order = scores.logsumexp(-1).sort(dim=1, descending=True, stable=True)
    return _trace_back(parents, tokens, scores[:, :num_best], order[:, :num_best])


def _step(scores, prefixes, blank_value, last_value, top_values, top_ids, blank_id):
    """
    One frame: every prefix stays or grows by one of N tokens; the best K of K + K * N go on.

    Args:
        scores (`torch.FloatTensor` of shape `(B, K, 2)`), prefixes (`torch.LongTensor` of shape `(B, K, 3)`):
            The beams, see [`ctc_beam_search`].
        blank_value (`(B, 1)`), last_value (`(B, K)`): Log-probability of the blank, and of each prefix's last token.
        top_values, top_ids (`(B, N)`): The classes that extend a prefix; -inf at the blank.
    """
    (blank, token), (key, parent_key, last) = scores.unbind(-1), prefixes.unbind(-1)
    beams, number = blank.shape[1], top_ids.shape[1]
    total = torch.logaddexp(blank, token)

    # 1. what grows into a prefix that is in the beam already is added there; at most one parent does
    is_child = (parent_key[:, None, :] == key[:, :, None]) & (last != blank_id)[:, None, :]  # (B, from, into)
    source = torch.where(last[:, :, None] == last[:, None, :], blank[:, :, None], total[:, :, None])
    into = source.masked_fill(~is_child, float("-inf")).amax(1)

    # 2. stay: a blank, or the last token once more
    stay_token = torch.logaddexp(token, into) + last_value
    stay_blank = total + blank_value

    # 3. grow: a repeated token needs a blank in between
    repeated = last[:, :, None] == top_ids[:, None, :]  # (B, K, N)
    grown = torch.where(repeated, blank[:, :, None], total[:, :, None]) + top_values[:, None, :]
    # (B, from, into) @ (B, into, N): the prefix grown by this token exists
    exists = torch.bmm(is_child.float(), repeated.float()) > 0
    grown = grown.masked_fill_(exists, float("-inf"))

    # 4. the best K
    candidates = torch.cat([torch.logaddexp(stay_blank, stay_token), grown.flatten(1)], dim=1)
    best, choice = candidates.topk(beams, dim=1)
    stays = choice < beams
    pair = (choice - beams).clamp_min_(0)
    parent = torch.where(stays, choice, pair // number)
    grown_by = top_ids.gather(1, pair % number)
    of_parent = parent[..., None].expand(-1, -1, 3)
    stayed_prefixes = prefixes.gather(1, of_parent)
    parent_key = stayed_prefixes[..., 0]
    grown_prefixes = torch.stack([parent_key * HASH_FACTOR + grown_by + 1, parent_key, grown_by], dim=-1)
    prefixes = torch.where(stays[..., None], stayed_prefixes, grown_prefixes)
    # a place without a prefix must not pass for one when its namesake is in the beam
    prefixes[..., :2] = prefixes[..., :2].masked_fill((best == float("-inf"))[..., None], -1)
    stayed = torch.stack([stay_blank, stay_token], dim=-1).gather(1, of_parent[..., :2])
    grown_scores = torch.stack([torch.full_like(best, float("-inf")), best], dim=-1)
    scores = torch.where(stays[..., None], stayed, grown_scores)
    return scores, prefixes, parent, torch.where(stays, -1, grown_by)


def _trace_back(parents, tokens, scores, beams) -> list[list[Hypothesis]]:
    """Follows `beams` (B, n-best) back through the frames; texts without probability are left out."""
    steps = []
    for parent, token in zip(reversed(parents), reversed(tokens), strict=True):
        steps.append(token.gather(1, beams))
        beams = parent.gather(1, beams)
    batch, num_best = scores.shape
    paths = torch.stack(steps[::-1], dim=2).tolist() if steps else [[[]] * num_best] * batch
    return [
        [
            Hypothesis([token for token in path if token >= 0], score)
            for path, score in zip(utterance, row, strict=True)
            if score > float("-inf")
        ]
        for utterance, row in zip(paths, scores.tolist(), strict=True)
    ]


__all__ = [
    "BestPath",
    "Hypothesis",
    "best_path",
    "collapse",
    "ctc_beam_search",
    "ctc_greedy",
    "ctc_text",
    "frame_lengths",
]
