"""A batch of short recordings -> texts: CTC, hotwords for the prompt, the language model, the guard, character times.

The audio is encoded once for both heads. No recording depends on the others of its batch.

Dimensions: B recordings, T encoder frames, V outputs of the CTC head, L text positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from .asr_outputs import NestAsrEncodedAudio
from .asr_prompt import Request
from .configuration_nest_asr import num_encoder_frames
from .ctc_decoding import best_path, collapse, ctc_beam_search, ctc_text
from .guards import GuardDecision, GuardSettings, blank_statistics, guard_text, is_silence, max_new_tokens
from .hotwords import HotwordFilter
from .prompt_heads import PromptHeads
from .timestamps import TimedText, character_timestamps

MODES = ("lm", "ctc")
LONG_AUDIO = ("pauses", "windows", "vad")
# kaldi's first window of 25 ms begins with the audio, and is the middle one of the first stack
FUN_ASR_FIRST_FRAME_S = 0.0125


@dataclass(frozen=True)
class DecodingSettings:
    """
    How audio becomes text.

    Args:
        mode (`str`, *optional*, defaults to `"lm"`):
            `"lm"`: by the language model; `"ctc"`: by the CTC head alone, which is fast.
        num_beams (`int`, *optional*, defaults to 1): Beams of the language model; 1 is greedy.
        ctc_beam_size (`int`, *optional*, defaults to 1): Prefixes of the CTC beam search; 1 is the best path.
        guard ([`~guards.GuardSettings`], *optional*, defaults to `GuardSettings()`):
            When the CTC head overrules the language model; None: never.
        tokens_per_s (`float`, *optional*, defaults to 12.0): Fastest speech, see [`~guards.max_new_tokens`].
        max_hotwords (`int`, *optional*, defaults to 20): Most hotwords in a prompt.
        hotword_threshold (`float`, *optional*, defaults to -2.0): See [`~hotwords.HotwordFilter`].
        long_audio (`str`, *optional*):
            How a recording longer than `max_window_s` is divided: into overlapping `"windows"`; at `"pauses"` that CTC
            finds in such windows; or by voice activity, `"vad"`, for which silero-vad is needed. By default at pauses
            for the language model, in windows for CTC alone.
        max_window_s (`float`, *optional*, defaults to 30.0):
            Longest audio that is decoded in one piece; best no longer than what the model was trained on.
        overlap_s (`float`, *optional*, defaults to 4.0): Seconds that neighbouring windows share.
        batch_duration_s (`float`, *optional*, defaults to 160.0):
            Seconds of a batch, padding included. With a language model each recording counts 4 s more for its prompt,
            and once for every beam: a second is at most 25 tokens in the cache, of Qwen3-0.6B in bfloat16 3 MB.

    Example:

    ```python
    >>> from nest_hf import DecodingSettings

    >>> settings = DecodingSettings(num_beams=4, long_audio="vad")
    >>> DecodingSettings(mode="fast")
    Traceback (most recent call last):
        ...
    ValueError: `mode` is 'fast'; choose one of lm, ctc.

    ```
    """

    mode: str = "lm"
    num_beams: int = 1
    ctc_beam_size: int = 1
    guard: GuardSettings | None = GuardSettings()
    tokens_per_s: float = 12.0
    max_hotwords: int = 20
    hotword_threshold: float = -2.0
    long_audio: str | None = None
    max_window_s: float = 30.0
    overlap_s: float = 4.0
    batch_duration_s: float = 160.0

    def __post_init__(self):
        if self.long_audio is None:
            object.__setattr__(self, "long_audio", "windows" if self.mode == "ctc" else "pauses")
        for name, choices in (("mode", MODES), ("long_audio", LONG_AUDIO)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name in ("num_beams", "ctc_beam_size", "max_hotwords"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be 1 or more.")
        for name in ("tokens_per_s", "max_window_s", "batch_duration_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        if not 0 < self.overlap_s <= self.max_window_s / 2:
            raise ValueError(
                f"`overlap_s` is {self.overlap_s}; it must be above 0, and half of `max_window_s` at most."
            )
        if self.mode == "ctc" and self.num_beams != 1:
            raise ValueError(f"`num_beams` is {self.num_beams}, but `mode` 'ctc' runs no language model; set it to 1.")


@dataclass(frozen=True)
class DecodedAudio:
    """
    What was heard in one piece of audio.

    Attributes:
        text (`str`): The text to use.
        lm_text, ctc_text (`str`, *optional*): What each head wrote; None where it did not run.
        decision ([`~guards.GuardDecision`], *optional*): The guard's; None where there was nothing to decide.
        hotwords (`tuple[str, ...]`): Those in the prompt.
        hit_max_new_tokens (`bool`): Whether the language model was cut off.
        path (`torch.LongTensor` of shape `(T,)`, *optional*): Best class of each frame; None without a CTC head.
        times (`dict[str, list[TimedText]]`): Characters of those of the three texts that were asked for.
    """

    text: str
    lm_text: str | None
    ctc_text: str | None
    decision: GuardDecision | None
    hotwords: tuple[str, ...]
    hit_max_new_tokens: bool
    path: torch.Tensor | None
    times: dict[str, list[TimedText]]


class EndAtLimit(LogitsProcessor):
    """
    Ends each row at its own limit, so that it is the same in a batch with longer ones.

    Args:
        limits (`torch.LongTensor` of shape `(B,)`): Most tokens of each answer, its end token not counted.
        prompt_length (`int`): L, padding included.
        num_beams (`int`): Rows per recording.
        end_token_id (`int`): The token that ends an answer.
    """

    def __init__(self, limits: torch.Tensor, *, prompt_length: int, num_beams: int, end_token_id: int):
        self.lengths = (limits + prompt_length).repeat_interleave(num_beams)
        self.end_token_id = end_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ended = torch.full_like(scores, float("-inf"))
        ended[:, self.end_token_id] = 0.0
        return torch.where((input_ids.shape[1] >= self.lengths)[:, None], ended, scores)


class BatchDecoder:
    """
    Decodes batches of recordings that are short enough for one piece.

    Args:
        model ([`NestAsrForConditionalGeneration`] or [`NestForCTC`]): In eval mode.
        processor ([`NestAsrProcessor`], or `Wav2Vec2Processor` for [`NestForCTC`]):
            The latter holds a feature extractor and the CTC tokenizer.
        settings ([`DecodingSettings`]): How.

    Attributes:
        has_language_model, has_ctc (`bool`): Which heads there are.
        ctc_tokenizer, blank_id: Of the CTC head.
        sampling_rate (`int`): Hz of the waveforms.
        frame_s (`float`): Seconds per encoder frame.
    """

    def __init__(self, model, processor, settings: DecodingSettings):
        self.model, self.processor, self.settings = model, processor, settings
        config = model.config
        self.extractor = processor.feature_extractor
        self.sampling_rate = self.extractor.sampling_rate
        self.has_language_model = config.model_type == "nest_asr"
        self.first_frame_s = 0.0
        if self.has_language_model:
            processor.check(config)
            self.has_ctc = model.ctc_head is not None and processor.ctc_tokenizer is not None
            self.ctc_tokenizer = processor.ctc_tokenizer
            self.blank_id = model.ctc_head.blank if self.has_ctc else None
            self.frame_s = config.encoder_frame_ms / 1000
            if config.audio_config.model_type == "fun_asr_nano_encoder":
                self.first_frame_s = FUN_ASR_FIRST_FRAME_S
        else:
            self.has_ctc, self.ctc_tokenizer, self.blank_id = True, processor.tokenizer, config.pad_token_id
            self.frame_s = config.subsampling_factor / 100
        if settings.mode == "lm" and not self.has_language_model:
            raise ValueError(
                "`mode` is 'lm', but NestForCTC has no language model; pass DecodingSettings(mode='ctc')."
            )
        if settings.mode == "ctc" and not self.has_ctc:
            raise ValueError("`mode` is 'ctc', but this model has no CTC head, or its processor no CTC tokenizer.")

    @torch.inference_mode()
    def __call__(
        self,
        waves: Sequence[np.ndarray],
        requests: Sequence[Request],
        *,
        hotwords: HotwordFilter | Sequence[str] = (),
        timed: Sequence[str] = (),
        prompt_heads: PromptHeads | None = None,
    ) -> list[DecodedAudio]:
        """
        Args:
            waves (`Sequence[np.ndarray]`): B mono waveforms at `sampling_rate`.
            requests (`Sequence[Request]`): What each prompt says; its hotwords are chosen here.
            hotwords ([`~hotwords.HotwordFilter`] or `Sequence[str]`, *optional*):
                Picks those of each prompt; or the words of all prompts.
            timed (`Sequence[str]`, *optional*): Of `"text"`, `"lm_text"`, `"ctc_text"`, whose characters get times.
            prompt_heads ([`~prompt_heads.PromptHeads`], *optional*): Of earlier batches with the same weights.
        """
        # 1. encode once, CTC
        encoded, log_probs, lengths, num_audio_tokens = self._encode(waves)
        paths = ctc_texts = blanks = [None] * len(waves)
        if self.has_ctc:
            path = best_path(log_probs, lengths, blank_id=self.blank_id)
            paths = [row[:length].cpu() for row, length in zip(path.ids, lengths.tolist(), strict=True)]
            ctc_texts = self._ctc_texts(log_probs, lengths, path.ids)

        # 2. hotwords that may have been said
        named = [()] * len(waves)
        if isinstance(hotwords, HotwordFilter):
            limits = {"max_hotwords": self.settings.max_hotwords, "threshold": self.settings.hotword_threshold}
            named = [tuple(word.text for word in row) for row in hotwords(log_probs, lengths, **limits)]
        elif hotwords:
            named = [tuple(hotwords)] * len(waves)

        # 3. the language model, where something was said
        guarded = self.settings.mode == "lm" and self.has_ctc and self.settings.guard is not None
        lm_texts, counts, limits = ([None] * len(waves) for _ in range(3))
        if self.settings.mode == "lm":
            rows = list(range(len(waves)))
            if guarded:
                blanks = blank_statistics(log_probs, lengths, blank_id=self.blank_id)
                rows = [r for r in rows if not is_silence(ctc_texts[r], blanks[r], self.settings.guard)]
            named = [words if row in rows else () for row, words in enumerate(named)]
            seconds = [len(waves[row]) / self.sampling_rate for row in rows]
            chosen = [requests[row]._replace(keywords=named[row]) for row in rows]
            prompt_heads = PromptHeads(self.model) if prompt_heads is None else prompt_heads
            answers = self._generate(encoded, num_audio_tokens, rows, chosen, seconds, prompt_heads)
            for row, *answer in zip(rows, *answers, strict=True):
                lm_texts[row], counts[row], limits[row] = answer

        # 4. which text counts
        decisions = [None] * len(waves)
        texts = list(ctc_texts if self.settings.mode == "ctc" else lm_texts)
        if guarded:
            for row, (lm_text, ctc_text_, blank) in enumerate(zip(lm_texts, ctc_texts, blanks, strict=True)):
                decisions[row] = guard_text(
                    lm_text or "", ctc_text_, blank, num_tokens=counts[row], max_new_tokens=limits[row],
                    settings=self.settings.guard, warn=False,
                )  # fmt: skip
                texts[row] = decisions[row].text

        # 5. times of characters
        by_kind = {"text": texts, "lm_text": lm_texts, "ctc_text": ctc_texts}
        # most often the language model's text is the text
        aligned = {key: self._times(log_probs, lengths, key) for key in {tuple(by_kind[kind]) for kind in timed}}
        times = {kind: aligned[tuple(by_kind[kind])] for kind in timed}
        return [
            DecodedAudio(
                text=texts[row],
                lm_text=lm_texts[row],
                ctc_text=ctc_texts[row],
                decision=decisions[row],
                hotwords=named[row],
                hit_max_new_tokens=counts[row] is not None and counts[row] >= limits[row],
                path=paths[row],
                times={kind: rows[row] for kind, rows in times.items()},
            )
            for row in range(len(waves))
        ]

    @torch.inference_mode()
    def ctc_paths(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The CTC head's best class of each frame of mono waveforms at `sampling_rate`, `(T,)` each, on the CPU."""
        _, log_probs, lengths, _ = self._encode(waves)
        ids = best_path(log_probs, lengths, blank_id=self.blank_id).ids.cpu()
        return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]

    def _encode(self, waves):
        """Encoded audio, CTC log-probabilities `(B, T, V)`, valid frames `(B,)` and audio tokens `(B,)` of each."""
        features = self.extractor(list(waves), sampling_rate=self.sampling_rate, return_tensors="pt")
        features = features.to(self.model.device)
        mask = features["input_features_mask" if "input_features_mask" in features else "attention_mask"]
        num_frames = mask.long().sum(-1)
        if not self.has_language_model:
            logits = self.model(features["input_features"], attention_mask=mask).logits
            lengths = num_encoder_frames(num_frames, self.model.config.subsampling_factor)
            return None, logits.float().log_softmax(-1), lengths, None
        encoded = self.model.encode_audio(features["input_features"], mask)
        lengths, log_probs = encoded.mask.sum(-1), None
        if self.has_ctc:
            log_probs = self.model.ctc_logits(encoded_audio=encoded)[0].float().log_softmax(-1)
        return encoded, log_probs, lengths, self.model.config.num_audio_tokens(num_frames)

    def _ctc_texts(self, log_probs, lengths, path_ids) -> list[str]:
        if self.settings.ctc_beam_size == 1:
            ids = collapse(path_ids, blank_id=self.blank_id)
        else:
            size = self.settings.ctc_beam_size
            beams = ctc_beam_search(log_probs, lengths, blank_id=self.blank_id, beam_size=size)
            ids = [row[0].token_ids for row in beams]
        return [ctc_text(self.ctc_tokenizer, row) for row in ids]

    def _generate(self, encoded, num_audio_tokens, rows, requests: list[Request], seconds, prompt_heads: PromptHeads):
        """Answers of `rows`, the numbers of their tokens without the end token, and the limits of these."""
        if not rows:
            return [], [], []
        processor, device, num_beams = self.processor, self.model.device, self.settings.num_beams
        index = torch.tensor(rows, device=device)
        encoded = NestAsrEncodedAudio(last_hidden_state=encoded.last_hidden_state[index], mask=encoded.mask[index])

        # prompts, without the features that the processor's call would make once more
        limits = [max_new_tokens(duration_s, tokens_per_s=self.settings.tokens_per_s) for duration_s in seconds]
        prompts = processor.with_placeholders(processor.prompts(requests), num_audio_tokens[index].tolist())
        starts = [int((ids == processor.audio_token_id).argmax()) for ids in prompts]
        parts = [np.split(ids, [start]) for ids, start in zip(prompts, starts, strict=True)]
        heads, rests = zip(*parts, strict=True)
        room = max(map(len, rests)) + max(limits) + 1
        cache = prompt_heads([head.tolist() for head in heads], num_beams=num_beams, room=room)

        # what the cache holds is padded by itself, in front of the rest
        pad_token_id = processor.tokenizer.pad_token_id
        pad_token_id = processor.end_token_id if pad_token_id is None else pad_token_id
        options = {"batch_first": True, "padding_side": "left"}
        input_ids, attention_mask = [], []
        for rows_of_ids in [prompts] if cache is None else [heads, rests]:
            tensors = [torch.from_numpy(ids) for ids in rows_of_ids]
            input_ids.append(pad_sequence(tensors, padding_value=pad_token_id, **options))
            attention_mask.append(pad_sequence([torch.ones_like(ids) for ids in tensors], **options))
        input_ids, attention_mask = (torch.cat(found, dim=1).to(device) for found in (input_ids, attention_mask))

        end_at_limit = EndAtLimit(
            torch.tensor(limits, device=device),
            prompt_length=input_ids.shape[1],
            num_beams=num_beams,
            end_token_id=processor.end_token_id,
        )
        sequences = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoded_audio=encoded,
            past_key_values=cache,
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max(limits) + 1,
            logits_processor=LogitsProcessorList([end_at_limit]),
            eos_token_id=processor.end_token_ids,
            pad_token_id=pad_token_id,
        )
        is_end = torch.isin(sequences[:, input_ids.shape[1] :], torch.tensor(processor.end_token_ids, device=device))
        num_tokens = (is_end.cumsum(-1) == 0).sum(-1).tolist()
        return processor.decode_answers(sequences), num_tokens, limits

    def _times(self, log_probs, lengths, texts) -> list[list[TimedText]]:
        return character_timestamps(
            log_probs,
            lengths,
            [text or "" for text in texts],
            self.ctc_tokenizer,
            blank_id=self.blank_id,
            frame_s=self.frame_s,
            first_frame_s=self.first_frame_s,
        )


__all__ = ["BatchDecoder", "DecodedAudio", "DecodingSettings"]
