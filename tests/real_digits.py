"""The recorded digits of tests/fixtures/digits, or more of the kind: NEST_TEST_DIGITS names a folder with
{train,test}.parquet or fsdd-{train,test}.parquet of the same columns."""

import os
from pathlib import Path

import numpy as np
import torch

from nest_hf import NestFeatureExtractor
from nest_hf.data import decode_audio, load_speech_dataset

FIXTURE = Path(__file__).parent / "fixtures" / "digits"


def digits_path(part: str) -> str:
    """The parquet of `train` or `test`."""
    folder = Path(os.environ.get("NEST_TEST_DIGITS") or FIXTURE)
    names = (f"{part}.parquet", f"fsdd-{part}.parquet")
    return str(next(folder / name for name in names if (folder / name).exists()))


def read_digits(part: str):
    """Rows, and their waveforms at 16 kHz."""
    rows = load_speech_dataset(digits_path(part))
    return rows, [decode_audio(row["audio"], sampling_rate=16000).samples for row in rows]


def features_of(waves: list[np.ndarray]) -> dict[str, torch.Tensor]:
    return dict(NestFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt"))


def classes_of(rows, column: str) -> torch.Tensor:
    names = sorted(set(rows[column][:]))
    return torch.tensor([names.index(value) for value in rows[column][:]])
