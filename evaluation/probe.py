"""
What frozen encoders know: a linear probe on each, compared on the same recordings.

    python evaluation/probe.py --encoders ours=runs/nest scratch=random:runs/nest hubert=facebook/hubert-base-ls960 \\
        --train_data train.parquet --test_data test.parquet --label speaker --output_dir probes/speaker

`--label` is a column of the data: speaker, text (of single words), domain, emotion ... An encoder is a folder, a Hub
id or a stage pointer of any speech encoder of transformers (NEST, Wav2Vec2, HuBERT, WavLM, Whisper, Parakeet ...), or
a .nemo; `random:` in front gives its architecture new weights. The first one is what the others are compared with.

Every layer's mean over a recording is computed once and kept in `--cache_dir`, for other labels and settings too.
Accuracy is the mean over the seeds' probes, with the bootstrap interval over the test recordings. `--output_dir` gets
probe.json: accuracies of each seed, weights of the layers, differences, settings.
"""

import json
import logging
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers.hf_argparser import HfArg

from nest_hf.bootstrap import bootstrap_interval, paired_bootstrap
from nest_hf.data import load_with_report
from nest_hf.data.audio_encoding import write_whole
from nest_hf.frozen_encoders import FrozenEncoder, cached_layer_means, recording_keys
from nest_hf.frozen_probe import ProbeSettings, probe
from nest_hf.parsing import error_line, parse_arguments
from nest_hf.text_table import percent, percent_range, text_table

logger = logging.getLogger("probe")


@dataclass
class ProbeArguments:
    encoders: list[str] | None = HfArg(default=None, help="name=model of each encoder; the first is compared with.")
    train_data: list[str] | None = HfArg(default=None, help="Recordings whose labels the probes learn.")
    test_data: list[str] | None = HfArg(default=None, help="Recordings they are tested on.")
    label: str | None = HfArg(default=None, help="The column that they tell: speaker, text, ...")
    output_dir: str | None = HfArg(default=None, help="For probe.json and, by default, the cache.")
    cache_dir: str | None = HfArg(default=None, help="Where the layers' means are kept; output_dir/layer_means.")
    num_seeds: int = HfArg(default=5, help="Probes per encoder.")
    min_duration_s: float = HfArg(default=0.01, help="Shorter recordings are left out, and counted.")
    max_duration_s: float | None = HfArg(default=None, help="Longer recordings are left out, and counted.")
    batch_duration_s: float = HfArg(default=100.0, help="Padded audio per batch of an encoder.")
    device: str = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")

    def __post_init__(self):
        for name in ("encoders", "train_data", "test_data", "label", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give --encoders, --train_data, --test_data, --label and "
                                 "--output_dir.")  # fmt: skip
        if self.num_seeds < 1:
            raise ValueError(f"`num_seeds` is {self.num_seeds}; it must be at least 1.")
        pairs = [encoder.partition("=") for encoder in self.encoders]
        for encoder, (name, _, source) in zip(self.encoders, pairs, strict=True):
            if not name or not source:
                raise ValueError(f"`encoders` has {encoder!r}; give name=model.")
        names = Counter(name for name, _, _ in pairs)
        if max(names.values()) > 1:
            raise ValueError(f"`encoders` has the name {names.most_common(1)[0][0]!r} twice; give each its own.")

    @property
    def sources(self) -> dict[str, str]:
        return {name: source for name, _, source in (encoder.partition("=") for encoder in self.encoders)}


def main():
    # 1. arguments
    args, settings = parse_arguments(ProbeArguments, ProbeSettings)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()

    # 2. recordings and their labels
    parts, keys = {}, {}
    for part, source in (("train_data", args.train_data), ("test_data", args.test_data)):
        parts[part], report = load_with_report(
            source, name=part, min_duration_s=args.min_duration_s, max_duration_s=args.max_duration_s
        )
        logger.info("%s", report)
        keys[part] = recording_keys(parts[part])
    refuse_common(parts, keys)
    classes, labels = read_labels(parts, args.label)
    commonest = Counter(labels["train_data"].tolist()).most_common(1)[0][0]
    chance = float((labels["test_data"] == commonest).float().mean())
    logger.info("%s: %d classes; %d recordings to learn from, %d to test on; the commonest class is right in %s %%",
                args.label, len(classes), len(labels["train_data"]), len(labels["test_data"]),
                percent(chance))  # fmt: skip
    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "layer_means")
    logger.info("%d encoders x %d probes on %s, layers' means in %s",
                len(args.sources), args.num_seeds, args.device, cache_dir)  # fmt: skip

    # 3. a probe per encoder and seed
    results = {}
    for name, source in args.sources.items():
        start = time.perf_counter()
        encoder = FrozenEncoder.from_pretrained(source, device=args.device)
        means, was_kept = {}, True
        for part, rows in parts.items():
            means[part], kept = cached_layer_means(
                encoder, rows, keys[part], cache_dir, batch_duration_s=args.batch_duration_s
            )
            was_kept &= kept
        num_layers, width = means["train_data"].shape[1:]
        logger.info("%s: %d layers x %d, %s", name, num_layers, width,
                    "from the cache" if was_kept else f"{time.perf_counter() - start:.1f} s")  # fmt: skip
        results[name] = probe(*((means[part], labels[part]) for part in parts), len(classes),
                              num_seeds=args.num_seeds, settings=settings)  # fmt: skip
        logger.info("%s: %s %% right", name, percent(results[name].accuracy))

    # 4. table and JSON
    report = {
        "label": args.label,
        "classes": classes,
        "num_train": len(labels["train_data"]),
        "num_test": len(labels["test_data"]),
        "accuracy_of_commonest_class": chance,
        "num_seeds": args.num_seeds,
        "settings": asdict(settings),
        "encoders": summaries(results, args.sources),
    }
    write_whole(
        Path(args.output_dir) / "probe.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()
    )
    logger.info("\n%s", table(report))
    logger.info("all of it: %s", Path(args.output_dir) / "probe.json")


