"""Records: what one run measured, raw, on disk. Torch-free and pandas-free: reports and gates read it anywhere.

An output folder holds

    records.jsonl                       one `RunRecord` a line, written as runs finish
    columns/<run_id>/examples.parquet   id, label, length, grade, prediction, exit_layer: one row for each dev example
    columns/<run_id>/timings-<session>.parquet   repeat, batch, instance, rows, seconds: one row for each timed batch
    recordings/<recording_id>/exits.npz logits [exits, N, C] of every kept exit, per split, shared by many runs

and that of a tuning

    trials.jsonl                        one `TrialRecord` a line, written as trials finish; and its recordings

A record stores what was seen; speed-ups, savings and choices are derived when read (`reports/`).

A session that is measured again has timings of its own beside the earlier ones (its predictions follow from run_id). A
record is appended once all it speaks of is on disk: a kill at any moment leaves what was measured before as it was.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, ValidationError

from benchmarks.disk import LOCK_WAIT_S, naming, writing
from models.config import Config, UserError

SCHEMA, TRIAL_SCHEMA = "exitbench/record/1", "exitbench/trial/1"
RECORDS, TRIALS = "records.jsonl", "trials.jsonl"
MAY_KNOW_TUNE = "rows of tune, which choose here, may be among those it was trained on"


class CheckpointInfo(Config):
    """The checkpoint a run used.

    Attributes:
        truncates: for the first layers of a larger network, fine-tuned alone: how many layers that network has.
        imported: the reference layout it came in (`pabee`, `deebert`), with nothing known of its fine-tuning. None for
            one that was trained here.
        may_know_tune: whether rows of `tune`, which choose, may be among those it was fine-tuned on: it was imported,
            began as a classifier from elsewhere, or saw other splits.
        seed: of the fine-tuning; None for an imported one, as is `trained_seconds`.
        train: what its fine-tuning was told, such as epochs; of an imported one max_seq_length alone; empty in older
            records.
        trained_seconds: what fine-tuning took where it was trained.
        select_scores: of each exit, on `select`.
        select_ece: calibration error of each exit there; empty for regression, and in older records.
    """

    name: str
    method: str
    method_options: dict[str, Any]
    family: str
    backbone: str
    num_layers: int
    truncates: int | None = None
    hash: str
    imported: str | None = None
    may_know_tune: bool = False
    seed: int | None
    train: dict[str, Any] = Field(default_factory=dict)
    trained_seconds: float | None
    select_scores: list[float]
    select_ece: list[float] = Field(default_factory=list)


class Calibration(Config):
    """The rows an INT8 recipe was calibrated on: how many, of which split, by which seed, and the hash of their ids."""

    split: str
    rows: int
    seed: int
    ids_hash: str


class Coverage(Config):
    """What an INT8 recipe came to in the whole network with all its exits, as the compiled model says.

    Attributes:
        int8_ops: linear ops (matrix products with weights) that run in INT8.
        linear_ops: all of them. Attention scores, norms and look-ups are never quantized and not counted.
        others: segment or op -> the precision it runs in instead, and why: `float32: fallback layer_11`.
    """

    int8_ops: int
    linear_ops: int
    others: dict[str, str]


class Parity(Config):
    """Live runs against replayed ones, over the timed rows.

    A row is `differing` when its exit layer or label is not the replayed one; of those, `below_epsilon` were closer
    than `epsilon` to turning, by the replayed margin.
    """

    rows: int
    differing: int
    below_epsilon: int
    epsilon: float


class Conditions(Config):
    """What the machine did while a session was timed; `benchmarks/validity.py` judges by it.

    Attributes:
        processors: that the session might run on.
        wall_seconds: that the timing took.
        other_seconds: processor seconds of other processes meanwhile; None where the system does not tell.
        stolen_seconds: processor seconds that the hypervisor kept.
        clock_gap_seconds: what the clock of the day gained on the timer.
    """

    processors: int
    wall_seconds: float
    other_seconds: float | None
    stolen_seconds: float
    clock_gap_seconds: float

    @property
    def other_share(self) -> float | None:
        """Of the processors' time, what other processes took."""
        if self.other_seconds is None:
            return None
        return self.other_seconds / (self.processors * self.wall_seconds)

    @property
    def stolen_share(self) -> float:
        """Of the processors' time, what the hypervisor kept."""
        return self.stolen_seconds / (self.processors * self.wall_seconds)


class RunRecord(Config):
    """One measured combination.

    Attributes:
        run_id: hash of case, data, checkpoint and toolchain versions; resume skips on it.
        case: the readable resolved spec, the same on any machine.
        session: runs timed turn by turn with each other share it; ratios are formed only within one.
        exits: the kept exits (layers from 1); one entry without exits (the network ends there).
        with_exits: whether the program can leave early. `fixed` without exits is the whole or truncated network.
        program: graph (exits inside one compiled graph; also if `engine` trims), stepped, or single (graph, no exits).
        precision: what the compiled program says it runs in.
        scores: split -> metric -> value in [-1, 1], from the recorded logits; empty for timing-only runs.
        exit_counts: split -> rows that left at layers 1..L.
        conditions: None in older records, and where the run failed.
        timings: name of the file of raw timings, below `columns/<run_id>`; that of older records by default.
        size_bytes: the program's weights and graph on disk.
        peak_memory_bytes: the most that all programs of its worker have held on the GPU so far; None on a CPU.
        build_seconds: quantize, convert and compile.
    """

    # A NaN would be written as null, and the file could no longer be read: refuse it where it is made.
    model_config = ConfigDict(allow_inf_nan=False)

    schema_version: Literal["exitbench/record/1"] = SCHEMA
    run_id: str
    case: str
    suite: str
    session: str
    started_at: str
    status: Literal["ok", "error"]
    error: str | None = None

    task: str
    headline_metric: str
    num_classes: int
    data_hash: str
    split_counts: dict[str, int]
    checkpoint: CheckpointInfo | None
    recipe: dict[str, Any]
    engine: str
    with_exits: bool
    exits: list[int]
    policy: dict[str, Any]
    shape: dict[str, Any]
    recording: str | None = None

    program: Literal["graph", "stepped", "single"] | None = None
    precision: str | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    build_seconds: float | None = None
    coverage: Coverage | None = None
    calibration: Calibration | None = None
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    exit_counts: dict[str, list[int]] = Field(default_factory=dict)
    majority_score: float | None = None
    parity: Parity | None = None
    timed_rows: int = 0
    conditions: Conditions | None = None
    timings: str = "timings.parquet"
    warmup_seconds: float | None = None
    environment: dict[str, Any]


