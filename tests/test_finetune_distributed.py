"""Two processes (gloo, CPU) train a recogniser as one process does on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spoken_tones import CHARACTERS, make_utterances
from tiny_asr import chatml_tokenizer, text_config
from transformers import Qwen3ForCausalLM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]

SCRIPT = Path(__file__).parents[1] / "training" / "finetune.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "subsampling_conv_channels": 8}
STILL = {"dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}


def run(data: Path, output_dir: Path, *, processes: int, accumulation: int) -> tuple[list[dict], dict, str]:
    """Lines of the log, weights and output of 4 updates over 12 recordings in batches of 2."""
    options = {
        "language_model": data / "lm",
        "adaptor_config": json.dumps({"kind": "mlp", "projector_hidden_size": 32}),
        "preset": "tiny",
        "config_overrides": json.dumps({**SIZES, **STILL}),
        "train_data": data / "train" / "manifest.jsonl",
        "eval_data": f"dev={data / 'dev'}/manifest.jsonl",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "eval_steps": 4,
        "use_cpu": "true",
        "num_threads": 1,
        "report_to": "none",
        "disable_tqdm": "true",
        "output_dir": output_dir,
    }
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launch, str(SCRIPT), *(str(part) for k, v in options.items() for part in (f"--{k}", v))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    state = json.loads((output_dir / "trainer_state.json").read_text())
    log = [line for line in state["log_history"] if "loss" in line]
    return log, load_file(output_dir / "model.safetensors"), done.stdout


def test_two_processes_are_one_with_the_same_global_batches(tmp_path):
    make_utterances(tmp_path / "train", 12, length=None, seed=0)
    make_utterances(tmp_path / "dev", 5, length=None, seed=1)
    tokenizer = chatml_tokenizer([CHARACTERS])
    torch.manual_seed(0)
    Qwen3ForCausalLM(text_config(len(tokenizer), initializer_range=0.1)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    log, weights, _ = run(tmp_path, tmp_path / "one", processes=1, accumulation=2)
    log2, weights2, output = run(tmp_path, tmp_path / "two", processes=2, accumulation=1)
    assert "processes: 2" in output
    for name in ("loss", "lm_loss", "ctc_loss"):
        assert [line[name] for line in log2] == pytest.approx([line[name] for line in log], rel=1e-4)
    for name in weights:
        if "running_" not in name and "num_batches" not in name:  # BatchNorm's statistics are of each process
            torch.testing.assert_close(weights2[name], weights[name], atol=1e-4, rtol=0)
    # 5 recordings do not divide evenly: every one is there, and none twice
    lines = (tmp_path / "two" / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"dev-{i:03d}" for i in range(5)]
