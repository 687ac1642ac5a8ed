"""Speech data: reading, writing, decoding, telephone channel, noise, batches."""

from .audio import AudioError, DecodedAudio, audio_duration, decode_audio
from .batching import ExampleKey, TokenBudgetBatchSampler, padding_share
from .filters import filter_annotation_errors
from .lengths import row_lengths
from .noise import MultiSpeakerNoise, NoiseSource, SpeakerNoise
from .pretraining import PretrainingCollator, PretrainingDataset, StreamedBatches
from .sources import LoadReport, load_speech_dataset, load_with_report
from .splits import split_by_group
from .telephone import ChannelDraw, TelephoneChannel
from .writers import write_chatml_manifest, write_nemo_manifest

__all__ = [
    "AudioError",
    "ChannelDraw",
    "DecodedAudio",
    "ExampleKey",
    "LoadReport",
    "MultiSpeakerNoise",
    "NoiseSource",
    "PretrainingCollator",
    "PretrainingDataset",
    "SpeakerNoise",
    "StreamedBatches",
    "TelephoneChannel",
    "TokenBudgetBatchSampler",
    "audio_duration",
    "decode_audio",
    "filter_annotation_errors",
    "load_speech_dataset",
    "load_with_report",
    "padding_share",
    "row_lengths",
    "split_by_group",
    "write_chatml_manifest",
    "write_nemo_manifest",
]
