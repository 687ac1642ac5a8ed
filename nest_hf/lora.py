"""LoRA on the language model of a recogniser, by peft: the adapter, and the model with it merged in."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .modeling_nest_asr import NestAsrForConditionalGeneration
from .parsing import check_keys

ADAPTER = "adapter"  # folder of the adapter inside that of the stage


@dataclass(frozen=True)
class LoraSettings:
    """
    Args:
        r (`int`, *optional*, defaults to 16): Rank.
        alpha (`int`, *optional*, defaults to 32): The update is scaled by alpha / r.
        dropout (`float`, *optional*, defaults to 0.05): On the input of the update, in training.
        modules (`list[str]`, *optional*, defaults to the four projections of attention):
            Last part of the names of the linear layers that are adapted, in the language model only.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self):
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.modules:
            raise ValueError(
                f"`lora` has r {self.r}, alpha {self.alpha}, dropout {self.dropout}, modules {self.modules}; r must "
                "be 1 or more, alpha above 0, dropout in [0, 1), and at least one module named."
            )

    @classmethod
    def from_dict(cls, values: dict) -> "LoraSettings":
        check_keys(values, [f.name for f in dataclasses.fields(cls)], "lora")
        return cls(**values)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def add_lora(model, settings: LoraSettings):
    """
    Wraps a recogniser so that only a new adapter of its language model trains.

    Args:
        model ([`NestAsrForConditionalGeneration`]): Is changed in place.
        settings ([`LoraSettings`]): The adapter.

    Returns:
        `peft.PeftModel`: which passes everything else on to the recogniser.

    Raises:
        ValueError: if one of the modules is not in the language model.
    """
    from peft import LoraConfig, get_peft_model

    prefix = r"model\.language_model\."
    names = [name for name, _ in model.named_modules() if re.match(prefix, name)]
    for module in settings.modules:
        if not any(name.endswith(f".{module}") for name in names):
            last = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
            raise ValueError(
                f"`lora` names `{module}`, which the language model does not have; choose from {', '.join(last)}."
            )
    targets = f"{prefix}(?:.*\\.)?(?:{'|'.join(map(re.escape, settings.modules))})"
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    return get_peft_model(model, config)


def load_adapted(source: str, adapter: str):
    """
    A recogniser with an adapter merged in.

    Args:
        source (`str`): Folder or Hub id of the [`NestAsrForConditionalGeneration`] that the adapter was trained on.
        adapter (`str`): Folder or Hub id of the adapter.
    """
    from peft import PeftModel

    model = NestAsrForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def save_adapted(trainer, source: str, *, merge: bool) -> None:
    """
    Saves the result of training an adapter; every process has to call it.

    Args:
        trainer ([`FinetuneTrainer`]): After training.
        source (`str`): What the adapter was trained on.
        merge (`bool`): Whether the run's folder becomes the merged model, with the adapter in `adapter/`; else the
            run's folder is that of the adapter.
    """
    output_dir = Path(trainer.args.output_dir)
    trainer.save_model(str(output_dir / ADAPTER if merge else output_dir))
    if merge and trainer.args.process_index == 0:
        load_adapted(source, str(output_dir / ADAPTER)).save_pretrained(output_dir)
        trainer.processing_class.save_pretrained(output_dir)


__all__ = ["ADAPTER", "LoraSettings", "add_lora", "load_adapted", "save_adapted"]
