"""
Hidden states of a NEST encoder for every recording of a data set, to safetensors or parquet.

    python evaluation/extract_features.py --model runs/nest_large --data train.json --output features.safetensors
    python evaluation/extract_features.py --model nest.nemo --data a.json,b.parquet --output features/ --layers 0,4,8
    python evaluation/extract_features.py --model runs/nest_large --data wavs/ --output f.parquet --aggregate mean

Layers are numbered as `hidden_states`: 0 is the input of the first block, i the output of block i, -1 the last one
(write `--layers=-2,-1`). NeMo's layer i is our i + 1. The output is, by its name:

- `x.safetensors`: a tensor (frames, D) per recording and layer, under `id/layer`, or `id` where there is one per
  recording; all of it is held in memory until the end;
- `x.parquet`: columns id, layer, frames, dim, features (frames * dim values, row by row), written as they come;
- a folder: such safetensors in shards and `index.jsonl` (id, frames, file), written as they come. The same command
  again goes on where it stopped.
"""

import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from nest_hf import NestFeatureExtractor, NestModel, aggregate_layers
from nest_hf.convert_nemo import convert, read_archive
from nest_hf.data import PretrainingDataset, TokenBudgetBatchSampler, load_with_report
from nest_hf.data.feature_files import open_features
from nest_hf.modeling_nest import AGGREGATIONS
from nest_hf.parsing import error_line, parse_arguments

