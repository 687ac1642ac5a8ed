"""Freezing: what is not named does not move, whatever Trainer does."""

import pytest
import torch
from tiny_asr import tiny_model, tiny_processor
from torch import nn
from transformers import Trainer, TrainingArguments

from nest_hf.freezing import FreezingCallback, freeze, matches


class Net(nn.Module):
    """Two branches with a BatchNorm and dropout each."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.right = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.modes = []

    def forward(self, x, labels=None):
        self.modes.append((self.left[2].training, self.right[2].training))
        y = self.left(x) + self.right(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


def train(tmp_path, trainable):
    torch.manual_seed(0)
    model = Net()
    data = [{"x": torch.randn(4), "labels": torch.randn(4)} for _ in range(16)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = TrainingArguments(
        tmp_path, use_cpu=True, max_steps=3, per_device_train_batch_size=4, report_to="none", save_strategy="no"
    )
    Trainer(model, args, train_dataset=data, callbacks=[FreezingCallback(trainable)]).train()
    after = model.state_dict()
    return model, {name for name in before if not torch.equal(before[name], after[name])}


def test_trainers_own_loop_moves_nothing_but_what_is_named(tmp_path):
    model, moved = train(tmp_path, ["right"])
    assert moved == {name for name in model.state_dict() if name.startswith("right.")}  # statistics included
    assert set(model.modes) == {(False, True)}  # dropout is off where nothing trains


def test_a_part_of_a_branch_trains_and_its_frozen_batchnorm_keeps_its_statistics(tmp_path):
    _, moved = train(tmp_path, ["left.0", "right.*.weight"])
    assert moved == {
        *("left.0.weight", "left.0.bias", "right.0.weight", "right.1.weight"),
        *("right.1.running_mean", "right.1.running_var", "right.1.num_batches_tracked"),
    }


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="`encoder`, which matches nothing; the parts are left, right"):
        freeze(Net(), ["left", "encoder"])


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("audio_tower", "model.audio_tower.layers.0.norm.weight", True),
        ("model.audio_tower", "model.audio_tower.layers.0.norm.weight", True),
        ("audio_tower.layers.1[0-7]", "model.audio_tower.layers.12.norm.weight", True),
        ("audio_tower.layers.1[0-7]", "model.audio_tower.layers.1.norm.weight", False),
        ("audio", "model.audio_tower.layers.0.norm.weight", False),
        ("*.lora_*", "base_model.model.model.language_model.layers.0.q_proj.lora_A.default.weight", True),
        ("ctc_head", "ctc_head.linear.bias", True),
        ("*", "lm_head.weight", True),
    ],
)
def test_patterns_name_modules_and_what_is_in_them(pattern, name, expected):
    assert matches(name, [pattern]) is expected


def test_a_shared_tensor_trains_by_either_name():
    model = tiny_model(tiny_processor())
    freeze(model, ["lm_head"])
    assert model.get_input_embeddings().weight.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == 1


def test_frozen_layers_still_recompute_their_activations():
    model = tiny_model(tiny_processor()).train()
    freeze(model, ["multi_modal_projector"])
    layer = model.model.language_model.layers[0]
    model(input_features=torch.randn(1, 64, 80))
    assert not layer.training and not layer.self_attn.training and not model.model.audio_tower.training
    model.activation_checkpointing_enable()
    model.train()
    model(input_features=torch.randn(1, 64, 80))
    assert layer.training and not layer.self_attn.training
