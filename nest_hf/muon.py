"""Muon for the matrices of hidden layers, AdamW for everything else, in one optimizer."""

import re

import torch
from torch import nn

# Of a quintic iteration towards the nearest orthogonal matrix, whose singular values end between 0.7 and 1.2: Jordan
# et al., "Muon: An optimizer for hidden layers in neural networks" (https://kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
# An orthogonal update, scaled so that its elements are as large as AdamW's: Liu et al., "Muon is scalable for LLM
# training" (arXiv 2502.16982). Learning rate and weight decay then mean the same for all parameters.
RMS_OF_ADAMW = 0.2
MOMENTUM = 0.95


def orthogonalize(updates: torch.Tensor) -> torch.Tensor:
    """
    Nearly the nearest matrices whose singular values are all 1.

    Args:
        updates (`torch.Tensor` of shape `(N, R, C)`): Matrices, each handled by itself.

    Returns:
        `torch.Tensor` of shape `(N, R, C)`, in bfloat16 where these are on a GPU, else in their own precision.
    """
    tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if tall else updates
    x = x.bfloat16() if x.is_cuda else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    if x.is_cuda or 2 * x.shape[-2] > x.shape[-1]:
        for step in range(NUM_ITERATIONS):
            gram = x @ x.mT if step else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:  # the same on the smaller side alone, half the work: the factors commute
        factors = None
        for _ in range(NUM_ITERATIONS):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            factors = factor if factors is None else factor @ factors
            gram = factor @ gram @ factor
        x = factors @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """
    AdamW whose groups with `muon: True` move by orthogonalised momentum instead.

    Args:
        params (iterable of `dict`): Parameter groups; in those with `muon` every parameter is a matrix, or the kernel
            of a convolution that is one when flattened.
        kwargs: Those of `torch.optim.AdamW`.

    Source: see `COEFFICIENTS` and `RMS_OF_ADAMW`.
    """

    def __init__(self, params, **kwargs):
        super().__init__([{"muon": False, **group} for group in params], **kwargs)
        self._step_supports_amp_scaling = False  # or a scaler of fp16 leaves it to AdamW to skip what overflowed

    def __setstate__(self, state: dict) -> None:  # of pickle and `load_state_dict`; AdamW looks for its own state
        groups = state["param_groups"]
        super().__setstate__({**state, "param_groups": [group for group in groups if not group["muon"]]})
        self.param_groups = groups

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        return loss

    def _move(self, group: dict) -> None:
        by_shape: dict[tuple, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            momentum = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
            update = p.grad.lerp(momentum, MOMENTUM).flatten(1)
            by_shape.setdefault((update.shape, update.device), []).append((p, update))
        for (shape, _), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([update for _, update in pairs]))
            scale = -group["lr"] * RMS_OF_ADAMW * max(shape) ** 0.5
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p).to(p.dtype), alpha=scale)


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is the matrix, or the kernel of one frame, of one of several layers; no bias, no adapter."""
    in_layer = re.search(r"\blayers\.\d+\..*weight$", name) is not None and "lora_" not in name
    return in_layer and parameter.ndim >= 2 and parameter[0, 0].numel() == 1 and min(parameter.shape[:2]) > 1


def with_muon(groups: list[dict], model: nn.Module) -> list[dict]:
    """
    An optimizer's parameter groups, each parted for [`Muon`]: the matrices of hidden layers, and everything else.

    Raises:
        ValueError: No matrix of a hidden layer is trained.
    """
    hidden = {id(p) for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
    parted = []
    for group in groups:
        for muon in (True, False):
            params = [p for p in group["params"] if (id(p) in hidden) == muon]
            parted += [{**group, "params": params, "muon": muon}] if params else []
    if not any(group["muon"] for group in parted):
        raise ValueError("`use_muon` has no effect: no matrix of a hidden layer is trained here; leave it out.")
    return parted


__all__ = ["Muon", "orthogonalize", "with_muon"]
