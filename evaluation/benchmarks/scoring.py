"""
Time and memory of scoring: normalisation at level `zh`, CER and KWER with tables and bootstrap intervals.

    python evaluation/benchmarks/scoring.py
    python evaluation/benchmarks/scoring.py --utterances 1000000 --json
    python evaluation/benchmarks/scoring.py --script                             # evaluation/score.py from end to end

The texts are drawn: characters of everyday Chinese with numbers, punctuation and keywords, and hypotheses that lose,
gain and confuse characters. `memory_mib` is the peak of the resident set above what imports and texts take; with
`--script`, the whole peak of score.py, and beside it that of a tenth of the utterances.
"""

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from nest_hf.error_rates import character_errors
from nest_hf.keyword_errors import keyword_errors

CHARACTERS = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天"
)
NUMBERS = (
    "一百二十三",
    "三点五",
    "百分之二十",
    "二零二六年",
    "十五号",
    "138",
    "一三八零零",
    "两千元",
    "下午三点半",
    "4.35%",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=15, help="per utterance")
    parser.add_argument("--keywords", type=int, default=200)
    parser.add_argument("--error_rate", type=float, default=0.1, help="of each character")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--script", action="store_true", help="run evaluation/score.py, reading and writing included")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    keywords = ["".join(rng.choices(CHARACTERS, k=rng.choice((2, 3, 4)))) for _ in range(args.keywords)]
    references = [utterance(rng, args.characters, keywords) for _ in range(args.utterances)]
    predictions = [recognised(rng, reference, args.error_rate) for reference in references]

    if args.script:
        for number in (args.utterances // 10, args.utterances):  # the peak is that of all children so far
            seconds, memory_mib = by_script(references[:number], predictions[:number], keywords)
            figures = {"utterances": number, "seconds": seconds, "memory_mib": memory_mib}
            print(
                json.dumps(figures) if args.json else f"{number:,} utterances: {seconds:.1f} s, {memory_mib:.0f} MiB"
            )
        return

    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    cer = character_errors(predictions, references).result()
    between = time.perf_counter()
    kwer = keyword_errors(predictions, references, keywords).result()
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    figures = {
        "level": cer["level"],
        "threads": 1,
        "cer_s": between - start,
        "kwer_s": end - between,
        "utterances_per_s": args.utterances / (end - start),
        "memory_mib": max(peak - before, 0) / 2**20,
        "cer": cer["cer"],
        "cer_interval": cer["cer_interval"],
        "kwer": kwer["kwer"],
        "kwer_interval": kwer["kwer_interval"],
        "num_spans": kwer["num_keywords"],
    }
    if args.json:
        print(json.dumps({**vars(args), **figures}))
        return
    print(
        f"{args.utterances:,} utterances of {args.characters} characters, {args.keywords} keywords, level zh, 1 thread"
    )
    for name, result in (("cer", cer), ("kwer", kwer)):
        low, high = result[f"{name}_interval"]
        print(f"{name.upper():<5} {figures[f'{name}_s']:6.2f} s   {result[name]:.4f} ({low:.4f} to {high:.4f})")
    print(f"{figures['utterances_per_s']:,.0f} utterances/s, {figures['memory_mib']:.0f} MiB above imports and texts")


def by_script(references: list[str], predictions: list[str], keywords: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of score.py with a table by speaker, and without the report."""
    script = Path(__file__).parents[1] / "score.py"
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"id": f"utterance {row}", "text": prediction, "reference": reference, "speaker": f"speaker {row % 50}"}
            for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True))
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(folder, "hypotheses.jsonl").write_text(lines, encoding="utf-8")
        Path(folder, "keywords.txt").write_text("\n".join(keywords), encoding="utf-8")
        command = [sys.executable, script, "--hypotheses", f"drawn={folder}/hypotheses.jsonl", "--by", "speaker"]
        command += ["--keywords", f"{folder}/keywords.txt", "--output_dir", f"{folder}/scores", "--report", "false"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, peak / (2**20 if platform.system() == "Darwin" else 1024)


def utterance(rng: random.Random, length: int, keywords: list[str]) -> str:
    """One reference: two of five hold a keyword, one of three a number, one of three punctuation."""
    parts = [rng.choice(keywords)] if keywords and rng.random() < 0.4 else []
    parts += [rng.choice(NUMBERS)] if rng.random() < 1 / 3 else []
    rest = max(length - sum(map(len, parts)), 0)
    parts += rng.choices(CHARACTERS, k=rest)
    rng.shuffle(parts)
    return "".join(parts)[:length] + ("。" if rng.random() < 1 / 3 else "")


def recognised(rng: random.Random, reference: str, error_rate: float) -> str:
    """The reference with substitutions, deletions and insertions in equal shares."""
    out = []
    for character in reference:
        if rng.random() < error_rate:
            kind = rng.randrange(3)
            character = ("", rng.choice(CHARACTERS), character + rng.choice(CHARACTERS))[kind]
        out.append(character)
    return "".join(out)


if __name__ == "__main__":
    main()
