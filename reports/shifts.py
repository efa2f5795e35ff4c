"""INT8 against float32 at the same policy: where the same dev rows leave, and what becomes of their labels."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import exit_shift
from reports.answers import Answers, same_rows
from reports.runs import Row, Runs


class Shift(NamedTuple):
    """Two runs that differ in their recipe alone: the same checkpoint, exits, policy, engine and shape."""

    float32: Row
    int8: Row


class Outcomes(NamedTuple):
    """Numbers of dev rows whose label is the same or not, right or not, in float32 and in INT8.

    `rescued` are right in INT8 alone, `lost` in float32 alone.
    """

    flips_same_exit: int
    flips_other_exit: int
    both_right: int
    rescued: int
    lost: int
    both_wrong: int

    @property
    def flips(self) -> int:
        """Rows whose predicted label differs."""
        return self.flips_same_exit + self.flips_other_exit


class Moved(NamedTuple):
    """What happened to each dev row between the two runs of a `Shift`.

    Attributes:
        matrix: [L, L] rows that left at layer i + 1 in float32 and at layer j + 1 in INT8.
        agreement: share of rows that left at the same layer.
        drift: mean INT8 exit layer less the mean float32 exit layer; positive is later.
        wasserstein: the distance of the two exit histograms, in layers; rows that swap exits leave it 0.
        outcomes: None for regression.
    """

    matrix: np.ndarray
    agreement: float
    drift: float
    wasserstein: float
    outcomes: Outcomes | None


def find_shifts(rows: list[Row]) -> list[Shift]:
    """Every INT8 early-exit run beside its float32 run, where both counted their exits; in the order of `rows`."""
    float32: dict[tuple[str, ...], Row] = {}
    int8: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["role"] != "early exit" or not row["exit_counts"]:
            continue
        key = tuple(row[name] for name in ("task", "shape", "checkpoint", "engine", "configuration"))
        if row["recipe"].startswith("float32"):
            float32[key] = row
        elif row["recipe"].startswith("int8"):
            int8[key].append(row)
    return [Shift(float32[key], row) for key, quantized in int8.items() if key in float32 for row in quantized]


def find_moved(runs: Runs, shift: Shift) -> Moved | None:
    """Compare the two runs row by row; None where either lacks its answers, or they are to other rows."""
    one, other = (runs.answers.get(row["run_id"]) for row in shift)
    if one is None or other is None or not same_rows(one, other):
        return None
    layers = len(shift.float32["exit_counts"])
    matrix = np.zeros((layers, layers), dtype=int)
    np.add.at(matrix, (one.exit_layers - 1, other.exit_layers - 1), 1)
    return Moved(
        matrix,
        agreement=float((one.exit_layers == other.exit_layers).mean()),
        drift=float(other.exit_layers.mean() - one.exit_layers.mean()),
        wasserstein=exit_shift(matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()),
        outcomes=None if runs.records[shift.int8["run_id"]].num_classes == 1 else _outcomes(one, other),
    )


def _outcomes(one: Answers, other: Answers) -> Outcomes:
    stayed, flipped = one.exit_layers == other.exit_layers, one.predictions != other.predictions
    before, after = one.right, other.right
    kinds = [flipped & stayed, flipped & ~stayed, before & after, ~before & after, before & ~after, ~before & ~after]
    return Outcomes(*(int(kind.sum()) for kind in kinds))
