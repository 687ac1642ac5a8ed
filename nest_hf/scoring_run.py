"""References x hypotheses -> rates: what `evaluation/score.py` does, and the stage `evaluate` of a recipe."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from .conditions import CONDITIONS
from .data.audio_encoding import write_whole
from .hypotheses import read_hypotheses, read_meta
from .keywords import read_keywords
from .references import read_references, references_in
from .report.scores import build_report
from .score_tables import (
    by_table,
    comparison_lines,
    conditions_table,
    groups_table,
    heading,
    keywords_table,
    missing_lines,
    rates_table,
    two_sided,
)
from .scoring import RATES, Scorer, System, compare, folder_name, rates_by

logger = logging.getLogger(__name__)


@dataclass
class ScoringArguments:
    """Which hypotheses, references and tables."""

    hypotheses: list[str] | None = HfArg(default=None, help="name=path of each system's hypotheses.")
    references: str | None = HfArg(default=None, help="Labelled data, or a file of ids and texts.")
    output_dir: str | None = HfArg(default=None, help="For metrics.json, the utterances and the report.")
    keywords: str | None = HfArg(default=None, help="A keyword file: one per line, [group], keyword<TAB>alias,alias.")
    level: str = HfArg(default="zh", help="Of the normaliser: raw, basic or zh.")
    remove_fillers: bool = HfArg(default=False, help="Take fillers out of both texts.")
    fold_erhua: bool = HfArg(default=False, help="Take the 儿 out that only colours a syllable.")
    segmenter: str | None = HfArg(default=None, help="`jieba`, for the word error rate of Chinese.")
    by: list[str] | None = HfArg(default=None, help="Tables by columns: speaker, domain, duration_s, snr_db ...")
    retention: list[str] | None = HfArg(default=None, help="name=path of the same systems on a retention set.")
    retention_references: str | None = HfArg(default=None, help="As references, of the retention set.")
    num_resamples: int = HfArg(default=1000, help="Of the bootstrap.")
    seed: int = HfArg(default=0, help="Of the bootstrap.")
    report: bool = HfArg(default=True, help="Whether to write report.html.")

    def __post_init__(self):
        for name in ("hypotheses", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give --hypotheses name=path and --output_dir.")
        if self.retention_references and not self.retention:
            raise ValueError("`retention_references` has no effect without `retention`; give both.")
        if "duration" in (self.by or ()):
            self.by = ["duration_s" if column == "duration" else column for column in self.by]


def score(args: ScoringArguments) -> dict:
    """
    Prints the rates of systems side by side and writes them, with the report, to `output_dir`.

    Args:
        args ([`ScoringArguments`]): Which hypotheses and references.

    Returns:
        `dict`: what metrics.json holds.
    """
    # 1. score
    keywords = read_keywords(args.keywords) if args.keywords else None
    systems = scored(args.hypotheses, args.references, keywords, args)
    comparisons = compared(systems, args)
    retention = scored(args.retention, args.retention_references, None, args) if args.retention else []
    if retention and [system.name for system in retention] != [system.name for system in systems]:
        raise ValueError(
            f"`retention` has the systems {', '.join(system.name for system in retention)} and `hypotheses` "
            f"{', '.join(system.name for system in systems)}; give the same, in the same order."
        )
    retained = compared(retention, args)
    bootstrap = {"num_resamples": args.num_resamples, "seed": args.seed}
    tables = {
        column: {system.name: rates_by(system, column, **bootstrap) for system in systems}
        for column in dict.fromkeys(args.by or ())
    }

    # 2. say it
    print(f"\n{heading(systems[0])}\n{rates_table(systems)}")
    for system in systems:
        for line in missing_lines(system):
            print(line)
    for title, lines in (
        ("Differences (paired bootstrap)", comparison_lines(comparisons)),
        ("Conditions, CER %", conditions_table(systems)),
        ("Keywords by group", groups_table(systems)),
        ("Keywords with most errors", keywords_table(systems)),
        *((f"CER % by {column}", by_table(table)) for column, table in tables.items()),
        ("Target against retention", two_sided(systems, retention, comparisons, retained)),
    ):
        if lines:
            print(f"\n{title}\n{lines}")

    # 3. write it
    folder = Path(args.output_dir)
    for system in systems:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in system.rows]
        write_whole(folder / folder_name(system.name) / "utterances.jsonl", "".join(lines).encode())
    metrics = {
        "references": args.references,
        "normalizer": systems[0].settings["normalizer"],
        "bootstrap": bootstrap,
        "systems": {system.name: results(system) for system in systems},
        "comparisons": comparisons,
        "by": tables,
    }
    if retention:
        metrics["retention"] = {
            "references": args.retention_references,
            "systems": {system.name: results(system) for system in retention},
            "comparisons": retained,
        }
    text = json.dumps(metrics, ensure_ascii=False, indent=1)
    write_whole(folder / "metrics.json", (text + "\n").encode())
    print(f"\n{folder / 'metrics.json'}")
    if args.report:
        options = {"title": folder.name, "comparisons": comparisons, "retention": metrics.get("retention")}
        print(build_report(systems, folder / "report.html", **options, **bootstrap))
    return metrics


def scored(items: list[str], source: str | None, keywords, args: ScoringArguments) -> list[System]:
    """Systems of `name=path` items, against one set of references."""
    files = named_files(items)
    hypotheses = {name: read_hypotheses(path) for name, path in files.items()}
    references = read_references(source) if source else references_in(hypotheses)
    if references.untold:
        some = ", ".join(sorted(references.untold)[:5])
        logger.info("%d recordings have no reference text and are not scored: %s", len(references.untold), some)
    options = ("level", "remove_fillers", "fold_erhua", "segmenter", "num_resamples", "seed")
    scorer = Scorer(references.texts, keywords=keywords, **{name: getattr(args, name) for name in options})
    systems = []
    for name in list(hypotheses):
        rows = [row for row in hypotheses.pop(name) if row["id"] not in references.untold]
        meta = read_meta(files[name]) or {}
        settings = {"hypotheses": str(files[name]), **meta.pop("settings", {}), "run": meta}
        systems.append(scorer(name, rows, metadata=references.metadata, settings=settings))
    return systems


def named_files(items: list[str]) -> dict[str, Path]:
    """`name=path` -> path by name; an output that was written per condition stands for all of them."""
    files: dict[str, Path] = {}
    for item in items:
        name, equals, path = item.partition("=")
        name, path = (name, Path(path)) if equals and not Path(item).exists() else (Path(item).stem, Path(item))
        found = {name: path}
        if not path.is_file():
            parts = path.parent.glob(f"{path.stem}.*{path.suffix}") if path.parent.is_dir() else ()
            by_condition = {part.name[len(path.stem) + 1 : -len(path.suffix)]: part for part in parts}
            order = [*CONDITIONS, *sorted(by_condition)]
            found = {f"{name}/{key}": by_condition[key] for key in dict.fromkeys(order) if key in by_condition}
            if not found and Path(f"{path}.part0").exists():
                raise ValueError(f"{path} is not finished; run the same transcribe.py once more.")
            if not found:
                raise ValueError(f"{path} does not exist, or is no file; correct the path of {name!r}.")
        for key, part in found.items():
            if key in files:
                raise ValueError(f"two hypotheses are called {key!r}; write name=path.")
            for other in files:
                if folder_name(other) == folder_name(key):
                    raise ValueError(f"{other!r} and {key!r} would be written to one folder; write another name=path.")
            files[key] = part
    return files


def compared(systems: list[System], args: ScoringArguments) -> list[dict]:
    options = {"num_resamples": args.num_resamples, "seed": args.seed}
    return [found for rate in RATES for found in compare(systems, rate, **options)]


def results(system: System) -> dict:
    rates = {rate: getattr(system, rate) for rate in RATES}
    missing = {"count": len(system.missing), "ids": system.missing}
    return {**rates, "missing": missing, "settings": system.settings}
