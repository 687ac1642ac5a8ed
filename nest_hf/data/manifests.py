"""Manifests and folders of audio: their lines become rows of one schema."""

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import Features, Value

from .audio import AUDIO_EXTENSIONS
from .funasr import from_funasr, is_funasr

# Plain values instead of `datasets.Audio`: the same Arrow storage, and nothing can decode it behind our back.
SCHEMA = Features(
    {
        "id": Value("string"),
        "audio": {"bytes": Value("binary"), "path": Value("string")},
        "offset": Value("float64"),
        "duration": Value("float64"),
        "text": Value("string"),
        "speaker": Value("string"),
        "domain": Value("string"),
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
RESERVED = frozenset((*SCHEMA, *PATH_KEYS, *(alias for names in ALIASES.values() for alias in names)))
WORD_SEPARATOR = ", "  # of `keywords`, a list or text in a source, and text in a row
JSON_TYPES = {"string": str | None, "bool": bool | None, "int64": int | None, "float64": int | float | None}


class Origin(NamedTuple):
    """What the rows of a source have in common: its name, how made ids begin, and the domain of rows without one."""

    source: str
    prefix: str = ""
    domain: str | None = None


def made_id(path: str, offset: float, prefix: str) -> str:
    """The id of a row that has none: where its audio is, so the same for any order or selection of rows."""
    return f"{prefix}{path}@{offset}" if offset else f"{prefix}{path}"


def manifest_row(record: dict, folder: str, origin: Origin) -> dict:
    """One row of the schema from a manifest's record; a ValueError says what is wrong with it."""
    path = record.get("audio_filepath") or record.get("audio_filename") or record.get("file_name")
    if path is None and is_funasr(record):
        record = from_funasr(record)
        path = record["audio_filepath"]
    if not isinstance(path, str) or not path:
        raise ValueError("has no `audio_filepath`")
    if "://" in path:
        raise ValueError("names a URL where a file is due; download it first")
    text, given, speaker, domain = record.get("text"), record.get("id"), record.get("speaker"), record.get("domain")
    if not isinstance(text, str | None):
        raise ValueError(f"`text` is {text!r} where a string is due")
    offset, duration = record.get("offset"), record.get("duration")
    offset = 0.0 if offset is None else _seconds("offset", offset)
    if given is None:
        given = made_id(path.removeprefix(folder), offset, origin.prefix)
    row = {
        "id": str(given),
        "audio": {"bytes": None, "path": resolved(path, folder)},
        "offset": offset,
        "duration": None if duration is None else _seconds("duration", duration),
        "text": text,
        "speaker": None if speaker is None else str(speaker),
        "domain": origin.domain if domain is None else str(domain),
        "source": origin.source,
    }
    for key in record:
        if key not in RESERVED:
            row[key] = record[key]
    if isinstance(words := row.get("keywords"), list):
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"`keywords` is {words!r} where a list of words is due")
        row["keywords"] = WORD_SEPARATOR.join(words)
    return row


def resolved(path: str, folder: str) -> str:
    """A path as seen from `folder`, which ends with a separator."""
    if path[0] == "~":
        path = os.path.expanduser(path)
    return path if os.path.isabs(path) else folder + path


def _seconds(key: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{key}` is {value!r} where seconds, 0 or more, are due")
    return float(value)


def manifest_rows(
    path: str,
    origin: Origin,
    *,
    start: int = 0,
    end: float = math.inf,
    extra_types: dict[str, str] | None = None,
) -> Iterator[dict]:
    """Rows of the lines that begin in the bytes `start` to `end`; errors name file, line and text."""
    folder = os.path.join(os.path.dirname(os.path.abspath(path)), "")
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the line that the range before ends with
        position = file.tell()
        for line in file:
            if position >= end:
                return
            try:
                if not line.isspace():
                    row = manifest_row(_json_object(line), folder, origin)
                    if extra_types:
                        _check_types(row, extra_types)
                    yield row
            except ValueError as error:
                number = Path(path).read_bytes()[:position].count(b"\n") + 1
                text = line.decode("utf-8", "replace").strip()
                text = text if len(text) <= 120 else text[:117] + "..."
                raise ValueError(f"{path}:{number} {error}; correct or delete the line: {text}") from error
            position += len(line)


def _json_object(line: bytes) -> dict:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError("is not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("is no JSON object")
    return record


def _check_types(row: dict, extra_types: dict[str, str]) -> None:
    for key, dtype in extra_types.items():
        if not isinstance(row.get(key), JSON_TYPES[dtype]):
            raise ValueError(f"`{key}` is {row[key]!r} where {dtype} was found before")


def folder_rows(folder: str, origin: Origin) -> Iterator[dict]:
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
            for row in read(metadata, origin):
                path = os.path.normpath(row["audio"]["path"])
                if path not in unlisted and not os.path.exists(path):
                    raise FileNotFoundError(f"{metadata} lists `{path}`, which does not exist; correct or delete it.")
                unlisted.discard(path)
                yield row
    for path in sorted(unlisted):
        yield manifest_row({"file_name": path}, os.path.join(folder, ""), origin)


def _csv_rows(path: str, origin: Origin) -> Iterator[dict]:
    folder = os.path.join(os.path.dirname(path), "")
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            try:
                for key in ("duration", "offset"):
                    if key in record:
                        record[key] = float(record[key]) if record[key] else None
                yield manifest_row(record, folder, origin)
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num} {error}; correct or delete the line.") from error
