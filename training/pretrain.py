"""
Pretrains NEST on recordings without labels.

    accelerate launch training/pretrain.py configs/pretrain/nest_large.yaml \\
        --train_data train.json --eval_data dev.json --noise_data noise.json --output_dir runs/nest_large
    accelerate launch --multi_gpu --num_processes 8 training/pretrain.py ...            # N GPUs (configs/accelerate/)
    python training/pretrain.py configs/pretrain/nest_tiny.yaml ... --use_cpu true      # debug on a laptop

YAML files hold what differs from the defaults; options on the command line win. A run that was killed goes on from its
newest whole checkpoint when the same command is given again.
"""

import json
import logging
import sys
from pathlib import Path

import torch

from nest_hf import NestFeatureExtractor, NestForPreTraining
from nest_hf.arguments import (
    NestModelArguments,
    NestTrainingArguments,
    PretrainingDataArguments,
    model_config,
    noise_augmentation,
    telephone_channel,
)
from nest_hf.callbacks import TrainLogCallback
from nest_hf.convert_nemo import convert, read_archive
from nest_hf.data import (
    NoiseSource,
    PretrainingCollator,
    PretrainingDataset,
    StreamedBatches,
    TokenBudgetBatchSampler,
    load_with_report,
)
from nest_hf.handover import RECORD, read_record, verify, write_record
from nest_hf.hub import push_run
from nest_hf.parsing import error_line, parse_arguments, resolved, save_resolved
from nest_hf.runs import end_processes, finish_run, start_run
from nest_hf.trainer import NestTrainer

logger = logging.getLogger("pretrain")


def main():
    # 1. arguments
    model_args, data_args, args = parse_arguments(NestModelArguments, PretrainingDataArguments, NestTrainingArguments)
    if not data_args.train_data:
        raise ValueError("`train_data` is missing: give recordings, --train_data manifest.json (README: Data).")
    resume = start_run(args)
    parent = parent_of(model_args.model_name_or_path)

    # 2. model
    model, extractor = load_model(model_args, data_args)
    if model_args.sync_batchnorm and args.world_size > 1:
        if args.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            logger.warning("sync_batchnorm has no effect on CPU: every process keeps BatchNorm statistics of its own.")

    # 3. data
    with args.main_process_first(local=False, desc="reading the data"):
        train_rows, reports = load_rows(data_args.train_data, data_args, args, name="train", train=True)
        eval_rows = {}
        eval_data = data_args.eval_data or {}
        for name, source in eval_data.items():
            eval_rows[name], report = load_rows(source, data_args, args, name=name)
            reports += report
        noise, report = load_noise(data_args.noise_data, data_args, name="noise")
        reports += report
        eval_noise, report = load_noise(data_args.eval_noise_data, data_args, name="eval_noise")
        reports += report
    if not eval_rows:
        args.eval_strategy = "no"
    options = {
        "sampling_rate": extractor.sampling_rate,
        "resample": data_args.resample,
        "seed": args.data_seed if args.data_seed is not None else args.seed,
        "on_bad_audio": data_args.on_bad_audio,
    }
    augmentation = noise_augmentation(data_args.noise_augmentation, data_args.noise)
    collator = PretrainingCollator(model.config, extractor, augmentation=augmentation, seed=options["seed"])
    sampler = None
    channel = telephone_channel(
        data_args.channel,
        data_args.wideband_share,
        talkers=None if data_args.streaming else train_rows,
        noise=noise.rows if noise else None,
        seed=options["seed"],
    )
    train_dataset = PretrainingDataset(
        train_rows,
        noise=noise if augmentation else None,
        channel=channel,
        wideband_share=data_args.wideband_share,
        **options,
    )
    if data_args.streaming:
        train_dataset = stream_batches(train_rows, train_dataset, collator, data_args, args)
    else:
        sampler = batch_plan(train_rows, data_args, args, batch_size=args.per_device_train_batch_size)
    eval_sets = validation_sets(
        eval_rows, eval_noise or noise, channel, model.config, extractor, data_args, args, options
    )

    if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):
        args.metric_for_best_model, args.greater_is_better = f"{next(iter(eval_sets))}_loss", False

    # 4. trainer
    trainer = NestTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset={name: dataset for name, (dataset, _, _) in eval_sets.items()},
        train_sampler=sampler,
        train_collator=collator,
        eval_sets=eval_sets,
        processing_class=extractor,
        callbacks=[TrainLogCallback(args.output_dir)],
    )
    torch.manual_seed(args.seed + args.process_index)  # dropout differs between processes
    if args.process_index == 0:
        save_resolved(args.output_dir, model_args, data_args, args)
        Path(args.output_dir, RECORD).unlink(missing_ok=True)  # of a run that ended here and now goes on
        announce(model, reports, sampler, args, resume)

    # 5. train, validate, save
    trainer.train(resume_from_checkpoint=resume)
    if finish_run(trainer, validated=bool(eval_rows)):
        write_record(
            args.output_dir,
            stage="pretraining",
            parent=parent,
            data={part.name: {"recordings": part.rows, "hours": part.hours} for part in reports},
            updates=trainer.state.global_step,
            metrics=json.loads(Path(args.output_dir, "eval_results.json").read_text()),
            config=resolved(model_args, data_args, args),
        )
        logger.info("    from nest_hf import NestModel, NestFeatureExtractor")
        logger.info('    model = NestModel.from_pretrained("%s")', args.output_dir)
        logger.info('    extractor = NestFeatureExtractor.from_pretrained("%s")', args.output_dir)
    if args.push_to_hub:
        push_run(args, commit_message="NEST pretraining")


