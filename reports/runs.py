"""One row for each run, with everything that is derived from its record and its raw timings. pandas-free.

`reports/columns.py` describes every field of a row. Whatever a record lacks is None: nothing is guessed.
"""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.recordings import Recording, read_recordings
from benchmarks.records import RunRecord, read_records
from benchmarks.statistics import mean_layer, proportion_interval
from models.config import UserError
from reports import labels
from reports.answers import Answers, read_answers
from reports.baselines import find_baselines
from reports.by_row import by_row_fields
from reports.columns import COLUMNS, METRIC_PREFIX, Row
from reports.timings import Timings, read_timings, speedup
from reports.trust import find_doubts, trust_fields

CALLS_FOR_P99 = 100


class Runs(NamedTuple):
    """An output folder, read: a row for each run in a stable order, and by run_id the records, and the rest if any.

    Attributes:
        answers: to the dev rows.
        recordings: by name, as records give it.
    """

    rows: list[Row]
    records: dict[str, RunRecord]
    timings: dict[str, Timings]
    answers: dict[str, Answers]
    recordings: dict[str, Recording]

    def recording(self, run_id: str) -> Recording | None:
        """What a run was replayed from, where it is there."""
        return self.recordings.get(self.records[run_id].recording or "")

    def groups(self) -> list[tuple[str, str, list[Row]]]:
        """(task, shape, its rows), one for each table and plot."""
        grouped = groupby(self.rows, key=lambda row: (row["task"], row["shape"]))
        return [(task, shape, list(rows)) for (task, shape), rows in grouped]


def load_runs(folder: Path, *, by_row: bool = True) -> Runs:
    """Read an output folder; what depends on a floor is left for `reports.choice.apply_floor`.

    Args:
        folder: what a run wrote.
        by_row: also read answers and recordings, and derive what needs them, which takes longer than all the rest.

    Raises:
        UserError: the folder holds no records, or a file in it is damaged.
    """
    records = sorted(read_records(folder), key=labels.sort_key)
    if not records:
        raise UserError(f"{str(folder)!r} holds no whole record: the run was stopped before its first; run it again")
    read = {record.run_id: read_timings(folder, record) for record in records if record.status == "ok"}
    timings = {run_id: timed for run_id, timed in read.items() if timed is not None}
    runs = Runs(_rows(records, timings), {record.run_id: record for record in records}, timings, {}, {})
    if not by_row:
        return runs
    answers, recordings = read_answers(folder, records), read_recordings(folder, records)
    fields = by_row_fields(runs.rows, runs.records, answers, recordings)
    rows = [row | fields.get(row["run_id"], {}) for row in runs.rows]
    return runs._replace(rows=rows, answers=answers, recordings=recordings)


def _rows(records: list[RunRecord], timings: dict[str, Timings]) -> list[Row]:
    models, settings = labels.model_labels(records), labels.setting_labels(records)
    recipes = labels.recipe_labels(records)
    baselines = find_baselines(records, timings)
    doubts = find_doubts(records, timings, baselines)
    rows = []
    for record in records:
        row: Row = dict.fromkeys(COLUMNS) | _identity(record)
        row |= {name: named.get(record.run_id) for name, named in (("model", models), ("setting", settings))}
        row |= {"recipe": recipes[record.run_id]}
        if record.status == "ok":
            row |= _scores(record) | _exits(record) | _parity(record)
        if (timed := timings.get(record.run_id)) is not None:
            row |= _speed(timed) | trust_fields(doubts[record.run_id])
            for key, baseline in baselines[record.run_id].items():
                row |= speedup_fields(key, baseline, timings, timed)
            row |= _tail(timed, timings.get(row.get("speedup_no_exit_over") or ""))
        rows.append(row | _ratios(row))
    return rows


def speedup_fields(key: str, baseline: str, timings: dict[str, Timings], timed: Timings) -> Row:
    """The four fields of a speed-up over the run named `baseline`."""
    ratio = speedup(timings[baseline], timed)
    name = f"speedup_{key}"
    return {name: ratio.estimate, f"{name}_low": ratio.low, f"{name}_high": ratio.high, f"{name}_over": baseline}


