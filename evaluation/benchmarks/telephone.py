"""
Speed of the telephone channel, of stage 0 from end to end, and its memory.

    python evaluation/benchmarks/telephone.py                                           # in memory, one core
    python evaluation/benchmarks/telephone.py --peer_python PYTHON_WITH_AUDIOMENTATIONS  # and the peer, in turns
    python evaluation/benchmarks/telephone.py --task prepare --hours 3 --num_proc 2      # FLAC to FLAC by the script
    python evaluation/benchmarks/telephone.py --task memory --hours 1 10                 # its peak, files repeated

The utterances last 10 s: noise shaped as speech is, in bursts, as FLAC of 16 kHz. audiomentations 0.43 has no G.711
and no frame loss: its chain is resampling to 8 kHz, an 8-bit quantizer, a band-pass, background noise, resampling
back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RATE, SECONDS = 16000, 10
ROUNDS, UTTERANCES = 7, 40


def utterance(seed: int) -> np.ndarray:
    """Syllables of coloured noise with pauses, (N,), float32 on 16-bit values."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(RATE * SECONDS), np.hanning(9) / 5, "same")
    loudness = np.convolve(np.repeat(rng.random(SECONDS * 5) ** 2, RATE // 5), np.hanning(1000) / 500, "same")
    return (np.rint(0.15 * noise * loudness * 32768) / 32768).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("channel", "prepare", "memory", "peer"), default="channel")
    parser.add_argument("--preset", nargs="+", default=["seed_order", "physical"], help="channels to time")
    parser.add_argument("--peer_python", help="interpreter of an environment with audiomentations 0.43")
    parser.add_argument("--hours", type=float, nargs="+", default=[3.0])
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--format", default="flac")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tasks = {"channel": time_channel, "peer": time_peer, "prepare": time_preparation, "memory": measure_memory}
    figures = tasks[args.task](args)
    print(json.dumps(figures) if args.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))


def real_time(function) -> float:
    """Seconds of audio per second, of one pass over all utterances."""
    start = time.perf_counter()
    for number in range(UTTERANCES):
        function(number)
    return UTTERANCES * SECONDS / (time.perf_counter() - start)


def time_channel(args) -> dict:
    """All presets and the peer in turns; medians, and the median of the ratios within a round."""
    from nest_hf.data import TelephoneChannel

    waves = [utterance(number) for number in range(UTTERANCES)]
    rows = [{"id": f"u{n}", "audio": {"array": w, "sampling_rate": RATE}} for n, w in enumerate(waves)]
    channels = {name: TelephoneChannel.from_preset(name).with_noise(rows, noise=rows) for name in args.preset}
    runs = {
        name: lambda n, channel=channel: channel(waves[n], sampling_rate=RATE, id=f"u{n}")
        for name, channel in channels.items()
    }
    for run in runs.values():
        real_time(run)  # warm: the pool is decoded, tables are made
    rounds = {name: [] for name in [*runs, *(["audiomentations"] if args.peer_python else [])]}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rounds[name].append(real_time(run))
        if args.peer_python:
            peer = [args.peer_python, __file__, "--task", "peer", "--json"]
            rounds["audiomentations"].append(json.loads(subprocess.check_output(peer))["x_real_time"])
    figures = {f"{name}, x real time per core": round(float(np.median(values))) for name, values in rounds.items()}
    for name in runs if args.peer_python else ():
        ratios = np.array(rounds[name]) / np.array(rounds["audiomentations"])
        figures[f"{name} / audiomentations"] = round(float(np.median(ratios)), 2)
    return figures | profile(channels[args.preset[0]], waves)


def profile(channel, waves) -> dict:
    """Milliseconds of each step of a channel per utterance, applied one after the other."""
    spent: dict[str, float] = {}
    for number, wave in enumerate(waves):
        draw = channel.draw(len(wave), sampling_rate=RATE, id=f"u{number}")
        rate, call = RATE, wave
        for place, ((name, step), drawn) in enumerate(zip(channel.steps, draw.steps, strict=True)):
            start = time.perf_counter()
            call = step.apply(call, rate, drawn, channel.pools.get("talkers"))
            key = f"step {place + 1} {name}, ms"
            spent[key] = spent.get(key, 0.0) + (time.perf_counter() - start) * 1000 / len(waves)
            rate = step.rate_after(rate, RATE)
    return {key: round(value, 3) for key, value in spent.items()}


