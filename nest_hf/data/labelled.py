"""From labelled recordings to the batches that train a recogniser: texts as they are learned, features, labels."""

from dataclasses import dataclass

import datasets
import numpy as np
import torch
from scipy.fft import next_fast_len
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..asr_audio import read_waves
from ..asr_prompt import Request, request_arguments
from ..configuration_nest_asr import num_encoder_frames
from ..processing_nest_asr import NestAsrProcessor
from ..text import normalize
from .batching import ExampleKey
from .filters import filter_annotation_errors
from .hotword_draws import draw_hotwords
from .lengths import row_lengths
from .pretraining import Example, PretrainingDataset
from .report import LoadReport
from .requests import read_requests
from .seeding import generator_of, seed_of
from .sources import load_with_report
from .spec_augment import SpecAugment


@dataclass
class LabelledRows:
    """
    Labelled recordings.

    Attributes:
        rows (`datasets.Dataset`): From [`load_speech_dataset`].
        texts (`list[str]`): What the language model learns to write.
        ctc_texts (`list[str]`): What the CTC head learns.
        requests (`list[Request]`): What the prompts say, see [`read_requests`].
        reports (`list[LoadReport]`): What was read and left out.
    """

    rows: datasets.Dataset
    texts: list[str]
    ctc_texts: list[str]
    requests: list[Request]
    reports: list[LoadReport]


def load_labelled(
    source,
    *,
    name: str,
    text_level: str = "raw",
    ctc_text_level: str = "basic",
    with_prompts: bool = True,
    **options,
) -> LabelledRows:
    """
    Reads labelled recordings; rows without text are left out and counted, also where normalising leaves none.

    Args:
        source: As [`load_speech_dataset`] takes it.
        name (`str`): What to call the data in messages.
        text_level (`str`, *optional*, defaults to `"raw"`):
            [`~text.normalize`] of the language model's text. It has learned to write punctuation, case and numbers as
            people do, and keeps that.
        ctc_text_level (`str`, *optional*, defaults to `"basic"`):
            The same for the CTC head, which writes what is heard: no punctuation and no case.
        with_prompts (`bool`, *optional*, defaults to `True`):
            Whether the columns of [`read_requests`] count; `False` where nothing reads a prompt.
        options: As of [`load_with_report`].
    """
    rows, read = load_with_report(source, name=name, **options)
    rows, kept = filter_annotation_errors(rows, name=name)
    texts = [normalize(text, text_level) for text in rows["text"][:]]
    ctc_texts = [normalize(text, ctc_text_level) for text in rows["text"][:]]
    spoken = [i for i, pair in enumerate(zip(texts, ctc_texts, strict=True)) if all(text.strip() for text in pair)]
    if not spoken:
        raise ValueError(f"{name}: no text is left after normalising; look at the texts, or choose another level.")
    if len(spoken) < len(texts):
        empty = sorted(set(range(len(texts))) - set(spoken))
        kept.drop("nothing but punctuation", len(empty), [rows[i]["id"] for i in empty[:5]])
        rows = rows.select(spoken)
        kept.rows, kept.hours = len(rows), float(np.sum(rows["duration"][:])) / 3600
    pick = [(texts[i], ctc_texts[i]) for i in spoken]
    reports = [read] + ([kept] if kept.dropped else [])
    requests = read_requests(rows, name=name) if with_prompts else [Request()] * len(rows)
    return LabelledRows(rows, [text for text, _ in pick], [text for _, text in pick], requests, reports)


@dataclass
class LabelledExample:
    """A decoded recording, its two texts and what its prompt says."""

    audio: Example
    text: str
    ctc_text: str
    request: Request = Request()


