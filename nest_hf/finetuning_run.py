"""One finetuning run from arguments to a saved model: what `training/finetune.py` does, and each stage of a recipe."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .arguments import telephone_channel
from .best_models import BestModels
from .callbacks import TrainLogCallback
from .data.audio_encoding import write_whole
from .data.batching import TokenBudgetBatchSampler
from .data.labelled import LabelledCollator, LabelledDataset, LabelledRows, labelled_lengths, load_labelled
from .data.spec_augment import SpecAugment
from .finetuning import FinetuneTrainer
from .finetuning_arguments import (
    FinetuneDataArguments,
    FinetuneModelArguments,
    FinetuneTrainingArguments,
    check_together,
)
from .finetuning_parts import load_recogniser
from .freezing import FreezingCallback
from .handover import RECORD, read_record, verify, write_record
from .hub import push_run
from .lora import LoraSettings, add_lora, save_adapted
from .memory_probe import probe_longest
from .parsing import resolved, save_resolved
from .runs import changed_options, finish_run, start_run

logger = logging.getLogger(__name__)

BEGUN = "begun.json"


@dataclass
class FinetuneData:
    """Training and validation recordings of a run."""

    train: LabelledRows
    evals: dict[str, LabelledRows]


def read_data(data_args: FinetuneDataArguments, *, task: str) -> FinetuneData:
    """
    Reads what a run of a `task` needs, without decoding any audio.

    Raises:
        ValueError: without training data, for data that cannot be used, or domains that are named and not there.
    """
    if not data_args.train_data:
        raise ValueError("`train_data` is missing: give labelled recordings, --train_data manifest.json.")
    train = _read(data_args.train_data, data_args, task, name="train", split="train")
    domains = {domain for domain in train.rows["domain"][:] if domain}
    for option in ("channel_domains", "mix_weights"):
        for name in getattr(data_args, option) or ():
            if name not in domains:
                raise ValueError(
                    f"`{option}` names {name!r}, which is no domain of `train_data` ({', '.join(sorted(domains))}); "
                    "give a source as name=path."
                )
    evals = {
        name: _read(source, data_args, task, name=name, split="validation")
        for name, source in (data_args.eval_data or {}).items()
    }
    return FinetuneData(train, evals)


def _read(source, data_args: FinetuneDataArguments, task: str, *, name: str, split: str) -> LabelledRows:
    return load_labelled(
        source,
        name=name,
        split=split,
        text_level=data_args.text_level,
        ctc_text_level=data_args.ctc_text_level,
        with_prompts=task == "asr",
        min_duration_s=data_args.min_duration_s,
        max_duration_s=data_args.max_duration_s,
        on_bad_audio=data_args.on_bad_audio,
    )


def finetune(
    model_args: FinetuneModelArguments, data_args: FinetuneDataArguments, args: FinetuneTrainingArguments
) -> dict[str, float]:
    """
    Trains a recogniser, or goes on where a run of the same arguments was killed, and leaves in `output_dir` a whole
    model, `stage.json` (see [`~handover.write_record`]), `eval_results.json`, `train.log` and `predictions/`.

    Args:
        model_args ([`FinetuneModelArguments`]): The model, and what of it trains.
        data_args ([`FinetuneDataArguments`]): The recordings.
        args ([`FinetuneTrainingArguments`]): How.

    Returns:
        `dict`: the metrics of the result.
    """
    # 1. what is there
    check_together(model_args, data_args, args)
    config = resolved(model_args, data_args, args)
    resume = start_run(args)
    if (metrics := _completed(args, config)) is not None:
        if args.push_to_hub:
            push_run(args, commit_message="NEST finetuning")
        return metrics
    seed = args.data_seed if args.data_seed is not None else args.seed
    parent = _parent(model_args, args)
    _begin(args, parent, config)
    with args.main_process_first(local=False, desc="reading the data"):
        data = read_data(data_args, task=model_args.task)
    if not data.evals:
        args.eval_strategy, args.eval_on_start = "no", False

    # 2. model
    model, processor = load_recogniser(model_args, data.train.ctc_texts)
    is_asr = model.config.model_type == "nest_asr"
    if is_asr and (model_args.model_name_or_path is None or model.config.max_audio_s is not None):
        # of a model that comes from elsewhere nobody knows what longer audio it can do
        long_s = max(float(np.quantile(data.train.rows["duration"][:], 0.99)), data_args.join_to_s or 0.0)
        model.config.max_audio_s = max(model.config.max_audio_s or 0.0, math.ceil(100 * long_s) / 100)
    for name in () if is_asr else ("answer_noise", "hotword_share"):
        if getattr(data_args, name):
            raise ValueError(f"`{name}` is of the language model, which `task` ctc has not; leave it out.")
    if args.predict_with_generate and is_asr and model.config.lm_weight == 0:
        args.predict_with_generate = False  # an untrained language model has nothing to say
    trainable = model_args.trainable or ["*"]
    if model_args.lora:
        model, trainable = add_lora(model, LoraSettings.from_dict(model_args.lora)), ["*.lora_*"]

    # 3. batches
    train_dataset, sampler, collator, eval_sets = _batches(data, data_args, args, model, processor, seed=seed)

    # 4. trainer
    best_metric = args.metric_for_best_model or ("cer" if args.predict_with_generate and is_asr else "ctc_cer")
    if best_metric.endswith("accuracy"):
        raise ValueError(f"`metric_for_best_model` is {best_metric}, but lower must be better; choose an error rate.")
    # `cer` is that of the first set; longer names of sets first, since one may begin with another
    best_metric = best_metric.removeprefix("eval_")
    named = [name for name in sorted(eval_sets, key=len, reverse=True) if best_metric.startswith(f"{name}_")]
    best_set = next(iter([*named, *eval_sets]), "")
    best_metric = f"eval_{best_set}_{best_metric.removeprefix(f'{best_set}_')}"
    args.metric_for_best_model = None  # of Trainer's own choice between whole checkpoints
    trainer = FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset={name: dataset for name, (dataset, _, _) in eval_sets.items()},
        train_sampler=sampler,
        train_collator=collator,
        eval_sets=eval_sets,
        processing_class=processor,
        callbacks=[TrainLogCallback(args.output_dir), FreezingCallback(trainable)],
        text_level=data_args.eval_text_level,
        predict_with_generate=args.predict_with_generate,
        keywords=data_args.eval_keywords,
        segmenter=data_args.eval_segmenter,
        trainable=trainable,
        max_loss_ratio=args.max_loss_ratio,
    )
    if model_args.trainable:
        check_losses(model)
    if args.keep_best:
        trainer.best_models = BestModels(
            trainer,
            metric=best_metric,
            set_name=best_set,
            number=args.keep_best,
            patience=args.early_stopping_patience,
        )
        trainer.add_callback(trainer.best_models)
    torch.manual_seed(args.seed + args.process_index)  # dropout differs between processes
    if args.process_index == 0:
        save_resolved(args.output_dir, model_args, data_args, args)
        announce(model, data, sampler, args, resume)
    if data_args.probe:
        probe_longest(trainer, unit=data_args.budget_unit, max_memory_gb=data_args.max_memory_gb)

    # 5. train, choose, save
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.best_models.choose() if trainer.best_models else None
    if model_args.lora:
        trainer.save_result = lambda: save_adapted(trainer, model_args.model_name_or_path, merge=model_args.merge)
    if finish_run(trainer, validated=bool(data.evals), metrics=metrics):
        _record(trainer, args, data, parent, config)
        logger.info("    from nest_hf import Transcriber")
        logger.info('    Transcriber.from_pretrained("%s")("call.wav")', args.output_dir)
    trainer.accelerator.wait_for_everyone()
    if trainer.best_models:
        trainer.best_models.clean()
    if args.push_to_hub:
        push_run(args, commit_message="NEST finetuning")
    return json.loads(Path(args.output_dir, "eval_results.json").read_text())


def _completed(args: FinetuneTrainingArguments, config: dict) -> dict[str, float] | None:
    """The metrics of the same run, if it is complete already; the record of one that is to go on is removed."""
    with args.main_process_first(local=False, desc="looking for a complete stage"):
        record = read_record(args.output_dir)
        if record is None:
            return None
        if not changed_options(record["config"], config):
            verify(args.output_dir)
            logger.info("%s is complete (%s); nothing to do", args.output_dir, RECORD)
            return record["metrics"]
        if args.process_index == 0:
            Path(args.output_dir, RECORD).unlink()
    return None


# --- parts of a run -----------------------------------------------------------------------------------------------


def _parent(model_args: FinetuneModelArguments, args: FinetuneTrainingArguments) -> dict | None:
    """
    What the run starts from, verified: the same as when it began, and made by the stage that is due.
    """
    source = model_args.model_name_or_path
    if source is None:
        if args.parent_stage:
            raise ValueError("`parent_stage` has no effect without `model_name_or_path`; leave it out.")
        return None
    if not Path(source).is_dir():
        return {"path": source}  # on the Hub, whose revisions do not change
    record = read_record(source)
    if args.parent_stage and (record or {}).get("stage") != args.parent_stage:
        found = f"by stage `{record['stage']}`" if record else "by no stage that is complete (it has no stage.json)"
        raise ValueError(
            f"{source} was made {found}, but `parent_stage` is {args.parent_stage}; give that stage's folder."
        )
    return {"path": source, "stage": record and record["stage"], "sha256": verify(source).sha256}


def _begin(args: FinetuneTrainingArguments, parent: dict | None, config: dict) -> None:
    """Notes what the run starts from, and refuses to go on from anything else."""
    path = Path(args.output_dir, BEGUN)
    with args.main_process_first(local=False, desc="noting the parent"):
        begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if args.process_index == 0 and (begun is None or not args.auto_resume):
            write_whole(path, json.dumps({"parent": parent, "config": config}, ensure_ascii=False).encode())
    if begun is None or not args.auto_resume:
        return
    then, now = ((side or {}).get("sha256") for side in (begun["parent"], parent))
    if then != now:
        raise ValueError(
            f"{args.output_dir} was begun from another model ({(begun['parent'] or {}).get('path')}) than "
            f"{(parent or {}).get('path')} is now; choose a new `output_dir`, or restore that model."
        )
    if changed := changed_options(begun["config"], config):
        logger.warning("%s was begun with other options: %s", args.output_dir, "; ".join(changed))


def check_losses(model) -> None:
    """Refuses a part that is to train and that no loss reaches."""
    config, names = model.config, [name for name, p in model.named_parameters() if p.requires_grad]
    if config.model_type != "nest_asr":
        return
    for weight, parts in (
        ("ctc_weight", ("ctc_head.",)),
        ("lm_weight", ("model.multi_modal_projector.", "model.language_model.", "lm_head.")),
    ):
        reached = [name for name in names if name.startswith(parts)]
        if reached and getattr(config, weight) == 0:
            raise ValueError(f"`trainable` names {reached[0]}, which no loss reaches with `{weight}` 0; raise it.")


def _batches(data: FinetuneData, data_args, args, model, processor, *, seed: int):
    """Data sets, plans and collators of training and validation."""
    extractor, subsampling_factor = processor.feature_extractor, model.config.subsampling_factor
    audio = {
        "sampling_rate": extractor.sampling_rate,
        "resample": data_args.resample,
        "seed": seed,
        "on_bad_audio": data_args.on_bad_audio,
    }
    share = data_args.wideband_share or 0.0
    channel = telephone_channel(data_args.channel, share, talkers=data.train.rows, noise=None, seed=seed)
    train = LabelledDataset(
        data.train,
        no_speech_share=data_args.no_speech_share,
        hotword_share=data_args.hotword_share,
        channel=channel,
        channel_domains=data_args.channel_domains,
        wideband_share=share,
        **audio,
    )
    lengths = labelled_lengths(data.train, data_args.budget_unit, processor, subsampling_factor)
    sampler = plan(data.train, lengths, data_args, args, args.per_device_train_batch_size, train=True, seed=seed)
    dither = getattr(extractor, "dither", 0.0)  # extractors of transformers have none
    masks = None if data_args.spec_augment is None else SpecAugment.from_config(data_args.spec_augment)
    collator = LabelledCollator(
        processor,
        subsampling_factor=subsampling_factor,
        dither=dither,
        seed=seed,
        spec_augment=masks,
        answer_noise=data_args.answer_noise,
    )
    eval_sets = {}
    for name, labelled in data.evals.items():
        lengths = labelled_lengths(labelled, data_args.budget_unit, processor, subsampling_factor)
        batch_size = args.per_device_eval_batch_size
        eval_sets[name] = (
            LabelledDataset(labelled, **audio),
            plan(labelled, lengths, data_args, args, batch_size, train=False, seed=seed),
            LabelledCollator(processor, subsampling_factor=subsampling_factor),
        )
    return train, sampler, collator, eval_sets


def plan(labelled, lengths, data_args, args, batch_size: int, *, train: bool, seed: int) -> TokenBudgetBatchSampler:
    """Which recordings make up which batch."""
    budget = data_args.batch_budget
    mixes = train and data_args.mix != "all"
    join_to = None
    if train and data_args.join_to_s:  # in units of the lengths
        join_to = data_args.join_to_s * float(np.sum(lengths)) / float(np.sum(labelled.rows["duration"][:]))
    return TokenBudgetBatchSampler(
        lengths,
        budget=budget,
        batch_size=None if budget else batch_size,
        unit=data_args.budget_unit,
        sort_window=data_args.sort_window,
        shuffle=train,
        seed=seed,
        num_replicas=args.world_size,
        rank=args.process_index,
        join_to=join_to,
        ids=labelled.rows["id"],
        sources=[domain or "" for domain in labelled.rows["domain"][:]] if mixes else None,
        mix=data_args.mix if mixes else "all",
        mix_temperature=data_args.mix_temperature or 1.0,
        mix_weights=data_args.mix_weights if mixes else None,
    )


def announce(model, data: FinetuneData, sampler, args, resume) -> None:
    """Says what will be done before it starts."""
    for labelled in (data.train, *data.evals.values()):
        for report in labelled.reports:
            logger.info("%s", report)
    logger.info("stage: %s, model: %s", args.stage, type(model).__name__)
    for name, trainable, frozen in parameter_table(model):
        logger.info("  %-22s %14s trainable  %14s frozen", name, f"{trainable:,}", f"{frozen:,}")
    device = args.device if args.device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    logger.info("device: %s, processes: %d, bf16: %s, fp16: %s", device, args.world_size, args.bf16, args.fp16)
    per_epoch, steps = num_updates(sampler, args)
    logger.info("updates: %d, %d per epoch of %d batches per process", steps, per_epoch, len(sampler))
    logger.info("output: %s (train.log, checkpoints, predictions, config_resolved.yaml)", args.output_dir)
    if resume:
        logger.info("going on from %s", resume)


def num_updates(sampler: TokenBudgetBatchSampler, args) -> tuple[int, int]:
    """Updates of an epoch, and of the run."""
    per_epoch = math.ceil(len(sampler) / args.gradient_accumulation_steps)
    return per_epoch, args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)


def parameter_table(model) -> list[tuple[str, int, int]]:
    """Part, trainable and frozen parameters; shared weights belong to the first part that has them."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = model.model if model.config.model_type == "nest_asr" else model
    parts = {**dict(inner.named_children()), **{n: m for n, m in model.named_children() if n != "model"}}
    rows, counted = [], set()
    for name, module in parts.items():
        own = [p for p in module.parameters() if id(p) not in counted]
        counted.update(map(id, own))
        trainable = sum(p.numel() for p in own if p.requires_grad)
        rows.append((name, trainable, sum(p.numel() for p in own) - trainable))
    return rows


