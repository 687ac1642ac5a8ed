"""Stage 0's work in parts: decode, send through the channel, write; a part that is done is never done again.

A part is a run of rows of one split. Its recordings are written first, then its record `parts/{split}-{number}.jsonl`,
which appears whole: a job that was killed goes on with the parts that have none, on any number of processes.
"""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .audio import AudioError, decode_audio
from .audio_encoding import encode_audio, write_whole
from .codecs import on_16_bits
from .telephone import TelephoneChannel

logger = logging.getLogger(__name__)

OUTPUTS = ("flac", "wav", "parquet")


@dataclass(frozen=True)
class Part:
    """Rows `start` to `end` of a split."""

    split: str
    number: int
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def plan_parts(splits: dict[str, datasets.Dataset], rows_per_part: int) -> list[Part]:
    """All rows of all splits, in order."""
    return [
        Part(split, number, start, min(start + rows_per_part, len(rows)))
        for split, rows in splits.items()
        for number, start in enumerate(range(0, len(rows), rows_per_part))
    ]


@dataclass
class PartResult:
    """What became of a part: seconds of audio written, rows kept, and how many rows each remark or reason counts."""

    part: Part
    seconds: float
    kept: int
    rejected: Counter
    remarks: Counter


@dataclass
class PartWriter:
    """
    Does one part when it is called; the same for every engine.

    Args:
        splits (`dict[str, datasets.Dataset]`): Rows of [`load_speech_dataset`].
        channel (`TelephoneChannel`): For recordings of wideband speech.
        real_sources (`frozenset[str]`): Sources that are calls already and are only resampled.
        folder (`str`): Where to write.
        output (`str`): `"flac"`, `"wav"`: a file each; `"parquet"`: a file per part, with the audio inside.
        sampling_rate (`int`): Hz, of what is written.
        seed (`int`): Seeds the channel.
        min_duration_s, max_duration_s (`float`): Recordings outside are rejected.
        on_bad_audio (`str`): `"skip"` rejects recordings that cannot be used, `"fail"` stops.
    """

    splits: dict[str, datasets.Dataset]
    channel: TelephoneChannel
    real_sources: frozenset[str]
    folder: str
    output: str = "flac"
    sampling_rate: int = 16000
    seed: int = 0
    min_duration_s: float = 0.0
    max_duration_s: float = float("inf")
    on_bad_audio: str = "skip"

    def __call__(self, part: Part) -> PartResult:
        rows, records, rejected, remarks = self.splits[part.split], [], [], Counter()
        for index in range(part.start, part.end):
            row = rows[index]
            try:
                wave, notes = self.simulate(row)
            except AudioError as error:
                if self.on_bad_audio == "fail":
                    raise AudioError(
                        f"recording {row['id']!r}: {error} (--on_bad_audio skip leaves it out)"
                    ) from error
                rejected.append({"id": row["id"], "reason": error.reason, "message": str(error)})
                continue
            remarks.update(notes.pop("remarks"))
            records.append({**_plain(row), **notes, **self._store(part, row["id"], wave)})
        if self.output == "parquet" and records:
            self._write_parquet(part, records)
        lines = [json.dumps({"kept": {k: v for k, v in record.items() if k != "bytes"}}) for record in records]
        lines += [json.dumps({"rejected": row}) for row in rejected]
        lines.append(json.dumps({"remarks": dict(remarks)}))
        write_whole(_record_of(self.folder, part), ("\n".join(lines) + "\n").encode())
        return read_part(self.folder, part)

    def simulate(self, row: dict) -> tuple[np.ndarray, dict]:
        """The call of a row, on 16-bit values, (N,); and its duration, its draw, and remarks on its audio."""
        audio = decode_audio(
            row["audio"],
            sampling_rate=self.sampling_rate,
            offset_s=row["offset"] or 0.0,
            duration_s=row["duration"],
        )
        wave, duration_s = audio.samples, len(audio.samples) / self.sampling_rate
        if not self.min_duration_s <= duration_s <= self.max_duration_s:
            reason = "too short" if duration_s < self.min_duration_s else "too long"
            raise AudioError(f"it lasts {duration_s:.3f} s, outside the limits.", reason)
        remarks = [f"{audio.num_channels} channels averaged"] if audio.num_channels > 1 else []
        remarks += ["clipped"] if audio.num_clipped else []
        is_real = row["source"] in self.real_sources
        if is_real:
            wave, draw = on_16_bits(wave), None
            remarks += (
                [f"a call sampled at {audio.original_sampling_rate} Hz"]
                if audio.original_sampling_rate != 8000
                else []
            )
        else:
            wave, draw = self.channel(wave, sampling_rate=self.sampling_rate, seed=self.seed, id=row["id"])
            remarks += ["wideband speech sampled at 8 kHz"] if audio.original_sampling_rate <= 8000 else []
        notes = {"offset": 0.0, "duration": duration_s, "channel": draw.to_json() if draw else None, "real": is_real}
        return wave, notes | {"remarks": remarks}

    def _store(self, part: Part, example_id: str, wave: np.ndarray) -> dict:
        """Writes a recording to a file of its own, or keeps its bytes for the part's parquet."""
        if self.output == "parquet":
            return {"bytes": encode_audio(wave, self.sampling_rate)}
        name = f"audio/{part.split}/{part.number:05d}/{file_name(example_id)}.{self.output}"
        write_whole(Path(self.folder, name), encode_audio(wave, self.sampling_rate, format=self.output))
        return {"file": name}

    def _write_parquet(self, part: Part, records: list[dict]) -> None:
        types = {field.name: field.type for field in self.splits[part.split].features.arrow_schema}
        types |= {"channel": pa.string(), "real": pa.bool_()}
        audio = [{"bytes": record["bytes"], "path": f"{file_name(record['id'])}.flac"} for record in records]
        columns = {"audio": audio} | {key: [row[key] for row in records] for key in records[0] if key != "bytes"}
        table = pa.table({key: pa.array(values, types[key]) for key, values in columns.items()})
        file = pa.BufferOutputStream()
        pq.write_table(table, file)
        write_whole(Path(self.folder, part.split, f"part-{part.number:05d}.parquet"), file.getvalue().to_pybytes())


