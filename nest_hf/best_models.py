"""The weights of the best validations, their average, and when to stop: by what was decoded, not by the loss."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

FOLDER = "best"
TIMINGS = ("_runtime", "_per_second")


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, torch.Tensor]:
    """
    Averages weights.

    Args:
        paths (`Sequence[str]`): Files in safetensors of the same tensors; the first counts for integers.

    Returns:
        `dict[str, torch.Tensor]`: means of floating-point tensors, taken in float64 and returned in their own type;
        integers, such as the counter of a BatchNorm, from the first file.

    Raises:
        ValueError: for no file, or files whose tensors differ in name, shape or type.
    """
    if not paths:
        raise ValueError("`paths` is empty; give one file at least.")
    first = load_file(paths[0])
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    for path in paths[1:]:
        other = load_file(path)
        if other.keys() != first.keys():
            name = min(other.keys() ^ first.keys())
            raise ValueError(f"{path} and {paths[0]} do not hold the same tensors: only one has `{name}`.")
        for name, tensor in other.items():
            if (tensor.shape, tensor.dtype) != (first[name].shape, first[name].dtype):
                raise ValueError(
                    f"{path}: `{name}` is {tuple(tensor.shape)} {tensor.dtype}, in {paths[0]} "
                    f"{tuple(first[name].shape)} {first[name].dtype}; average checkpoints of one model."
                )
            if name in sums:
                sums[name] += tensor
    means = {name: (total / len(paths)).to(first[name].dtype) for name, total in sums.items()}
    return {name: means.get(name, tensor) for name, tensor in first.items()}


def validations(history: list[dict], metric: str) -> dict[int, float]:
    """Step -> value of a metric, of Trainer's `log_history`; the last where a step was validated twice."""
    return {line["step"]: line[metric] for line in history if metric in line}


def stops_early(history: list[dict], metric: str, patience: int) -> bool:
    """Whether the last `patience` validations after the first are none of them better (lower) than one before."""
    values = list(validations(history, metric).values())
    best = min(range(len(values)), key=lambda i: values[i], default=0)
    return len(values) - 1 - best >= patience


class BestModels(TrainerCallback):
    """
    Keeps what trained at the best validations in `best/step-N.safetensors` of the run's folder, validates at the last
    update too, and ends a run that no longer improves. All it decides follows from Trainer's `log_history`, so that a
    run that was killed decides the same.

    Args:
        trainer: A [`FinetuneTrainer`]; knows `trained_state()`.
        metric (`str`): Such as `"eval_calls_cer"`; lower is better.
        set_name (`str`): The validation set that it is of, `"calls"`.
        number (`int`): Kept at most.
        patience (`int`, *optional*): Validations without a better one after which training ends.
    """

    def __init__(self, trainer, *, metric: str, set_name: str, number: int, patience: int | None = None):
        self.trainer, self.metric, self.number, self.patience = trainer, metric, number, patience
        self.prefix = f"eval_{set_name}_"
        self.folder = Path(trainer.args.output_dir, FOLDER)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.trainer.is_in_train:
            return
        if self.metric not in metrics:
            if any(key.startswith(self.prefix) for key in metrics):
                known = ", ".join(key for key in metrics if key.startswith(self.prefix) and not key.endswith(TIMINGS))
                raise ValueError(f"`metric_for_best_model` {self.metric} is not among the metrics: {known}.")
            return
        if state.global_step in self._ranked(state.log_history)[: self.number] and state.global_step > 0:
            tensors = self.trainer.trained_state()  # every process takes part
            if state.is_world_process_zero:
                self._keep(state.global_step, tensors)
        if state.is_world_process_zero:
            kept = {self._path(step) for step in self._ranked(state.log_history)[: self.number]}
            for path in self.folder.glob("step-*.safetensors"):
                if path not in kept:
                    path.unlink()
        if self.is_over(state):
            logger.info("no better %s in %d validations: training ends", self.metric, self.patience)
            control.should_training_stop = True

    def is_over(self, state) -> bool:
        """Whether training has ended early, also a run that was killed after that."""
        return bool(self.patience) and stops_early(state.log_history, self.metric, self.patience)

    def _keep(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        partial = path.with_suffix(".incomplete")
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial)
        partial.replace(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _ranked(self, history: list[dict]) -> list[int]:
        """Steps of validations after an update, the best first; of equals the earlier."""
        values = {step: value for step, value in validations(history, self.metric).items() if step > 0}
        return sorted(values, key=lambda step: (values[step], step))

    def choose(self) -> dict[str, float]:
        """
        Puts the result into the model, after training: the best weights kept, or the average of all kept if it
        decodes better. Every process has to call it.

        Returns:
            `dict`: the metrics of the result, `eval_...`.
        """
        trainer, history = self.trainer, list(self.trainer.state.log_history)  # without what is validated from here on
        steps = [step for step in self._ranked(history)[: self.number] if self._path(step).is_file()]
        if not steps:
            raise ValueError(f"{self.folder} lacks the weights of the validations; train again in a new `output_dir`.")
        best, value = steps[0], validations(history, self.metric)[steps[0]]
        if len(steps) > 1:
            trainer.load_trained_state(average_checkpoints([self._path(step) for step in steps]))
            metrics = trainer.evaluate()
            logger.info(
                "%s: %.6g at step %d, %.6g by the average of steps %s",
                self.metric, value, best, metrics[self.metric], ", ".join(map(str, sorted(steps))),
            )  # fmt: skip
            if metrics[self.metric] < value:
                self.chosen = f"average of steps {', '.join(map(str, sorted(steps)))}"
                return metrics
        self.chosen = f"step {best}"
        trainer.load_trained_state(load_file(self._path(best)))
        lines = [line for line in history if line["step"] == best]
        return {key: found for line in lines for key, found in line.items() if key.startswith("eval_")}

    def clean(self) -> None:
        """Removes the kept weights, once the result is saved."""
        if self.trainer.args.process_index == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


__all__ = ["BestModels", "average_checkpoints", "stops_early", "validations"]
