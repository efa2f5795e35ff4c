"""What a task hands to the rest of the house: rows, splits, labels and the scores its predictions earn."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.config import Config

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class Rows:
    """N examples of one split.

    `ids` name a row by the file it came from and its position there (`dev-17`), `texts` holds one or two strings per
    row, `labels` is [N]: int64 class ids, or float32 targets for regression. `grade` is [N] int64, the difficulty
    (0 easiest) of synthetic rows, else None.
    """

    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    grade: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int]) -> "Rows":
        """The rows at `indices`, in that order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return Rows(
            ids=[self.ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            labels=self.labels[chosen],
            grade=None if self.grade is None else self.grade[chosen],
        )


@dataclass(frozen=True)
class TaskData:
    """The splits of a task: `fit`, `select`, `tune` (slices of train) and `dev` (MNLI has `dev_mismatched` as well).

    `data_hash` is the sha256 (hex) of every row of every split. `counts` holds the rows per split and what was done
    to get there: `phrases_dropped`, `duplicates_grouped`, `train_rows_dropped_in_dev`, `malformed_rows_dropped`. `seed`
    cut the slices.
    """

    splits: dict[str, Rows]
    data_hash: str
    counts: dict[str, int]
    seed: int


def hash_rows(splits: dict[str, Rows]) -> str:
    """The sha256 (hex) over split names, ids, texts, labels and grades, in order."""
    digest = hashlib.sha256()
    for split, rows in splits.items():
        grades = [None] * len(rows) if rows.grade is None else rows.grade.tolist()
        for row in zip(rows.ids, rows.texts, rows.labels.tolist(), grades, strict=True):
            digest.update(json.dumps([split, *row], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


class BaseTask(Config):
    """What every task answers. Subclasses give `name`, `label_names`, `metric_names` and `load`."""

    @property
    def label_names(self) -> list[str]:
        """The name of each class id; empty for regression."""
        raise NotImplementedError

    @property
    def metric_names(self) -> Sequence[MetricName]:
        """The metrics this task reports; the first is the headline."""
        raise NotImplementedError

    def load(self, location: Path | None, seed: int) -> TaskData:
        """Read and split the data; `seed` decides which train rows go to `fit`, `select` and `tune`.

        Raises:
            UserError: the data is missing or malformed; the line names the file and the fix.
        """
        raise NotImplementedError

    @property
    def regression(self) -> bool:
        """Whether labels are values rather than classes."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Width of the logits: the number of classes, 1 for regression."""
        return len(self.label_names) or 1

    @property
    def headline_metric(self) -> MetricName:
        """The one metric that floors and objectives read."""
        return self.metric_names[0]

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Class ids, or values for regression, [N] from answered logits [N, C]."""
        return logits[:, 0] if self.regression else logits.argmax(-1)

    def metrics(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        """Scores in [-1, 1] of `predictions` [N] (class ids, or values for regression) against `labels` [N]."""
        return {name: METRICS[name](labels, predictions) for name in self.metric_names}


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(labels == predictions))


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 (GLUE's "equivalent" / "duplicate")."""
    from sklearn.metrics import f1_score  # a second to import, and most tasks do without

    return float(f1_score(labels, predictions, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return 0.0 if _constant(labels, predictions) else float(np.corrcoef(labels, predictions)[0, 1])


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import rankdata  # here, as scikit-learn above

    return _pearson(rankdata(labels), rankdata(predictions))


def _constant(*columns: np.ndarray) -> bool:
    """A constant column has no correlation; it scores 0 (a useless model), not NaN, which no record could hold."""
    return any(np.ptp(column) == 0 for column in columns)


METRICS: dict[MetricName, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
