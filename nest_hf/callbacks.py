"""Callbacks of the training scripts."""

import time
from pathlib import Path

from transformers import TrainerCallback

# what a line of train.log shows, in this order
TRAIN_FIELDS = ("loss", "accuracy", "learning_rate", "grad_norm", "audio_s_per_s", "padding", "memory_gb", "epoch")


class TrainLogCallback(TrainerCallback):
    """Writes `train.log` in the run's folder: one line per logged step, one per validation set."""

    def __init__(self, output_dir: str):
        self.path = Path(output_dir) / "train.log"

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            fields = {name: logs[name] for name in TRAIN_FIELDS if name in logs}
            kind = "train"
        elif any(name.startswith("eval_") for name in logs):
            skip = ("_runtime", "_per_second", "_preparation_time")
            fields = {name: value for name, value in logs.items() if not name.endswith(skip)}
            kind = "eval"
        else:
            return
        line = " ".join(f"{name}={value:.6g}" for name, value in fields.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {kind} step={state.global_step} {line}\n")
