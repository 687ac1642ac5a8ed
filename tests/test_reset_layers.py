"""training/reset_layers.py: what it keeps is the same, what it does not keep is new."""

import runpy
from pathlib import Path

import pytest
import torch

from nest_hf import NestConfig, NestFeatureExtractor, NestModel

SCRIPT = Path(__file__).parents[1] / "training" / "reset_layers.py"
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "subsampling_conv_channels": 4}


@pytest.fixture
def reset(monkeypatch, tmp_path):
    torch.manual_seed(1)
    NestModel(NestConfig.from_preset("tiny", **SIZES)).save_pretrained(tmp_path / "nest")
    NestFeatureExtractor().save_pretrained(tmp_path / "nest")

    def reset(keep: int, seed: int = 0) -> dict[str, torch.Tensor]:
        options = [str(tmp_path / "nest"), str(tmp_path / "new"), "--keep", str(keep), "--seed", str(seed)]
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return NestModel.from_pretrained(tmp_path / "new").state_dict()

    reset.source = NestModel.from_pretrained(tmp_path / "nest").state_dict()
    return reset


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_kept_layers_are_the_same_and_matrices_of_the_others_are_new(reset, keep):
    for name, tensor in reset(keep).items():
        is_kept = not name.startswith("layers.") or int(name.split(".")[1]) < keep
        if is_kept or (tensor.dim() > 1 and name.endswith("weight")):
            assert torch.equal(tensor, reset.source[name]) == is_kept, name


def test_new_layers_follow_from_the_seed(reset):
    first, again, other = reset(1, seed=3), reset(1, seed=3), reset(1, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_keeping_every_layer_is_refused(reset):
    with pytest.raises(SystemExit) as exit_:
        reset(3)
    assert "`keep` is 3, but" in exit_.value.code and "give 0 to 2" in exit_.value.code
