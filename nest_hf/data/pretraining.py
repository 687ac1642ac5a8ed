"""From rows of recordings to the batches of NEST pretraining: decoding, noise, features, masks.

Whatever is random is a function of (seed, epoch, id): the same for any number of workers, and after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..configuration_nest import NestConfig
from ..feature_extraction_nest import NestFeatureExtractor
from ..masking import block_mask, frames_in_loss
from .audio import AudioError, audio_duration, decode_audio
from .batching import ExampleKey
from .noise import NoiseSource, SpeakerNoise
from .seeding import generator_of, seed_of
from .telephone import TelephoneChannel


@dataclass
class Example:
    """One example: its waveform, its noise clip, and what is to be reported about its audio."""

    id: str
    epoch: int
    wave: np.ndarray
    noise: np.ndarray
    noise_length: int
    notes: list[tuple[str, str, str]]  # (recording's id, "bad" | "stereo" | "resampled" | "clipped", message)


class PretrainingDataset(Dataset):
    """
    Decodes recordings and draws their noise clips.

    Args:
        rows (`datasets.Dataset`): From [`load_speech_dataset`]: `id`, `audio`, `offset`, `duration`.
        noise (`NoiseSource`, *optional*): Noise clips.
        sampling_rate (`int`, *optional*, defaults to 16000): Hz.
        resample (`bool`, *optional*, defaults to `True`): Resample other rates instead of refusing them.
        channel (`TelephoneChannel`, *optional*): Makes calls of the recordings, with new draws in every epoch.
        channel_domains (`Sequence[str]`, *optional*): Only recordings of these domains go through the channel.
        wideband_share (`float`, *optional*, defaults to 0.0): Share of the recordings that the channel leaves alone.
        seed (`int`, *optional*, defaults to 0): Seeds the noise clips and the channel.
        on_bad_audio (`str`, *optional*, defaults to `"fail"`): `"fail"`, or `"skip"`: drop, note and go on.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf.data import ExampleKey, PretrainingDataset

    >>> audio = {"array": np.zeros(16000, dtype=np.float32), "sampling_rate": 16000}  # or {"path": "a.wav"}
    >>> rows = [{"id": "a", "audio": audio, "offset": 0.0, "duration": 1.0}]  # or of `load_speech_dataset`
    >>> example = PretrainingDataset(rows)[ExampleKey(epoch=0, rows=(0,))]
    >>> example.id, example.wave.shape
    ('a', (16000,))

    ```
    """

    def __init__(self, rows, *, noise: NoiseSource | None = None, channel: TelephoneChannel | None = None,
                 channel_domains: Sequence[str] | None = None, wideband_share: float = 0.0,
                 sampling_rate: int = 16000, resample: bool = True, seed: int = 0,
                 on_bad_audio: str = "fail"):  # fmt: skip
        if on_bad_audio not in ("fail", "skip"):
            raise ValueError(f"`on_bad_audio` is {on_bad_audio!r}; choose `fail` or `skip`.")
        self.rows = rows
        self.noise = noise
        self.channel = channel
        self.channel_domains = channel_domains
        self.wideband_share = wideband_share
        self.sampling_rate = sampling_rate
        self.resample = resample
        self.seed = seed
        self.on_bad_audio = on_bad_audio

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: ExampleKey) -> Example:
        return self.example([self.rows[row] for row in key.rows], key.epoch)

    def example(self, rows: Sequence[dict], epoch: int) -> Example:
        """Decodes rows, joined to one example."""
        waves, notes = [], []
        for row in rows:
            try:
                audio = decode_audio(
                    row["audio"],
                    sampling_rate=self.sampling_rate,
                    offset_s=row["offset"] or 0.0,
                    duration_s=row["duration"],
                    resample=self.resample,
                )
            except AudioError as error:
                if self.on_bad_audio == "fail":
                    raise AudioError(
                        f"recording {row['id']!r}: {error} (--on_bad_audio skip leaves such recordings out)",
                        error.reason,
                    ) from error
                notes.append((row["id"], "bad", f"{error.reason}: {error}"))
                continue
            waves.append(self._call(audio.samples, row, epoch))
            if audio.num_channels > 1:
                notes.append((row["id"], "stereo", f"{audio.num_channels} channels averaged"))
            if audio.original_sampling_rate != self.sampling_rate:
                notes.append((row["id"], "resampled", f"{audio.original_sampling_rate} Hz"))
            if audio.num_clipped:
                notes.append((row["id"], "clipped", f"{audio.num_clipped} samples"))
        wave = waves[0] if len(waves) == 1 else np.concatenate(waves) if waves else np.zeros(0, np.float32)
        example_id = "+".join(row["id"] for row in rows)
        noise, noise_length = np.zeros(0, np.float32), 0
        if self.noise is not None and len(wave):
            rng = np.random.default_rng(seed_of(self.seed, epoch, example_id, "noise clip"))
            known_bad = len(self.noise.bad_clips)
            noise, noise_length = self.noise.draw(len(wave), rng)
            for clip, reason in list(self.noise.bad_clips.items())[known_bad:]:
                notes.append((clip, "bad", f"noise clip: {reason}"))
        return Example(example_id, epoch, wave, noise, noise_length, notes)

    def _call(self, wave: np.ndarray, row: dict, epoch: int) -> np.ndarray:
        """The recording as it sounds in a call, or as it is where its domain or the draw says wideband."""
        recording = row["id"]
        if self.channel is None or (self.channel_domains and row.get("domain") not in self.channel_domains):
            return wave
        if generator_of(self.seed, epoch, recording, "wideband").random() < self.wideband_share:
            return wave
        return self.channel(wave, sampling_rate=self.sampling_rate, seed=self.seed, id=recording, epoch=epoch)[0]


class PretrainingCollator:
    """
    Turns examples into a batch of [`NestForPreTraining`]: noise added, clean and noisy features in one call, masks.

    Args:
        config (`NestConfig`): Masking and subsampling.
        extractor (`NestFeatureExtractor`): Features and dither.
        augmentation (`SpeakerNoise`, *optional*): [`MultiSpeakerNoise`] or [`SpeakerNoise`].
        seed (`int`, *optional*, defaults to 0): Seeds noise, dither and masks.
        dither (`bool`, *optional*, defaults to `True`): Add dither, as in training.

    Returns, when called on a list of B [`Example`]s:
        `input_features`, `target_features` (B, T, M); `attention_mask` (B, T); `mask_time_indices` (B, T), or (B, T')
        after the subsampling; `labels` (B, T'): 0 in the loss, else -100; `ids` and `notes`, for the trainer.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf import NestConfig, NestFeatureExtractor
    >>> from nest_hf.data import ExampleKey, PretrainingCollator, PretrainingDataset

    >>> audio = {"array": np.zeros(16000, dtype=np.float32), "sampling_rate": 16000}
    >>> examples = PretrainingDataset([{"id": "a", "audio": audio, "offset": 0.0, "duration": 1.0}])
    >>> collator = PretrainingCollator(NestConfig.from_preset("tiny"), NestFeatureExtractor())
    >>> batch = collator([examples[ExampleKey(epoch=0, rows=(0,))]])
    >>> batch["target_features"].shape == batch["input_features"].shape, batch["labels"].shape
    (True, torch.Size([1, 14]))

    ```
    """

    def __init__(self, config: NestConfig, extractor: NestFeatureExtractor, *,
                 augmentation: SpeakerNoise | None = None, seed: int = 0, dither: bool = True):  # fmt: skip
        self.config = config
        self.extractor = extractor
        self.augmentation = augmentation
        self.seed = seed
        self.dither = extractor.dither if dither else 0.0

    def __call__(self, examples: list[Example]) -> dict:
        notes = [note for example in examples for note in example.notes]
        usable = [example for example in examples if len(example.wave)]
        examples = usable or [_silence()]
        clean, noisy, lengths = self.waveforms(examples)
        waves = torch.from_numpy(np.concatenate([clean, noisy]))
        if self.dither:
            for example, *rows in zip(examples, waves[: len(clean)], waves[len(clean) :], strict=True):
                generator = self._generator(example, "dither")
                for row in rows:  # clean and noisy differ in it, as in NeMo
                    noise = torch.randn(len(example.wave), generator=generator)
                    row[: len(noise)].add_(noise, alpha=self.dither)
        num_samples = torch.from_numpy(lengths)
        features, attention_mask = self.extractor.extract(waves, num_samples.repeat(2))
        mask, labels = self._mask(examples, self.extractor.num_frames(num_samples), features.shape[1])
        if not usable:
            mask, labels = torch.zeros_like(mask), torch.full_like(labels, -100)
        return {
            "input_features": features[len(clean) :],
            "target_features": features[: len(clean)],
            "attention_mask": attention_mask[: len(clean)],
            "mask_time_indices": mask,
            "labels": labels,
            "ids": [example.id for example in examples],
            "notes": notes,
        }

    def _generator(self, example: Example, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, example.epoch, example.id, purpose) >> 1)

    def waveforms(self, examples: list[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clean and noisy waveforms (B, N), zero padded, and their lengths (B,)."""
        lengths = np.array([len(example.wave) for example in examples])
        clean = _pad([example.wave for example in examples], lengths.max())
        if self.augmentation is None:
            return clean, clean, lengths
        seeds = [seed_of(self.seed, example.epoch, example.id, "noise") for example in examples]
        added, _ = self.augmentation(
            clean,
            lengths,
            _pad([example.noise for example in examples], lengths.max()),
            np.array([example.noise_length for example in examples]),
            rngs=[np.random.default_rng(seed) for seed in seeds],
            ids=[example.id for example in examples],
        )
        return clean, np.add(clean, added, out=added), lengths

    def _mask(self, examples: list[Example], num_frames: torch.Tensor, max_frames: int):
        """Masked frames and labels of the batch."""
        config = self.config
        block_size = config.mask_block_size
        if config.mask_position == "post_conv":
            block_size = max(1, block_size // config.subsampling_factor)
            num_frames = -(-num_frames // config.subsampling_factor)
            max_frames = -(-max_frames // config.subsampling_factor)
        mask = block_mask(
            num_frames,
            max_frames,
            mask_prob=config.mask_prob,
            block_size=block_size,
            allow_overlap=config.mask_allow_overlap,
            version=config.mask_version,
            generators=[self._generator(example, "mask") for example in examples],
        )
        in_loss = frames_in_loss(mask, config.masked_frames_per_label, config.mask_threshold)
        return mask, torch.where(in_loss, 0, -100)


class StreamedBatches(IterableDataset):
    """
    Batches of a streamed data set, without end: packed by a budget within a window of rows, epoch after epoch.

    Every process and every worker reads its own shards. What it yields is a function of (seed, processes, workers).
    Batches are planned by the durations of the rows, or of their headers, and decoded when they are due. To go on in
    the middle, set `num_skipped`: that many batches of the process come as None, quickly, to be thrown away, as
    `accelerate.skip_first_batches` does.

    Args:
        stream (`datasets.IterableDataset`): Rows, without limits of duration.
        examples (`PretrainingDataset`), collator (`PretrainingCollator`): From rows to batches.
        budget_s (`float`): Padded seconds per batch.
        min_duration_s, max_duration_s (`float`): Recordings outside are left out and noted.
        window (`int`, *optional*, defaults to 256): Recordings that are sorted by duration together.
        shuffle_buffer (`int`, *optional*, defaults to 2048): Rows among which the next one is drawn.
        seed, num_replicas, rank: As [`TokenBudgetBatchSampler`].

    Example:

    ```python
    >>> import datasets
    >>> import numpy as np
    >>> from nest_hf.data import PretrainingDataset, StreamedBatches

    >>> audio = {"array": np.zeros(16000, dtype=np.float32), "sampling_rate": 16000}
    >>> rows = [{"id": str(number), "audio": audio, "offset": 0.0, "duration": 1.0} for number in range(8)]
    >>> stream = datasets.Dataset.from_list(rows).to_iterable_dataset()  # or of `load_speech_dataset`
    >>> batches = StreamedBatches(stream, PretrainingDataset(None), len, budget_s=4.0)  # `len` in place of a collator
    >>> next(iter(batches))
    4

    ```
    """

    def __init__(
        self,
        stream,
        examples: PretrainingDataset,
        collator: PretrainingCollator,
        *,
        budget_s: float,
        min_duration_s: float = 0.0,
        max_duration_s: float = float("inf"),
        window: int = 256,
        shuffle_buffer: int = 2048,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        from datasets.distributed import split_dataset_by_node

        self.stream = split_dataset_by_node(stream, rank, num_replicas)
        self.examples = examples
        self.collator = collator
        self.budget_s = budget_s
        self.limits_s = (min_duration_s, min(max_duration_s, budget_s))
        self.window = window
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.num_skipped = 0

    def __iter__(self):
        worker = get_worker_info()  # workers take turns: of n batches worker w gives the n[w::num_workers]
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, (epoch, batch) in enumerate(self._plan()):
            if first + number * step < self.num_skipped:
                yield None
            else:
                yield self.collator([self._example(row, seconds, epoch) for seconds, row in batch])

    def _plan(self):
        """(epoch, [(seconds, row), ...]) of every batch, without decoding."""
        stream = self.stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        epoch = last_epoch_with_rows = 0
        # shards are dealt anew in every epoch: of a small data set a process may get none in one of them
        while epoch < last_epoch_with_rows + 100:
            stream.set_epoch(epoch)
            window: list[tuple[float | None, dict]] = []
            for row in stream:
                last_epoch_with_rows = epoch
                window.append((self._seconds(row), row))
                if len(window) == self.window:
                    yield from ((epoch, batch) for batch in self._batches(window))
                    window = []
            yield from ((epoch, batch) for batch in self._batches(window))
            epoch += 1
        raise ValueError("the streamed data set gives this process no recording; use fewer processes or more data.")

    @staticmethod
    def _seconds(row: dict) -> float | None:
        """Length of a row, from its header where it is not given; None where that fails, and decoding tells why."""
        if row["duration"] is not None:
            return row["duration"]
        try:
            return max(0.0, audio_duration(row["audio"]) - (row["offset"] or 0.0))
        except AudioError:
            return None

    def _is_within_limits(self, seconds: float | None) -> bool:
        return seconds is not None and self.limits_s[0] <= seconds <= self.limits_s[1]

    def _batches(self, window: list[tuple[float | None, dict]]):
        """Batches of a window, longest first; what is left out has no length and comes last."""
        sizes = [seconds if self._is_within_limits(seconds) else 0.0 for seconds, _ in window]
        batch: list[tuple[float | None, dict]] = []
        longest = 0.0
        for index in sorted(range(len(window)), key=lambda index: -sizes[index]):
            if batch and longest * (len(batch) + 1) > self.budget_s:
                yield batch
                batch = []
            longest = longest if batch else sizes[index]
            batch.append(window[index])
        if batch:
            yield batch

    def _example(self, row: dict, seconds: float | None, epoch: int) -> Example:
        """A decoded row; where its length lies outside the limits, a note without a waveform."""
        notes = []
        if seconds is None or self._is_within_limits(seconds):
            example = self.examples.example([row], epoch)
            seconds, notes = len(example.wave) / self.examples.sampling_rate, example.notes
            if not seconds or self._is_within_limits(seconds):
                return example
        message = f"{'shorter' if seconds < self.limits_s[0] else 'longer'} than the limit: {seconds:.2f} s"
        empty = np.zeros(0, np.float32)
        return Example(row["id"], epoch, empty, empty, 0, [*notes, (row["id"], "bad", message)])


def _pad(waves: list[np.ndarray], length: int) -> np.ndarray:
    padded = np.zeros((len(waves), length), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    return padded


def _silence() -> Example:
    """Stands in for a batch of which no recording could be used; nothing of it is masked, so it has no loss."""
    return Example("no usable recording", 0, np.zeros(4000, np.float32), np.zeros(0, np.float32), 0, [])
