"""How a training script begins and ends: the same checks, words and files for pretraining and finetuning."""

import json
import logging
import sys
from pathlib import Path

import datasets
import torch
import transformers
from transformers import TrainingArguments, set_seed

from .callbacks import report_audio
from .hub import hide_token
from .planned_trainer import PlannedTrainer, last_complete_checkpoint

logger = logging.getLogger(__name__)

NOT_IN_THE_RESULT = (
    *("dataloader_", "logging_", "num_threads", "report_to", "disable_tqdm", "run_name", "probe", "max_memory_gb"),
    *("log_level", "auto_resume", "resume_from_checkpoint", "push_to_hub", "hub_", "save_total_limit", "overwrite"),
)


def start_run(args: TrainingArguments) -> str | None:
    """
    Refuses what cannot go well, sets threads, log and seed, and looks for what is there.

    Returns:
        `str`, *optional*: The checkpoint to go on from.

    Raises:
        ValueError: without `output_dir`, with several GPUs in one process, or for a checkpoint without random state.
    """
    if args.output_dir in (None, "", "trainer_output"):
        raise ValueError("`output_dir` is missing: say where the run goes, --output_dir runs/name.")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs; start with `accelerate launch`, or choose one by --gpu_ids 0."
        )
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    level = logging.INFO if args.process_index == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    for name in ("httpx", "httpx2"):  # of either generation of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    hide_token(args)
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        newest = last_complete_checkpoint(args.output_dir) if args.auto_resume else None
    resume = args.resume_from_checkpoint or newest
    if resume and not any(Path(resume).glob("rng_state*")):
        raise ValueError(
            f"{resume} holds a model only (save_only_model); start from it with --model_name_or_path and "
            "--auto_resume false."
        )
    args.eval_on_start = args.eval_on_start and not resume  # Trainer would validate wherever it goes on
    return resume


def finish_run(trainer: PlannedTrainer, *, validated: bool, metrics: dict | None = None) -> bool:
    """
    Validates where the last update was not, saves the model, `trainer_state.json`, `eval_results.json` and the report
    on recordings, and prints the figures. Every process has to call it.

    Args:
        trainer ([`PlannedTrainer`]): After training.
        validated (`bool`): Whether there are validation sets.
        metrics (`dict`, *optional*): Of the model as it is, where they are known.

    Returns:
        `bool`: whether this is the process that speaks.
    """
    args = trainer.args
    metrics = metrics or trainer.last_metrics() or (trainer.evaluate() if validated else {})
    trainer.save_result()
    trainer.save_state()
    audio_report = trainer.gather_audio_report()
    if args.process_index != 0:
        return False
    report_audio(audio_report, args.output_dir)
    metrics = {name: metrics[name] for name in sorted(metrics) if not name.endswith(("_runtime", "_per_second"))}
    Path(args.output_dir, "eval_results.json").write_text(json.dumps(metrics, indent=2))
    for name, value in metrics.items():
        logger.info("%s: %.6g", name, value)
    logger.info("\nthe model is in %s; load it with", args.output_dir)
    return True


def end_processes() -> None:
    """Waits until all processes have done their work, and closes their group: a process that goes early, while another
    still listens to it, would make that one abort."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def changed_options(then: dict, now: dict) -> list[str]:
    """Options that differ and that change the result, each with its value then and now."""
    names = sorted(name for name in then.keys() | now.keys() if not name.startswith(NOT_IN_THE_RESULT))
    return [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
