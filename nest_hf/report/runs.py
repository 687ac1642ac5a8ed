"""The report on training runs: their curves over one another, and their last validations."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from .page import write_page

SCRIPTS = ("dom.js", "charts.js", "runs.js")
RATES = ("cer", "mer", "wer", "kwer")
# metric -> title of its chart, in the order of the charts
CHARTS = {
    "loss": "Loss",
    "lm_loss": "Loss of the language model",
    "ctc_loss": "Loss of CTC",
    **{rate: f"{rate.upper()}, %" for rate in RATES},
    "keyword_accuracy": "Keyword accuracy, %",
    **{f"ctc_{rate}": f"{rate.upper()} of CTC, %" for rate in RATES},
    "ctc_keyword_accuracy": "Keyword accuracy of CTC, %",
    "accuracy": "Accuracy of masked frames, %",
    "learning_rate": "Learning rate",
    "codebook_perplexity": "Codebook perplexity",
    "codebook_coverage": "Codebook coverage, %",
    "grad_norm": "Gradient norm",
    "audio_s_per_s": "Seconds of audio a second",
    "memory_gb": "Peak memory, GB",
    "padding": "Padding, % of the frames",
}
NOTES = {
    "loss": "Pale: training. In pretraining nats per masked frame; dotted: the codes' unigram entropy, which a model "
    "that uses the context falls below.",
    "accuracy": "Pale: training; dotted: always naming the most frequent code.",
    "codebook_perplexity": "As if so many codes were equally frequent.",
    "codebook_coverage": "The share of the codes that occur.",
}
# what a validation gives to compare another metric with, which it is drawn beside
REFERENCES = {"unigram_entropy": "loss", "constant_accuracy": "accuracy"}
SHARES = {*RATES, *(f"ctc_{rate}" for rate in RATES), "keyword_accuracy", "ctc_keyword_accuracy"}
SHARES |= {"accuracy", "constant_accuracy", "codebook_coverage", "padding"}
METRICS = sorted([*CHARTS, *REFERENCES, "masked_frames"], key=len, reverse=True)


@dataclass
class Run:
    """
    What Trainer logged.

    Args:
        name (`str`): What to call it.
        training (`list[dict]`): Lines of training: `step`, `epoch` and metrics.
        validations (`dict[str, list[dict]]`): Lines by the name of the validation set.
        last (`dict[str, dict]`): The metrics of eval_results.json by set; of the last lines where there is none.
        is_finished (`bool`): Whether the log is that of a whole run, or of its newest checkpoint.
    """

    name: str
    training: list[dict]
    validations: dict[str, list[dict]] = field(default_factory=dict)
    last: dict[str, dict] = field(default_factory=dict)
    is_finished: bool = True


def read_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """
    Reads trainer_state.json and eval_results.json of output folders. A run that has not finished is read from its
    newest checkpoint; a folder of stages stands for all of them.

    Raises:
        ValueError: for a folder without a log.
    """
    parts: list[tuple[Path, str]] = []
    for folder in map(Path, folders):
        folder = folder.absolute()
        found = [folder] if _log_of(folder) else sorted(part for part in folder.glob("*/") if _log_of(part))
        if not found:
            raise ValueError(
                f"`runs` names {str(folder)!r}, which has no trainer_state.json, nor have its checkpoints or folders; "
                "pass the output folder of a training run, or of its stages."
            )
        parts += [(part, part.relative_to(folder.parent).as_posix()) for part in found]
    names = [name for _, name in parts]
    return [_read_run(part, name if names.count(name) == 1 else str(part)) for part, name in parts]


def build_runs_report(folders: Sequence[str | os.PathLike], path: str | os.PathLike, *, title: str = "runs") -> Path:
    """
    Writes the report of training runs.

    Args:
        folders (`Sequence`): See [`read_runs`].
        path (`str` or `os.PathLike`): Of the HTML file.
        title (`str`, *optional*): Its heading.

    Returns:
        `Path` of the report.
    """
    runs = read_runs(folders)
    names = [run.name if run.is_finished else f"{run.name} (not finished)" for run in runs]
    header, rows = last_validations(runs)
    data = {"title": title, "runs": names, "charts": charts(runs), "header": header, "rows": rows}
    return write_page(path, title=title, data=data, scripts=SCRIPTS)


def charts(runs: Sequence[Run]) -> list[dict]:
    """
    The curves of each metric that a run has.

    Returns:
        `list[dict]`: `metric`, `title`, `note` and `series`: `name`, `run` (its position), `dash`, `pale`, and
        `points` (update, epoch and value each).
    """
    found = []
    for metric, title in CHARTS.items():
        series = [{"run": number, **curve} for number, run in enumerate(runs) for curve in _curves(run, metric)]
        if series:
            found.append({"metric": metric, "title": title, "note": NOTES.get(metric), "series": series})
    return found


def _curves(run: Run, metric: str) -> list[dict]:
    """Training, and each validation set with what it is compared with; training is pale beside validations."""

    def curve(name: str, lines: list[dict], key: str, *, dash: int = 0, pale: bool = False) -> dict:
        points = [(line["step"], line.get("epoch"), _shown(line, key)) for line in lines if key in line]
        return {"name": name, "dash": dash, "pale": pale, "points": points}

    curves = []
    for place, (name, lines) in enumerate(run.validations.items()):
        label = f"{run.name}, {name or 'validation'}"
        curves.append(curve(label, lines, metric, dash=place % 2))
        curves += [
            curve(f"{label}, {key.replace('_', ' ')}", lines, key, dash=2)
            for key, drawn in REFERENCES.items()
            if drawn == metric
        ]
    curves = [one for one in curves if one["points"]]
    name = f"{run.name}, training" if curves else run.name
    training = curve(name, run.training, metric, pale=bool(curves))
    return curves + [training] * bool(training["points"])


def last_validations(runs: Sequence[Run]) -> tuple[list[str], list[list]]:
    """A table of the last validation of every run and set: its header and its rows of text and numbers."""
    told = {metric for run in runs for values in run.last.values() for metric in values}
    columns = [metric for metric in (*CHARTS, *REFERENCES, "masked_frames") if metric in told]
    titles = {**CHARTS, "constant_accuracy": "constant guess, %"}
    header = ["run", "validated on", *(titles.get(column, column.replace("_", " ")) for column in columns)]
    if "unigram_entropy" in told:
        header += ["entropy - loss", "accuracy / constant"]
    rows = []
    for run in runs:
        for name, values in run.last.items():
            row = [run.name, name or "validation", *(_shown(values, column) for column in columns)]
            if "unigram_entropy" in told:
                has_codes = "unigram_entropy" in values
                row.append(values["unigram_entropy"] - values["loss"] if has_codes else None)
                constant = values.get("constant_accuracy")
                row.append(values["accuracy"] / constant if has_codes and constant else None)
            rows.append(row)
    return header, rows


def _shown(values: dict, metric: str) -> float | None:
    return 100 * values[metric] if metric in SHARES and metric in values else values.get(metric)


def _log_of(folder: Path) -> Path | None:
    """The log of a run, or of its newest checkpoint."""
    if (folder / "trainer_state.json").is_file():
        return folder / "trainer_state.json"
    newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    path = newest and Path(newest) / "trainer_state.json"
    return path if path and path.is_file() else None


def _read_run(folder: Path, name: str) -> Run:
    path = _log_of(folder)
    run = Run(name, [], is_finished=path.parent == folder)
    for line in _json(path)["log_history"]:
        place = {"step": line["step"], "epoch": line.get("epoch")}
        by_set = _by_set(line)
        for key, values in by_set.items():
            lines = run.validations.setdefault(key, [])
            if not lines or lines[-1]["step"] != line["step"]:  # the best model's, at the end, is in eval_results.json
                lines.append({**place, **values})
        own = {key: value for key, value in line.items() if key in CHARTS and _is_number(value)}
        if own and not by_set:
            run.training.append({**place, **own})
    results = folder / "eval_results.json"
    run.last = _by_set(_json(results)) if results.is_file() else {}
    if not run.last:
        run.last = {key: lines[-1] for key, lines in run.validations.items()}
    return run


def _by_set(line: dict) -> dict[str, dict]:
    """`eval_<set>_<metric>` of a log line, by set."""
    found: dict[str, dict] = {}
    for key, value in line.items():
        if not key.startswith("eval_") or not _is_number(value):
            continue
        for metric in METRICS:
            if key.endswith(f"_{metric}"):
                found.setdefault(key[len("eval_") : -len(metric) - 1], {})[metric] = value
                break
    return found


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); it may be half written.") from error


__all__ = ["Run", "build_runs_report", "charts", "last_validations", "read_runs"]
