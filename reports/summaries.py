"""What two measurements of one case are compared by, and why they may not be. Both gate and compare rest on this."""

import base64
import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from benchmarks.records import RunRecord, examples_path, read_columns
from benchmarks.statistics import Interval
from models.config import Config, UserError
from reports.baselines import BASELINES
from reports.runs import Row, Runs


class Summary(Config):
    """One run, as far as it is compared. Baselines hold these, so they are small and the same wherever they are read.

    Attributes:
        error: why the run failed.
        invalid: why its measurement is INVALID.
        timing_invalid: why its seconds are, and its speed-ups with them; scores and exits stand.
        data_hash: of the task's data, all splits.
        machine: CPU, cores, instruction sets and threads, in one phrase; None where the record does not tell.
        checkpoint: its hash; another one is told, not refused.
        scores: split -> metric -> value in [-1, 1].
        exit_counts: split -> rows that left at layers 1..L.
        right: base64 of one bit for each dev row, in order: was it answered rightly? Only for accuracy.
        speedups: key of `reports.baselines.BASELINES` -> speed-up over it, formed inside the run's session.
    """

    error: str | None = None
    invalid: str | None = None
    timing_invalid: str | None = None
    task: str
    metric: str
    data_hash: str
    machine: str | None = None
    checkpoint: str | None = None
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    exit_counts: dict[str, list[int]] = Field(default_factory=dict)
    right: str | None = None
    speedups: dict[str, Interval] = Field(default_factory=dict)
    size_bytes: int | None = None

    @model_validator(mode="after")
    def _one_bit_a_row(self) -> Self:
        if self.right is not None and len(base64.b64decode(self.right)) != math.ceil(self.dev_rows / 8):
            raise ValueError(f"right: does not hold one bit for each of {self.dev_rows} dev rows")
        return self

    @property
    def dev_rows(self) -> int:
        return sum(self.exit_counts.get("dev", []))

    @property
    def right_rows(self) -> np.ndarray | None:
        """[N] bool: which dev rows were answered rightly; None where that was not kept."""
        if self.right is None:
            return None
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.right), np.uint8))
        return bits[: self.dev_rows].astype(bool)


def summarize(folder: Path, runs: Runs) -> dict[str, Summary]:
    """Case -> its newest run, summarized. `folder` is what `runs` was read from."""
    invalid = {row["run_id"] for row in runs.rows if row["timing_validity"] == "INVALID"}
    return {case: _summary(folder, row, runs.records[row["run_id"]], invalid) for case, row in newest(runs).items()}


def newest(runs: Runs) -> dict[str, Row]:
    """Case -> the row of its newest run: a folder may hold one case for several toolchains or checkpoints."""
    return {row["case"]: row for row in sorted(runs.rows, key=lambda row: runs.records[row["run_id"]].started_at)}


def other_data(before: Summary, after: Summary, split: str) -> str | None:
    """Why scores and exits on a split cannot be compared; None where they can."""
    if before.data_hash != after.data_hash:
        return f"other data (hash {after.data_hash}, was {before.data_hash})"
    rows = [sum(summary.exit_counts.get(split, [])) for summary in (before, after)]
    return None if rows[0] == rows[1] else f"other rows of {split} ({rows[1]}, were {rows[0]})"


def other_exits(before: Summary, after: Summary) -> str | None:
    """Why exit counts on dev cannot be compared; a checkpoint given as a folder may change behind its name."""
    depths = [len(run.exit_counts["dev"]) for run in (before, after)]
    if depths[0] != depths[1]:
        return f"another depth ({depths[1]} layers, were {depths[0]})"
    return other_data(before, after, "dev")


def other_machine(before: Summary, after: Summary) -> str | None:
    """Why seconds cannot be compared; None where they can."""
    if before.machine is None or after.machine is None:
        return "the machine was not recorded"
    return None if before.machine == after.machine else f"another machine ({after.machine}; was {before.machine})"


def _summary(folder: Path, row: Row, record: RunRecord, untimed: set[str]) -> Summary:
    """`untimed`: runs whose seconds are INVALID. A sound run's speed-up over one of them is none."""
    own = row["timing_doubts"] if row["run_id"] in untimed else None
    counted = [key for key in BASELINES if own or row[f"speedup_{key}_over"] not in untimed]
    speedups = {key: _speedup(row, f"speedup_{key}") for key in counted}
    invalid = None
    if row["validity"] == "INVALID":
        beyond = row["parity_differing"] - row["parity_below_epsilon"]
        invalid = f"{beyond} of {row['parity_rows']} timed rows left elsewhere than replayed, by more than epsilon"
    scored = record.status == "ok" and record.policy["kind"] != "imposed"
    return Summary(
        error=" ".join((record.error or "no reason was recorded").split()) if record.status == "error" else None,
        invalid=invalid,
        timing_invalid=own,
        task=record.task,
        metric=record.headline_metric,
        data_hash=_short(record.data_hash),
        machine=_machine(record.environment, record.shape),
        checkpoint=_short(record.checkpoint.hash) if record.checkpoint else None,
        scores=record.scores if scored else {},
        exit_counts=record.exit_counts,
        right=_right(examples_path(folder, record.run_id), row) if scored and row["metric"] == "accuracy" else None,
        speedups={key: interval for key, interval in speedups.items() if interval is not None},
        size_bytes=record.size_bytes,
    )


def _short(digest: str) -> str:
    """Twelve digits of a hash, and what was appended to it."""
    return "-".join([digest[:12], *digest.split("-")[1:]])


def _machine(environment: dict[str, Any], shape: dict[str, Any]) -> str | None:
    try:
        cpu, cores, flags = (environment[name] for name in ("cpu", "cores", "kernel_flags"))
        return f"{cpu}, {cores} cores, {' '.join(flags) or 'no vector flags'}, {shape['threads']} threads"
    except KeyError:
        return None


def _right(path: Path, row: Row) -> str | None:
    if not path.is_file():
        return None
    columns = read_columns(path, ["label", "prediction"])
    rows = sum(row["exit_counts"] or [])
    if len(columns["label"]) != rows:
        raise UserError(f"{str(path)!r} holds {len(columns['label'])} rows, but {rows} left; run the suite again")
    return base64.b64encode(np.packbits(columns["label"] == columns["prediction"]).tobytes()).decode()


def _speedup(row: Row, name: str) -> Interval | None:
    """None over nothing, and over the run itself. To four digits: a baseline is read by people, too."""
    if row[name] is None or row[f"{name}_over"] == row["run_id"]:
        return None
    return Interval(*(float(f"{row[key]:.4g}") for key in (name, f"{name}_low", f"{name}_high")))
