"""Ours against NeMo, stage by stage, on one checkpoint and your recordings.

    python evaluation/compare_with_nemo.py x.nemo a.wav b.wav                               # where NeMo is installed
    python evaluation/compare_with_nemo.py x.nemo a.wav b.wav --save_golden g.safetensors   # and keep its results
    python evaluation/compare_with_nemo.py x.nemo a.wav b.wav --golden g.safetensors        # where it is not

Both sides get the same waveforms and one fixed mask, in eval mode on the CPU. From the features on, ours starts from
NeMo's features, so that each line of the table shows the error of its own stage. Exit code 1: a bar was missed.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nest_hf import NestForPreTraining
from nest_hf.convert_nemo import convert, is_legacy, read_archive
from nest_hf.masking import block_mask

# Largest allowed difference, absolute; of the loss relative
BARS = {"features": 1e-5, "tokens": 0.0, "encoder": 1e-5, "log_probs": 1e-5, "loss": 1e-5}
# Processors round an FFT differently, which the logarithm enlarges in quiet mel bins
FEATURES_OF_ANOTHER_PROCESSOR = 1e-3


def read_waves(paths: list[str], sampling_rate: int) -> list[torch.Tensor]:
    """Mono waveforms (samples,) float32."""
    waves = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != sampling_rate or samples.ndim != 1:
            channels = 1 if samples.ndim == 1 else samples.shape[1]
            raise ValueError(f"{path} has {rate} Hz and {channels} channels; pass mono audio of {sampling_rate} Hz.")
        waves.append(torch.from_numpy(samples))
    return waves


def fixed_mask(lengths: torch.Tensor, num_frames: int, seed: int) -> torch.Tensor:
    """(B,) valid frames -> (B, T) bool: NeMo's blocks of 40 frames, and frames 8 to 47 so that none is without."""
    mask = block_mask(
        lengths,
        num_frames,
        mask_prob=0.01,
        block_size=40,
        allow_overlap=True,
        generators=torch.Generator().manual_seed(seed),
    )
    mask[:, 8:48] = True
    return mask & (torch.arange(num_frames) < lengths[:, None])


@torch.no_grad()
def run_nemo(nemo_path: str, waves: list[torch.Tensor], seed: int) -> tuple[dict[str, torch.Tensor], str]:
    """NeMo's tensors of every stage in our layout (batch, time, ...), and its version."""
    import nemo
    from nemo.core import ModelPT

    model = ModelPT.restore_from(nemo_path, map_location="cpu").eval()
    samples = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    features, lengths = model.preprocessor(input_signal=padded, length=samples)  # (B, M, T)
    mask = fixed_mask(lengths, features.shape[2], seed)
    _, tokens = model.quantizer(input_signal=features)
    masked = torch.where(mask[:, None], model.mask_processor.mask_embedding[None, :, None], features)
    encoded, encoded_lengths = model.encoder(audio_signal=masked, length=lengths)  # (B, D, T')
    log_probs = model.decoder(encoder_output=encoded)  # (B, T', C, H), or (B, T', C)
    loss = model.loss(
        masks=mask[:, None].expand_as(features).to(features.dtype),
        decoder_outputs=log_probs,
        targets=tokens,
        decoder_lengths=encoded_lengths,
    )
    stages = {
        "samples": samples,
        "lengths": lengths,
        "encoded_lengths": encoded_lengths,
        "mask": mask,
        "features": features.transpose(1, 2),
        "tokens": tokens,
        "encoder": encoded.transpose(1, 2),
        "log_probs": log_probs.transpose(2, 3) if log_probs.ndim == 4 else log_probs,
        "loss": loss,
    }
    return {name: tensor.contiguous() for name, tensor in stages.items()}, nemo.__version__


@torch.no_grad()
def run_ours(model, extractor, waves: list[torch.Tensor], reference: dict) -> dict[str, torch.Tensor]:
    """The same stages here: features from `waves`, everything after them from the reference's features and mask."""
    num_frames = reference["features"].shape[1]
    features = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    out = model(
        reference["features"],
        attention_mask=torch.arange(num_frames) < reference["lengths"][:, None],
        mask_time_indices=reference["mask"],
        target_features=reference["features"],
        output_hidden_states=True,
    )
    return {
        "lengths": features.attention_mask.sum(-1),
        "encoded_lengths": out.attention_mask.sum(-1),
        "features": features.input_features,
        "tokens": out.codes,
        "encoder": out.hidden_states[-1],
        "log_probs": out.logits.log_softmax(-1),
        "loss": out.loss,
    }


