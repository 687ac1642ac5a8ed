"""Sources by name: manifests, Kaldi folders, folders of audio, parquet, saved datasets and Hub ids, told apart."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .manifests import MANIFEST_EXTENSIONS, Origin


@dataclass(frozen=True)
class Source:
    """
    One source.

    Attributes:
        name (`str`): as given, without its domain.
        kind (`str`): `"manifest"`, `"kaldi"`, `"folder"`, `"parquet"`, `"parquet folder"`, `"saved"` or `"hub"`.
        paths (`tuple[str, ...]`): of its files, or its folder, or the Hub id.
        split (`str`): of sources that have several.
        origin (`Origin`): what its rows have in common.
    """

    name: str
    kind: str
    paths: tuple[str, ...]
    split: str
    origin: Origin

    def __str__(self) -> str:
        return self.name if self.origin.domain is None else f"{self.origin.domain}={self.name}"


def find_sources(data: str | os.PathLike | list | dict, *, split: str = "train") -> list[Source]:
    """Finds out what each source is, and its domain where one is given; what is not there is an error."""
    named = list(_named(data))
    if not named:
        raise ValueError("`data` names no source; give a manifest, a folder, parquet or a Hub id.")
    # Two folders may both hold 1.wav: with several sources the ids that are made begin with the source's own name.
    labels = [Path(name).stem for _, name in named]
    if len(set(labels)) < len(labels):
        labels = [name for _, name in named]
    prefixes = [f"{label}/" if len(named) > 1 else "" for label in labels]
    return [
        Source(name, *_kind_and_paths(name), split, Origin(name, prefix, domain))
        for (domain, name), prefix in zip(named, prefixes, strict=True)
    ]


def _named(data: str | os.PathLike | list | dict, domain: str | None = None) -> Iterator[tuple[str | None, str]]:
    """(domain, name) of every source in a mapping from domains, a list, or a string of several."""
    if isinstance(data, dict):
        for key, items in data.items():
            yield from _named(items, str(key))
    elif isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        for part in [text] if os.path.exists(text) else text.split(","):
            given = re.match(r"([\w-]+)=", part.strip())
            if given and domain is None and not os.path.exists(part) and not glob.glob(part):
                yield given[1], part.strip()[given.end() :].strip()
            elif part.strip():
                yield domain, part.strip()
    else:
        for item in data:
            yield from _named(item, domain)


def _kind_and_paths(name: str) -> tuple[str, tuple[str, ...]]:
    if os.path.isdir(name):
        if any(os.path.exists(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
            return "saved", (name,)
        if os.path.exists(os.path.join(name, "wav.scp")):
            return "kaldi", (name,)
        has_parquet = next(Path(name).rglob("*.parquet"), None) is not None
        return "parquet folder" if has_parquet else "folder", (name,)
    extension = Path(name).suffix.lower()
    if extension in (*MANIFEST_EXTENSIONS, ".parquet"):
        paths = (name,) if os.path.isfile(name) else tuple(sorted(glob.glob(name, recursive=True)))
        if not paths:
            raise FileNotFoundError(f"`{name}` does not exist; correct the path.")
        return "parquet" if extension == ".parquet" else "manifest", paths
    if os.path.exists(name):
        hint = "; of Kaldi data give the folder" if extension == ".scp" else ""
        raise ValueError(f"`{name}` is no manifest ({', '.join(MANIFEST_EXTENSIONS)}), no .parquet, no folder{hint}.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]*){0,2}", name):
        raise FileNotFoundError(f"`{name}` does not exist, and is no name for a Hub dataset; correct the path.")
    return "hub", (name,)