class LabelledDataset(Dataset):
    """
    Decodes labelled recordings; a key of several rows makes one example of them, one after the other.

    Args:
        labelled ([`LabelledRows`]): Recordings and texts.
        no_speech_share (`float`, *optional*, defaults to 0.0):
            Share of the recordings that become noise of the same length, with empty texts; drawn anew in each epoch.
        hotword_share (`float`, *optional*, defaults to 0.0):
            Share of the recordings whose prompt names hotwords, see [`~hotword_draws.draw_hotwords`]; those that have
            keywords of their own keep them.
        options: As of [`PretrainingDataset`]: `channel`, `wideband_share`, `sampling_rate`, `resample`, `seed`,
            `on_bad_audio`.
    """

    def __init__(self, labelled: LabelledRows, *, no_speech_share: float = 0.0, hotword_share: float = 0.0, **options):
        self.labelled = labelled
        self.no_speech_share = no_speech_share
        self.hotword_share = hotword_share
        self.audio = PretrainingDataset(labelled.rows, **options)

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, key: ExampleKey) -> LabelledExample:
        labelled, rows = self.labelled, list(key.rows)
        text, ctc_text = (join_texts([texts[row] for row in rows]) for texts in (labelled.texts, labelled.ctc_texts))
        request = labelled.requests[rows[0]]
        if len(rows) > 1:
            words = [word for row in rows for word in labelled.requests[row].keywords]
            request = request._replace(keywords=tuple(dict.fromkeys(words)))
        if self.hotword_share and not request.keywords:
            rng = self._generator(key, "hotwords")
            if rng.random() < self.hotword_share:
                request = request._replace(keywords=draw_hotwords(text, labelled.texts, rng))
        if self.no_speech_share:
            rng = self._generator(key, "no speech")
            if rng.random() < self.no_speech_share:
                return LabelledExample(self._noise(key, rng), "", "", request)
        return LabelledExample(self.audio[key], text, ctc_text, request)

    def _generator(self, key: ExampleKey, purpose: str) -> np.random.Generator:
        name = "+".join(self.labelled.rows[row]["id"] for row in key.rows)
        return generator_of(self.audio.seed, key.epoch, name, purpose)

    def _noise(self, key: ExampleKey, rng: np.random.Generator) -> Example:
        """Noise as long as the recordings, through the channel if there is one."""
        rate, noises = self.audio.sampling_rate, []
        for row in key.rows:
            recording = self.labelled.rows[row]
            noise = {"array": draw_noise(round(recording["duration"] * rate), rng), "sampling_rate": rate}
            noises.append({**recording, "audio": noise, "offset": 0.0})
        return self.audio.example(noises, key.epoch)


def join_texts(texts: list[str]) -> str:
    """Texts one after the other, with a space between words of scripts that have spaces."""
    joined = texts[0]
    for text in texts[1:]:
        spaced = joined and text and joined[-1] < "\u2e80" and text[0] < "\u2e80"  # before the CJK blocks
        joined += f" {text}" if spaced else text
    return joined


def draw_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """
    Noise as on a line on which nobody speaks, (N,) float32: between white and brown, -80 to -30 dBFS. A recogniser
    whose features are normalised for each recording hears it as loud as speech.
    """
    slope, level_db = rng.uniform(0, 1), rng.uniform(-80, -30)
    size = next_fast_len(max(num_samples, 2), real=True)  # other lengths take several times as long
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -slope  # amplitudes: white, pink at 1/2, brown at 1
    wave = np.fft.irfft(spectrum, size)[:num_samples]
    return (wave * 10 ** (level_db / 20) / max(np.sqrt(np.mean(wave**2)), 1e-12)).astype(np.float32)


