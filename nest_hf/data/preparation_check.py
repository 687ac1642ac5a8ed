"""A few recordings through stage 0, step by step, with pictures and files to listen to."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np

from .audio import AudioError, decode_audio
from .audio_encoding import encode_audio, write_whole
from .preparation import PartWriter, file_name
from .telephone import ChannelDraw

CHECKS = ("readable", "simulated", "converted", "validated", "counted")


def check_source(writer: PartWriter, rows: datasets.Dataset, folder: Path) -> tuple[list[str], int]:
    """
    Does each row, and writes its recording before and after as WAV and as spectrograms to `folder`.

    Returns:
        `tuple`: a line for each of readable (it decodes), simulated (length kept, 16-bit values, its draw gives the
        same again), converted (written), validated (read back bit for bit) and counted (every row is accounted for);
        and how many of these failed.
    """
    passed, problems, rejected = Counter(), {check: [] for check in CHECKS}, Counter()
    for row in rows:
        name = file_name(row["id"])
        try:
            before = decode_audio(
                row["audio"], sampling_rate=writer.sampling_rate, offset_s=row["offset"] or 0.0,
                duration_s=row["duration"],
            ).samples  # fmt: skip
            after, notes = writer.simulate(row)
        except AudioError as error:
            rejected[error.reason] += 1
            problems["readable"].append(f"{row['id']} ({error})")
            continue
        passed["readable"] += 1
        draw = notes["channel"] and ChannelDraw.from_json(notes["channel"])
        again = writer.channel.apply(before, draw) if draw else after
        on_grid = np.array_equal(after * np.float32(32768), np.rint(after * np.float32(32768)))
        good = len(after) == len(before) and on_grid and np.array_equal(after, again)
        _note(passed, problems, "simulated", row["id"], good)
        for kind, wave in (("before", before), ("after", after)):
            write_whole(folder / f"{name}-{kind}.wav", encode_audio(wave, writer.sampling_rate, format="wav"))
        written = folder / f"{name}.{'flac' if writer.output == 'parquet' else writer.output}"
        write_whole(written, encode_audio(after, writer.sampling_rate, format=written.suffix[1:]))
        _note(passed, problems, "converted", row["id"], written.stat().st_size > 0)
        back = decode_audio(written, sampling_rate=writer.sampling_rate).samples
        _note(passed, problems, "validated", row["id"], np.array_equal(back, after))
        draw_spectrograms(before, after, writer.sampling_rate, folder / f"{name}.png")
    counted = passed["readable"] + rejected.total() == len(rows)
    lines = [
        f"{'fail' if problems[check] else 'pass'}  {check:<10} {passed[check]} of {len(rows)}"
        + (f": {'; '.join(problems[check][:3])}" if problems[check] else "")
        for check in CHECKS[:-1]
    ]
    lines.append(f"{'pass' if counted else 'fail'}  counted    {passed['readable']} kept, {rejected.total()} rejected")
    return lines, sum(map(len, problems.values())) + (not counted)


def _note(passed: Counter, problems: dict, check: str, example_id: str, good: bool) -> None:
    if good:
        passed[check] += 1
    else:
        problems[check].append(example_id)


def draw_spectrograms(before: np.ndarray, after: np.ndarray, sampling_rate: int, path: Path) -> None:
    """Both recordings (N,), one above the other, as a PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError('`check` draws spectrograms with matplotlib: `pip install "nest_hf[plots]"`.') from error

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (wave, label) in enumerate(((before, "before"), (after, "after")), 1):
        axes = figure.add_subplot(2, 1, number)
        size = min(512, max(2, len(wave)))
        axes.specgram(wave + 1e-7, NFFT=size, noverlap=size * 3 // 4, Fs=sampling_rate, vmin=-160, vmax=-40)
        axes.set_title(label, fontsize=9)
        axes.set_ylabel("Hz")
    axes.set_xlabel("s")
    figure.savefig(path, dpi=90)
