"""`transformers.Trainer` on planned batches: the part that pretraining and finetuning share.

Loaders of planned batches, a log in sums over processes, a report on the audio, checkpoints that are whole.
"""

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
from huggingface_hub import CommitInfo
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from .data.batching import TokenBudgetBatchSampler
from .data.pretraining import StreamedBatches
from .hub import create_repository, push_run
from .muon import Muon, with_muon


class _PlannedDataLoader(DataLoader):
    """A loader whose batch sampler hears of the epoch, and which leaves the global random state alone."""

    def __init__(self, dataset, sampler: TokenBudgetBatchSampler, **kwargs):
        super().__init__(dataset, batch_sampler=sampler, generator=torch.Generator().manual_seed(0), **kwargs)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class PlannedTrainer(Trainer):
    """
    Trains on the plan of a [`TokenBudgetBatchSampler`].

    Args:
        train_sampler (`TokenBudgetBatchSampler`, *optional*): Plan of `train_dataset`; none for [`StreamedBatches`].
        train_collator: From examples to batches, which hold `ids` and `notes` beside the model's inputs.
        eval_sets (`dict`, *optional*): name -> (data set, [`TokenBudgetBatchSampler`], collator).
        args, model, train_dataset, eval_dataset, processing_class, callbacks: As `Trainer`.

    A child class says what is summed over the steps (`_count`) and what a log line makes of it (`_rates`). What was
    odd about the audio is collected in `audio_report`.
    """

    def __init__(
        self,
        *args,
        train_sampler: TokenBudgetBatchSampler | None = None,
        train_collator=None,
        eval_sets: dict | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.args.use_muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "`use_muon` needs whole matrices, which FSDP and DeepSpeed divide; leave it out, or use DDP."
            )
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

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        name = eval_dataset if isinstance(eval_dataset, str) else next(iter(self.eval_sets))
        dataset, sampler, collator = self.eval_sets[name]
        return _PlannedDataLoader(dataset, sampler, collate_fn=collator, **self._loader_options())

    def _build_accelerator_args(self, **kwargs) -> dict:
        args = super()._build_accelerator_args(**kwargs)
        args["kwargs_handlers"][0].gradient_as_bucket_view = self.args.ddp_gradient_as_bucket_view
        return args

    def _run_epoch(self, *args, **kwargs) -> None:
        if isinstance(self.train_dataset, StreamedBatches) and not self.args.ignore_data_skip:
            self.train_dataset.num_skipped = kwargs["steps_trained_in_current_epoch"]
        if self._is_done():  # resumed at its end, where Trainer would do one step more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _is_done(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    # --- optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.args.use_muon and not isinstance(optimizer, Muon):
            model = self.model if model is None else model
            _, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer = Muon(with_muon(optimizer.param_groups, model), **options)
        return optimizer

    # --- one step ---------------------------------------------------------------------------------------------------

    def _after_step(self, ids: list[str], inputs, outputs, loss: torch.Tensor) -> None:
        self._count(inputs, outputs)
        self._ids_since_log.append(ids)
        if loss.device.type == "cpu":  # elsewhere asking would make every step wait; `log` asks
            self._check_finite(loss.detach())

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
        """Adds a training step to `_sums`, which hold at least `frames` and `padded_frames`."""
        raise NotImplementedError

    def _rates(self, total: dict[str, float], elapsed_s: float) -> dict[str, float]:
        """What a log line says of the sums over all processes since the line before."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what [`~PlannedTrainer._rates`] makes of the sums since the last line to the log of a training step."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = torch.tensor([float(self._sums[name]) for name in names], device=self.args.device)
            total = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
            logs.update(self._rates(total, time.perf_counter() - self._log_time))
            logs["padding"] = 1 - total["frames"] / max(1.0, total["padded_frames"])
            logs["memory_gb"] = peak_memory_gb(self.args.device)
            self._check_finite(torch.tensor(logs["loss"]))
            self._reset_sums()
        super().log(logs, start_time)

    # --- validation -------------------------------------------------------------------------------------------------

    def _evaluation_model(self):
        """The model as it is validated: in eval mode, and the same in all processes."""
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        if self.args.world_size > 1:  # BatchNorm's statistics differ by process; those of the first are saved
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return model

    def _progress(self, dataloader, description: str):
        hide = not (sys.stderr.isatty() and self.is_world_process_zero()) or self.args.disable_tqdm
        return tqdm(dataloader, desc=description, leave=False, disable=hide)

    def last_metrics(self) -> dict[str, float]:
        """The metrics of a validation after the last update, which need not be done again; else none."""
        if self.args.load_best_model_at_end:  # the model is then another one
            return {}
        lines = [line for line in self.state.log_history if line["step"] == self.state.global_step]
        return {key: value for line in lines for key, value in line.items() if key.startswith("eval_")}

    def save_result(self) -> None:
        """Saves the trained model and its processor in the run's folder."""
        self.save_model(self.args.output_dir)

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

    # --- the Hub ----------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if self.is_world_process_zero():  # before training, so that a wrong token is known in time
            self.hub_model_id = create_repository(self.args)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call=True)  # saving is not pushing, which it is to Trainer

    def push_to_hub(self, commit_message: str = "End of training") -> CommitInfo | None:
        """As [`~hub.push_run`], of the result that [`~PlannedTrainer.save_result`] has left in the run's folder."""
        return push_run(self.args, commit_message=commit_message)

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
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        wrong = [*(key for key in load_result.missing_keys if key not in tied), *load_result.unexpected_keys]
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


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
