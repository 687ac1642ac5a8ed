"""Make a corpus of outbound calls in Mandarin: wideband speech, calls, keywords, and texts for a language model.

    pip install "nest_hf[demo]"
    python training/make_call_corpus.py --output_dir call_corpus                        # 10 + 0.5 hours to train
    python training/make_call_corpus.py --output_dir call_corpus --scale smoke          # 0.2 + 0.05 hours
    python training/make_call_corpus.py --output_dir call_corpus --hours 20 --call_hours 2 --overwrite true

The folder then holds `train.jsonl`, `validation.jsonl` and `test.jsonl` (16 kHz), `calls_train.jsonl`,
`calls_validation.jsonl` and `calls_test.jsonl` (8 kHz, through the `physical` telephone channel, whose draw is in the
column `channel`), their recordings in `audio/`, `keywords.txt`, `lm_text.txt` and `corpus.json`. No voice, no babble
and no sentence of a validation or test set occurs in training; of a test set, 30 % use templates, and 20 % hold one
of ten keywords, that no training text has (columns `template` and `keyword`). A quarter of the training sentences have
any word of jieba's dictionary in a keyword's place, half of the wideband training speech are fragments of
sentences, which cannot be guessed, and half of the texts for a language model rows of words of that dictionary. Same
arguments and library versions, same bytes; the same command again finishes what an interrupt left, or finds that
all is there.
"""

import hashlib
import json
import multiprocessing
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm
from transformers.hf_argparser import HfArg

from nest_hf.data.audio_encoding import write_whole
from nest_hf.data.call_corpus import SETS, SHARD, Shard, make_shard, plan_corpus, split_of
from nest_hf.data.call_grammar import KEYWORDS, SEEN, UNSEEN, UNSEEN_KEYWORDS, keyword_file
from nest_hf.data.espeak import Synthesizer
from nest_hf.data.writers import whole_file
from nest_hf.parsing import error_line, parse_arguments

SCALES = {
    "full": {"hours": 10.0, "call_hours": 0.5, "test_utterances": 300, "lm_lines": 40_000},
    "smoke": {"hours": 0.2, "call_hours": 0.05, "test_utterances": 60, "lm_lines": 2000},
}
RESULTS = (*(f"{name}.jsonl" for name in SETS), "keywords.txt", "lm_text.txt", "corpus.json")


@dataclass
class CallCorpusArguments:
    output_dir: str | None = HfArg(default=None, help="Folder to fill.")
    scale: Literal["full", "smoke"] = HfArg(default="full", help="What the sizes below are where they are not given.")
    hours: float | None = HfArg(default=None, help="Wideband training speech, near enough. Full: 10.0.")
    call_hours: float | None = HfArg(default=None, help="Training calls, near enough. Full: 0.5.")
    test_utterances: int | None = HfArg(default=None, help="In each test set; validation has half. Full: 300.")
    lm_lines: int | None = HfArg(default=None, help="Lines of lm_text.txt, half rows of words. Full: 40000.")
    seed: int = HfArg(default=0, help="Seed of the texts, voices and channel.")
    format: Literal["flac", "wav"] = HfArg(default="flac", help="Audio file format, 16 bits either way.")
    num_proc: int = HfArg(default=2, help="Processes; the result depends on no number of them.")
    overwrite: bool = HfArg(default=False, help="Delete what an earlier run wrote to output_dir.")

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("`output_dir` is missing; say where the corpus goes.")
        for name, value in SCALES[self.scale].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, valid, remedy in (
            ("hours", 0 < self.hours <= 1000, "pass a positive number up to 1000"),
            ("call_hours", 0 < self.call_hours <= 1000, "pass a positive number up to 1000"),
            ("test_utterances", self.test_utterances >= 50, "pass 50 or more, so that every unseen keyword occurs"),
            ("lm_lines", self.lm_lines >= 1, "pass 1 or more"),
            ("seed", 0 <= self.seed < 2**31, "pass 0 to 2147483647"),
            ("num_proc", self.num_proc >= 1, "pass 1 or more"),
        ):
            if not valid:
                raise ValueError(f"`{name}` is {getattr(self, name)}; {remedy}.")


