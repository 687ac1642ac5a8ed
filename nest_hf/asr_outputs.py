"""What the recogniser returns.

Dimensions: B recordings, T encoder frames, D width of the audio tower, L text positions, V outputs of the CTC head.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class NestAsrEncodedAudio(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, T, D)`): Encoder frames.
        mask (`torch.BoolTensor` of shape `(B, T)`): True at valid frames.
    """

    last_hidden_state: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


@dataclass
class NestAsrOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): `lm_weight * lm_loss + ctc_weight * ctc_loss`.
        lm_loss (`torch.FloatTensor` of shape `()`): Nats per answer token, the end token included; without gradient.
        ctc_loss (`torch.FloatTensor` of shape `()`): Nats per CTC target token; without gradient.
        lm_loss_sum, ctc_loss_sum (`torch.FloatTensor` of shape `()`): The sums behind them; without gradient.
        num_lm_tokens, num_ctc_tokens (`torch.LongTensor` of shape `()`): Target tokens of this batch.
        num_ctc_impossible (`torch.LongTensor` of shape `()`):
            Recordings whose CTC target is longer than their frames allow; they add nothing to `ctc_loss_sum`.
        logits (`torch.FloatTensor` of shape `(B, L, vocabulary)`): None with `labels`, unless `output_logits=True`.
        ctc_logits (`torch.FloatTensor` of shape `(B, T, V)`): Where the CTC head ran; padded frames are blanks.
        encoder_mask (`torch.BoolTensor` of shape `(B, T)`): True at valid encoder frames.
        past_key_values, hidden_states, attentions: Those of the language model.
    """

    loss: torch.FloatTensor | None = None
    lm_loss: torch.FloatTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    lm_loss_sum: torch.FloatTensor | None = None
    ctc_loss_sum: torch.FloatTensor | None = None
    num_lm_tokens: torch.LongTensor | None = None
    num_ctc_tokens: torch.LongTensor | None = None
    num_ctc_impossible: torch.LongTensor | None = None
    logits: torch.FloatTensor | None = None
    ctc_logits: torch.FloatTensor | None = None
    encoder_mask: torch.BoolTensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
