"""Statistics on raw observations. numpy and nothing else, so that gates start in an instant."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BOOTSTRAP_DRAWS = 2000


class Interval(NamedTuple):
    """A point estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


def ratio_interval(baseline_s: np.ndarray, candidate_s: np.ndarray, seed: int = 0) -> Interval:
    """Speed-up: total baseline seconds over total candidate seconds, bootstrapped over repeats and batches.

    Args:
        baseline_s: [R, B] seconds by repeat and batch.
        candidate_s: [R, B] seconds over the same rows, in the same batches.
        seed: of the bootstrap.
    """
    draws = bootstrap_totals(baseline_s, seed) / bootstrap_totals(candidate_s, seed)
    return percentile_interval(float(baseline_s.sum() / candidate_s.sum()), draws)


def percentile_interval(estimate: float, draws: np.ndarray) -> Interval:
    """An estimate with the middle 95 % of its bootstrap draws [D]."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def bootstrap_totals(seconds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Total seconds of `BOOTSTRAP_DRAWS` resamplings of repeats and batches: [R, B] -> [D].

    Equal shapes and seeds resample the same repeats and batches, so runs timed side by side stay paired.
    """
    repeats, batches = _bootstrap_counts(*seconds.shape, seed)
    return (repeats * (batches @ seconds.T)).sum(axis=1)


@lru_cache(maxsize=2)
def _bootstrap_counts(repeats: int, batches: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each draw takes each repeat [D, R] and each batch [D, B]: a report asks for the same many times."""
    draw = np.random.default_rng(seed)
    return _counts(draw, repeats), _counts(draw, batches)


def _counts(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_DRAWS).astype(np.float64)


def proportion_interval(successes: int, rows: int) -> Interval:
    """A share of rows with its Wilson score interval (Wilson 1927)."""
    z = 1.959963984540054
    share = successes / rows
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return Interval(share, float(centre - half), float(centre + half))


def rank_correlation_interval(groups: np.ndarray, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Spearman correlation of x and y within equal groups (ranks centred in each group), with a bootstrap interval.

    Args:
        groups: [N] what must be held equal, such as a length bin.
        x: [N] one quantity, such as the difficulty grade.
        y: [N] the other, such as the exit layer.
    """
    rank_x, rank_y = _centred_ranks(groups, x), _centred_ranks(groups, y)
    draw = np.random.default_rng(seed)
    rows = draw.integers(len(x), size=(BOOTSTRAP_DRAWS, len(x)))
    estimates = _correlation(rank_x[rows], rank_y[rows])
    low, high = np.quantile(estimates, [0.025, 0.975])
    return Interval(float(_correlation(rank_x[None], rank_y[None])[0]), float(low), float(high))


def _centred_ranks(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values))
    for group in np.unique(groups):
        inside = groups == group
        _, inverse, counts = np.unique(values[inside], return_inverse=True, return_counts=True)
        average = np.cumsum(counts) - (counts - 1) / 2
        ranks[inside] = average[inverse] - average[inverse].mean()
    return ranks


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return (x * y).sum(axis=1) / np.where(norm > 0, norm, np.inf)
