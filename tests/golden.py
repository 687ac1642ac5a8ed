"""Golden tensors of real NeMo 3.0.0 (and masks of 2.7.3): inputs, intermediates, gradients, archives."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from nest_hf import NestForPreTraining
from nest_hf.convert_nemo import convert, read_archive

FOLDER = Path(__file__).parent / "fixtures" / "nemo"
CASES = ("tiny", "tiny2books")  # the second: two codebooks, no biases, no input scaling


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def facts(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def archive(case: str) -> tuple[dict, dict]:
    """NeMo's configuration and state dict; not to be changed."""
    return read_archive(FOLDER / case / f"{case}.nemo")


def model(case: str) -> NestForPreTraining:
    """A fresh model with NeMo's weights, in eval mode."""
    return convert(*archive(case))[0]


def inputs(case: str) -> dict[str, torch.Tensor]:
    """NeMo's features and fixed mask as arguments of `NestForPreTraining`; NeMo has (B, M, T)."""
    io = tensors(f"{case}/io")
    return {
        "input_features": io["features_noisy"].transpose(1, 2).contiguous(),
        "target_features": io["features_clean"].transpose(1, 2).contiguous(),
        "attention_mask": valid(io["feature_lengths"], io["mask"].shape[1]),
        "mask_time_indices": io["mask"],
    }


def waves(case: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Clean and noisy waveforms, without padding."""
    io = tensors(f"{case}/io")
    clean = io["audio_int16"].float() / 32768
    noisy = clean + io["noise_int16"].float() / 32768
    lengths = io["audio_lengths"].tolist()
    return [w[:n] for w, n in zip(clean, lengths, strict=True)], [w[:n] for w, n in zip(noisy, lengths, strict=True)]


def valid(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B,) -> (B, num_frames) bool: True at valid frames."""
    return torch.arange(num_frames) < lengths[:, None]
