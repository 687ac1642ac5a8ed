"""NEST-ASR: audio tower, adaptor, CTC head and causal language model; Fun-ASR-Nano is one of its configurations.

Structure and tensor names are those of transformers' `fun_asr_nano` (`model.audio_tower`,
`model.multi_modal_projector`, headless `model.language_model`, `lm_head`), plus `ctc_head`.

Dimensions: B recordings, F frames of `input_features`, T encoder frames, D width of the audio tower, A audio tokens,
L text positions, H width of the language model, V outputs of the CTC head.
"""

import math

import torch
from torch import nn
from transformers import AutoModel, GenerationConfig
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .adaptor import NestAsrAdaptor, NestAsrCtcHead
from .asr_losses import answer_loss, ctc_loss, per_token
from .asr_outputs import NestAsrEncodedAudio, NestAsrOutput
from .asr_parts import build_audio_tower, load_audio_tower, load_language_model
from .configuration_nest_asr import NestAsrAdaptorConfig, NestAsrConfig, NestAsrCtcConfig, num_audio_tokens


class NestAsrPreTrainedModel(PreTrainedModel):
    config: NestAsrConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["NestBlock", "FunAsrNanoEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """torch's defaults as NeMo, not normal(0, 0.02); the two towers initialise themselves."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            # audio enters the language model at the scale of its text embeddings
            init.constant_(module.weight, getattr(self.config.text_config, "initializer_range", 0.02))


class NestAsrModel(NestAsrPreTrainedModel):
    """
    Audio tower, adaptor and headless language model.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf.configuration_nest_asr import NestAsrConfig
    >>> from nest_hf.modeling_nest_asr import NestAsrModel

    >>> config = NestAsrConfig(
    ...     audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    ...     adaptor_config={"kind": "linear"},
    ...     text_config={"vocab_size": 100, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1},
    ...     audio_token_id=5,
    ... )
    >>> model = NestAsrModel(config)
    >>> encoded = model.encode_audio(torch.randn(1, 64, 80))
    >>> ids = torch.tensor([[1, 2] + [5] * 8 + [3]])
    >>> encoded.last_hidden_state.shape, model.embed(ids, encoded).shape
    (torch.Size([1, 8, 32]), torch.Size([1, 11, 64]))

    ```
    """

    def __init__(self, config: NestAsrConfig, audio_tower=None, language_model=None):
        super().__init__(config)
        # the towers are models and choose for themselves; the adaptor and the CTC decoder are not
        for part in (config.adaptor_config, config.ctc_config):
            if part is not None and part._attn_implementation is None:
                part._attn_implementation = self.config._attn_implementation
        self.audio_tower = audio_tower if audio_tower is not None else build_audio_tower(config.audio_config)
        self.language_model = (
            language_model if language_model is not None else AutoModel.from_config(config.text_config)
        )
        self.multi_modal_projector = NestAsrAdaptor(config.adaptor_config, config.audio_config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def encode_audio(self, input_features, input_features_mask=None) -> NestAsrEncodedAudio:
        """`(B, F, M)`, `(B, F)` -> encoder frames `(B, T, D)` and their mask."""
        if input_features_mask is None:
            input_features_mask = torch.ones(input_features.shape[:2], dtype=torch.bool, device=input_features.device)
        valid = input_features_mask.bool()
        # Parakeet ignores padding only where it is zero
        input_features = input_features.to(self.audio_tower.dtype).masked_fill(~valid[..., None], 0.0)
        name = "input_features_mask" if self.config.subsampling_factor == 1 else "attention_mask"
        hidden_states = self.audio_tower(input_features, **{name: valid}).last_hidden_state
        lengths = self.config.num_encoder_frames(valid.sum(-1))
        mask = torch.arange(hidden_states.shape[1], device=lengths.device) < lengths[:, None]
        return NestAsrEncodedAudio(last_hidden_state=hidden_states, mask=mask)

    def embed(self, input_ids: torch.Tensor, encoded: NestAsrEncodedAudio) -> torch.Tensor:
        """Text embeddings `(B, L, H)` with the audio's at the placeholders; a new tensor."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        audio_embeds, mask = self.multi_modal_projector(encoded.last_hidden_state, encoded.mask)
        lengths = num_audio_tokens(mask.sum(-1), 1, self.config.audio_token_divisor)
        is_audio = input_ids == self.config.audio_token_id
        torch_compilable_check(
            is_audio.sum(-1) == lengths,
            lambda: (
                f"`input_ids` has {is_audio.sum(-1).tolist()} audio placeholders for {lengths.tolist()} audio "
                "embeddings; make both with the model's own processor."
            ),
        )
        # the n-th placeholder of a row takes the row's n-th embedding; no shape depends on values, so that it compiles
        order = (is_audio.cumsum(-1) - 1).clamp(0, audio_embeds.shape[1] - 1)  # (B, L)
        audio_embeds = audio_embeds.gather(1, order[..., None].expand(-1, -1, audio_embeds.shape[-1]))
        return torch.where(is_audio[..., None], audio_embeds.to(inputs_embeds.dtype), inputs_embeds)

    def run_language_model(
        self, inputs_embeds, attention_mask=None, position_ids=None, past_key_values=None, **kwargs
    ):
        """`(B, L, H)` -> the language model's output; padding on either side of the text changes nothing."""
        if position_ids is None and past_key_values is None and attention_mask is not None:
            position_ids = text_positions(attention_mask)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class NestAsrForConditionalGeneration(NestAsrPreTrainedModel, GenerationMixin):
    r"""
    Speech recognition with a language model and CTC.

    Example:

    ```python
    >>> import torch
    >>> from nest_hf.configuration_nest_asr import NestAsrConfig
    >>> from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration

    >>> config = NestAsrConfig(
    ...     audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    ...     adaptor_config={"kind": "linear"},
    ...     ctc_config={"vocab_size": 20},
    ...     text_config={"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    ...     audio_token_id=5,
    ... )
    >>> model = NestAsrForConditionalGeneration(config)
    >>> features, ids = torch.randn(1, 64, 80), torch.tensor([[1, 2] + [5] * 8 + [3]])
    >>> model(ids, features).logits.shape, model(input_features=features).ctc_logits.shape
    (torch.Size([1, 11, 100]), torch.Size([1, 8, 20]))

    ```
    """

    def __init__(self, config: NestAsrConfig, audio_tower=None, language_model=None):
        super().__init__(config)
        self.model = NestAsrModel(config, audio_tower, language_model)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.ctc_head = None
        if config.ctc_config is not None:
            self.ctc_head = NestAsrCtcHead(config.ctc_config, config.audio_config.hidden_size)
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()
        # post_init adds what a tower alone may ignore, `ctc_head` among it
        self._keys_to_ignore_on_load_unexpected = self._keys_to_ignore_on_load_missing = None

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self.lm_head:  # a part of the language model
            init.normal_(module.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
        else:
            super()._init_weights(module)

    @classmethod
    def from_parts(
        cls,
        audio_tower: str | PreTrainedModel,
        language_model: str | PreTrainedModel,
        processor,
        *,
        adaptor_config: dict | NestAsrAdaptorConfig | None = None,
        ctc_config: dict | NestAsrCtcConfig | None = None,
        audio_tower_revision: str | None = None,
        language_model_revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        **config_fields,
    ) -> "NestAsrForConditionalGeneration":
        """
        A recogniser of pretrained parts, with a new adaptor and CTC head.

        Args:
            audio_tower (`str` or module): Folder, Hub id or module of a `nest`, `nest_asr` or `parakeet`.
            language_model (`str` or module): Folder, Hub id or module of a causal language model, such as
                `"Qwen/Qwen3-0.6B"`.
            processor ([`NestAsrProcessor`]):
                Names the placeholder, the end token, the default prompt and, if it has a CTC tokenizer, the CTC
                vocabulary and blank.
            adaptor_config (`dict`, *optional*): Fields of [`NestAsrAdaptorConfig`].
            ctc_config (`dict`, *optional*): Fields of [`NestAsrCtcConfig`] besides the vocabulary and the blank.
            audio_tower_revision, language_model_revision (`str`, *optional*): On the Hub.
            dtype (*optional*, defaults to `torch.float32`): Of loaded and new weights.
            attn_implementation (`str`, *optional*, defaults to `"sdpa"`): Of all parts.
            **config_fields: Further fields of [`NestAsrConfig`], such as `ctc_weight`.
        """
        tower, tower_name, tower_commit = load_audio_tower(audio_tower, audio_tower_revision, dtype)
        causal_lm, lm_name, lm_commit = load_language_model(language_model, language_model_revision, dtype)
        adaptor_config = _fields(adaptor_config)
        adaptor_config.setdefault("num_stacked_frames", processor.num_stacked_frames)
        if processor.ctc_tokenizer is not None:
            blank = processor.ctc_tokenizer.pad_token_id
            ctc_config = {**_fields(ctc_config), "vocab_size": len(processor.ctc_tokenizer), "pad_token_id": blank}
        elif ctc_config is not None:
            raise ValueError(
                "`ctc_config` is given but `processor` has no `ctc_tokenizer`; pass one to the processor."
            )
        config = NestAsrConfig(
            audio_config=tower.config,
            adaptor_config=adaptor_config,
            ctc_config=ctc_config,
            text_config=causal_lm.config,
            audio_token_id=processor.audio_token_id,
            audio_token_divisor=processor.audio_token_divisor,
            prompt_ids=processor.prompt_ids(),
            audio_tower_name=tower_name,
            audio_tower_revision=tower_commit,
            language_model_name=lm_name,
            language_model_revision=lm_commit,
            **config_fields,
        )
        processor.check(config)
        config._attn_implementation = attn_implementation
        model = cls(config, tower, causal_lm.base_model)
        model.multi_modal_projector.to(dtype)
        if model.ctc_head is not None:
            model.ctc_head.to(dtype)
        if config.adaptor_config.output_norm:
            scale = model.get_input_embeddings().weight.detach().float().square().mean().sqrt()
            model.multi_modal_projector.norm.weight.detach().fill_(scale)
        model.lm_head.weight = causal_lm.get_output_embeddings().weight
        model.tie_weights()
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=processor.end_token_ids, pad_token_id=processor.tokenizer.pad_token_id
        )
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but a missing or unexpected tensor is an error."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for what, keys in (
            ("lacks", [*info["missing_keys"], *info["mismatched_keys"]]),
            ("has", info["unexpected_keys"]),
        ):
            keys = sorted(str(key) for key in keys)
            if keys:
                raise ValueError(
                    f"{pretrained_model_name_or_path} {what} {len(keys)} tensors that NestAsrForConditionalGeneration "
                    f"{'needs' if what == 'lacks' else 'does not know'} ({', '.join(keys[:4])}"
                    f"{', ...' if len(keys) > 4 else ''}); load a whole checkpoint of this class."
                )
        return (model, info) if output_loading_info else model

    @property
    def multi_modal_projector(self):
        return self.model.multi_modal_projector

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def encode_audio(self, input_features, input_features_mask=None) -> NestAsrEncodedAudio:
        """Encoder frames, to be used more than once as `encoded_audio`."""
        return self.model.encode_audio(input_features, input_features_mask)

    def ctc_logits(self, input_features=None, input_features_mask=None, *, encoded_audio=None):
        """
        The fast mode: CTC without the language model.

        Returns:
            Logits `(B, T, V)`, whose padded frames are blanks, and the mask `(B, T)` of valid frames.
        """
        if self.ctc_head is None:
            raise ValueError("This model has no CTC head (`config.ctc_config` is None); decode with `generate`.")
        if encoded_audio is None:
            if input_features is None:
                raise ValueError("`input_features` is missing; pass the features of the audio, or `encoded_audio`.")
            encoded_audio = self.encode_audio(input_features, input_features_mask)
        return self.ctc_head(encoded_audio.last_hidden_state, encoded_audio.mask), encoded_audio.mask

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        ctc_labels: torch.LongTensor | None = None,
        encoded_audio: NestAsrEncodedAudio | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_logits: bool = False,
        lm_weight: float | None = None,
        ctc_weight: float | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_ctc_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> NestAsrOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                The prompt with its placeholders and, in training, the answer. Without it only the CTC head runs.
            input_features (`torch.FloatTensor` of shape `(B, F, M)`, *optional*): Features of the audio.
            input_features_mask (`torch.Tensor` of shape `(B, F)`, *optional*): 1 at valid frames.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 at text, 0 at padding on either side.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): The answer with its end token, -100 elsewhere.
            ctc_labels (`torch.LongTensor` of shape `(B, U)`, *optional*): Ids of the CTC tokenizer, -100 at padding.
            encoded_audio (*optional*): Of [`~NestAsrForConditionalGeneration.encode_audio`], for `input_features`.
            logits_to_keep (`int` or `torch.Tensor`, *optional*): Positions whose logits are returned; all by default.
            output_logits (`bool`, *optional*, defaults to `False`): Return `logits` beside a loss.
            lm_weight, ctc_weight (`float`, *optional*): Instead of the config's; 0 keeps that part from running.
            num_items_in_batch, num_ctc_items_in_batch (`int`, *optional*):
                Answer and CTC target tokens of the whole (accumulated, distributed) batch; of this one by default.
        """
        lm_weight = self.config.lm_weight if lm_weight is None else lm_weight
        ctc_weight = self.config.ctc_weight if ctc_weight is None else ctc_weight
        out = NestAsrOutput()

        # 1. encode the audio
        if encoded_audio is None and input_features is not None:
            encoded_audio = self.encode_audio(input_features, input_features_mask)
        if encoded_audio is not None:
            out.encoder_mask = encoded_audio.mask

        # 2. CTC on the encoder frames
        ctc_only = input_ids is None and inputs_embeds is None
        if ctc_only or (ctc_labels is not None and ctc_weight > 0):
            out.ctc_logits, mask = self.ctc_logits(encoded_audio=encoded_audio)
            if ctc_labels is not None:
                total, out.num_ctc_tokens, out.num_ctc_impossible = ctc_loss(
                    out.ctc_logits, mask, ctc_labels, self.ctc_head.blank
                )
                mean = per_token(total, out.num_ctc_tokens, num_ctc_items_in_batch)
                out.ctc_loss_sum, out.ctc_loss = total.detach(), mean.detach()
                out.loss = ctc_weight * mean
        if labels is not None and lm_weight == 0 and out.loss is None:
            raise ValueError("`lm_weight` is 0 and there is no CTC loss: nothing to train; pass `ctc_labels`.")
        if ctc_only or (labels is not None and lm_weight == 0):
            return out

        # 3. audio embeddings at the placeholders of the text
        if inputs_embeds is None:
            if encoded_audio is not None:
                inputs_embeds = self.model.embed(input_ids, encoded_audio)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)

        # 4. language model
        decoded = self.model.run_language_model(
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache=False if labels is not None else use_cache,
            **kwargs,
        )
        out.past_key_values, out.hidden_states = decoded.past_key_values, decoded.hidden_states
        out.attentions = decoded.attentions

        # 5. the answer's tokens
        if labels is not None:
            total, out.num_lm_tokens = answer_loss(decoded.last_hidden_state, labels, self.lm_head)
            mean = per_token(total, out.num_lm_tokens, num_items_in_batch)
            out.lm_loss_sum, out.lm_loss = total.detach(), mean.detach()
            out.loss = lm_weight * mean + (0 if out.loss is None else out.loss)
        if labels is None or output_logits:
            out.logits = self.lm_head(slice_logits_to_keep(decoded.last_hidden_state, logits_to_keep))
        return out

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoded_audio: NestAsrEncodedAudio | None = None,
        **kwargs,
    ):
        """
        As `GenerationMixin.generate`; the audio is encoded once, also for several beams.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Prompts, padded on either side; the default prompt (`config.prompt_ids`) where only audio is given.
            input_features, input_features_mask, attention_mask, encoded_audio: As in `forward`.
            **kwargs:
                As `GenerationMixin.generate`. Without a limit, at most 16 tokens more than encoder frames. With
                `past_key_values` of what the prompts begin with, a row for each beam, `input_ids` hold that, too, and
                padding that ends before the last position may lie anywhere.

        Returns:
            `torch.LongTensor` of shape `(B, L + new tokens)`: left-padded prompts and answers;
            [`NestAsrProcessor.decode_answers`] gives the text.
        """
        if encoded_audio is None and input_features is not None:
            encoded_audio = self.encode_audio(input_features, input_features_mask)
        if encoded_audio is None:
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None:
            input_ids, attention_mask = self._default_prompts(encoded_audio)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if kwargs.get("past_key_values") is None:
            # new tokens follow the last position, so padding goes to the front
            order = attention_mask.int().argsort(dim=1, stable=True)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        given = kwargs.get("generation_config") or self.generation_config
        limits = (given.max_new_tokens, given.max_length, kwargs.get("max_new_tokens"), kwargs.get("max_length"))
        if not any(limits):
            kwargs["max_new_tokens"] = 16 + encoded_audio.mask.shape[1]
        inputs_embeds = self.model.embed(input_ids, encoded_audio)
        return super().generate(input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _default_prompts(self, encoded_audio: NestAsrEncodedAudio):
        """Left-padded ids and mask of the default prompt, its placeholder repeated per recording."""
        if self.config.prompt_ids is None:
            raise ValueError("`config.prompt_ids` is None; pass `input_ids`, as the model's processor makes them.")
        config, device = self.config, encoded_audio.mask.device
        lengths = num_audio_tokens(
            encoded_audio.mask.sum(-1), config.adaptor_config.num_stacked_frames, config.audio_token_divisor
        )
        at = config.prompt_ids.index(config.audio_token_id)
        head, tail = config.prompt_ids[:at], config.prompt_ids[at + 1 :]
        rows = [torch.tensor(head + [config.audio_token_id] * length + tail) for length in lengths.tolist()]
        pad = torch.nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_side="left")
        attention_mask = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return input_ids.to(device), attention_mask.to(device)


def text_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """`(B, L)` mask -> position of each token among the tokens of its row; padding gets 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def _fields(config) -> dict:
    """A config or the fields of one, as fields."""
    return dict(config or {}) if not hasattr(config, "to_dict") else config.to_dict()


__all__ = [
    "NestAsrEncodedAudio",
    "NestAsrForConditionalGeneration",
    "NestAsrModel",
    "NestAsrOutput",
    "NestAsrPreTrainedModel",
]
