"""What it costs to hear long recordings in pieces: character errors beside those of the parts alone.

    python evaluation/benchmarks/long_audio.py --model runs/asr --data test.json
    python evaluation/benchmarks/long_audio.py --model runs/digits/model --data runs/digits/test --max_window_s 15

Recordings of one speaker are joined, with pauses of `--gap_s`, until they last `--min_s` seconds; what is left of a
speaker is not used. The same audio is then decoded part by part and as a whole: cut at pauses that CTC hears, in
overlapping windows, and by voice activity (for which silero-vad is needed); for a CTC model also by transformers'
pipeline with `chunk_length_s`. The difference is that to the parts alone, in points.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict

import numpy as np
import torch
from transformers import pipeline

from nest_hf.data import decode_audio, load_speech_dataset
from nest_hf.decoding_settings import LONG_AUDIO, DecodingSettings
from nest_hf.error_rates import character_errors
from nest_hf.parsing import error_line
from nest_hf.transcription import Transcriber

QUIET_S = 0.05  # a pause is as loud as the quietest stretch of this length before it


def join(waves: list[np.ndarray], gaps_s: tuple[float, float], rate: int, rng: np.random.Generator) -> np.ndarray:
    """Recordings one after the other, with pauses of the noise that is between words."""
    parts = []
    for wave in waves:
        stretches = wave[: len(wave) // (size := round(QUIET_S * rate)) * size].reshape(-1, size)
        level = stretches.std(1).min() if len(stretches) else 0.0
        pause = level * rng.standard_normal(round(rng.uniform(*gaps_s) * rate))
        parts += [wave, pause.astype(np.float32)]
    return np.concatenate(parts[:-1])


def groups_of_speakers(rows, min_s: float) -> list[list[int]]:
    """Rows of one speaker each, in their order, that together last at least `min_s` seconds."""
    groups, open_groups = [], defaultdict(list)
    durations_s = rows["duration"][:]
    for index, speaker in enumerate(rows["speaker"][:]):
        if not speaker:
            raise ValueError(f"recording {rows[index]['id']!r} has no `speaker`; choose data that name it.")
        open_groups[speaker].append(index)
        if sum(durations_s[row] for row in open_groups[speaker]) >= min_s:
            groups.append(open_groups.pop(speaker))
    if not groups:
        raise ValueError(f"no speaker of the data has `min_s` {min_s:g} s; lower it, or give more data.")
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a recogniser")
    parser.add_argument("--data", required=True, help="labelled recordings with speakers")
    parser.add_argument("--min_s", type=float, default=60.0, help="least seconds of a long recording")
    parser.add_argument("--gap_s", type=float, nargs=2, default=(0.2, 0.8), help="shortest and longest pause")
    parser.add_argument("--max_window_s", type=float, default=30.0)
    parser.add_argument("--overlap_s", type=float, default=4.0)
    parser.add_argument("--limit", type=int, help="long recordings at most")
    parser.add_argument("--level", default="zh", help="of the normaliser")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    rng = np.random.default_rng(options.seed)

    # 1. long recordings
    first = Transcriber.from_pretrained(options.model, device=options.device)
    mode, decoder = first.settings.mode, first.decoder
    windows = {"mode": mode, "max_window_s": options.max_window_s, "overlap_s": options.overlap_s}
    transcribers = {
        kind: Transcriber(decoder.model, decoder.processor, settings=DecodingSettings(long_audio=kind, **windows))
        for kind in LONG_AUDIO
    }
    rate = decoder.sampling_rate
    rows = load_speech_dataset(options.data, name="data")
    groups = groups_of_speakers(rows, options.min_s)[: options.limit]
    parts = [[decode_audio(rows[row]["audio"], sampling_rate=rate).samples for row in group] for group in groups]
    recordings = [join(waves, options.gap_s, rate, rng) for waves in parts]
    references = ["".join(rows[row]["text"] for row in group) for group in groups]

    # 2. the parts alone, and the whole
    texts, seconds, pieces = {}, {}, {}
    names = ("parts", *LONG_AUDIO)
    if decoder.model.config.model_type == "nest":
        names += ("pipeline",)
        tokenizer, extractor = decoder.processor.tokenizer, decoder.processor.feature_extractor
        recognise = pipeline(
            "automatic-speech-recognition",
            model=decoder.model,
            tokenizer=tokenizer,
            feature_extractor=extractor,
            device=options.device,
            chunk_length_s=options.max_window_s,
            stride_length_s=options.overlap_s / 2,
        )
    for name in names:
        start = time.perf_counter()
        if name == "parts":
            alone = iter(transcribers["windows"]([wave for waves in parts for wave in waves]))
            results = [[next(alone) for _ in waves] for waves in parts]
            texts[name] = ["".join(result.text for result in row) for row in results]
            pieces[name] = sum(map(len, parts))
        elif name == "pipeline":
            texts[name] = [result["text"] for result in recognise(recordings, batch_size=8)]
            step = (options.max_window_s - options.overlap_s) * rate
            pieces[name] = sum(
                max(1, math.ceil(len(wave) / step - options.overlap_s * rate / step)) for wave in recordings
            )
        else:
            results = transcribers[name](recordings)
            texts[name] = [result.text for result in results]
            pieces[name] = sum(len(result.windows) for result in results)
        seconds[name] = time.perf_counter() - start

    # 3. errors
    audio_s = sum(map(len, recordings)) / rate
    report = {"recordings": len(recordings), "seconds": round(audio_s, 1), "mode": mode}
    for name in texts:
        result = character_errors(texts[name], references, level=options.level).result()
        report[name] = {"cer": 100 * result["cer"], "characters": result["num_tokens"], "pieces": pieces[name]}
        report[name] |= {"difference": 100 * result["cer"] - report["parts"]["cer"]}
        report[name] |= {"seconds": round(seconds[name], 2)}
    if options.json:
        print(json.dumps(report))
        return
    print(f"{len(recordings)} recordings of {audio_s / len(recordings):.0f} s on average, mode {mode}")
    for name in texts:
        row = report[name]
        print(
            f"{name:8} CER {row['cer']:6.2f} % of {row['characters']} characters, {row['difference']:+.2f} points, "
            f"{row['pieces']} pieces, {row['seconds']:.1f} s"
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
