"""What a list of hotwords costs and finds: the CTC filter on synthetic posteriors of 10-s utterances, one thread.

    python evaluation/benchmarks/hotwords.py                       # 1,000 hotwords
    python evaluation/benchmarks/hotwords.py --hotwords 10000 --classes 60000 --json

The posteriors have a spike per character. Of all characters a share is misheard: another of the ten that sound alike
wins, by up to `--margin` nats. Two hotwords of the list are said in each utterance; the others are random words, a
third of them a said one with one character replaced by one that sounds alike. `false` counts hotwords that the prompt
would get although they were not said.
"""

import argparse
import json
import logging
import time

import numpy as np
import torch

from nest_hf.hotwords import HotwordFilter

FRAME_S = 0.08
BLANK_ID, UNKNOWN_ID, FIRST_ID = 0, 1, 2
ALIKE = 10  # characters that sound alike have consecutive ids
THRESHOLDS = (-0.5, -1.0, -1.5, -2.0, -3.0, -4.0)


class CodePointTokenizer:
    """Characters are consecutive code points."""

    is_fast, unk_token_id = False, UNKNOWN_ID

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> dict:
        return {"input_ids": [[ord(character) - 0x4E00 for character in text] for text in texts]}


def make_list(number: int, num_classes: int, num_said: int, rng: np.random.Generator) -> tuple[list, list]:
    """Distinct words (tuples of ids) of 2-6 characters: those that will be said, and the others."""
    words = set()

    def new_word() -> tuple:
        while (word := tuple(rng.integers(FIRST_ID, num_classes, rng.integers(2, 7)).tolist())) in words:
            pass
        words.add(word)
        return word

    said = [new_word() for _ in range(num_said)]
    others = []
    while len(said) + len(others) < number:
        if len(others) % 3:
            others.append(new_word())
            continue
        near = list(said[rng.integers(num_said)])
        place = rng.integers(len(near))
        near[place] = int(alike(near[place], num_classes, rng))
        if tuple(near) not in words:
            words.add(tuple(near))
            others.append(tuple(near))
        elif rng.random() < 0.01:  # all neighbours of a short list are taken
            others.append(new_word())
    return said, others


def alike(token: int, num_classes: int, rng: np.random.Generator) -> int:
    """Another token of the same group."""
    group = (token - FIRST_ID) // ALIKE * ALIKE + FIRST_ID
    choices = [other for other in range(group, min(group + ALIKE, num_classes)) if other != token]
    return rng.choice(choices) if choices else token


def make_posteriors(tokens: list[int], args, rng: np.random.Generator) -> torch.Tensor:
    """(1, T, V) log-probabilities of an utterance of `args.seconds`."""
    num_frames = round(args.seconds / FRAME_S)
    logits = rng.normal(-12.0, 1.5, (num_frames, args.classes)).astype(np.float32)
    logits[:, BLANK_ID] = 0.0
    frames = np.sort(rng.choice(num_frames // 2, len(tokens), replace=False)) * 2
    for frame, token in zip(frames, tokens, strict=True):
        group = (token - FIRST_ID) // ALIKE * ALIKE + FIRST_ID
        logits[frame, BLANK_ID] = rng.uniform(-6, -1)
        near = logits[frame, group : group + ALIKE]
        near[:] = rng.uniform(-8, -2, len(near))
        logits[frame, token] = 0.0
        if rng.random() < args.misheard:
            logits[frame, alike(token, args.classes, rng)] = rng.uniform(0, args.margin)
    return torch.from_numpy(logits).log_softmax(-1)[None]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hotwords", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=5000, help="of the CTC head")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--misheard", type=float, default=0.15, help="share of characters whose best class is wrong")
    parser.add_argument("--margin", type=float, default=6.0, help="nats by which the wrong class wins at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    rng = np.random.default_rng(args.seed)

    # 1. the list, and the filter made from it
    said, others = make_list(args.hotwords, args.classes, max(1, min(100, args.hotwords // 3)), rng)
    as_text = {word: "".join(chr(0x4E00 + token) for token in word) for word in said + others}
    start = time.perf_counter()
    hotword_filter = HotwordFilter([as_text[word] for word in said + others], CodePointTokenizer(), blank_id=BLANK_ID)
    build_ms = 1000 * (time.perf_counter() - start)

    # 2. utterances of about 4 characters per second with two hotwords each
    times, scores, truths = [], [], []
    for _ in range(args.utterances):
        chosen = rng.choice(len(said), min(2, len(said)), replace=False)
        tokens = rng.integers(FIRST_ID, args.classes, round(3 * args.seconds)).tolist()
        for word, place in zip(chosen, sorted(rng.integers(0, len(tokens), len(chosen)), reverse=True), strict=True):
            tokens[place:place] = said[word]
        log_probs = make_posteriors(tokens, args, rng)
        start = time.perf_counter()
        hotword_filter(log_probs)
        times.append(1000 * (time.perf_counter() - start))
        scores.append(hotword_filter.score(log_probs)[0])
        spoken = {as_text[said[word]] for word in chosen}
        truths.append(np.array([word in spoken for word in hotword_filter.hotwords]))
    scores, truths = np.array(scores), np.array(truths)

    # 3. what each threshold keeps
    report = {"hotwords": args.hotwords, "classes": args.classes, "seconds": args.seconds, "threads": 1,
              "build_ms": round(build_ms, 1), "median_ms": round(float(np.median(times)), 2),
              "p95_ms": round(float(np.percentile(times, 95)), 2)}  # fmt: skip
    greedy = scores >= -1e-6
    report["recall_greedy"] = round(float((greedy & truths).sum() / truths.sum()), 3)
    report["thresholds"] = [
        {
            "threshold": threshold,
            "recall": round(float(((scores >= threshold) & truths).sum() / truths.sum()), 3),
            "false_per_utterance": round(float(((scores >= threshold) & ~truths).sum() / len(truths)), 2),
        }
        for threshold in THRESHOLDS
    ]
    if args.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        if key != "thresholds":
            print(f"{key:15} {value}")
    print("threshold  recall  false per utterance")
    for row in report["thresholds"]:
        print(f"{row['threshold']:9.1f}  {row['recall']:6.3f}  {row['false_per_utterance']:8.2f}")


if __name__ == "__main__":
    main()
