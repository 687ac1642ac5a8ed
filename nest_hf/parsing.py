"""A script's arguments: `script.py [config.yaml ...] [--key value ...]`, strictly typed, no unknown keys."""

import dataclasses
import difflib
import json
import os
import sys
import types
import typing
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments


def check_keys(given: dict, known, where: str) -> None:
    """Refuses unknown keys, and names the closest known one."""
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ValueError(f"{where}: unknown key `{key}`; did you mean `{nearest[0]}`?")


def parse_arguments(*dataclass_types, argv: list[str] | None = None) -> tuple:
    """
    Parses `script.py [config.yaml ...] [--key value ...]`: later YAML files and the command line win.

    Args:
        dataclass_types: Dataclasses whose fields are the known keys.
        argv (`list[str]`, *optional*): Defaults to the command line.

    Raises:
        ValueError: for an unknown key, with the file and the closest known key, or a value of the wrong type.
    """
    kinds = _kinds(dataclass_types)  # before the parser, which changes the types in the fields
    argv = [part for argument in (sys.argv[1:] if argv is None else argv) for part in _one_form(argument, kinds)]
    parser = HfArgumentParser(dataclass_types, allow_abbrev=False, exit_on_error=False)
    values: dict[str, Any] = {}
    while argv and not argv[0].startswith("-"):
        path = argv.pop(0)
        values.update(_checked(read_yaml(path), kinds, path))
    for key, mapping in _mappings(argv, kinds).items():
        merged = {} if key == "eval_data" else values.get(key) or {}
        values[key] = {**merged, **mapping}
    parser.set_defaults(**{key: value for key, value in values.items() if not isinstance(value, dict)})
    _choose_gpus(argv, values)
    options = {argument.split("=", 1)[0] for argument in argv if argument.startswith("--")}
    for name in sorted(options - set(parser._option_string_actions)):
        check_keys({name[2:].replace("-", "_"): None}, list(kinds), "command line")
    try:
        namespace, rest = parser.parse_known_args(argv)
    except ArgumentError as error:
        raise ValueError(f"command line: {error}") from error
    if rest:
        raise ValueError(f"command line: cannot make sense of {' '.join(rest)!r}; options begin with --.")
    mappings = {key: v for key, v in values.items() if isinstance(v, dict) and f"--{key}" not in options}
    parsed = {**vars(namespace), **mappings}
    return tuple(
        kind(**{f.name: parsed[f.name] for f in dataclasses.fields(kind) if f.init and f.name in parsed})
        for kind in dataclass_types
    )


def arguments_of(values: dict, *dataclass_types, where: str) -> tuple:
    """
    As [`parse_arguments`], of values that have been read already.

    Args:
        values (`dict`): As of a YAML.
        dataclass_types: Dataclasses whose fields are the known keys.
        where (`str`): What to call their place in messages.
    """
    values = _checked(values, _kinds(dataclass_types), where)
    return tuple(
        kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init and f.name in values})
        for kind in dataclass_types
    )


def _kinds(dataclass_types) -> dict:
    """Type of every field."""
    return {
        f.name: hints[f.name]
        for kind in dataclass_types
        for hints in [typing.get_type_hints(kind)]
        for f in dataclasses.fields(kind)
        if f.init
    }


def _one_form(argument: str, kinds: dict) -> list[str]:
    """`--some-key` -> `--some_key`, and `--key=value` -> `--key value` for those options that are read here."""
    flag, equals, value = argument.partition("=")
    key = flag[2:].replace("-", "_")
    if not flag.startswith("--") or key not in kinds:
        return [argument]
    if equals and (key == "gpu_ids" or _is_mapping(key, kinds)):
        return [f"--{key}", value]
    return [f"--{key}{equals}{value}"]


def _is_mapping(key: str, kinds: dict) -> bool:
    return dict in _alternatives(kinds[key]) and key not in TRAINING_FIELDS


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file; ValueError with its name for anything else."""
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; the first argument is a YAML of the configuration, options follow.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    return values


def _checked(values: dict, kinds: dict, where: str) -> dict:
    """Values of a YAML whose keys are known, each of its type."""
    check_keys(values, list(kinds), where)
    sets = values.get("eval_data")
    if sets and isinstance(sets, str | list):
        values = {**values, "eval_data": _named_sources([sets] if isinstance(sets, str) else sets, where)}
    return {key: of_type(value, kinds[key], f"{where}: `{key}`") for key, value in values.items()}


def _alternatives(kind) -> dict:
    """`list[str] | None` -> {list: list[str], NoneType: NoneType}."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return {typing.get_origin(one) or one: one for one in kinds}