def _plain(row: dict) -> dict:
    """The columns of a row that travel with it."""
    return {key: value for key, value in row.items() if key not in ("audio", "offset", "duration")}


def file_name(example_id: str) -> str:
    """A readable and unique file name for an id, on any file system."""
    readable = re.sub(r"[^\w.-]+", "_", example_id)[-60:].strip("._")
    return f"{readable}-{hashlib.blake2b(example_id.encode(), digest_size=4).hexdigest()}"


def _record_of(folder: str, part: Part) -> Path:
    return Path(folder, "parts", f"{part.name}.jsonl")


def is_done(folder: str, part: Part) -> bool:
    return _record_of(folder, part).exists()


def read_part(folder: str, part: Part) -> PartResult:
    """The result of a part that is done."""
    seconds, kept, rejected, remarks = 0.0, 0, Counter(), Counter()
    for kind, value in part_lines(folder, part):
        if kind == "kept":
            seconds, kept = seconds + value["duration"], kept + 1
        elif kind == "rejected":
            rejected[value["reason"]] += 1
        else:
            remarks.update(value)
    if kept + rejected.total() != part.end - part.start:
        raise ValueError(
            f"{_record_of(folder, part)} counts {kept} + {rejected.total()} rows where {part.end - part.start} are "
            "due; delete it, and the same command does this part again."
        )
    return PartResult(part, seconds, kept, rejected, remarks)


def part_lines(folder: str, part: Part) -> Iterator[tuple[str, dict]]:
    """(`kept` | `rejected` | `remarks`, value) of a part that is done, line by line."""
    with open(_record_of(folder, part), encoding="utf-8") as file:
        for line in file:
            yield from json.loads(line).items()


def kept_rows(folder: str, parts: list[Part]) -> Iterator[dict]:
    """Rows of the schema for the recordings that were written to files, in order."""
    for part in parts:
        for kind, value in part_lines(folder, part):
            if kind == "kept":
                path = os.path.join(os.path.abspath(folder), value.pop("file"))
                yield {**value, "audio": {"bytes": None, "path": path}}