def parent_of(source: str | None) -> dict | None:
    """What the run starts from, for its record."""
    if source is None or not Path(source).is_dir():
        return source and {"path": source}
    return {"path": source, "stage": (read_record(source) or {}).get("stage"), "sha256": verify(source).sha256}


def load_model(model_args: NestModelArguments, data_args: PretrainingDataArguments):
    """The model to train, from scratch or from weights, and its feature extractor."""
    start = model_args.model_name_or_path
    if start is not None and (model_args.config_overrides or model_args.preset):
        raise ValueError("`model_name_or_path` decides the model; leave out `preset` and `config_overrides`.")
    if start is None:
        model = NestForPreTraining(model_config(model_args))
        extractor = NestFeatureExtractor.at_rate(data_args.sampling_rate, feature_size=model.config.num_mel_bins)
    elif str(start).endswith(".nemo"):
        model, extractor = convert(*read_archive(start), source=start)
    else:
        model = NestForPreTraining.from_pretrained(start, dtype=torch.float32)
        extractor = NestFeatureExtractor.from_pretrained(start)
    if extractor.sampling_rate != data_args.sampling_rate:
        raise ValueError(f"`sampling_rate` is {data_args.sampling_rate}, the model's {extractor.sampling_rate} Hz.")
    model.set_attn_implementation(model_args.attn_implementation)
    return model, extractor


def load_rows(source, data_args, args, *, name: str, train: bool = False):
    split = "train" if train else "validation"
    streaming = data_args.streaming and train
    limits = duration_limits(data_args)
    if streaming:  # StreamedBatches counts what it leaves out itself
        limits = {"mix_weights": data_args.mix_weights if data_args.mix == "random" else None, "seed": args.seed}
    rows, report = load_with_report(
        source, streaming=streaming, split=split, name=name, on_bad_audio=data_args.on_bad_audio, **limits
    )
    return rows, [report]


def duration_limits(data_args) -> dict:
    low = data_args.min_duration_s
    if low is None:
        low = 0.0 if data_args.join_to_s else 1.0
    return {"min_duration_s": low, "max_duration_s": data_args.max_duration_s}


def load_noise(source, data_args, *, name: str):
    if not source:
        return None, []
    rows, report = load_with_report(source, name=name, on_bad_audio=data_args.on_bad_audio)
    clips = NoiseSource(
        rows, sampling_rate=data_args.sampling_rate, resample=data_args.resample, short_noise=data_args.short_noise
    )
    return clips, [report]


