"""What is hidden from training: where, how much, and the same in every run."""

import numpy as np
import pytest
import torch

from nest_hf.data.spec_augment import SpecAugment

LENGTHS = torch.tensor([400, 250, 30])


def generators(first=0):
    return [np.random.default_rng(first + row) for row in range(len(LENGTHS))]


def features():
    return torch.ones(len(LENGTHS), 400, 80)


def runs(hidden: torch.Tensor) -> int:
    """How many stretches a row of booleans has."""
    return int((torch.diff(hidden.int(), prepend=torch.zeros(1, dtype=torch.int32)) == 1).sum())


def test_whole_bands_and_whole_stretches_are_hidden_and_the_rest_is_as_it_was():
    given = features()
    hidden = SpecAugment()(given, LENGTHS, generators()) == 0
    bins, frames = hidden.all(1), hidden.all(2)
    assert torch.equal(hidden, bins[:, None, :] | frames[:, :, None])
    assert bool((given == 1).all())


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_masks_are_as_many_and_as_wide_as_allowed_and_hide_no_padding(seed):
    masks = SpecAugment(freq_masks=1, freq_width=10, time_masks=1, time_width=0.1)
    hidden = masks(features(), LENGTHS, generators(seed)) == 0
    for row, length in enumerate(LENGTHS.tolist()):
        bins, frames = hidden[row].all(0), hidden[row].all(1)
        assert runs(bins) <= 1 and bins.sum() <= 10
        assert runs(frames) <= 1 and frames.sum() <= 0.1 * length
        assert not frames[length:].any()


def test_widths_reach_from_none_to_the_widest_and_places_to_both_ends():
    masks = SpecAugment(freq_masks=1, freq_width=5, time_masks=0)
    many = torch.ones(2000, 1, 8)
    drawn = [np.random.default_rng(row) for row in range(2000)]
    hidden = masks(many, torch.ones(2000), drawn)[:, 0] == 0
    counts = torch.bincount(hidden.sum(-1), minlength=6)
    assert len(counts) == 6 and counts.min() > 250  # six widths, 333 of each expected
    assert hidden[:, 0].any() and hidden[:, -1].any()


def test_a_recording_is_hidden_alike_in_any_batch():
    masks = SpecAugment()
    together = masks(features(), LENGTHS, generators())
    alone = masks(features()[1:2, :250], LENGTHS[1:2], generators()[1:2])
    assert torch.equal(together[1:2, :250], alone)


def test_none_of_both_changes_nothing():
    assert torch.equal(SpecAugment(freq_masks=0, time_masks=0)(features(), LENGTHS, generators()), features())


@pytest.mark.parametrize(
    "config", [{"freq_masks": -1}, {"freq_width": 2.5}, {"time_width": 5}, {"time_masks": True}, {"time_mask": 2}]
)
def test_a_value_out_of_range_or_misspelt_is_named(config):
    with pytest.raises(ValueError, match=r"spec_augment.*"):
        SpecAugment.from_config(config)
