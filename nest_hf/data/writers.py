"""Manifests that NeMo and FunASR read, written whole or not at all."""

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

from .audio import audio_duration
from .funasr import PROMPT, SYSTEM, num_fbank_frames, to_messages
from .manifests import SCHEMA

WHOLE_FILE_S = 0.02  # a recording counts as whole where its length and the row's differ by less


def write_nemo_manifest(rows: Iterable[dict], path: str | os.PathLike, *, overwrite: bool = False) -> int:
    """
    Writes rows as a NeMo manifest: `audio_filepath`, `offset`, `duration`, `text`, `id`, `speaker`, `domain` and the
    further simple columns, what is None left out.

    Paths in a subfolder beside the manifest become relative, so that both can be moved together; others are absolute
    (NeMo takes a bare file name for one in the current folder).

    Args:
        rows (`Iterable[dict]`): Rows of [`load_speech_dataset`], plain or streamed, whose audio is in files.
        path (`str` or `os.PathLike`): Of the manifest.
        overwrite (`bool`, *optional*, defaults to `False`): Replace a file that is there.

    Returns:
        `int`: The number of rows.

    Raises:
        FileExistsError: if `path` is there and `overwrite` is off.
        ValueError: for a row whose audio is no file, with its id.
    """
    folder = os.path.join(os.path.dirname(os.path.abspath(path)), "")
    count = 0
    with whole_file(path, overwrite=overwrite) as file:
        for row in rows:
            where = _file_of(row)
            inside = where.removeprefix(folder)
            offset, duration = row.get("offset") or 0.0, row.get("duration")
            record = {
                "audio_filepath": inside if os.sep in inside else where,
                "offset": offset,
                "duration": audio_duration(where) - offset if duration is None else duration,
                "text": row.get("text"),
            }
            _write_line(file, record | _columns(row, ("id", "speaker", "domain")))
            count += 1
    return count


def write_chatml_manifest(
    rows: Iterable[dict],
    path: str | os.PathLike,
    *,
    system: str = SYSTEM,
    prompt: str = PROMPT,
    tokenize: Callable[[str], list] | None = None,
    overwrite: bool = False,
) -> int:
    """
    Writes rows as FunASR's ChatML JSONL: `messages`, `speech_length`, `text_length`, `key` (the id), `speaker`,
    `domain` and the further simple columns, what is None left out. Paths are absolute.

    FunASR reads whole files, so a row that is a piece of a longer recording is refused.

    Args:
        rows (`Iterable[dict]`): Rows of [`load_speech_dataset`], plain or streamed, whose audio is in files.
        path (`str` or `os.PathLike`): Of the manifest.
        system, prompt (`str`, *optional*): Turns before the audio; a row's own `system` and `prompt` win.
        tokenize (`Callable`, *optional*):
            From a text to its tokens; `text_length` is then their number, as FunASR's own tool counts with the
            tokenizer of its language model. Without, it is the number of characters.
        overwrite (`bool`, *optional*, defaults to `False`): Replace a file that is there.

    `speech_length` is FunASR's number of fbank frames (25 ms, one every 10 ms), measured from the file's header.

    Returns:
        `int`: The number of rows.

    Raises:
        FileExistsError: if `path` is there and `overwrite` is off.
        AudioError: if a header cannot be read.
        ValueError: for a row whose audio is no file, or a piece of one, with its id.
    """
    count = 0
    with whole_file(path, overwrite=overwrite) as file:
        for row in rows:
            where, text = _file_of(row), row.get("text")
            total = audio_duration(where)
            if row.get("offset") or abs(total - (row.get("duration") or total)) > WHOLE_FILE_S:
                raise ValueError(
                    f"row {row['id']!r} is a piece of `{where}`, and FunASR reads whole files; write the pieces first."
                )
            own_system, own_prompt = row.get("system"), row.get("prompt")
            record = {
                "messages": to_messages(
                    where,
                    text,
                    system=system if own_system is None else own_system,
                    prompt=prompt if own_prompt is None else own_prompt,
                ),
                "speech_length": num_fbank_frames(total),
                "text_length": len(tokenize(text) if tokenize else text) if text else 0,
                "key": row["id"],
            }
            columns = _columns(row, ("speaker", "domain"))
            _write_line(file, record | {k: v for k, v in columns.items() if k not in ("system", "prompt")})
            count += 1
    return count


@contextmanager
def whole_file(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[TextIO]:
    """
    A text file that appears under its name when all of it is written and on the disk; after an error nothing is left,
    and what a killed process left of it goes when the file is written again.

    Args:
        path (`str` or `os.PathLike`): Of the file; its folder is made where it is missing.
        overwrite (`bool`, *optional*, defaults to `False`): Replace a file that is there, at the end, in one step.
    """
    path = os.path.abspath(path)
    _refuse_existing(path, overwrite)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove_remains(Path(path))
    partial = f"{path}.{os.getpid()}.incomplete"
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _remove_remains(path: Path) -> None:
    """What processes that are no more left of this file; another process that writes it now keeps its own."""
    for remains in path.parent.glob(f"{glob.escape(path.name)}.*.incomplete"):
        pid = remains.suffixes[-2][1:]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            remains.unlink(missing_ok=True)


def _refuse_existing(path: str, overwrite: bool) -> None:
    if not overwrite and os.path.exists(path):
        raise FileExistsError(f"`{path}` exists; choose another name, or pass `overwrite=True`.")


def _file_of(row: dict) -> str:
    """The absolute path of a row's recording."""
    audio = row["audio"]
    if audio.get("bytes") is not None or not audio.get("path"):
        raise ValueError(f"the audio of row {row['id']!r} is not in a file of its own; write it to one first.")
    return os.path.abspath(audio["path"])


def _columns(row: dict, names: tuple[str, ...]) -> dict:
    """These columns, and those beyond the schema that JSON can hold."""
    extras = [key for key, value in row.items() if key not in SCHEMA and isinstance(value, str | int | float)]
    return {key: row.get(key) for key in (*names, *extras)}


def _write_line(file: TextIO, record: dict) -> None:
    present = {key: value for key, value in record.items() if value is not None}
    file.write(json.dumps(present, ensure_ascii=False, allow_nan=False) + "\n")
