"""Recipes: the stages of an adaptation as data, what is done of them, and running the rest.

A recipe is a YAML with `output_dir`, `options` of all training stages, and a list `stages`. A stage has a name; the
options that it adds, from YAML files (`config`, beside the recipe) and its own `options`; and `targets`. Its kind is

- `prepare`: stage 0, options of training/prepare_data.py;
- `lm`: a small language model of the texts, options of training/train_lm.py;
- `evaluate`: decode and score, options of [`~evaluation_run.EvaluationArguments`];
- any other name: a training stage with the options of training/finetune.py, from the result of the one before, or
  from that of `from`: a branch, which the stages after it pass by.

`$output_dir` stands for the recipe's folder and `$NAME` for that of the stage NAME before, in every option.
"""

import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from .evaluation_run import EvaluationArguments, evaluate
from .finetuning_arguments import (
    FinetuneDataArguments,
    FinetuneModelArguments,
    FinetuneTrainingArguments,
    check_together,
)
from .finetuning_run import finetune
from .handover import read_record, verify, write_pointer
from .language_model import LanguageModelArguments, LanguageModelTrainingArguments, train_language_model
from .parsing import arguments_of, check_keys, read_yaml, resolved
from .preparation_run import PreparationArguments, prepare
from .runs import changed_options

logger = logging.getLogger(__name__)

FINETUNE = (FinetuneModelArguments, FinetuneDataArguments, FinetuneTrainingArguments)
# options of a new model, which has no place where a stage goes on from another
NEW_MODEL = (
    "audio_tower",
    "language_model",
    "preset",
    "config_overrides",
    "adaptor_config",
    "ctc_config",
    "ctc_tokenizer",
)
TARGET = re.compile(r"(?P<sign>[<>])\s*(?P<bound>\d*\.?\d+)|-(?P<percent>\d*\.?\d+)\s*%")


@dataclass(frozen=True)
class Target:
    """
    What a stage is to reach.

    Args:
        metric (`str`): Of the first validation set, such as `cer`, `kwer`, `keyword_accuracy`, `ctc_loss`; `loss` is
            the weighted sum of both losses.
        goal (`str`): `"< 0.08"`, `"> 0.95"`, or `"-30%"`: that much less than before the stage.
    """

    metric: str
    goal: str

    def __post_init__(self):
        if not TARGET.fullmatch(self.goal.strip()):
            raise ValueError(f"`targets`: {self.metric} is {self.goal!r}; write '< 0.08', '> 0.95' or '-30%'.")

    def is_reached(self, value: float | None, before: float | None) -> bool | None:
        """None where it cannot be told."""
        match = TARGET.fullmatch(self.goal.strip())
        if value is None or (match["percent"] and before is None):
            return None
        if match["percent"]:
            return value <= before * (1 - float(match["percent"]) / 100)
        return value < float(match["bound"]) if match["sign"] == "<" else value > float(match["bound"])


@dataclass(frozen=True)
class Stage:
    """
    One entry of a recipe.

    Attributes:
        number (`int`): Its place in the recipe, from 0.
        name (`str`): Which also decides the kind.
        folder (`str`): Where its result goes.
        options (`dict`): All its options, the recipe's included.
        targets (`tuple[Target, ...]`): What it is to reach.
        parent (`str`, *optional*): Name of the stage whose result it trains.
        is_branch (`bool`): Whether it was told its parent (`from`); then no later stage goes on from it by itself.
        shadowed (`tuple[str, ...]`): Options of the recipe for which its configuration files have other values.
    """

    number: int
    name: str
    folder: str
    options: dict = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    parent: str | None = None
    is_branch: bool = False
    shadowed: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.name if self.name in KINDS else "finetune"

    def arguments(self) -> tuple:
        """The dataclasses of the stage's script, checked."""
        where = f"stage `{self.name}`"
        arguments = arguments_of(self.options, *KINDS[self.kind].types, where=where)
        if self.kind == "finetune":
            check_together(*arguments, where=f"{where}: ")
        return arguments

    def is_complete(self) -> bool:
        return Path(self.folder, KINDS[self.kind].completed_by).is_file()

    def run(self) -> None:
        KINDS[self.kind].run(*self.arguments())


@dataclass(frozen=True)
class Kind:
    """What a kind of stage takes, does, and writes last."""

    types: tuple
    run: Callable
    completed_by: str


KINDS = {
    "finetune": Kind(FINETUNE, finetune, "stage.json"),
    "evaluate": Kind((EvaluationArguments,), evaluate, "summary.json"),
    "lm": Kind((LanguageModelArguments, LanguageModelTrainingArguments), train_language_model, "language_model.json"),
    "prepare": Kind((PreparationArguments,), prepare, "report.json"),
}


