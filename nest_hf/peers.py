"""Recognisers of transformers (CTC, encoder-decoder, audio LLM) with the call of [`Transcriber`].

So a peer is measured on the same audio, in the same batches, by the same clock as our models.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessorList

from .batch_decoding import EndAtLimit
from .ctc_decoding import best_path, collapse, ctc_beam_search
from .decoding_settings import MAX_WINDOW_S, DecodingSettings
from .guards import max_new_tokens
from .timestamps import character_timestamps, word_timestamps
from .transcription import Transcription

REQUEST = "Transcribe the speech."  # to a model with a chat template, but no words of its own for transcription


def requests_transcription(processor) -> bool:
    """Whether a processor knows the words in which its model is asked to transcribe."""
    return "apply_transcription_request" in dir(processor)


class _Peer:
    """What the three kinds have in common: checks of what is asked, and results in our form."""

    def __init__(self, model, processor, settings: DecodingSettings):
        self.model, self.processor, self.settings = model, processor, settings
        self.sampling_rate = processor.feature_extractor.sampling_rate
        self.dtype = next(model.parameters()).dtype
        self.max_duration_s: float | None = None  # longest recording that the model hears, where there is a limit

    def check(self, *, language=None, prompt=None, itn=True, hotwords=None, timestamps: bool = False) -> None:
        """Refuses what this model has no use for."""
        kind = self.model.config.model_type
        given = {"language": language, "prompt": prompt, "hotwords": hotwords or None, "itn": None if itn else False}
        for name, value in given.items():
            if value is not None and name not in self.takes:
                raise ValueError(f"`{name}` has no effect on a {kind} model; leave it out.")
        if timestamps and not self.has_times:
            raise ValueError(f"`timestamps` need a CTC head with its tokenizer, and a {kind} model has none; leave "
                             "them out.")  # fmt: skip

    @torch.inference_mode()
    def __call__(
        self,
        audio: Sequence[np.ndarray],
        *,
        sampling_rate: int | None = None,
        language: str | None = None,
        prompt: str | None = None,
        itn: bool = True,
        hotwords: Sequence[str] | None = None,
        timestamps: bool = False,
    ) -> list[Transcription]:
        """
        Args:
            audio (`Sequence[np.ndarray]`): B mono waveforms `(samples,)` at the model's rate.
            sampling_rate (`int`, *optional*): That rate, to be sure of it.
            language, prompt, itn, hotwords, timestamps (*optional*): As of [`Transcriber`], where the model has a use.
        """
        self.check(language=language, prompt=prompt, itn=itn, hotwords=hotwords, timestamps=timestamps)
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"`sampling_rate` is {sampling_rate} where this model hears {self.sampling_rate} Hz.")
        options = {"language": language, "prompt": prompt, "keywords": list(hotwords or ()) or None}
        options = {name: value for name, value in options.items() if value is not None}
        return self._transcribe([np.asarray(wave, np.float32) for wave in audio], options, timestamps)

    def _results(self, waves, texts: Sequence[str], *, ctc=None, times=None, cut_off=None, hotwords=()):
        ctc = ctc or [None] * len(waves)
        times, cut_off = times or [None] * len(waves), cut_off or [False] * len(waves)
        for wave, text, ctc_text_, characters, cut in zip(waves, texts, ctc, times, cut_off, strict=True):
            duration_s = len(wave) / self.sampling_rate
            yield Transcription(
                text=text,
                lm_text=text if ctc_text_ is None else None,
                ctc_text=ctc_text_,
                decisions=(),
                hotwords=tuple(hotwords),
                characters=None if characters is None else tuple(characters),
                words=None if characters is None else tuple(word_timestamps(characters)),
                windows=((0.0, duration_s),),
                duration_s=duration_s,
                hit_max_new_tokens=cut,
            )

    def _to_model(self, inputs) -> dict:
        """Inputs on the model's device; those that are no integers in its dtype."""
        inputs = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        return {
            key: value.to(self.model.device, self.dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
        }


class CtcPeer(_Peer):
    """
    A CTC model of transformers, such as Wav2Vec2, HuBERT, Wav2Vec2-BERT or Parakeet.

    Where the front end takes no mask (`return_attention_mask` is off), the model would hear the padding: recordings
    are then computed one by one.
    """

    takes = ()

    def __init__(self, model, processor, settings: DecodingSettings):
        super().__init__(model, processor, settings)
        config = model.config
        if settings.mode != "ctc":
            raise ValueError(f"`mode` is {settings.mode!r}, but a {config.model_type} model has only CTC; pass 'ctc'.")
        self.blank_id = config.pad_token_id
        self.takes_mask = processor.feature_extractor.return_attention_mask
        self.has_times = "inputs_to_logits_ratio" in dir(config)

    def _transcribe(self, waves, options, timestamps):
        groups = [waves] if self.takes_mask else [[wave] for wave in waves]
        return [result for group in groups for result in self._of_batch(group, timestamps)]

    def _of_batch(self, waves, timestamps):
        extractor = self.processor.feature_extractor
        mask_options = {"return_attention_mask": True} if self.takes_mask else {}
        inputs = extractor(waves, sampling_rate=self.sampling_rate, padding=True, return_tensors="pt", **mask_options)
        inputs = self._to_model(inputs)
        log_probs = self.model(**inputs).logits.float().log_softmax(-1)
        lengths = torch.full((len(waves),), log_probs.shape[1], device=log_probs.device)
        if self.takes_mask:
            lengths = self._num_frames(inputs["attention_mask"].long().sum(-1)).clamp(max=log_probs.shape[1])
        tokenizer, size = self.processor.tokenizer, self.settings.ctc_beam_size
        if size == 1:
            ids = collapse(best_path(log_probs, lengths, blank_id=self.blank_id).ids, blank_id=self.blank_id)
        else:
            beams = ctc_beam_search(log_probs, lengths, blank_id=self.blank_id, beam_size=size)
            ids = [row[0].token_ids for row in beams]
        texts, times = [self._text(row) for row in ids], None
        if timestamps:
            frame_s = self.model.config.inputs_to_logits_ratio / self.sampling_rate
            times = character_timestamps(log_probs, lengths, texts, tokenizer, blank_id=self.blank_id, frame_s=frame_s)
        return self._results(waves, texts, ctc=texts, times=times)

    def _text(self, ids: list[int]) -> str:
        tokenizer = self.processor.tokenizer
        # the ids are collapsed already; tokenizers for CTC would once more join equal ones, which a blank had parted
        own = inspect.signature(tokenizer._decode).parameters
        options = {"group_tokens": False} if "group_tokens" in own else {}
        return tokenizer.decode(ids, skip_special_tokens=True, **options)

    def _num_frames(self, num_inputs: torch.Tensor) -> torch.Tensor:
        """Valid samples or feature frames (B,) -> valid frames of the logits (B,)."""
        if "_get_feat_extract_output_lengths" in dir(self.model):
            return self.model._get_feat_extract_output_lengths(num_inputs)
        return self.model.encoder._get_subsampling_output_length(num_inputs)


class _GeneratingPeer(_Peer):
    """A model that writes token by token."""

    has_times = False

    def __init__(self, model, processor, settings: DecodingSettings):
        super().__init__(model, processor, settings)
        if settings.mode != "lm" or settings.ctc_beam_size != 1 or settings.ctc_weight:
            raise ValueError(
                f"`mode` 'ctc', `ctc_beam_size` and `ctc_weight` need a CTC head, which a {model.config.model_type} "
                "model has not; leave them out."
            )
        eos = model.generation_config.eos_token_id
        self.end_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    def _generate(self, inputs: dict, limits: list[int], **options) -> tuple[torch.Tensor, list[bool]]:
        """Token ids of the answers `(B, new)` without the prompt, and whether each reached its limit."""
        prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        if prompt_length and self.end_ids:  # of a decoder that makes its own prompt, the length is not known
            at_limit = EndAtLimit(
                torch.tensor(limits, device=self.model.device),
                prompt_length=prompt_length,
                num_beams=self.settings.num_beams,
                end_token_id=self.end_ids[0],
            )
            options["logits_processor"] = LogitsProcessorList([at_limit])
        sequences = self.model.generate(
            **inputs, max_new_tokens=max(limits) + 1, num_beams=self.settings.num_beams, do_sample=False, **options
        )
        answers = sequences[:, prompt_length:]
        is_end = torch.isin(answers, torch.tensor(self.end_ids, device=answers.device))
        num_tokens = (is_end.cumsum(-1) == 0).sum(-1).tolist()
        return answers, [number >= limit for number, limit in zip(num_tokens, limits, strict=True)]

    def _limit(self, duration_s: float) -> int:
        return max_new_tokens(duration_s, tokens_per_s=self.settings.tokens_per_s)


class Seq2SeqPeer(_GeneratingPeer):
    """An encoder-decoder of transformers, such as Whisper, Speech2Text or Moonshine."""

    def __init__(self, model, processor, settings: DecodingSettings):
        super().__init__(model, processor, settings)
        self.is_whisper = model.config.model_type == "whisper"
        self.takes = ("language",) if self.is_whisper else ()
        if self.is_whisper:
            self.max_duration_s = float(processor.feature_extractor.chunk_length)

    def _transcribe(self, waves, options, timestamps):
        extractor, config = self.processor.feature_extractor, self.model.config
        longest_s = max(
            self.settings.max_window_s or MAX_WINDOW_S, *(len(wave) / self.sampling_rate for wave in waves)
        )
        limit = self._limit(longest_s)  # the same for all, so that no recording depends on the others
        if self.is_whisper:
            longest = max(map(len, waves))
            if longest > extractor.n_samples:
                raise ValueError(
                    f"a recording has {longest / self.sampling_rate:.1f} s, and Whisper hears "
                    f"{self.max_duration_s:g} s at once; leave it out, or divide it."
                )
            limit = config.max_target_positions - 6  # four tokens of the prompt, and the end
            if self.model.generation_config.is_multilingual:
                options = {"task": "transcribe", **options}
        padding = {} if self.is_whisper else {"padding": True}
        inputs = extractor(
            waves, sampling_rate=self.sampling_rate, return_tensors="pt", return_attention_mask=True, **padding
        )
        answers, cut_off = self._generate(self._to_model(inputs), [limit] * len(waves), **options)
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return list(self._results(waves, [text.strip() for text in texts], cut_off=cut_off))


class AudioLlmPeer(_GeneratingPeer):
    """
    A language model that hears, such as Fun-ASR-Nano, Qwen3-ASR or Qwen2-Audio: asked by its processor's
    `apply_transcription_request` where there is one, else in plain words through its chat template.
    """

    def __init__(self, model, processor, settings: DecodingSettings):
        super().__init__(model, processor, settings)
        self.request = inspect.signature(processor.apply_transcription_request).parameters if (
            requests_transcription(processor)
        ) else {}  # fmt: skip
        if self.request and "tokenize" not in self.request:
            kind = type(processor).__name__
            raise ValueError(f"{kind} cannot give its request as text, so this model cannot be asked; choose another.")
        names = {"language": "language", "prompt": "prompt", "keywords": "hotwords"}
        self.takes = tuple(given for name, given in names.items() if name in self.request)
        processor.tokenizer.padding_side = "left"
        # transformers 5.23 leaves Fun-ASR-Nano's projector without one, which makes it hear the padding
        for module in model.modules():
            if "config" in vars(module) and module.config._attn_implementation is None:
                module.config._attn_implementation = model.config._attn_implementation
        decode = inspect.signature(processor.decode).parameters
        self.decode_options = {"return_format": "transcription_only"} if "return_format" in decode else {}

    def _transcribe(self, waves, options, timestamps):
        if self.request:
            prompts = self.processor.apply_transcription_request(audio=waves, tokenize=False, **options)
            inputs = self.processor(text=prompts, audio=waves, padding=True, return_tensors="pt")
        else:
            part = {"type": "text", "text": REQUEST}
            chats = [[{"role": "user", "content": [{"type": "audio", "audio": wave}, part]}] for wave in waves]
            inputs = self.processor.apply_chat_template(
                chats, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
            )
        limits = [self._limit(len(wave) / self.sampling_rate) for wave in waves]
        answers, cut_off = self._generate(self._to_model(inputs), limits)
        texts = self.processor.batch_decode(answers, skip_special_tokens=True, **self.decode_options)
        texts = [text.strip() for text in texts]
        return list(self._results(waves, texts, cut_off=cut_off, hotwords=options.get("keywords", ())))


__all__ = ["AudioLlmPeer", "CtcPeer", "Seq2SeqPeer"]