class LabelledCollator:
    """
    Turns labelled examples into a batch.

    Args:
        processor: [`NestAsrProcessor`], or `Wav2Vec2Processor` of a [`NestFeatureExtractor`] and a CTC tokenizer.
        subsampling_factor (`int`): Feature frames per encoder frame.
        dither (`float`, *optional*, defaults to 0.0): Standard deviation of noise added to the waveforms.
        seed (`int`, *optional*, defaults to 0): Seeds the dither and the masks.
        spec_augment ([`SpecAugment`], *optional*): Hides a part of the features.
        answer_noise (`float`, *optional*, defaults to 0.0):
            Share of an answer's tokens that the language model reads as any other while it learns the next one, which
            it then has to hear and cannot guess from those before.

    Returns, when called on a list of B [`LabelledExample`]s:
        `input_features` (B, F, M), `input_features_mask` (B, F), `ctc_labels` (B, U); for a [`NestAsrProcessor`] also
        `input_ids`, `attention_mask` and `labels` (B, L); `ids`, `texts` and `ctc_texts` (lists of B) and `notes`, for
        the trainer. A target that has more tokens than encoder frames is noted as `impossible`.
    """

    def __init__(self, processor, *, subsampling_factor: int, dither: float = 0.0, seed: int = 0,
                 spec_augment: SpecAugment | None = None, answer_noise: float = 0.0):  # fmt: skip
        self.processor = processor
        self.spec_augment = spec_augment
        self.answer_noise = answer_noise
        if answer_noise:
            tokenizer = processor.tokenizer
            self.ordinary_ids = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        self.subsampling_factor = subsampling_factor
        self.dither = dither
        self.seed = seed

    def __call__(self, examples: list[LabelledExample]) -> dict:
        notes = [note for example in examples for note in example.audio.notes]
        usable = [example for example in examples if len(example.audio.wave)]
        examples = usable or [_no_speech()]
        waves = [self._dithered(example.audio) for example in examples]
        batch = self._inputs(waves, examples)
        ids = [example.audio.id for example in examples]
        if self.spec_augment:
            drawn = [generator_of(self.seed, e.audio.epoch, e.audio.id, "spec_augment") for e in examples]
            lengths = batch["input_features_mask"].sum(-1)
            batch["input_features"] = self.spec_augment(batch["input_features"], lengths, drawn)
        if self.answer_noise and "labels" in batch:
            batch["input_ids"] = self._misread(batch["input_ids"], batch["labels"], examples)
        if not usable:  # nothing to learn from, yet every process does its step
            batch = {key: torch.full_like(v, -100) if key in LABELS else v for key, v in batch.items()}
        elif "ctc_labels" in batch:
            notes += [
                (ids[row], "impossible", "its CTC target is longer than its frames")
                for row in impossible_targets(
                    batch["ctc_labels"], batch["input_features_mask"], self.subsampling_factor
                )
            ]
        texts = {"texts": [e.text for e in examples], "ctc_texts": [e.ctc_text for e in examples]}
        return {**batch, **texts, "ids": ids, "notes": notes}

    def _misread(self, ids: torch.Tensor, labels: torch.Tensor, examples: list[LabelledExample]) -> torch.Tensor:
        """`ids` (B, L) in which a share of the answers' tokens is another one."""
        ids = ids.clone()
        for row, example in enumerate(examples):
            places = torch.nonzero(labels[row] != -100).flatten()
            rng = generator_of(self.seed, example.audio.epoch, example.audio.id, "answer noise")
            places = places[torch.from_numpy(rng.random(len(places)) < self.answer_noise)]
            ids[row, places] = torch.from_numpy(rng.choice(self.ordinary_ids, len(places)))
        return ids

    def _dithered(self, audio: Example) -> np.ndarray:
        if not self.dither:
            return audio.wave
        generator = torch.Generator().manual_seed(seed_of(self.seed, audio.epoch, audio.id, "dither") >> 1)
        return audio.wave + self.dither * torch.randn(len(audio.wave), generator=generator).numpy()

    def _inputs(self, waves: list[np.ndarray], examples: list[LabelledExample]) -> dict:
        ctc_texts = [example.ctc_text for example in examples]
        if isinstance(self.processor, NestAsrProcessor):
            texts = [example.text for example in examples]
            requests = request_arguments([example.request for example in examples])
            return dict(self.processor(audio=waves, transcripts=texts, ctc_transcripts=ctc_texts, **requests))
        extractor, tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        waves = read_waves(waves, None, extractor.sampling_rate)
        features = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        targets = [torch.tensor(ids, dtype=torch.int64) for ids in tokenizer(ctc_texts).input_ids]
        return {
            "input_features": features["input_features"],
            "input_features_mask": features["attention_mask"],
            "ctc_labels": pad_sequence(targets, batch_first=True, padding_value=-100),
        }


LABELS = ("labels", "ctc_labels")


def impossible_targets(ctc_labels: torch.Tensor, mask: torch.Tensor, subsampling_factor: int) -> list[int]:
    """
    Rows whose CTC target has no path: one frame per token, and a blank between two equal ones, are not there.

    Args:
        ctc_labels (`torch.Tensor` of shape `(B, U)`): Token ids, -100 at padding.
        mask (`torch.Tensor` of shape `(B, F)`): 1 at valid feature frames.
        subsampling_factor (`int`): Feature frames per encoder frame.
    """
    is_label = ctc_labels != -100
    repeats = (is_label[:, 1:] & (ctc_labels[:, 1:] == ctc_labels[:, :-1])).sum(-1)
    num_frames = num_encoder_frames(mask.long().sum(-1), subsampling_factor)
    return torch.nonzero(is_label.sum(-1) + repeats > num_frames).flatten().tolist()


def labelled_lengths(labelled: LabelledRows, unit: str, processor, subsampling_factor: int) -> np.ndarray:
    """Length of every row in a unit of [`row_lengths`], as the model and its processor count it."""
    if unit == "llm_tokens":
        if not isinstance(processor, NestAsrProcessor):
            raise ValueError("`budget_unit` llm_tokens needs a language model; choose seconds or encoder_frames.")
        samples = np.round(np.array(labelled.rows["duration"][:]) * processor.sampling_rate).astype(np.int64)
        requests = request_arguments(labelled.requests)
        return processor.num_tokens(samples, labelled.texts, **requests).astype(np.float64)
    if unit == "frames_and_tokens":
        has_lm = isinstance(processor, NestAsrProcessor)
        texts = labelled.texts if has_lm else labelled.ctc_texts
        ids = processor.tokenizer(texts, add_special_tokens=False).input_ids
        return row_lengths(labelled.rows, unit, target_tokens=[len(row) for row in ids])
    return row_lengths(labelled.rows, unit, subsampling_factor=subsampling_factor)


def _no_speech() -> LabelledExample:
    """Stands in for a batch of which no recording could be used."""
    silence = Example("no usable recording", 0, np.zeros(4000, np.float32), np.zeros(0, np.float32), 0, [])
    return LabelledExample(silence, "", "")
