"""Speech data: reading, decoding, noise, batches."""

from .audio import AudioError, DecodedAudio, audio_duration, decode_audio
from .batching import ExampleKey, TokenBudgetBatchSampler, padding_share
from .noise import MultiSpeakerNoise, NoiseSource, SpeakerNoise
from .pretraining import PretrainingCollator, PretrainingDataset, StreamedBatches
from .sources import LoadReport, load_speech_dataset, load_with_report

__all__ = [
    "AudioError",
    "DecodedAudio",
    "ExampleKey",
    "LoadReport",
    "MultiSpeakerNoise",
    "NoiseSource",
    "PretrainingCollator",
    "PretrainingDataset",
    "SpeakerNoise",
    "StreamedBatches",
    "TokenBudgetBatchSampler",
    "audio_duration",
    "decode_audio",
    "load_speech_dataset",
    "load_with_report",
    "padding_share",
]
