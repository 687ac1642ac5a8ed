"""NEST with the heads of speech classification: one label a recording, one label a frame, speaker embeddings.

Names of parameters, config fields and losses are those of transformers' Wav2Vec2. What differs: padding changes
neither the logits nor the loss, and the x-vector's convolutions keep the number of frames, since 80 ms a frame leave a
short recording fewer than their kernels span.

Dimensions: B recordings, T mel frames, M mel bins, T' encoder frames, D hidden size, C classes, X x-vector width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput, XVectorOutput
from transformers.utils.generic import can_return_tuple

from .configuration_nest import NestConfig
from .modeling_nest import NestModel, NestPreTrainedModel, aggregate_layers


class NestClassifierModel(NestPreTrainedModel):
    """What the heads share: the encoder, the learned sum of its layers, and its freezing."""

    _keys_to_ignore_on_load_unexpected = [r"^quantizer\.", r"^mask_embedding$", r"^decoder\.", r"^ctc_head\."]

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.encoder = NestModel(config)
        num_layers = config.num_hidden_layers + 1  # blocks, and the input of the first
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.full((num_layers,), 1 / num_layers))
        self.encoder_is_frozen = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, NestClassifierModel) and module.config.use_weighted_layer_sum:
            init.constant_(module.layer_weights, 1 / len(module.layer_weights))
        elif isinstance(module, AMSoftmaxLoss):
            init.normal_(module.weight)

    def freeze_feature_encoder(self):
        """The subsampling does not train any more."""
        self.encoder.subsampling.requires_grad_(False)

    def freeze_base_model(self):
        """Only the head and the weights of the layers train; the encoder stays in eval mode, its BatchNorms too."""
        self.encoder.requires_grad_(False)
        self.encoder_is_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def encode(self, input_features, attention_mask=None, output_hidden_states=None, **kwargs):
        """
        Returns:
            `(B, T', D)`, the last layer or the learned sum of all; `(B, T')` bool, True at valid frames; hidden states
            and attentions, each on request.
        """
        requested = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weighted = self.config.use_weighted_layer_sum
        out = self.encoder(
            input_features, attention_mask, output_hidden_states=weighted or requested, return_dict=True, **kwargs
        )
        frames = out.last_hidden_state
        if weighted:
            frames = aggregate_layers(out.hidden_states, "weighted_sum", self.layer_weights.softmax(-1))
        valid = frames.new_ones(frames.shape[:2], dtype=torch.bool)
        if out.attention_mask is not None:
            valid = out.attention_mask.bool()
        return frames, valid, out.hidden_states if requested else None, out.attentions


class NestForSequenceClassification(NestClassifierModel):
    r"""
    One label for a recording (a word, a speaker, an emotion): the mean over its frames, and a linear classifier.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForSequenceClassification

    >>> config = NestConfig.from_preset("tiny", num_labels=10, use_weighted_layer_sum=True)
    >>> model = NestForSequenceClassification(config)
    >>> model.freeze_base_model()
    >>> out = model(torch.randn(2, 112, 80), labels=torch.tensor([3, 7]))
    >>> out.logits.shape, out.loss.requires_grad
    (torch.Size([2, 10]), True)

    ```
    """

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Classes, 0 to C - 1.
        """
        frames, valid, hidden_states, attentions = self.encode(input_features, attention_mask, **kwargs)
        pooled, _ = mean_and_deviation(self.projector(frames), valid)
        logits = self.classifier(pooled)  # (B, C)
        loss = F.cross_entropy(logits.float(), labels.reshape(-1)) if labels is not None else None
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


class NestForAudioFrameClassification(NestClassifierModel):
    r"""
    One label for each frame of 80 ms (who speaks, whether anyone speaks): a linear classifier.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForAudioFrameClassification

    >>> model = NestForAudioFrameClassification(NestConfig.from_preset("tiny", num_labels=2))
    >>> model(torch.randn(1, 112, 80), labels=torch.ones(1, 14, dtype=torch.long)).logits.shape
    torch.Size([1, 14, 2])

    ```
    """

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames.
            labels (`torch.Tensor`, *optional*):
                `(B, T')` classes, -100 where there is none, or as Wav2Vec2 takes them: `(B, T', C)`, 1 at the class.
                Padding is left out of the loss, whatever its labels are.
        """
        frames, valid, hidden_states, attentions = self.encode(input_features, attention_mask, **kwargs)
        logits = self.classifier(frames)  # (B, T', C)
        loss = None
        if labels is not None:
            classes = labels.argmax(-1) if labels.dim() == 3 else labels
            if classes.shape != valid.shape:
                raise ValueError(
                    f"`labels` has shape {tuple(labels.shape)} for {tuple(valid.shape)} encoder frames; pass a label "
                    f"for each of them, one every {self.config.subsampling_factor} mel frames."
                )
            loss = F.cross_entropy(logits.float().transpose(1, 2), classes.masked_fill(~valid, -100))
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


