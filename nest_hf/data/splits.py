"""Splits in which no speaker, call or other group is on two sides, of the hours that are asked for."""

import datasets
import numpy as np

MAX_EXCHANGES = 1000


def split_by_group(
    dataset: datasets.Dataset, shares: dict[str, float], *, group: str = "speaker", seed: int = 0
) -> datasets.DatasetDict:
    """
    Splits a data set so that all rows of a group are in one split, and the hours are as near to the shares as whole
    groups allow.

    Groups are dealt in random order, each to the split that lacks most; then groups are moved or exchanged between
    two splits as long as that brings their hours nearer.

    Args:
        dataset (`datasets.Dataset`): With `duration` and the column `group`, none of them None.
        shares (`dict[str, float]`): Name of every split and its share of the hours; they need not add up to 1.
        group (`str`, *optional*, defaults to `"speaker"`): The column whose values stay together.
        seed (`int`, *optional*, defaults to 0): Seeds the order of the groups.

    Returns:
        `datasets.DatasetDict`: The splits, rows in the order of `dataset`.

    Raises:
        ValueError: if a group or duration is missing, or there are fewer groups than splits.

    Example:

    ```python
    splits = split_by_group(dataset, {"train": 0.9, "dev": 0.05, "test": 0.05}, group="call")
    ```
    """
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError("a stream cannot be split by hours; load the data set without `streaming`.")
    if group not in dataset.features:
        raise ValueError(f"`group` is {group!r}, which is none of the columns {', '.join(dataset.column_names)}.")
    if not shares or not all(0 < share < float("inf") for share in shares.values()):
        raise ValueError(f"`shares` is {shares}; give every split a share above 0.")
    values, durations = dataset[group][:], np.array(dataset["duration"][:], float)
    for column, missing in ((group, sum(value is None for value in values)), ("duration", np.isnan(durations).sum())):
        if missing:
            raise ValueError(f"{missing} of {len(dataset)} rows have no `{column}`; fill it in, or leave them out.")
    names, members = np.unique(np.array(values, dtype=str), return_inverse=True)
    if len(names) < len(shares):
        raise ValueError(f"{len(names)} groups of `{group}` are too few for {len(shares)} splits; use fewer splits.")
    hours = np.bincount(members, durations) / 3600  # (G,)
    wanted = np.array(list(shares.values()))
    chosen = assign_groups(hours, wanted / wanted.sum(), rng=np.random.default_rng(seed))
    of_row = chosen[members]
    return datasets.DatasetDict({name: dataset.select(np.flatnonzero(of_row == s)) for s, name in enumerate(shares)})


def assign_groups(sizes: np.ndarray, shares: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """
    The split of every group, none of the splits empty.

    Args:
        sizes (`np.ndarray` of shape `(G,)`): Size of every group.
        shares (`np.ndarray` of shape `(S,)`): Share of every split, with the sum 1; S <= G.
        rng (`np.random.Generator`): Draws the order in which groups are dealt.

    Returns:
        `np.ndarray` of shape `(G,)`: Index of the split.
    """
    lacking = shares * sizes.sum()  # (S,)
    chosen = np.zeros(len(sizes), int)
    counts = np.zeros(len(shares), int)
    for dealt, g in enumerate(rng.permutation(len(sizes)).tolist()):
        empty = np.flatnonzero(counts == 0)
        candidates = empty if len(empty) == len(sizes) - dealt else np.arange(len(shares))
        chosen[g] = candidates[np.argmax(lacking[candidates])]
        lacking[chosen[g]] -= sizes[g]
        counts[chosen[g]] += 1
    for _ in range(MAX_EXCHANGES):
        exchanges = [_best_exchange(sizes, chosen, lacking, a, b) for a in range(len(shares)) for b in range(a)]
        gain, given, taken, a, b = max(exchanges, default=(0.0, None, None, 0, 0), key=lambda exchange: exchange[0])
        if gain <= 1e-14 * sizes.sum() ** 2:
            break
        moved = (sizes[given] if given is not None else 0.0) - (sizes[taken] if taken is not None else 0.0)
        lacking[a], lacking[b] = lacking[a] + moved, lacking[b] - moved
        if given is not None:
            chosen[given] = b
        if taken is not None:
            chosen[taken] = a
    return chosen


def _best_exchange(sizes, chosen, lacking, a: int, b: int) -> tuple[float, int | None, int | None, int, int]:
    """By how much one move or exchange between splits a and b lowers the squared lack of hours, and which it is."""
    ours, theirs = np.flatnonzero(chosen == a), np.flatnonzero(chosen == b)
    due = (lacking[b] - lacking[a]) / 2  # what a has to give to b for both to lack as much
    best = (0.0, None, None, a, b)

    def better(moved: float, given: int | None, taken: int | None) -> tuple:
        gain = 2 * (due**2 - (due - moved) ** 2)
        return (gain, given, taken, a, b) if gain > best[0] else best

    if len(ours) > 1:
        given = ours[np.argmin(np.abs(sizes[ours] - due))]
        best = better(sizes[given], given, None)
    if len(theirs) > 1:
        taken = theirs[np.argmin(np.abs(-sizes[theirs] - due))]
        best = better(-sizes[taken], None, taken)
    order = theirs[np.argsort(sizes[theirs], kind="stable")]
    # for every group of ours the one of theirs that is smaller by what is due, one of two neighbours
    right = np.searchsorted(sizes[order], sizes[ours] - due).clip(0, len(order) - 1)
    for index in (right, (right - 1).clip(0)):
        moved = sizes[ours] - sizes[order[index]]
        nearest = np.argmin(np.abs(moved - due))
        best = better(moved[nearest], ours[nearest], order[index[nearest]])
    return best
