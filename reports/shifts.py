"""INT8 against float32 at the same policy: where the same dev rows leave, and whether their labels change."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.records import examples_path, read_columns
from reports.runs import Row


class Shift(NamedTuple):
    """Two runs that differ in their recipe alone: the same checkpoint, exits, policy, engine and shape."""

    float32: Row
    int8: Row


class Moved(NamedTuple):
    """What happened to each dev row between the two runs of a `Shift`.

    Attributes:
        matrix: [L, L] rows that left at layer i + 1 in float32 and at layer j + 1 in INT8.
        agreement: share of rows that left at the same layer.
        drift: mean INT8 exit layer less the mean float32 exit layer; positive is later.
        label_flips: rows whose predicted label differs.
    """

    matrix: np.ndarray
    agreement: float
    drift: float
    label_flips: int


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


def read_moved(folder: Path, shift: Shift) -> Moved | None:
    """Compare the two runs row by row; None where either lacks its predictions, or they are of other rows.

    Raises:
        UserError: a file of predictions is damaged.
    """
    paths = [examples_path(folder, row["run_id"]) for row in shift]
    if not all(path.is_file() for path in paths):
        return None
    one, other = (read_columns(path, ["id", "prediction", "exit_layer"]) for path in paths)
    if not np.array_equal(one["id"], other["id"]):
        return None
    layers = len(shift.float32["exit_counts"])
    matrix = np.zeros((layers, layers), dtype=int)
    np.add.at(matrix, (one["exit_layer"] - 1, other["exit_layer"] - 1), 1)
    return Moved(
        matrix,
        agreement=float((one["exit_layer"] == other["exit_layer"]).mean()),
        drift=float(other["exit_layer"].mean() - one["exit_layer"].mean()),
        label_flips=int((one["prediction"] != other["prediction"]).sum()),
    )
