"""NEST (arXiv 2408.13106): FastConformer encoder, masked token prediction, CTC.

Modules and parameter names are those of transformers' Parakeet, so that weights pass between both by plain loading.
What differs is NeMo's training behaviour (dropout on residual branches, no layer drop, initial weights) and speed.

Dimensions: B recordings, T mel frames, M mel bins, T' = T / S encoder frames, D hidden size, h heads, d head size,
H codebooks, C codes per codebook, V vocabulary.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderBlock,
    ParakeetEncoderConvolutionModule,
    ParakeetEncoderCTCHead,
    ParakeetEncoderFeedForward,
    ParakeetEncoderModelOutput,
    ParakeetEncoderRelPositionalEncoding,
    ParakeetEncoderSubsamplingConv2D,
    eager_attention_forward,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_nest import NestConfig
from .cpu_ops import MaskedReLU, NestLinear, PatchStage, dropout, is_plain_cpu, linear
from .masking import frames_in_loss
from .quantizer import RandomProjectionQuantizer


def subsampled_length(lengths: torch.Tensor, subsampling_factor: int) -> torch.Tensor:
    """Encoder frames of `lengths` mel frames: one ceil(n / 2) per strided convolution."""
    for _ in range(int(math.log2(subsampling_factor))):
        lengths = (lengths + 1) // 2
    return lengths


def frame_mask(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B,) -> (B, num_frames) bool: True at valid frames."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


@contextmanager
def fetched(*modules: nn.Module):
    """
    The weights of `modules`, where accelerate keeps some on disk or another device (`device_map`): it fetches those of
    a module that is called, and here they are used without.
    """
    hooked = [module for module in modules if hasattr(module, "_hf_hook")]
    for module in hooked:
        module._hf_hook.pre_forward(module)
    yield
    for module in reversed(hooked):
        module._hf_hook.post_forward(module, ())


class NestSubsampling(ParakeetEncoderSubsamplingConv2D):
    """dw_striding subsampling, channels last: first and pointwise convolutions are matrix products.

    NeMo zeroes the padding before every convolution. Between a depthwise and a pointwise convolution this changes
    nothing that the next zeroing does not undo, so it happens once per stage, together with the ReLU.
    """

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.masked = config.masked_subsampling
        NestLinear.replace(self, "linear")

    def forward(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, T, M)`, `(B, T)` -> `(B, T', D)`."""
        with fetched(self.layers[0], *list(self.layers)[3::3]):  # the first and the pointwise convolutions
            hidden = self._convolve(input_features, attention_mask)
        hidden = hidden.transpose(2, 3).flatten(2)  # (B, T', M', channels) -> (B, T', channels * M')
        return self.linear(hidden)

    def _convolve(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(B, T, M)`, `(B, T)` -> `(B, T', M', channels)`."""
        lengths = attention_mask.sum(-1) if attention_mask is not None and self.masked else None
        first, pad = self.layers[0], self.padding
        patches = F.pad(input_features, (pad, pad, pad, pad))
        patches = patches.unfold(1, self.kernel_size, self.stride).unfold(2, self.kernel_size, self.stride)
        patches = patches.flatten(3)  # (B, T/2, M/2, 9)
        if is_plain_cpu(patches):
            lengths, mask = self._next_mask(lengths, patches.shape[1])
            mask = mask.expand(patches.shape[:3] + (1,)).reshape(-1, 1) if mask is not None else None
            weight = torch.cat([first.weight.flatten(1), first.bias[:, None]], dim=1)
            hidden = PatchStage.apply(F.pad(patches.flatten(0, 2), (0, 1), value=1.0), weight, mask)
            hidden = hidden.view(*patches.shape[:3], -1)
        else:
            hidden, lengths = self._activate(F.linear(patches, first.weight.flatten(1), first.bias), lengths)
        for index in range(self.num_layers - 1):
            depthwise, pointwise = self.layers[2 + 3 * index], self.layers[3 + 3 * index]
            hidden = depthwise(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            hidden = linear(hidden, pointwise.weight.flatten(1), pointwise.bias)
            hidden, lengths = self._activate(hidden, lengths)
        return hidden

    @staticmethod
    def _next_mask(lengths: torch.Tensor | None, num_frames: int):
        """Lengths after a strided convolution, and their mask (B, num_frames, 1, 1)."""
        if lengths is None:
            return None, None
        lengths = (lengths + 1) // 2
        return lengths, frame_mask(lengths, num_frames)[:, :, None, None]

    def _activate(self, hidden: torch.Tensor, lengths: torch.Tensor | None):
        lengths, mask = self._next_mask(lengths, hidden.shape[1])
        return MaskedReLU.apply(hidden, mask), lengths


class NestFeedForward(ParakeetEncoderFeedForward):
    def __init__(self, config: NestConfig):
        super().__init__(config)
        NestLinear.replace(self, "linear1", "linear2")

    def forward(self, hidden_states):
        hidden_states = self.activation(self.linear1(hidden_states))
        return self.linear2(dropout(hidden_states, self.activation_dropout, self.training))


class NestConvolution(ParakeetEncoderConvolutionModule):
    """The convolution module with the channels last: pointwise convolutions as linear layers, no transposed copies."""

    def forward(self, hidden_states, valid_frames=None):
        """`hidden_states` (B, T', D); `valid_frames` (B, T') bool."""
        with fetched(self.pointwise_conv1, self.depthwise_conv, self.pointwise_conv2):
            return self._convolve(hidden_states, valid_frames)

    def _convolve(self, hidden_states, valid_frames):
        hidden_states = linear(hidden_states, self.pointwise_conv1.weight.squeeze(-1), self.pointwise_conv1.bias)
        hidden_states = F.glu(hidden_states, dim=-1)
        if valid_frames is not None:
            hidden_states = hidden_states * valid_frames[..., None]
        depthwise = self.depthwise_conv
        hidden_states = F.conv2d(  # as an image of height 1, for which the channels may lie last
            hidden_states.transpose(1, 2)[:, :, None],
            depthwise.weight[:, :, None],
            depthwise.bias,
            padding=(0, self.padding),
            groups=depthwise.groups,
        )[:, :, 0].transpose(1, 2)
        # (B, T', D) -> (B * T', D) and back: the statistics run over both, padding included, as in NeMo
        hidden_states = self.norm(hidden_states.flatten(0, 1)).view_as(hidden_states)
        hidden_states = self.activation(hidden_states)
        return linear(hidden_states, self.pointwise_conv2.weight.squeeze(-1), self.pointwise_conv2.bias)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout_p=0.0, **kwargs):
    """softmax(q k^T * scaling + attention_mask) v; (B, h, T', d) -> (B, T', h, d), and the weights (B, h, T', T')."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = dropout(weights, dropout_p, module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class NestAttention(ParakeetEncoderAttention):
    """Multi-head attention with relative positions (Transformer-XL, arXiv 1901.02860, section 3.3)."""

    def __init__(self, config: NestConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        NestLinear.replace(self, "q_proj", "k_proj", "v_proj", "o_proj", "relative_k_proj")

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        """
        Args:
            hidden_states: (B, T', D).
            position_embeddings: (1, 2T' - 1, D), from position T' - 1 down to -(T' - 1).
            attention_mask: (B, 1, 1, T') bool, True at valid keys.
        """
        batch, length, _ = hidden_states.shape
        heads = (batch, length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        # one projection of the positions for the whole batch
        relative_key = self.relative_k_proj(position_embeddings).view(1, 2 * length - 1, -1, self.head_dim)

        position_scores = ((query + self.bias_v) * self.scaling).transpose(1, 2) @ relative_key.permute(0, 2, 3, 1)
        position_scores = self._rel_shift(position_scores)[..., :length]  # (B, h, T', 2T' - 1) -> (B, h, T', T')
        if attention_mask is not None:
            lowest = torch.finfo(position_scores.dtype).min
            position_scores = position_scores.masked_fill(~attention_mask, lowest)

        # On CPU sdpa has no fast path with dropout; our own dropout does
        slow_sdpa = self.training and self.attention_dropout > 0 and hidden_states.device.type == "cpu"
        implementation = self.config._attn_implementation
        if implementation == "eager" or (implementation == "sdpa" and slow_sdpa):
            attend, drop = eager_attention, {"dropout_p": self.attention_dropout}
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
            drop = {"dropout": self.attention_dropout if self.training else 0.0}
        context, weights = attend(
            self,
            (query + self.bias_u).transpose(1, 2),
            key,
            value,
            attention_mask=position_scores,
            scaling=self.scaling,
            **drop,
            **kwargs,
        )
        return self.o_proj(context.reshape(batch, length, -1)), weights


class NestBlock(ParakeetEncoderBlock):
    """Conformer block: half a feed-forward, attention, convolution, half a feed-forward; dropout on each branch."""

    def __init__(self, config: NestConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.feed_forward1 = NestFeedForward(config)
        self.self_attn = NestAttention(config, layer_idx)
        self.conv = NestConvolution(config)
        self.feed_forward2 = NestFeedForward(config)
        for name in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            setattr(self, f"norm_{name}", nn.LayerNorm(config.hidden_size))
        self.branch_dropout = config.hidden_dropout

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        """`hidden_states` (B, T', D), `attention_mask` (B, T') bool, `position_embeddings` (1, 2T' - 1, D)."""

        def add(hidden_states, branch, weight=1.0):
            return torch.add(hidden_states, dropout(branch, self.branch_dropout, self.training), alpha=weight)

        x = hidden_states
        x = add(x, self.feed_forward1(self.norm_feed_forward1(x)), 0.5)
        keys = attention_mask[:, None, None, :] if attention_mask is not None else None
        x = add(x, self.self_attn(self.norm_self_att(x), position_embeddings, keys, **kwargs)[0])
        x = add(x, self.conv(self.norm_conv(x), attention_mask))
        x = add(x, self.feed_forward2(self.norm_feed_forward2(x)), 0.5)
        return self.norm_out(x)


class NestPreTrainedModel(PreTrainedModel):
    """
    What all NEST models have in common: their config, NeMo's initial weights, loading and saving.

    Example:

    ```python
    >>> from nest_hf import NestConfig, NestForCTC, NestPreTrainedModel

    >>> isinstance(NestForCTC(NestConfig.from_preset("tiny", vocab_size=10)), NestPreTrainedModel)
    True

    ```
    """

    config: NestConfig
    base_model_prefix = "encoder"
    main_input_name = "input_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NestBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NestBlock, "attentions": NestAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        """NeMo's initial weights: torch's defaults, not normal(0, 0.02), which keeps a FastConformer from learning."""
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm1d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, NestAttention):
            init.zeros_(module.bias_u)
            init.zeros_(module.bias_v)
        elif isinstance(module, ParakeetEncoderRelPositionalEncoding):
            init.copy_(module.inv_freq, module.compute_default_relative_positional_parameters(module.config))
        elif isinstance(module, RandomProjectionQuantizer):
            module.reset_parameters()
        elif isinstance(module, NestForPreTraining):
            # here, since transformers passes over a module without tensors of its own, as the decoder is
            init.xavier_uniform_(module.decoder.linear.weight)
            if module.config.mask_value is None:
                init.normal_(module.mask_embedding, std=0.1)
            else:
                init.constant_(module.mask_embedding, module.config.mask_value)


class NestModel(NestPreTrainedModel):
    r"""
    The FastConformer encoder of NEST (arXiv 2408.13106, section 2.1).

    The features of a recording, one vector every 80 ms, of a pretraining or CTC folder; with `trust_remote_code=True`
    also where nest_hf is not installed. The output's `attention_mask` is 1 at the frames that are no padding:

    ```python
    extractor, model = AutoFeatureExtractor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    features = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).last_hidden_state  # (1, T', D)
    ```

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestModel

    >>> model = NestModel(NestConfig.from_preset("tiny")).eval()
    >>> model(torch.randn(2, 112, 80)).last_hidden_state.shape
    torch.Size([2, 14, 64])

    ```
    """

    _keys_to_ignore_on_load_unexpected = [
        r"^(quantizer|decoder|ctc_head|projector|classifier|tdnn|feature_extractor|objective)\.",
        r"^(mask_embedding|layer_weights)$",
    ]

    def __init__(self, config: NestConfig):
        config.validate_nest()
        super().__init__(config)
        self.input_scale = math.sqrt(config.hidden_size) if config.scale_input else 1.0
        self.subsampling = NestSubsampling(config)
        self.encode_positions = ParakeetEncoderRelPositionalEncoding(config)
        self.layers = nn.ModuleList(NestBlock(config, index) for index in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        mask_embedding: torch.Tensor | None = None,
        **kwargs,
    ) -> ParakeetEncoderModelOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Log-mel features; padded frames are zeroed here.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames, 0 at padding.
            mask_time_indices (`torch.BoolTensor` of shape `(B, T')`, *optional*):
                Encoder frames to replace by `mask_embedding` (D,) after the subsampling.

        Returns:
            `last_hidden_state` (B, T', D), `attention_mask` (B, T') or None, `hidden_states` on request: the
            input of the first block and the output of each (NeMo's layer i is `hidden_states[i + 1]`).
        """
        if input_features.shape[-1] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` has {input_features.shape[-1]} mel bins, the model {self.config.num_mel_bins}; "
                "pass them as (batch, frames, mel bins)."
            )
        valid_frames = None
        input_features = input_features.to(self.subsampling.linear.weight.dtype)
        if attention_mask is not None:
            input_features = input_features * attention_mask[..., None].to(input_features.dtype)
        hidden_states = self.subsampling(input_features, attention_mask)
        if attention_mask is not None:
            lengths = subsampled_length(attention_mask.sum(-1), self.config.subsampling_factor)
            valid_frames = frame_mask(lengths, hidden_states.shape[1])
        if mask_time_indices is not None:
            hidden_states = torch.where(mask_time_indices[..., None], mask_embedding.to(hidden_states), hidden_states)
        hidden_states = dropout(hidden_states * self.input_scale, self.config.dropout, self.training)
        positions = self.encode_positions(hidden_states[:1])
        positions = dropout(positions, self.config.dropout_positions, self.training)

        for layer in self.layers:
            hidden_states = layer(hidden_states, valid_frames, positions, **kwargs)

        return ParakeetEncoderModelOutput(
            last_hidden_state=hidden_states,
            attention_mask=valid_frames.int() if valid_frames is not None else None,
        )


class MultiSoftmaxDecoder(nn.Module):
    """One linear classifier per codebook: (..., D) -> (..., H, C) logits."""

    def __init__(self, config: NestConfig):
        super().__init__()
        self.num_codebooks = config.num_codebooks
        self.linear = NestLinear(config.hidden_size, config.num_codebooks * config.codebook_size, config.decoder_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden_states).unflatten(-1, (self.num_codebooks, -1))


@dataclass
class NestForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Mean negative log-likelihood per masked frame and codebook, nats.
        logits (`torch.FloatTensor` of shape `(B, T', H, C)`): None in training unless `output_logits=True`.
        codes (`torch.LongTensor` of shape `(B, T', H)`): The targets.
        labels (`torch.LongTensor` of shape `(B, T')`): 0 at the frames in the loss, -100 elsewhere.
        num_correct (`torch.LongTensor` of shape `()`): Right predictions among the frames in the loss times H.
        attention_mask (`torch.IntTensor` of shape `(B, T')`): 1 at valid encoder frames.
        hidden_states, attentions: As [`NestModel`], on request.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForPreTraining

    >>> model = NestForPreTraining(NestConfig.from_preset("tiny")).eval()
    >>> features = torch.randn(1, 64, 80)
    >>> mask = torch.arange(64)[None] < 32
    >>> output = model(features, target_features=features, mask_time_indices=mask)
    >>> output.codes.shape, output.labels.tolist()
    (torch.Size([1, 8, 1]), [[0, 0, 0, 0, -100, -100, -100, -100]])

    ```
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    labels: torch.LongTensor | None = None
    num_correct: torch.LongTensor | None = None
    attention_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class NestForPreTraining(NestPreTrainedModel):
    r"""
    NEST's pretraining (arXiv 2408.13106, figure 1): predict, at masked frames of the noisy speech, the quantizer's
    codes of the clean speech.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForPreTraining

    >>> model = NestForPreTraining(NestConfig.from_preset("tiny")).eval()
    >>> clean = torch.randn(1, 112, 80)
    >>> mask = torch.zeros(1, 112, dtype=torch.bool)
    >>> mask[:, 16:56] = True
    >>> out = model(clean + 0.1 * torch.randn_like(clean), target_features=clean, mask_time_indices=mask)
    >>> out.codes.shape, out.logits.shape
    (torch.Size([1, 14, 1]), torch.Size([1, 14, 1, 64]))

    ```
    """

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.encoder = NestModel(config)
        self.quantizer = RandomProjectionQuantizer(config)
        width = config.num_mel_bins if config.mask_position == "pre_conv" else config.hidden_size
        frozen = config.freeze_mask_embedding or config.mask_value is not None
        self.mask_embedding = (nn.Buffer if frozen else nn.Parameter)(torch.zeros(width))
        self.decoder = MultiSoftmaxDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but a missing tensor is an error: a new codebook means new targets."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        if lost:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(lost)} tensors of NestForPreTraining "
                f"({', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}); load a pretraining checkpoint, or use "
                "NestModel for the encoder alone."
            )
        return (model, info) if output_loading_info else model

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> NestForPreTrainingOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Noisy log-mel features.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames.
            target_features (`torch.FloatTensor` of shape `(B, T, M)`, *optional*):
                Clean features, from which the targets come; `input_features` where not given.
            mask_time_indices (`torch.BoolTensor`, *optional*):
                Frames to mask: `(B, T)`, or `(B, T')` where `config.mask_position` is `"post_conv"`. Without it
                nothing is masked and there is no loss.
            labels (`torch.LongTensor` of shape `(B, T')`, *optional*):
                -100 at the frames outside the loss; made from `mask_time_indices` where not given.
            output_logits (`bool`, *optional*): Decode all frames; by default in eval mode only.
            num_items_in_batch (`int`, *optional*): Frames in the loss of the whole (accumulated, distributed) batch.
        """
        target_features = input_features if target_features is None else target_features
        if target_features.shape != input_features.shape:
            raise ValueError(
                f"`target_features` has shape {tuple(target_features.shape)} but `input_features` "
                f"{tuple(input_features.shape)}; pass features of equal shape."
            )
        # 1. targets: codes of the clean speech
        codes = self.quantizer(target_features)

        # 2. mask the noisy speech
        masking = {}
        if mask_time_indices is not None:
            if self.config.mask_position == "pre_conv":
                embedding = self.mask_embedding.to(input_features.dtype)
                input_features = torch.where(mask_time_indices[..., None], embedding, input_features)
            else:
                masking = {"mask_time_indices": mask_time_indices, "mask_embedding": self.mask_embedding}
            if labels is None:
                labels = self._labels(mask_time_indices)

        # 3. encode
        encoded = self.encoder(input_features, attention_mask, return_dict=True, **masking, **kwargs)
        hidden_states = encoded.last_hidden_state

        # 4. predict the codes of the masked frames
        loss = num_correct = logits = None
        if labels is not None:
            in_loss = labels != -100
            if output_logits or (output_logits is None and not self.training):
                logits = self.decoder(hidden_states)
            predicted = self.decoder(hidden_states[in_loss]) if logits is None else logits[in_loss]  # (N, H, C)
            targets = codes[in_loss]
            loss, num_correct = self._loss(predicted, targets, num_items_in_batch)
        elif output_logits is not False:
            logits = self.decoder(hidden_states)

        if self.config.squeeze_single and self.config.num_codebooks == 1:
            codes = codes.squeeze(-1)
            logits = logits.squeeze(-2) if logits is not None else None
        return NestForPreTrainingOutput(
            loss=loss,
            logits=logits,
            codes=codes,
            labels=labels,
            num_correct=num_correct,
            attention_mask=encoded.attention_mask,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _labels(self, mask_time_indices: torch.Tensor) -> torch.Tensor:
        in_loss = frames_in_loss(mask_time_indices, self.config.masked_frames_per_label, self.config.mask_threshold)
        return torch.where(in_loss, 0, -100)

    @staticmethod
    def _loss(logits, targets, num_items_in_batch):
        """Sum over N frames and H codebooks / (global N * H), in float32; 0 where no frame is masked."""
        num_frames, num_codebooks, codebook_size = logits.shape
        logits = logits.reshape(-1, codebook_size).float()
        total = F.cross_entropy(logits, targets.reshape(-1), reduction="sum")
        count = num_frames if num_items_in_batch is None else num_items_in_batch
        count = count.clamp_min(1) if isinstance(count, torch.Tensor) else max(count, 1)
        return total / (count * num_codebooks), (logits.detach().argmax(-1) == targets.reshape(-1)).sum()


class NestForCTC(NestPreTrainedModel):
    r"""
    The encoder with a linear CTC head; the blank is `config.pad_token_id`.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForCTC

    >>> config = NestConfig.from_preset("tiny", vocab_size=12, pad_token_id=11)
    >>> NestForCTC(config)(torch.randn(1, 112, 80), labels=torch.tensor([[3, 1, 4]])).logits.shape
    torch.Size([1, 14, 12])

    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^quantizer\.", r"^mask_embedding$", r"^decoder\."]

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.encoder = NestModel(config)
        self.ctc_head = ParakeetEncoderCTCHead(config.hidden_size, config.vocab_size, kernel_size=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): Token ids, -100 or the blank at padding.
        """
        encoded = self.encoder(input_features, attention_mask, return_dict=True, **kwargs)
        logits = self.ctc_head(encoded.last_hidden_state)  # (B, T', V)
        if encoded.attention_mask is not None:
            # padded frames are blanks, so that a stock CTC decoder writes nothing there
            blank = F.one_hot(torch.tensor(self.config.pad_token_id, device=logits.device), self.config.vocab_size)
            blank = (1 - blank).to(logits.dtype) * torch.finfo(logits.dtype).min
            logits = torch.where(encoded.attention_mask[..., None].bool(), logits, blank)
        loss = None
        if labels is not None:
            lengths = torch.full((logits.shape[0],), logits.shape[1], device=logits.device)
            if encoded.attention_mask is not None:
                lengths = encoded.attention_mask.sum(-1)
            is_label = (labels >= 0) & (labels != self.config.pad_token_id)
            with torch.backends.cudnn.flags(enabled=False):
                loss = F.ctc_loss(
                    F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1),
                    labels[is_label],
                    lengths,
                    is_label.sum(-1),
                    blank=self.config.pad_token_id,
                    reduction=self.config.ctc_loss_reduction,
                    zero_infinity=self.config.ctc_zero_infinity,
                )
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


AGGREGATIONS = ("cat", "sum", "mean", "max", "min", "weighted_sum")


def aggregate_layers(hidden_states, mode: str, weights: torch.Tensor | None = None) -> torch.Tensor:
    """NeMo's multi-layer aggregations.

    Args:
        hidden_states (sequence of L tensors of shape `(B, T', D)`): Layers to join.
        mode (`str`): `cat` along D (in the order of the layers), `sum`, `mean`, `max`, `min` or `weighted_sum`.
        weights (`torch.Tensor` of shape `(L,)`, *optional*): For `weighted_sum`; used as they are, 1 / L by default.

    Returns:
        `torch.Tensor` of shape `(B, T', D)`, or `(B, T', L * D)` for `cat`.
    """
    if mode not in AGGREGATIONS:
        raise ValueError(f"`mode` is {mode!r}; choose one of {', '.join(AGGREGATIONS)}.")
    if mode == "cat":
        return torch.cat(tuple(hidden_states), dim=-1)
    stacked = torch.stack(tuple(hidden_states))  # (L, B, T', D)
    if mode == "weighted_sum":
        if weights is None:
            weights = stacked.new_full((len(stacked),), 1 / len(stacked))
        if len(weights) != len(stacked):
            raise ValueError(f"`weights` has {len(weights)} entries for {len(stacked)} layers.")
        return torch.einsum("l,lbtd->btd", weights.to(stacked), stacked)
    if mode in ("max", "min"):
        return getattr(stacked, f"a{mode}")(0)
    return getattr(stacked, mode)(0)


__all__ = [
    "NestForCTC",
    "NestForPreTraining",
    "NestForPreTrainingOutput",
    "NestModel",
    "NestPreTrainedModel",
    "aggregate_layers",
]