def _identity(record: RunRecord) -> Row:
    checkpoint = record.checkpoint
    trained = checkpoint.model_dump(include={"method", "family", "backbone"}) if checkpoint else {}
    return trained | {
        "run_id": record.run_id,
        "case": record.case,
        "status": record.status,
        "error": record.error,
        "session": record.session,
        "task": record.task,
        "checkpoint": checkpoint.name if checkpoint else None,
        "num_layers": labels.num_layers(record),
        "precision": record.precision,
        "engine": record.engine,
        "program": record.program,
        "exits": labels.exits_label(record),
        "policy": labels.policy_label(record),
        "configuration": labels.configuration_label(record),
        "role": labels.role(record),
        "shape": labels.shape_label(record.shape),
        "batch_size": record.shape.get("batch_size"),
        "padding": record.shape.get("padding"),
        "threads": record.shape.get("threads"),
        "instances": record.shape.get("instances", 1),
        "metric": record.headline_metric,
        "timed_rows": record.timed_rows if record.status == "ok" else None,
        "size_mb": None if record.size_bytes is None else record.size_bytes / 1e6,
        "peak_memory_mb": None if record.peak_memory_bytes is None else record.peak_memory_bytes / 1e6,
        "int8_share": None if record.coverage is None else record.coverage.int8_ops / record.coverage.linear_ops,
        "build_seconds": record.build_seconds,
    }


def _scores(record: RunRecord) -> Row:
    """Nothing for timing-only runs: their exits were told, so their labels mean nothing."""
    if record.policy["kind"] == "imposed":
        return {}
    headline = {split: scores.get(record.headline_metric) for split, scores in record.scores.items()}
    # The rows that were scored; fewer than the split holds where a run was cut short on purpose.
    rows = sum(record.exit_counts.get("dev", [])) or record.split_counts.get("dev")
    dev = headline.get("dev")
    row: Row = {
        f"{METRIC_PREFIX}{split}_{name}": value
        for split, scores in record.scores.items()
        for name, value in scores.items()
    }
    row |= {"dev_score": dev, "tune_score": headline.get("tune"), "majority_score": record.majority_score}
    if rows:
        row |= {"dev_rows": rows, "one_example_points": 100 / rows}
        if dev is not None and record.headline_metric == "accuracy":
            interval = proportion_interval(round(dev * rows), rows)
            row |= {"dev_score_low": interval.low, "dev_score_high": interval.high}
    return row


def _exits(record: RunRecord) -> Row:
    counts, layers = record.exit_counts.get("dev"), labels.num_layers(record)
    mean = None
    if counts and sum(counts):
        mean = mean_layer(counts)
    elif not record.with_exits and record.exits:
        mean = float(record.exits[-1])  # without exits, every row leaves where the network ends
    saving = None if mean is None or layers is None else 1 - mean / layers
    return {"exit_counts": counts, "mean_exit_layer": mean, "layer_saving": saving}


def _parity(record: RunRecord) -> Row:
    parity = record.parity
    if parity is None:
        return {}
    valid = parity.differing <= parity.below_epsilon
    return {
        "parity_rows": parity.rows,
        "parity_differing": parity.differing,
        "parity_below_epsilon": parity.below_epsilon,
        "parity_epsilon": parity.epsilon,
        "validity": "valid" if valid else "INVALID",
    }


def _speed(timed: Timings) -> Row:
    p50, p90, p95 = np.quantile(timed.seconds, [0.5, 0.9, 0.95]) * 1000
    return {
        "latency_s_per_example": timed.per_example_s,
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p95_ms": float(p95),
        "throughput_per_s": timed.instances / timed.per_example_s,
    }


def _tail(timed: Timings, no_exit: Timings | None) -> Row:
    """The slowest calls, beside those of the same network without exits; of fewer calls, they would be a single one."""
    if timed.seconds.size < CALLS_FOR_P99:
        return {}
    p99 = float(np.quantile(timed.seconds, 0.99))
    beside = None if no_exit is None else p99 / float(np.quantile(no_exit.seconds, 0.99))
    return {"p99_ms": p99 * 1000, "p99_over_no_exit": beside}


def _ratios(row: Row) -> Row:
    """What follows from the speed-up over the same network without exits."""
    gained, mean, layers = row.get("speedup_no_exit"), row["mean_exit_layer"], row["num_layers"]
    ratios = {}
    if gained and mean and layers:
        ratios["exit_efficiency"] = gained / (layers / mean)
    if gained and row["role"] == "exits never fire":
        ratios["exit_overhead"] = 1 / gained - 1
    return ratios
