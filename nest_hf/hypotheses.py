"""Hypothesis files: one JSON line per recording, written so that a killed run loses and repeats nothing.

While a run goes on, every process appends to `<output>.part<rank>`; at the end the parts become `<output>`, in the
order of the data, and `<output>.meta.json` says what was done.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .data.audio_encoding import write_whole

HYPOTHESIS_KEYS = ("hypothesis", "pred_text", "text")  # ours and NeMo's, the first that a line has


def read_hypotheses(path: str | os.PathLike) -> list[dict]:
    """
    Reads hypotheses: JSON lines with `id` and `text` (or `pred_text`, as NeMo writes it beside the reference in
    `text`), or, where the name ends in `.txt`, Kaldi's `id text` lines.

    Returns:
        `list[dict]`: `id`, `text`, and `reference` and the other scalar columns where there are some.

    Raises:
        ValueError: for a file that is missing, empty or not UTF-8, a line of another form, and an id given twice.
    """
    rows = list(_kaldi_rows(path) if str(path).endswith(".txt") else _json_rows(path))
    if not rows:
        raise ValueError(f"{path} is empty; it should hold one line per recording.")
    first: dict[str, int] = {}
    for number, row in rows:
        if first.setdefault(row["id"], number) != number:
            raise ValueError(f"{path}: id {row['id']!r} is in lines {first[row['id']]} and {number}; keep one.")
    return [row for _, row in rows]


def read_utf8_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """
    Lines that are not blank, with their numbers from 1, of a UTF-8 file.

    Raises:
        ValueError: for a missing file, and one of another encoding; with the line, the byte, and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is no file; correct the path.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number}, byte {error.start + 1} ({line[error.start]:#04x}) is not UTF-8"
                    f"{_guess(line, path)}."
                ) from None
            if text.strip():
                yield number, text


def _guess(line: bytes, path: Path) -> str:
    for name, label in (("gb18030", "GBK"), ("big5", "Big5"), ("utf-16", "UTF-16")):
        try:
            line.decode(name)
        except UnicodeDecodeError:
            continue
        return f", it may be {label}; convert the file: iconv -f {name.upper()} -t UTF-8 {path}"
    return "; convert the file to UTF-8"


def _json_rows(path) -> Iterator[tuple[int, dict]]:
    for number, line in read_utf8_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error.msg} at column {error.colno}).") from None
        keys = [key for key in HYPOTHESIS_KEYS if isinstance(record, dict) and key in record]
        if not keys or "id" not in record:
            raise ValueError(f'{path}: line {number} lacks `id` or `text`; write {{"id": ..., "text": ...}}.')
        if not isinstance(record[keys[0]], str):
            raise ValueError(f"{path}: line {number}: `{keys[0]}` is {record[keys[0]]!r} where a string is due.")
        row = {"id": str(record.pop("id")), "text": record.pop(keys[0])}
        if len(keys) > 1 and keys[0] != "text":
            row["reference"] = record.pop("text")
        rest = {key: value for key, value in record.items() if isinstance(value, str | int | float | bool | None)}
        yield number, {**row, **rest}


def _kaldi_rows(path) -> Iterator[tuple[int, dict]]:
    for number, line in read_utf8_lines(path):
        key, *text = line.split(maxsplit=1)
        yield number, {"id": key, "text": text[0].strip() if text else ""}


def read_meta(path: str | os.PathLike) -> dict | None:
    """What `<path>.meta.json` says of hypotheses; None where there is none."""
    meta = Path(f"{path}.meta.json")
    return json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else None


