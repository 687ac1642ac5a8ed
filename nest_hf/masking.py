"""Block masks over feature frames, as NeMo draws them (`RandomBlockMasking`, versions 3.0 and 2.x)."""

import math

import torch
from torch.nn import functional as F


def block_mask(
    lengths: torch.Tensor,
    num_frames: int,
    *,
    mask_prob: float,
    block_size: int,
    allow_overlap: bool,
    version: str = "3.0",
    generators: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Draws the masked frames of a batch.

    Args:
        lengths (`torch.LongTensor` of shape `(B,)`): Valid frames; no padded frame is ever masked.
        num_frames (`int`): T, the padded length.
        mask_prob, block_size, allow_overlap: See [`NestConfig`].
        version (`str`): `"3.0"`, or `"2.x"` for the rules of NeMo 2.
        generators: One generator per row (a mask then depends on its own row alone), or one for the batch, which
            gives NeMo 3's mask under the same seed.

    Returns:
        `torch.BoolTensor` of shape `(B, T)`: True where a frame is masked.
    """
    if version == "2.x":
        draw = _overlap_v2 if allow_overlap else _no_overlap_v2
        rows = generators if isinstance(generators, list) else [generators] * len(lengths)
        mask = torch.zeros(len(lengths), num_frames, dtype=torch.bool)
        for row, length, generator in zip(mask, lengths.tolist(), rows, strict=True):
            draw(row[:length], mask_prob, block_size, generator)
        return mask
    if allow_overlap:
        return _overlap(_uniform(len(lengths), num_frames, generators), lengths, mask_prob, block_size)
    scores = _uniform(len(lengths), num_frames, generators)
    offsets = _uniform(len(lengths), 1, generators)[:, 0]
    return _no_overlap(scores, offsets, lengths, mask_prob, block_size)


def frames_in_loss(mask: torch.Tensor, frames_per_label: int, threshold: float) -> torch.Tensor:
    """(B, T) mask -> (B, T // S): encoder frames of which more than `threshold` of the S frames are masked."""
    return mask.view(mask.shape[0], -1, frames_per_label).float().mean(-1) > threshold


def _uniform(batch: int, num_frames: int, generators) -> torch.Tensor:
    if isinstance(generators, list):
        return torch.stack([torch.rand(num_frames, generator=generator) for generator in generators])
    return torch.rand(batch, num_frames, generator=generators)


def _overlap(uniform: torch.Tensor, lengths: torch.Tensor, mask_prob: float, block_size: int) -> torch.Tensor:
    """Every frame starts a block with probability `mask_prob`, where a whole block fits."""
    frames = torch.arange(uniform.shape[1])
    starts = (uniform < mask_prob) & (frames + block_size <= lengths[:, None])
    # masked(t) = some start in (t - block_size, t], counted by a difference of cumulative sums
    counts = F.pad(starts.int().cumsum(1), (block_size, 0))
    return counts[:, block_size:] > counts[:, :-block_size]


def _no_overlap(
    scores: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor, mask_prob: float, block_size: int
) -> torch.Tensor:
    """ceil(length * p / block) distinct slots of the best scores, all shifted by one offset within a block."""
    num_frames = scores.shape[1]
    wanted = torch.ceil(lengths * mask_prob / block_size).long()
    too_long = (wanted + 1) * block_size > lengths
    block = torch.where(too_long, lengths // (wanted + 1), block_size).clamp_min(1)
    num_slots = (lengths // block - 1).clamp_min(0)
    wanted = torch.minimum(wanted, num_slots)

    frames = torch.arange(num_frames)
    scores = scores.masked_fill(frames >= num_slots[:, None], float("-inf"))
    slots = scores.topk(math.ceil(num_frames * mask_prob / block_size), dim=1).indices  # (B, most blocks)
    chosen = torch.arange(slots.shape[1]) < wanted[:, None]
    starts = slots * block[:, None] + (offsets * block).long()[:, None]
    inside = (frames >= starts[..., None]) & (frames < (starts + block[:, None])[..., None])
    return (inside & chosen[..., None]).any(1)


def _overlap_v2(row: torch.Tensor, mask_prob: float, block_size: int, generator) -> None:
    """NeMo 2: a binomial number of distinct starts; of recordings up to 1.25 blocks the first 8 frames."""
    if block_size >= 0.8 * len(row):
        row[:8] = True
        return
    count = len(row) - block_size
    num_blocks = int(torch.binomial(torch.tensor(float(count)), torch.tensor(float(mask_prob)), generator=generator))
    starts = torch.randperm(count, generator=generator)[:num_blocks]
    row[(starts[:, None] + torch.arange(block_size)).flatten()] = True


def _no_overlap_v2(row: torch.Tensor, mask_prob: float, block_size: int, generator) -> None:
    """NeMo 2, but a block that would leave the recording moves all of them back into it."""
    length = len(row)
    if block_size >= 0.8 * length:
        row[:8] = True
        return
    num_blocks = math.ceil(length * mask_prob / block_size)
    block = block_size if (num_blocks + 1) * block_size <= length else max(length // (num_blocks + 1), 1)
    offset = torch.randint(block_size, (1,), generator=generator)
    slots = torch.randperm(max(length // block - 1, 0), generator=generator)[:num_blocks]
    frames = slots[:, None] * block + offset + torch.arange(block)
    if num_blocks:
        row[frames - (frames.max() - length + 1).clamp_min(0)] = True
