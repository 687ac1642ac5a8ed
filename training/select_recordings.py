"""
Writes the recordings of a data set that an experiment needs to one parquet: by id, by speaker, a balanced share.

    python training/select_recordings.py fsdd-train.parquet labelled.parquet --ids '*_[1-4]?' --share 0.01 \\
        --balance text speaker --seed 0                   # 1 % of takes 10-49: all digits, all speakers
    python training/select_recordings.py fsdd-test.parquet unseen.parquet --speakers theo
    python training/select_recordings.py fsdd-test.parquet seen.parquet --without_speakers theo
    python training/select_recordings.py words-train.parquet common.parquet --most_common 400
    python training/select_recordings.py words-test.parquet known.parquet --known_from common.parquet

The source is named in any of the forms that training takes. Under one seed a smaller share lies inside a larger one.
"""

import argparse
import sys
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import datasets
import numpy as np

from nest_hf.data import load_speech_dataset
from nest_hf.parsing import error_line
from nest_hf.text import normalize


def balanced_order(rows: list[tuple[str, ...]], rng: np.random.Generator) -> list[int]:
    """
    An order of rows in which every beginning is as balanced as can be.

    Args:
        rows (`list[tuple[str, ...]]`): What each row has in the columns to balance.
        rng (`np.random.Generator`): Decides between rows that are equal.

    Returns:
        `list[int]`: first the combinations of values that were seen least, of these the values that were.
    """
    waiting = defaultdict(list)
    for index in rng.permutation(len(rows)).tolist():
        waiting[rows[index]].append(index)
    taken, seen, order = Counter(), Counter(), []
    while waiting:
        cell = min(waiting, key=lambda cell: (taken[cell], sum(seen[item] for item in enumerate(cell))))
        order.append(waiting[cell].pop())
        taken[cell] += 1
        seen.update(enumerate(cell))
        if not waiting[cell]:
            del waiting[cell]
    return order


def select(rows: datasets.Dataset, options: argparse.Namespace) -> datasets.Dataset:
    """The rows that all options ask for, in their order."""
    keep = np.ones(len(rows), bool)
    if options.ids:
        keep &= [fnmatchcase(name, options.ids) for name in rows["id"][:]]
    for option, wanted in (("speakers", True), ("without_speakers", False)):
        names = getattr(options, option) or []
        if unknown := set(names) - set(rows["speaker"][:]):
            speakers = ", ".join(sorted(filter(None, set(rows["speaker"][:]))))
            raise ValueError(f"`{option}` names {', '.join(sorted(unknown))}; the speakers are {speakers}.")
        if names:
            keep &= [(speaker in names) == wanted for speaker in rows["speaker"][:]]
    if options.most_common:
        texts = [normalize(text, "basic") for text in rows["text"][:]]
        common = {character for character, _ in Counter("".join(texts)).most_common(options.most_common)}
        keep &= [set(text) <= common for text in texts]
    if options.known_from:
        texts = load_speech_dataset(options.known_from, name="known_from", need_duration=False)["text"][:]
        known = set("".join(normalize(text, "basic") for text in texts))
        keep &= [set(normalize(text, "basic")) <= known for text in rows["text"][:]]
    rows = rows.select(np.flatnonzero(keep))
    if options.share is not None:
        columns = [[str(value) for value in rows[name][:]] for name in options.balance or []]
        cells = list(zip(*columns, strict=True)) if columns else [()] * len(rows)
        order = balanced_order(cells, np.random.default_rng(options.seed))
        rows = rows.select(sorted(order[: round(options.share * len(rows))]))
    if not len(rows):
        raise ValueError("no recording is left; loosen the options.")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="recordings, named as in training")
    parser.add_argument("output", help="the parquet to write")
    parser.add_argument("--ids", help="only ids of this pattern, with * ? [...] as in file names")
    parser.add_argument("--speakers", nargs="+", help="only these")
    parser.add_argument("--without_speakers", nargs="+", help="all but these")
    parser.add_argument("--most_common", type=int, help="only texts of so many characters, the source's most common")
    parser.add_argument("--known_from", help="only texts whose characters all occur in the texts of this data set")
    parser.add_argument("--share", type=float, help="this share of what is left")
    parser.add_argument("--balance", nargs="+", help="columns whose values the share holds equally often")
    parser.add_argument("--seed", type=int, default=0, help="of the share")
    options = parser.parse_args()
    if options.share is not None and not 0 < options.share <= 1:
        raise ValueError(f"`share` is {options.share}; it must lie above 0, up to 1.")
    if options.balance and options.share is None:
        raise ValueError("`balance` has no effect without `share`; give both.")
    datasets.disable_progress_bars()
    rows = load_speech_dataset(options.source, name="source")
    chosen = select(rows, options)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.tmp")
    chosen.to_parquet(unfinished)
    unfinished.replace(output)
    hours = sum(chosen["duration"][:]) / 3600
    print(f"{len(chosen)} of {len(rows)} recordings, {hours:.3f} h, are in {output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
