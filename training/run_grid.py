"""
Runs an experiment: one finetuning per combination of options, tested, pooled over seeds, with tables and curves.

    python training/run_grid.py configs/recipes/fsdd_labels.yaml
    python training/run_grid.py configs/recipes/fsdd_labels.yaml --output_dir runs/other --plan_only

One process does one run after the other, on the GPU where there is one. What is complete is skipped and what was begun
goes on when the same command is given again. The YAML, whose paths count from where the command is given, has

    output_dir   the folder of it all: runs/, results.md, results.json, results.png
    needs        files that must be there
    prepare      file -> the script with options that makes it; run in this order where it was not
    axes         name -> a list of values, or value -> options that it adds; $NAME stands for the value everywhere
    config       a YAML of training/finetune.py, beside this one
    options      of training/finetune.py; they win
    choose       axis: all its values are tried only `at` a value, or a list, of other axes; that with the best mean
                 `metric` is used everywhere
    metric       of the validation, for `choose` and the curves; lower is better
    tests        name -> recordings; the axis `test` of the tables
    level, rate  how texts are normalised before they are compared, and what the rate of their characters is called
    tables       title, rows and columns (axes); errors are summed over other axes, such as seeds; the first is drawn
"""

import argparse
import itertools
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from string import Template

import numpy as np
from accelerate import PartialState

from nest_hf.data.audio_encoding import write_whole
from nest_hf.finetuning_run import finetune
from nest_hf.grid_tables import cells_of, count_errors, draw, markdown_table
from nest_hf.handover import read_record
from nest_hf.parsing import arguments_of, check_keys, error_line, read_yaml, resolved
from nest_hf.runs import changed_options
from nest_hf.stages import FINETUNE
from nest_hf.transcription_run import TranscriptionArguments, transcribe

KEYS = ("output_dir", "needs", "prepare", "axes", "config", "options", "choose", "metric", "tests", "level", "rate",
        "tables")  # fmt: skip


class Grid:
    """The YAML of an experiment, checked; a point of it is a mapping from axes to values."""

    def __init__(self, path: str, output_dir: str | None = None):
        values = read_yaml(path)
        check_keys(values, KEYS, path)
        for name in ("axes", "options", "metric", "tests", "tables", *([] if output_dir else ["output_dir"])):
            if not values.get(name):
                raise ValueError(f"{path}: `{name}` is missing; see training/run_grid.py --help.")
        self.path, self.values = path, values
        self.folder = Path(output_dir or values["output_dir"])
        self.axes = {name: [str(value) for value in axis] for name, axis in values["axes"].items()}
        self.added = {name: axis for name, axis in values["axes"].items() if isinstance(axis, dict)}
        self.choose = values.get("choose") or {}
        check_keys(self.choose, ("axis", "at"), f"{path}: choose")
        known = [*self.axes, "test"]
        used = [name for table in values["tables"] for name in (*table.get("rows", ()), *table.get("columns", ()))]
        used += [self.choose["axis"], *self.choose["at"]] if self.choose else []
        for name in used:
            check_keys({name: None}, known, f"{path}: tables and choose")
        for need in values.get("needs") or []:
            if not Path(need).exists():
                raise ValueError(f"{need} does not exist; get it, or change `needs` and the paths in {path}.")

    def points(self, **fixed) -> list[dict]:
        """Combinations of all axes' values; some may be fixed to a value or a list of values."""
        given = {name: value if isinstance(value, list) else [value] for name, value in fixed.items()}
        axes = {name: [str(value) for value in given.get(name, axis)] for name, axis in self.axes.items()}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def fill(self, value, point: dict):
        """Values in place of `$NAME`."""
        if isinstance(value, dict):
            return {self.fill(key, point): self.fill(item, point) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, point) for item in value]
        try:
            return Template(value).substitute(point, output_dir=self.folder) if isinstance(value, str) else value
        except (KeyError, ValueError) as error:
            names = ", ".join(f"${name}" for name in ("output_dir", *self.axes))
            raise ValueError(f"{self.path}: {value!r} names no axis ({error}); there are {names}.") from error

    def commands(self) -> dict[str, str]:
        """File -> what makes it, for all points."""
        commands = {}
        for template, script in (self.values.get("prepare") or {}).items():
            for point in self.points():
                target, command = self.fill(template, point), self.fill(" ".join(script.split()), point)
                if commands.setdefault(target, command) != command:
                    raise ValueError(f"{self.path}: `prepare` makes {target} in two ways; put the axis into its name.")
        return commands

    def arguments(self, point: dict) -> tuple:
        """Of training/finetune.py at a point."""
        options = read_yaml(Path(self.path).parent / self.values["config"]) if self.values.get("config") else {}
        options.update(self.values["options"])
        for name, choices in self.added.items():
            by_name = {str(value): added for value, added in choices.items()}
            options.update(by_name[point[name]] or {})
        options["output_dir"] = str(self.folder / "runs" / "-".join(point.values()))
        options = {key: value for key, value in options.items() if value is not None}
        return arguments_of(self.fill(options, point), *FINETUNE, where=f"{self.path}: options")


