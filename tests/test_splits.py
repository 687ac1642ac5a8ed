"""Splits by group: nothing lost, no group on two sides, the hours as near as whole groups allow."""

from itertools import product

import datasets
import numpy as np
import pytest

from nest_hf.data.splits import assign_groups, split_by_group

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def calls(num_groups: int = 60, *, seed: int = 0) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    speakers = [f"s{g}" for g in range(num_groups) for _ in range(int(rng.integers(1, 9)))]
    rows = [{"id": f"u{i}", "speaker": s, "duration": float(rng.uniform(1, 20))} for i, s in enumerate(speakers)]
    return datasets.Dataset.from_list([rows[i] for i in rng.permutation(len(rows))])


def test_every_row_is_in_one_split_and_no_group_in_two():
    dataset = calls()
    splits = split_by_group(dataset, SHARES)
    assert list(splits) == list(SHARES)
    assert sorted(key for part in splits.values() for key in part["id"][:]) == sorted(dataset["id"][:])
    speakers = [set(part["speaker"][:]) for part in splits.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 60
    order = dataset["id"][:]
    for part in splits.values():
        assert part["id"][:] == sorted(part["id"][:], key=order.index)


@pytest.mark.parametrize("seed", range(8))
def test_hours_are_near_the_shares(seed):
    dataset = calls(seed=seed)
    total = sum(dataset["duration"][:])
    for name, part in split_by_group(dataset, SHARES, seed=seed).items():
        assert sum(part["duration"][:]) / total == pytest.approx(SHARES[name], abs=0.002)


def test_few_groups_are_dealt_nearly_as_well_as_can_be():
    shares = np.array([0.6, 0.25, 0.15])
    for seed in range(30):
        sizes = np.random.default_rng(seed).lognormal(0, 1, 7)
        chosen = assign_groups(sizes, shares, rng=np.random.default_rng(seed))

        def lack(of_group, sizes=sizes) -> float:
            return np.abs(np.bincount(of_group, sizes, 3) / sizes.sum() - shares).sum()

        best = min(lack(np.array(p)) for p in product(range(3), repeat=7) if len(set(p)) == 3)
        assert lack(chosen) <= best + 0.08 and len(set(chosen.tolist())) == 3


def test_the_splits_are_a_function_of_the_seed_and_differ_between_seeds():
    dataset = calls()
    drawn = [split_by_group(dataset, SHARES, seed=seed)["dev"]["id"][:] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    other_order = dataset.select(np.random.default_rng(5).permutation(len(dataset)))
    assert sorted(split_by_group(other_order, SHARES, seed=1)["dev"]["id"][:]) == sorted(drawn[0])


def test_one_huge_group_leaves_no_split_empty():
    sizes = [1000.0, 1.0, 1.0]
    rows = [{"id": str(i), "speaker": f"s{i}", "duration": size} for i, size in enumerate(sizes)]
    for seed in range(6):
        splits = split_by_group(datasets.Dataset.from_list(rows), SHARES, seed=seed)
        assert [len(part) for part in splits.values()] == [1, 1, 1] and splits["train"]["id"][0] == "0"


def test_many_groups_are_dealt_in_seconds():
    sizes = np.random.default_rng(0).lognormal(0, 1, 100_000)
    chosen = assign_groups(sizes, np.array([0.98, 0.01, 0.01]), rng=np.random.default_rng(0))
    assert np.bincount(chosen, sizes) / sizes.sum() == pytest.approx([0.98, 0.01, 0.01], abs=1e-6)


def test_what_cannot_be_split_is_refused():
    dataset = calls(2)
    for data, shares, group, message in [
        (dataset, SHARES, "speaker", "2 groups of `speaker` are too few for 3"),
        (dataset, SHARES, "call", "`group` is 'call', which is none of the columns id, speaker"),
        (dataset, {"train": 1.0, "dev": 0.0}, "speaker", "a share above 0"),
        (dataset.to_iterable_dataset(), SHARES, "speaker", "a stream cannot be split"),
        (datasets.Dataset.from_list([{"speaker": "a", "duration": None}, {"speaker": None, "duration": 1.0}]),
         {"a": 1.0}, "speaker", "1 of 2 rows have no `speaker`"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            split_by_group(data, shares, group=group)