class TDNNLayer(nn.Module):
    """A dilated convolution over the frames, and ReLU; beyond the valid frames there are zeros, as at an edge."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.kernel = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, padding="same")

    def forward(self, hidden_states: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """`(B, T', in)`, `(B, T')` -> `(B, T', out)`."""
        hidden_states = hidden_states * valid[..., None]
        return F.relu(self.kernel(hidden_states.transpose(1, 2))).transpose(1, 2)


class AMSoftmaxLoss(nn.Module):
    """Additive-margin softmax (arXiv 1801.05599, equation 6): the right class must win by `margin` in cosine."""

    def __init__(self, width: int, num_labels: int, scale: float = 30.0, margin: float = 0.4):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.randn(width, num_labels))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`(B, X)`, `(B,)` -> loss, in float32."""
        labels = labels.reshape(-1)
        cosines = F.normalize(embeddings.float(), dim=1) @ F.normalize(self.weight.float(), dim=0)  # (B, C)
        margins = self.margin * F.one_hot(labels, cosines.shape[1])
        return F.cross_entropy(self.scale * (cosines - margins), labels)


class NestForXVector(NestClassifierModel):
    r"""
    Speaker embeddings (x-vectors, Snyder et al. 2018): dilated convolutions, mean and deviation over the frames, two
    linear layers, trained by an additive-margin softmax over the training's speakers. Two recordings are compared by
    the cosine of their `embeddings`.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf import NestConfig, NestForXVector

    >>> model = NestForXVector(NestConfig.from_preset("tiny", num_labels=5, xvector_output_dim=32)).eval()
    >>> out = model(torch.randn(2, 112, 80), labels=torch.tensor([0, 4]))
    >>> out.embeddings.shape, out.logits.shape, out.loss.shape
    (torch.Size([2, 32]), torch.Size([2, 32]), torch.Size([]))

    ```
    """

    def __init__(self, config: NestConfig):
        super().__init__(config)
        widths = list(config.tdnn_dim)
        if not len(widths) == len(config.tdnn_kernel) == len(config.tdnn_dilation) > 0:
            raise ValueError(
                f"`tdnn_dim`, `tdnn_kernel` and `tdnn_dilation` have {len(widths)}, {len(config.tdnn_kernel)} and "
                f"{len(config.tdnn_dilation)} entries; give one of each per layer."
            )
        self.projector = nn.Linear(config.hidden_size, widths[0])
        shapes = zip([widths[0], *widths[:-1]], widths, config.tdnn_kernel, config.tdnn_dilation, strict=True)
        self.tdnn = nn.ModuleList(TDNNLayer(*shape) for shape in shapes)
        self.feature_extractor = nn.Linear(2 * widths[-1], config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmaxLoss(config.xvector_output_dim, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> XVectorOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(B, T, M)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 at valid frames.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Speakers, 0 to C - 1.

        Returns:
            `embeddings` (B, X), to compare speakers by; `logits` (B, X), from which the loss takes its cosines, as in
            Wav2Vec2.
        """
        frames, valid, hidden_states, attentions = self.encode(input_features, attention_mask, **kwargs)
        frames = self.projector(frames)
        for layer in self.tdnn:
            frames = layer(frames, valid)
        embeddings = self.feature_extractor(torch.cat(mean_and_deviation(frames, valid), dim=-1))
        logits = self.classifier(embeddings)
        loss = self.objective(logits, labels) if labels is not None else None
        return XVectorOutput(
            loss=loss, logits=logits, embeddings=embeddings, hidden_states=hidden_states, attentions=attentions
        )


def mean_and_deviation(frames: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, T', D)`, `(B, T')` -> mean and standard deviation over the valid frames, `(B, D)` each."""
    weights = valid.float() / valid.sum(-1, keepdim=True).clamp_min(1)
    values = frames.float()
    mean = torch.einsum("bt,btd->bd", weights, values)
    variance = torch.einsum("bt,btd->bd", weights, (values - mean[:, None]).square())
    # a recording of one frame has none, where the root has no gradient
    return mean.to(frames.dtype), variance.clamp_min(1e-6).sqrt().to(frames.dtype)


__all__ = [
    "AMSoftmaxLoss",
    "NestClassifierModel",
    "NestForAudioFrameClassification",
    "NestForSequenceClassification",
    "NestForXVector",
]
