"""`transformers.Trainer` for NEST pretraining: our batches, Noam, exact validation, checkpoints that are whole."""

import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint, sort_checkpoints

from .data.batching import TokenBudgetBatchSampler
from .data.pretraining import PretrainingCollator, PretrainingDataset, StreamedBatches


def noam_factor(step: int, *, d_model: int, warmup_steps: float, min_factor: float = 0.0) -> float:
    """
    NeMo's NoamAnnealing: d^-0.5 * min(s^-0.5, s * w^-1.5) with s = max(1, step); the floor holds after the warm-up.

    Args:
        step (`int`): Updates done; the factor is that of the next one.
        d_model (`int`): Width of the encoder.
        warmup_steps (`float`): w; 0 for none.
        min_factor (`float`, *optional*, defaults to 0.0): Least learning rate / base learning rate.
    """
    step = max(1, step)
    warm = step * warmup_steps**-1.5 if warmup_steps else math.inf
    factor = d_model**-0.5 * min(step**-0.5, warm)
    return max(factor, min_factor) if step > warmup_steps else factor


class _PlannedDataLoader(DataLoader):
    """A loader whose batch sampler hears of the epoch, and which leaves the global random state alone."""

    def __init__(self, dataset, sampler: TokenBudgetBatchSampler, **kwargs):
        super().__init__(dataset, batch_sampler=sampler, generator=torch.Generator().manual_seed(0), **kwargs)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class NestTrainer(Trainer):
    """
    Trains [`NestForPreTraining`].

    Args:
        train_sampler (`TokenBudgetBatchSampler`, *optional*): Plan of `train_dataset`; none for [`StreamedBatches`].
        train_collator (`PretrainingCollator`): From examples to batches.
        eval_sets (`dict`, *optional*): name -> ([`PretrainingDataset`], [`TokenBudgetBatchSampler`], collator).
        args, model, train_dataset, eval_dataset, processing_class, callbacks: As `Trainer`.

    The loss is the sum over masked frames / their number over all processes and accumulated batches. Validation sums
    over whole sets, with masks and noise of epoch 0. What was odd about the audio is collected in `audio_report`.
    """

    def __init__(
        self,
        *args,
        train_sampler: TokenBudgetBatchSampler | None = None,
        train_collator: PretrainingCollator | None = None,
        eval_sets: dict | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.train_sampler = train_sampler
        self.train_collator = train_collator
        self.eval_sets = eval_sets or {}
        self.audio_report: dict[tuple[str, str], str] = {}  # (kind, recording's id) -> message
        self._reset_sums()

    # --- data -----------------------------------------------------------------------------------------------------

    def _loader_options(self) -> dict:
        workers = self.args.dataloader_num_workers
        return {
            "num_workers": workers,
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "prefetch_factor": (self.args.dataloader_prefetch_factor or 4) if workers else None,
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0,
        }

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, StreamedBatches):
            return DataLoader(self.train_dataset, batch_size=None, **self._loader_options())
        return _PlannedDataLoader(
            self.train_dataset, self.train_sampler, collate_fn=self.train_collator, **self._loader_options()
        )

    def get_eval_dataloader(self, eval_dataset: str | PretrainingDataset | None = None) -> DataLoader:
        name = eval_dataset if isinstance(eval_dataset, str) else next(iter(self.eval_sets))
        dataset, sampler, collator = self.eval_sets[name]
        return _PlannedDataLoader(dataset, sampler, collate_fn=collator, **self._loader_options())

    def _prepare_inputs(self, inputs):
        """Moves a batch to the device; the features of the targets keep float32, also where the model does not."""
        targets = inputs.pop("target_features")
        return {**super()._prepare_inputs(inputs), "target_features": targets.to(self.args.device)}

    def _build_accelerator_args(self, **kwargs) -> dict:
        args = super()._build_accelerator_args(**kwargs)
        args["kwargs_handlers"][0].gradient_as_bucket_view = self.args.ddp_gradient_as_bucket_view
        return args

    # --- optimizer and schedule ------------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model) -> list[str]:
        """NeMo decays every parameter, biases and norms included."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.schedule != "noam":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            options = {
                "d_model": self.model.config.hidden_size,
                "warmup_steps": self.args.get_warmup_steps(num_training_steps),
                "min_factor": self.args.min_lr / self.args.learning_rate,
            }
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: noam_factor(step, **options))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, where Trainer would do one step more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # --- one step ---------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, notes = inputs.pop("ids"), inputs.pop("notes")
        self._note(notes)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._count(inputs, outputs)
            self._ids_since_log.append(ids)
            if loss.device.type == "cpu":  # elsewhere asking would make every step wait; `log` asks
                self._check_finite(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        """As Trainer's, which rescales all gradients by 1 to measure their norm where nothing is clipped."""
        if grad_norm is not None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._get_grad_norm(model, grad_norm)
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def _check_finite(self, loss) -> None:
        if not math.isfinite(loss):
            ids = [example for batch in self._ids_since_log[-8:] for example in batch]
            raise ValueError(
                f"the loss is {float(loss)} at step {self.state.global_step}; lower `learning_rate`, or look at these "
                f"recordings: {', '.join(ids[:16])}{', ...' if len(ids) > 16 else ''}."
            )

    def _note(self, notes) -> None:
        for recording, kind, message in notes:
            self.audio_report.setdefault((kind, recording), message)

    def gather_audio_report(self) -> list[tuple[str, str, str]]:
        """(kind, recording's id, message) from all processes, each of which has to call this."""
        return sorted(set(gather_object([(*key, message) for key, message in self.audio_report.items()])))

    def _reset_sums(self) -> None:
        self._sums: Counter = Counter()
        self._ids_since_log: list[list[str]] = []
        self._log_time = time.perf_counter()

    def _count(self, inputs, outputs) -> None:
        mask = inputs["attention_mask"]
        self._sums["correct"] += outputs["num_correct"]
        self._sums["predictions"] += (inputs["labels"] != -100).sum() * self.model.config.num_codebooks
        self._sums["frames"] += mask.sum()
        self._sums["padded_frames"] += mask.numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy, speed, padding and memory of the steps since the last line to the log of a training step."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = torch.tensor([float(self._sums[name]) for name in names], device=self.args.device)
            total = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
            elapsed = time.perf_counter() - self._log_time
            hop_s = self.train_collator.extractor.hop_length / self.train_collator.extractor.sampling_rate
            logs["accuracy"] = total["correct"] / max(1.0, total["predictions"])
            logs["audio_s_per_s"] = total["frames"] * hop_s / elapsed
            logs["padding"] = 1 - total["frames"] / max(1.0, total["padded_frames"])
            logs["memory_gb"] = _peak_memory_gb(self.args.device)
            self._check_finite(torch.tensor(logs["loss"]))
            self._reset_sums()
        super().log(logs, start_time)

    # --- validation -------------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None,
                        metric_key_prefix="eval"):  # fmt: skip
        """Sums over the whole set (and all processes) instead of means of batch means."""
        started = time.perf_counter()
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        if self.args.world_size > 1:  # BatchNorm's statistics differ by process; those of the first are saved
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        config = self.model.config
        device = self.args.device
        histogram = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.float64, device=device)
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, frames in it, right predictions, examples
        hide = not (sys.stderr.isatty() and self.is_world_process_zero()) or self.args.disable_tqdm
        for batch in tqdm(dataloader, desc=f"{description} {metric_key_prefix}", leave=False, disable=hide):
            batch = self._prepare_inputs(batch)
            self._note(batch.pop("notes"))
            batch.pop("ids")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**batch, output_logits=False, num_items_in_batch=1)
            in_loss = batch["labels"] != -100
            parts = (outputs["loss"], in_loss.sum(), outputs["num_correct"])
            sums += torch.stack([*(part.double() for part in parts), sums.new_tensor(len(in_loss))])
            valid = outputs["attention_mask"].bool()
            codes = outputs["codes"].reshape(*valid.shape, config.num_codebooks)[valid]  # (N, H)
            histogram.scatter_add_(1, codes.t(), torch.ones_like(codes.t(), dtype=torch.float64))
        sums = self.accelerator.reduce(sums, "sum")
        histogram = self.accelerator.reduce(histogram, "sum")
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in masked_prediction_metrics(*sums[:3].tolist(), histogram).items()
        }
        self._log_time += time.perf_counter() - started  # not part of the training speed
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(sums[3]))

    def last_metrics(self) -> dict[str, float]:
        """The metrics of a validation after the last update, which need not be done again; else none."""
        if self.args.load_best_model_at_end:  # the model is then another one
            return {}
        lines = [line for line in self.state.log_history if line["step"] == self.state.global_step]
        return {key: value for line in lines for key, value in line.items() if key.startswith("eval_")}

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        """
        Writes `checkpoint-N.incomplete` and renames it to `checkpoint-N` when all is there, so that a run killed while
        it saves goes on from the checkpoint before. (Trainer writes in place.)
        """
        self.store_flos()
        audio_report = self.gather_audio_report()
        run_dir = Path(self.args.output_dir)
        final = run_dir / f"checkpoint-{self.state.global_step}"
        partial = final.with_name(final.name + ".incomplete")
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        if self.state.best_global_step:
            best = run_dir / f"checkpoint-{self.state.best_global_step}"
            if best.exists() or best == final:
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(partial / "trainer_state.json"))
            (partial / "audio_report.json").write_text(json.dumps(audio_report))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if final.exists():
                _discard(final)
            os.rename(partial, final)
            self._rotate_checkpoints(newest=final)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _rotate_checkpoints(self, newest: Path) -> None:
        """Deletes the oldest checkpoints beyond `save_total_limit`, neither the best nor the newest."""
        if not self.args.save_total_limit:
            return
        best = Path(self.state.best_model_checkpoint or newest)
        folders = [Path(folder) for folder in sort_checkpoints(str(newest.parent), use_mtime=True)]
        others = [folder for folder in folders if folder.suffix != ".incomplete" and folder not in (newest, best)]
        num_kept = max(0, self.args.save_total_limit - len({newest, best}))
        for folder in others[: max(0, len(others) - num_kept)]:
            _discard(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        report = Path(resume_from_checkpoint, "audio_report.json")
        if report.is_file():
            self.audio_report = {(kind, name): message for kind, name, message in json.loads(report.read_text())}

    def _issue_warnings_after_load(self, load_result) -> None:
        wrong = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong:
            raise ValueError(f"the checkpoint to resume from does not fit the model: {', '.join(wrong[:4])}.")


def _discard(checkpoint: Path) -> None:
    """Deletes a checkpoint; killed half-way, it leaves nothing that looks like one."""
    remains = checkpoint.with_name(f"{checkpoint.name}.deleted.incomplete")
    os.rename(checkpoint, remains)
    shutil.rmtree(remains)


def last_complete_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint of a run; remains of a save that was killed are removed."""
    if not os.path.isdir(output_dir):
        return None
    for remains in Path(output_dir).glob("checkpoint-*.incomplete"):
        shutil.rmtree(remains)
    return get_last_checkpoint(output_dir)


def masked_prediction_metrics(loss_sum: float, num_frames: float, num_correct: float, histogram: torch.Tensor) -> dict:
    """
    Metrics of a validation set.

    Args:
        loss_sum (`float`): Sum over frames of the mean over codebooks of the negative log-likelihood, nats.
        num_frames, num_correct (`float`): Frames in the loss; right predictions over all codebooks.
        histogram (`torch.Tensor` of shape `(H, C)`): How often each code occurs at a valid frame, masked or not.

    Returns:
        `dict`: `loss`, `accuracy`, and beside them what needs no model: `unigram_entropy` (nats; the loss of knowing
        the codes' frequencies), `constant_accuracy` (always guessing the most frequent code), `codebook_coverage`
        (share of codes in use), `codebook_perplexity`; means over codebooks. NaN where no frame is masked.
    """
    num_codebooks, codebook_size = histogram.shape
    shares = histogram / histogram.sum(1, keepdim=True).clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-30).log()).sum(1)
    count = num_frames if num_frames else math.nan
    return {
        "loss": loss_sum / count,
        "accuracy": num_correct / (count * num_codebooks),
        "unigram_entropy": entropy.mean().item(),
        "constant_accuracy": shares.amax(1).mean().item(),
        "codebook_coverage": (histogram > 0).double().mean().item(),
        "codebook_perplexity": entropy.exp().mean().item(),
        "masked_frames": num_frames,
    }


def _peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