def time_peer(args) -> dict:
    """The chain of audiomentations, in its own environment."""
    import soundfile
    from audiomentations import AddBackgroundNoise, BandPassFilter, BitCrush, Compose, Resample

    with tempfile.TemporaryDirectory() as folder:
        for number in range(8):
            soundfile.write(f"{folder}/{number}.wav", utterance(100 + number)[::2], RATE // 2)
        options = {"min_center_freq": 1010, "max_center_freq": 1010, "min_bandwidth_fraction": 1.99,
                   "max_bandwidth_fraction": 1.99, "min_rolloff": 12, "max_rolloff": 12, "p": 1.0}  # fmt: skip
        narrow = Compose([
            BitCrush(min_bit_depth=8, max_bit_depth=8, p=1.0),
            BandPassFilter(**options),
            AddBackgroundNoise(sounds_path=folder, min_snr_db=10, max_snr_db=25, p=1.0),
        ])  # fmt: skip
        down = Resample(min_sample_rate=RATE // 2, max_sample_rate=RATE // 2, p=1.0)
        up = Resample(min_sample_rate=RATE, max_sample_rate=RATE, p=1.0)
        waves = [utterance(number) for number in range(UTTERANCES)]

        def run(number: int):
            call = down(samples=waves[number], sample_rate=RATE)
            return up(samples=narrow(samples=call, sample_rate=RATE // 2), sample_rate=RATE // 2)

        real_time(run)  # warm: noises are cached
        return {"x_real_time": real_time(run)}


def make_corpus(folder: Path, hours: float, distinct: int) -> Path:
    """A manifest of `hours`, over `distinct` files that are repeated under other ids."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(distinct):
        if not (folder / f"{number}.flac").exists():
            soundfile.write(folder / f"{number}.flac", utterance(number), RATE, subtype="PCM_16")
    lines = [
        json.dumps({"audio_filepath": str(folder / f"{n % distinct}.flac"), "duration": SECONDS, "id": f"u{n}"})
        for n in range(round(hours * 3600 / SECONDS))
    ]
    manifest = folder / f"{hours}h.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def prepare(manifest: Path, output: Path, args) -> tuple[float, float]:
    """Wall seconds of the script, imports included, and the peak of the memory of all its processes, in GB."""
    import psutil

    command = [sys.executable, str(ROOT / "training" / "prepare_data.py"), str(ROOT / "configs" / "telephone.yaml"),
               "--data", str(manifest), "--output_dir", str(output), "--num_proc", str(args.num_proc),
               "--format", args.format]  # fmt: skip
    start = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = [0.0]

    def watch():
        process = psutil.Process(run.pid)
        while run.poll() is None:
            try:  # proportional shares: forked processes share pages
                family = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(one.memory_full_info().pss for one in family) / 2**30)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    if args.task == "memory":
        watcher.start()
    if run.wait():
        sys.exit(f"error: {' '.join(command)} failed")
    elapsed = time.perf_counter() - start
    if args.task == "memory":
        watcher.join()
    return elapsed, peak[0]


def time_preparation(args) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        (hours,) = args.hours
        manifest = make_corpus(Path(folder, "corpus"), hours, round(hours * 3600 / SECONDS))
        elapsed, _ = prepare(manifest, Path(folder, "out"), args)
    return {"hours": hours, "seconds": round(elapsed, 2), "x real time": round(hours * 3600 / elapsed)}


def measure_memory(args) -> dict:
    figures = {}
    for hours in args.hours:
        with tempfile.TemporaryDirectory() as folder:
            manifest = make_corpus(Path(folder, "corpus"), hours, 360)
            _, figures[f"{hours:g} h, peak GB"] = prepare(manifest, Path(folder, "out"), args)
    return {key: round(value, 3) for key, value in figures.items()}


if __name__ == "__main__":
    main()
