"""Bootstrap over utterances: the interval of an error rate, and whether two systems differ on one test set."""

from typing import NamedTuple

import numpy as np

_CELLS_AT_ONCE = 2_000_000  # of drawn counts, 16 MB


class Comparison(NamedTuple):
    """
    Two systems on one test set.

    Attributes:
        difference (`float`): Error rate of the first system minus that of the second; below 0, the first is better.
        interval (`tuple[float, float]`): Bootstrap interval of the difference.
        p_value (`float`): Two-sided, for the hypothesis that they do not differ.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap_interval(
    errors: np.ndarray,
    totals: np.ndarray,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """
    The percentile interval of sum(errors) / sum(totals) when the utterances are drawn anew, with replacement.

    Args:
        errors, totals (`np.ndarray` of shape `(utterances,)`): Errors and reference tokens of each utterance.
        num_resamples (`int`, *optional*, defaults to 1000): How often the test set is drawn.
        confidence (`float`, *optional*, defaults to 0.95): The share of resamples inside the interval.
        seed (`int`, *optional*, defaults to 0): Of the draws; the order of the utterances does not matter.

    Returns:
        `tuple[float, float]`, or `None` where there are no reference tokens.
    """
    if not np.sum(totals):
        return None
    return _percentiles(_resampled_rates(errors, totals, num_resamples, seed), confidence)


def paired_bootstrap(
    errors: np.ndarray,
    other_errors: np.ndarray,
    totals: np.ndarray,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison | None:
    """
    Compares two systems on the same utterances, which are drawn anew for both together (Bisani and Ney, "Bootstrap
    estimates for confidence intervals in ASR performance evaluation", 2004).

    Args:
        errors, other_errors (`np.ndarray` of shape `(utterances,)`): Errors of the first and of the second system.
        totals (`np.ndarray` of shape `(utterances,)`): Reference tokens of each utterance.
        num_resamples, confidence, seed: See [`bootstrap_interval`].

    Returns:
        [`Comparison`], or `None` where there are no reference tokens.

    Example:
        >>> comparison = paired_bootstrap(np.zeros(50, int), np.ones(50, int), np.full(50, 10))
        >>> comparison.difference, comparison.p_value < 0.01
        (-0.1, True)
    """
    if len(errors) != len(other_errors):
        raise ValueError(
            f"`errors` has {len(errors)} utterances but `other_errors` {len(other_errors)}; pass the same."
        )
    gain = np.asarray(errors) - np.asarray(other_errors)
    if not np.sum(totals):
        return None
    rates = _resampled_rates(gain, totals, num_resamples, seed)
    # One more in both counts: the observed test set is a draw too, and no finite number of draws shows p = 0
    tail = min(np.sum(rates <= 0), np.sum(rates >= 0)) + 1
    p_value = min(2 * tail / (len(rates) + 1), 1.0)
    return Comparison(float(gain.sum() / np.sum(totals)), _percentiles(rates, confidence), float(p_value))


def _percentiles(rates: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_rates(errors: np.ndarray, totals: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """
    The rate of each resample that has a reference token, at most (num_resamples,). How often a row is drawn is
    multinomial; equal rows are drawn together, so that the work depends on the number of different rows.
    """
    if len(errors) != len(totals):
        raise ValueError(f"`errors` has {len(errors)} utterances but `totals` has {len(totals)}; pass the same ones.")
    if num_resamples < 100:
        raise ValueError(f"`num_resamples` is {num_resamples}; an interval needs at least 100.")
    rows, counts = np.unique(np.stack([errors, totals], axis=1), axis=0, return_counts=True)
    share, rng = counts / counts.sum(), np.random.default_rng(seed)
    step = max(_CELLS_AT_ONCE // len(rows), 1)
    sums = [
        rng.multinomial(counts.sum(), share, size=min(step, num_resamples - done)) @ rows
        for done in range(0, num_resamples, step)
    ]
    errors, totals = np.concatenate(sums).T
    return errors[totals > 0] / totals[totals > 0]