def batch_plan(rows, data_args, args, *, batch_size: int, train: bool = True) -> TokenBudgetBatchSampler:
    sources = rows["source"][:] if train and data_args.mix != "all" else None
    if sources is not None:
        names = list(dict.fromkeys(sources))
        sources = [names.index(source) for source in sources]
    budget = data_args.batch_duration_s
    return TokenBudgetBatchSampler(
        rows["duration"][:],
        budget=budget,
        batch_size=None if budget else batch_size,
        sort_window=data_args.sort_window,
        shuffle=train,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_replicas=args.world_size,
        rank=args.process_index,
        join_to=data_args.join_to_s,
        sources=sources,
        mix=data_args.mix if train else "all",
        mix_temperature=data_args.mix_temperature,
        mix_weights=data_args.mix_weights,
        ids=rows["id"],
    )


def validation_sets(eval_rows, noise, channel, config, extractor, data_args, args, options) -> dict:
    """name -> (data set, batch plan, collator), for every validation set and condition."""
    conditions = data_args.eval_conditions or ["noisy"]
    if not set(conditions) <= {"clean", "noisy", "telephone"}:
        raise ValueError(f"`eval_conditions` is {conditions}; choose from clean, noisy, telephone.")
    if "telephone" in conditions and channel is None:
        raise ValueError("`eval_conditions` has telephone; say by which `channel`.")
    augmentation = noise_augmentation(data_args.eval_noise_augmentation, data_args.noise)
    sets = {}
    for name, rows in eval_rows.items():
        sampler = batch_plan(rows, data_args, args, batch_size=args.per_device_eval_batch_size, train=False)
        for condition in conditions:
            added = augmentation if condition == "noisy" else None
            line = channel if condition == "telephone" else None
            dataset = PretrainingDataset(rows, noise=noise if added else None, channel=line, **options)
            collator = PretrainingCollator(config, extractor, augmentation=added, seed=options["seed"], dither=False)
            sets[name if len(conditions) == 1 else f"{name}_{condition}"] = (dataset, sampler, collator)
    return sets


def stream_batches(rows, examples, collator, data_args, args) -> StreamedBatches:
    if args.max_steps <= 0:
        raise ValueError("a streamed data set has no length: set `max_steps`.")
    if data_args.batch_duration_s is None:
        raise ValueError("a streamed data set is batched by duration: set `batch_duration_s`.")
    if data_args.join_to_s or data_args.mix not in ("all", "random"):
        raise ValueError("`join_to_s` and `mix` need the whole data set (but for `random`); leave out `streaming`.")
    if data_args.mix_weights and data_args.mix != "random":
        raise ValueError("`mix_weights` has no effect without `mix` random; give both.")
    return StreamedBatches(
        rows,
        examples,
        collator,
        budget_s=data_args.batch_duration_s,
        **duration_limits(data_args),
        seed=examples.seed,
        num_replicas=args.world_size,
        rank=args.process_index,
    )


def announce(model, reports, sampler, args, resume) -> None:
    """Says what will be done before it starts."""
    for report in reports:
        logger.info("%s", report)
    logger.info("model: %s", model.config.model_type)
    for name, module in model.named_children():
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in module.buffers()) + sum(p.numel() for p in module.parameters()) - trainable
        logger.info("  %-10s %12s trainable  %12s fixed", name, f"{trainable:,}", f"{frozen:,}")
    device = args.device if args.device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    logger.info("device: %s, processes: %d, bf16: %s, fp16: %s", device, args.world_size, args.bf16, args.fp16)
    if sampler is not None:
        logger.info("batches per epoch and process: %d", len(sampler))
    if args.max_steps > 0:
        logger.info("updates: %d", args.max_steps)
    else:
        logger.info("epochs: %s", args.num_train_epochs)
    logger.info("output: %s (train.log, checkpoints, config_resolved.yaml)", args.output_dir)
    if resume:
        logger.info("going on from %s", resume)


if __name__ == "__main__":
    try:
        main()
        end_processes()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")  # a progress bar may stand in the line before
