"""Batch plans: every row once, as many batches in every epoch, one plan on every process, the budget kept."""

import logging
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from accelerate import skip_first_batches
from torch.utils.data import DataLoader, Dataset

from nest_hf.data import TokenBudgetBatchSampler, padding_share

BUDGET = 30.0
EPOCHS = range(8)


def durations(number: int, *, seed: int = 0, longest: float = 20.0) -> np.ndarray:
    """Log-normal lengths in seconds, a second in the middle."""
    return np.random.default_rng(seed).lognormal(0.0, 0.7, number).clip(0.3, longest)


def rows_of(batches) -> list[int]:
    return [row for batch in batches for key in batch for row in key.rows]


def padded_sizes(lengths, batches) -> list[float]:
    return [len(batch) * max(lengths[list(key.rows)].sum() for key in batch) for batch in batches]


def epoch_of(sampler, epoch: int) -> list:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("limit", [{"budget": BUDGET}, {"batch_size": 7}, {"budget": BUDGET, "join_to": 6.0}])
@pytest.mark.parametrize("num_replicas", [1, 2, 3])
@pytest.mark.parametrize("number", [101, 256, 997])
def test_every_row_comes_once_per_epoch_over_all_processes(number, num_replicas, limit):
    lengths = durations(number)
    ranks = [
        TokenBudgetBatchSampler(lengths, **limit, seed=3, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    for epoch in EPOCHS:
        shares = [epoch_of(sampler, epoch) for sampler in ranks]
        assert {len(share) for share in shares} == {len(ranks[0])}  # equal in every epoch and on every process
        assert sorted(rows_of(sum(shares, []))) == list(range(number))
        interleaved = [batch for step in zip(*shares, strict=True) for batch in step]
        assert all(interleaved == sampler.plan(epoch) for sampler in ranks)
        assert {key.epoch for batch in interleaved for key in batch} == {epoch}
        assert all(interleaved)  # no empty batch
        if "budget" in limit:
            assert max(padded_sizes(lengths, interleaved)) <= BUDGET
        else:
            assert max(map(len, interleaved)) == 7


def test_few_or_odd_rows_never_end_a_run_in_a_later_epoch():
    # the number of batches is fixed from four epochs, and these plans differ by much from epoch to epoch
    rng = np.random.default_rng(0)
    for trial in range(60):
        number = int(rng.integers(2, 40))
        lengths, sources = durations(number, seed=trial, longest=8.0), rng.integers(0, 2, number)
        mixed = {"sources": sources, "mix": "temperature", "mix_temperature": 3.0} if trial % 2 else {}
        joined = {"join_to": 3.0} if trial % 4 < 2 else {}
        sampler = TokenBudgetBatchSampler(
            lengths, budget=8.0 + trial % 9, num_replicas=1 + trial % 2, **mixed, **joined
        )
        for epoch in range(40):
            plan = sampler.plan(epoch)
            assert len(plan) == sampler.num_batches and len(plan) % sampler.num_replicas == 0
            assert max(padded_sizes(lengths, plan)) <= sampler.budget + 1e-9
            assert len(rows_of(plan)) == number
            assert mixed or sorted(rows_of(plan)) == list(range(number))


def test_the_plan_is_a_function_of_seed_and_epoch():
    def make(seed):
        return TokenBudgetBatchSampler(durations(300), budget=BUDGET, seed=seed)

    sampler = make(1)
    epochs = [epoch_of(sampler, epoch) for epoch in EPOCHS]
    assert [epoch_of(make(1), epoch) for epoch in EPOCHS] == epochs
    assert epoch_of(sampler, 2) == epochs[2]  # going back gives the same again
    assert rows_of(epochs[0]) != rows_of(epochs[1])
    assert rows_of(epoch_of(make(2), 0)) != rows_of(epochs[0])


def test_resuming_is_skipping_batches():
    whole = epoch_of(TokenBudgetBatchSampler(durations(300), budget=BUDGET, seed=1), 3)
    resumed = TokenBudgetBatchSampler(durations(300), budget=BUDGET, seed=1)
    resumed.set_epoch(3)
    assert list(islice(resumed, 5, None)) == whole[5:]


def test_without_shuffling_every_epoch_is_the_same_by_length_and_keeps_epoch_0():
    lengths = durations(100)
    sampler = TokenBudgetBatchSampler(lengths, budget=BUDGET, shuffle=False)
    assert epoch_of(sampler, 5) == epoch_of(sampler, 0)
    assert {key.epoch for batch in epoch_of(sampler, 5) for key in batch} == {0}  # so noise and masks are fixed
    firsts = [lengths[batch[0].rows[0]] for batch in sampler]
    assert firsts == sorted(firsts, reverse=True)


def test_accelerate_finds_no_batch_size_and_no_odd_count():
    assert not hasattr(TokenBudgetBatchSampler(durations(10), batch_size=2), "batch_size")


def test_joined_rows_are_near_the_target_and_their_number_is_constant():
    lengths = durations(1000, longest=12.0)
    sampler = TokenBudgetBatchSampler(lengths, budget=60.0, join_to=8.0)
    counts = set()
    for epoch in EPOCHS:
        keys = [key for batch in sampler.plan(epoch) for key in batch]
        totals = np.array([lengths[list(key.rows)].sum() for key in keys if lengths[key.rows[0]] < 8.0])
        counts.add(len(keys))
        assert abs(totals.mean() / 8.0 - 1) < 0.02
        assert totals.max() < 2.5 * 8.0
        assert sorted(row for key in keys for row in key.rows) == list(range(1000))
        assert all(len(key.rows) == 1 for key in keys if lengths[key.rows[0]] >= 8.0)
    assert len(counts) == 1
    assert sampler.plan(0) != sampler.plan(1)  # joined anew in every epoch


def mixture(**arguments) -> tuple[TokenBudgetBatchSampler, np.ndarray]:
    """A large, a middle and a small data set."""
    sources = np.repeat([0, 1, 2], [400, 100, 20])
    return TokenBudgetBatchSampler(durations(520), budget=BUDGET, sources=sources, **arguments), sources


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        ({"mix": "all"}, [400 / 520, 100 / 520, 20 / 520]),
        ({"mix": "temperature"}, [400 / 520, 100 / 520, 20 / 520]),
        ({"mix": "temperature", "mix_temperature": 2.0}, [20 / 34.47, 10 / 34.47, 4.47 / 34.47]),
        ({"mix": "temperature", "mix_temperature": 1e9}, [1 / 3] * 3),
        ({"mix": "round-robin"}, [1 / 3] * 3),
        ({"mix": "random", "mix_weights": [1.0, 3.0, 0.0]}, [0.25, 0.75, 0.0]),
    ],
)
def test_data_sets_are_mixed_in_the_shares_that_are_asked_for(arguments, shares):
    sampler, sources = mixture(**arguments)
    for epoch in EPOCHS:
        rows = rows_of(sampler.plan(epoch))
        assert len(rows) == 520  # an epoch is as long as all data sets together
        assert np.bincount(sources[rows], minlength=3) / 520 == pytest.approx(shares, abs=0.002)


