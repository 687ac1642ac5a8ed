"""Short synthetic recordings: tones that change every 0.3 s, in noise. Enough to train on, quick to write."""

import json
from pathlib import Path

import numpy as np
import soundfile


def make_recordings(folder, *, number: int, seed: int = 0, min_s: float = 1.5, max_s: float = 3.5) -> str:
    """Writes `number` WAV files of 16 kHz and their NeMo manifest, whose path is returned; ids are `{folder}0` ..."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(number):
        num_samples = int(rng.uniform(min_s, max_s) * 16000)
        pitch = np.repeat(rng.uniform(100, 3000, num_samples // 4800 + 1), 4800)[:num_samples]
        wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * rng.standard_normal(num_samples)
        soundfile.write(folder / f"{index}.wav", wave.astype(np.float32), 16000)
        record = {"audio_filepath": f"{index}.wav", "duration": num_samples / 16000, "id": f"{folder.name}{index}"}
        lines.append(json.dumps(record))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)