def prepare(grid: Grid) -> None:
    """Makes the files that are not there, and notes how; a file that was made otherwise is refused."""
    path = grid.folder / "prepared.json"
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for target, command in grid.commands().items():
        if target in made and made[target] != command:
            raise ValueError(f"{target} was made by `{made[target]}`; choose a new `output_dir`, or delete this one.")
        if target in made and Path(target).exists():
            continue
        print(f"\n=== {target}: {command}", flush=True)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        call(shlex.split(command))
        if not Path(target).exists():
            raise ValueError(f"`prepare`: `{command}` did not make {target}; correct one of them.")
        made[target] = command
        write_whole(path, json.dumps(made, indent=1).encode())


def call(command: list[str]) -> None:
    """Runs a script with its options in this process, which has loaded all libraries already."""
    given = sys.argv
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as exit_:
        if exit_.code:
            raise ValueError(f"`prepare`: {command[0]} ended: {exit_.code}") from exit_
    finally:
        sys.argv = given


def run(grid: Grid, point: dict) -> float:
    """Trains and tests one point, or goes on with it; the metric of its validation."""
    model_args, data_args, args = grid.arguments(point)
    print(f"\n=== {args.output_dir}", flush=True)
    if record := read_record(args.output_dir):
        if changed := changed_options(record["config"], resolved(model_args, data_args, args)):
            raise ValueError(
                f"{args.output_dir} is complete with other options ({'; '.join(changed)}); choose a new `output_dir`, "
                "or delete that folder to train it again."
            )
    metrics = finetune(model_args, data_args, args)
    check_keys({grid.values["metric"]: None}, metrics, f"{grid.path}: metric")
    for name, source in grid.fill(grid.values["tests"], point).items():
        output = f"{args.output_dir}/tests/{name}.jsonl"
        where = {"device": args.device.type, "num_threads": args.num_threads}
        data = source if isinstance(source, list) else [source]
        transcribe(TranscriptionArguments(model=args.output_dir, data=data, output=output, **where), PartialState())
    return metrics[grid.values["metric"]]


def run_all(grid: Grid) -> tuple[list[dict], list[dict]]:
    """Trains what has to be trained. Returns the points that count, those of the chosen values, and the choices."""
    if not grid.choose:
        points = grid.points()
        for point in points:
            run(grid, point)
        return points, []
    axis, at, points, choices = grid.choose["axis"], grid.choose["at"], [], []
    others = {name: values for name, values in grid.axes.items() if name not in (axis, *at)}
    for values in itertools.product(*others.values()):
        fixed = dict(zip(others, values, strict=True))
        tried = {
            value: float(np.mean([run(grid, point) for point in grid.points(**fixed, **at, **{axis: value})]))
            for value in grid.axes[axis]
        }
        best = min(tried, key=tried.get)
        print(f"\n=== {fixed}: {axis} {best} of {tried}", flush=True)
        choices.append({**fixed, axis: tried})
        points += grid.points(**fixed, **{axis: best})
    for point in points:
        run(grid, point)
    return points, choices


def curve(folder: Path, metric: str) -> dict[int, float]:
    """Update -> metric of the validation, from train.log; the last of a resumed run's lines counts."""
    found = re.findall(rf" eval step=(\d+) .*?\b{re.escape(metric)}=(\S+)", (folder / "train.log").read_text())
    return {int(step): float(value) for step, value in found}


def report(grid: Grid, points: list[dict], choices: list[dict]) -> None:
    """Writes results.md, results.json and results.png."""
    rate, level = grid.values.get("rate", "CER"), grid.values.get("level", "zh")
    folders = [grid.folder / "runs" / "-".join(point.values()) for point in points]
    results = [
        {**point, "test": test, **count_errors(folder / "tests" / f"{test}.jsonl", level=level)}
        for point, folder in zip(points, folders, strict=True)
        for test in grid.values["tests"]
    ]
    parts, tables = [], []
    for number, table in enumerate(grid.values["tables"]):
        rows, columns = table.get("rows", []), table.get("columns", [])
        cells = cells_of(results, rows=rows, columns=columns)
        tables.append({"title": table["title"], "cells": cells})
        parts.append(f"{table['title']}\n\n{markdown_table(cells, corner=', '.join(rows), rate=rate)}")
        if number == 0:
            curves: dict[str, list] = {}
            for point, folder in zip(points, folders, strict=True):
                name = ", ".join(point[axis] for axis in (*rows, *columns) if axis != "test")
                curves.setdefault(name, []).append(curve(folder, grid.values["metric"]))
            draw(cells, curves, grid.folder / "results.png", title=table["title"], rate=rate)
    parts += [f"chosen by {grid.values['metric']}: {json.dumps(choice)}" for choice in choices]
    write_whole(grid.folder / "results.md", ("\n\n".join(parts) + "\n").encode())
    record = json.dumps({"tables": tables, "choices": choices, "results": results}, ensure_ascii=False)
    write_whole(grid.folder / "results.json", record.encode())
    print("", *parts, f"written: {grid.folder}/results.md, results.json, results.png", sep="\n\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="the YAML of the experiment")
    parser.add_argument("--output_dir", help="instead of the YAML's")
    parser.add_argument("--plan_only", action="store_true", help="say what would be done, and no more")
    options = parser.parse_args()
    grid = Grid(options.grid, options.output_dir)
    if options.plan_only:
        for target, command in grid.commands().items():
            print(f"{target}: {command}")
        for point in grid.points():
            print(grid.arguments(point)[2].output_dir)
        return
    prepare(grid)
    report(grid, *run_all(grid))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")
