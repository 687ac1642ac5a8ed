"""Recordings that even a tiny recogniser can learn: every character is a chord of its own."""

import json

import numpy as np
import soundfile

CHARACTERS = "一二三四五六七八九十天地人山水火木金土日月风云雨雪春夏秋冬东西南北上下左右大小多"
RATE = 16000


def utterance(text: str, rng: np.random.Generator, character_s: float = 0.24) -> np.ndarray:
    """Chords of two tones, 0.3 s of silence around them, and faint noise."""
    time = np.arange(int(character_s * RATE)) / RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    gap = np.zeros(int(0.3 * RATE))
    parts = [gap]
    for character in text:
        row, column = divmod(CHARACTERS.index(character), 8)
        tones = [300 * 1.25**row, 1200 * 1.18**column]
        parts.append(0.2 * fade * sum(np.sin(2 * np.pi * f * time) for f in tones))
    wave = np.concatenate([*parts, gap])
    return (wave + 1e-3 * rng.standard_normal(len(wave))).astype(np.float32)


def make_utterances(folder, number: int = 16, length: int | None = 5, seed: int = 0, texts=None) -> str:
    """Writes `number` recordings and their manifest; of `length` characters, or of 2 to 8 where None."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(number):
        count = length or int(rng.integers(2, 9))
        text = "".join(rng.choice(list(CHARACTERS), count)) if texts is None else texts[index]
        wave = utterance(text, rng)
        soundfile.write(folder / f"{index:03d}.wav", wave, RATE)
        record = {"id": f"{folder.name}-{index:03d}", "audio_filepath": f"{index:03d}.wav", "text": text}
        lines.append(json.dumps({**record, "duration": len(wave) / RATE}, ensure_ascii=False) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder / "manifest.jsonl")
