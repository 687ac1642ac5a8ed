"""Stage 0 from arguments to manifests: what `training/prepare_data.py` does, and the stage `prepare` of a recipe."""

import json
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from .data import (
    TelephoneChannel,
    filter_annotation_errors,
    load_with_report,
    split_by_group,
    write_chatml_manifest,
    write_nemo_manifest,
)
from .data.audio_encoding import write_whole
from .data.names import find_sources
from .data.preparation import (
    OUTPUTS,
    Part,
    PartWriter,
    claim_folder,
    is_done,
    kept_rows,
    part_lines,
    plan_parts,
    read_part,
    run_parts,
)  # fmt: skip
from .data.preparation_check import check_source
from .data.telephone import PRESETS
from .parsing import save_resolved

logger = logging.getLogger(__name__)


@dataclass
class PreparationArguments:
    """Which recordings, which channel, where to."""

    data: list[str] | None = HfArg(default=None, help="Wideband recordings, to be sent through the channel.")
    real_data: list[str] | None = HfArg(default=None, help="Recordings of real calls, which are only resampled.")
    dev_data: list[str] | None = HfArg(default=None, help="As data, for the development set.")
    real_dev_data: list[str] | None = HfArg(default=None, help="As real_data, for the development set.")
    dev_share: float | None = HfArg(default=None, help="Or: share of the hours of all data to set apart for it.")
    group: str = HfArg(default="speaker", help="With dev_share: rows with one value of this column stay together.")
    output_dir: str | None = HfArg(default=None, help="Folder for the results.")
    steps: list[dict] | None = HfArg(default=None, help="Steps of the channel; in a YAML, as in telephone.yaml.")
    preset: str | None = HfArg(default=None, help=f"Or the name of a channel: {', '.join(PRESETS)}.")
    missing_noise: str = HfArg(default="error", help="Steps without recordings to mix in: `error` or `skip`.")
    babble_data: list[str] | None = HfArg(default=None, help="Utterances for babble; where not given, data itself.")
    noise_data: list[str] | None = HfArg(default=None, help="Noises for the step `noise`.")
    impulse_responses: list[str] | None = HfArg(default=None, help="Responses of rooms for the step `reverb`.")
    noise_pool_s: float = HfArg(default=1200.0, help="Seconds of each of these that are chosen and held in memory.")
    format: str = HfArg(default="flac", help="`flac` or `wav` files with manifests, or `parquet`.")
    sampling_rate: int = HfArg(default=16000, help="Hz of what is written.")
    min_duration_s: float = HfArg(default=0.0, help="Shorter recordings are rejected, and named.")
    max_duration_s: float = HfArg(default=float("inf"), help="Longer recordings are rejected, and named.")
    annotation_marks: list[str] = HfArg(
        default_factory=lambda: ["<ANNOTATION_ERROR>"], help="Rows whose text holds one of these are rejected."
    )
    need_text: bool = HfArg(default=False, help="Reject rows without text.")
    on_bad_audio: str = HfArg(default="skip", help="Recordings that cannot be used: `skip` (and name) or `fail`.")
    seed: int = HfArg(default=0, help="Seeds the channel and the split.")
    num_proc: int = HfArg(default=os.cpu_count() or 1, help="Processes, with the engine `local`.")
    engine: str = HfArg(default="local", help="`local`, or `ray`: a cluster (RAY_ADDRESS, else this machine).")
    rows_per_part: int = HfArg(default=128, help="Rows that are done, or done again after a kill, together.")
    check: int = HfArg(default=0, help="Do this many examples of every source into output_dir/check, and no more.")
    overwrite: bool = HfArg(default=False, help="Delete what an earlier run wrote to output_dir.")

    def __post_init__(self):
        choices = {"format": OUTPUTS, "engine": ("local", "ray"), "on_bad_audio": ("skip", "fail")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        if not self.data and not self.real_data:
            raise ValueError("`data` and `real_data` are missing; give recordings, --data manifest.json.")
        if not self.output_dir:
            raise ValueError("`output_dir` is missing; say where the results go.")
        if self.dev_share is not None and not 0 < self.dev_share < 1:
            raise ValueError(f"`dev_share` is {self.dev_share}; give a share between 0 and 1.")
        if self.dev_share is not None and (self.dev_data or self.real_dev_data):
            raise ValueError("`dev_share` has no effect beside `dev_data`; give one of them.")
        for name, least in (("num_proc", 1), ("rows_per_part", 1), ("check", 0), ("sampling_rate", 8000)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be {least} or more.")


# What may differ when a job is taken up again.
NOT_IN_THE_RESULT = ("num_proc", "engine", "check", "overwrite")


def prepare(args: PreparationArguments) -> None:
    """
    Makes calls of wideband recordings and brings real ones to the model's rate, or goes on with that.

    Args:
        args ([`PreparationArguments`]): What, and where to.
    """
    # 1. data
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    datasets.disable_progress_bars()
    out = Path(args.output_dir)
    channel = TelephoneChannel.from_config(steps=args.steps, preset=args.preset, missing_noise=args.missing_noise)
    splits, rejected_texts, reports = load_splits(args)
    real = frozenset(source.name for given in (args.real_data, args.real_dev_data) if given
                     for source in find_sources(given))  # fmt: skip
    channel = with_noise(channel, splits["train"], real, args)
    for report in reports:
        logger.info("%s", report)

    # 2. the plan, and what is done of it
    writer = PartWriter(
        splits, channel, real, args.output_dir, args.format, args.sampling_rate, args.seed, args.min_duration_s,
        args.max_duration_s, args.on_bad_audio,
    )  # fmt: skip
    if args.check:
        return check(writer, args)
    settings = {k: v for k, v in asdict(args).items() if k not in (*NOT_IN_THE_RESULT, "output_dir")}
    claim_folder(out, splits, settings, overwrite=args.overwrite)
    save_resolved(args.output_dir, args)
    parts = plan_parts(splits, args.rows_per_part)
    done = [read_part(args.output_dir, part) for part in parts if is_done(args.output_dir, part)]
    todo = [part for part in parts if not is_done(args.output_dir, part)]
    announce(splits, channel, real, parts, todo, args)

    # 3. the work
    started = time.perf_counter()
    results = done + work(writer, todo, splits, args)
    elapsed = time.perf_counter() - started

    # 4. manifests and report
    finish(out, parts, results, rejected_texts, sum(result.seconds for result in results[len(done) :]), elapsed, args)


def load_splits(args) -> tuple[dict[str, datasets.Dataset], list[dict], list]:
    """Rows of train and dev, the rows that the filter of annotations rejects, and reports of both."""
    sources = {"train": [*(args.data or []), *(args.real_data or [])]}
    if args.dev_data or args.real_dev_data:
        sources["dev"] = [*(args.dev_data or []), *(args.real_dev_data or [])]
    splits, rejected, reports = {}, [], []
    for name, source in sources.items():
        rows, report = load_with_report(
            source, name=name, split="train" if name == "train" else "validation",
            need_duration=args.dev_share is not None, on_bad_audio=args.on_bad_audio,
        )  # fmt: skip
        splits[name], filtered = filter_annotation_errors(
            rows, marks=args.annotation_marks, need_text=args.need_text, name=name
        )
        if filtered.dropped:
            left = set(splits[name]["id"][:])
            rejected += [
                {"id": key, "reason": "annotation", "message": text or "no text"}
                for key, text in zip(rows["id"][:], rows["text"][:], strict=True)
                if key not in left
            ]
            reports.append(filtered)
        reports.insert(0, report)
    if args.dev_share:
        shares = {"train": 1 - args.dev_share, "dev": args.dev_share}
        splits = dict(split_by_group(splits["train"], shares, group=args.group, seed=args.seed))
    elif "dev" in splits and (both := set(splits["train"]["id"][:]) & set(splits["dev"]["id"][:])):
        raise ValueError(
            f"{len(both)} ids are in the training and in the development data: {', '.join(sorted(both)[:5])}."
        )
    return splits, rejected, reports


def with_noise(channel: TelephoneChannel, train, real: frozenset[str], args) -> TelephoneChannel:
    """The channel with what its steps mix in."""
    given = {}
    for name, source in (("noise", args.noise_data), ("impulse_responses", args.impulse_responses)):
        needed = name in channel.missing()
        if source and not needed:
            raise ValueError(f"`{name}` has no effect: no step of this channel mixes it in; leave it out.")
        if source:
            given[name], _ = load_with_report(source, name=name, on_bad_audio=args.on_bad_audio)
    if args.babble_data and "talkers" not in channel.missing():
        raise ValueError("`babble_data` has no effect: this channel has no step `babble`; leave it out.")
    if args.babble_data:
        given["talkers"], _ = load_with_report(args.babble_data, name="babble", on_bad_audio=args.on_bad_audio)
    elif "talkers" in channel.missing():
        wideband = np.flatnonzero([source not in real for source in train["source"][:]])
        given["talkers"] = train.select(wideband) if len(wideband) < len(train) else train
        if not len(given["talkers"]):
            del given["talkers"]
    channel = channel.with_noise(**given, pool_s=args.noise_pool_s, seed=args.seed)
    if args.data and channel.missing() and args.missing_noise == "error":
        raise ValueError(
            f"the channel mixes in {', '.join(channel.missing())}, and there is none; give --noise_data, "
            "--impulse_responses or --babble_data, or --missing_noise skip."
        )
    return channel


def announce(splits, channel, real, parts: list[Part], todo: list[Part], args) -> None:
    for name, rows in splits.items():
        seconds = np.array(rows["duration"][:], float)
        kinds = Counter("real calls" if source in real else "to be simulated" for source in rows["source"][:])
        known = f"{np.nansum(seconds) / 3600:.2f} h" + (" and unknown lengths" if np.isnan(seconds).any() else "")
        logger.info("%s: %s, %s", name, known, ", ".join(f"{count:,} rows {kind}" for kind, count in kinds.items()))
    steps = [name + (f" (prob {step.prob})" if step.prob < 1 else "") for name, step in channel.steps]
    logger.info("channel: %s", " -> ".join(steps) or "resampling only")
    logger.info("output: %s, %s at %d Hz", args.output_dir, args.format, args.sampling_rate)
    workers = "all of the cluster" if args.engine == "ray" else f"{args.num_proc} processes"
    logger.info("%d parts, %d of them done already; %s", len(parts), len(parts) - len(todo), workers)


def work(writer: PartWriter, todo: list[Part], splits, args) -> list:
    """Does the parts, with hours done, hours per hour and time left."""
    hours = sum(np.nansum(np.array(rows["duration"][:], float)) for rows in splits.values()) / 3600
    per_part = hours / max(1, sum(map(len, splits.values())))
    results, seconds, started = [], 0.0, time.perf_counter()
    total = per_part * sum(part.end - part.start for part in todo)
    bar = "{l_bar}{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=total, bar_format=bar, disable=None) as progress:
        for result in run_parts(writer, todo, num_proc=min(args.num_proc, len(todo) or 1), engine=args.engine):
            results.append(result)
            seconds += result.seconds
            progress.set_postfix_str(f"{seconds / (time.perf_counter() - started):.0f} x real time", refresh=False)
            progress.update(per_part * (result.part.end - result.part.start))
    return results


def finish(out: Path, parts, results, rejected_texts, seconds: float, elapsed: float, args) -> None:
    """Manifests, the list of what was rejected, and the report."""
    rejected = rejected_texts + [
        value for part in parts for kind, value in part_lines(args.output_dir, part) if kind == "rejected"
    ]
    reasons = Counter(row["reason"] for row in rejected)
    remarks = sum((result.remarks for result in results), Counter())
    splits = list(dict.fromkeys(part.split for part in parts))
    report = {"splits": {}, "rejected": dict(reasons), "remarks": dict(remarks)}
    for split in splits:
        own = [part for part in parts if part.split == split]
        total = [result for result in results if result.part.split == split]
        report["splits"][split] = {
            "rows": sum(result.kept for result in total),
            "hours": sum(result.seconds for result in total) / 3600,
        }
        if args.format != "parquet":
            write_nemo_manifest(kept_rows(args.output_dir, own), out / f"{split}.jsonl", overwrite=True)
            write_chatml_manifest(kept_rows(args.output_dir, own), out / f"{split}.chatml.jsonl", overwrite=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
    write_whole(out / "rejected.jsonl", lines.encode())
    write_whole(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False).encode())
    for split, size in report["splits"].items():
        logger.info("%s: %d rows, %.2f h", split, size["rows"], size["hours"])
    for reason, count in reasons.items():
        names = [row["id"] for row in rejected if row["reason"] == reason]
        logger.info("rejected %d, %s: %s%s", count, reason, ", ".join(names[:5]), ", ..." if count > 5 else "")
    for remark, count in remarks.items():
        logger.info("%d recordings: %s", count, remark)
    if seconds:
        logger.info("%.2f h in %.1f s, %.0f x real time", seconds / 3600, elapsed, seconds / elapsed)
    if not sum(size["rows"] for size in report["splits"].values()):
        raise ValueError(f"no recording could be used; {out / 'rejected.jsonl'} names the reason of each.")
    names = [f"{split}/" if args.format == "parquet" else f"{split}.jsonl" for split in splits]
    logger.info("the data is in %s: %s, rejected.jsonl, report.json", out, ", ".join(names))


def check(writer: PartWriter, args) -> None:
    """A few examples of every source, end to end, to look at and to listen to."""
    failed = 0
    for split, rows in writer.splits.items():
        sources = rows["source"][:]
        for source in dict.fromkeys(sources):
            indices = [index for index, name in enumerate(sources) if name == source][: args.check]
            lines, wrong = check_source(writer, rows.select(indices), Path(args.output_dir, "check"))
            failed += wrong
            logger.info("\n%s, %s", split, source)
            for line in lines:
                logger.info("  %s", line)
    logger.info("\nspectrograms before and after, and WAVs: %s", Path(args.output_dir, "check"))
    if failed:
        raise ValueError(f"{failed} checks failed; see above.")
