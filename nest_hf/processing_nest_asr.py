"""`NestAsrProcessor`: audio and text -> features, prompts with placeholders, and labels."""

import os
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessorMixin

from .asr_audio import is_single, min_samples, num_feature_frames, read_waves, resampled_length
from .asr_prompt import AUDIO_TOKEN, CHAT_TEMPLATE, Request, transcription_requests
from .configuration_nest_asr import NestAsrConfig, num_audio_tokens, num_encoder_frames

MAX_CACHED_PROMPTS = 4096
HUB_ARGUMENTS = ("cache_dir", "local_files_only", "revision", "token")


class NestAsrProcessor(ProcessorMixin):
    r"""
    Audio and text -> inputs and labels of [`NestAsrForConditionalGeneration`].

    Args:
        feature_extractor: That of the audio tower: [`NestFeatureExtractor`], `ParakeetFeatureExtractor` or
            `FunAsrNanoFeatureExtractor`.
        tokenizer: That of the language model.
        ctc_tokenizer (*optional*): That of the CTC head, as of [`build_ctc_tokenizer`]; its pad token is the blank.
        chat_template (`str`, *optional*): Jinja template of the prompt; ChatML with Fun-ASR-Nano's request by default.
        audio_token (`str`, *optional*, defaults to `"<|object_ref_start|>"`): Placeholder; a token of `tokenizer`.
        end_token (`str`, *optional*, defaults to `"<|im_end|>"`): Ends the answer; a token of `tokenizer`.
        subsampling_factor (`int`, *optional*, defaults to 8): Of the audio tower; 1 for `fun_asr_nano_encoder`.
        num_stacked_frames (`int`, *optional*, defaults to 1): Of the adaptor.
        audio_token_divisor (`int`, *optional*, defaults to 1): As in [`NestAsrConfig`].

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf import NestAsrProcessor, NestFeatureExtractor
    >>> from nest_hf.chat_tokenizer import build_chat_tokenizer
    >>> from nest_hf.ctc_tokenizer import build_ctc_tokenizer

    >>> texts = ["办理业务"]
    >>> processor = NestAsrProcessor(NestFeatureExtractor(), build_chat_tokenizer(texts), build_ctc_tokenizer(texts))
    >>> wave = np.zeros(8000, dtype=np.float32)
    >>> inputs = processor(audio=wave, sampling_rate=8000)  # the default prompt, for `model.generate(**inputs)`
    >>> int((inputs["input_ids"] == processor.audio_token_id).sum())  # a second, in frames of 80 ms
    13
    >>> batch = processor(audio=[wave], transcripts=texts, sampling_rate=8000)
    >>> batch["labels"].shape == batch["input_ids"].shape, batch["ctc_labels"].shape
    (True, torch.Size([1, 4]))

    ```
    """

    _auto_class = "AutoProcessor"  # a saved folder carries the code

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        ctc_tokenizer=None,
        chat_template=None,
        audio_token=AUDIO_TOKEN,
        end_token="<|im_end|>",
        subsampling_factor=8,
        num_stacked_frames=1,
        audio_token_divisor=1,
    ):
        for name, token in (("audio_token", audio_token), ("end_token", end_token)):
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ValueError(f"`{name}` {token!r} is not a token of `tokenizer`; add it, or name one that is.")
        self._ctc_tokenizer = ctc_tokenizer  # or, while loading, the name of its folder
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.end_token = end_token
        self.end_token_id = tokenizer.convert_tokens_to_ids(end_token)
        self.subsampling_factor = subsampling_factor
        self.num_stacked_frames = num_stacked_frames
        self.audio_token_divisor = audio_token_divisor
        default = CHAT_TEMPLATE.replace(AUDIO_TOKEN, audio_token)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or default)
        reserved = {audio_token, end_token, *tokenizer.all_special_tokens}
        self._reserved = re.compile("|".join(re.escape(token) for token in sorted(reserved)))
        self._prompt_cache = {}

    # saving and loading: `ProcessorMixin` requires every tokenizer of the signature, and this one is optional

    @classmethod
    def get_attributes(cls):
        return ["feature_extractor", "tokenizer"]

    @property
    def ctc_tokenizer(self):
        """The CTC head's tokenizer, or None."""
        return self._ctc_tokenizer

    def to_dict(self):
        return {**super().to_dict(), "ctc_tokenizer": "ctc_tokenizer" if self._ctc_tokenizer is not None else None}

    def save_pretrained(self, save_directory, **kwargs):
        if self.ctc_tokenizer is not None:
            self.ctc_tokenizer.save_pretrained(os.path.join(save_directory, "ctc_tokenizer"))
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if processor._ctc_tokenizer is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            folder = processor._ctc_tokenizer
            try:
                processor._ctc_tokenizer = AutoTokenizer.from_pretrained(
                    pretrained_model_name_or_path, subfolder=folder, **hub
                )
            except (OSError, ValueError) as error:
                raise OSError(
                    f"{pretrained_model_name_or_path}: no tokenizer of the CTC head in its folder `{folder}`; copy "
                    f"the model with its subfolders, or write it again by `save_pretrained`."
                ) from error
        return processor

    @property
    def sampling_rate(self) -> int:
        """Rate of the audio tower in Hz; other rates are resampled."""
        return self.feature_extractor.sampling_rate

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end an answer in `generate`."""
        ids = [self.end_token_id, self.tokenizer.eos_token_id]
        return sorted({token_id for token_id in ids if token_id is not None})

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    def check(self, config: NestAsrConfig) -> None:
        """Refuses a model whose placeholders would be counted otherwise."""
        for name, theirs in (
            ("audio_token_id", config.audio_token_id),
            ("subsampling_factor", config.subsampling_factor),
            ("num_stacked_frames", config.adaptor_config.num_stacked_frames),
            ("audio_token_divisor", config.audio_token_divisor),
        ):
            if getattr(self, name) != theirs:
                raise ValueError(f"`{name}` is {getattr(self, name)} in the processor but {theirs} in the model.")

    def __call__(
        self,
        audio=None,
        text: str | list[str] | None = None,
        *,
        images: None = None,
        videos: None = None,
        padding: Literal[True] = True,
        sampling_rate: int | None = None,
        transcripts: str | list[str] | None = None,
        ctc_transcripts: str | list[str] | None = None,
        language: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        keywords: str | list[str] | list[list[str]] | None = None,
        itn: bool | list[bool] = True,
        padding_side: str | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Args:
            audio: Mono waveforms `(samples,)` in [-1, 1] or paths: one, or a list. Any rate.
            text (`str` or `list[str]`, *optional*):
                Whole prompts with one `audio_token` each; by default made of the arguments below.
            images, videos, padding: Of transformers' multimodal pipeline; there are none, and rows are always padded.
            sampling_rate (`int`, *optional*): Rate of the waveforms in Hz; the audio tower's by default.
            transcripts (`str` or `list[str]`, *optional*): Answers; with them come `labels` and `ctc_labels`.
            ctc_transcripts (`str` or `list[str]`, *optional*):
                What the CTC head learns, such as the verbatim text; `transcripts` by default.
            language, prompt, keywords, itn: As in [`~NestAsrProcessor.apply_transcription_request`].
            padding_side (`str`, *optional*): Of the text; `"left"`, or `"right"` with `transcripts`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, L), `input_features` (B, F, M),
            `input_features_mask` (B, F), and with `transcripts` `labels` (B, L), which are -100 outside the answer
            and its end token, and `ctc_labels` (B, U), -100 at padding.
        """
        if audio is None:
            raise ValueError("`audio` is missing; pass a waveform, a path, or a list of them.")
        if images is not None or videos is not None or padding is not True:
            raise ValueError(
                "`images`, `videos` or `padding` is given, but inputs are audio, always padded; leave it out."
            )
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` is {return_tensors!r}; the processor makes torch tensors, 'pt'.")
        # 1. audio -> features
        waves = read_waves(audio, sampling_rate, self.sampling_rate)
        features = self.feature_extractor(waves, sampling_rate=self.sampling_rate, return_tensors="pt")
        mask = features["input_features_mask" if "input_features_mask" in features else "attention_mask"]

        # 2. prompts, their placeholder repeated
        if text is not None:
            prompts = [self._ids_of_prompt(item) for item in ([text] if isinstance(text, str) else text)]
            if len(prompts) != len(waves):
                raise ValueError(f"`text` has {len(prompts)} prompts for {len(waves)} recordings; pass one for each.")
        else:
            prompts = self.prompts(transcription_requests(len(waves), language, prompt, keywords, itn))
        rows = self.with_placeholders(prompts, self._num_audio_tokens(mask.sum(-1)).tolist())
        data = {"input_features": features["input_features"], "input_features_mask": mask}

        # 3. answers and labels
        side = padding_side or ("left" if transcripts is None else "right")
        if transcripts is not None:
            answers = self.answers(transcripts, len(waves))
            labels = [
                np.concatenate([np.full(len(row), -100), answer]) for row, answer in zip(rows, answers, strict=True)
            ]
            rows = [np.concatenate(pair) for pair in zip(rows, answers, strict=True)]
            data["labels"] = _pad(labels, -100, side)
        if self.ctc_tokenizer is not None and (ctc_transcripts is not None or transcripts is not None):
            targets = self._texts(transcripts if ctc_transcripts is None else ctc_transcripts, len(waves))
            targets = self.ctc_tokenizer(targets, add_special_tokens=False).input_ids
            data["ctc_labels"] = _pad([np.array(ids, dtype=np.int64) for ids in targets], -100, "right")
        pad_token_id = self.tokenizer.pad_token_id
        data["input_ids"] = _pad(rows, 0 if pad_token_id is None else pad_token_id, side)
        # not by comparison with the pad token, which may be the end token
        data["attention_mask"] = _pad([np.ones(len(row), dtype=np.int64) for row in rows], 0, side)
        return BatchFeature(data, tensor_type="pt")

    def apply_transcription_request(
        self,
        audio,
        language: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        keywords: str | list[str] | list[list[str]] | None = None,
        itn: bool | list[bool] = True,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """
        Inputs of `generate` for a transcription request, as transformers' `FunAsrNanoProcessor` makes them.

        Args:
            audio: As in `__call__`.
            language (`str` or `list[str]`, *optional*): `"zh"`, `"en"`, `"ja"` or their names; one for all, or each.
            prompt (`str` or `list[str]`, *optional*): Context that may help, such as the subject of the call.
            keywords (`str`, `list[str]` or `list[list[str]]`, *optional*): Hotwords, for all or for each recording.
            itn (`bool` or `list[bool]`, *optional*, defaults to `True`): Numbers and units as written, not as spoken.
            tokenize (`bool`, *optional*, defaults to `True`): With `False`, the prompts as strings.
        """
        if tokenize:
            return self(audio=audio, language=language, prompt=prompt, keywords=keywords, itn=itn, **kwargs)
        requests = transcription_requests(1 if is_single(audio) else len(audio), language, prompt, keywords, itn)
        return [self._render(request) for request in requests]

    def num_tokens(
        self,
        num_samples,
        transcripts: list[str] | None = None,
        *,
        sampling_rate: int | None = None,
        language=None,
        prompt=None,
        keywords=None,
        itn=True,
    ) -> np.ndarray:
        """
        Length of each example in the language model, without its audio: prompt, placeholders, answer and end token.

        Args:
            num_samples (sequence of `int`): Samples of each recording at `sampling_rate`.
            transcripts (`list[str]`, *optional*): Answers.
            sampling_rate, language, prompt, keywords, itn: As in `__call__`.

        Returns:
            `np.ndarray` of shape `(B,)`, int64.
        """
        num_samples = np.asarray(num_samples, dtype=np.int64)
        num_samples = resampled_length(num_samples, sampling_rate or self.sampling_rate, self.sampling_rate)
        num_samples = np.maximum(num_samples, min_samples(self.sampling_rate))
        prompts = self.prompts(transcription_requests(len(num_samples), language, prompt, keywords, itn))
        total = np.array([len(ids) - 1 for ids in prompts]) + self._num_audio_tokens(self.num_frames(num_samples))
        if transcripts is not None:
            total = total + np.array([len(answer) for answer in self.answers(transcripts, len(num_samples))])
        return total

    def num_frames(self, num_samples):
        """Valid frames of `input_features` of `num_samples` samples at the audio tower's rate (integer or array)."""
        return num_feature_frames(self.feature_extractor, num_samples)

    def prompt_ids(self) -> list[int]:
        """Token ids of the default prompt, with one placeholder."""
        return self.prompts([Request()])[0].tolist()

    def prompts(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Token ids of each prompt, with one placeholder; equal requests are made once."""
        prompts = []
        for request in requests:
            if request not in self._prompt_cache:
                if len(self._prompt_cache) >= MAX_CACHED_PROMPTS:
                    self._prompt_cache.clear()
                self._texts([request.prompt or "", *request.keywords], 1 + len(request.keywords))
                self._prompt_cache[request] = self._ids_of_prompt(self._render(request))
            prompts.append(self._prompt_cache[request])
        return prompts

    def with_placeholders(self, prompts: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
        """Token ids of each prompt, its placeholder as often as the recording has audio tokens."""
        return [
            np.repeat(ids, np.where(ids == self.audio_token_id, count, 1))
            for ids, count in zip(prompts, counts, strict=True)
        ]

    def answers(self, transcripts: str | Sequence[str], batch_size: int | None = None) -> list[np.ndarray]:
        """Token ids of answers, each with its end token; `batch_size` of them where that is given."""
        texts = self._texts(transcripts, len(transcripts) if batch_size is None else batch_size)
        ids = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [np.array([*answer, self.end_token_id], dtype=np.int64) for answer in ids]

    def decode_answers(self, sequences: torch.Tensor) -> list[str]:
        """Texts of `generate`'s result `(B, L)`: what follows this processor's prompt, or all where there is none."""
        sequences = np.asarray(torch.as_tensor(sequences).cpu())
        ids = self.prompt_ids()
        tail = len(ids) - 1 - ids.index(self.audio_token_id)  # tokens of a prompt after its placeholders
        is_audio = sequences == self.audio_token_id
        after = np.logical_or.accumulate(is_audio, axis=1) & ~is_audio
        starts = np.where(is_audio.any(1), after.argmax(1) + tail, 0)
        answers = [row[start:] for row, start in zip(sequences, starts, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _num_audio_tokens(self, num_frames):
        num_frames = num_encoder_frames(num_frames, self.subsampling_factor)
        return num_audio_tokens(num_frames, self.num_stacked_frames, self.audio_token_divisor)

    def _render(self, request: Request) -> str:
        content = [{"type": "audio"}]
        if request.prompt:
            content.append({"type": "text", "text": request.prompt})
        if request.keywords:
            content.append({"type": "keywords", "keywords": list(request.keywords)})
        if request.language:
            content.append({"type": "language", "language": request.language})
        if not request.itn:
            content.append({"type": "itn", "itn": False})
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )

    def _ids_of_prompt(self, text: str) -> np.ndarray:
        ids = np.array(self.tokenizer(text, add_special_tokens=False).input_ids)
        if (ids == self.audio_token_id).sum() != 1:
            raise ValueError(f"prompt {text!r} must hold exactly one {self.audio_token}, the place of the audio.")
        return ids

    def _texts(self, texts: str | list[str], batch_size: int) -> list[str]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(texts) != batch_size:
            raise ValueError(f"Got {len(texts)} texts for {batch_size} recordings; pass one for each.")
        for text in texts:
            if found := self._reserved.search(text):
                raise ValueError(f"text {text!r} contains {found[0]!r}, a token of the prompt; remove it.")
        return texts


def _pad(rows: list[np.ndarray], value: int, side: str) -> torch.Tensor:
    """Rows of integers -> `(B, longest)`."""
    rows = [torch.from_numpy(np.asarray(row, dtype=np.int64)) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


__all__ = ["NestAsrProcessor"]
