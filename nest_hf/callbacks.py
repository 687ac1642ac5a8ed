"""What a run writes for people to read: train.log, and the report on odd recordings."""

import json
import logging
import os
import time
from collections import defaultdict
from pathlib import Path

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# what a line of train.log shows, in this order
TRAIN_FIELDS = (
    *("loss", "lm_loss", "ctc_loss", "ctc_impossible", "accuracy", "learning_rate", "grad_norm"),
    *("audio_s_per_s", "padding", "memory_gb", "epoch"),
)


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


def report_audio(audio_report: list[tuple[str, str, str]], output_dir: str) -> None:
    """Counts and names what was odd about the recordings; all of it goes to audio_report.jsonl."""
    if not audio_report:
        return
    by_kind = defaultdict(list)
    with open(os.path.join(output_dir, "audio_report.jsonl"), "w", encoding="utf-8") as file:
        for kind, recording, message in audio_report:
            by_kind[kind].append(f"{recording} ({message})" if kind == "bad" else recording)
            file.write(json.dumps({"id": recording, "kind": kind, "message": message}, ensure_ascii=False) + "\n")
    words = {
        "bad": "left out since they could not be used",
        "stereo": "down-mixed to mono",
        "resampled": "resampled",
        "clipped": "clipped",
    }
    for kind, names in by_kind.items():
        logger.info("%d recordings %s: %s%s", len(names), words[kind], ", ".join(names[:5]),
                    ", ... (audio_report.jsonl)" if len(names) > 5 else "")  # fmt: skip
