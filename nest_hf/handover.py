"""The hand-over between stages: what a model folder holds, down to every tensor, and where the next stage finds it.

A stage that is complete has a `stage.json`, written last. It lists a SHA-256 of every tensor and of every file that
decides what the model does (configuration, processor, tokenizers); [`verify`] compares the folder with it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from .data.audio_encoding import write_whole

RECORD = "stage.json"
# files beside the weights that change what a model says
FILES = (
    "config.json",
    "generation_config.json",
    "*processor*.json",
    "*token*",
    "vocab*",
    "merges*",
    "*chat_template*",
)
WRITTEN_BY_RUN = ("trainer_state.json",)


@dataclass(frozen=True)
class Fingerprint:
    """
    What identifies a model folder.

    Attributes:
        tensors (`dict[str, str]`): SHA-256 of every tensor: type, shape and bytes.
        files (`dict[str, str]`): SHA-256 of the files of configuration, processor and tokenizers.
    """

    tensors: dict[str, str]
    files: dict[str, str]

    @property
    def sha256(self) -> str:
        """One SHA-256 over all of them."""
        lines = [f"{kind} {name} {value}" for kind in ("tensors", "files") for name, value in self._sorted(kind)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _sorted(self, kind: str):
        return sorted(getattr(self, kind).items())

    def to_dict(self) -> dict:
        return {"sha256": self.sha256, "tensors": self.tensors, "files": self.files}


def fingerprint(folder: str | Path) -> Fingerprint:
    """
    Reads a model folder with weights in safetensors, whole, in shards, or as an adapter.

    Raises:
        ValueError: where there are no weights.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors: it is no model folder; give that of a whole model.")
    tensors = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            tensors.update({name: _sha256_of(file.get_tensor(name)) for name in file.keys()})
    found = {path for pattern in FILES for path in folder.rglob(pattern) if path.is_file()}
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.relative_to(folder).parts[0] not in WRITTEN_BY_RUN and not _is_of_run(path.relative_to(folder))
    }
    return Fingerprint(tensors, dict(sorted(files.items())))


def _is_of_run(path: Path) -> bool:
    """Whether a file lies in a folder that training fills: checkpoints, kept weights, logs."""
    return len(path.parts) > 1 and (path.parts[0].startswith("checkpoint-") or path.parts[0] in ("best", "adapter"))


def _sha256_of(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_record(folder: str | Path, **fields) -> dict:
    """Writes `stage.json` of a folder that is complete otherwise, with its fingerprint and `fields`."""
    record = {**fields, **fingerprint(folder).to_dict()}
    text = json.dumps(record, ensure_ascii=False, indent=1, default=str)
    write_whole(Path(folder, RECORD), text.encode())
    return record


def read_record(folder: str | Path) -> dict | None:
    """The record of a complete stage; None where it is not complete, or was made otherwise."""
    path = Path(folder, RECORD)
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the stage has to be trained again.") from error


def verify(folder: str | Path) -> Fingerprint:
    """
    The fingerprint of a model folder, which must be what its `stage.json`, if there is one, says.

    Raises:
        ValueError: for tensors or files that were changed, removed, renamed or added since; each with its own message.
    """
    now, record = fingerprint(folder), read_record(folder)
    if record is None:
        return now
    by = f"{folder} is not what stage `{record.get('stage')}` wrote"
    remedy = "restore the folder, or train the stage again"
    then = record["tensors"]
    lost, new = sorted(then.keys() - now.tensors.keys()), sorted(now.tensors.keys() - then.keys())
    for old in lost:
        if same := [name for name in new if now.tensors[name] == then[old]]:
            raise ValueError(f"{by}: tensor `{old}` was renamed to `{same[0]}`; {remedy}.")
    if lost:
        raise ValueError(f"{by}: {len(lost)} tensors are missing, such as `{lost[0]}`; {remedy}.")
    if new:
        raise ValueError(f"{by}: {len(new)} tensors were added, such as `{new[0]}`; {remedy}.")
    if changed := sorted(name for name in then if then[name] != now.tensors[name]):
        raise ValueError(f"{by}: {len(changed)} tensors were changed, such as `{changed[0]}`; {remedy}.")
    for name in sorted(record["files"].keys() | now.files.keys()):
        if record["files"].get(name) != now.files.get(name):
            what = "is missing" if name not in now.files else "was added" if name not in record["files"] else "changed"
            raise ValueError(f"{by}: {name} {what}; {remedy}.")
    return now


# --- pointers -----------------------------------------------------------------------------------------------------


def write_pointer(path: str | Path, folder: str | Path) -> None:
    """Writes the path of a model folder, relative to the pointer's own folder, so that the whole may be moved."""
    path = Path(path)
    relative = os.path.relpath(folder, path.parent)
    write_whole(path, (Path(relative).as_posix() + "\n").encode())


def follow_pointer(source: str | Path) -> str:
    """The folder that a pointer file (`final_checkpoint.txt`) names; anything else is returned as it is."""
    path = Path(source)
    if path.suffix != ".txt" or not path.is_file():
        return str(source)
    lines = path.read_text(encoding="utf-8").split("\n")
    folder = path.parent / lines[0].strip()
    if not lines[0].strip() or not folder.is_dir():
        raise ValueError(f"{path} names {lines[0].strip()!r}, which is no folder beside it; run its stage again.")
    return str(folder)


__all__ = ["Fingerprint", "fingerprint", "follow_pointer", "read_record", "verify", "write_pointer", "write_record"]
