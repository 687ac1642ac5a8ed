"""
Strings of 3-8 spoken digits with known joins, from takes of single digits (Free Spoken Digit Dataset, 8 kHz).

    python training/make_digit_strings.py fsdd-train.parquet digits/train --number 2000 --seed 0
    python training/make_digit_strings.py fsdd-test.parquet digits/test --number 200 --seed 1

Each string has one speaker, whose takes are joined with random gaps of 0.05-0.5 s. `manifest.jsonl` holds the text,
the digits without spaces, and under `joins` where each digit begins and ends, in seconds.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from nest_hf.data import decode_audio, load_speech_dataset
from nest_hf.parsing import error_line

NUM_DIGITS = (3, 8)
GAP_S = (0.05, 0.5)
NOISE = 1e-3  # standard deviation of white noise, so that a gap is not digital silence


def digit_string(takes: dict[str, list[tuple[str, np.ndarray]]], rng: np.random.Generator, rate: int = 8000):
    """
    Args:
        takes (`dict`): speaker -> (digit, waveform) of each take.
        rng (`np.random.Generator`): Of all draws.
        rate (`int`, *optional*, defaults to 8000): Hz.

    Returns:
        Waveform `(N,)` float32, digits, speaker, and (start, end) of each digit in seconds.
    """
    speaker = str(rng.choice(sorted(takes)))
    chosen = rng.integers(len(takes[speaker]), size=rng.integers(NUM_DIGITS[0], NUM_DIGITS[1] + 1))
    parts, joins, position = [], [], 0
    for index in chosen.tolist():
        gap = np.zeros(int(rng.uniform(*GAP_S) * rate), np.float32)
        wave = takes[speaker][index][1]
        start = position + len(gap)
        position = start + len(wave)
        parts += [gap, wave]
        joins.append([start / rate, position / rate])
    parts.append(np.zeros(int(rng.uniform(*GAP_S) * rate), np.float32))
    wave = np.concatenate(parts)
    wave += NOISE * rng.standard_normal(len(wave)).astype(np.float32)
    return wave, "".join(takes[speaker][index][0] for index in chosen), speaker, joins


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="takes of single digits, with their text and speaker")
    parser.add_argument("folder", help="where the recordings and manifest.jsonl go")
    parser.add_argument("--number", type=int, default=2000, help="strings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rate = 8000
    takes = defaultdict(list)
    for row in load_speech_dataset(options.source, name="takes", need_duration=False):
        if not (row["text"] or "").isdigit() or not row["speaker"]:
            raise ValueError(f"recording {row['id']!r} needs a digit as `text` and a `speaker`; choose such a source.")
        takes[row["speaker"]].append((row["text"], decode_audio(row["audio"], sampling_rate=rate).samples))
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as file:
        for number in range(options.number):
            wave, text, speaker, joins = digit_string(takes, rng, rate)
            name = f"{folder.name}-{options.seed}-{number:05d}"
            soundfile.write(folder / f"{name}.flac", np.clip(wave, -1, 1), rate)
            line = {"id": name, "audio_filepath": f"{name}.flac", "duration": len(wave) / rate, "text": text}
            file.write(json.dumps({**line, "speaker": speaker, "joins": joins}) + "\n")
    print(f"{options.number} strings are in {folder}/manifest.jsonl")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
