"""The rows of `reports/runs.py` as a pandas frame, for notebooks and for `results.csv`."""

from pathlib import Path

import pandas as pd

from reports.choice import RELATIVE_FLOOR, apply_floor
from reports.columns import COLUMNS, METRIC_PREFIX
from reports.runs import Runs, load_runs


def load_frame(folder: Path, relative_floor: float = RELATIVE_FLOOR) -> pd.DataFrame:
    """One row for each run of an output folder, in a stable order; `reports/columns.py` describes the columns.

    Raises:
        UserError: the folder holds no records, or a file in it is damaged.
    """
    return to_frame(apply_floor(load_runs(folder), relative_floor))


def to_frame(runs: Runs) -> pd.DataFrame:
    """The rows of `runs`, one column for each of `COLUMNS` and each metric of each split; missing values are empty."""
    metrics = sorted({name for row in runs.rows for name in row if name.startswith(METRIC_PREFIX)})
    return pd.DataFrame(runs.rows, columns=pd.Index([*COLUMNS, *metrics]))
