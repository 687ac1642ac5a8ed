"""Arguments of the scripts: dataclasses, a YAML of what differs from their defaults, overrides on the command line."""

import dataclasses
import difflib
import json
import os
import sys
import types
import typing
from argparse import ArgumentError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, TrainingArguments

from .configuration_nest import PRESETS, NestConfig
from .data.noise import MultiSpeakerNoise, SpeakerNoise


@dataclass
class NestModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Start from these weights: a folder, a Hub id or a .nemo file. The schedule starts anew."},
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Size of a model trained from scratch: {', '.join(PRESETS)}; large where not given."},
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": "Fields of NestConfig that differ, a YAML mapping or JSON."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "`sdpa` or `eager`."})
    sync_batchnorm: bool = field(
        default=True,
        metadata={"help": "BatchNorm statistics over all processes. CUDA only; on CPU it has no effect and says so."},
    )


@dataclass
class PretrainingDataArguments:
    """Which recordings, how they are batched and what is mixed into them. The defaults are NeMo's."""

    train_data: list[str] | None = field(
        default=None,
        metadata={"help": "Training recordings: manifests, folders, parquet, saved data sets, Hub ids."},
    )
    eval_data: dict | None = field(
        default=None,
        metadata={"help": "Validation sets, a mapping from name to source(s), or one source."},
    )
    noise_data: list[str] | None = field(default=None, metadata={"help": "Noise recordings, named as train_data."})
    eval_noise_data: list[str] | None = field(
        default=None, metadata={"help": "Noise recordings for the validation; noise_data where not given."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read train_data as it is needed; then max_steps decides the length."}
    )
    sampling_rate: int = field(default=16000, metadata={"help": "Hz of the model's input."})
    resample: bool = field(default=True, metadata={"help": "Resample recordings of another rate, or refuse them."})
    min_duration_s: float | None = field(
        default=None,
        metadata={"help": "Shorter recordings are left out, and counted; 1.0 where not given, 0 with join_to_s."},
    )
    max_duration_s: float = field(default=60.0, metadata={"help": "Longer recordings are left out, and counted."})
    join_to_s: float | None = field(
        default=None,
        metadata={"help": "Join recordings shorter than this to examples of about this length (blocks of 400 ms leave "
                  "most 1-s recordings unmasked)."},
    )  # fmt: skip
    batch_duration_s: float | None = field(
        default=None,
        metadata={"help": "Padded seconds of audio per batch and process; else per_device_train_batch_size."},
    )
    sort_window: int = field(default=64, metadata={"help": "Batches that are sorted by duration together."})
    mix: str = field(
        default="all",
        metadata={"help": "Several train_data: all rows once, or NeMo's `temperature`, `random`, `round-robin`."},
    )
    mix_temperature: float = field(default=1.0, metadata={"help": "For mix=temperature."})
    mix_weights: list[float] | None = field(default=None, metadata={"help": "For mix=random, one per train_data."})
    on_bad_audio: str = field(default="fail", metadata={"help": "Recordings that cannot be used: `fail` or `skip`."})
    noise_augmentation: str = field(
        default="multi_speaker",
        metadata={"help": "`multi_speaker` or `single_speaker` (NeMo's classes), or `none`."},
    )
    noise: dict | None = field(
        default=None, metadata={"help": "Parameters of the augmentation that differ, a YAML mapping or JSON."}
    )
    short_noise: str = field(
        default="repeat", metadata={"help": "Noise clips shorter than the recording: `repeat`, or `zero` as in NeMo."}
    )
    eval_noise_augmentation: str = field(
        default="multi_speaker", metadata={"help": "As noise_augmentation, for the condition `noisy` of a validation."}
    )
    eval_conditions: list[str] | None = field(
        default=None,
        metadata={"help": "Validate every set `noisy` (default), `clean`, or both; noise and masks never change."},
    )


@dataclass
class NestTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with NeMo's NEST recipe as defaults."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Factor of the Noam schedule (5.0 where not given), or another's peak."}
    )
    schedule: str = field(default="noam", metadata={"help": "`noam`, or `trainer` for --lr_scheduler_type."})
    min_lr: float = field(default=1e-6, metadata={"help": "Floor of the Noam schedule after the warm-up."})
    warmup_steps: float = field(default=25000, metadata={"help": "Updates of linear warm-up."})
    weight_decay: float = field(default=1e-3, metadata={"help": "On all parameters, biases and norms included."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clipping of the gradient norm; 0 is none."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Updates; num_train_epochs decides where not given, else 500,000."}
    )
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs, where max_steps is not given."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Recordings per batch and process."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Recordings per validation batch."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float | None = field(default=2500, metadata={"help": "Updates between validations."})
    save_steps: float = field(default=2500, metadata={"help": "Updates between checkpoints."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between lines of train.log."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay false: NaN stops the run."})
    report_to: str | list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "tensorboard, wandb, trackio, none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: the collator needs all."})
    ddp_gradient_as_bucket_view: bool = field(
        default=False, metadata={"help": "DDP: gradients as views of its buckets, which saves their size in memory."}
    )
    gpu_ids: str | None = field(default=None, metadata={"help": "Use only these GPUs, such as 0,2."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of every process (accelerate launch sets 1)."}
    )
    auto_resume: bool = field(
        default=True, metadata={"help": "Go on from the newest complete checkpoint in output_dir."}
    )

    def __post_init__(self):
        if self.schedule not in ("noam", "trainer"):
            raise ValueError(f"`schedule` is {self.schedule!r}; choose `noam` or `trainer`.")
        if self.learning_rate is None:
            if self.schedule == "trainer":
                raise ValueError(
                    "`schedule` is trainer, which has no default rate; give `learning_rate`, such as 1e-3."
                )
            self.learning_rate = 5.0
        if self.max_steps is None:
            self.max_steps = -1 if self.num_train_epochs is not None else 500_000
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        for name in WITHOUT_EFFECT:
            default = TrainingArguments.__dataclass_fields__[name].default
            if getattr(self, name) not in (default, None):
                raise ValueError(f"`{name}` has no effect here, since batches are planned in advance; leave it out.")
        super().__post_init__()


# options of Trainer's own loaders, which are not used
WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "dataloader_drop_last",
    "length_column_name",
    "prediction_loss_only",
    "train_sampling_strategy",
)


