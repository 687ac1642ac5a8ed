"""
Keeps the lower layers of a pretrained NEST and makes the others new, as before any training.

    python training/reset_layers.py runs/nest runs/nest_lower --keep 1

The last layers of a pretrained encoder have learned to write codes, which a small one does at the cost of what words
need (Zhang et al., "Revisiting Few-sample BERT Fine-tuning", 2021, found the same for text). The result is an encoder
for `--audio_tower` of training/finetune.py.
"""

import argparse
import sys

import torch

from nest_hf import NestFeatureExtractor, NestModel
from nest_hf.parsing import error_line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="pretrained encoder: a folder or Hub id")
    parser.add_argument("output", help="folder of the new one")
    parser.add_argument("--keep", type=int, required=True, help="layers to keep; 0 keeps the subsampling alone")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights")
    options = parser.parse_args()
    pretrained = NestModel.from_pretrained(options.source)
    layers = pretrained.config.num_hidden_layers
    if not 0 <= options.keep < layers:
        raise ValueError(
            f"`keep` is {options.keep}, but {options.source} has {layers} layers; give 0 to {layers - 1}."
        )
    torch.manual_seed(options.seed)
    model = NestModel(pretrained.config)
    kept = {
        name: tensor
        for name, tensor in pretrained.state_dict().items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < options.keep
    }
    model.load_state_dict(kept, strict=False)
    model.save_pretrained(options.output)
    NestFeatureExtractor.from_pretrained(options.source).save_pretrained(options.output)
    new = sum(tensor.numel() for name, tensor in model.state_dict().items() if name not in kept)
    print(f"{layers - options.keep} of {layers} layers ({new:,} parameters) are new in {options.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
