"""Kaldi's data folders: `wav.scp`, and where they are there `text`, `segments`, `utt2spk`, `utt2dur`."""

import logging
import os
import re

import pyarrow as pa

from .manifests import SCHEMA, Origin, resolved

logger = logging.getLogger(__name__)

ARCHIVE = re.compile(r"\.ark(:\d+)?(\[.*\])?$")


def kaldi_table(folder: str, origin: Origin) -> pa.Table:
    """
    The rows of a data folder, one per utterance (per recording where there are no `segments`), in Kaldi's order.

    Raises:
        ValueError: with file and line, for a pipe (never run), an archive, a key given twice or a line in disorder.
    """
    folder = os.path.join(os.path.abspath(folder), "")
    scp = os.path.join(folder, "wav.scp")
    recordings = {key: _audio_path(path, folder, f"{scp}:{n}") for key, (path, n) in _entries(scp).items()}
    texts, speakers, lengths = (_values(folder + name) for name in ("text", "utt2spk", "utt2dur"))
    segments = folder + "segments"
    if os.path.exists(segments):
        pieces = {key: _piece(rest, recordings, f"{segments}:{n}") for key, (rest, n) in _entries(segments).items()}
        ids, (paths, starts, durations) = list(pieces), zip(*pieces.values(), strict=True) if pieces else ((), (), ())
    else:
        ids, paths, starts = list(recordings), list(recordings.values()), [0.0] * len(recordings)
        durations = [None] * len(ids)
    durations = [
        _number(lengths[key], f"{folder}utt2dur: {key}") if duration is None and key in lengths else duration
        for key, duration in zip(ids, durations, strict=True)
    ]
    if texts:
        _say_mismatch(folder, ids, texts)
    columns = {
        "id": ids,
        "audio": [{"bytes": None, "path": path} for path in paths],
        "offset": starts,
        "duration": durations,
        "text": [texts.get(key) for key in ids],
        "speaker": [speakers.get(key) for key in ids],
        "domain": [origin.domain] * len(ids),
        "source": [origin.source] * len(ids),
    }
    return pa.table(columns, schema=SCHEMA.arrow_schema)


def _entries(path: str) -> dict[str, tuple[str, int]]:
    """Key -> (what follows it, number of the line)."""
    entries: dict[str, tuple[str, int]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            key, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
            if key in entries:
                raise ValueError(f"{path}:{number} gives `{key}` again, as line {entries[key][1]} does; delete one.")
            if key:
                entries[key] = rest.strip(), number
    return entries


def _values(path: str) -> dict[str, str]:
    return {key: value for key, (value, _) in _entries(path).items()} if os.path.exists(path) else {}


def _audio_path(entry: str, folder: str, where: str) -> str:
    if entry.endswith("|") or entry.startswith("|"):
        raise ValueError(f"{where} is a command, which is never run: {entry[:120]}; write its audio to a file first.")
    if not entry or ARCHIVE.search(entry) or "://" in entry:
        raise ValueError(f"{where} names no audio file: {entry[:120]!r}; write the audio to a file of its own first.")
    return resolved(entry, folder)


def _piece(rest: str, recordings: dict[str, str], where: str) -> tuple[str, float, float | None]:
    """Path, start and duration of a line of `segments`; an end of -1 is the recording's."""
    parts = rest.split()
    if len(parts) != 3:
        raise ValueError(f"{where} is not `utterance recording start end`; correct or delete it.")
    if parts[0] not in recordings:
        raise ValueError(f"{where} names the recording `{parts[0]}`, which wav.scp has not; correct or delete it.")
    start = _number(parts[1], where)
    if parts[2] in ("-1", "-1.0"):
        return recordings[parts[0]], start, None
    end = _number(parts[2], where)
    if end <= start:
        raise ValueError(f"{where} ends at {end} s and starts at {start} s; correct or delete it.")
    return recordings[parts[0]], start, round(end - start, 6)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{where} has {text!r} where seconds, 0 or more, are due; correct or delete it.")
    return value


def _say_mismatch(folder: str, ids: list[str], texts: dict[str, str]) -> None:
    known = set(ids)
    without_text = [key for key in ids if key not in texts]
    without_audio = [key for key in texts if key not in known]
    for what, keys in (("no text", without_text), ("text but no audio, and are left out", without_audio)):
        if keys:
            dots = ", ..." if len(keys) > 5 else ""
            logger.warning("%s: %d utterances have %s: %s%s", folder, len(keys), what, ", ".join(keys[:5]), dots)
