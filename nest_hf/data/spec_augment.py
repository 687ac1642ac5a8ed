"""SpecAugment: bands of frequencies and stretches of time of a recording's features are hidden in training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from ..parsing import check_keys


@dataclass(frozen=True)
class SpecAugment:
    """
    Masks of SpecAugment (arXiv 1904.08779), without time warping. Hidden features are 0, the mean of normalised ones.

    Args:
        freq_masks (`int`, *optional*, defaults to 2): Bands that are hidden.
        freq_width (`int`, *optional*, defaults to 27): Widest band, in feature bins; widths are uniform from 0 on.
        time_masks (`int`, *optional*, defaults to 5): Stretches that are hidden.
        time_width (`float`, *optional*, defaults to 0.05): Longest stretch, as a share of the recording.

    Raises:
        ValueError: for a value that is out of range.

    Example:

    ```python
    >>> import numpy as np
    >>> import torch
    >>> features = torch.ones(1, 400, 80)
    >>> hidden = SpecAugment()(features, torch.tensor([400]), [np.random.default_rng(0)]) == 0
    >>> bool(hidden.any()), bool(hidden.all())
    (True, False)

    ```
    """

    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 5
    time_width: float = 0.05

    def __post_init__(self):
        for name in ("freq_masks", "freq_width", "time_masks"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"`spec_augment.{name}` is {value!r}; give a whole number from 0 on.")
        if not 0 <= self.time_width <= 1:
            raise ValueError(f"`spec_augment.time_width` is {self.time_width}; it must lie between 0 and 1.")

    @classmethod
    def from_config(cls, config: dict) -> "SpecAugment":
        """From the option `spec_augment`, whose keys are the arguments."""
        check_keys(config, [field.name for field in fields(cls)], "spec_augment")
        return cls(**config)

    def __call__(
        self, features: torch.Tensor, lengths: torch.Tensor, generators: Sequence[np.random.Generator]
    ) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, F, M)`): F frames of M bins.
            lengths (`torch.Tensor` of shape `(B,)`): Valid frames.
            generators (`Sequence[np.random.Generator]`): One per recording, of its draws.

        Returns:
            `torch.Tensor` of shape `(B, F, M)`: A copy, in which masks hide nothing else of the recording.
        """
        num_frames, num_bins = features.shape[1:]
        draws = np.stack([generator.random((2, self.freq_masks + self.time_masks)) for generator in generators])
        widths, starts = torch.from_numpy(draws).unbind(1)  # each (B, masks), uniform in [0, 1)
        of_bins, of_frames = slice(self.freq_masks), slice(self.freq_masks, None)
        lengths = lengths.to("cpu", torch.float64)[:, None]
        bins = _hidden(widths[:, of_bins], starts[:, of_bins], min(self.freq_width, num_bins), num_bins, num_bins)
        frames = _hidden(widths[:, of_frames], starts[:, of_frames], self.time_width * lengths, lengths, num_frames)
        hidden = bins[:, None, :] | frames[:, :, None]
        return features.masked_fill(hidden.to(features.device), 0.0)


def _hidden(widths, starts, widest, size, num_places: int) -> torch.Tensor:
    """(B, places): those in one of the masks, of at most `widest` places, which lie within the first `size`."""
    widths = torch.floor(widths * (widest + 1))
    starts = torch.floor(starts * (size - widths + 1))[..., None]
    places = torch.arange(num_places)
    return ((places >= starts) & (places < starts + widths[..., None])).any(1)


__all__ = ["SpecAugment"]