def of_type(value, kind, where: str):
    """Checks a value of a YAML, which reads 1e-4 as a string and `no` as false; one value may stand for a list."""
    kinds = _alternatives(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if list in kinds and isinstance(value, list):
        item = (*typing.get_args(kinds[list]), str)[0]
        return [of_type(one, item, where) for one in value] if item in (str, int, float) else value
    if type(value) in kinds or (number and float in kinds and not isinstance(value, float)):
        return value
    if isinstance(value, str | float) and (int in kinds or float in kinds):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{where} is {value!r}, not a number.") from None
        if float in kinds:
            return value
        if value.is_integer():
            return int(value)
    elif str in kinds and (number or value is False):
        return str(value) if number else "no"
    elif list in kinds and not isinstance(value, dict) and value is not None:
        return of_type([value], kind, where)
    due = " or ".join("null" if one is types.NoneType else one.__name__ for one in kinds)
    raise ValueError(f"{where} is {value!r} where {due} is due.")


def _named_sources(items: list, where: str) -> dict:
    """Validation sets, `name=source` or `source` each; a single one is called `validation`."""
    named = [item.split("=", 1) if "=" in item else [Path(item).stem, item] for item in map(str, items)]
    if len({name for name, _ in named}) < len(named):
        raise ValueError(f"{where}: two sources of eval_data have one name; write name=source.")
    return dict(named) if len(named) > 1 or "=" in items[0] else {"validation": items[0]}


def _mappings(argv: list[str], kinds: dict) -> dict:
    """Takes options with a mapping as value (JSON, or name=source pairs for eval_data) out of `argv`."""
    values = {}
    for key in [key for key in kinds if _is_mapping(key, kinds)]:
        while (flag := f"--{key}") in argv:
            start = argv.index(flag)
            end = next((i for i in range(start + 1, len(argv)) if argv[i].startswith("--")), len(argv))
            given = argv[start + 1 : end]
            del argv[start:end]
            if not given:
                raise ValueError(f"command line: {flag} lacks its value.")
            if given[0].lstrip().startswith("{"):
                try:
                    values[key] = json.loads(" ".join(given))
                except json.JSONDecodeError as error:
                    raise ValueError(f"command line: {flag} is not valid JSON ({error}).") from error
            elif key == "eval_data":
                values[key] = _named_sources(given, "command line")
            else:
                raise ValueError(f"command line: {flag} takes a JSON mapping, not {' '.join(given)!r}.")
    return values


TRAINING_FIELDS = {f.name for f in dataclasses.fields(TrainingArguments)}


def _choose_gpus(argv: list[str], values: dict) -> None:
    """`gpu_ids` must be in the environment before CUDA starts, that is before TrainingArguments are made."""
    gpu_ids = argv[argv.index("--gpu_ids") + 1] if "--gpu_ids" in argv[:-1] else values.get("gpu_ids")
    if gpu_ids is None:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu_ids)  # before the first question about CUDA, which fixes the list
    if not torch.cuda.is_available():
        raise ValueError(
            f"`gpu_ids` is {gpu_ids}, but this torch ({torch.__version__}) finds no CUDA device; install a CUDA build "
            "and a driver, or leave `gpu_ids` out to train on the CPU."
        )


def resolved(*arguments) -> dict:
    """All arguments, defaults included, as plain values; tokens are left out."""
    together = {}
    for argument in arguments:
        values = argument.to_dict() if isinstance(argument, TrainingArguments) else dataclasses.asdict(argument)
        keys = [f.name for f in dataclasses.fields(argument) if f.init and f.name in values]
        together.update({key: values[key] for key in keys if "token" not in key or "tokens" in key})
    return json.loads(json.dumps(together))


def save_resolved(output_dir: str, *arguments) -> None:
    """Writes [`resolved`] to `output_dir/config_resolved.yaml`, which is a YAML of the same script."""
    path = Path(output_dir) / "config_resolved.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved(*arguments), sort_keys=True, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def error_line(error: Exception) -> str:
    """What a script says when it ends with an error of its input: one line."""
    message = str(error).strip()
    if "in DataLoader worker process" in message.partition("\n")[0]:  # a traceback, of which the last line counts
        message = message.splitlines()[-1].partition(": ")[2]
    return f"error: {' '.join(message.split())}"