@dataclass(frozen=True)
class Recipe:
    """Stages in their order, and the folder that holds them."""

    name: str
    output_dir: str
    stages: tuple[Stage, ...]

    def between(self, first: str | int, last: str | int) -> list[Stage]:
        """Stages from one to another, each a number or a name."""
        numbers = [self._number(which) for which in (first, last)]
        if numbers[0] > numbers[1]:
            raise ValueError(f"`first` {first} comes after `last` {last}; change them round.")
        return list(self.stages[numbers[0] : numbers[1] + 1])

    def _number(self, which: str | int) -> int:
        names = [stage.name for stage in self.stages]
        if str(which).isdigit() and int(which) < len(names):
            return int(which)
        if which in names:
            return names.index(which)
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ValueError(f"there is no stage {which!r}; choose of {listed}.")


def read_recipe(path: str | Path, *, output_dir: str | None = None, options: dict | None = None) -> Recipe:
    """
    Args:
        path (`str`): YAML of the recipe.
        output_dir (`str`, *optional*): Instead of the recipe's.
        options (`dict`, *optional*): Win over those of every training stage; of `lm` where it has them.

    Raises:
        ValueError: for a key that is not known, with its place; two stages of one name; a stage without options.
    """
    values = read_yaml(path)
    check_keys(values, ("output_dir", "options", "stages"), str(path))
    output_dir = output_dir or values.get("output_dir")
    entries = values.get("stages")
    if not output_dir or not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: `output_dir` or `stages` is missing; a recipe has a folder and a list of stages.")
    stages: list[Stage] = []
    for number, entry in enumerate(entries):
        where = f"{path}: stages[{number}]"
        if not isinstance(entry, dict) or not entry.get("stage"):
            raise ValueError(f"{where} has no `stage`; give it a name.")
        check_keys(entry, ("stage", "config", "options", "targets", "from"), where)
        own: dict = {}
        configs = entry.get("config") or []
        for config in [configs] if isinstance(configs, str) else configs:
            own.update(read_yaml(Path(path).parent / config))
        common = values.get("options") or {}
        shadowed = [name for name, value in common.items() if name in own and own[name] != value]
        own.update(entry.get("options") or {})
        stage = _stage(number, entry, own, stages, output_dir, where)
        if stage.kind == "finetune":
            shadowed = tuple(name for name in shadowed if name not in (entry.get("options") or {}))
            given = {**common, **stage.options, **(options or {})}
            stage = dataclasses.replace(stage, options=_fitting(given, stage), shadowed=shadowed)
        elif stage.kind == "lm":
            known = {field.name for kind in KINDS["lm"].types for field in dataclasses.fields(kind)}
            fitting = {name: value for name, value in (options or {}).items() if name in known}
            stage = dataclasses.replace(stage, options={**stage.options, **fitting})
        folders = {"output_dir": output_dir, **{other.name: other.folder for other in [*stages, stage]}}
        stages.append(dataclasses.replace(stage, options=_filled(stage.options, folders, where)))
    return Recipe(Path(path).stem, output_dir, tuple(stages))


def _stage(number: int, entry: dict, own: dict, before: list[Stage], output_dir: str, where: str) -> Stage:
    """A stage with its own options, and what it starts from."""
    name = str(entry["stage"])
    if name in {"output_dir", *(stage.name for stage in before)}:
        raise ValueError(f"{where}: there are two stages `{name}`; give each its own name.")
    folder = str(Path(output_dir, f"{number}_{name}"))
    targets = tuple(Target(metric, str(goal)) for metric, goal in (entry.get("targets") or {}).items())
    trained = [stage for stage in before if stage.kind == "finetune"]
    chain = [stage.name for stage in trained if not stage.is_branch]
    parent = entry.get("from") or (chain[-1] if chain else None)
    if "from" in entry and parent not in {stage.name for stage in trained}:
        raise ValueError(f"{where}: `from` names {parent!r}, which is no training stage before it.")
    if name in KINDS or {"model_name_or_path", "audio_tower", "preset"} & own.keys():
        parent = None
    return Stage(number, name, folder, {**own, "output_dir": folder}, targets, parent, "from" in entry)


def _fitting(options: dict, stage: Stage) -> dict:
    """The options of a training stage, without those of a new model where it goes on from another stage."""
    options = {**options, "output_dir": stage.folder, "stage": stage.name}
    if stage.parent is None:
        return options
    options = {key: value for key, value in options.items() if key not in NEW_MODEL}
    return {**options, "model_name_or_path": f"${{{stage.parent}}}", "parent_stage": stage.parent}


def _filled(value, folders: dict[str, str], where: str):
    """Options with the folders of stages in place of `$NAME`."""
    if isinstance(value, dict):
        return {key: _filled(item, folders, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, folders, where) for item in value]
    try:
        return Template(value).substitute(folders) if isinstance(value, str) else value
    except (KeyError, ValueError) as error:
        names = ", ".join(f"${name}" for name in folders)
        raise ValueError(f"{where}: {value!r} names no stage before it ({error}); there are {names}.") from error


