"""Speech data by name: manifests, folders, parquet, saved datasets and Hub ids, all in one schema."""

import glob
import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features
from tqdm.auto import tqdm

from .audio import AudioError, audio_duration
from .columns import extra_columns, schema_columns, to_schema, undecoded
from .manifests import MANIFEST_EXTENSIONS, SCHEMA, folder_rows, manifest_rows, rows_to_table

logger = logging.getLogger(__name__)

# A streamed manifest is cut into this many byte ranges, to be dealt to processes and workers (2^5 x 3 divides well).
NUM_SHARDS = 96


@dataclass
class LoadReport:
    """
    What was read and what was left out.

    Attributes:
        name (`str`): what the data is for, such as `"train"`.
        sources (`list[str]`): as given.
        rows (`int`, *optional*): rows kept; None where they are streamed.
        hours (`float`, *optional*): hours kept, of the rows whose duration is known; None where they are streamed.
        dropped (`dict[str, int]`): rows left out, by reason.
        examples (`dict[str, list[str]]`): up to five of their ids, by reason.
    """

    name: str
    sources: list[str]
    rows: int | None = None
    hours: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line for what was kept, one per reason for what was dropped."""
        size = "streamed, counted as it is read" if self.rows is None else f"{self.rows:,} rows, {self.hours:.2f} h"
        kept = f"{self.name}: {size} from {', '.join(self.sources)}"
        return [kept] + [
            f"{self.name}: dropped {count:,} rows, {reason}: {', '.join(self.examples[reason])}"
            + (", ..." if count > len(self.examples[reason]) else "")
            for reason, count in self.dropped.items()
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def load_speech_dataset(
    data: str | os.PathLike | list,
    *,
    streaming: bool = False,
    split: str = "train",
    min_duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str = "train",
    need_duration: bool = True,
    on_bad_audio: str = "fail",
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Reads speech data of any supported form into one schema: `id`, `audio` (`{"bytes", "path"}`, never decoded),
    `offset` and `duration` in seconds, `text`, `speaker`, `source`, and whatever simple columns there were.

    Args:
        data (`str`, `os.PathLike` or `list`):
            One source or several, as a list or separated by commas: a NeMo manifest (`.json`, `.jsonl`, `.manifest`),
            a folder of audio (with an optional `metadata.jsonl` or `metadata.csv`), parquet (a file, a glob or a
            folder), a folder written by `save_to_disk`, or a Hub id (`id`, `id:config` or `id:config:split`).
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read as the rows are asked for. Ids are then not checked for duplicates, and a duration that is
            not given stays None and passes the limits.
        split (`str`, *optional*, defaults to `"train"`):
            The split of saved, Hub and parquet-folder sources.
        min_duration_s, max_duration_s (`float`, *optional*):
            Limits in seconds; rows outside are left out and counted.
        name (`str`, *optional*, defaults to `"train"`):
            What to call the data in messages.
        need_duration (`bool`, *optional*, defaults to `True`):
            Whether to read a duration that is not given from the recording's header.
        on_bad_audio (`str`, *optional*, defaults to `"fail"`):
            What a header that cannot be read does: `"fail"` raises, `"skip"` leaves the row out and counts it.

    Raises:
        FileNotFoundError: if a source does not exist.
        AudioError: if a header cannot be read and `on_bad_audio` is `"fail"`.
        ValueError: for a line or column that cannot be used, for two rows with one id, or if no row is left.

    Example:

    ```python
    dataset = load_speech_dataset("train.json,more/*.parquet", min_duration_s=0.5, max_duration_s=20.0)
    ```
    """
    dataset, report = load_with_report(
        data,
        streaming=streaming,
        split=split,
        min_duration_s=min_duration_s,
        max_duration_s=max_duration_s,
        name=name,
        need_duration=need_duration,
        on_bad_audio=on_bad_audio,
    )
    for line in report.lines():
        logger.info(line)
    return dataset


