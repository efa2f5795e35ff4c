"""Raw timings as read for reports: seconds by repeat and batch, and the ratios that may be formed from them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.records import RunRecord, read_columns, timings_path
from benchmarks.statistics import Interval, bootstrap_totals, percentile_interval
from models.config import UserError


@dataclass(frozen=True)
class Timings:
    """One run's timed calls: `seconds` [R, B] by repeat and call, `rows` [B] examples in each.

    Each of several `instances` that ran at once made its own calls, with the same batches: they are calls like others.
    """

    seconds: np.ndarray
    rows: np.ndarray
    instances: int = 1

    @property
    def total_s(self) -> float:
        return float(self.seconds.sum())

    @property
    def per_example_s(self) -> float:
        return self.total_s / float(self.rows.sum() * len(self.seconds))

    @cached_property
    def draws_s(self) -> np.ndarray:
        """[D] bootstrapped totals, drawn alike for all runs of one shape."""
        return bootstrap_totals(self.seconds)

    @cached_property
    def other_draws_s(self) -> np.ndarray:
        """[D] as `draws_s`, drawn independently of it: for runs of another session."""
        return bootstrap_totals(self.seconds, seed=1)


def read_timings(folder: Path, record: RunRecord) -> Timings | None:
    """The timings of a run, or None where it has none.

    Raises:
        UserError: the file is damaged, or its repeats do not hold the same batches.
    """
    path = timings_path(folder, record)
    if not path.is_file():
        return None
    columns = read_columns(path)
    if missing := {"repeat", "batch", "rows", "seconds"} - columns.keys():
        raise UserError(f"{str(path)!r} has no column {min(missing)!r}; run the suite again")
    if not len(columns["seconds"]):
        return None
    instances = columns.get("instance", np.zeros_like(columns["batch"]))
    columns["batch"] = columns["batch"] * (instances.max() + 1) + instances
    order = np.lexsort((columns["batch"], columns["repeat"]))
    repeats, batches = np.unique(columns["repeat"]), np.unique(columns["batch"])
    whole = len(order) == len(repeats) * len(batches)
    grid = {name: values[order].reshape(len(repeats), -1) for name, values in columns.items()} if whole else {}
    if not whole or (grid["batch"] != batches).any() or (grid["rows"] != grid["rows"][0]).any():
        raise UserError(f"{str(path)!r} must hold the same batches in every repeat, but does not; run the suite again")
    return Timings(grid["seconds"], grid["rows"][0], int(instances.max()) + 1)


def comparable(one: Timings, other: Timings) -> bool:
    """Whether two runs were timed on the same batches, equally often: else no ratio is formed."""
    return one.seconds.shape == other.seconds.shape and bool((one.rows == other.rows).all())


def speedup(baseline: Timings, candidate: Timings) -> Interval:
    """Total baseline seconds over total candidate seconds; both must be `comparable` and of one session."""
    return percentile_interval(baseline.total_s / candidate.total_s, baseline.draws_s / candidate.draws_s)


def speedup_by_sessions(
    baseline: Timings, baseline_anchor: Timings, candidate: Timings, candidate_anchor: Timings
) -> Interval:
    """A speed-up across sessions: the ratio of each run's speed-up over the anchor timed in its own session.

    The sessions are resampled independently, so the interval is wider than that of a direct comparison.
    """
    estimate = (candidate_anchor.total_s / candidate.total_s) / (baseline_anchor.total_s / baseline.total_s)
    draws = candidate_anchor.draws_s / candidate.draws_s
    return percentile_interval(estimate, draws / (baseline_anchor.other_draws_s / baseline.other_draws_s))
