"""`Transcriber`: recordings of any length -> texts, in one call.

Long recordings are divided into windows, the windows of all recordings are decoded in batches of similar length, and
the texts of each recording joined again.
"""

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .asr_audio import is_single, read_file, read_waves
from .asr_prompt import Request, transcription_requests
from .batch_decoding import BatchDecoder, DecodedAudio
from .configuration_nest import NestConfig
from .decoding_settings import DecodingSettings
from .guards import GuardDecision
from .handover import follow_pointer
from .hotwords import HotwordFilter
from .long_audio import (
    PAUSE_S,
    Window,
    cut_at_pauses,
    find_cuts,
    frame_levels,
    join_posteriors,
    join_timed_texts,
    plan_windows,
    shift,
)
from .modeling_nest import NestForCTC
from .modeling_nest_asr import NestAsrForConditionalGeneration
from .processing_nest_asr import NestAsrProcessor
from .prompt_heads import PromptHeads
from .timestamps import TimedText, word_timestamps
from .vad import speech_segments

logger = logging.getLogger(__name__)

PROMPT_S = 4.0  # the tokens of a prompt with some hotwords, as seconds of audio at 12.5 tokens per second
TEXTS = ("text", "lm_text", "ctc_text")


@dataclass(frozen=True)
class Transcription:
    """
    What was said in a recording.

    Attributes:
        text (`str`): The text to use; empty where nothing is heard.
        lm_text, ctc_text (`str`, *optional*): What each head wrote by itself; None where it did not run, as the
            language model where the CTC head hears nothing.
        decisions (`tuple[GuardDecision, ...]`): The guard's, one per window; none where it is off or without CTC.
        hotwords (`tuple[str, ...]`): Those that the CTC head admits.
        characters, words (`tuple[TimedText, ...]`, *optional*):
            Of `text`, with `start_s`, `end_s` and `score`; None unless asked for.
        windows (`tuple[tuple[float, float], ...]`): Begin and end of the decoded pieces, in seconds.
        duration_s (`float`): Of the recording.
        hit_max_new_tokens (`bool`): Whether the language model was cut off.

    Example:

    ```python
    >>> from nest_hf import Transcription

    >>> fields = {"lm_text": None, "decisions": (), "hotwords": (), "characters": None, "words": None}
    >>> result = Transcription(
    ...     text="好", ctc_text="好", windows=((0.0, 1.0),), duration_s=1.0, hit_max_new_tokens=False, **fields
    ... )
    >>> result.to_dict()["text"], "words" in result.to_dict()
    ('好', False)

    ```
    """

    text: str
    lm_text: str | None
    ctc_text: str | None
    decisions: tuple[GuardDecision, ...]
    hotwords: tuple[str, ...]
    characters: tuple[TimedText, ...] | None
    words: tuple[TimedText, ...] | None
    windows: tuple[tuple[float, float], ...]
    duration_s: float
    hit_max_new_tokens: bool

    def to_dict(self) -> dict:
        """The record as JSON takes it, without characters and words where there are none."""
        record = dataclasses.asdict(self)
        return {key: value for key, value in record.items() if value is not None or key not in ("characters", "words")}