def load_with_report(
    data: str | os.PathLike | list,
    *,
    streaming: bool = False,
    split: str = "train",
    min_duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str = "train",
    need_duration: bool = True,
    on_bad_audio: str = "fail",
) -> tuple[datasets.Dataset | datasets.IterableDataset, LoadReport]:
    """[`load_speech_dataset`] together with the [`LoadReport`], which it does not log."""
    if on_bad_audio not in ("fail", "skip"):
        raise ValueError(f'`on_bad_audio` is "{on_bad_audio}"; it is "fail" or "skip".')
    low, high = min_duration_s or 0.0, math.inf if max_duration_s is None else max_duration_s
    if not 0 <= low <= high:
        raise ValueError(
            f"`min_duration_s` is {low} and `max_duration_s` {high}; the first may not exceed the second."
        )
    sources = find_sources(data, split=split)
    report = LoadReport(name, [source.name for source in sources])
    parts = [_stream(source) if streaming else _load(source) for source in sources]
    dataset = datasets.concatenate_datasets(_without_conflicts(parts))
    if streaming:
        limits = {"low": low, "high": high}
        return dataset.filter(_is_within, input_columns=["duration"], fn_kwargs=limits), report

    _refuse_duplicate_ids(dataset)
    durations = dataset.data.column("duration").to_numpy().copy()  # NaN where unknown
    drop: dict[str, list[int]] = {}
    missing = np.flatnonzero(np.isnan(durations)) if need_duration else []
    for index, result in _header_durations(dataset, missing, name):
        if isinstance(result, AudioError):
            if on_bad_audio == "fail":
                raise result
            drop.setdefault(result.reason, []).append(index)
        else:
            durations[index] = result
    if len(missing):
        column = pa.array(durations, from_pandas=True)
        order = dataset.column_names
        dataset = dataset.remove_columns("duration").add_column("duration", column).select_columns(order)
    drop[f"shorter than {low} s"] = np.flatnonzero(durations < low)
    drop[f"longer than {high} s"] = np.flatnonzero(durations > high)

    keep = np.ones(len(dataset), bool)
    for reason, indices in drop.items():
        if len(indices):
            keep[indices] = False
            report.dropped[reason] = len(indices)
            report.examples[reason] = dataset.data.column("id").take(pa.array(indices[:5])).to_pylist()
    report.rows, report.hours = int(keep.sum()), float(np.nansum(durations[keep])) / 3600
    if not report.rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise ValueError(f"{name}: none of {len(dataset)} rows is left ({counts}); widen the limits or mend the data.")
    return (dataset if keep.all() else dataset.select(np.flatnonzero(keep))), report


# --- which sources ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One source: its `kind` is `"manifest"`, `"folder"`, `"parquet"`, `"parquet folder"`, `"saved"` or `"hub"`."""

    name: str
    kind: str
    paths: tuple[str, ...]
    split: str
    prefix: str = ""


def find_sources(data: str | os.PathLike | list, *, split: str = "train") -> list[Source]:
    """Tells manifests, folders, parquet, saved datasets and Hub ids apart; what is not there is an error."""
    items = [data] if isinstance(data, str | os.PathLike) else data
    names = [
        part.strip()
        for item in map(os.fspath, items)
        for part in ([item] if os.path.exists(item) else item.split(","))
        if part.strip()
    ]
    if not names:
        raise ValueError("`data` names no source; give a manifest, a folder, parquet or a Hub id.")
    # Two folders may both hold 1.wav: with several sources the ids that are made begin with the source's own name.
    labels = [Path(name).stem for name in names]
    if len(set(labels)) < len(labels):
        labels = names
    prefixes = [f"{label}/" for label in labels] if len(names) > 1 else [""]
    return [_find_source(name, split, prefix) for name, prefix in zip(names, prefixes, strict=True)]


