"""`NestConfig`: one flat description of the encoder, the quantizer, the masking and the loss."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.models.parakeet.configuration_parakeet import ParakeetEncoderConfig

from .remote_code import AUTO_MAPS

# The sizes of NeMo's nest_fast-conformer.yaml; XL and XXL have no biases and do not scale the encoder's input.
NO_BIAS = {"attention_bias": False, "convolution_bias": False, "scale_input": False}
PRESETS = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "subsampling_conv_channels": 32,
        "codebook_size": 64,
    },
    "small": {"hidden_size": 176, "num_hidden_layers": 16, "num_attention_heads": 4},
    "medium": {"hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4},
    "large": {},
    "xlarge": {"hidden_size": 1024, "num_hidden_layers": 24, **NO_BIAS},
    "xxlarge": {"hidden_size": 1024, "num_hidden_layers": 42, "conv_kernel_size": 5, **NO_BIAS},
}


@strict
class NestConfig(ParakeetEncoderConfig):
    r"""
    Configuration of [`NestModel`], [`NestForPreTraining`] and [`NestForCTC`]. The encoder's fields are those of
    [`~transformers.ParakeetEncoderConfig`]; the defaults are NEST-Large, as published (arXiv 2408.13106).

    Args:
        hidden_size (`int`, *optional*, defaults to 512): Width D of the encoder.
        num_hidden_layers (`int`, *optional*, defaults to 17): Conformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 8): Heads of the relative self-attention.
        intermediate_size (`int`, *optional*): Width of the feed-forward modules; 4 x `hidden_size` by default.
        attention_bias (`bool`, *optional*, defaults to `True`): Biases of attention and feed-forward modules.
        convolution_bias (`bool`, *optional*, defaults to `True`): Biases of the convolution modules.
        conv_kernel_size (`int`, *optional*, defaults to 9): Kernel of the depthwise convolution; odd.
        subsampling_factor (`int`, *optional*, defaults to 8): Mel frames (10 ms) per encoder frame; a power of 2.
        subsampling_conv_channels (`int`, *optional*, defaults to 256): Channels of the subsampling.
        masked_subsampling (`bool`, *optional*, defaults to `True`):
            Zero the padding between the subsampling's convolutions, as NeMo >= 2.5 does. NeMo <= 2.4 did not.
        num_mel_bins (`int`, *optional*, defaults to 80): Mel bins M of `input_features`.
        scale_input (`bool`, *optional*, defaults to `True`): Multiply the subsampled features by sqrt(D).
        dropout (`float`, *optional*, defaults to 0.1): Dropout in front of the first block.
        hidden_dropout (`float`, *optional*, defaults to 0.1): Dropout on the four residual branches of a block.
        activation_dropout (`float`, *optional*, defaults to 0.1): Dropout inside the feed-forward modules.
        attention_dropout (`float`, *optional*, defaults to 0.1): Dropout of the attention weights.
        dropout_positions (`float`, *optional*, defaults to 0.0): Dropout of the positional encoding.
        layerdrop (`float`, *optional*, defaults to 0.0): Must stay 0; NEST has no layer drop.
        codebook_size (`int`, *optional*, defaults to 8192): Codes C per codebook.
        codebook_dim (`int`, *optional*, defaults to 16): Dimension of a code.
        num_codebooks (`int`, *optional*, defaults to 1): Codebooks H.
        quantizer_distance (`str`, *optional*, defaults to `"l2"`): `"l2"` or `"cosine"`.
        quantizer_input_norm (`bool`, *optional*, defaults to `False`):
            Normalise each stacked input vector of the quantizer to zero mean and unit variance (no parameters).
        quantizer_init (`str`, *optional*, defaults to `"xavier_normal"`):
            Initial distribution of the projection, or `"xavier_uniform"`.
        squeeze_single (`bool`, *optional*, defaults to `False`):
            With one codebook, drop the codebook dimension of `codes` and `logits`, as such NeMo checkpoints do.
        mask_position (`str`, *optional*, defaults to `"pre_conv"`):
            Mask mel frames before the subsampling, or encoder frames after it (`"post_conv"`).
        mask_prob (`float`, *optional*, defaults to 0.01):
            With overlap, the probability that a block starts at a frame; without, the share of masked frames.
        mask_block_size (`int`, *optional*, defaults to 40):
            Mel frames per block (400 ms); after the subsampling 40 // 8 encoder frames.
        mask_allow_overlap (`bool`, *optional*, defaults to `True`): Whether blocks may overlap.
        mask_version (`str`, *optional*, defaults to `"3.0"`): NeMo version whose drawing rules hold, or `"2.x"`.
        mask_value (`float`, *optional*): A constant for masked frames instead of a random embedding.
        freeze_mask_embedding (`bool`, *optional*, defaults to `True`): NeMo's `masking.freeze`.
        mask_threshold (`float`, *optional*, defaults to 0.8):
            An encoder frame enters the loss when more than this share of its mel frames is masked.
        decoder_bias (`bool`, *optional*, defaults to `True`): Bias of the multi-softmax decoder.
        vocab_size (`int`, *optional*, defaults to 1025): Outputs of [`NestForCTC`], the blank included.
        pad_token_id (`int`, *optional*, defaults to 1024): The CTC blank.
        ctc_loss_reduction (`str`, *optional*, defaults to `"mean"`): As `torch.nn.CTCLoss`.
        ctc_zero_infinity (`bool`, *optional*, defaults to `True`): As `torch.nn.CTCLoss`.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Whether classifiers see a learned sum of all layers, or the last one.
        classifier_proj_size (`int`, *optional*, defaults to 256): Width of [`NestForSequenceClassification`]'s mean.
        tdnn_dim (`list[int]`, *optional*, defaults to `(512, 512, 512, 512, 1500)`):
            Widths of the convolutions of [`NestForXVector`].
        tdnn_kernel (`list[int]`, *optional*, defaults to `(5, 3, 3, 1, 1)`): Their kernels.
        tdnn_dilation (`list[int]`, *optional*, defaults to `(1, 2, 3, 1, 1)`): Their dilations.
        xvector_output_dim (`int`, *optional*, defaults to 512): Width of the speaker embeddings.

    Example:

    ```python
    >>> from nest_hf import NestConfig

    >>> NestConfig.from_preset("medium", codebook_size=512).intermediate_size
    1024

    ```
    """

    model_type = "nest"
    _auto_class = "AutoConfig"  # a saved folder carries the code

    hidden_size: int = 512
    num_hidden_layers: int = 17
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    layerdrop: float | int = 0.0
    hidden_dropout: float | int = 0.1
    masked_subsampling: bool = True

    codebook_size: int = 8192
    codebook_dim: int = 16
    num_codebooks: int = 1
    quantizer_distance: Literal["l2", "cosine"] = "l2"
    quantizer_input_norm: bool = False
    quantizer_init: Literal["xavier_normal", "xavier_uniform"] = "xavier_normal"
    squeeze_single: bool = False

    mask_position: Literal["pre_conv", "post_conv"] = "pre_conv"
    mask_prob: float | int = 0.01
    mask_block_size: int = 40
    mask_allow_overlap: bool = True
    mask_version: Literal["3.0", "2.x"] = "3.0"
    mask_value: float | int | None = None
    freeze_mask_embedding: bool = True

    mask_threshold: float | int = 0.8
    decoder_bias: bool = True

    vocab_size: int = 1025
    pad_token_id: int | None = 1024
    ctc_loss_reduction: Literal["mean", "sum"] = "mean"
    ctc_zero_infinity: bool = True

    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: list[int] | tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: list[int] | tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def validate_nest(self):
        """Refuses values that no part of NEST implements."""
        if self.layerdrop:
            raise ValueError(f"`layerdrop` is {self.layerdrop}, but NEST has no layer drop; leave it at 0.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )
        if self.subsampling_factor < 2 or self.subsampling_factor & (self.subsampling_factor - 1):
            raise ValueError(f"`subsampling_factor` must be a power of 2, not {self.subsampling_factor}.")
        if not self.conv_kernel_size % 2:
            raise ValueError(f"`conv_kernel_size` must be odd, not {self.conv_kernel_size}.")
        if not 0 <= self.mask_prob <= 1:
            raise ValueError(f"`mask_prob` must lie in [0, 1], not {self.mask_prob}.")
        if self.mask_block_size < 1:
            raise ValueError(f"`mask_block_size` must be at least 1, not {self.mask_block_size}.")

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedConfig.save_pretrained`, with the classes of all auto classes, and their code."""
        # what somebody's own class registered for itself stays, and a subclass may have another `model_type`
        self.auto_map = {**AUTO_MAPS["nest"], **(getattr(self, "auto_map", None) or {})}
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "NestConfig":
        """A published size (`small`, `medium`, `large`, `xlarge`, `xxlarge`; `tiny` for tests), with overrides."""
        if name not in PRESETS:
            raise ValueError(f"`preset` is {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def masked_frames_per_label(self) -> int:
        """Frames of `mask_time_indices` behind one encoder frame."""
        return self.subsampling_factor if self.mask_position == "pre_conv" else 1

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Audio samples per encoder frame, at the 10-ms hop of 16 kHz audio."""
        return 160 * self.subsampling_factor


__all__ = ["NestConfig"]
