"""Bootstrap: the interval of a binomial, the same figures for any order of the utterances, and paired comparisons."""

import numpy as np
import pytest

from nest_hf.bootstrap import bootstrap_interval, paired_bootstrap


def test_interval_of_a_proportion_is_that_of_the_normal_approximation():
    errors = np.repeat([1, 0], [300, 700])
    low, high = bootstrap_interval(errors, np.ones(1000, int), num_resamples=20_000)
    half_width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half_width, abs=2e-3)
    assert high == pytest.approx(0.3 + half_width, abs=2e-3)


def test_interval_is_that_of_drawing_utterances_one_by_one():
    rng = np.random.default_rng(0)
    totals = rng.integers(1, 30, 200)
    errors = rng.binomial(totals, 0.2)
    rows = rng.integers(0, 200, (20_000, 200))
    expected = np.quantile(errors[rows].sum(1) / totals[rows].sum(1), [0.025, 0.975])
    assert bootstrap_interval(errors, totals, num_resamples=20_000) == pytest.approx(expected, abs=2e-3)


def test_same_seed_same_interval_in_any_order():
    rng = np.random.default_rng(1)
    totals = rng.integers(0, 30, 500)
    errors = rng.binomial(totals, 0.3)
    order = rng.permutation(500)
    interval = bootstrap_interval(errors, totals, seed=3)
    assert interval == bootstrap_interval(errors[order], totals[order], seed=3)
    assert interval != bootstrap_interval(errors, totals, seed=4)


def test_work_in_portions_covers_all_resamples(monkeypatch):
    rng = np.random.default_rng(2)
    totals = rng.integers(1, 100, 300)
    errors = rng.binomial(totals, 0.3)
    whole = bootstrap_interval(errors, totals, num_resamples=2000)
    monkeypatch.setattr("nest_hf.bootstrap._CELLS_AT_ONCE", 5000)
    assert bootstrap_interval(errors, totals, num_resamples=2000) == pytest.approx(whole, abs=1e-12)


def test_nothing_to_divide_by_has_no_interval():
    assert bootstrap_interval(np.array([3, 1]), np.array([0, 0])) is None
    assert paired_bootstrap(np.array([3]), np.array([1]), np.array([0])) is None


def test_a_system_does_not_differ_from_itself():
    errors = np.arange(100) % 4
    comparison = paired_bootstrap(errors, errors, np.full(100, 10))
    assert comparison == (0.0, (0.0, 0.0), 1.0)


def test_a_difference_in_every_utterance_is_significant_where_unpaired_intervals_overlap():
    rng = np.random.default_rng(4)
    totals = np.full(400, 20)
    errors = rng.integers(0, 15, 400)
    better = errors - (rng.random(400) < 0.2) * (errors > 0)
    comparison = paired_bootstrap(better, errors, totals)
    assert comparison.difference < 0 and comparison.interval[1] < 0 and comparison.p_value < 0.01
    assert bootstrap_interval(better, totals)[1] > bootstrap_interval(errors, totals)[0]
    assert paired_bootstrap(errors, better, totals).p_value == pytest.approx(comparison.p_value, abs=0.01)


def test_the_p_value_is_right_under_the_null_hypothesis():
    rng = np.random.default_rng(5)
    totals = np.full(200, 20)
    p_values = np.array(
        [
            paired_bootstrap(*rng.binomial(20, 0.2, (2, 200)), totals, num_resamples=400, seed=seed).p_value
            for seed in range(400)
        ]
    )
    assert 0.02 < np.mean(p_values < 0.05) < 0.09  # 5 % is due


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(np.ones(3), np.ones(2)), "`errors` has 3 utterances but `totals` has 2"),
        (lambda: paired_bootstrap(np.ones(3), np.ones(2), np.ones(3)), "3 utterances but `other_errors` 2"),
        (lambda: bootstrap_interval(np.ones(3), np.ones(3), num_resamples=1), "`num_resamples` is 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