def _find_source(name: str, split: str, prefix: str) -> Source:
    if os.path.isdir(name):
        if any(os.path.exists(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
            return Source(name, "saved", (name,), split, prefix)
        has_parquet = next(Path(name).rglob("*.parquet"), None) is not None
        return Source(name, "parquet folder" if has_parquet else "folder", (name,), split, prefix)
    extension = Path(name).suffix.lower()
    if extension in (*MANIFEST_EXTENSIONS, ".parquet"):
        paths = (name,) if os.path.isfile(name) else tuple(sorted(glob.glob(name, recursive=True)))
        if not paths:
            raise FileNotFoundError(f"`{name}` does not exist; correct the path.")
        return Source(name, "parquet" if extension == ".parquet" else "manifest", paths, split, prefix)
    if os.path.exists(name):
        raise ValueError(f"`{name}` is no manifest ({', '.join(MANIFEST_EXTENSIONS)}), no .parquet and no folder.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]*){0,2}", name):
        raise FileNotFoundError(f"`{name}` does not exist, and is no name for a Hub dataset; correct the path.")
    return Source(name, "hub", (name,), split, prefix)


# --- from a source to the schema -------------------------------------------------------------------------------------


def _load(source: Source) -> datasets.Dataset:
    where = {"source": source.name, "prefix": source.prefix}
    if source.kind in ("manifest", "folder"):
        if source.kind == "folder":
            table = rows_to_table(folder_rows(source.paths[0], **where))
        else:
            table = rows_to_table(row for path in source.paths for row in manifest_rows(path, **where))
        if not table.num_rows:
            raise ValueError(f"`{source.name}` is empty: it holds no recording; point to one that does.")
        return datasets.Dataset(table)

    dataset = undecoded(_open_source(source, streaming=False), source=source.name)
    # The same Arrow storage under plain features: the memory-mapped audio is neither copied nor read.
    features = Features({**dataset.features, "audio": SCHEMA["audio"]})
    dataset = datasets.Dataset(dataset.data.cast(features.arrow_schema))
    columns = schema_columns(dataset.data, **where)
    dataset = dataset.select_columns(["audio", *extra_columns(dataset)])
    for column, values in columns.items():
        dataset = dataset.add_column(column, values, feature=SCHEMA[column])
    return dataset.select_columns([*SCHEMA, *extra_columns(dataset)])


def _stream(source: Source) -> datasets.IterableDataset:
    where = {"source": source.name, "prefix": source.prefix}
    if source.kind == "manifest":
        head = rows_to_table(islice((row for path in source.paths for row in manifest_rows(path, **where)), 1000))
        if not head.num_rows:
            raise ValueError(f"`{source.name}` is empty: it holds no recording; point to one that does.")
        features = Features.from_arrow_schema(head.schema)
        shards = []
        for path in source.paths:
            edges = np.linspace(0, os.path.getsize(path), NUM_SHARDS + 1).astype(int).tolist()
            shards += [(path, start, end) for start, end in zip(edges, edges[1:], strict=False)]
        extra_types = {key: features[key].dtype for key in features if key not in SCHEMA}
        return datasets.IterableDataset.from_generator(
            _stream_manifest, features=features, gen_kwargs={"shards": shards, "extra_types": extra_types, **where}
        )
    if source.kind in ("folder", "saved"):
        dataset = _load(source)
        return dataset.to_iterable_dataset(num_shards=min(NUM_SHARDS, len(dataset)))

    dataset = undecoded(_open_source(source, streaming=True), source=source.name)
    extras = extra_columns(dataset)
    return (
        dataset.with_format("arrow")
        .map(
            to_schema,
            batched=True,
            batch_size=100,
            fn_kwargs={"extras": extras, **where},
            features=Features({**SCHEMA, **{key: dataset.features[key] for key in extras}}),
        )
        .with_format(None)
    )


def _stream_manifest(
    shards: list[tuple[str, int, int]], extra_types: dict[str, str], source: str, prefix: str
) -> Iterator[dict]:
    for path, start, end in shards:
        for row in manifest_rows(path, source=source, prefix=prefix, start=start, end=end, extra_types=extra_types):
            yield {key: row.get(key) for key in (*SCHEMA, *extra_types)}


def _open_source(source: Source, *, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """A source that has columns already, as `datasets` reads it."""
    path = source.paths[0]
    try:
        if source.kind == "parquet":
            return datasets.load_dataset("parquet", data_files=list(source.paths), split="train", streaming=streaming)
        if source.kind == "parquet folder":
            return datasets.load_dataset("parquet", data_dir=path, split=source.split, streaming=streaming)
        if source.kind == "saved":
            saved = datasets.load_from_disk(path)
            if isinstance(saved, datasets.Dataset):
                return saved
            if source.split not in saved:
                raise ValueError(f'no split "{source.split}", there are {", ".join(saved)}')
            return saved[source.split]
        hub_id, config, split = (*path.split(":"), "", "")[:3]
        return datasets.load_dataset(hub_id, config or None, split=split or source.split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # A name that is neither here nor on the Hub is most often a path with a slip.
        missing = isinstance(error, FileNotFoundError | ConnectionError)
        kind = FileNotFoundError if missing else ValueError
        what = "is neither here nor a dataset that the Hub gives" if source.kind == "hub" else "cannot be read"
        raise kind(f"`{source.name}` {what}; check name and split: {error.__cause__ or error}") from error


# --- all sources together --------------------------------------------------------------------------------------------


def _without_conflicts(parts: list) -> list:
    """Drops further columns that have another type in another source; one that is absent there is filled with None."""
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for key, kind in part.features.items():
            kinds.setdefault(key, set()).add(str(kind))
    return [part.select_columns([key for key in part.features if len(kinds[key]) == 1]) for part in parts]


def _refuse_duplicate_ids(dataset: datasets.Dataset) -> None:
    ids = dataset.data.column("id")
    if pc.count_distinct(ids).as_py() == len(dataset):
        return
    first: dict[str, int] = {}
    for index, key in enumerate(ids.to_pylist()):
        if key in first:
            places = []
            for row in (first[key], index):
                source, path = dataset[row]["source"], dataset[row]["audio"]["path"]
                start = pc.index(dataset.data.column("source"), source).as_py()
                places.append(f"`{source}` row {row - start + 1} ({path})")
            raise ValueError(f"`id` {key!r} is in {' and in '.join(places)}; give every row an `id` of its own.")
        first[key] = index


def _header_durations(
    dataset: datasets.Dataset, indices: np.ndarray, name: str
) -> Iterator[tuple[int, float | AudioError]]:
    """Seconds from the offset to the end, or the error, for each of these rows."""

    def read(index: int) -> tuple[int, float | AudioError]:
        row = dataset[int(index)]
        try:
            total = audio_duration(row["audio"])
            if row["offset"] >= total:
                raise AudioError(
                    f"`{row['id']}` starts at {row['offset']} s of a recording of {total:.3f} s; correct `offset`.",
                    "offset past the end",
                )
        except AudioError as error:
            return int(index), error
        return int(index), total - row["offset"]

    # Threads hide the latency of a network disk; a block at a time, so that only its audio is in memory.
    with ThreadPoolExecutor(8) as pool, tqdm(total=len(indices), desc=f"{name}: headers", disable=None) as progress:
        for start in range(0, len(indices), 256):
            block = list(pool.map(read, indices[start : start + 256]))
            progress.update(len(block))
            yield from block


def _is_within(duration: float | None, low: float, high: float) -> bool:
    return duration is None or low <= duration <= high