def claim_folder(folder: Path, settings: dict, *, overwrite: bool) -> bool:
    """Says in `settings.json` whose folder it is; returns whether the same command has already finished there."""
    claim = folder / "settings.json"
    if overwrite and claim.exists():
        shutil.rmtree(folder / "audio", ignore_errors=True)
        for path in (*(folder / name for name in RESULTS), claim):
            path.unlink(missing_ok=True)
    if claim.exists():
        if json.loads(claim.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{folder} holds another corpus; choose another output_dir, or pass --overwrite true.")
        return (folder / "corpus.json").exists()
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no corpus of this script; choose another output_dir.")
    write_whole(claim, json.dumps(settings, indent=2).encode())
    return False


def check_spoken(texts: set[str]):
    """Refuses characters that espeak-ng skips or spells: reference and speech would differ."""
    unspeakable = Synthesizer(0).unspeakable({character for text in texts for character in text})
    if unspeakable:
        raise ValueError(f"espeak-ng cannot say {' '.join(unspeakable)}; take their sentences out of the grammar.")


def summary(rows: dict[str, list[dict]], lm_texts: list[str], seed: int) -> dict:
    """The figures of corpus.json."""
    text = "\n".join(row["text"] for name in SETS for row in rows[name] if split_of(name) == "train")
    return {
        "seed": seed,
        "sets": {
            name: {
                "utterances": len(entries),
                "hours": round(sum(row["duration"] for row in entries) / 3600, 4),
                "shortest_s": round(min(row["duration"] for row in entries), 2),
                "longest_s": round(max(row["duration"] for row in entries), 2),
                "speakers": sorted({row["speaker"] for row in entries}),
                "templates": dict(Counter(row["template"] for row in entries)),
                "keywords": dict(Counter(row["keyword"] for row in entries)),
            }
            for name, entries in rows.items()
        },
        "characters": len(set(text) - {"\n"}),
        "lm_lines": len(lm_texts),
        "keywords_seen": KEYWORDS,
        "keywords_unseen": UNSEEN_KEYWORDS,
        "fewest_in_training": min(map(text.count, SEEN)),
    }


def main():
    # 1. Who says what.
    (args,) = parse_arguments(CallCorpusArguments)
    folder = Path(args.output_dir)
    sizes = {name: getattr(args, name) for name in SCALES["full"]}
    plan, lm_texts = plan_corpus(**sizes, seed=args.seed)
    content = json.dumps([lm_texts, *(asdict(u) for name in SETS for u in plan[name])]).encode()
    settings = {**sizes, "seed": args.seed, "format": args.format, "plan": hashlib.blake2b(content).hexdigest()[:32]}
    if claim_folder(folder, settings, overwrite=args.overwrite):
        print(f"The corpus in {folder} is whole; there is nothing to do.")
        return
    # In a process of its own, as all that uses espeak-ng: its state would be handed on to the others.
    context = multiprocessing.get_context()
    with context.Pool(1) as pool:
        texts = {utterance.sentence.text for utterances in plan.values() for utterance in utterances}
        pool.apply(check_spoken, (texts.union(lm_texts),))

    # 2. Recordings; babble is made of the wideband speech of the same split.
    rows = {}
    bar = tqdm(total=sum(map(len, plan.values())), unit="utterances")
    with context.Pool(args.num_proc, maxtasksperchild=1) as pool:
        for name in SETS:
            talkers = None
            if name.startswith("calls"):
                talkers = [
                    {
                        "id": row["id"],
                        "audio": {"bytes": None, "path": str(folder / row["audio_filepath"])},
                        "duration": row["duration"],
                    }
                    for row in rows[split_of(name)]
                ]
            shards = [
                Shard(folder, name, plan[name][first : first + SHARD], args.seed, args.format, talkers)
                for first in range(0, len(plan[name]), SHARD)
            ]
            rows[name] = []
            for made in pool.imap(make_shard, shards):
                rows[name] += made
                bar.update(len(made))
    bar.close()

    # 3. Texts and manifests; corpus.json comes last: a folder that has it is whole.
    for name, entries in rows.items():
        with whole_file(folder / f"{name}.jsonl", overwrite=True) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in entries)
    write_whole(folder / "lm_text.txt", "".join(f"{text}\n" for text in lm_texts).encode())
    write_whole(folder / "keywords.txt", keyword_file().encode())
    figures = summary(rows, lm_texts, args.seed)
    write_whole(folder / "corpus.json", json.dumps(figures, ensure_ascii=False, indent=2).encode())
    for name, of_set in figures["sets"].items():
        print(
            f"{folder / name}.jsonl: {of_set['utterances']} utterances of {of_set['shortest_s']} to "
            f"{of_set['longest_s']} s, {of_set['hours']:.3f} hours, {len(of_set['speakers'])} voices"
        )
    print(f"{folder / 'keywords.txt'}: {len(SEEN)} keywords of training, {len(UNSEEN)} of tests alone")
    print(f"{folder / 'lm_text.txt'}: {len(lm_texts)} lines; {figures['characters']} characters in training")
    print(f"All figures: {folder / 'corpus.json'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(error_line(error))
