"""Which recordings make up which batch: a plan that is a function of (seed, epoch) and the same on every process."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

SAMPLED_EPOCHS = 4  # from which the number of batches of every epoch is taken
MIX_TECHNIQUES = ("all", "temperature", "random", "round-robin")


class ExampleKey(NamedTuple):
    """
    One example of a batch: the epoch, which seeds its augmentation, and the rows that it joins.

    Example:

    ```python
    >>> from nest_hf.data import ExampleKey

    >>> key = ExampleKey(epoch=2, rows=(7,))  # `PretrainingDataset(rows)[key]` is row 7 with the noise of epoch 2
    >>> key.rows
    (7,)

    ```
    """

    epoch: int
    rows: tuple[int, ...]


class TokenBudgetBatchSampler(Sampler):
    """
    Batches of similar length whose padded size stays within a budget.

    Every epoch shuffles the recordings, sorts them within windows and packs them until
    `number x longest` would exceed the budget. Every row comes once per epoch over all processes, and every epoch has
    the same number of batches, a multiple of the number of processes, so that training resumes exactly.

    Args:
        lengths (`Sequence[float]`): Length of every row, in the unit of `budget`; see [`row_lengths`].
        budget (`float`, *optional*): Largest padded size of a batch.
        max_length (`float`, *optional*): Longer rows are left out; those longer than `budget` always are.
        unit (`str`, *optional*, defaults to `"seconds"`): Of `lengths`, `budget` and `max_length`, for messages.
        batch_size (`int`, *optional*): Plain number of examples per batch instead of a budget.
        sort_window (`int`, *optional*, defaults to 64): Batches that are sorted together; 0 keeps the random order.
        shuffle (`bool`, *optional*, defaults to `True`): False gives the same plan, by length, in every epoch.
        seed (`int`, *optional*, defaults to 0): Seeds the plan.
        num_replicas, rank (`int`, *optional*): Number of processes, and this one.
        join_to (`float`, *optional*): Joins random rows shorter than this to examples of about this length.
        sources (`Sequence[int]` or `Sequence[str]`, *optional*):
            Data set of every row, where several are mixed: numbers, or names such as `rows["domain"]`.
        mix (`str`, *optional*, defaults to `"all"`):
            `all`: every row once. Else an epoch has as many draws as there are rows, dealt to the data sets by
            `temperature` (share of rows ^ (1 / temperature)), at `random` with `mix_weights`, or `round-robin`
            (equal shares). A data set is passed through whole before a row comes again, across epochs.
        mix_temperature (`float`, *optional*, defaults to 1.0): See `mix`.
        mix_weights (`Sequence[float]` or `dict[str, float]`, *optional*):
            See `mix`: by number of the data set, or by name where `sources` are names.
        ids (`Sequence[str]`, *optional*): Names of the rows in the report of what is left out.

    Yields:
        `list[ExampleKey]`

    Example:

    ```python
    >>> from nest_hf.data import TokenBudgetBatchSampler

    >>> sampler = TokenBudgetBatchSampler([9.0, 1.0, 10.0, 2.0], budget=20.0, shuffle=False)
    >>> [[key.rows for key in batch] for batch in sampler]
    [[(2,), (0,)], [(3,), (1,)]]

    ```
    """

    def __init__(
        self,
        lengths: Sequence[float],
        *,
        budget: float | None = None,
        batch_size: int | None = None,
        max_length: float | None = None,
        unit: str = "seconds",
        sort_window: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        join_to: float | None = None,
        sources: Sequence[int] | Sequence[str] | None = None,
        mix: str = "all",
        mix_temperature: float = 1.0,
        mix_weights: Sequence[float] | dict[str, float] | None = None,
        ids: Sequence[str] | None = None,
    ):
        if (budget is None) == (batch_size is None):
            raise ValueError("pass either a `budget` or a `batch_size`.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be 1 or more.")
        limit = min(limit for limit in (budget, max_length, np.inf) if limit is not None)
        limit_name = "the batch budget" if limit == budget else "`max_length`"
        if join_to is not None and 2.5 * join_to > limit:
            raise ValueError(
                f"`join_to` is {join_to} and {limit_name} {limit}, but a joined example may reach 2.5 times "
                f"`join_to`; raise the limit to {2.5 * join_to}, or join less."
            )
        if mix_weights is not None and mix != "random":
            raise ValueError(f"`mix_weights` has no effect with `mix` {mix!r}; choose `random`, or leave it out.")
        if mix not in MIX_TECHNIQUES:
            raise ValueError(f"`mix` is {mix!r}; choose one of {', '.join(MIX_TECHNIQUES)}.")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.budget, self.batch_limit = budget, batch_size
        self.sort_window, self.shuffle, self.seed = sort_window, shuffle, seed
        self.num_replicas, self.rank = num_replicas, rank
        self.join_to = join_to
        self.epoch = 0
        if unknown := int(np.isnan(self.lengths).sum()):
            raise ValueError(f"{unknown} of {len(self.lengths)} rows have no length; measure them first.")
        usable = np.flatnonzero(self.lengths <= limit)
        if len(usable) < len(self.lengths):
            too_long = np.flatnonzero(self.lengths > limit)
            names = [str(ids[i]) if ids is not None else f"row {i}" for i in too_long[:5].tolist()]
            logger.warning(
                "%d of %d recordings are longer than %s %s (%s) and are left out: %s%s",
                len(too_long), len(self.lengths), limit, unit,
                limit_name,
                ", ".join(names), ", ..." if len(too_long) > 5 else "",
            )  # fmt: skip
        if not len(usable):
            where = (
                f"into a batch of {limit}; raise the budget" if limit == budget else f"`max_length` {limit}; raise it"
            )
            raise ValueError(f"no recording fits {where}.")
        sources = np.zeros(len(self.lengths), int) if sources is None else np.asarray(sources)
        names = np.unique(sources)
        self.rows_by_source = [usable[sources[usable] == name] for name in names]
        if isinstance(mix_weights, dict):
            if {*mix_weights} != {*names.tolist()}:
                raise ValueError(
                    f"`mix_weights` is for {', '.join(map(str, mix_weights))} and `sources` names "
                    f"{', '.join(map(str, names))}; give each its weight."
                )
            mix_weights = [mix_weights[name] for name in names.tolist()]
        elif mix_weights is not None and names.dtype.kind not in "iu":
            raise ValueError("`sources` are names, so `mix_weights` must be a mapping from them.")
        self.draws_by_source = self._draws_by_source(mix, mix_temperature, mix_weights)
        self.num_batches = self._fixed_number_of_batches()

    def _draws_by_source(self, mix: str, temperature: float, weights: Sequence[float] | None) -> np.ndarray:
        """Rows that an epoch takes from every data set."""
        sizes = np.array([len(rows) for rows in self.rows_by_source])
        if mix == "random" and weights is not None and len(weights) == len(sizes):
            empty = [index for index, size in enumerate(sizes) if not size and weights[index]]
            if empty:
                raise ValueError(
                    f"`mix_weights` draws from data set {empty[0]}, none of whose recordings can be used."
                )
        if mix == "all":
            return sizes
        if mix == "temperature":
            shares = (sizes / sizes.sum()) ** (1 / temperature)
        elif mix == "round-robin":
            shares = np.sign(sizes).astype(float)
        else:
            if weights is None or len(weights) != len(sizes) or min(weights) < 0 or sum(weights) == 0:
                raise ValueError(f"`mix_weights` must hold {len(sizes)} weights, one per data set, not {weights}.")
            shares = np.asarray(weights, dtype=np.float64)
        ends = np.round(np.cumsum(shares / shares.sum()) * sizes.sum()).astype(int)
        return np.diff(ends, prepend=0)

    def _fixed_number_of_batches(self) -> int:
        """Room for the plans of all epochs, which differ by a few batches; shorter ones are split up to it."""
        num_rows = int(self.draws_by_source.sum())
        counts = [len(self._pack(self._examples(epoch))) for epoch in range(SAMPLED_EPOCHS if self.shuffle else 1)]
        count = max(counts) if len(set(counts)) == 1 else int(np.ceil(1.02 * max(counts)))
        least, count = (-(-n // self.num_replicas) * self.num_replicas for n in (max(counts), count))
        if least > num_rows:
            raise ValueError(f"{num_rows} recordings are too few for {self.num_replicas} processes; use fewer.")
        return count if count <= num_rows else least

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches // self.num_replicas

    def __iter__(self) -> Iterator[list[ExampleKey]]:
        epoch = self.epoch if self.shuffle else 0
        for batch in self._batches(epoch)[self.rank :: self.num_replicas]:
            yield [ExampleKey(epoch, rows) for rows in batch]

    def plan(self, epoch: int) -> list[list[ExampleKey]]:
        """The batches of all processes in an epoch; process r takes every `num_replicas`-th from r on."""
        epoch = epoch if self.shuffle else 0
        return [[ExampleKey(epoch, rows) for rows in batch] for batch in self._batches(epoch)]

    def _batches(self, epoch: int) -> list[list[tuple[int, ...]]]:
        examples = self._examples(epoch)
        batches = self._pack(examples)
        if len(batches) > self.num_batches:  # sorted as one window there are as few batches as can be
            batches = self._pack(examples, window=len(examples))
        if len(batches) > self.num_batches:  # joined or drawn otherwise, as in an epoch that is known to fit
            examples = self._examples(epoch % SAMPLED_EPOCHS)
            batches = self._pack(examples, window=len(examples))
        while (missing := self.num_batches - len(batches)) > 0:  # halve the largest ones
            sizes = [len(batch) for batch in batches]
            if only_single := max(sizes) == 1:  # nothing is left but to part joined recordings
                sizes = [len(batch[0]) for batch in batches]
            for b in sorted(range(len(batches)), key=lambda b: -sizes[b])[:missing]:
                if sizes[b] > 1:
                    half, batch = sizes[b] // 2, batches[b]
                    parts = ([batch[0][:half]], [batch[0][half:]]) if only_single else (batch[:half], batch[half:])
                    batches[b] = parts[0]
                    batches.append(parts[1])
        if self.shuffle:
            batches = [batches[b] for b in self._rng(epoch, 2).permutation(len(batches))]
        return batches

    def _rng(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, epoch])

    def _examples(self, epoch: int) -> list[tuple[int, ...]]:
        """The epoch's examples in random order; joined ones first."""
        rows = np.concatenate([self._draw(s, epoch, count) for s, count in enumerate(self.draws_by_source.tolist())])
        if self.shuffle:
            rows = self._rng(epoch, 0).permutation(rows)
        if self.join_to is None:
            return list(zip(rows.tolist()))
        short = self.lengths[rows] < self.join_to
        ends = np.cumsum(self.lengths[rows[short]])
        groups: list[tuple[int, ...]] = []
        if short.any():
            # as many groups as whole lengths, whatever the order; each row goes where its middle falls
            count = max(1, int(ends[-1] // self.join_to))
            middle = ends - self.lengths[rows[short]] / 2
            group = np.minimum((middle / ends[-1] * count).astype(int), count - 1)
            starts = np.flatnonzero(np.diff(group, prepend=-1))
            groups = [tuple(part.tolist()) for part in np.split(rows[short], starts[1:])]
        return groups + [(row,) for row in rows[~short].tolist()]

    def _draw(self, source: int, epoch: int, count: int) -> np.ndarray:
        """Draws epoch * count ... (epoch + 1) * count of an endless stream of permutations of a data set's rows."""
        rows = self.rows_by_source[source]
        start, end = epoch * count, (epoch + 1) * count
        passes = range(start // len(rows), -(-end // len(rows)))
        stream = [
            rows if not self.shuffle else np.random.default_rng([self.seed, 1, source, p]).permutation(rows)
            for p in passes
        ]
        offset = start - passes[0] * len(rows) if len(passes) else 0
        return np.concatenate(stream)[offset : offset + count] if stream else rows[:0]

    def _pack(self, examples: list[tuple[int, ...]], window: int | None = None) -> list[list[tuple[int, ...]]]:
        """Sorts examples within windows and cuts them into batches, each as large as the limit allows."""
        lengths = self._lengths_of(examples)
        if not self.shuffle:
            window = len(examples)
        elif window is None:
            per_batch = self.batch_limit or max(1.0, self.budget / lengths.mean())
            window = int(self.sort_window * per_batch)
        order = np.arange(len(examples))
        if window:
            blocks = np.split(order, range(window, len(order), window))
            order = np.concatenate([block[np.argsort(-lengths[block], kind="stable")] for block in blocks])
        in_order = [examples[index] for index in order.tolist()]
        edges = self._edges(lengths[order].tolist(), window or 1)
        return [in_order[start:end] for start, end in zip(edges, edges[1:], strict=False)]

    def _lengths_of(self, examples: list[tuple[int, ...]]) -> np.ndarray:
        rows = np.fromiter((row for rows in examples for row in rows), int)
        starts = np.cumsum([0, *map(len, examples)])[:-1]
        return np.add.reduceat(self.lengths[rows], starts)

    def _edges(self, lengths: list[float], window: int) -> list[int]:
        """Where batches begin and end, in lengths that fall within each window: a step per batch, not per example."""
        edges, start = [0], 0
        while start < len(lengths):
            longest = lengths[start]
            end = start + self._count_within_limit(longest)
            later = start + window - start % window  # the next window begins with a long one again
            while later < min(end, len(lengths)):
                longest = max(longest, lengths[later])
                end = max(later, min(end, start + self._count_within_limit(longest)))
                later += window
            start = min(end, len(lengths))
            edges.append(start)
        return edges

    def _count_within_limit(self, longest: float) -> int:
        """Examples of this length, or shorter ones beside it, that make up a full batch; one always fits."""
        if self.batch_limit:
            return self.batch_limit
        count = int(self.budget // longest) if longest else 2**31
        return max(1, count + (longest * (count + 1) <= self.budget) - (longest * count > self.budget))


def padding_share(lengths: Sequence[float], batches: list[list[ExampleKey]]) -> float:
    """Share of padding in the padded size of all batches."""
    lengths = np.asarray(lengths)
    sizes = [[lengths[list(key.rows)].sum() for key in batch] for batch in batches]
    padded = sum(len(size) * max(size) for size in sizes)
    return 1 - sum(map(sum, sizes)) / padded
