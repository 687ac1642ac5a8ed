"""What a recipe will do, said before it starts: machine, data, updates, time."""

import importlib.metadata
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from .data.labelled import LabelledCollator, LabelledDataset, labelled_lengths
from .finetuning_parts import load_recogniser
from .finetuning_run import FinetuneData, num_updates, plan, read_data
from .freezing import matches
from .stages import Recipe, Stage

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets")


def describe_machine(output_dir: str) -> list[str]:
    """Lines on GPUs, memory, free disk and versions."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    lines = [f"GPU {i}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for i, gpu in enumerate(gpus)] or ["no GPU"]
    folder = Path(output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    lines.append(
        f"memory: {psutil.virtual_memory().available / 2**30:.0f} GB free, {psutil.cpu_count()} cores; "
        f"disk: {shutil.disk_usage(folder).free / 2**30:.0f} GB free"
    )
    lines.append(", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES))
    return lines


def describe_stages(recipe: Recipe, stages: list[Stage], *, estimate: bool = True) -> list[str]:
    """
    A line per stage: what is done, hours of audio, updates, and about how long the updates take; and which options of
    the recipe a stage does not follow, because its configuration file has its own.

    Args:
        recipe ([`Recipe`]): The whole.
        stages (`list[Stage]`): Those that are to run.
        estimate (`bool`, *optional*, defaults to `True`):
            Measure one update of every stage on the first model of the recipe that is there. Validation comes on top.

    Raises:
        ValueError: for data that are missing, unless an earlier stage of the recipe makes them.
    """
    lines, model = [], None
    for stage in stages:
        if stage.is_complete():
            lines.append(f"stage {stage.number} {stage.name}: complete")
            continue
        if stage.kind != "finetune":
            stage.arguments()
            lines.append(f"stage {stage.number} {stage.name}: to do")
            continue
        model_args, data_args, args = stage.arguments()
        if stage.shadowed:
            lines.append(f"stage {stage.number} {stage.name}: its config has its own {', '.join(stage.shadowed)}")
        made_here = [source for source in data_args.train_data or [] if str(recipe.output_dir) in source]
        if made_here and not all(Path(source.partition("=")[2] or source).exists() for source in made_here):
            lines.append(f"stage {stage.number} {stage.name}: on data that an earlier stage makes")
            continue
        data = read_data(data_args, task=model_args.task)
        hours = float(np.sum(data.train.rows["duration"][:])) / 3600
        begun = "goes on" if any(Path(stage.folder).glob("checkpoint-*")) else "to do"
        line = f"stage {stage.number} {stage.name}: {begun}; {hours:.2f} h in {len(data.train.rows)} recordings"
        if estimate and model is None and _is_there(model_args, recipe):
            model = load_recogniser(model_args, data.train.ctc_texts)
        if model is not None:
            updates, seconds = _time(*model, model_args, data_args, args, data)
            line += f", {updates} updates, about {_duration(updates * seconds)} without validation"
        lines.append(line)
    return lines


def _is_there(model_args, recipe: Recipe) -> bool:
    """Whether the model can be loaded now: not where an earlier stage has to make it, or a part of it, first."""
    sources = (model_args.model_name_or_path, model_args.audio_tower, model_args.language_model)
    made_here = [Path(source) for source in sources if source and source.startswith(str(recipe.output_dir))]
    return all((folder / "config.json").is_file() for folder in made_here)


def _time(model, processor, model_args, data_args, args, data: FinetuneData) -> tuple[int, float]:
    """Updates of a stage and the seconds of one: forward and backward of a batch of median size, the second time."""
    subsampling_factor = model.config.subsampling_factor
    lengths = labelled_lengths(data.train, data_args.budget_unit, processor, subsampling_factor)
    sampler = plan(data.train, lengths, data_args, args, args.per_device_train_batch_size, train=True, seed=args.seed)
    _, updates = num_updates(sampler, args)
    batches = sorted(
        sampler.plan(0), key=lambda batch: len(batch) * max(lengths[list(key.rows)].sum() for key in batch)
    )
    audio = {"sampling_rate": processor.feature_extractor.sampling_rate, "on_bad_audio": "skip"}
    dataset = LabelledDataset(data.train, **audio)
    examples = [dataset[key] for key in batches[len(batches) // 2]]
    batch = LabelledCollator(processor, subsampling_factor=subsampling_factor)(examples)
    inputs = {name: value.to(args.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}

    # a LoRA adapter costs what the language model's activations and gradients cost
    trainable = ["model.multi_modal_projector"] if model_args.lora else model_args.trainable or ["*"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matches(name, trainable))
    is_asr = model.config.model_type == "nest_asr"
    weights = {n: getattr(model_args, n) for n in ("lm_weight", "ctc_weight") if is_asr}
    if not is_asr:
        inputs = {"input_features": inputs["input_features"], "attention_mask": inputs["input_features_mask"]}
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model.to(args.device).train()
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            outputs = model(**inputs, **weights)
            loss = outputs.loss if outputs.get("loss") is not None else outputs.logits.float().square().mean()
        loss.backward()
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    model.cpu()
    return updates, seconds * args.gradient_accumulation_steps


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


__all__ = ["describe_machine", "describe_stages"]
