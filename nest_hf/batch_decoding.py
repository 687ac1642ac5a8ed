"""A batch of short recordings -> texts: CTC, hotwords, the language model, the choice, the guard, character times.

The audio is encoded once for both heads. No recording depends on the others of its batch.

Dimensions: B recordings, T encoder frames, V outputs of the CTC head, L text positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from .asr_outputs import NestAsrEncodedAudio
from .asr_prompt import Request
from .configuration_nest_asr import num_encoder_frames
from .ctc_decoding import best_path, collapse, ctc_beam_search, ctc_text
from .decoding_settings import DecodingSettings
from .guards import GuardDecision, blank_statistics, guard_text, is_silence, max_new_tokens
from .hotwords import FoundHotword, HotwordFilter
from .joint_decoding import AnswerScorer, CtcScorer, choose_texts
from .prompt_heads import PromptHeads
from .timestamps import TimedText, character_timestamps

# kaldi's first window of 25 ms begins with the audio, and is the middle one of the first stack
FUN_ASR_FIRST_FRAME_S = 0.0125


@dataclass(frozen=True)
class DecodedAudio:
    """
    What was heard in one piece of audio.

    Attributes:
        text (`str`): The text to use.
        lm_text, ctc_text (`str`, *optional*): What each head wrote by itself; None where it did not run.
        decision ([`~guards.GuardDecision`], *optional*):
            The guard's, about the text that was chosen; None where there was nothing to decide.
        hotwords (`tuple[str, ...]`): Those that CTC admits.
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


