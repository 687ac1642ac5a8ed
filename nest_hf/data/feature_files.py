"""Files of features: safetensors, parquet, or a folder of shards that an interrupted run goes on filling.

Each writer has `add(id, layer -> (frames, D))`, `close()`, and `done`, the ids that are there already.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

PIECE_BYTES = 2**26  # of a shard, or of a row group of parquet


def open_features(output: str, facts: dict[str, str], *, overwrite: bool = False):
    """
    The writer for `output`.

    Args:
        output (`str`): `x.safetensors`, `x.parquet`, or a folder.
        facts (`dict[str, str]`): How the features are made, kept with them; `dtype` among it. A folder that was begun
            with other facts is refused.
        overwrite (`bool`, *optional*, defaults to `False`): Replace an output instead of refusing it, or going on.
    """
    path = Path(output)
    if path.suffix not in (".safetensors", ".parquet"):
        if path.is_file():
            raise ValueError(f"`output` {path} is a file; name x.safetensors, x.parquet or a folder.")
        return ShardFolder(path, facts, overwrite=overwrite)
    if path.is_dir():
        raise ValueError(f"`output` {path} is a folder; name a file, or a folder without this ending.")
    if path.exists() and not overwrite:
        raise ValueError(f"`output` {path} exists already; choose another name, or pass --overwrite true.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return (SafetensorsFile if path.suffix == ".safetensors" else ParquetFile)(path, facts)


class SafetensorsFile:
    """A tensor per recording and layer, `id/layer`, or `id` where there is one; in memory until the end."""

    def __init__(self, path: Path, facts: dict[str, str]):
        self.path, self.facts, self.done = path, facts, set()
        self.tensors: dict[str, torch.Tensor] = {}

    def add(self, key: str, features: dict[str, torch.Tensor]) -> None:
        self.tensors |= _named(key, features)

    def close(self) -> None:
        _save_whole(self.path, self.tensors, self.facts)


class ParquetFile:
    """A row per recording and layer (id, layer, frames, dim, features), in row groups of about `PIECE_BYTES`."""

    def __init__(self, path: Path, facts: dict[str, str]):
        value = {"float32": pa.float32(), "float16": pa.float16()}[facts["dtype"]]
        columns = {"id": pa.string(), "layer": pa.string(), "frames": pa.int32(), "dim": pa.int32()}
        self.schema = pa.schema({**columns, "features": pa.large_list(value)}, metadata=facts)
        self.path, self.partial, self.done = path, _incomplete(path), set()
        self.file = pq.ParquetWriter(self.partial, self.schema)
        self.rows, self.num_bytes = [], 0

    def add(self, key: str, features: dict[str, torch.Tensor]) -> None:
        for layer, x in features.items():
            values = x.flatten().numpy()  # (frames, D) -> (frames * D,)
            self.rows.append(dict(zip(self.schema.names, (key, layer, *x.shape, values), strict=True)))
            self.num_bytes += values.nbytes
        if self.num_bytes >= PIECE_BYTES:
            self._write()

    def _write(self) -> None:
        self.file.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows, self.num_bytes = [], 0

    def close(self) -> None:
        if self.rows:
            self._write()
        self.file.close()
        os.replace(self.partial, self.path)


class ShardFolder:
    """
    Safetensors of about `PIECE_BYTES`, named as in [`SafetensorsFile`], with `index.jsonl` (id, frames, file) and
    `extraction.json`. A recording is done once its line is in the index, which comes after its shard is whole.
    """

    def __init__(self, path: Path, facts: dict[str, str], *, overwrite: bool):
        self.path, self.facts = path, facts
        self.tensors, self.lines, self.num_bytes = {}, [], 0
        path.mkdir(parents=True, exist_ok=True)
        index, description = path / "index.jsonl", path / "extraction.json"
        if not description.exists() and any(path.iterdir()):
            raise ValueError(f"`output` {path} holds other files; choose a new folder.")
        if overwrite:
            for file in [index, *path.glob("features-*.safetensors")]:
                file.unlink(missing_ok=True)
        elif description.exists() and (before := json.loads(description.read_text())) != facts:
            changed = ", ".join(f"{key} {before.get(key)}" for key in facts if before.get(key) != facts[key])
            raise ValueError(f"`output` {path} was begun with {changed}; go on with that, or pass --overwrite true.")
        description.write_text(json.dumps(facts, indent=2))
        lines = index.read_text(encoding="utf-8").splitlines(keepends=True) if index.exists() else []
        if lines and not lines[-1].endswith("\n"):  # the process was killed while it wrote
            index.write_text("".join(lines := lines[:-1]), encoding="utf-8")
        records = [json.loads(line) for line in lines]
        self.done = {record["id"] for record in records}
        self.num_shards = len({record["file"] for record in records})

    def add(self, key: str, features: dict[str, torch.Tensor]) -> None:
        self.tensors |= _named(key, features)
        self.lines.append({"id": key, "frames": len(next(iter(features.values())))})
        self.num_bytes += sum(x.nbytes for x in features.values())
        if self.num_bytes >= PIECE_BYTES:
            self._write()

    def _write(self) -> None:
        name = f"features-{self.num_shards:05d}.safetensors"
        _save_whole(self.path / name, self.tensors, self.facts)
        with open(self.path / "index.jsonl", "a", encoding="utf-8") as index:
            index.write("".join(json.dumps({**line, "file": name}) + "\n" for line in self.lines))
        self.num_shards += 1
        self.tensors, self.lines, self.num_bytes = {}, [], 0

    def close(self) -> None:
        if self.lines:
            self._write()


def _named(key: str, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key if len(features) == 1 else f"{key}/{layer}": x for layer, x in features.items()}


def _incomplete(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")


def _save_whole(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Writes under a temporary name and renames: a file that is there is whole."""
    save_file(tensors, _incomplete(path), facts)
    os.replace(_incomplete(path), path)
