"""Two processes (gloo, CPU): one loss over both, every recording once per epoch, exact resume, one log."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from recordings import make_recordings
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]

PRETRAIN = Path(__file__).parents[1] / "training" / "pretrain.py"
# pretrain.py, which also notes what every process trains on
DRIVER = f"""
import json, os, runpy, sys
from pathlib import Path
from nest_hf.trainer import NestTrainer

training_step = NestTrainer.training_step

def noted(self, model, inputs, *args):
    line = {{"epoch": int(self.state.epoch or 0), "ids": inputs["ids"], "world_size": self.args.world_size}}
    with Path(os.environ["SEEN"] + str(self.args.process_index)).open("a") as file:
        file.write(json.dumps(line) + chr(10))
    return training_step(self, model, inputs, *args)

NestTrainer.training_step = noted
sys.path.insert(0, {str(PRETRAIN.parent)!r})
runpy.run_path({str(PRETRAIN)!r}, run_name="__main__")
"""
NO_DROPOUT = {"dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}
LAST = 5  # updates: 2 per epoch for two processes, so the last is in the middle of the third epoch


class Run:
    """A finished run of pretrain.py: 8 recordings, batches of 2."""

    def __init__(self, folder: Path, data: dict, *, processes: int, resume_from: Path | None = None, dropout=True,
                 max_steps: int = LAST, **options):  # fmt: skip
        self.output_dir = folder / "run"
        self.output_dir.mkdir(parents=True)
        if resume_from is not None:
            shutil.copytree(resume_from, self.output_dir / resume_from.name)
        (folder / "driver.py").write_text(DRIVER)
        options = {
            "preset": "tiny",
            "config_overrides": json.dumps({"mask_prob": 0.02, **({} if dropout else NO_DROPOUT)}),
            "output_dir": self.output_dir,
            "use_cpu": "true",
            "num_threads": 1,
            "schedule": "trainer",
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "max_steps": max_steps,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "eval_steps": 2,
            "save_steps": 1,
            "save_total_limit": 9,
            "logging_steps": 1,
            "disable_tqdm": "true",
            **data,
            **options,
        }
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launch, str(folder / "driver.py"), *(str(p) for k, v in options.items() for p in (f"--{k}", v))]
        environment = {**os.environ, "SEEN": str(folder / "seen"), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        try:
            self.stdout, stderr = run.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGTERM)  # torchrun then ends its processes
            raise
        assert run.returncode == 0, self.stdout[-3000:] + stderr[-6000:]
        self.seen = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("seen*")]

    @property
    def losses(self) -> list[float]:
        state = json.loads((self.output_dir / "trainer_state.json").read_text())
        return [line["loss"] for line in state["log_history"] if "loss" in line]

    @property
    def metrics(self) -> dict[str, float]:
        metrics = json.loads((self.output_dir / "eval_results.json").read_text())
        return {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second"))}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.output_dir / "model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return {
        "train_data": make_recordings(folder / "train", number=8, seed=1),
        "eval_data": make_recordings(folder / "validation", number=4, seed=2),
        "noise_data": make_recordings(folder / "noise", number=2, seed=3),
    }


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("two"), data, processes=2)


def test_every_recording_once_per_epoch_over_both_processes(two):
    assert len(two.seen) == 2 and all(line["world_size"] == 2 for lines in two.seen for line in lines)
    epochs = [Counter(), Counter(), Counter()]
    for line in [line for lines in two.seen for line in lines]:
        epochs[line["epoch"]].update(line["ids"])
    everything = {f"train{index}": 1 for index in range(8)}
    assert epochs[0] == epochs[1] == everything
    assert len(epochs[2]) == 4 and set(epochs[2].values()) == {1}
    assert two.seen[0][0]["ids"] != two.seen[0][2]["ids"]  # another order in another epoch


def test_only_the_first_process_writes(two):
    lines = [line.split()[2:4] for line in (two.output_dir / "train.log").read_text().splitlines()]
    assert [step for kind, step in lines if kind == "train"] == [f"step={step}" for step in range(1, LAST + 1)]
    assert len({path.name.split(".")[-2] for path in two.output_dir.glob("runs/*/events*")}) == 1  # process id
    assert two.stdout.count("batches per epoch and process: 2") == 1
    assert two.stdout.count("sync_batchnorm has no effect on CPU") == 1
    assert not list(two.output_dir.glob("*.incomplete"))


def test_resume_in_a_later_epoch_gives_the_bits_of_the_uninterrupted_run(two, data, tmp_path):
    """Update 3 ends in the middle of the second epoch, whose plan and augmentation are not those of the first."""
    resumed = Run(tmp_path, data, processes=2, resume_from=two.output_dir / "checkpoint-3")
    assert f"going on from {resumed.output_dir / 'checkpoint-3'}" in resumed.stdout
    assert [len(lines) for lines in resumed.seen] == [2, 2]
    expected, weights = two.weights, resumed.weights
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert resumed.metrics == two.metrics
    assert resumed.losses == two.losses


def test_validation_is_that_of_the_saved_model(two, data, tmp_path):
    """
    BatchNorm's statistics differ by process (no SyncBatchNorm on CPU) and those of the first are saved: all have to
    validate with them. One process that resumes after the last update trains no more, and only validates.
    """
    one = Run(tmp_path, data, processes=1, resume_from=two.output_dir / f"checkpoint-{LAST}")
    assert one.seen == []
    assert one.metrics == pytest.approx(two.metrics, rel=1e-9)


def test_the_loss_is_that_of_one_process_with_both_batches(data, tmp_path):
    """
    One process that accumulates the batches of both. BatchNorm normalises every batch with its own statistics in both
    set-ups, and so does not matter; only its running statistics differ, which training does not use.
    """
    runs = [
        Run(tmp_path / "two", data, processes=2, dropout=False, max_steps=3),
        Run(tmp_path / "one", data, processes=1, dropout=False, max_steps=3, gradient_accumulation_steps=2),
    ]
    seen = [sorted(tuple(line["ids"]) for lines in run.seen for line in lines) for run in runs]
    assert seen[0] == seen[1]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)
    expected, weights = (run.weights for run in runs)
    for name in expected:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=2e-5)
