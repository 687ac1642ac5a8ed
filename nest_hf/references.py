"""The texts that hypotheses are scored against, wherever they are: a data set, a file of texts, or the hypotheses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from .data import load_speech_dataset
from .data.manifests import MANIFEST_EXTENSIONS, PATH_KEYS, SCHEMA
from .hypotheses import read_hypotheses, read_utf8_lines

AUDIO_KEYS = (*PATH_KEYS, "messages", "source")  # one of which every line of a manifest has


@dataclass
class References:
    """
    Attributes:
        texts (`dict[str, str]`): By id.
        metadata (`dict[str, dict]`): Further columns by id: `audio` (a path), `duration_s`, `speaker`, `domain` ...
        untold (`set[str]`): Ids without a text, which are not scored.
    """

    texts: dict[str, str]
    metadata: dict[str, dict] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)


def read_references(source: str) -> References:
    """
    Args:
        source (`str`):
            Data as [`load_speech_dataset`] names it; or a file of texts: JSON lines with `id` and `text`, or Kaldi's
            `id text` lines, where the name ends in `.txt`. The audio is not read.

    Raises:
        ValueError: for a file that cannot be read, with the place, or without any text.
    """
    if source.endswith(".txt") or _is_text_file(source):
        rows = read_hypotheses(source)
        found = References(
            {row["id"]: row["text"] for row in rows},
            {row["id"]: {key: value for key, value in row.items() if key not in ("id", "text")} for row in rows},
        )
    else:
        if Path(source).suffix in MANIFEST_EXTENSIONS and Path(source).is_file():
            for _ in read_utf8_lines(source):  # a line of another encoding is named, which its reader does not
                pass
        found = _of_dataset(load_speech_dataset(source, name="references", need_duration=False))
    if not found.texts:
        raise ValueError(f"`references` {source} holds no text; give labelled data.")
    return found


def references_in(hypotheses: Mapping[str, Sequence[Mapping]]) -> References:
    """The `reference` that hypotheses bring with them; all systems must agree on those of one id."""
    texts: dict[str, str] = {}
    told_by: dict[str, str] = {}
    seen: set[str] = set()
    for name, rows in hypotheses.items():
        for row in rows:
            key, text = row["id"], row.get("reference")
            seen.add(key)
            if text is None:
                continue
            if texts.setdefault(key, text) != text:
                raise ValueError(
                    f"id {key!r} has the reference {texts[key]!r} in {told_by[key]} and {text!r} in {name}; give "
                    "--references."
                )
            told_by.setdefault(key, name)
    if not texts:
        raise ValueError("the hypotheses bring no `reference`; give --references.")
    return References(texts, untold=seen - texts.keys())


def _is_text_file(source: str) -> bool:
    """Whether a JSONL holds texts without audio; by its first line."""
    path = Path(source)
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    first = next(read_utf8_lines(path), None)
    if first is None:
        raise ValueError(f"`references` {source} is empty; it should hold one line per recording.")
    try:
        record = json.loads(first[1])
    except json.JSONDecodeError:
        return False  # its reader says what is wrong
    return isinstance(record, dict) and "id" in record and not any(key in record for key in AUDIO_KEYS)


def _of_dataset(rows: datasets.Dataset) -> References:
    found = References({})
    further = [name for name in rows.column_names if name not in SCHEMA]
    columns = {name: rows[name][:] for name in ("id", "text", "duration", "speaker", "domain", *further)}
    paths = rows.data.column("audio").combine_chunks().field("path").to_pylist()
    if rows._indices is not None:
        paths = [paths[index] for index in rows._indices.column(0).to_pylist()]
    for index, (key, text) in enumerate(zip(columns["id"], columns["text"], strict=True)):
        if text is None:
            found.untold.add(key)
            continue
        found.texts[key] = text
        row = {name: values[index] for name, values in columns.items() if name not in ("id", "text", "duration")}
        row |= {"duration_s": columns["duration"][index], "audio": paths[index]}
        found.metadata[key] = {name: value for name, value in row.items() if value is not None}
    return found


__all__ = ["References", "read_references", "references_in"]