def refuse_common(parts: dict, keys: dict) -> None:
    """A recording in both parts would be a test of memory."""
    learned = set(keys["train_data"])
    common = [row for row, key in zip(parts["test_data"]["id"], keys["test_data"], strict=True) if key in learned]
    if common:
        raise ValueError(f"{len(common)} recordings of `test_data` are in `train_data` too ({', '.join(common[:3])}); "
                         "take them out of one.")  # fmt: skip


def read_labels(parts: dict, column: str) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Classes in order, and of each part their indices (N,)."""
    texts = {}
    for part, rows in parts.items():
        if column not in rows.column_names:
            others = ", ".join(name for name in rows.column_names if name not in ("audio", "offset", "duration"))
            raise ValueError(f"`label` is {column!r}, which {part} does not have; its columns are {others}.")
        values = rows[column][:]
        empty = [key for key, value in zip(rows["id"][:], values, strict=True) if value is None or value == ""]
        if empty:
            raise ValueError(f"`label` {column!r} is empty in {len(empty)} of {len(rows)} recordings of {part} "
                             f"({', '.join(empty[:3])}); label them, or leave them out.")  # fmt: skip
        texts[part] = [str(value) for value in values]
    classes = sorted(set(texts["train_data"]))
    if len(classes) < 2:
        raise ValueError(f"`label` {column!r} has one class in train_data, {classes[0]!r}; nothing can be told apart.")
    unseen = sorted(set(texts["test_data"]) - set(classes))
    if unseen:
        more = ", ..." if len(unseen) > 5 else ""
        raise ValueError(f"`label` {column!r} has {len(unseen)} classes in test_data that train_data lacks: "
                         f"{', '.join(unseen[:5])}{more}.")  # fmt: skip
    index = {text: number for number, text in enumerate(classes)}
    return classes, {part: torch.tensor([index[text] for text in values]) for part, values in texts.items()}


def summaries(results: dict, sources: dict[str, str]) -> dict[str, dict]:
    """What probe.json says of each encoder; the difference is to the first, in accuracy."""
    first, summary = next(iter(results)), {}
    for name, result in results.items():
        ones = np.ones(len(result.errors))
        low, high = bootstrap_interval(result.errors, ones)
        summary[name] = {
            "source": sources[name],
            "accuracy": result.accuracy,
            "interval": [1 - high, 1 - low],
            "accuracy_by_seed": result.accuracies,
            "layer_weights": result.layer_weights,
        }
        if name != first:
            compared = paired_bootstrap(results[first].errors, result.errors, ones)
            summary[name]["difference"] = {
                "to": first,
                "accuracy": compared.difference,
                "interval": list(compared.interval),
                "p_value": compared.p_value,
            }
    return summary


def table(report: dict) -> str:
    first = next(iter(report["encoders"]))
    rows = []
    for name, row in report["encoders"].items():
        seeds, difference = [100 * value for value in row["accuracy_by_seed"]], row.get("difference")
        rows.append([
            name,
            percent(row["accuracy"]),
            percent_range(row["interval"]),
            f"{min(seeds):.2f} to {max(seeds):.2f}",
            f"{100 * difference['accuracy']:+.2f}" if difference else "-",
            f"{difference['p_value']:.3f}" if difference else "-",
            int(np.argmax(row["layer_weights"])),
        ])  # fmt: skip
    header = [report["label"], "right %", "95 %", "seeds", f"to {first}", "p", "heaviest layer"]
    return text_table(header, rows)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