# --- running ---------------------------------------------------------------------------------------------------------


def run_recipe(recipe: Recipe, stages: list[Stage], *, is_main: bool, require_targets: bool = False) -> None:
    """
    Runs stages in order: what is complete is skipped, what was begun goes on.

    Args:
        recipe ([`Recipe`]): For the pointers.
        stages (`list[Stage]`): Of the recipe, from [`~Recipe.between`].
        is_main (`bool`): Whether this process writes for all.
        require_targets (`bool`, *optional*, defaults to `False`): Stop after a stage that misses one of its targets.

    Raises:
        ValueError: for a stage whose parent is not complete, or that is complete with other options.
    """
    by_name = {stage.name: stage for stage in recipe.stages}
    for stage in stages:
        if stage.parent and not by_name[stage.parent].is_complete():
            if by_name[stage.parent] not in stages:
                raise ValueError(f"stage `{stage.name}` needs `{stage.parent}`, which is not complete; begin there.")
    for stage in stages:
        if is_main:
            logger.info("\n=== stage %d: %s ===", stage.number, stage.name)
        if stage.kind == "finetune" and (record := read_record(stage.folder)):
            if changed := changed_options(record["config"], resolved(*stage.arguments())):
                raise ValueError(
                    f"stage `{stage.name}` is complete in {stage.folder} with other options ({'; '.join(changed)}); "
                    "choose a new `output_dir`, or delete that folder to train it again."
                )
        started = time.perf_counter()
        if stage.kind != "prepare" or is_main:
            stage.run()
        else:
            _wait_for(stage)
        if stage.kind == "finetune":
            if is_main:
                hand_over(recipe, stage)
            missed = report_targets(stage, speak=is_main)
            if missed and require_targets:
                raise ValueError(f"stage `{stage.name}` missed {', '.join(missed)}; see above (require_targets).")
        if is_main:
            logger.info("stage %s: %.1f min", stage.name, (time.perf_counter() - started) / 60)


def _wait_for(stage: Stage) -> None:
    """Waits until the first process has done what only one can do."""
    while not stage.is_complete():
        time.sleep(1.0)


def hand_over(recipe: Recipe, stage: Stage) -> None:
    """Writes `stageN_checkpoint.txt`, the pointer to a complete stage; for the chain's last `final_checkpoint.txt`."""
    verify(stage.folder)
    trained = [other for other in recipe.stages if other.kind == "finetune" and not other.is_branch]
    write_pointer(Path(recipe.output_dir, f"stage{stage.number}_checkpoint.txt"), stage.folder)
    if stage == trained[-1]:
        write_pointer(Path(recipe.output_dir, "final_checkpoint.txt"), stage.folder)


def report_targets(stage: Stage, *, speak: bool = True) -> list[str]:
    """Prints each target of a complete stage with what was reached, and returns those that were missed."""
    record = read_record(stage.folder)
    metrics, before = (_of_first_set(record, name) for name in ("metrics", "metrics_before"))
    missed, lines = [], [("metric", "before", "after", "target", "")]
    for target in stage.targets:
        value, old = metrics.get(target.metric), before.get(target.metric)
        reached = target.is_reached(value, old)
        if not reached:
            missed.append(f"{target.metric} {target.goal}")
        verdict = {True: "reached", False: "missed", None: "not measured"}[reached]
        lines.append((target.metric, _figure(old), _figure(value), target.goal, verdict))
    if stage.targets and speak:
        for line in lines:
            logger.info("  %-20s %10s %10s %10s  %s", *line)
    return missed


def _of_first_set(record: dict, name: str) -> dict[str, float]:
    """Metrics of the first validation set without its name, with `loss`."""
    sets = list(record["config"].get("eval_data") or {})
    if not sets:
        return {}
    prefix = f"eval_{sets[0]}_"
    metrics = {key.removeprefix(prefix): v for key, v in record[name].items() if key.startswith(prefix)}
    weights = record["config"]
    losses = [(weights[f"{part}_weight"], metrics.get(f"{part}_loss")) for part in ("lm", "ctc")]
    known = [(1.0 if weight is None else weight) * loss for weight, loss in losses if loss is not None]
    return {**metrics, "loss": sum(known)} if known else metrics


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def save_plan(recipe: Recipe) -> None:
    """Writes `recipe.json`: every stage with all its options."""
    Path(recipe.output_dir).mkdir(parents=True, exist_ok=True)
    text = json.dumps([dataclasses.asdict(stage) for stage in recipe.stages], ensure_ascii=False, indent=1)
    Path(recipe.output_dir, "recipe.json").write_text(text, encoding="utf-8")


__all__ = ["Recipe", "Stage", "Target", "hand_over", "read_recipe", "report_targets", "run_recipe", "save_plan"]
