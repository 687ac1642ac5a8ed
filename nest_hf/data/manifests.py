"""Manifests and folders of audio: their lines become rows of one schema, and the rows an Arrow table."""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Features, Value

from .audio import AUDIO_EXTENSIONS

# Plain values instead of `datasets.Audio`: the same Arrow storage, and nothing can decode it behind our back.
SCHEMA = Features(
    {
        "id": Value("string"),
        "audio": {"bytes": Value("binary"), "path": Value("string")},
        "offset": Value("float64"),
        "duration": Value("float64"),
        "text": Value("string"),
        "speaker": Value("string"),
        "source": Value("string"),
    }
)
MANIFEST_EXTENSIONS = (".json", ".jsonl", ".manifest")
PATH_KEYS = ("audio_filepath", "audio_filename", "file_name")
# Columns of well-known Hub datasets (Common Voice, FLEURS, VoxPopuli) that hold what we call `text` and `speaker`.
ALIASES = {
    "text": ("text", "sentence", "transcription", "transcript"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
RESERVED = {*SCHEMA, *PATH_KEYS, *(alias for names in ALIASES.values() for alias in names)}
JSON_TYPES = {"string": str | None, "bool": bool | None, "int64": int | None, "float64": int | float | None}
CHUNK_ROWS = 50_000


def made_id(path: str, offset: float, prefix: str) -> str:
    """The id of a row that has none: where its audio is, so the same for any order or selection of rows."""
    return f"{prefix}{path}@{offset}" if offset else f"{prefix}{path}"


def _row(record: dict, folder: str, source: str, prefix: str) -> dict:
    """One row of the schema from a manifest's record; a ValueError says what is wrong with it."""
    path = next((record[key] for key in PATH_KEYS if record.get(key)), None)
    if not isinstance(path, str):
        raise ValueError("has no `audio_filepath`")
    if not isinstance(record.get("text"), str | None):
        raise ValueError(f"`text` is {record['text']!r} where a string is due")
    offset, duration = _seconds(record, "offset") or 0.0, _seconds(record, "duration")
    given, speaker = record.get("id"), record.get("speaker")
    return {
        **{key: value for key, value in record.items() if key not in RESERVED},
        "id": made_id(path.removeprefix(folder + os.sep), offset, prefix) if given is None else str(given),
        "audio": {"bytes": None, "path": os.path.join(folder, os.path.expanduser(path))},
        "offset": offset,
        "duration": duration,
        "text": record.get("text"),
        "speaker": None if speaker is None else str(speaker),
        "source": source,
    }


def _seconds(record: dict, key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{key}` is {value!r} where seconds, 0 or more, are due")
    return float(value)


def manifest_rows(
    path: str,
    *,
    source: str,
    prefix: str,
    start: int = 0,
    end: float = math.inf,
    extra_types: dict[str, str] | None = None,
) -> Iterator[dict]:
    """Rows of the lines that begin in the bytes `start` to `end`; errors name file, line and text."""
    folder = os.path.dirname(os.path.abspath(path))
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the line that the range before ends with
        position = file.tell()
        for line in file:
            if position >= end:
                return
            try:
                if line.strip():
                    yield _checked_row(line, folder, source, prefix, extra_types or {})
            except ValueError as error:
                number = Path(path).read_bytes()[:position].count(b"\n") + 1
                text = line.decode("utf-8", "replace").strip()
                text = text if len(text) <= 120 else text[:117] + "..."
                raise ValueError(f"{path}:{number} {error}; correct or delete the line: {text}") from error
            position += len(line)


def _checked_row(line: bytes, folder: str, source: str, prefix: str, extra_types: dict[str, str]) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError("is not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("is no JSON object")
    row = _row(record, folder, source, prefix)
    for key, dtype in extra_types.items():
        if not isinstance(row.get(key), JSON_TYPES[dtype]):
            raise ValueError(f"`{key}` is {row[key]!r} where {dtype} was found before")
    return row


def folder_rows(folder: str, *, source: str, prefix: str) -> Iterator[dict]:
    """Rows of a folder's metadata file in its order, then of the recordings that it does not list, by path."""
    folder = os.path.abspath(folder)
    unlisted = {
        os.path.join(root, file)
        for root, _, files in os.walk(folder)
        for file in files
        if os.path.splitext(file)[1].lower() in AUDIO_EXTENSIONS
    }
    for metadata, read in (("metadata.jsonl", manifest_rows), ("metadata.csv", _csv_rows)):
        metadata = os.path.join(folder, metadata)
        if os.path.exists(metadata):
            for row in read(metadata, source=source, prefix=prefix):
                path = os.path.normpath(row["audio"]["path"])
                if path not in unlisted and not os.path.exists(path):
                    raise FileNotFoundError(f"{metadata} lists `{path}`, which does not exist; correct or delete it.")
                unlisted.discard(path)
                yield row
    for path in sorted(unlisted):
        yield _row({"file_name": path}, folder, source, prefix)


def _csv_rows(path: str, *, source: str, prefix: str) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            try:
                for key in ("duration", "offset"):
                    if key in record:
                        record[key] = float(record[key]) if record[key] else None
                yield _row(record, os.path.dirname(path), source, prefix)
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num} {error}; correct or delete the line.") from error


def rows_to_table(rows: Iterable[dict]) -> pa.Table:
    """Rows as Arrow, chunk by chunk; columns beyond the schema stay where they are scalars of one type."""
    rows, tables, types = iter(rows), [], {}
    while chunk := list(islice(rows, CHUNK_ROWS)):
        columns = {key: pa.array([row[key] for row in chunk], SCHEMA.arrow_schema.field(key).type) for key in SCHEMA}
        for key in dict.fromkeys(key for row in chunk for key in row if key not in SCHEMA):
            try:
                columns[key] = pa.array([row.get(key) for row in chunk])
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                types.setdefault(key, set()).add("mixed")
                continue
            dtype = columns[key].type
            types.setdefault(key, set()).add("number" if dtype in (pa.int64(), pa.float64()) else str(dtype))
        tables.append(pa.table(columns))
    keep = [
        key for key, found in types.items() if len(found - {"null"}) == 1 and found <= {*JSON_TYPES, "number", "null"}
    ]
    keep = [*SCHEMA, *keep]
    tables = [table.select([key for key in keep if key in table.column_names]) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive") if tables else SCHEMA.arrow_schema.empty_table()