def compare(ours: dict, reference: dict, bars: dict) -> list[tuple[str, float, float]]:
    """Rows of (stage, difference, bar): largest absolute difference over valid frames; of the loss relative."""
    rows = []
    for name in ("lengths", "encoded_lengths"):
        if not torch.equal(ours[name], reference[name].long()):
            raise ValueError(f"`{name}` differ: {ours[name].tolist()} here, {reference[name].tolist()} in NeMo.")
    for name, bar in bars.items():
        mine, theirs = ours[name].double(), reference[name].double()
        if mine.shape != theirs.shape:
            raise ValueError(f"`{name}` has shape {tuple(mine.shape)} here and {tuple(theirs.shape)} in NeMo.")
        difference = (mine - theirs).abs()
        if name == "loss":
            difference = difference / theirs.abs()
        else:
            lengths = reference["lengths" if name == "features" else "encoded_lengths"]
            difference = difference[torch.arange(mine.shape[1]) < lengths[:, None]]
        rows.append((name, difference.max().item(), bar))
    return rows


def load_golden(path: str, waves: list[torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    with safe_open(path, "pt") as file:
        reference = {name: file.get_tensor(name) for name in file.keys()}
        version = file.metadata()["nemo_version"]
    samples = [len(wave) for wave in waves]
    if reference["samples"].tolist() != samples:
        raise ValueError(
            f"{path} was made of recordings of {reference['samples'].tolist()} samples, but these have {samples}; "
            "pass the same files in the same order."
        )
    return reference, version


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nemo", help="NEST pretraining checkpoint (.nemo)")
    parser.add_argument("audio", nargs="+", help="recordings, mono, at the checkpoint's sampling rate")
    parser.add_argument("--seed", type=int, default=0, help="of the mask")
    parser.add_argument("--golden", help="compare with these stored results instead of running NeMo")
    parser.add_argument("--save_golden", help="write NeMo's results to this file")
    args = parser.parse_args()
    try:
        # 1. what NeMo gives
        nemo_config, state = read_archive(args.nemo)
        waves = read_waves(args.audio, nemo_config["preprocessor"]["sample_rate"])
        if args.golden and args.save_golden:
            raise ValueError("`--golden` reads NeMo's results and `--save_golden` writes them; pass one of both.")
        if args.golden:
            reference, version = load_golden(args.golden, waves)
            bars = {**BARS, "features": FEATURES_OF_ANOTHER_PROCESSOR}
        elif importlib.util.find_spec("nemo") is None:
            raise ValueError(
                "NeMo is not installed here. Install it (pip install 'nemo_toolkit[asr]==3.0.0'), or run this with "
                "--save_golden on a machine that has it and pass the file here as --golden."
            )
        else:
            (reference, version), bars = run_nemo(args.nemo, waves, args.seed), BARS
        if args.save_golden:
            Path(args.save_golden).parent.mkdir(parents=True, exist_ok=True)
            save_file(reference, args.save_golden, metadata={"nemo_version": version})

        # 2. what we give, with the front end of that NeMo
        model, extractor = convert(nemo_config, state, legacy_frontend=is_legacy(version), source=args.nemo)
        if not isinstance(model, NestForPreTraining):
            raise ValueError(f"{args.nemo} is not a NEST pretraining checkpoint; only those can be compared.")
        rows = compare(run_ours(model, extractor, waves, reference), reference, bars)
    except ValueError as error:
        parser.error(str(error))

    # 3. the table
    frames = int(reference["mask"].sum())
    print(
        f"NeMo {version}: {len(waves)} recordings, {int(reference['lengths'].sum())} frames, {frames} of them masked"
    )
    print(f"{'stage':<10} {'max abs diff':>12} {'bar':>8}  ok")
    for name, difference, bar in rows:
        print(f"{name:<10} {difference:>12.2e} {bar:>8.0e}  {'yes' if difference <= bar else 'NO'}")
    print("(loss: relative)")
    sys.exit(0 if all(difference <= bar for _, difference, bar in rows) else 1)


if __name__ == "__main__":
    main()
