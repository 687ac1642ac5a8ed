"""
Share of padding in batches of a token budget, and in random batches of a fixed size.

    python evaluation/benchmarks/padding.py                                         # HSK words and FSDD, if present
    python evaluation/benchmarks/padding.py --data train.json more.parquet --budget_s 400 --processes 8 --json

Durations alone count: nothing is decoded. Figures are means over epochs; `spread` is the largest batch of an epoch
over the smallest, in padded seconds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import datasets
import numpy as np

from nest_hf.data import TokenBudgetBatchSampler, load_speech_dataset, padding_share

RECORDINGS = Path(__file__).parents[3] / "shared" / "data"
DEFAULT_DATA = ("hsk_words-train.parquet", "fsdd-train.parquet")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="sources in any form that load_speech_dataset reads")
    parser.add_argument("--budget_s", type=float, default=100.0, help="padded seconds per batch")
    parser.add_argument("--batch_size", type=int, default=8, help="of the random batches")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    args = parser.parse_args()
    data = args.data or [str(RECORDINGS / name) for name in DEFAULT_DATA]
    if not args.data and not all(Path(path).exists() for path in data):
        sys.exit(f"the recordings of the default ({', '.join(DEFAULT_DATA)}) are not in {RECORDINGS}; give --data.")

    datasets.disable_progress_bars()
    lengths = np.array(load_speech_dataset(data)["duration"][:])
    figures = {
        "recordings": len(lengths),
        "hours": lengths.sum() / 3600,
        "seconds": {f"p{q}": float(np.percentile(lengths, q)) for q in (1, 50, 99)},
        "token_budget": measure(lengths, args, budget=args.budget_s),
        "random": measure(lengths, args, batch_size=args.batch_size, sort_window=0),
    }
    if args.json:
        print(json.dumps({**vars(args), "data": data, **figures}))
        return
    print(f"{len(lengths):,} recordings, {figures['hours']:.2f} h, {args.processes} processes, {args.epochs} epochs")
    for name, label in (("token_budget", f"budget of {args.budget_s:g} s"), ("random", f"random {args.batch_size}")):
        row = figures[name]
        print(
            f"{label:<18} {row['padding']:7.2%} padding  {row['batches']:6,} batches of {row['examples']:.1f}  "
            f"spread {row['spread']:.2f}  planned in {row['plan_s']:.2f} s"
        )


def measure(lengths: np.ndarray, args, **options) -> dict:
    """Means over epochs of the share of padding and the size of batches."""
    started = time.perf_counter()
    sampler = TokenBudgetBatchSampler(lengths, num_replicas=args.processes, seed=args.seed, **options)
    plans = [sampler.plan(epoch) for epoch in range(args.epochs)]
    elapsed = time.perf_counter() - started
    sizes = [[len(batch) * max(lengths[key.rows[0]] for key in batch) for batch in plan] for plan in plans]
    return {
        "padding": float(np.mean([padding_share(lengths, plan) for plan in plans])),
        "batches": sampler.num_batches,
        "examples": len(lengths) / sampler.num_batches,
        "spread": float(np.mean([max(plan) / min(plan) for plan in sizes])),
        "plan_s": elapsed,
    }


if __name__ == "__main__":
    main()
