"""What prompts say before the audio: the language model reads every different beginning once, not for every recording.

Dimensions: B recordings, N different beginnings ("nodes"), P positions of the longest head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# The nodes of a batch are one row, in which most pairs of positions are masked but computed. Up to so many pairs cost
# little beside the rest of a layer; beyond, there are to be no more than in prompts read one by one.
FEW_PAIRS = 2**24


class PromptHeads:
    """
    Keys and values of the heads of prompts. The heads are a tree: a token after the same tokens is one node, whichever
    prompts it is in. The nodes of a batch are read as one row, each attending to those before it, so that a prompt
    with many hotwords pads none of the others; what two of its prompts share is there for the next batch.

    The answers are those without it, as far as the precision of the weights goes. An instance is for one call, since
    nothing tells it of changed weights.

    Args:
        model ([`NestAsrForConditionalGeneration`]): In eval mode.

    Example:

    ```python
    cache = PromptHeads(model)([(1, 2, 3), (1, 2, 3), (1, 2)])  # three nodes
    # `model.generate` takes `past_key_values=cache`, with the heads in `input_ids`, left-padded to 3
    ```
    """

    def __init__(self, model):
        self.model = model
        self.nodes: dict[tuple[int, int], int] = {}  # (node before or -1, token) -> node
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer (1, heads, N, width)
        # only where a position depends on those before it and its own number alone can it be read beside others
        text_config = model.config.text_config
        layers = DynamicCache(config=text_config).layers
        self.is_possible = all(type(layer) is DynamicLayer for layer in layers)
        self.is_possible &= model.generation_config.cache_implementation is None
        self.is_possible &= model.model.language_model.config._attn_implementation in ("eager", "sdpa")
        self.is_possible &= not getattr(text_config, "alibi", False)

    def __call__(self, heads: Sequence[Sequence[int]], *, num_beams: int = 1, room: int = 0) -> DynamicCache | None:
        """
        Args:
            heads (`Sequence[Sequence[int]]`): Token ids before the audio of each of B prompts.
            num_beams (`int`, *optional*, defaults to 1): Rows of the cache for each prompt.
            room (`int`, *optional*, defaults to 0): Positions that follow, for which memory is taken at once.

        Returns:
            The cache of B x `num_beams` rows, in which heads are left-padded to the longest; None where nothing is
            gained: no two heads begin alike, or they are long and share little.
        """
        if not self.is_possible:
            return None
        # 1. the way of each head through the tree
        nodes, paths, num_old = dict(self.nodes), [], len(self.nodes)
        for head in heads:
            path = [-1]
            for token in head:
                path.append(nodes.setdefault((path[-1], token), len(nodes)))
            paths.append(np.array(path[1:], dtype=np.int64))
        counts = np.bincount(np.concatenate(paths), minlength=len(nodes))
        is_shared = (counts > 1) | ((counts > 0) & (np.arange(len(nodes)) < num_old))
        longest = max(map(len, paths))
        num_pairs = (len(nodes) - num_old) * len(nodes)
        if not is_shared.any() or num_pairs > max(FEW_PAIRS, len(paths) * longest**2):
            return None

        # 2. keys and values of its nodes
        layers = self.layers
        if len(nodes) > num_old:
            layers = self._read(nodes, paths, num_old)
            kept = torch.from_numpy(np.flatnonzero(is_shared)).to(self.model.device)
            self.layers = [(keys[:, :, kept], values[:, :, kept]) for keys, values in layers]
            numbers = [*(is_shared.cumsum() - 1).tolist(), -1]  # the last is for the node before the first
            self.nodes = {(numbers[key[0]], key[1]): numbers[node] for key, node in nodes.items() if is_shared[node]}

        # 3. a row for each head
        index = np.zeros((len(paths), longest), dtype=np.int64)
        for row, path in zip(index, paths, strict=True):
            row[len(row) - len(path) :] = path
        index = torch.from_numpy(index).to(self.model.device).repeat_interleave(num_beams, dim=0)
        cache = DynamicCache(config=self.model.config.text_config)
        cache.layers = [RoomyLayer(*(x[0][:, index].transpose(0, 1) for x in layer), room) for layer in layers]
        return cache

    def _read(self, nodes: dict[tuple[int, int], int], paths: list[np.ndarray], num_old: int):
        """Keys and values of all `nodes`, of which the first `num_old` are there already."""
        num_new = len(nodes) - num_old
        is_visible = np.zeros((num_new, len(nodes)), dtype=bool)
        positions = np.zeros((1, num_new), dtype=np.int64)
        for path in paths:
            own = np.flatnonzero(path >= num_old)
            is_visible[np.ix_(path[own] - num_old, path)] |= np.tri(len(path), dtype=bool)[own]
            positions[0, path[own] - num_old] = own
        device = self.model.device
        tokens = torch.tensor([[token for _, token in list(nodes)[num_old:]]], device=device)
        embeds = self.model.get_input_embeddings()(tokens)
        mask = embeds.new_zeros(1, 1, *is_visible.shape)
        mask.masked_fill_(torch.from_numpy(~is_visible).to(device), torch.finfo(mask.dtype).min)
        cache = DynamicCache(config=self.model.config.text_config)
        for number, layer in enumerate(self.layers):
            cache.update(*layer, number)
        self.model.model.run_language_model(
            embeds,
            mask,
            position_ids=torch.from_numpy(positions).to(device),
            past_key_values=cache,
            use_cache=True,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]


class RoomyLayer(DynamicLayer):
    """
    A layer of a cache with room for positions to come: a step of generation copies nothing that is there, as with
    `DynamicLayer`, and does not attend to what is empty yet, as with `StaticLayer`.

    Args:
        keys, values (`torch.Tensor` of shape `(B, heads, P, width)`): What is there.
        room (`int`): Positions to come; where there are more, it goes on as `DynamicLayer`.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._hold(F.pad(keys, (0, 0, 0, room)), F.pad(values, (0, 0, 0, room)), keys.shape[-2])

    def _hold(self, all_keys: torch.Tensor, all_values: torch.Tensor, length: int) -> None:
        self._all_keys, self._all_values = all_keys, all_values
        self.keys, self.values = all_keys[:, :, :length], all_values[:, :, :length]

    def _has_room(self, number: int) -> bool:
        """For `number` positions, unless something else put other tensors here."""
        if not self.is_initialized or self.keys.data_ptr() != self._all_keys.data_ptr():
            return False
        return len(self.keys) == len(self._all_keys) and self.keys.shape[-2] + number <= self._all_keys.shape[-2]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        number = key_states.shape[-2]
        if not self._has_room(number):
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.keys.shape[-2]
        self._all_keys[:, :, start : start + number] = key_states
        self._all_values[:, :, start : start + number] = value_states
        self._hold(self._all_keys, self._all_values, start + number)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if not self._has_room(0):
            return super().reorder_cache(beam_idx)
        beam_idx = beam_idx.to(self.keys.device)
        self._hold(self._all_keys[beam_idx], self._all_values[beam_idx], self.keys.shape[-2])


__all__ = ["PromptHeads"]
