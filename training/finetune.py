"""
Trains a recogniser on labelled recordings, all of it at once: NEST-ASR (encoder, CTC head, adaptor, language model),
or the encoder with a CTC head alone.

    accelerate launch training/finetune.py configs/finetune/nest_asr.yaml --audio_tower runs/nest_large \\
        --language_model Qwen/Qwen3-0.6B --train_data train.json --eval_data dev.json --output_dir runs/asr
    accelerate launch --multi_gpu --num_processes 8 training/finetune.py ...            # N GPUs (configs/accelerate/)
    python training/finetune.py --task ctc --preset tiny ... --use_cpu true             # CTC, debug on a laptop

YAML files hold what differs from the defaults; options on the command line win. A run that was killed goes on from its
newest whole checkpoint when the same command is given again.
"""

import logging
import sys

import numpy as np
import torch

from nest_hf.arguments import telephone_channel
from nest_hf.callbacks import TrainLogCallback
from nest_hf.data.batching import TokenBudgetBatchSampler
from nest_hf.data.labelled import LabelledCollator, LabelledDataset, labelled_lengths, load_labelled
from nest_hf.finetuning import FinetuneTrainer
from nest_hf.finetuning_arguments import FinetuneDataArguments, FinetuneModelArguments, FinetuneTrainingArguments
from nest_hf.finetuning_parts import load_recogniser
from nest_hf.parsing import error_line, parse_arguments, save_resolved
from nest_hf.probe import probe_longest
from nest_hf.runs import finish_run, start_run

logger = logging.getLogger("finetune")


def main():
    # 1. arguments
    model_args, data_args, args = parse_arguments(
        FinetuneModelArguments, FinetuneDataArguments, FinetuneTrainingArguments
    )
    if not data_args.train_data:
        raise ValueError("`train_data` is missing: give labelled recordings, --train_data manifest.json.")
    if args.load_best_model_at_end and not data_args.eval_data:
        raise ValueError("`load_best_model_at_end` has no effect without `eval_data`; give it, or leave it out.")
    resume = start_run(args)
    seed = args.data_seed if args.data_seed is not None else args.seed

    # 2. data
    with args.main_process_first(local=False, desc="reading the data"):
        train = read(data_args.train_data, data_args, name="train", split="train")
        evals = {
            name: read(source, data_args, name=name, split="validation")
            for name, source in (data_args.eval_data or {}).items()
        }
    if not evals:
        args.eval_strategy = "no"

    # 3. model
    model, processor = load_recogniser(model_args, train.ctc_texts)
    extractor = processor.feature_extractor
    subsampling_factor = model.config.subsampling_factor
    if args.predict_with_generate and model.config.model_type == "nest_asr" and model.config.lm_weight == 0:
        args.predict_with_generate = False  # an untrained language model has nothing to say

    # 4. batches
    audio = {
        "sampling_rate": extractor.sampling_rate,
        "resample": data_args.resample,
        "seed": seed,
        "on_bad_audio": data_args.on_bad_audio,
    }
    channel = telephone_channel(
        data_args.channel, data_args.wideband_share or 0.0, talkers=train.rows, noise=None, seed=seed
    )
    train_dataset = LabelledDataset(train, channel=channel, wideband_share=data_args.wideband_share or 0.0, **audio)
    train_lengths = labelled_lengths(train, data_args.budget_unit, processor, subsampling_factor)
    sampler = plan(train, train_lengths, data_args, args, args.per_device_train_batch_size, shuffle=True, seed=seed)
    dither = getattr(extractor, "dither", 0.0)  # extractors of transformers have none
    collator = LabelledCollator(processor, subsampling_factor=subsampling_factor, dither=dither, seed=seed)
    eval_sets = {}
    for name, rows in evals.items():
        lengths = labelled_lengths(rows, data_args.budget_unit, processor, subsampling_factor)
        eval_sets[name] = (
            LabelledDataset(rows, **audio),
            plan(rows, lengths, data_args, args, args.per_device_eval_batch_size, shuffle=False, seed=seed),
            LabelledCollator(processor, subsampling_factor=subsampling_factor),
        )
    if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):
        has_text = model.config.model_type == "nest_asr" and args.predict_with_generate
        metric = "cer" if has_text else "ctc_cer"
        args.metric_for_best_model, args.greater_is_better = f"{next(iter(eval_sets))}_{metric}", False

    # 5. trainer
    trainer = FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset={name: dataset for name, (dataset, _, _) in eval_sets.items()},
        train_sampler=sampler,
        train_collator=collator,
        eval_sets=eval_sets,
        processing_class=processor,
        callbacks=[TrainLogCallback(args.output_dir)],
        text_level=data_args.eval_text_level,
        predict_with_generate=args.predict_with_generate,
    )
    torch.manual_seed(args.seed + args.process_index)  # dropout differs between processes
    if args.process_index == 0:
        save_resolved(args.output_dir, model_args, data_args, args)
        announce(model, [train, *evals.values()], sampler, args, resume)
    if data_args.probe:
        probe_longest(trainer, unit=data_args.budget_unit, max_memory_gb=data_args.max_memory_gb)

    # 6. train, validate, save
    trainer.train(resume_from_checkpoint=resume)
    if finish_run(trainer, validated=bool(evals)):
        logger.info("    from nest_hf import %s", type(model).__name__)
        logger.info('    model = %s.from_pretrained("%s")', type(model).__name__, args.output_dir)
        logger.info('    processor = AutoProcessor.from_pretrained("%s")   # of transformers', args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="NEST finetuning")


