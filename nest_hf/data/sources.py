"""Speech data of any supported form, read into one schema, plain or streamed."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Value
from tqdm.auto import tqdm

from .audio import AudioError, audio_duration
from .columns import extra_columns, schema_columns, to_schema, undecoded
from .kaldi import kaldi_table
from .manifests import SCHEMA, Origin, folder_rows, manifest_rows
from .names import Source, find_sources
from .report import NUM_EXAMPLES, LoadReport
from .tables import manifest_block, manifest_table, rows_to_table

logger = logging.getLogger(__name__)

# A streamed manifest is cut into this many byte ranges, to be dealt to processes and workers (2^5 x 3 divides well).
NUM_SHARDS = 96
RANGE_BYTES = 1 << 18  # about a thousand lines


def load_speech_dataset(
    data: str | os.PathLike | list | dict,
    *,
    streaming: bool = False,
    split: str = "train",
    min_duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str = "train",
    need_duration: bool = True,
    on_bad_audio: str = "fail",
    mix_weights: Sequence[float] | dict[str, float] | None = None,
    seed: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Reads speech data of any supported form into one schema: `id`, `audio` (`{"bytes", "path"}`, never decoded),
    `offset` and `duration` in seconds, `text`, `speaker`, `domain`, `source`, and whatever simple columns there were.

    Args:
        data (`str`, `os.PathLike`, `list` or `dict`):
            One source or several, as a list or separated by commas: a manifest (`.json`, `.jsonl`, `.manifest`) with
            NeMo's lines or FunASR's (ChatML `messages`, or `key`, `source`, `target`), a Kaldi folder (`wav.scp`), a
            folder of audio (with an optional `metadata.jsonl` or `metadata.csv`), parquet (a file, a glob or a
            folder), a folder written by `save_to_disk`, or a Hub id (`id`, `id:config` or `id:config:split`).
            `{"call": sources, "general": sources}`, or `call=source`, gives a `domain` to rows that have none.
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
        mix_weights (`Sequence[float]` or `dict[str, float]`, *optional*):
            With `streaming`, how often the next row is of each source, or of each domain of `data`. A source that
            ends starts again until all have been read to their end; by default they follow one another. Without
            `streaming`, mixing is a matter of the [`TokenBudgetBatchSampler`].
        seed (`int`, *optional*, defaults to 0):
            Seeds the order in which weighted sources take turns.

    Raises:
        FileNotFoundError: if a source does not exist.
        AudioError: if a header cannot be read and `on_bad_audio` is `"fail"`.
        ValueError: for a line or column that cannot be used, for two rows with one id, or if no row is left.

    Example:

    ```python
    dataset = load_speech_dataset("train.json,more/*.parquet", min_duration_s=0.5, max_duration_s=20.0)
    stream = load_speech_dataset(
        {"call": "calls.jsonl", "general": ["kaldi/train", "wide.json"]},
        streaming=True,
        mix_weights={"call": 0.7, "general": 0.3},
    )
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
        mix_weights=mix_weights,
        seed=seed,
    )
    for line in report.lines():
        logger.info(line)
    return dataset


def load_with_report(
    data: str | os.PathLike | list | dict,
    *,
    streaming: bool = False,
    split: str = "train",
    min_duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str = "train",
    need_duration: bool = True,
    on_bad_audio: str = "fail",
    mix_weights: Sequence[float] | dict[str, float] | None = None,
    seed: int = 0,
) -> tuple[datasets.Dataset | datasets.IterableDataset, LoadReport]:
    """[`load_speech_dataset`] together with the [`LoadReport`], which it does not log."""
    if on_bad_audio not in ("fail", "skip"):
        raise ValueError(f'`on_bad_audio` is "{on_bad_audio}"; it is "fail" or "skip".')
    low, high = min_duration_s or 0.0, math.inf if max_duration_s is None else max_duration_s
    if not 0 <= low <= high:
        raise ValueError(
            f"`min_duration_s` is {low} and `max_duration_s` {high}; the first may not exceed the second."
        )
    if mix_weights is not None and not streaming:
        raise ValueError("`mix_weights` has no effect without `streaming`; give them to the TokenBudgetBatchSampler.")
    sources = find_sources(data, split=split)
    report = LoadReport(name, [str(source) for source in sources])
    parts = _without_conflicts([_stream(source) if streaming else _load(source) for source in sources])
    if streaming:
        dataset = _interleaved(sources, parts, mix_weights, seed)
        limits = {"low": low, "high": high}
        return dataset.filter(_are_within, input_columns=["duration"], batched=True, fn_kwargs=limits), report

    dataset = datasets.concatenate_datasets(_told_apart(sources, parts))
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
            first = dataset.data.column("id").take(pa.array(indices[:NUM_EXAMPLES])).to_pylist()
            report.drop(reason, len(indices), first)
    report.rows, report.hours = int(keep.sum()), float(np.nansum(durations[keep])) / 3600
    if not report.rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise ValueError(f"{name}: none of {len(dataset)} rows is left ({counts}); widen the limits or mend the data.")
    return (dataset if keep.all() else dataset.select(np.flatnonzero(keep))), report


# --- from a source to the schema -------------------------------------------------------------------------------------


def _load(source: Source) -> datasets.Dataset:
    origin = source.origin
    if source.kind in ("manifest", "folder", "kaldi"):
        if source.kind == "manifest":
            table = manifest_table(source.paths, origin)
        elif source.kind == "folder":
            table = rows_to_table(folder_rows(source.paths[0], origin))
        else:
            table = kaldi_table(source.paths[0], origin)
        if not table.num_rows:
            raise ValueError(f"`{source.name}` is empty: it holds no recording; point to one that does.")
        return datasets.Dataset(table)

    dataset = undecoded(_open_source(source, streaming=False), source=source.name)
    # The same Arrow storage under plain features: the memory-mapped audio is neither copied nor read.
    features = Features({**dataset.features, "audio": SCHEMA["audio"]})
    dataset = datasets.Dataset(dataset.data.cast(features.arrow_schema))
    columns = schema_columns(dataset.data, origin)
    dataset = dataset.select_columns(["audio", *(key for key in extra_columns(dataset) if key not in columns)])
    for column, values in columns.items():
        dataset = dataset.add_column(column, values, feature=SCHEMA.get(column, Value("string")))
    return dataset.select_columns([*SCHEMA, *extra_columns(dataset)])


def _stream(source: Source) -> datasets.IterableDataset:
    origin = source.origin
    if source.kind == "manifest":
        head = rows_to_table(islice((row for path in source.paths for row in manifest_rows(path, origin)), 1000))
        if not head.num_rows:
            raise ValueError(f"`{source.name}` is empty: it holds no recording; point to one that does.")
        features = Features.from_arrow_schema(head.schema)
        shards = []
        for path in source.paths:
            edges = np.linspace(0, os.path.getsize(path), NUM_SHARDS + 1).astype(int).tolist()
            shards += [(path, start, end) for start, end in zip(edges, edges[1:], strict=False)]
        ranges = datasets.IterableDataset.from_generator(_line_ranges, gen_kwargs={"shards": shards})
        arguments = {"origin": origin, "schema": head.schema}
        options = {"remove_columns": ["path", "start", "end"], "batch_size": 1}
        return _mapped(ranges, _read_ranges, arguments, features=features, **options)
    if source.kind in ("folder", "kaldi", "saved"):
        dataset = _load(source)
        return dataset.to_iterable_dataset(num_shards=min(NUM_SHARDS, len(dataset)))

    dataset = undecoded(_open_source(source, streaming=True), source=source.name)
    extras = extra_columns(dataset)
    kinds = {key: Value("string") if key == "keywords" else dataset.features[key] for key in extras}
    features = Features({**SCHEMA, **kinds})
    return _mapped(dataset, to_schema, {"extras": extras, "origin": origin}, features=features, batch_size=100)


def _mapped(stream: datasets.IterableDataset, function, arguments: dict, **options) -> datasets.IterableDataset:
    """A function from table to table over a stream; Arrow gives rows several times as fast as encoding them does."""
    return stream.with_format("arrow").map(function, batched=True, fn_kwargs=arguments, **options).with_format(None)


def _line_ranges(shards: list[tuple[str, int, int]]) -> Iterator[dict]:
    """Byte ranges of manifests, small enough for their rows to be in memory together."""
    for path, first, last in shards:
        for start in range(first, last, RANGE_BYTES):
            yield {"path": path, "start": start, "end": min(start + RANGE_BYTES, last)}


def _read_ranges(ranges: pa.Table, origin: Origin, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(manifest_block(**one, origin=origin, schema=schema) for one in ranges.to_pylist())


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


def _interleaved(
    sources: list[Source],
    parts: list[datasets.IterableDataset],
    weights: Sequence[float] | dict[str, float] | None,
    seed: int,
) -> datasets.IterableDataset:
    """Streams one after another, or drawn from in the shares of `weights`."""
    if weights is None:
        return datasets.concatenate_datasets(parts)
    if isinstance(weights, dict):
        domains = [source.origin.domain for source in sources]
        if {*weights} != {*domains}:
            raise ValueError(
                f"`mix_weights` is for {', '.join(weights)} and the domains of `data` are "
                f"{', '.join(map(str, dict.fromkeys(domains)))}; give every domain its weight."
            )
        groups = {key: [part for part, of in zip(parts, domains, strict=True) if of == key] for key in weights}
        parts, weights = [datasets.concatenate_datasets(group) for group in groups.values()], list(weights.values())
    if len(weights) != len(parts) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"`mix_weights` must hold {len(parts)} weights above 0, one per source, not {weights}.")
    shares = [weight / sum(weights) for weight in weights]
    return datasets.interleave_datasets(parts, shares, seed=seed, stopping_strategy="all_exhausted")


def _told_apart(sources: list[Source], parts: list[datasets.Dataset]) -> list[datasets.Dataset]:
    """Where an id is in two domains, as of a recording and its simulated call, ids are led by their domains."""
    seen: dict[str, set[str]] = {}
    for source, part in zip(sources, parts, strict=True):
        seen.setdefault(source.origin.domain or "", set()).update(part.data.column("id").to_pylist())
    if len(set().union(*seen.values())) == sum(map(len, seen.values())):
        return parts

    def lead(part: datasets.Dataset, domain: str | None) -> datasets.Dataset:
        ids = part.data.column("id").to_pylist()
        return part.remove_columns("id").add_column("id", [f"{domain}/{key}" for key in ids]) if domain else part

    return [lead(part, source.origin.domain) for source, part in zip(sources, parts, strict=True)]


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


def _are_within(durations: list[float | None], low: float, high: float) -> list[bool]:
    return [duration is None or low <= duration <= high for duration in durations]