def claim_folder(out: Path, splits: dict[str, datasets.Dataset], settings: dict, *, overwrite: bool = False) -> None:
    """
    Writes into a folder what it is for, `parts/settings.json`.

    Args:
        out (`Path`): The folder.
        splits (`dict[str, datasets.Dataset]`): Rows that are done there.
        settings (`dict`): All that the result depends on beside the rows.
        overwrite (`bool`, *optional*, defaults to `False`): Delete what an earlier job wrote, and nothing else.

    Raises:
        ValueError: if the folder holds the result of other settings or rows, or files that would be replaced.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, rows in splits.items():
        for column in ("id", "text", "source"):
            digest.update(json.dumps([name, rows[column][:]]).encode())
    settings = json.loads(json.dumps({**settings, "data_hash": digest.hexdigest()}))
    claim = out / "parts" / "settings.json"
    folders = [out / name for name in ("audio", "train", "dev")]
    results = [out / f"{split}{kind}.jsonl" for split in ("train", "dev") for kind in ("", ".chatml")]
    results += [out / "rejected.jsonl", out / "report.json"]
    if overwrite and claim.exists():  # what lies there is an earlier job's
        for folder in (*folders, out / "parts"):
            shutil.rmtree(folder, ignore_errors=True)
        for path in results:
            path.unlink(missing_ok=True)
    if claim.exists():
        before = json.loads(claim.read_text(encoding="utf-8"))
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            values = ", ".join(f"`{key}` {before.get(key)!r}, now {settings[key]!r}" for key in changed[:3])
            raise ValueError(
                f"{out} holds the work of another command ({values}); choose another output_dir, or --overwrite true."
            )
    elif any(path.exists() for path in (*folders, *results)):
        raise ValueError(f"{out} holds files that this script would replace; choose another output_dir.")
    write_whole(claim, json.dumps(settings, indent=2).encode())


def run_parts(writer: PartWriter, parts: list[Part], *, num_proc: int, engine: str = "local") -> Iterator[PartResult]:
    """Does the parts on this machine's processes, or on a Ray cluster; yields results as they come, in any order."""
    if engine == "ray":
        yield from _run_on_ray(writer, parts)
    elif num_proc == 1:
        yield from map(writer, parts)
    else:
        from concurrent.futures import ProcessPoolExecutor, as_completed

        with ProcessPoolExecutor(num_proc, initializer=_set_writer, initargs=(writer,)) as pool:
            jobs = [pool.submit(_do_part, part) for part in parts]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_writer: PartWriter | None = None  # of a worker process, set once: rows are not sent with every part


def _set_writer(writer: PartWriter) -> None:
    global _writer
    _writer = writer


def _do_part(part: Part) -> PartResult:
    return _writer(part)


class _RayWorker:
    """What a Ray actor runs: it gets the writer once, then a part per row."""

    def __init__(self, writer: PartWriter):
        self.writer = writer

    def __call__(self, row: dict) -> dict:
        part = Part(row["split"], int(row["number"]), int(row["start"]), int(row["end"]))
        self.writer(part)
        return {**row, "worker": f"{platform.node()} {os.getpid()}"}


def _run_on_ray(writer: PartWriter, parts: list[Part]) -> Iterator[PartResult]:
    """Every machine must see the recordings and the output folder under the same paths."""
    try:
        import ray
    except ImportError as error:
        raise ValueError('`engine` is ray, which is not installed: `pip install "nest_hf[ray]"`.') from error

    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600  # all of them before the first part, so that a short job is shared too
    num_workers = max(1, min(len(parts), int(ray.cluster_resources().get("CPU", 1))))
    workers = ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1)
    rows = ray.data.from_items([dataclasses.asdict(part) for part in parts], override_num_blocks=len(parts))
    done = rows.map(_RayWorker, fn_constructor_args=(writer,), compute=workers)
    seen: set[str] = set()
    for row in done.iter_rows():
        seen.add(row["worker"])
        yield read_part(writer.folder, Part(row["split"], int(row["number"]), int(row["start"]), int(row["end"])))
    logger.info("%d workers of Ray took part", len(seen))