def read(source, data_args, *, name: str, split: str):
    return load_labelled(
        source,
        name=name,
        split=split,
        text_level=data_args.text_level,
        ctc_text_level=data_args.ctc_text_level,
        min_duration_s=data_args.min_duration_s,
        max_duration_s=data_args.max_duration_s,
        on_bad_audio=data_args.on_bad_audio,
    )


def plan(labelled, lengths, data_args, args, batch_size: int, *, shuffle: bool, seed: int) -> TokenBudgetBatchSampler:
    budget = data_args.batch_budget
    return TokenBudgetBatchSampler(
        lengths,
        budget=budget,
        batch_size=None if budget else batch_size,
        unit=data_args.budget_unit,
        sort_window=data_args.sort_window,
        shuffle=shuffle,
        seed=seed,
        num_replicas=args.world_size,
        rank=args.process_index,
        ids=labelled.rows["id"],
    )


def announce(model, data, sampler, args, resume) -> None:
    """Says what will be done before it starts."""
    for report in (report for labelled in data for report in labelled.reports):
        logger.info("%s", report)
    logger.info("model: %s", type(model).__name__)
    inner = model.model if model.config.model_type == "nest_asr" else model
    parts = {**dict(inner.named_children()), **{n: m for n, m in model.named_children() if n != "model"}}
    counted: set[int] = set()  # tied weights belong to the first part that has them
    for name, module in parts.items():
        own = [p for p in module.parameters() if id(p) not in counted]
        counted.update(map(id, own))
        trainable = sum(p.numel() for p in own if p.requires_grad)
        frozen = sum(p.numel() for p in own) - trainable
        logger.info("  %-22s %14s trainable  %14s fixed", name, f"{trainable:,}", f"{frozen:,}")
    device = args.device if args.device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    logger.info("device: %s, processes: %d, bf16: %s, fp16: %s", device, args.world_size, args.bf16, args.fp16)
    per_epoch = int(np.ceil(len(sampler) / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else int(np.ceil(per_epoch * args.num_train_epochs))
    logger.info("updates: %d, %d per epoch of %d batches per process", steps, per_epoch, len(sampler))
    logger.info("output: %s (train.log, checkpoints, predictions, config_resolved.yaml)", args.output_dir)
    if resume:
        logger.info("going on from %s", resume)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")  # a progress bar may stand in the line before
