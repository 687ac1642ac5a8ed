"""The best weights, their average, and the end of a run that no longer improves."""

import pytest
import torch
from safetensors.torch import save_file

from nest_hf.best_models import average_checkpoints, stops_early, validations


def files(tmp_path, *tensors):
    paths = []
    for number, given in enumerate(tensors):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(given, paths[-1])
    return paths


def test_floats_are_averaged_in_their_own_type_and_integers_copied(tmp_path):
    first = {"w": torch.tensor([1.0, 4.0]), "h": torch.tensor([1.0], dtype=torch.bfloat16), "n": torch.tensor([7])}
    second = {"w": torch.tensor([3.0, 0.0]), "h": torch.tensor([2.0], dtype=torch.bfloat16), "n": torch.tensor([9])}
    mean = average_checkpoints(files(tmp_path, first, second))
    assert mean["w"].tolist() == [2.0, 2.0] and mean["n"].tolist() == [7]
    assert mean["h"].dtype == torch.bfloat16 and mean["h"].tolist() == [1.5]


def test_the_average_of_many_equals_does_not_drift(tmp_path):
    tensor = torch.randn(1000)
    mean = average_checkpoints(files(tmp_path, *[{"w": tensor}] * 7))
    assert torch.equal(mean["w"], tensor)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(3)}, r"`w` is \(3,\) torch.float32, in .* \(2,\)"),
        ({"w": torch.zeros(2, dtype=torch.float16)}, "float16"),
        ({"v": torch.zeros(2)}, "only one has `v`"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, "only one has `x`"),
    ],
)
def test_checkpoints_of_another_model_are_refused(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        average_checkpoints(files(tmp_path, {"w": torch.zeros(2)}, other))
    with pytest.raises(ValueError, match="empty"):
        average_checkpoints([])


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([0.5, 0.4, 0.3], 1, False),
        ([0.5, 0.4, 0.4], 1, True),  # an equal one is not better
        ([0.5, 0.4, 0.45, 0.39], 2, False),
        ([0.5, 0.4, 0.45, 0.41], 2, True),
        ([0.5], 1, False),
        ([], 1, False),
    ],
)
def test_training_ends_when_the_last_validations_were_not_better(values, patience, expected):
    history = [{"step": 10 * i, "eval_a_cer": value} for i, value in enumerate(values)]
    history.insert(0, {"step": 5, "loss": 1.0})
    assert stops_early(history, "eval_a_cer", patience) is expected
    assert list(validations(history, "eval_a_cer").values()) == values
