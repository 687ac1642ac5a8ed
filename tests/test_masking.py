"""Block masks: NeMo's draws under NeMo's seeds, their statistics, and never a masked frame in the padding."""

import golden
import pytest
import torch

from nest_hf.masking import block_mask, frames_in_loss

BATCHES = {"a": (208, [201, 150, 99, 57]), "b": (1008, [1000, 800]), "short": (64, [60, 50, 49, 40, 39, 20])}
MODES = {"overlap_p0.01": (True, 0.01), "nooverlap_p0.5": (False, 0.5), "nooverlap_p0.01": (False, 0.01)}


def draw(mode: str, batch: str, version: str = "3.0", generators=None) -> torch.Tensor:
    num_frames, lengths = BATCHES[batch]
    allow_overlap, mask_prob = MODES[mode]
    return block_mask(
        torch.tensor(lengths),
        num_frames,
        mask_prob=mask_prob,
        block_size=40,
        allow_overlap=allow_overlap,
        version=version,
        generators=generators,
    )


def in_padding(mask: torch.Tensor, batch: str) -> torch.Tensor:
    return mask & ~golden.valid(torch.tensor(BATCHES[batch][1]), mask.shape[1])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masks_equal_nemo_3(mode, batch, seed):
    expected = golden.tensors("masks")[f"mask_{mode}_{batch}_seed{seed}"]
    torch.manual_seed(seed)
    assert torch.equal(draw(mode, batch), expected)
    assert torch.equal(draw(mode, batch, generators=torch.Generator().manual_seed(seed)), expected)


def test_mask_of_a_whole_nemo_forward():
    io = golden.tensors("tiny/io")
    mask = block_mask(
        io["feature_lengths"],
        io["mask"].shape[1],
        mask_prob=0.01,
        block_size=40,
        allow_overlap=True,
        generators=torch.Generator().manual_seed(42),
    )
    assert torch.equal(mask, io["nemo_mask_seed42"])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlapping_masks_equal_nemo_2(batch, seed):
    torch.manual_seed(seed)  # NeMo 2 draws from the global generator
    expected = golden.tensors("masks-2.7.3")[f"mask_overlap_p0.01_{batch}_seed{seed}"]
    assert torch.equal(draw("overlap_p0.01", batch, "2.x"), expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", ["nooverlap_p0.5", "nooverlap_p0.01"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masks_without_overlap_equal_nemo_2_but_for_its_bug(mode, batch, seed):
    """NeMo 2 shrinks blocks but not their offset, and then masks padding; ours moves such a row back."""
    expected = golden.tensors("masks-2.7.3")[f"mask_{mode}_{batch}_seed{seed}"]
    torch.manual_seed(seed)
    ours = draw(mode, batch, "2.x")
    assert not in_padding(ours, batch).any()
    spilled = in_padding(expected, batch).any(1)
    assert torch.equal(ours[~spilled], expected[~spilled])
    assert torch.equal(ours[spilled].sum(1), expected[spilled].sum(1))


def test_nemo_2_bug_is_in_the_goldens():
    stored = golden.tensors("masks-2.7.3").items()
    assert sum(bool(in_padding(mask, name.split("_")[3]).any()) for name, mask in stored) == 2


@pytest.mark.parametrize("version", ["3.0", "2.x"])
@pytest.mark.parametrize("mode", MODES)
def test_padding_is_never_masked(mode, version):
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        for _ in range(50):
            assert not in_padding(draw(mode, batch, version, generator), batch).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", ["3.0", "2.x"])
def test_statistics_equal_nemos(mode, version):
    """Within 5 standard errors of both samples of 2,000 draws."""
    allow_overlap, mask_prob = MODES[mode]
    stored = golden.facts("masks" if version == "3.0" else "masks-2.7.3")["statistics"]
    stored = stored[f"overlap={allow_overlap},p={mask_prob}"]
    draws = 2000
    mask = block_mask(
        torch.full((draws,), 1000),
        1008,
        mask_prob=mask_prob,
        block_size=40,
        allow_overlap=allow_overlap,
        version=version,
        generators=torch.Generator().manual_seed(5),
    ).float()
    fraction, in_loss = mask[:, :1000].mean(1), frames_in_loss(mask, 8, 0.8)[:, :125].float().mean(1)
    runs = ((mask[:, 1:] > mask[:, :-1]).sum(1) + mask[:, 0]).mean()
    two_samples = 5 * (2 / draws) ** 0.5
    assert abs(fraction.mean() - stored["mean_fraction"]) <= two_samples * stored["std_fraction"] + 1e-6
    assert abs(fraction.std() - stored["std_fraction"]) <= two_samples * stored["std_fraction"] + 1e-6
    assert abs(in_loss.mean() - stored["loss_frame_fraction_mean"]) <= two_samples * stored["loss_frame_fraction_std"]
    assert abs(runs - stored["mean_number_of_runs"]) <= two_samples * 2.0  # a deviation of 1.7 runs and less
    frames = [0, 1, 39, 40, 500, 960, 998, 999, 1000]
    for frame, theirs in zip(frames, stored["p_masked_at_frame_0_1_39_40_500_960_998_999_1000"], strict=True):
        ours = mask[:, frame].mean().item()
        error = (max(ours, theirs, 1e-3) / draws) ** 0.5  # of a binomial share, from above
        assert abs(ours - theirs) <= 5 * 2**0.5 * error, frame


@pytest.mark.parametrize("length", [0, 1, 7, 39, 40, 41, 50, 51])
@pytest.mark.parametrize("version", ["3.0", "2.x"])
@pytest.mark.parametrize("mode", MODES)
def test_short_recordings(mode, version, length):
    allow_overlap, mask_prob = MODES[mode]
    mask = block_mask(
        torch.tensor([length]),
        64,
        mask_prob=mask_prob,
        block_size=40,
        allow_overlap=allow_overlap,
        version=version,
        generators=torch.Generator().manual_seed(0),
    )
    assert mask.shape == (1, 64) and not mask[0, length:].any()
    if version == "2.x" and length <= 50:
        assert mask.sum() == min(8, length) and mask[0, : min(8, length)].all()
    if version == "3.0" and allow_overlap and length < 40:
        assert not mask.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", ["3.0", "2.x"])
def test_a_row_depends_on_its_own_generator_alone(mode, version):
    def rows(seeds):
        return draw(mode, "a", version, [torch.Generator().manual_seed(seed) for seed in seeds])

    first, second = rows([1, 2, 3, 4]), rows([9, 2, 8, 4])
    assert torch.equal(first[1], second[1]) and torch.equal(first[3], second[3])
    assert torch.equal(first, rows([1, 2, 3, 4])) and not torch.equal(first, second)


def test_seven_of_eight_frames_enter_the_loss_six_do_not():
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[0, 0:8] = mask[0, 8:15] = mask[0, 16:22] = True
    assert frames_in_loss(mask, 8, 0.8).tolist() == [[True, True, False, False]]
    assert frames_in_loss(mask[:, ::8], 1, 0.8).tolist() == [[True, True, True, False]]  # after the subsampling


def test_frames_in_loss_equal_nemos():
    io = golden.tensors("tiny/io")
    assert torch.equal(frames_in_loss(io["mask"], 8, 0.8), io["loss_frame_mask"])