def _record(trainer, args, data: FinetuneData, parent: dict | None, config: dict) -> None:
    """Completes the run's folder by its `stage.json`."""
    metrics = json.loads(Path(args.output_dir, "eval_results.json").read_text())
    history = trainer.state.log_history
    before = {key: v for line in history if line["step"] == 0 for key, v in line.items() if key.startswith("eval_")}
    losses = [line["loss"] for line in history if "loss" in line]
    write_record(
        args.output_dir,
        stage=args.stage,
        parent=parent,
        trainable=list(trainer.trainable),
        parameters={name: {"trainable": t, "frozen": f} for name, t, f in parameter_table(trainer.model)},
        data={
            name: {
                "recordings": len(labelled.rows),
                "hours": float(np.sum(labelled.rows["duration"][:])) / 3600,
                "sources": sorted(set(labelled.rows["source"][:])),
            }
            for name, labelled in {"train": data.train, **data.evals}.items()
        },
        updates=trainer.state.global_step,
        chosen=trainer.best_models.chosen if trainer.best_models else "last update",
        metrics_before=before,
        metrics=metrics,
        losses={"first": losses[:1], "last": losses[-1:]},
        config=config,
    )


__all__ = ["FinetuneData", "finetune", "num_updates", "parameter_table", "plan", "read_data"]
