"""Synthetic CTC posteriors with known spikes, and a character tokenizer, for the tests of decoding."""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHARACTERS = "今天气很好我们去公园谢哈一二三八零abc"


def character_tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """Blank 0, unknown 1, then `characters`; spaces and punctuation are left out."""
    vocabulary = {token: index for index, token in enumerate(["<blank>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\s，。？]"), "removed"),
            pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<blank>", unk_token="<unk>")


def spikes(path, num_classes: int, *, peak: float = 0.9, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    """`path` (T,) of class ids -> (T, V) log-probabilities: `peak` on the path, the rest spread at random."""
    path = torch.as_tensor(path)
    generator = torch.Generator().manual_seed(seed)
    other = torch.rand(len(path), num_classes, generator=generator) ** (1 + 9 * noise) + 1e-3
    other.scatter_(1, path[:, None], 0.0)
    probabilities = (1 - peak) * other / other.sum(1, keepdim=True)
    return probabilities.scatter_(1, path[:, None], peak).log()


def spike_path(tokens, frames, num_frames: int) -> torch.Tensor:
    """(T,) with `tokens` at `frames` and the blank 0 elsewhere."""
    path = torch.zeros(num_frames, dtype=torch.long)
    path[torch.as_tensor(frames, dtype=torch.long)] = torch.as_tensor(tokens, dtype=torch.long)
    return path