@dataclass(frozen=True)
class Answers:
    """
    What the language model wrote of B recordings.

    Attributes:
        texts (`list[list[str]]`): Of each recording, the best first.
        counts (`list[list[int]]`): The tokens of each, the end token not counted.
        limits (`list[int]`): The most tokens of each recording.
        scorer ([`~joint_decoding.AnswerScorer`], *optional*): For other texts, where there is a choice.
    """

    texts: list[list[str]]
    counts: list[list[int]]
    limits: list[int]
    scorer: AnswerScorer | None


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
        settings ([`DecodingSettings`]): The same, its lengths those for this model.
        has_language_model, has_ctc (`bool`): Which heads there are.
        ctc_tokenizer, blank_id: Of the CTC head.
        sampling_rate (`int`): Hz of the waveforms.
        frame_s (`float`): Seconds per encoder frame.
    """

    def __init__(self, model, processor, settings: DecodingSettings):
        config = model.config
        self.model, self.processor, self.settings = model, processor, settings.for_model(config)
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
        if not self.has_ctc and (settings.mode == "ctc" or settings.ctc_weight):
            asked = "`mode` is 'ctc'" if settings.mode == "ctc" else f"`ctc_weight` is {settings.ctc_weight}"
            raise ValueError(f"{asked}, but this model has no CTC head, or its processor no CTC tokenizer.")

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
        paths = blanks = [None] * len(waves)
        ctc_bests: list[list[str | None]] = [[None]] * len(waves)
        if self.has_ctc:
            path = best_path(log_probs, lengths, blank_id=self.blank_id)
            paths = [row[:length].cpu() for row, length in zip(path.ids, lengths.tolist(), strict=True)]
            ctc_bests = self._ctc_bests(log_probs, lengths, path.ids)
        ctc_texts = [texts[0] for texts in ctc_bests]

        # 2. hotwords that may have been said
        found: list[Sequence[FoundHotword]] = [()] * len(waves)
        if isinstance(hotwords, HotwordFilter):
            limits = {"max_hotwords": self.settings.max_hotwords, "threshold": self.settings.hotword_threshold}
            found = hotwords(log_probs, lengths, **limits)
        elif hotwords:
            found = [[FoundHotword(word) for word in hotwords]] * len(waves)

        # 3. the language model, where something was said
        by_lm = self.settings.mode == "lm"
        guarded = by_lm and self.has_ctc and self.settings.guard is not None
        rows = list(range(len(waves)))
        if guarded:
            blanks = blank_statistics(log_probs, lengths, blank_id=self.blank_id)
            rows = [r for r in rows if not is_silence(ctc_texts[r], blanks[r], self.settings.guard)]
            found = [words if row in rows else () for row, words in enumerate(found)]
        named = [tuple(word.text for word in words) for words in found]
        lm_texts, counts, limits = ([None] * len(waves) for _ in range(3))
        answers = None
        if by_lm and rows:
            seconds = [len(waves[row]) / self.sampling_rate for row in rows]
            chosen = [requests[row] for row in rows]
            if self.settings.hotwords_in_prompt:
                chosen = [request._replace(keywords=named[row]) for request, row in zip(chosen, rows, strict=True)]
            prompt_heads = PromptHeads(self.model) if prompt_heads is None else prompt_heads
            answers = self._generate(encoded, num_audio_tokens, rows, chosen, seconds, prompt_heads)
            for row, bests, numbers, limit in zip(rows, answers.texts, answers.counts, answers.limits, strict=True):
                lm_texts[row], counts[row], limits[row] = bests[0], numbers[0], limit
        texts = list(lm_texts if by_lm else ctc_texts)

        # 4. both heads choose, or CTC alone where hotwords may have been said
        if answers is not None and self.settings.ctc_weight > 0:
            bests = {row: [lm_bests, ctc_bests[row]] for row, lm_bests in zip(rows, answers.texts, strict=True)}
            said = self._choose(log_probs, lengths, bests, found, answers.scorer)
            for row, numbers in zip(rows, answers.counts, strict=True):
                written = dict(zip(bests[row][0], numbers, strict=True))
                counts[row] = written.get(said[row]) or len(self.processor.answers([said[row]])[0]) - 1
            texts = [said.get(row) for row in range(len(waves))]
        elif not by_lm:
            said = self._choose(log_probs, lengths, {row: [ctc_bests[row]] for row in rows if found[row]}, found)
            texts = [said.get(row, text) for row, text in enumerate(ctc_texts)]

        # 5. the guard
        decisions = [None] * len(waves)
        if guarded:
            for row, (text, ctc_text_, blank) in enumerate(zip(texts, ctc_texts, blanks, strict=True)):
                decisions[row] = guard_text(
                    text or "", ctc_text_, blank, num_tokens=counts[row], max_new_tokens=limits[row],
                    settings=self.settings.guard, warn=False,
                )  # fmt: skip
                texts[row] = decisions[row].text

        # 6. times of characters
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

    def _ctc_bests(self, log_probs, lengths, path_ids) -> list[list[str]]:
        """The texts of CTC for each recording, the best first."""
        size = self.settings.ctc_beam_size
        if size == 1:
            bests = [[ids] for ids in collapse(path_ids, blank_id=self.blank_id)]
        else:
            beams = ctc_beam_search(log_probs, lengths, blank_id=self.blank_id, beam_size=size, num_best=size)
            bests = [[hypothesis.token_ids for hypothesis in row] for row in beams]
        return [[ctc_text(self.ctc_tokenizer, ids) for ids in row] for row in bests]

    def _choose(self, log_probs, lengths, bests: dict[int, list[list[str]]], found, scorer=None) -> dict[int, str]:
        """Of each row in `bests`, which holds the texts of each head, the one that was said."""
        said = choose_texts(
            list(bests.values()),
            [CtcScorer(log_probs[r, : lengths[r]], self.ctc_tokenizer, blank_id=self.blank_id) for r in bests],
            scorer,
            ctc_weight=1.0 if scorer is None else self.settings.ctc_weight,
            hotwords=[found[row] for row in bests],
            hotword_bonus=self.settings.hotword_bonus,
        )
        return dict(zip(bests, said, strict=True))

    def _generate(
        self, encoded, num_audio_tokens, rows, requests: list[Request], seconds, prompt_heads: PromptHeads
    ) -> "Answers":
        """Answers of `rows`; of all beams where there is a choice."""
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
        chooses = self.settings.ctc_weight > 0
        if chooses and cache is None:
            cache = DynamicCache(config=self.model.config.text_config)
        sequences = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoded_audio=encoded,
            past_key_values=cache,
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_beams if chooses else 1,
            max_new_tokens=max(limits) + 1,
            logits_processor=LogitsProcessorList([end_at_limit]),
            eos_token_id=processor.end_token_ids,
            pad_token_id=pad_token_id,
        )
        is_end = torch.isin(sequences[:, input_ids.shape[1] :], torch.tensor(processor.end_token_ids, device=device))
        num_tokens = (is_end.cumsum(-1) == 0).sum(-1).tolist()
        texts, number = processor.decode_answers(sequences), len(sequences) // len(rows)
        scorer = None
        if chooses:
            scorer = AnswerScorer(self.model, processor, cache, input_ids, attention_mask, num_beams=num_beams)
        return Answers(
            texts=[texts[first : first + number] for first in range(0, len(texts), number)],
            counts=[num_tokens[first : first + number] for first in range(0, len(texts), number)],
            limits=limits,
            scorer=scorer,
        )

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


__all__ = ["BatchDecoder", "DecodedAudio"]
