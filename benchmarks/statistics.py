"""Statistics on raw observations. numpy, and scipy only inside two functions, so that gates start in an instant."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

BOOTSTRAP_DRAWS = 2000
Z_95 = 1.959963984540054


class Interval(NamedTuple):
    """A point estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


class Spread(NamedTuple):
    """The mean of one figure over seeds, and its sample standard deviation; None for a single seed."""

    mean: float
    deviation: float | None

    def holds(self, other: "Spread") -> bool:
        """Whether two means differ by no more than their deviations together, the root of the sum of their squares."""
        known = [given.deviation for given in (self, other) if given.deviation is not None]
        return bool(known) and abs(self.mean - other.mean) <= float(np.linalg.norm(known))


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of at least one value."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


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


@lru_cache(maxsize=1)
def _row_counts(rows: int, seed: int) -> np.ndarray:
    """How often each draw takes each row [D, N]."""
    return _counts(np.random.default_rng(seed), rows)


def _counts(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_DRAWS).astype(np.float64)


def proportion_interval(successes: int, rows: int) -> Interval:
    """A share of rows with its Wilson score interval (Wilson 1927)."""
    z = Z_95
    share = successes / rows
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return Interval(share, float(centre - half), float(centre + half))


def paired_difference_interval(before: np.ndarray, after: np.ndarray) -> Interval:
    """How a share of rows changed, after less before, where both were seen on the same rows.

    The interval is that of Bonett and Price (2012): Wald's on counts with one row added to each kind of disagreement,
    so that it neither vanishes where nothing changed nor leaves [-1, 1]. It excludes 0 about where McNemar's test
    rejects.

    Args:
        before: [N] bool, such as which rows were answered rightly.
        after: [N] bool of the same rows.
    """
    rows = len(before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    up, down = (gained + 1) / (rows + 2), (lost + 1) / (rows + 2)
    half = Z_95 * np.sqrt((up + down - (up - down) ** 2) / (rows + 2))
    return Interval((gained - lost) / rows, max(-1.0, float(up - down - half)), min(1.0, float(up - down + half)))


def mcnemar_p(before: np.ndarray, after: np.ndarray) -> float:
    """How often chance splits the rows that changed at least as unevenly: McNemar's test, exact and two-sided.

    Args:
        before: [N] bool, such as which rows were answered rightly.
        after: [N] bool of the same rows.
    """
    from scipy.stats import binomtest  # here, for loading it takes longer than a gate

    changed = int((before != after).sum())
    return float(binomtest(int((after & ~before).sum()), changed).pvalue) if changed else 1.0


def score(metric: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """A metric of `models/data.py`, in [-1, 1], where scikit-learn is not installed.

    Args:
        metric: accuracy, f1 (of class 1), matthews, pearson or spearman.
        labels: [N] class ids, or values for the correlations.
        predictions: [N] of the same kind.
    """
    return float(SCORES[metric](np.ones((1, len(labels))), labels, predictions)[0])


def score_draws(metric: str, labels: np.ndarray, answers: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Bootstrapped scores of A runs' predictions [N]: [A, D]. A draw takes the same rows for all, so they are paired.

    Rows that are alike in label and all predictions are drawn together: for classes, a draw costs next to nothing.
    """
    kinds, rows = np.unique(np.stack([labels, *answers]), axis=1, return_counts=True)
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(labels), rows / len(labels), size=BOOTSTRAP_DRAWS).astype(np.float64)
    return np.stack([SCORES[metric](counts, kinds[0], predictions) for predictions in kinds[1:]])


def difference_interval(before: Interval, after: Interval) -> Interval:
    """`after` - `before` of two shares of different rows, from their Wilson intervals (Newcombe 1998, method 10)."""
    difference = after.estimate - before.estimate
    low = np.hypot(after.estimate - after.low, before.high - before.estimate)
    high = np.hypot(after.high - after.estimate, before.estimate - before.low)
    return Interval(difference, float(difference - low), float(difference + high))


def ratio_change(before: Interval, after: Interval) -> Interval:
    """`after` / `before` of two ratios measured independently; their relative errors add in quadrature."""
    change = after.estimate / before.estimate
    low = np.hypot(np.log(after.estimate / after.low), np.log(before.high / before.estimate))
    high = np.hypot(np.log(after.high / after.estimate), np.log(before.estimate / before.low))
    return Interval(change, float(change * np.exp(-low)), float(change * np.exp(high)))


def exit_shift(before: Sequence[int], after: Sequence[int]) -> float:
    """How far exits moved, in layers: the Wasserstein-1 distance of two exit histograms [L], of any number of rows."""
    shares = [np.cumsum(counts) / np.sum(counts) for counts in (before, after)]
    return float(np.abs(shares[0] - shares[1]).sum())


def exit_shift_by_chance(before: Sequence[int], after: Sequence[int], seed: int = 0) -> float:
    """The `exit_shift` that 95 % of chance deals stay below: all rows of both histograms [L], dealt out anew."""
    pooled, rows = np.asarray(before) + np.asarray(after), int(np.sum(before))
    dealt = np.random.default_rng(seed).multivariate_hypergeometric(pooled, rows, size=BOOTSTRAP_DRAWS)
    shares = np.cumsum(dealt, axis=1) / rows - np.cumsum(pooled - dealt, axis=1) / np.sum(after)
    return float(np.quantile(np.abs(shares).sum(axis=1), 0.95))


def mean_layer(counts: Sequence[int]) -> float:
    """The mean exit layer of a histogram [L], counted from 1."""
    return float(np.average(np.arange(1, len(counts) + 1), weights=counts))


def rank_correlation_interval(groups: np.ndarray, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Spearman correlation of x and y within equal groups (ranks centred in each group), with a bootstrap interval.

    Args:
        groups: [N] what must be held equal, such as a length bin.
        x: [N] one quantity, such as the difficulty grade.
        y: [N] the other, such as the exit layer.
    """
    rank_x, rank_y = _centred_ranks(groups, x), _centred_ranks(groups, y)
    products = np.stack([rank_x * rank_y, rank_x**2, rank_y**2], axis=1)
    drawn = _correlation(_row_counts(len(x), seed) @ products)
    return percentile_interval(float(_correlation(products.sum(axis=0))), drawn)


def _centred_ranks(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # here, as above

    ranks = np.empty(len(values))
    for group in np.unique(groups):
        inside = groups == group
        ranked = rankdata(values[inside])
        ranks[inside] = ranked - ranked.mean()
    return ranks


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Correlation of centred x and y from the sums of x * y, x**2 and y**2 [..., 3]; 0 where either is constant."""
    norm = np.sqrt(sums[..., 1] * sums[..., 2])
    return sums[..., 0] / np.where(norm > 0, norm, np.inf)


# Each scores D draws at once: [D, K] how often a draw holds row k, [K] labels and [K] predictions -> [D].
def _accuracy(counts: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return counts @ (labels == predictions) / counts.sum(axis=1)


def _f1(counts: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    found, total = counts @ ((labels == 1) & (predictions == 1)), counts @ ((labels == 1) * 1 + (predictions == 1))
    return 2 * found / np.where(total > 0, total, np.inf)


def _matthews(counts: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """The correlation of labels and predictions, each as one indicator a class (Gorodkin 2004)."""
    classes, rows = np.union1d(labels, predictions), counts.sum(axis=1)
    own, told = (counts @ (column[:, None] == classes) for column in (labels, predictions))
    right = counts @ (labels == predictions)
    spreads = [rows**2 - (column**2).sum(axis=1) for column in (own, told)]
    return _correlation(np.stack([right * rows - (own * told).sum(axis=1), *spreads], axis=1))


def _pearson(counts: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Of [K] columns, or of [D, K] that differ between draws."""
    rows = counts.sum(axis=1, keepdims=True)
    x, y = (column - column[..., :1] for column in (labels, predictions))  # what is constant becomes 0 without rounding
    x, y = (column - (counts * column).sum(axis=1, keepdims=True) / rows for column in (x, y))
    return _correlation(
        np.stack([(counts * one * other).sum(axis=1) for one, other in ((x, y), (x, x), (y, y))], axis=1)
    )


def _spearman(counts: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return _pearson(counts, _drawn_ranks(counts, labels), _drawn_ranks(counts, predictions))


def _drawn_ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank of each row in each draw [D, K], less a half; equal values share theirs."""
    distinct, value = np.unique(values, return_inverse=True)
    order = np.argsort(value)
    held = np.add.reduceat(counts[:, order], np.searchsorted(value[order], np.arange(len(distinct))), axis=1)
    return (np.cumsum(held, axis=1) - held / 2)[:, value]


SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
