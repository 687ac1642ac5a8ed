"""`NestAsrConfig`: an audio tower, an adaptor, a CTC head and a causal language model, described by their configs."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.fun_asr_nano.configuration_fun_asr_nano import FunAsrNanoAdaptorConfig

from .configuration_nest import NestConfig
from .remote_code import AUTO_MAPS

AUDIO_TOWERS = ("nest", "parakeet_encoder", "fun_asr_nano_encoder")
QWEN3_0_6B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


@strict
class NestAsrAdaptorConfig(FunAsrNanoAdaptorConfig):
    r"""
    Configuration of the adaptor between audio tower and language model. The fields of the transformer layers are those
    of [`~transformers.FunAsrNanoAdaptorConfig`].

    Args:
        kind (`str`, *optional*, defaults to `"transformer"`):
            `"transformer"`: two linear layers with an activation between, then transformer layers (Fun-ASR-Nano's);
            `"mlp"`: the two linear layers alone; `"linear"`: one linear layer.
        num_stacked_frames (`int`, *optional*, defaults to 1):
            Consecutive encoder frames that make one frame of the adaptor; the last is completed with zeros.
        output_norm (`bool`, *optional*, defaults to `True`):
            RMS norm of the output. Without it the outputs are unbounded; Fun-ASR-Nano's pass 1,000 and overflow fp16.
        hidden_size (`int`, *optional*): Output width; that of the language model in [`NestAsrConfig`].
        intermediate_size (`int`, *optional*): Width of the feed-forward modules; a quarter of `hidden_size`.
        num_hidden_layers (`int`, *optional*, defaults to 2): Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 8): Heads of each.
        projector_hidden_size (`int`, *optional*, defaults to 2048): Width between the two linear layers.
        projector_hidden_act (`str`, *optional*, defaults to `"relu"`): Activation between them.
    """

    model_type = "nest_asr_adaptor"

    kind: Literal["transformer", "mlp", "linear"] = "transformer"
    num_stacked_frames: int = 1
    output_norm: bool = True
    hidden_size: int | None = None
    intermediate_size: int | None = None

    def validate_adaptor(self):
        """Refuses values that no adaptor implements."""
        if self.num_stacked_frames < 1:
            raise ValueError(f"`num_stacked_frames` must be at least 1, not {self.num_stacked_frames}.")
        if self.kind == "transformer" and self.hidden_size and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} of the adaptor is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )


@strict
class NestAsrCtcConfig(NestAsrAdaptorConfig):
    r"""
    Configuration of the CTC head on the audio tower.

    Args:
        kind (`str`, *optional*, defaults to `"linear"`):
            `"linear"`: one linear layer; `"transformer"`: a decoder of the adaptor's form in front of it, in
            Fun-ASR-Nano of five layers.
        vocab_size (`int`, *optional*, defaults to 2): Outputs, the blank included.
        pad_token_id (`int`, *optional*, defaults to 0): The blank.
        hidden_size (`int`, *optional*): Width of the decoder; that of the audio tower in [`NestAsrConfig`].
        num_hidden_layers (`int`, *optional*, defaults to 5): Layers of the decoder.
    """

    model_type = "nest_asr_ctc"

    kind: Literal["linear", "transformer"] = "linear"
    output_norm: bool = False
    num_hidden_layers: int = 5
    vocab_size: int = 2
    pad_token_id: int = 0

    def validate_ctc(self):
        """Refuses a blank outside the vocabulary, and what a CTC head does not have."""
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` {self.pad_token_id} of `ctc_config` lies outside {self.vocab_size} outputs."
            )
        if self.num_stacked_frames != 1 or self.output_norm:
            raise ValueError(
                "A CTC head has neither `num_stacked_frames` nor `output_norm`; leave them at 1 and False."
            )


@strict
class NestAsrConfig(PreTrainedConfig):
    r"""
    Configuration of [`NestAsrForConditionalGeneration`].

    Args:
        audio_config (`dict` or config, *optional*):
            The audio tower, of model type `nest` (default), `parakeet_encoder` or `fun_asr_nano_encoder`.
        adaptor_config (`dict` or [`NestAsrAdaptorConfig`], *optional*): The adaptor.
        ctc_config (`dict` or [`NestAsrCtcConfig`], *optional*): The CTC head; none without it.
        text_config (`dict` or config, *optional*): Any causal language model; the size of Qwen3-0.6B by default.
        audio_token_id (`int`, *optional*, defaults to 151646): Placeholder of audio in the text.
        audio_token_divisor (`int`, *optional*, defaults to 1):
            The language model gets the first ceil(T / divisor) of the adaptor's T frames. FunASR's own code runs
            Fun-ASR-Nano with 8, transformers' port with 1.
        ctc_weight (`float`, *optional*, defaults to 0.3): Weight of the CTC loss; 0 switches it off.
        lm_weight (`float`, *optional*, defaults to 1.0):
            Weight of the language model's loss; with 0 the language model does not run.
        prompt_ids (`list[int]`, *optional*):
            Token ids of the default prompt, with one placeholder, for `generate` where only audio is given.
        max_audio_s (`float`, *optional*):
            Seconds that 99 % of the recordings which it was trained on do not exceed; None where unknown. The language
            model is not to be trusted with longer ones: [`Transcriber`] decodes them in pieces.
        audio_tower_name, language_model_name (`str`, *optional*): Where the parts' weights came from.
        audio_tower_revision, language_model_revision (`str`, *optional*): Commit of each on the Hub.

    Example:

    ```python
    >>> from nest_hf.configuration_nest_asr import NestAsrConfig

    >>> config = NestAsrConfig(audio_config={"model_type": "nest", "num_hidden_layers": 2})
    >>> config.adaptor_config.hidden_size, config.num_audio_tokens(100)
    (1024, 13)

    ```
    """

    model_type = "nest_asr"
    _auto_class = "AutoConfig"  # a saved folder carries the code
    # an AutoConfig here would look up `nest`, which transformers does not know where this file is remote code
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=NestConfig),
        "adaptor_config": SubConfigSpec(config_class=NestAsrAdaptorConfig),
        "ctc_config": SubConfigSpec(config_class=NestAsrCtcConfig, optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3", init_kwargs=QWEN3_0_6B),
    }

    audio_config: dict | PreTrainedConfig | None = None
    adaptor_config: dict | PreTrainedConfig | None = None
    ctc_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 151646
    audio_token_divisor: int = 1
    ctc_weight: float | int = 0.3
    lm_weight: float | int = 1.0
    prompt_ids: list[int] | None = None
    max_audio_s: float | int | None = None
    audio_tower_name: str | None = None
    audio_tower_revision: str | None = None
    language_model_name: str | None = None
    language_model_revision: str | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.audio_config, dict) and self.audio_config.get("model_type", "nest") != "nest":
            fields = dict(self.audio_config)
            self.audio_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        _complete(self.adaptor_config, self.text_config.hidden_size)
        if self.ctc_config is not None:
            _complete(self.ctc_config, self.audio_config.hidden_size)

    def validate_nest_asr(self):
        """Refuses parts that do not fit together."""
        if self.audio_config.model_type not in AUDIO_TOWERS:
            raise ValueError(
                f"`audio_config` is of type {self.audio_config.model_type!r}; choose one of {', '.join(AUDIO_TOWERS)}."
            )
        if self.adaptor_config.hidden_size != self.text_config.hidden_size:
            raise ValueError(
                f"`adaptor_config.hidden_size` is {self.adaptor_config.hidden_size}, but that of the language model "
                f"{self.text_config.hidden_size}; leave it out to have it follow."
            )
        if self.audio_token_divisor < 1:
            raise ValueError(f"`audio_token_divisor` must be at least 1, not {self.audio_token_divisor}.")
        if self.ctc_weight < 0 or self.lm_weight < 0:
            raise ValueError(f"`ctc_weight` {self.ctc_weight} and `lm_weight` {self.lm_weight} must not be negative.")
        if self.max_audio_s is not None and not self.max_audio_s > 0:
            raise ValueError(f"`max_audio_s` must be above 0, not {self.max_audio_s}; leave it out where unknown.")

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedConfig.save_pretrained`, with the classes of all auto classes, and their code."""
        # what somebody's own class registered for itself stays, and a subclass may have another `model_type`
        self.auto_map = {**AUTO_MAPS["nest_asr"], **(getattr(self, "auto_map", None) or {})}
        super().save_pretrained(save_directory, **kwargs)

    @property
    def subsampling_factor(self) -> int:
        """Frames of `input_features` per encoder frame; a power of 2."""
        return 1 if self.audio_config.model_type == "fun_asr_nano_encoder" else self.audio_config.subsampling_factor

    @property
    def encoder_frame_ms(self) -> int:
        """Milliseconds of audio per encoder frame: mel frames of 10 ms, of which Fun-ASR-Nano stacks 7 every 6."""
        return 60 if self.audio_config.model_type == "fun_asr_nano_encoder" else 10 * self.subsampling_factor

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Audio samples per encoder frame, of 16 kHz audio."""
        return 16 * self.encoder_frame_ms

    def num_encoder_frames(self, num_frames):
        """Encoder frames of `num_frames` frames of `input_features` (an integer or a tensor)."""
        return num_encoder_frames(num_frames, self.subsampling_factor)

    def num_audio_tokens(self, num_frames):
        """Placeholders of `num_frames` frames of `input_features` (an integer or a tensor)."""
        return num_audio_tokens(
            self.num_encoder_frames(num_frames), self.adaptor_config.num_stacked_frames, self.audio_token_divisor
        )


def num_encoder_frames(num_frames, subsampling_factor: int):
    """One ceil(n / 2) per strided convolution; the one length function of processor, collator and model."""
    while subsampling_factor > 1:
        num_frames = (num_frames + 1) // 2
        subsampling_factor //= 2
    return num_frames


def num_audio_tokens(num_encoder_frames, num_stacked_frames: int = 1, audio_token_divisor: int = 1):
    """Embeddings that the language model gets of `num_encoder_frames` frames (an integer or a tensor)."""
    num_adaptor_frames = (num_encoder_frames + num_stacked_frames - 1) // num_stacked_frames
    return (num_adaptor_frames + audio_token_divisor - 1) // audio_token_divisor


def _complete(config: NestAsrAdaptorConfig, hidden_size: int) -> None:
    """Widths that were left out follow the part that the module belongs to."""
    if config.hidden_size is None:
        config.hidden_size = hidden_size
    if config.intermediate_size is None:
        config.intermediate_size = config.hidden_size // 4
    config.validate_adaptor()


__all__ = ["NestAsrAdaptorConfig", "NestAsrConfig", "NestAsrCtcConfig"]
