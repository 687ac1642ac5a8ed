"""`transformers.Trainer` for NEST pretraining: our batches, Noam, exact validation, checkpoints that are whole."""

import math
import time

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import EvalLoopOutput

from .planned_trainer import PlannedTrainer, last_complete_checkpoint


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


class NestTrainer(PlannedTrainer):
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

    def _prepare_inputs(self, inputs):
        """Moves a batch to the device; the features of the targets keep float32, also where the model does not."""
        targets = inputs.pop("target_features")
        return {**super()._prepare_inputs(inputs), "target_features": targets.to(self.args.device)}

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

    # --- one step ---------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, notes = inputs.pop("ids"), inputs.pop("notes")
        self._note(notes)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._after_step(ids, inputs, outputs, loss)
        return (loss, outputs) if return_outputs else loss

    def _count(self, inputs, outputs) -> None:
        mask = inputs["attention_mask"]
        self._sums["correct"] += outputs["num_correct"]
        self._sums["predictions"] += (inputs["labels"] != -100).sum() * self.model.config.num_codebooks
        self._sums["frames"] += mask.sum()
        self._sums["padded_frames"] += mask.numel()

    def _rates(self, total: dict[str, float], elapsed_s: float) -> dict[str, float]:
        hop_s = self.train_collator.extractor.hop_length / self.train_collator.extractor.sampling_rate
        return {
            "accuracy": total["correct"] / max(1.0, total["predictions"]),
            "audio_s_per_s": total["frames"] * hop_s / elapsed_s,
        }

    # --- validation -------------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None,
                        metric_key_prefix="eval"):  # fmt: skip
        """Sums over the whole set (and all processes) instead of means of batch means."""
        started = time.perf_counter()
        model = self._evaluation_model()
        config = self.model.config
        device = self.args.device
        histogram = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.float64, device=device)
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, frames in it, right predictions, examples
        for batch in self._progress(dataloader, f"{description} {metric_key_prefix}"):
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


__all__ = ["NestTrainer", "last_complete_checkpoint", "masked_prediction_metrics", "noam_factor"]
