"""The modules between audio tower and outputs: the adaptor to the language model, and the CTC head.

Layers and tensor names are those of transformers' `fun_asr_nano`.
Dimensions: B recordings, T encoder frames, D width of the audio tower, k stacked frames, H width of the output.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoderLayer

from .configuration_nest_asr import NestAsrAdaptorConfig, NestAsrCtcConfig


def stack_frames(hidden_states: torch.Tensor, mask: torch.Tensor, num_stacked_frames: int):
    """Joins every k frames; padding counts as zeros, so that it changes nothing.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, T, D)`): Encoder frames.
        mask (`torch.BoolTensor` of shape `(B, T)`): True at valid frames, which come first.
        num_stacked_frames (`int`): k.

    Returns:
        `(B, ceil(T / k), k * D)` and its mask `(B, ceil(T / k))`.
    """
    if num_stacked_frames == 1:
        return hidden_states, mask
    missing = -hidden_states.shape[1] % num_stacked_frames
    hidden_states = F.pad(hidden_states.masked_fill(~mask[..., None], 0.0), (0, 0, 0, missing))
    mask = F.pad(mask, (0, missing))[:, ::num_stacked_frames]
    return hidden_states.unflatten(1, (-1, num_stacked_frames)).flatten(2), mask


class NestAsrAdaptor(nn.Module):
    """Audio frames -> embeddings of the language model."""

    def __init__(self, config: NestAsrAdaptorConfig, input_size: int):
        super().__init__()
        self.config = config
        stacked_size = input_size * config.num_stacked_frames
        self.layers = nn.ModuleList()
        if config.kind == "linear":
            self.linear_1 = nn.Linear(stacked_size, config.hidden_size)
        else:
            self.linear_1 = nn.Linear(stacked_size, config.projector_hidden_size)
            self.act = ACT2FN[config.projector_hidden_act]
            self.linear_2 = nn.Linear(config.projector_hidden_size, config.hidden_size)
        if config.kind == "transformer":
            self.layers.extend(FunAsrNanoEncoderLayer(config, use_fsmn=False) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6) if config.output_norm else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, T, D)`, `(B, T)` bool -> `(B, ceil(T / k), H)` and its mask."""
        hidden_states, mask = stack_frames(hidden_states, mask, self.config.num_stacked_frames)
        hidden_states = self.linear_1(hidden_states)
        if self.config.kind != "linear":
            hidden_states = self.linear_2(self.act(hidden_states))
        if len(self.layers):
            keys = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=mask)
            for layer in self.layers:
                hidden_states = layer(hidden_states, keys)
        return self.norm(hidden_states), mask


class NestAsrCtcHead(nn.Module):
    """Audio frames -> CTC logits, through a linear layer or Fun-ASR-Nano's decoder."""

    def __init__(self, config: NestAsrCtcConfig, input_size: int):
        super().__init__()
        self.blank = config.pad_token_id
        width = config.hidden_size if config.kind == "transformer" else input_size
        self.decoder = NestAsrAdaptor(config, input_size) if config.kind == "transformer" else None
        self.classifier = nn.Linear(width, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(B, T, D)`, `(B, T)` bool -> `(B, T, V)`; padded frames are blanks, which a decoder skips."""
        if self.decoder is not None:
            hidden_states, _ = self.decoder(hidden_states, mask)
        logits = self.classifier(hidden_states)
        # in place: with 60,000 outputs a copy is a gigabyte
        padding = ~mask
        logits.masked_fill_(padding[..., None], torch.finfo(logits.dtype).min)
        logits[..., self.blank].masked_fill_(padding, 0.0)
        return logits
