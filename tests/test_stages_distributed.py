"""Two processes (gloo, CPU) run the stages of a recipe as one process does on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from spoken_tones import CHARACTERS, make_utterances
from tiny_asr import tiny_model, tiny_processor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training" / "run_stages.py"
STAGES = {"encoder": "stage1_encoder", "adaptor": "stage2_adaptor", "lora": "stage3_lora"}


def write(data: Path, output_dir: Path, *, accumulation: int, max_steps: int) -> Path:
    """Every stage by plain gradient descent, on 11 recordings in batches of 2: two epochs are 6 updates."""
    options = {
        "train_data": [str(data / "train" / "manifest.jsonl")],
        "eval_data": {"dev": str(data / "dev" / "manifest.jsonl")},
        **{"batch_budget": None, "budget_unit": "seconds", "per_device_train_batch_size": 2},
        **{"per_device_eval_batch_size": 2, "gradient_accumulation_steps": accumulation, "keep_best": 0},
        **{"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0},
        **{"max_steps": max_steps, "save_steps": 2, "eval_steps": 100, "logging_steps": 1, "eval_on_start": False},
        **{"num_threads": 1, "report_to": "none", "disable_tqdm": True, "early_stopping_patience": None},
    }
    stages = [
        {"stage": name, "config": str(ROOT / "configs" / "finetune" / f"{config}.yaml"), "options": dict(options)}
        for name, config in STAGES.items()
    ]
    stages[0]["options"]["model_name_or_path"] = str(data / "model")
    # a BatchNorm that trains sees half of each global batch in two processes; frozen, it is in eval mode
    stages[0]["options"]["trainable"] = ["audio_tower.layers.*.self_attn", "audio_tower.layers.*.feed_forward*"]
    stages[2]["options"]["lora"] = {"r": 4, "dropout": 0.0}
    path = output_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"output_dir": str(output_dir), "stages": stages}), encoding="utf-8")
    return path


def run(recipe: Path, *argv, processes: int) -> str:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launch, str(SCRIPT), str(recipe), "--use_cpu", "true", "--estimate", "false", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


def test_two_processes_run_a_recipe_as_one_does_also_resumed_in_the_second_epoch(tmp_path):
    make_utterances(tmp_path / "train", 11, length=None, seed=0)
    make_utterances(tmp_path / "dev", 5, length=None, seed=1)
    processor = tiny_processor(texts=(CHARACTERS,))
    model = tiny_model(processor, adaptor={"num_hidden_layers": 1, "attention_dropout": 0.0})
    for name in ("dropout", "hidden_dropout", "activation_dropout", "attention_dropout"):
        setattr(model.config.audio_config, name, 0.0)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    run(write(tmp_path, tmp_path / "one", accumulation=2, max_steps=6), processes=1)
    output = run(write(tmp_path, tmp_path / "two", accumulation=1, max_steps=4), "--last", "0", processes=2)
    assert "2 processes" in output and "processes: 2" in output
    (tmp_path / "two" / "0_encoder" / "stage.json").unlink()  # killed in its second epoch, after 4 updates
    output = run(write(tmp_path, tmp_path / "two", accumulation=1, max_steps=6), processes=2)
    assert "going on from" in output

    for stage in ("0_encoder", "1_adaptor", "2_lora"):
        one, two = tmp_path / "one" / stage, tmp_path / "two" / stage
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        assert len(losses(two)) == 6
        first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
        for name in first:
            torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=0)
        lines = (two / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"dev-{i:03d}" for i in range(5)]