def test_a_mixed_data_set_is_passed_through_whole_before_a_row_comes_again():
    sampler, sources = mixture(mix="round-robin")  # 173 of 400, 100 and 20 rows per epoch
    times = Counter()
    for epoch in EPOCHS:
        times.update(rows_of(sampler.plan(epoch)))
        for source in range(3):
            counts = [times[row] for row in np.flatnonzero(sources == source).tolist()]
            assert max(counts) - min(counts) <= 1


def test_rows_over_the_budget_are_named_once_and_left_out(caplog):
    lengths = np.array([31.0, 1.0, 40.0, 2.0, 3.0])
    with caplog.at_level(logging.WARNING, logger="nest_hf"):
        sampler = TokenBudgetBatchSampler(lengths, budget=30.0, ids=["a", "b", "c", "d", "e"])
        plans = [sampler.plan(epoch) for epoch in EPOCHS]
    assert all(sorted(rows_of(plan)) == [1, 3, 4] for plan in plans)
    (record,) = caplog.records
    assert "2 of 5 recordings" in record.message and record.message.endswith("a, c")


@pytest.mark.parametrize("limit", [{"budget": 50.0}, {"batch_size": 4}])
def test_rows_over_the_maximal_length_are_left_out_whatever_limits_the_batch(caplog, limit):
    lengths = np.array([3.0, 11.0, 10.0, 12.0])
    with caplog.at_level(logging.WARNING, logger="nest_hf"):
        sampler = TokenBudgetBatchSampler(lengths, **limit, max_length=10.0, unit="llm_tokens", ids=list("abcd"))
        assert all(sorted(rows_of(sampler.plan(epoch))) == [0, 2] for epoch in EPOCHS)
    (record,) = caplog.records
    assert record.message == (
        "2 of 4 recordings are longer than 10.0 llm_tokens (`max_length`) and are left out: b, d"
    )


@pytest.mark.parametrize("limit", [{"budget": BUDGET}, {"batch_size": 5}])
@pytest.mark.parametrize("sort_window", [0, 3, 64])
def test_a_batch_ends_where_the_next_example_would_exceed_its_limit(limit, sort_window):
    for seed in range(20):
        lengths = durations(200, seed=seed)
        sampler = TokenBudgetBatchSampler(lengths, **limit, sort_window=sort_window, seed=seed)
        examples = sampler._examples(0)
        batches = sampler._pack(examples)
        assert sorted(row for batch in batches for (row,) in batch) == list(range(200))
        for batch, after in zip(batches, batches[1:], strict=False):
            grown = [lengths[row] for (row,) in [*batch, after[0]]]
            if "budget" in limit:
                assert len(batch) * max(grown[:-1]) <= BUDGET < len(grown) * max(grown)
            else:
                assert len(batch) == 5


