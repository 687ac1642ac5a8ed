"""Kills pretraining again and again and checks that it still ends with the bits of an uninterrupted run.

    python evaluation/benchmarks/kill_resume.py --trials 3                       # 3 trials for 0 and 2 loader workers
    python evaluation/benchmarks/kill_resume.py --trials 1 --workers 2 --json

Every trial runs `training/pretrain.py` (tiny, CPU, one thread; dropout, dither, noise and masks on, several epochs) in
a process group of its own, sends SIGKILL to the whole group at a random moment, every second time while a checkpoint
is being written, and starts the same command again, until it has been killed `num_kills` times and ends. Compared
are all tensors of the final model, the optimizer's state and the final validation. Needs a POSIX system.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

PRETRAIN = Path(__file__).parents[2] / "training" / "pretrain.py"
MAX_STEPS = 60
# the best checkpoint is loaded at the end, so that rotation has one to keep
OPTIONS = f"""
--preset tiny --config_overrides {{"mask_prob":0.02}} --use_cpu true --num_threads 1 --report_to none
--disable_tqdm true --schedule trainer --learning_rate 1e-3 --warmup_steps 2 --max_steps {MAX_STEPS} --logging_steps 1
--batch_duration_s 10 --gradient_accumulation_steps 2 --eval_steps 2 --save_steps 2 --save_total_limit 2
--load_best_model_at_end true --metric_for_best_model eval_validation_loss
""".split()


@dataclass
class KillArguments:
    trials: int = HfArg(default=1, help="Trials for every number of workers.")
    workers: list[int] = HfArg(default_factory=lambda: [0, 2], help="Loader workers to try.")
    num_kills: int = HfArg(default=4, help="Kills per trial.")
    seed: int = HfArg(default=0, help="Seed of the moments.")
    json: bool = HfArg(default=False, help="Print a last line of JSON.")


def main() -> int:
    # 1. recordings and the uninterrupted run
    args = HfArgumentParser(KillArguments).parse_args_into_dataclasses()[0]
    if args.trials < 1 or args.num_kills < 1:
        raise ValueError(f"`trials` is {args.trials} and `num_kills` {args.num_kills}; pass 1 or more.")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        for workers in args.workers:
            reference = Path(folder, f"reference-{workers}")
            startup_s, training_s = run_to_the_end(data, reference, workers)
            print(f"workers={workers} uninterrupted: {startup_s:.1f} s + {training_s:.1f} s of training", flush=True)

            # 2. the same under kills
            for trial in range(args.trials):
                output_dir = Path(folder, f"trial-{workers}-{trial}")
                rng = random.Random(f"{args.seed} {workers} {trial}")
                moments_s = (0.8 * startup_s, startup_s + training_s / args.num_kills)
                kills = run_under_kills(data, output_dir, workers, args.num_kills, moments_s, rng)
                different = differences(reference, output_dir)
                results.append({"workers": workers, "trial": trial, **kills, "equal": not different})
                print(" ".join(f"{key}={value}" for key, value in results[-1].items()), *different[:5], flush=True)

    # 3. summary
    equal = sum(result["equal"] for result in results)
    total = {key: sum(result[key] for result in results) for key in ("kills", "kills_during_save")}
    print(
        f"{equal} of {len(results)} trials bit-equal; kills: {total['kills']}, in a save: {total['kills_during_save']}"
    )
    if args.json:
        print(json.dumps({"trials": len(results), "equal": equal, **total, "results": results}))
    return 0 if equal == len(results) else 1


def make_data(folder: Path) -> list[str]:
    """Writes recordings of tones in noise; returns the options of pretrain.py that name them."""
    rng = np.random.default_rng(0)
    options = []
    for name, number in (("train_data", 24), ("eval_data", 4), ("noise_data", 3)):
        lines = []
        for index in range(number):
            num_samples = int(rng.uniform(1.2, 3.5) * 16000)
            pitch = np.repeat(rng.uniform(100, 3000, num_samples // 4800 + 1), 4800)[:num_samples]
            wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * rng.standard_normal(num_samples)
            path = folder / f"{name}-{index}.wav"
            soundfile.write(path, wave.astype(np.float32), 16000)
            lines.append(json.dumps({"audio_filepath": str(path), "duration": num_samples / 16000}) + "\n")
        manifest = folder / f"{name}.jsonl"
        manifest.write_text("".join(lines))
        options += [f"--{name}", str(manifest)]
    return options


def start(data: list[str], output_dir: Path, workers: int) -> subprocess.Popen:
    """pretrain.py in a session, and so a process group, of its own; its output goes to `output_dir`.log."""
    options = [*OPTIONS, *data, "--output_dir", str(output_dir), "--dataloader_num_workers", str(workers)]
    command = [sys.executable, str(PRETRAIN), *options]
    with log_path(output_dir).open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def run_to_the_end(data, output_dir, workers) -> tuple[float, float]:
    """Runs undisturbed; returns the seconds until the first update and those after it."""
    started = time.monotonic()
    run = start(data, output_dir, workers)
    while run.poll() is None and not (output_dir / "train.log").exists():
        time.sleep(0.05)
    startup_s = time.monotonic() - started
    if run.wait():
        raise RuntimeError(f"the uninterrupted run failed:\n{log_path(output_dir).read_text()[-3000:]}")
    return startup_s, time.monotonic() - started - startup_s


def run_under_kills(data, output_dir, workers, num_kills, moments_s, rng) -> dict[str, int]:
    """Runs to the end in spite of the kills. A run that ends before its moment comes counts no kill."""
    kills = kills_during_save = 0
    while True:
        remains = saves(output_dir)  # of a save that was killed before
        run = start(data, output_dir, workers)
        if kills < num_kills:
            wait_s = rng.uniform(*moments_s)
            wait_for_moment(run, output_dir, remains, wait_s=wait_s, aim_at_save=kills % 2 == 0)
            time.sleep(rng.uniform(0, 0.02))
        else:
            run.wait()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            kills += 1
            kills_during_save += bool(saves(output_dir) - remains)
        elif run.returncode:
            raise RuntimeError(f"pretrain.py failed after {kills} kills:\n{log_path(output_dir).read_text()[-3000:]}")
        else:
            return {"kills": kills, "kills_during_save": kills_during_save}


def wait_for_moment(
    run: subprocess.Popen, output_dir: Path, remains: set, *, wait_s: float, aim_at_save: bool
) -> None:
    """Until `wait_s` is over and then, where a save is aimed at, the next begins; or until the run ends."""
    started = time.monotonic()
    while run.poll() is None and time.monotonic() - started < wait_s:
        time.sleep(0.02)
    while aim_at_save and run.poll() is None and not saves(output_dir) - remains:
        time.sleep(0.001)


def saves(output_dir: Path) -> set[tuple[str, int]]:
    """Folders of unfinished saves and deletions, with the time of their last change."""
    try:
        return {(path.name, path.stat().st_ctime_ns) for path in output_dir.glob("checkpoint-*.incomplete")}
    except FileNotFoundError:  # renamed while we looked
        return set()


def differences(left: Path, right: Path) -> list[str]:
    """What differs between two finished runs; nothing may."""
    newest = f"checkpoint-{MAX_STEPS}"
    different = []
    for name in ("model.safetensors", f"{newest}/model.safetensors"):
        different += compare(load_file(left / name), load_file(right / name), name)
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(folder / newest / name, weights_only=True) for folder in (left, right)]
        different += compare(*states, name)
    metrics = [json.loads((folder / "eval_results.json").read_text()) for folder in (left, right)]
    metrics = [{k: v for k, v in m.items() if not k.endswith(("_runtime", "_per_second"))} for m in metrics]
    kept = [sorted(path.name for path in folder.glob("checkpoint-*")) for folder in (left, right)]
    return different + compare(*metrics, "eval_results.json") + compare(*kept, "checkpoints")


def compare(left, right, where: str) -> list[str]:
    """Names of the entries, at any depth, that differ in a bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [name for key in left for name in compare(left[key], right[key], f"{where}:{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            name for i, pair in enumerate(zip(left, right, strict=True)) for name in compare(*pair, f"{where}:{i}")
        ]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return [] if same else [where]


def log_path(output_dir: Path) -> Path:
    return output_dir.with_name(output_dir.name + ".log")


if __name__ == "__main__":
    sys.exit(main())
