"""memory_table.py: what it counts is what training holds."""

import importlib.util
from pathlib import Path

import pytest
import torch

from nest_hf import NestConfig, NestForPreTraining
from nest_hf.freezing import freeze

SCRIPT = Path(__file__).parents[1] / "evaluation" / "memory_table.py"
PARTS = ("audio_tower", "multi_modal_projector", "ctc_head", "language_model")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("memory_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("trainable", [["*"], ["encoder.layers.2"]])
def test_the_bytes_are_those_that_an_update_leaves_in_memory(script, trainable):
    model = NestForPreTraining(NestConfig.from_preset("tiny"))
    freeze(model, trainable)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    counted = script.training_bytes(model)
    assert counted["weights"] == size([*model.parameters(), *model.buffers()])
    assert counted["gradients"] == size(p.grad for p in model.parameters() if p.grad is not None)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert counted["adamw"] == size(moments)


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("stage1_encoder", {"audio_tower"}),
        ("stage2_adaptor", {"multi_modal_projector", "ctc_head"}),
        ("stage3_lora", {"language_model"}),
        ("joint", set(PARTS)),
    ],
)
def test_a_stage_trains_what_its_yaml_names(script, stage, parts):
    model = script.recogniser(stage, "tiny", 50)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {part for part in PARTS if any(f"{part}." in name for name in trained)} == parts
