"""The two losses of the recogniser, as sums: the caller divides by the global count of target tokens."""

import torch
from torch import nn
from torch.nn import functional as F


def answer_loss(hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: nn.Module):
    """Cross-entropy of the next token, in float32, at the labelled positions alone: no other logits exist.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, L, H)`): Output of the language model.
        labels (`torch.LongTensor` of shape `(B, L)`): Token ids, -100 outside the answer.
        lm_head: H -> vocabulary.

    Returns:
        The sum in nats, and the number of tokens.
    """
    targets = labels[:, 1:]
    in_loss = targets != -100
    logits = lm_head(hidden_states[:, :-1][in_loss])  # (N, vocabulary)
    return F.cross_entropy(logits.float(), targets[in_loss], reduction="sum"), in_loss.sum()


def ctc_loss(logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, blank: int):
    """CTC in float32. A target that does not fit into its frames has no path: it adds no loss, and is counted.

    Args:
        logits (`torch.FloatTensor` of shape `(B, T, V)`): Output of the CTC head.
        mask (`torch.BoolTensor` of shape `(B, T)`): True at valid frames.
        labels (`torch.LongTensor` of shape `(B, L)`): Token ids, -100 at padding.
        blank (`int`): Id of the blank.

    Returns:
        The sum in nats, the number of target tokens of all recordings, and the number of recordings without a path.
    """
    is_label = labels != -100
    num_frames, num_labels = mask.sum(-1), is_label.sum(-1)
    # between two equal tokens a path needs a blank
    repeats = (is_label[:, 1:] & (labels[:, 1:] == labels[:, :-1])).sum(-1)
    impossible = num_labels + repeats > num_frames
    with torch.backends.cudnn.flags(enabled=False):
        total = F.ctc_loss(
            F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1),
            labels[is_label],
            num_frames,
            num_labels,
            blank=blank,
            reduction="sum",
            zero_infinity=True,
        )
    return total, num_labels.sum(), impossible.sum()


def per_token(total: torch.Tensor, count: torch.Tensor, global_count: torch.Tensor | int | None) -> torch.Tensor:
    """A sum over the global count of tokens, or over its own; 0 where there are none."""
    count = count if global_count is None else torch.as_tensor(global_count, device=total.device)
    return total / count.clamp_min(1)