def noise_augmentation(name: str, parameters: dict | None) -> SpeakerNoise | None:
    """The augmentation `name` with those parameters that differ from its defaults."""
    classes = {"multi_speaker": MultiSpeakerNoise, "single_speaker": SpeakerNoise, "none": None}
    if name not in classes:
        raise ValueError(f"`noise_augmentation` is {name!r}; choose one of {', '.join(classes)}.")
    if classes[name] is None:
        return None
    kinds = typing.get_type_hints(classes[name])
    check_keys(parameters or {}, [f.name for f in dataclasses.fields(classes[name])], "noise")
    return classes[name](**{key: _of_type(v, kinds[key], f"noise: `{key}`") for key, v in (parameters or {}).items()})


def model_config(arguments: NestModelArguments) -> NestConfig:
    """The configuration of a model from scratch."""
    overrides = arguments.config_overrides or {}
    check_keys(overrides, [f.name for f in dataclasses.fields(NestConfig)], "config_overrides")
    try:
        return NestConfig.from_preset(arguments.preset or "large", **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"config_overrides: {error}") from error


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
    kinds = {  # the parser changes the types in the fields
        f.name: hints[f.name]
        for kind in dataclass_types
        for hints in [typing.get_type_hints(kind)]
        for f in dataclasses.fields(kind)
        if f.init
    }
    argv = [part for argument in (sys.argv[1:] if argv is None else argv) for part in _one_form(argument, kinds)]
    parser = HfArgumentParser(dataclass_types, allow_abbrev=False, exit_on_error=False)
    values: dict[str, Any] = {}
    while argv and not argv[0].startswith("-"):
        values.update(_read_yaml(argv.pop(0), kinds))
    values.update(_mappings(argv, kinds))
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


def _read_yaml(path: str, kinds: dict) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; the first argument is a YAML of the configuration, options follow.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    check_keys(values, list(kinds), path)
    sets = values.get("eval_data")
    if sets and isinstance(sets, str | list):
        values["eval_data"] = _named_sources([sets] if isinstance(sets, str) else sets, path)
    return {key: _of_type(value, kinds[key], f"{path}: `{key}`") for key, value in values.items()}


def _alternatives(kind) -> dict:
    """`list[str] | None` -> {list: list[str], NoneType: NoneType}."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return {typing.get_origin(one) or one: one for one in kinds}


def _of_type(value, kind, where: str):
    """Checks a value of a YAML, which reads 1e-4 as a string and `no` as false; one value may stand for a list."""
    kinds = _alternatives(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if list in kinds and isinstance(value, list):
        item = (*typing.get_args(kinds[list]), str)[0]
        return [_of_type(one, item, where) for one in value] if item in (str, int, float) else value
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
        return _of_type([value], kind, where)
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


def save_resolved(output_dir: str, *arguments) -> None:
    """
    Writes all arguments, defaults included, to `output_dir/config_resolved.yaml`, which is a YAML of the same script;
    tokens are left out.
    """
    resolved = {}
    for argument in arguments:
        values = argument.to_dict() if isinstance(argument, TrainingArguments) else dataclasses.asdict(argument)
        keys = [f.name for f in dataclasses.fields(argument) if f.init and f.name in values]
        resolved.update({key: values[key] for key in keys if "token" not in key or "tokens" in key})
    path = Path(output_dir) / "config_resolved.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(resolved))
    path.write_text(yaml.safe_dump(plain, sort_keys=True, allow_unicode=True), encoding="utf-8")


def error_line(error: Exception) -> str:
    """What a script says when it ends with an error of its input: one line."""
    message = str(error).strip()
    if "in DataLoader worker process" in message.partition("\n")[0]:  # a traceback, of which the last line counts
        message = message.splitlines()[-1].partition(": ")[2]
    return f"error: {' '.join(message.split())}"
