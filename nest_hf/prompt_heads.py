"""What prompts begin with: the language model computes it once, not for every recording.

Dimensions: B recordings, K different heads, P positions of the longest of them.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PromptHeads:
    """
    Keys and values of the heads of prompts, from one batch to the next: the request in words, in front of what differs
    between recordings. With hotwords it is longer than they are.

    The answers are those without it, as far as the precision of the weights goes. An instance is for one call, since
    nothing tells it of changed weights.

    Args:
        model ([`NestAsrForConditionalGeneration`]): In eval mode.

    Example:

    ```python
    heads, cache = PromptHeads(model)([(1, 2, 3), (1, 2, 3), (1, 2)])  # (1, 2) is there once: heads[2] is ()
    # `model.generate` takes `past_key_values=cache`, with the heads in `input_ids`, left-padded to 3
    ```
    """

    def __init__(self, model):
        self.model = model
        self.rows: dict[tuple[int, ...], int] = {}
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer (K, heads, P, width)
        # only where a position of the cache depends on its own row and place alone can there be padding behind it
        layers = DynamicCache(config=model.config.text_config).layers
        self.is_possible = all(type(layer) is DynamicLayer for layer in layers)
        self.is_possible &= model.generation_config.cache_implementation is None

    def __call__(
        self, heads: Sequence[tuple[int, ...]], *, num_beams: int = 1
    ) -> tuple[list[tuple[int, ...]], DynamicCache | None]:
        """
        Args:
            heads (`Sequence[tuple[int, ...]]`): Token ids that each of B prompts begins with.
            num_beams (`int`, *optional*, defaults to 1): Rows of the cache for each prompt.

        Returns:
            Of each prompt its head, or `()` where nothing is gained because no other one shares it, and the cache of
            B x `num_beams` rows, in which heads are left-padded to the longest; None where all of them are `()`.
        """
        counts = Counter(heads)
        used = [head if self.is_possible and (counts[head] > 1 or head in self.rows) else () for head in heads]
        longest = max(map(len, used), default=0)
        if not longest:
            return used, None
        different = dict.fromkeys(head for head in used if head)
        if not different.keys() <= self.rows.keys():
            self._compute(list(different))
        index = torch.tensor([self.rows.get(head, 0) for head in used], device=self.model.device)
        index = index.repeat_interleave(num_beams)
        cache = DynamicCache(config=self.model.config.text_config)
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys[index, :, -longest:], values[index, :, -longest:], number)
        return used, cache

    def _compute(self, heads: list[tuple[int, ...]]) -> None:
        self.rows = {head: row for row, head in enumerate(heads)}
        rows = [torch.tensor(head) for head in heads]
        options = {"batch_first": True, "padding_side": "left"}
        input_ids = pad_sequence(rows, **options).to(self.model.device)
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], **options).to(self.model.device)
        embeds = self.model.get_input_embeddings()(input_ids)
        cache = self.model.model.run_language_model(embeds, attention_mask, use_cache=True).past_key_values
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]


__all__ = ["PromptHeads"]
