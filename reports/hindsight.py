"""What the logits of all exits tell in hindsight: overthinking, the oracle, and what leaving at random would score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import Z_95, Interval, score
from models.ops import NumpyOps
from models.policies import entropy
from reports.answers import Answers

DEALS = 500


class Overthinking(NamedTuple):
    """Shares of rows, of a network that goes through all its exits (Kaya et al. 2019, sections 3.2 and 3.3).

    Attributes:
        wasteful: an exit before the last is right already.
        destructive: of these, the last is wrong.
        oracle_score: some exit is right: what leaving at the first that is would score.
        oracle_layer: the mean layer of that first right exit; rows that none answers rightly go through all.
    """

    wasteful: float
    destructive: float
    oracle_score: float
    oracle_layer: float


def overthinking(right: np.ndarray, exits: Sequence[int]) -> Overthinking:
    """From which exit answers which row rightly, [len(exits), N] bool."""
    earlier, ever = right[:-1].any(axis=0), right.any(axis=0)
    first = np.where(ever, right.argmax(axis=0), len(exits) - 1)
    return Overthinking(
        wasteful=float(earlier.mean()),
        destructive=float((earlier & ~right[-1]).mean()),
        oracle_score=float(ever.mean()),
        oracle_layer=float(np.asarray(exits)[first].mean()),
    )


def predictions_of(logits: np.ndarray) -> np.ndarray:
    """Class ids from logits [..., C], or values for regression."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits.argmax(axis=-1)


def mean_entropies(logits: np.ndarray) -> np.ndarray:
    """The mean entropy in nats of each exit's answers: [E, N, C] logits -> [E]."""
    return entropy(NumpyOps(), logits).mean(axis=1)


def random_exits(metric: str, answers: Answers, logits: np.ndarray, exits: Sequence[int]) -> Interval:
    """The score when a run's exit layers are dealt out anew among its rows: the mean deal, and where 95 % of them lie.

    For accuracy both are exact but for taking deals as normal; other metrics are scored over `DEALS` seeded deals.

    Args:
        metric: what the score is.
        answers: of the run.
        logits: [len(exits), N, C] of its exits, on the same rows.
        exits: the layers it may leave at, ascending.
    """
    predictions, position = predictions_of(logits), np.searchsorted(exits, answers.exit_layers)
    if metric == "accuracy":
        mean, deviation = _dealt_accuracy(predictions == answers.labels, np.bincount(position, minlength=len(exits)))
    else:
        rows, draw = np.arange(logits.shape[1]), np.random.default_rng(0)
        deals = [score(metric, answers.labels, predictions[draw.permutation(position), rows]) for _ in range(DEALS)]
        mean, deviation = float(np.mean(deals)), float(np.std(deals, ddof=1))
    return Interval(mean, mean - Z_95 * deviation, mean + Z_95 * deviation)


def _dealt_accuracy(right: np.ndarray, leaving: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of the share of right rows over all deals (Hoeffding 1951, theorem 2).

    Args:
        right: [E, N] bool, which exit answers which row rightly.
        leaving: [E] how many rows leave at each exit.
    """
    rows = right.shape[1]
    by_exit, by_row = right.mean(axis=1), leaving @ right / rows
    mean = float(by_row.mean())
    interaction = leaving @ ((right - by_exit[:, None] - by_row + mean) ** 2).sum(axis=1)
    return mean, float(np.sqrt(interaction / max(1, rows - 1))) / rows