logger = logging.getLogger("extract_features")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class ExtractionArguments:
    model: str | None = HfArg(default=None, help="A folder, a Hub id or a .nemo file.")
    data: list[str] | None = HfArg(default=None, help="Recordings, named as in pretraining.")
    output: str | None = HfArg(default=None, help="x.safetensors, x.parquet or a folder.")
    layers: str = HfArg(default="last", help="`last`, `all` or numbers: 0,4,8; negative ones count from the end.")
    aggregate: str | None = HfArg(default=None, help=f"Join the layers: {', '.join(AGGREGATIONS)}.")
    batch_duration_s: float = HfArg(default=100.0, help="Padded audio per batch; what is longer is a batch alone.")
    dtype: str = HfArg(default="float32", help="Of what is written; on CUDA the model runs in it too (autocast).")
    device: str = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")
    num_workers: int = HfArg(default=0, help="Processes that decode audio beside this one.")
    resample: bool = HfArg(default=True, help="Resample recordings of another rate, or refuse them.")
    min_duration_s: float = HfArg(default=0.01, help="Shorter recordings are left out, and counted.")
    max_duration_s: float | None = HfArg(default=None, help="Longer recordings are left out, and counted.")
    on_bad_audio: str = HfArg(default="fail", help="Recordings that cannot be used: `fail` or `skip`.")
    overwrite: bool = HfArg(default=False, help="Replace an output that exists.")

    def __post_init__(self):
        for name in ("model", "data", "output"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give --model, --data and --output.")
        for name, choices in (("aggregate", (None, *AGGREGATIONS)), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                names = ", ".join(str(choice) for choice in choices if choice)
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {names}.")
        if self.output.endswith(".parquet") and self.dtype == "bfloat16":
            raise ValueError("`dtype` is bfloat16, which parquet does not have; choose float16 or float32.")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device` is {self.device}, but this torch ({torch.__version__}) finds none; use cpu.")


def main():
    # 1. arguments
    (args,) = parse_arguments(ExtractionArguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()

    # 2. model
    model, extractor = load_encoder(args.model)
    model.eval().to(args.device)
    layers = parse_layers(args.layers, model.config.num_hidden_layers)
    facts = {
        "model": args.model,
        "layers": ",".join(map(str, layers)),
        "aggregate": str(args.aggregate),
        "dtype": args.dtype,
        "frame_rate_hz": str(extractor.sampling_rate / extractor.hop_length / model.config.subsampling_factor),
    }

    # 3. output and data
    writer = open_features(args.output, facts, overwrite=args.overwrite)
    rows, report = load_with_report(
        args.data,
        name="data",
        min_duration_s=args.min_duration_s,
        max_duration_s=args.max_duration_s,
        on_bad_audio=args.on_bad_audio,
    )
    logger.info("%s", report)
    done = [index for index, key in enumerate(rows["id"]) if key in writer.done]
    if done:
        logger.info("%d recordings are in %s already", len(done), args.output)
        rows = rows.select(sorted(set(range(len(rows))) - set(done)))
    per_recording = "one tensor" if args.aggregate or len(layers) == 1 else f"{len(layers)} tensors"
    logger.info("layers %s of 0 to %d, aggregate: %s; %s per recording at %s frames per second, %s",
                facts["layers"], model.config.num_hidden_layers, args.aggregate, per_recording,
                facts["frame_rate_hz"], args.dtype)  # fmt: skip
    logger.info("device: %s; output: %s", args.device, args.output)

    # 4. extract
    start, seconds, bad = time.perf_counter(), 0.0, {}
    hours = sum(rows["duration"]) / 3600
    bar = "{l_bar}{bar}| {n:.3f}/{total:.3f} h [{elapsed}<{remaining}]"
    with tqdm(total=hours, bar_format=bar, disable=not sys.stderr.isatty()) as progress:
        for ids, waves, lengths, notes in batches(rows, extractor, args):
            bad |= {recording: message for recording, kind, message in notes if kind == "bad"}
            if ids:
                for key, features in zip(ids, extract(model, extractor, waves, lengths, layers, args), strict=True):
                    writer.add(key, features)
            seconds += int(lengths.sum()) / extractor.sampling_rate
            progress.update(int(lengths.sum()) / extractor.sampling_rate / 3600)
    writer.close()

    # 5. report
    elapsed = time.perf_counter() - start
    logger.info("%.3f hours in %.1f s, %.0f x real time", seconds / 3600, elapsed, seconds / elapsed)
    for reason, count in Counter(message.split(":")[0] for message in bad.values()).items():
        names = [recording for recording, message in bad.items() if message.startswith(f"{reason}:")]
        more = ", ..." if count > 5 else ""
        logger.info("%d recordings left out, %s: %s%s", count, reason, ", ".join(names[:5]), more)
    if bad:
        listed = Path(f"{args.output.rstrip('/')}.bad_audio.jsonl")
        lines = [json.dumps({"id": key, "message": message}, ensure_ascii=False) for key, message in bad.items()]
        listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        logger.info("all of them, with the reason: %s", listed)
    logger.info("the features are in %s", args.output)


def load_encoder(source: str) -> tuple[NestModel, NestFeatureExtractor]:
    """The encoder of a folder, a Hub id or a .nemo, and its feature extractor; a missing tensor is an error."""
    if source.endswith(".nemo"):
        model, extractor = convert(*read_archive(source), source=source)
        return model.encoder, extractor
    model, info = NestModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{source} lacks tensors of the encoder: {', '.join(sorted(info['missing_keys'])[:4])}, ...")
    return model, NestFeatureExtractor.from_pretrained(source)


def parse_layers(text: str, num_blocks: int) -> list[int]:
    """`last`, `all` or comma-separated numbers -> indices into `hidden_states`, which has `num_blocks` + 1 entries."""
    if text in ("all", "last"):
        return list(range(num_blocks + 1)) if text == "all" else [num_blocks]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`layers` is {text!r}; give `all`, `last` or numbers such as 0,4,8.") from None
    layers = [number + num_blocks + 1 if number < 0 else number for number in numbers]
    if not all(0 <= layer <= num_blocks for layer in layers) or len(set(layers)) < len(layers):
        raise ValueError(f"`layers` is {text!r}; give each number once, from 0 to {num_blocks} (or -1 down).")
    return layers


def batches(rows, extractor: NestFeatureExtractor, args: ExtractionArguments):
    """Yields batches, longest recordings first: ids, waves (B, N), lengths (B,), notes about odd audio."""
    if not len(rows):
        return
    examples = PretrainingDataset(
        rows, sampling_rate=extractor.sampling_rate, resample=args.resample, on_bad_audio=args.on_bad_audio
    )
    durations = rows["duration"][:]
    budget = max(args.batch_duration_s, *durations)
    sampler = TokenBudgetBatchSampler(durations, budget=budget, shuffle=False)
    yield from DataLoader(examples, batch_sampler=sampler, collate_fn=collate, num_workers=args.num_workers)


def collate(examples) -> tuple[list[str], torch.Tensor, torch.Tensor, list]:
    usable = [example for example in examples if len(example.wave)]
    lengths = [len(example.wave) for example in usable]
    waves = torch.zeros(len(usable), max(lengths, default=0))
    for row, example in zip(waves, usable, strict=True):
        row[: len(example.wave)] = torch.from_numpy(example.wave)
    notes = [note for example in examples for note in example.notes]
    return [example.id for example in usable], waves, torch.tensor(lengths, dtype=torch.long), notes


@torch.no_grad()
def extract(model, extractor, waves, lengths, layers, args) -> list[dict[str, torch.Tensor]]:
    """(B, N) waveforms -> for each recording, layer -> (frames, D); valid frames only."""
    device = torch.device(args.device)
    dtype = DTYPES[args.dtype]
    features, mask = extractor.extract(waves.to(device), lengths.to(device))
    with torch.autocast("cuda", dtype=dtype, enabled=device.type == "cuda" and dtype != torch.float32):
        out = model(features, attention_mask=mask, output_hidden_states=True)
    chosen = {str(layer): out.hidden_states[layer] for layer in layers}
    if args.aggregate:
        chosen = {args.aggregate: aggregate_layers([hidden.float() for hidden in chosen.values()], args.aggregate)}
    chosen = {name: hidden.to(dtype).cpu() for name, hidden in chosen.items()}
    frames = out.attention_mask.sum(-1).tolist()
    return [{name: hidden[row, :n].clone() for name, hidden in chosen.items()} for row, n in enumerate(frames)]


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