class Timing(Config):
    """Seconds of each call of a candidate and, turn by turn with it over the same rows, of its tuning's anchor.

    Of several instances at once, the calls of all.

    Attributes:
        size_bytes: on disk.
        footprint_bytes: resident, measured where it is an objective.
    """

    seconds: list[float]
    anchor_seconds: list[float]
    size_bytes: int | None
    anchor_size_bytes: int | None
    footprint_bytes: int | None = None
    anchor_footprint_bytes: int | None = None


class TrialRecord(Config):
    """One trial of a tuning.

    Attributes:
        tuning: hash of what is tuned: the file, data, checkpoints and toolchain versions; resume goes by it.
        number: from 1; 0 is the float32 network without exits, which sets the floor.
        choice: the option taken on each axis of the space; empty for number 0.
        case: the combination tried, with the dial that replay chose.
        score: on `tune`, in `metric`, replayed; None where the trial failed.
        exit_counts: `tune` rows that left at layers 1..L.
        mse: mean squared difference between the logits of all exits and float32's, on `tune`; for strategy `mse`.
        timing: None below the floor, unless the tuning is `performance_only`: what may not be served is not timed.
        trial_seconds: what the trial took.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    schema_version: Literal["exitbench/trial/1"] = TRIAL_SCHEMA
    tuning: str
    number: int
    choice: list[int]
    case: str
    checkpoint: str
    recipe: dict[str, Any]
    engine: dict[str, Any]
    with_exits: bool
    exits: list[int]
    policy: dict[str, Any]
    metric: str
    score: float | None = None
    exit_counts: list[int] = Field(default_factory=list)
    mse: float | None = None
    timing: Timing | None = None
    error: str | None = None
    trial_seconds: float
    started_at: str
    environment: dict[str, Any]


Line = TypeVar("Line", RunRecord, TrialRecord)


def read_records(folder: Path) -> list[RunRecord]:
    """The records of an output folder; the newest of each `run_id`, in order of first writing.

    A last line cut short by a kill is left out: that run was never finished.

    Raises:
        UserError: no records file, or a line that is not a record of this version.
    """
    path = folder / RECORDS
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no {RECORDS}; give a folder written by `python -m benchmarks run`")
    return list({record.run_id: record for record in _read_lines(path, RunRecord, SCHEMA)}.values())


def read_trials(folder: Path) -> list[TrialRecord]:
    """The trials of a tuning's output folder in their order, none where there are none yet.

    Raises:
        UserError: a line that is not a trial of this version.
    """
    path = folder / TRIALS
    return _read_lines(path, TrialRecord, TRIAL_SCHEMA) if path.exists() else []


def _read_lines(path: Path, kind: type[Line], schema: str) -> list[Line]:
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is unfinished
        try:
            raw = json.loads(line)
            version = raw.get("schema_version")
            if version != schema:
                raise UserError(
                    f"{path}:{number} has schema {version!r}; this ExitBench reads {schema!r}: measure into another "
                    "folder, or read it with the ExitBench that wrote it"
                )
            found.append(kind.model_validate(raw))
        except (ValueError, AttributeError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{path}:{number} is not a record ({first}); remove the line and resume") from error
    return found


def append_record(folder: Path, record: RunRecord | TrialRecord) -> None:
    """Write one record as one line, on disk before returning. A line cut short by an earlier kill is dropped first.

    Raises:
        UserError: another process is writing to the folder.
        OSError: it cannot be written; the records before stay as they are.
    """
    path = folder / (RECORDS if isinstance(record, RunRecord) else TRIALS)
    with writing(folder, LOCK_WAIT_S), naming(path), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                _drop_unfinished_line(path)
        file.write(record.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _drop_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    with path.open("rb+") as file:
        file.truncate(content.rfind(b"\n") + 1)


def write_columns(path: Path, columns: dict[str, np.ndarray | list[Any]]) -> None:
    """Write a parquet file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    unfinished = path.with_suffix(".tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, unfinished)
        unfinished.replace(path)


def read_columns(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read a parquet file into one numpy array a column.

    Raises:
        UserError: when the file is missing, not readable, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)  # small files: threads only cost time
        table = table if names is None else table.select(list(names))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{str(path)!r} cannot be read ({str(error).splitlines()[0]}); run the suite again") from error
    # Not by `to_numpy` or `read_table`: both import pandas, which takes longer than all the rest of a gate.
    return {name: np.array(table[name].to_pylist(), table[name].type.to_pandas_dtype()) for name in table.column_names}


def examples_path(folder: Path, run_id: str) -> Path:
    """Where a run's predictions are: id, label, length (tokens), grade (synthetic), prediction, exit_layer."""
    return folder / "columns" / run_id / "examples.parquet"


def timings_path(folder: Path, record: RunRecord) -> Path:
    """Where a run's raw timings are: repeat, batch, instance, rows, seconds."""
    return folder / "columns" / record.run_id / record.timings
