"""What of a model trains: patterns of names, gradients, and an eval mode that lasts."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """
    Whether a parameter or buffer is named by one of the patterns.

    Args:
        name (`str`): As in the model's state dict; the wrapping of a LoRA adapter is ignored.
        patterns (`Sequence[str]`):
            A module's name stands for all that is in it; `*`, `?` and `[...]` as in file names, `*` also across dots.
            `model.` in front of the name may be left out.
    """
    name = name.removeprefix("base_model.model.")
    forms = {name, name.removeprefix("model.")}
    return any(fnmatchcase(form, end) for form in forms for pattern in patterns for end in (pattern, f"{pattern}.*"))


def check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raises ValueError for a pattern that names no parameter of the model."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            parts = list(dict.fromkeys(".".join(n.removeprefix("model.").split(".")[:1]) for n in names))
            raise ValueError(
                f"`trainable` names `{pattern}`, which matches nothing; the parts are {', '.join(parts)}."
            )


class FreezingCallback(TrainerCallback):
    """
    Freezes all that its patterns do not name, for any `Trainer`.

    When the trainer is made, everything else gets `requires_grad=False`. Modules of which nothing trains are in eval
    mode in every forward pass, also after the `model.train()` of `Trainer.training_step`: their dropout is off and the
    statistics of their BatchNorms stay. Layers that recompute their activations in the backward pass go on doing so.

    Args:
        trainable (`Sequence[str]`): Patterns as of [`matches`].

    Raises:
        ValueError: for a pattern that matches nothing.
    """

    def __init__(self, trainable: Sequence[str]):
        self.trainable = list(trainable)

    def on_init_end(self, args, state, control, model=None, **kwargs):
        freeze(model, self.trainable)


def freeze(model: nn.Module, trainable: Sequence[str]) -> None:
    """As [`FreezingCallback`], at once."""
    check_patterns(model, trainable)
    # a shared tensor trains if any of its names does
    chosen = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if matches(name, trainable)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    frozen = _frozen_modules(model)

    def keep_eval(module, inputs):
        if module.training:
            for part in frozen:
                part.training = _only_recomputes(part)

    model.register_forward_pre_hook(keep_eval)


def _frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Modules inside of those that have parameters, none of which trains."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return list(module.modules())
    return [frozen for child in module.children() for frozen in _frozen_modules(child)]


def _only_recomputes(module: nn.Module) -> bool:
    """Whether train mode of a frozen layer means nothing but activation checkpointing."""
    if not (isinstance(module, GradientCheckpointingLayer) and getattr(module, "gradient_checkpointing", False)):
        return False
    return not any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items())


__all__ = ["FreezingCallback", "check_patterns", "freeze", "matches"]
