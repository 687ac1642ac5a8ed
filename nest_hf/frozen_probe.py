"""A linear probe of a frozen encoder, as SUPERB's (arXiv 2105.01051): a learned sum of the layers, one linear layer.

Mean over time, sum of layers and linear layer are linear and change places, so the probe needs the mean of each layer
only. Each dimension of each layer is brought to zero mean and unit variance first, which a linear layer can undo: the
encoders' scales then do not decide how fast their probes learn.

Dimensions: N recordings, L layers, D width, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class ProbeSettings:
    """
    Args:
        learning_rate (`float`, *optional*, defaults to 1e-2): Of AdamW.
        weight_decay (`float`, *optional*, defaults to 1e-2): Of the linear layer.
        num_epochs (`int`, *optional*, defaults to 50): The one with the lowest validation loss counts.
        batch_size (`int`, *optional*, defaults to 32): Recordings per step.
        validation_share (`float`, *optional*, defaults to 0.1): Of the training recordings, drawn by the seed.
    """

    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    num_epochs: int = 50
    batch_size: int = 32
    validation_share: float = 0.1

    def __post_init__(self):
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` is {self.validation_share}; give a share from 0 to below 1.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(f"`learning_rate` is {self.learning_rate} and `weight_decay` {self.weight_decay}; give a "
                             "rate above 0 and a decay of at least 0.")  # fmt: skip


@dataclass
class LinearProbe:
    """
    Attributes:
        shift, scale (`torch.Tensor` of shape `(L, D)`): Mean and deviation of the training recordings.
        layer_weights (`torch.Tensor` of shape `(L,)`): Positive, of sum 1.
        weight (`torch.Tensor` of shape `(C, D)`), bias (`torch.Tensor` of shape `(C,)`): The linear layer.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    layer_weights: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, layer_means: torch.Tensor) -> torch.Tensor:
        """`(N, L, D)` -> logits `(N, C)`."""
        mixed = torch.einsum("l,nld->nd", self.layer_weights, (layer_means - self.shift) / self.scale)
        return F.linear(mixed, self.weight, self.bias)


def train_probe(
    layer_means: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    seed: int = 0,
    settings: ProbeSettings | None = None,
) -> LinearProbe:
    """
    Args:
        layer_means (`torch.FloatTensor` of shape `(N, L, D)`): From [`~FrozenEncoder.layer_means`].
        labels (`torch.LongTensor` of shape `(N,)`): Classes, 0 to `num_classes` - 1.
        num_classes (`int`): C.
        seed (`int`, *optional*, defaults to 0): Of the validation part, the first weights and the order.
        settings ([`ProbeSettings`], *optional*): How it learns.
    """
    settings = settings or ProbeSettings()
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=rng)
    num_valid = int(len(labels) * settings.validation_share)
    valid, train = order[:num_valid], order[num_valid:]
    shift, scale = layer_means[train].mean(0), layer_means[train].std(0, correction=0).clamp_min(1e-5)
    # standardised once, not in every step
    inputs = (layer_means - shift) / scale

    num_layers, width = inputs.shape[1:]
    mixing = torch.zeros(num_layers, requires_grad=True)
    weight = (torch.randn(num_classes, width, generator=rng) / width**0.5 * 0.1).requires_grad_()
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": settings.weight_decay}, {"params": [mixing, bias], "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )

    def loss_of(rows):
        mixed = torch.einsum("l,nld->nd", mixing.softmax(0), inputs[rows])
        return F.cross_entropy(F.linear(mixed, weight, bias), labels[rows])

    best = (float("inf"), ())
    for _ in range(settings.num_epochs):
        for rows in train[torch.randperm(len(train), generator=rng)].split(settings.batch_size):
            optimizer.zero_grad()
            loss_of(rows).backward()
            optimizer.step()
        with torch.no_grad():
            loss = loss_of(valid).item() if num_valid else -float("inf")  # without a validation part, the last
        if loss <= best[0]:
            best = (loss, [tensor.detach().clone() for tensor in (mixing.softmax(0), weight, bias)])
    return LinearProbe(shift, scale, *best[1])


@dataclass
class ProbeResult:
    """
    Of one encoder.

    Attributes:
        errors (`np.ndarray` of shape `(test recordings,)`): The share of seeds whose probe was wrong.
        accuracies (`list[float]`): Of each seed.
        layer_weights (`list[float]`): Mean over the seeds; the input of the first block comes first.
    """

    errors: np.ndarray
    accuracies: list[float]
    layer_weights: list[float]

    @property
    def accuracy(self) -> float:
        return float(1 - self.errors.mean())


def probe(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    *,
    num_seeds: int = 5,
    settings: ProbeSettings | None = None,
) -> ProbeResult:
    """
    Trains a probe per seed, and tests it.

    Args:
        train, test (`tuple`): Layer means `(N, L, D)` and classes `(N,)`.
        num_classes (`int`): C.
        num_seeds (`int`, *optional*, defaults to 5): Probes; their seeds are 0, 1, ...
        settings ([`ProbeSettings`], *optional*): How they learn.
    """
    wrong, mixing = [], []
    for seed in range(num_seeds):
        trained = train_probe(*train, num_classes, seed=seed, settings=settings)
        wrong.append((trained(test[0]).argmax(-1) != test[1]).numpy())
        mixing.append(trained.layer_weights)
    return ProbeResult(
        errors=np.mean(wrong, axis=0),
        accuracies=[float(1 - row.mean()) for row in wrong],
        layer_weights=torch.stack(mixing).mean(0).tolist(),
    )


__all__ = ["LinearProbe", "ProbeResult", "ProbeSettings", "probe", "train_probe"]