class Transcriber:
    """
    Turns recordings into text with NEST-ASR or a CTC model.

    Args:
        model ([`NestAsrForConditionalGeneration`] or [`NestForCTC`]): Is set to eval mode.
        processor ([`NestAsrProcessor`], or `Wav2Vec2Processor` for [`NestForCTC`]):
            The latter holds a feature extractor and the CTC tokenizer.
        settings ([`DecodingSettings`], *optional*):
            By the language model where there is one, else by CTC, both greedy.

    Example:

    ```python
    >>> import numpy as np
    >>> from transformers import Wav2Vec2Processor
    >>> from nest_hf import NestConfig, NestFeatureExtractor, NestForCTC, Transcriber
    >>> from nest_hf.ctc_tokenizer import build_ctc_tokenizer

    >>> tokenizer = build_ctc_tokenizer(["办理业务"])
    >>> model = NestForCTC(NestConfig.from_preset("tiny", vocab_size=len(tokenizer), pad_token_id=0))
    >>> transcriber = Transcriber(model, Wav2Vec2Processor(NestFeatureExtractor(), tokenizer))
    >>> (result,) = transcriber(np.zeros(8000, dtype=np.float32), sampling_rate=8000, timestamps=True)
    >>> result.duration_s, "".join(timed.text for timed in result.characters) == result.text
    (1.0, True)

    >>> # with a trained recogniser
    >>> transcriber = Transcriber.from_pretrained("runs/asr")  # doctest: +SKIP
    >>> transcriber(["call.wav"], hotwords=["办理业务"])[0].text  # doctest: +SKIP
    '我要办理业务'

    ```
    """

    def __init__(self, model, processor, *, settings: DecodingSettings | None = None):
        if settings is None:
            settings = DecodingSettings(mode="lm" if model.config.model_type == "nest_asr" else "ctc")
        self.decoder = BatchDecoder(model.eval(), processor, settings)
        self.settings = self.decoder.settings
        self._last_hotwords: tuple[tuple, HotwordFilter | list[str]] | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        settings: DecodingSettings | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "Transcriber":
        """
        Args:
            source (`str`): Folder, Hub id or stage pointer of a [`NestAsrForConditionalGeneration`] or [`NestForCTC`].
            settings ([`DecodingSettings`], *optional*): As in the class.
            revision (`str`, *optional*): On the Hub.
            dtype, device (*optional*): Of the weights; float32 on the CPU by default.
        """
        source, options = follow_pointer(source), {"revision": revision or "main"}
        if NestConfig.get_config_dict(source, **options)[0].get("model_type") == "nest_asr":
            model = NestAsrForConditionalGeneration.from_pretrained(source, dtype=dtype, **options)
            return cls(model.to(device), NestAsrProcessor.from_pretrained(source, **options), settings=settings)
        from transformers import Wav2Vec2Processor

        model, info = NestForCTC.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:4])
            raise ValueError(f"{source} lacks {missing}: it is no recogniser; finetune it with CTC first.")
        return cls(model.to(device), Wav2Vec2Processor.from_pretrained(source, **options), settings=settings)

    def __call__(
        self,
        audio,
        *,
        sampling_rate: int | Sequence[int] | None = None,
        language: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        itn: bool | list[bool] = True,
        hotwords: Sequence[str] | None = None,
        timestamps: bool = False,
    ) -> list[Transcription]:
        """
        Args:
            audio: Mono waveforms `(samples,)` of floats in [-1, 1] or paths: a list, or one. Any length and rate.
                The channels of a file are averaged; of a call with a speaker on each, pass every channel by itself.
            sampling_rate (`int` or `Sequence[int]`, *optional*):
                Of the waveforms in Hz, one for all or for each; the model's by default. A file has its own.
            language, prompt, itn (*optional*): As in [`~NestAsrProcessor.apply_transcription_request`].
            hotwords (`Sequence[str]`, *optional*):
                Words that may be said; the list may be long. Each prompt names those that the CTC head admits in its
                audio (`hotwords_in_prompt`), and with `ctc_weight`, or by CTC alone, texts with them are among those
                of which one is chosen. Without a CTC head all are named, and there may be `max_hotwords` at most.
            timestamps (`bool`, *optional*, defaults to `False`): Whether characters and words get their times.

        Returns:
            `list[Transcription]`: In the order of `audio`.
        """
        # 1. what is asked, and of which audio
        waves, durations_s = self._read(audio, sampling_rate)
        requests = self._requests(len(waves), language, prompt, itn)
        hotwords = self._hotwords(hotwords)
        if timestamps and not self.decoder.has_ctc:
            raise ValueError(
                "`timestamps` need a CTC head with its tokenizer, and this model has none; leave them out."
            )

        # 2. pieces, decoded in batches of similar length
        plans = [self._plan(index, wave) for index, wave in enumerate(waves)]
        if self.settings.long_audio == "pauses":
            plans = self._cut_at_pauses(waves, plans)
        pieces = [(index, window) for index, plan in enumerate(plans) for window in plan]
        decoded: list[DecodedAudio | None] = [None] * len(pieces)
        prompt_heads = PromptHeads(self.decoder.model) if self.settings.mode == "lm" else None
        for batch in self._batches([window.end - window.start for _, window in pieces]):
            chosen = [pieces[number] for number in batch]
            results = self.decoder(
                [waves[index][window.start : window.end] for index, window in chosen],
                [requests[index] for index, _ in chosen],
                hotwords=hotwords,
                timed=self._timed(timestamps, any(len(plans[index]) > 1 for index, _ in chosen)),
                prompt_heads=prompt_heads,
            )
            for number, result in zip(batch, results, strict=True):
                decoded[number] = result

        # 3. one text per recording
        transcriptions, rest = [], iter(decoded)
        for plan, duration_s in zip(plans, durations_s, strict=True):
            transcriptions.append(self._transcription(plan, [next(rest) for _ in plan], duration_s, timestamps))
        cut_off = sum(transcription.hit_max_new_tokens for transcription in transcriptions)
        if cut_off:
            logger.warning(
                "%d of %d recordings were cut off at their `max_new_tokens`; if real speech was cut, raise "
                "`tokens_per_s` %g.", cut_off, len(transcriptions), self.settings.tokens_per_s,
            )  # fmt: skip
        return transcriptions

    # --- input ------------------------------------------------------------------------------------------------------

    def _read(self, audio, sampling_rate) -> tuple[list[np.ndarray], list[float]]:
        """Waveforms at the model's rate, and the seconds of each before anything is added."""
        audio = [audio] if is_single(audio) else list(audio)
        if not audio:
            raise ValueError("`audio` is empty; pass at least one recording.")
        target = self.decoder.sampling_rate
        rates = [sampling_rate] * len(audio) if np.ndim(sampling_rate) == 0 else list(sampling_rate)
        if len(rates) != len(audio):
            raise ValueError(
                f"`sampling_rate` has {len(rates)} values for {len(audio)} recordings; pass one for each."
            )
        if any(rate is not None and not rate > 0 for rate in rates):
            raise ValueError(f"`sampling_rate` is {sampling_rate}; pass Hz above 0.")
        waves, durations_s = [], []
        for index, (item, rate) in enumerate(zip(audio, rates, strict=True)):
            if isinstance(item, str | os.PathLike):
                item, rate = read_file(item)
            item = _checked(item, index)
            durations_s.append(len(item) / (rate or target))
            waves += read_waves([item], rate, target)
        return waves, durations_s

    def _requests(self, number: int, language, prompt, itn) -> list[Request]:
        given = [name for name, value in (("language", language), ("prompt", prompt)) if value is not None]
        if itn is not True:
            given.append("itn")
        if self.settings.mode == "ctc":
            if given:
                raise ValueError(f"`{given[0]}` has no effect in `mode` 'ctc', which has no prompt; leave it out.")
            return [Request()] * number
        return transcription_requests(number, language, prompt, itn=itn)

    def _hotwords(self, hotwords: Sequence[str] | None) -> HotwordFilter | list[str]:
        """The filter of a list, kept for the next call; the list itself where nothing can filter it."""
        if hotwords is None or (not isinstance(hotwords, str) and len(hotwords) == 0):
            return []
        if isinstance(hotwords, str) or not all(isinstance(word, str) and word.strip() for word in hotwords):
            raise ValueError(f"`hotwords` must be a list of words, none of them empty, not {str(hotwords)[:60]!r}.")
        words = tuple(dict.fromkeys(hotwords))
        if self._last_hotwords is None or self._last_hotwords[0] != words:
            if self.settings.mode == "lm":  # refuses a word with a token of the prompt now, not when it is found
                self.decoder.processor.apply_transcription_request(np.zeros(1600), keywords=list(words))
            if self.decoder.has_ctc:
                found = HotwordFilter(words, self.decoder.ctc_tokenizer, blank_id=self.decoder.blank_id)
            elif len(words) <= self.settings.max_hotwords:
                found = list(words)
            else:
                raise ValueError(
                    f"`hotwords` has {len(words)} words, but without a CTC head nothing chooses the `max_hotwords` "
                    f"{self.settings.max_hotwords} of a prompt; pass fewer."
                )
            self._last_hotwords = (words, found)
        return self._last_hotwords[1]

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _plan(self, index: int, wave: np.ndarray) -> list[Window]:
        settings, rate = self.settings, self.decoder.sampling_rate
        if len(wave) <= settings.max_window_s * rate:
            return [Window(0, len(wave))]
        if settings.long_audio == "vad":
            return speech_segments(wave, sampling_rate=rate, max_segment_s=settings.max_window_s)
        if not self.decoder.has_ctc:
            raise ValueError(
                f"recording {index} of `audio` has {len(wave) / rate:.1f} s, more than `max_window_s` "
                f"{settings.max_window_s:g}, and this model has no CTC head by which windows are joined; choose "
                "`long_audio` 'vad', or a larger `max_window_s`."
            )
        return plan_windows(
            len(wave),
            sampling_rate=rate,
            window_s=settings.max_window_s,
            overlap_s=settings.overlap_s,
            samples_per_frame=round(self.decoder.frame_s * rate),
        )

    def _cut_at_pauses(self, waves: Sequence[np.ndarray], plans: Sequence[list[Window]]) -> list[list[Window]]:
        """Windows -> pieces between the pauses that CTC finds in the windows; a single window stays as it is."""
        frame = round(self.decoder.frame_s * self.decoder.sampling_rate)
        windows = [(index, window) for index, plan in enumerate(plans) if len(plan) > 1 for window in plan]
        paths: dict[tuple[int, Window], torch.Tensor] = {}
        for batch in self._batches([window.end - window.start for _, window in windows]):
            chosen = [windows[number] for number in batch]
            found = self.decoder.ctc_paths([waves[index][window.start : window.end] for index, window in chosen])
            paths |= dict(zip(chosen, found, strict=True))
        cut = list(plans)
        for index in dict.fromkeys(index for index, _ in windows):
            own = [paths[index, window] for window in plans[index]]
            starts = [window.start // frame for window in plans[index]]
            path = join_posteriors(own, starts, find_cuts(own, starts, blank_id=self.decoder.blank_id))
            pieces = cut_at_pauses(
                path,
                frame_levels(waves[index], frame, len(path)),
                blank_id=self.decoder.blank_id,
                max_frames=int(self.settings.max_window_s / self.decoder.frame_s),
                padding_frames=round(PAUSE_S / self.decoder.frame_s),
            )
            cut[index] = [Window(start * frame, min(end * frame, len(waves[index]))) for start, end in pieces]
        return cut

    def _timed(self, timestamps: bool, is_long: bool) -> tuple[str, ...]:
        """Texts whose characters need times: windows are joined by them."""
        if is_long and self.settings.long_audio == "windows":
            return TEXTS
        return ("text",) if timestamps else ()

    def _batches(self, num_samples: Sequence[int]) -> list[list[int]]:
        """Pieces by falling length, so that the largest batch comes first, up to `batch_duration_s` with padding."""
        prompt_s, rows = (PROMPT_S, self.settings.num_beams) if self.settings.mode == "lm" else (0.0, 1)
        budget = self.settings.batch_duration_s * self.decoder.sampling_rate
        cost = [rows * (number + prompt_s * self.decoder.sampling_rate) for number in num_samples]
        batches: list[list[int]] = []
        for number in sorted(range(len(num_samples)), key=lambda number: -num_samples[number]):
            if batches and (len(batches[-1]) + 1) * cost[batches[-1][0]] <= budget:
                batches[-1].append(number)
            else:
                batches.append([number])
        return batches

    # --- result -----------------------------------------------------------------------------------------------------

    def _transcription(self, plan, pieces: list[DecodedAudio], duration_s: float, timestamps: bool) -> Transcription:
        rate, frame_s = self.decoder.sampling_rate, self.decoder.frame_s
        offsets_s = [window.start / rate for window in plan]
        texts = {kind: [getattr(piece, kind) for piece in pieces] for kind in TEXTS}
        characters = {}
        if len(plan) > 1 and self.settings.long_audio == "windows":
            starts = [round(offset_s / frame_s) for offset_s in offsets_s]
            cuts = find_cuts([piece.path for piece in pieces], starts, blank_id=self.decoder.blank_id)
            cuts_s = [cut * frame_s for cut in cuts]
            for kind in TEXTS:
                characters[kind] = join_timed_texts([piece.times[kind] for piece in pieces], offsets_s, cuts_s)
            joined = {kind: "".join(timed.text for timed in characters[kind]) for kind in TEXTS}
        else:
            joined = {kind: "".join(_spaced([row or "" for row in texts[kind]])) for kind in TEXTS}
            if timestamps:
                characters["text"] = _follow([piece.times["text"] for piece in pieces], offsets_s)
        words = word_timestamps(characters["text"]) if timestamps else None
        for kind in ("lm_text", "ctc_text"):
            if all(text is None for text in texts[kind]):
                joined[kind] = None
        return Transcription(
            **joined,
            decisions=tuple(piece.decision for piece in pieces if piece.decision is not None),
            hotwords=tuple(dict.fromkeys(word for piece in pieces for word in piece.hotwords)),
            characters=tuple(characters["text"]) if timestamps else None,
            words=None if words is None else tuple(words),
            windows=tuple((round(w.start / rate, 4), round(min(w.end / rate, duration_s), 4)) for w in plan),
            duration_s=round(duration_s, 4),
            hit_max_new_tokens=any(piece.hit_max_new_tokens for piece in pieces),
        )


def _checked(wave, index: int) -> np.ndarray:
    """A waveform, or one clear message about recording `index`."""
    wave = np.asarray(wave.cpu() if isinstance(wave, torch.Tensor) else wave)
    name = f"recording {index} of `audio`"
    if wave.ndim != 1:
        raise ValueError(f"{name} has shape {wave.shape}; pass mono (samples,), average the channels of stereo first.")
    if not len(wave):
        raise ValueError(f"{name} has no samples; leave it out.")
    if not np.issubdtype(wave.dtype, np.floating):
        raise ValueError(f"{name} is of type {wave.dtype}; pass floats in [-1, 1] (16-bit samples / 32768).")
    if not np.isfinite(wave).all():
        raise ValueError(f"{name} has {(~np.isfinite(wave)).sum()} samples that are NaN or infinite; repair it.")
    return wave


def _spaced(texts: Sequence[str]) -> list[str]:
    """Texts of segments, a space in front of those that would run into the one before: not between ideographs."""
    spaced, last = [], ""
    for text in texts:
        if text and last and not (_is_wide(last) or _is_wide(text[0])):
            text = f" {text}"
        spaced.append(text)
        last = text[-1:] or last
    return spaced


def _is_wide(character: str) -> bool:
    return character.isspace() or unicodedata.east_asian_width(character) in "WF"


def _follow(pieces: Sequence[list[TimedText]], offsets_s: Sequence[float]) -> list[TimedText]:
    """Characters of segments in seconds of the recording, with the spaces of [`_spaced`]."""
    characters: list[TimedText] = []
    spaced = _spaced(["".join(timed.text for timed in piece) for piece in pieces])
    for piece, text, offset_s in zip(pieces, spaced, offsets_s, strict=True):
        if len(text) > len(piece):
            now = characters[-1].end_s
            characters.append(TimedText(" ", now, now, None))
        characters += shift(piece, offset_s)
    return characters


__all__ = ["Transcriber", "Transcription"]
