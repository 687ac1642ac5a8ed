"""
Memory of weights, gradients and AdamW's state in training, by calculation: nothing is measured, no activation counted.

    python evaluation/memory_table.py
    python evaluation/memory_table.py --audio_tower xlarge --ctc_vocab_size 8000 --num_gpus 2

The models are built without memory (on torch's `meta` device), and frozen by the same YAML files as in training.
Weights are float32 throughout: `--bf16 true` casts them for the products of a step, which is the column after the sum.
What activations take depends on the batch; training/finetune.py measures it before it trains.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from nest_hf import NestAsrConfig, NestAsrForConditionalGeneration, NestConfig, NestForPreTraining
from nest_hf.configuration_nest import PRESETS
from nest_hf.freezing import freeze
from nest_hf.lora import LoraSettings, add_lora
from nest_hf.parsing import error_line, read_yaml
from nest_hf.text_table import text_table

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("stage1_encoder", "stage2_adaptor", "stage3_lora", "joint")
COLUMNS = ("million", "trained", "weights", "gradients", "AdamW", "sum", "bf16 casts", "DDP buckets")


def training_bytes(model: nn.Module) -> dict[str, int]:
    """
    Args:
        model (`nn.Module`): Frozen as it is trained; may be on the `meta` device.

    Returns:
        `dict`: Parameters (`all`, `trained`), and bytes: of the weights, buffers included, of the gradients, of
        AdamW's two moments, of bfloat16 copies of all weights (the most that `--bf16 true` adds), and of DDP's
        gradient buckets (none with `--ddp_gradient_as_bucket_view true`).
    """
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return {
        "all": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in trained),
        "weights": sum(t.numel() * t.element_size() for t in (*parameters, *model.buffers())),
        "gradients": gradients,
        "adamw": 2 * gradients,
        "casts": sum(2 * p.numel() for p in parameters),
        "buckets": gradients,
    }


def pretraining_model(preset: str) -> NestForPreTraining:
    """NEST of a published size, without memory."""
    with torch.device("meta"):
        return NestForPreTraining(NestConfig.from_preset(preset))


def recogniser(stage: str, audio_tower: str, ctc_vocab_size: int) -> nn.Module:
    """NEST-ASR with a language model of Qwen3-0.6B's size as a stage of configs/finetune trains it, without memory."""
    options = read_yaml(CONFIGS / "finetune" / f"{stage}.yaml")
    with torch.device("meta"):
        config = NestAsrConfig(
            audio_config=NestConfig.from_preset(audio_tower), ctc_config={"vocab_size": ctc_vocab_size}
        )
        model = NestAsrForConditionalGeneration(config)
        if "lora" in options:
            return add_lora(model, LoraSettings.from_dict(options["lora"]))
    freeze(model, options.get("trainable", ["*"]))
    return model


def row(name: str, counted: dict[str, int], num_gpus: int) -> list[str]:
    total = counted["weights"] + counted["gradients"] + counted["adamw"]
    gib = [counted["weights"], counted["gradients"], counted["adamw"], total, counted["casts"], counted["buckets"]]
    millions = [f"{counted[which] / 1e6:.1f}" for which in ("all", "trained")]
    return [name, *millions, *(f"{size / 2**30:.2f}" for size in gib), f"{total / num_gpus / 2**30:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio_tower", choices=list(PRESETS), default="large", help="encoder of the recogniser")
    parser.add_argument("--ctc_vocab_size", type=int, default=5000, help="outputs of its CTC head")
    parser.add_argument("--num_gpus", type=int, default=8, help="for the column of FSDP: the sum over so many GPUs")
    args = parser.parse_args()
    if args.num_gpus < 1:
        raise ValueError(f"`num_gpus` is {args.num_gpus}; give 1 or more.")

    rows = [
        row(f"pretrain nest_{preset}", training_bytes(pretraining_model(preset)), args.num_gpus) for preset in PRESETS
    ]
    for stage in STAGES:
        counted = training_bytes(recogniser(stage, args.audio_tower, args.ctc_vocab_size))
        rows.append(row(f"nest_{args.audio_tower} + Qwen3-0.6B, {stage}", counted, args.num_gpus))
    print("GiB, parameters in millions; float32 weights; without activations; calculated, not measured")
    print(text_table(["model", *COLUMNS, f"sum / {args.num_gpus}"], rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(error_line(error))