class HypothesisFile:
    """
    One output of a transcription run.

    Args:
        path (`str` or `os.PathLike`): Of the JSONL file.
        settings (`dict`): What decides the hypotheses (model, decoding, data, condition). A file that is there, whole
            or begun, must have been made with the same.
        overwrite (`bool`, *optional*, defaults to `False`): Begin anew.
        rank (`int`, *optional*, defaults to 0): Of this process; only the first one may begin or finish a file.

    Attributes:
        done (`set[str]`): Ids that earlier runs have finished.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, *, overwrite: bool = False, rank: int = 0):
        self.path, self.settings, self.rank = Path(path), json.loads(json.dumps(settings)), rank
        self.meta_path = Path(f"{path}.meta.json")
        self._file = None
        self.done: set[str] = set()
        if rank == 0:
            self._begin(overwrite)

    def _begin(self, overwrite: bool) -> None:
        there = [path for path in (self.path, *self._parts()) if path.exists()]
        if overwrite:
            for path in there:
                path.unlink()
        elif there:
            meta = read_meta(self.path)
            then = {} if meta is None else meta.get("settings", {})
            differ = [key for key in self.settings.keys() | then.keys() if self.settings.get(key) != then.get(key)]
            if meta is None or differ:
                why = "has no .meta.json"
                if meta is not None:
                    why = f"was made with other settings ({_changes(differ, then, self.settings)})"
                raise ValueError(
                    f"`output` {self.path} {why}; pass --overwrite true to begin anew, or choose another file."
                )
        for path in self._parts():
            _drop_broken_end(path)
        if overwrite or not self.meta_path.exists():
            self.write_meta({"complete": False})

    def open(self) -> None:
        """
        Reads what is done and opens this process's part. All processes have to do so after the first one has made its
        object, and before any adds a row: else they would not agree on what is done.
        """
        for path in (self.path, *self._parts()):
            if path.exists():
                self.done |= {json.loads(line)["id"] for _, line in read_utf8_lines(path)}
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("a", encoding="utf-8")

    @property
    def is_complete(self) -> bool:
        """Whether a run has finished and nothing was added since."""
        meta = read_meta(self.path)
        return bool(meta and meta.get("complete")) and not any(path.stat().st_size for path in self._parts())

    @property
    def _part(self) -> Path:
        return Path(f"{self.path}.part{self.rank}")

    def _parts(self) -> list[Path]:
        parts = self.path.parent.glob(f"{self.path.name}.part*") if self.path.parent.is_dir() else ()
        return sorted(path for path in parts if path.name.rpartition(".part")[2].isdigit())

    def add(self, rows: Sequence[dict]) -> None:
        """Appends rows in one write, so that a kill leaves at most the last of them broken."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def finish(self, order: Sequence[str]) -> list[dict]:
        """
        Joins the parts, in the order of `order`, and deletes them. Only the first process, when all have closed.

        Returns:
            `list[dict]`: All rows; those with `skipped` are not in the file, since they have no text.
        """
        rows: dict[str, dict] = {}
        for path in (self.path, *self._parts()):
            if path.exists():
                rows |= {row["id"]: row for row in (json.loads(line) for _, line in read_utf8_lines(path))}
        position = {key: index for index, key in enumerate(order)}
        together = sorted(rows.values(), key=lambda row: position.get(row["id"], len(position)))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in together if "skipped" not in row]
        write_whole(self.path, "".join(lines).encode())
        for part in self._parts():
            part.unlink()
        return together

    def write_meta(self, facts: dict) -> None:
        """Writes `<output>.meta.json`: the settings and `facts`."""
        text = json.dumps({"settings": self.settings, **facts}, ensure_ascii=False, indent=1)
        write_whole(self.meta_path, (text + "\n").encode())


def _drop_broken_end(path: Path) -> None:
    """Cuts off a last line that a kill has left without its end."""
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _changes(keys: Sequence[str], then: dict, now: dict) -> str:
    shown = [f"`{key}` {then.get(key)!r} then, {now.get(key)!r} now" for key in sorted(keys)[:2]]
    return "; ".join(text if len(text) < 200 else text[:200] + "..." for text in shown)


__all__ = ["HypothesisFile", "read_hypotheses", "read_meta", "read_utf8_lines"]
