"""What runs answered to each dev row, and whether two of them differ by more than noise."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.records import RunRecord, examples_path, read_columns
from benchmarks.statistics import (
    Interval,
    mcnemar_p,
    paired_difference_interval,
    percentile_interval,
    score,
    score_draws,
)
from models.config import UserError

LEVEL = 0.05


class Answers(NamedTuple):
    """One run's dev rows, [N] each, in the order of the task.

    Attributes:
        data_hash: two runs' rows are the same where this is.
        lengths: in tokens.
        grades: of difficulty, where rows carry one.
    """

    data_hash: str
    labels: np.ndarray
    predictions: np.ndarray
    exit_layers: np.ndarray
    lengths: np.ndarray
    grades: np.ndarray | None

    @property
    def right(self) -> np.ndarray:
        """[N] bool: which rows were answered rightly."""
        return self.labels == self.predictions

    def of(self, rows: np.ndarray) -> "Answers":
        """The answers to some of the rows, [N] bool."""
        columns = {name: column[rows] for name, column in self._asdict().items() if isinstance(column, np.ndarray)}
        return self._replace(**columns)


class Difference(NamedTuple):
    """A score less another over the same rows. `p`: of McNemar's exact test, for accuracy alone."""

    interval: Interval
    p: float | None

    @property
    def is_noise(self) -> bool:
        """Whether equally good runs would often differ as much, by the test where there is one, else the interval."""
        if self.p is not None:
            return self.p >= LEVEL
        return self.interval.low <= 0 <= self.interval.high


def read_answers(folder: Path, records: list[RunRecord]) -> dict[str, Answers]:
    """run_id -> answers, without those of runs whose predictions are not there, or not their own (timing only).

    Raises:
        UserError: a file is damaged.
    """
    found = {}
    for record in records:
        path = examples_path(folder, record.run_id)
        if record.status == "ok" and record.policy["kind"] != "imposed" and path.is_file():
            columns = read_columns(path)
            try:
                needed = [columns[name] for name in ("label", "prediction", "exit_layer", "length")]
            except KeyError as error:
                raise UserError(f"{str(path)!r} lacks the column {error}; run the suite again") from error
            found[record.run_id] = Answers(record.data_hash, *needed, grades=columns.get("grade"))
    return found


def same_rows(one: Answers, other: Answers) -> bool:
    """Whether two runs answer the same rows, so that they can be paired."""
    return one.data_hash == other.data_hash and len(one.labels) == len(other.labels)


def difference(metric: str, before: Answers | None, after: Answers | None) -> Difference | None:
    """The score of `after` less that of `before`; None where either is not there or they are to other rows."""
    if before is None or after is None or not same_rows(before, after):
        return None
    if metric == "accuracy":
        pair = before.right, after.right
        return Difference(paired_difference_interval(*pair), mcnemar_p(*pair))
    columns = [before.predictions, after.predictions]
    scores = [score(metric, before.labels, column) for column in columns]
    draws = score_draws(metric, before.labels, columns)
    return Difference(percentile_interval(scores[1] - scores[0], draws[1] - draws[0]), None)