def test_data_sets_may_be_named_and_weighted_by_name():
    domains = ["general"] * 300 + ["call"] * 40
    arguments = {"budget": BUDGET, "mix": "random", "seed": 2}
    named = TokenBudgetBatchSampler(
        durations(340), sources=domains, mix_weights={"general": 0.25, "call": 0.75}, **arguments
    )
    rows = rows_of(named.plan(0))
    assert np.mean([domains[row] == "call" for row in rows]) == pytest.approx(0.75, abs=0.003)
    numbered = TokenBudgetBatchSampler(
        durations(340), sources=[int(d == "general") for d in domains], mix_weights=[0.75, 0.25], **arguments
    )
    assert numbered.plan(0) == named.plan(0)


class Loader(DataLoader):
    """As [`NestTrainer`] makes it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def resumed_loader(sampler, epoch: int, skipped: int) -> DataLoader:
    """What `Trainer` does when it resumes in the middle of an epoch."""
    loader = Loader(_Keys(), batch_sampler=sampler, collate_fn=list)
    loader = skip_first_batches(loader, skipped) if skipped else loader
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    inner = getattr(loader.batch_sampler, "batch_sampler", None)
    if hasattr(inner, "set_epoch"):
        inner.set_epoch(epoch)
    return loader


class _Keys(Dataset):
    def __getitem__(self, key):
        return key


@pytest.mark.parametrize("num_replicas", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_loader_that_resumes_in_any_epoch_gives_the_rest_of_it(epoch, num_replicas):
    def make(rank):
        return TokenBudgetBatchSampler(durations(257), budget=BUDGET, seed=5, num_replicas=num_replicas, rank=rank)

    rest = []
    for rank in range(num_replicas):
        whole = list(resumed_loader(make(rank), epoch, 0))
        assert whole == make(rank).plan(epoch)[rank::num_replicas]
        for skipped in (1, len(whole) // 2, len(whole) - 1):
            assert list(resumed_loader(make(rank), epoch, skipped)) == whole[skipped:]
        rest += whole
    assert sorted(rows_of(rest)) == list(range(257))


def test_a_plan_of_many_rows_is_made_without_a_step_per_row(monkeypatch):
    lengths = np.random.default_rng(0).lognormal(1, 0.6, 20_000).clip(0.3, 30)
    calls = []
    count = TokenBudgetBatchSampler._count_within_limit
    monkeypatch.setattr(
        TokenBudgetBatchSampler, "_count_within_limit", lambda self, one: calls.append(one) or count(self, one)
    )
    sampler = TokenBudgetBatchSampler(lengths, budget=200.0)
    assert len(calls) < 5 * sampler.num_batches


def test_padding_is_below_5_percent_where_random_batches_have_a_third():
    lengths = np.random.default_rng(0).lognormal(0.0, 0.5, 4000).clip(0.3, 2.5)
    ours = TokenBudgetBatchSampler(lengths, budget=100.0).plan(0)
    random = TokenBudgetBatchSampler(lengths, batch_size=8, sort_window=0).plan(0)
    assert padding_share(lengths, ours) < 0.05
    assert padding_share(lengths, random) > 0.3
    longest, own = [[lengths[key.rows[0]] for key in batch] for batch in ours[:2]]
    by_hand = 1 - (sum(longest) + sum(own)) / (len(longest) * max(longest) + len(own) * max(own))
    assert padding_share(lengths, ours[:2]) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a `budget` or a `batch_size`"),
        ({"budget": 5.0, "batch_size": 2}, "either a `budget` or a `batch_size`"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"budget": 0.5}, "no recording fits into a batch of 0.5"),
        ({"budget": 5.0, "mix": "roundrobin"}, "`mix` is 'roundrobin'; choose one of all, temperature"),
        ({"budget": 5.0, "mix": "random"}, "`mix_weights` must hold 1 weights"),
        ({"budget": 5.0, "mix": "random", "mix_weights": [1, 2]}, "`mix_weights` must hold 1 weights"),
        ({"budget": 5.0, "mix": "random", "mix_weights": [-1]}, "`mix_weights` must hold 1 weights"),
        ({"budget": 5.0, "mix_weights": [1]}, "`mix_weights` has no effect with `mix` 'all'"),
        ({"budget": 5.0, "num_replicas": 4}, "3 recordings are too few for 4 processes"),
        ({"budget": 5.0, "lengths": [1.0, math.nan]}, "1 of 2 rows have no length"),
        ({"budget": 5.0, "join_to": 4.0}, "raise the limit to 10.0"),
        ({"budget": 50.0, "join_to": 4.0, "max_length": 9.0}, "`max_length` 9.0, but"),
        ({"batch_size": 2, "max_length": 0.5, "unit": "mel_frames"}, "no recording fits `max_length` 0.5; raise it"),
        ({"budget": 5.0, "sources": ["a", "b", "b"], "mix": "random", "mix_weights": [1, 2]}, "must be a mapping"),
        (
            {"budget": 5.0, "sources": ["a", "b", "b"], "mix": "random", "mix_weights": {"a": 1}},
            "names a, b; give each",
        ),
        ({"budget": 2.0, "sources": [0, 0, 1], "mix": "random", "mix_weights": [1, 1]}, "draws from data set 1"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(**{"lengths": [1.0, 2.0, 3.0], **arguments})
