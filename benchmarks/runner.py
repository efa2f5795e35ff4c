"""Measures a session: records, replays, times and writes the records of all its runs.

A session is one checkpoint on one task (and its networks of fewer layers): its workers record every exit's logits once,
replay every policy from them, and time every run live, turn by turn (A B A B ...), so that ratios inside a session see
the same machine.
"""

import hashlib
import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.environment import environment, stolen_seconds
from benchmarks.records import (
    RECORDS,
    Parity,
    RunRecord,
    append_record,
    examples_path,
    read_records,
    recording_path,
    timings_path,
    write_columns,
)
from benchmarks.session import Say, Session, calibration, max_length, run_id
from benchmarks.suite import RunSpec, Shape, engine_label, recipe_label
from benchmarks.worker import Built, Worker, WorkerError, WorkerSpec
from models.config import UserError
from models.encoding import Encoded, encode
from models.policies import Replayed, replay
from models.tasks import Task
from quant.recipes import calibration_inputs

# How close to turning a decision must be (logits, nats or probability) for live and replayed exits to differ without
# it being a fault: kernels round differently at different batch sizes.
EPSILON = {"float32": 1e-3, "bfloat16": 0.1, "int8_static": 0.1, "int8_native": 0.1, "int8_dynamic": 0.1}


@dataclass
class _Measured:
    """What a run has collected on its way to a record."""

    spec: RunSpec
    run_id: str
    error: str | None = None
    recording: str | None = None
    built: Built | None = None
    index: int = -1
    parity: Parity | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    exit_counts: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    seconds: list[tuple[int, int, int, float]] = field(default_factory=list)


def measure(session: Session, say: Say) -> list[RunRecord]:
    """Measure all runs of a session that have no `ok` record yet, write their records, and return those of failures.

    A session is repeated whole when any of its runs is missing: a ratio needs both its sides in the same session.
    """
    ids = {run.case: run_id(run, session.data.data_hash, session.member(run).checkpoint.hash) for run in session.runs}
    existing = read_records(session.output) if (session.output / RECORDS).exists() else []
    done = {record.run_id for record in existing if record.status == "ok"}
    if set(ids.values()) <= done:
        say(f"  all {len(ids)} runs already measured in {session.output}")
        return []
    encoded = {
        split: encode(rows, session.main.tokenizer, max_length(session))
        for split, rows in session.data.splits.items()
        if split not in ("fit", "select")
    }
    failed: list[RunRecord] = []
    shapes = list(dict.fromkeys(run.shape for run in session.runs))
    for threads, grouped in itertools.groupby(shapes, key=lambda shape: shape.thread_count):
        with _workers(session, encoded, threads) as workers:
            for shape in grouped:
                runs = [_Measured(run, ids[run.case]) for run in session.runs if run.shape == shape]
                busy = {
                    key: worker for key, worker in workers.items() if any(worker_key(run.spec) == key for run in runs)
                }
                failed += _measure_shape(session, shape, encoded, busy, runs, say)
    return failed


Key = tuple[str, str, str]


def worker_key(run: RunSpec) -> Key:
    """What runs must share to share a worker."""
    return run.checkpoint, recipe_label(run.recipe), engine_label(run.engine)


def open_worker(session: Session, run: RunSpec, splits: dict[str, Encoded], timed: str = "dev") -> Worker:
    """Start the worker of a run: it records `splits` and times rows of the one called `timed`."""
    pad = session.main.network.backbone.config.pad_token_id
    length, fit = max_length(session), session.data.splits["fit"]
    spec = WorkerSpec(
        checkpoint=session.member(run).folder,
        recipe=run.recipe,
        engine=run.engine,
        threads=run.shape.thread_count,
        splits=splits,
        timed=timed,
        calibration=calibration_inputs(run.recipe, fit, session.main.tokenizer, length, pad),
        pad_token_id=pad,
        max_seq_length=length,
    )
    log = "-".join(worker_key(run))[:200]  # file names end somewhere, lists of patterns need not
    return Worker(spec, session.output / "logs" / f"{log}.log")


@contextmanager
def _workers(session: Session, encoded: dict[str, Encoded], threads: int) -> Iterator[dict[Key, Worker]]:
    workers: dict[Key, Worker] = {}
    try:
        for run in session.runs:
            if worker_key(run) not in workers and run.shape.thread_count == threads:
                workers[worker_key(run)] = open_worker(session, run, encoded)
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def _measure_shape(
    session: Session,
    shape: Shape,
    encoded: dict[str, Encoded],
    workers: dict[Key, Worker],
    runs: list[_Measured],
    say: Say,
) -> list[RunRecord]:
    """Record, replay, build and time all runs of one shape; write their records."""
    session_id, started_at, stolen = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(), stolen_seconds()
    dev = len(encoded["dev"])
    timed = np.sort(np.random.default_rng(session.suite.seed).permutation(dev)[: session.suite.timing.rows]).tolist()
    open_seconds: dict[Key, float] = {}
    for worker in workers.values():
        worker.ask("opened")  # all together: quantizing and converting is not timed
    for key, worker in workers.items():
        mine = [run for run in runs if worker_key(run.spec) == key]
        say(f"  {shape.label}  {' on '.join(key[1:])}{_of(session, key)}: quantize, record, build")
        try:
            open_seconds[key] = worker.answer()
            exits = sorted({layer for run in mine for layer in deciding_exits(run.spec)})
            recorded = worker("record", shape, exits)
        except WorkerError as error:
            for run in mine:
                run.error = str(error)
            continue
        recording = recording_id(session, mine[0].spec, exits)
        save_recording(recording_path(session.output, recording), recorded, exits)
        for run in mine:
            run.recording = recording
            _replay_and_build(session, run, recorded, exits, encoded["dev"].lengths, worker, timed)
        for index, run in enumerate(run for run in mine if run.built is not None):
            run.index = index
    _time(session, shape, len(timed), workers, [run for run in runs if run.error is None])
    environ = environment() | {"threads": shape.thread_count, "stolen_seconds": stolen_seconds() - stolen}
    failed = []
    for run in runs:
        record = _record(session, run, session_id, started_at, open_seconds, len(timed), environ)
        if run.error is None:
            write_columns(examples_path(session.output, run.run_id), run.examples)
            columns = zip(*run.seconds, strict=True)
            write_columns(
                timings_path(session.output, run.run_id),
                dict(zip(("repeat", "batch", "rows", "seconds"), map(np.asarray, columns), strict=True)),
            )
        else:
            failed.append(record)
        append_record(session.output, record)
    for worker in workers.values():
        with suppress(WorkerError):  # it is dead, or never opened: its runs say so
            worker("forget_runs")
    return failed


def _of(session: Session, key: Key) -> str:
    """Which network, where it is not the session's first."""
    member = session.members[key[0]]
    return "" if member.truncates is None else f" ({member.checkpoint.network.num_layers} of {member.depth} layers)"


def recording_id(session: Session, run: RunSpec, exits: Sequence[int]) -> str:
    """What runs share that are replayed from one recording pass of these exits."""
    text = "|".join([session.member(run).checkpoint.hash, *worker_key(run), run.shape.label, *map(str, exits)])
    return hashlib.sha256((text + session.data.data_hash).encode()).hexdigest()[:16]


def save_recording(path: Path, recorded: dict[str, np.ndarray], exits: Sequence[int]) -> None:
    """Write the logits [len(exits), N, C] of every split, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp.npz")
    arrays: Any = recorded | {"exits": np.array(exits)}
    np.savez(unfinished, **arrays)
    unfinished.replace(path)


def deciding_exits(run: RunSpec) -> tuple[int, ...]:
    """The exits whose logits decide a run's answers: of `fixed`, whatever is kept, only the last."""
    return run.exits[-1:] if run.policy.kind == "fixed" else run.exits


def replay_run(run: RunSpec, logits: np.ndarray, exits: Sequence[int]) -> Replayed:
    """A run's answers from the recorded logits of `exits`, [len(exits), N, C]."""
    deciding = deciding_exits(run)
    return replay(run.policy, logits[[exits.index(layer) for layer in deciding]], deciding)


def predictions_of(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class ids, or values for regression, from answered logits [N, C]."""
    return logits[:, 0] if task.regression else logits.argmax(-1)


def _replay_and_build(
    session: Session,
    run: _Measured,
    recorded: dict[str, np.ndarray],
    exits: Sequence[int],
    lengths: np.ndarray,
    worker: Worker,
    timed: list[int],
) -> None:
    """Scores and exits by replay, the live program, and how well the two agree on the timed rows."""
    spec, layers = run.spec, session.member(run.spec).depth
    try:
        replayed = {split: replay_run(spec, logits, exits) for split, logits in recorded.items()}
        run.built = worker("build", spec, timed)
    except (WorkerError, UserError) as error:
        run.error = str(error)
        return
    for split, answer in replayed.items():
        rows = session.data.splits[split]
        predictions = predictions_of(session.task, answer.logits)
        if not spec.policy.timing_only:
            run.scores[split] = session.task.metrics(rows.labels, predictions)
        run.exit_counts[split] = np.bincount(answer.exit_layer, minlength=layers + 1)[1:].tolist()
        if split == "dev":
            run.examples = {"id": rows.ids, "label": rows.labels, "length": lengths, "prediction": predictions}
            run.examples |= {"exit_layer": answer.exit_layer} | ({} if rows.grade is None else {"grade": rows.grade})
    run.parity = _parity(run, replayed["dev"], timed, session.task.regression)


def _parity(run: _Measured, replayed: Any, timed: list[int], regression: bool) -> Parity:
    assert run.built is not None
    live, epsilon = run.built.output, EPSILON[run.spec.recipe.kind]
    if run.spec.policy.timing_only:  # imposed by position among the timed rows, so only the count is comparable
        return Parity(rows=len(timed), differing=0, below_epsilon=0, epsilon=epsilon)
    differs = live.exit_layer != replayed.exit_layer[timed]
    if regression:
        differs |= np.abs(live.logits[:, 0] - replayed.logits[timed, 0]) > epsilon
    else:
        differs |= live.logits.argmax(-1) != replayed.logits[timed].argmax(-1)
    close = replayed.margin[timed] < epsilon
    return Parity(
        rows=len(timed), differing=int(differs.sum()), below_epsilon=int((differs & close).sum()), epsilon=epsilon
    )


def _time(session: Session, shape: Shape, rows: int, workers: dict[Key, Worker], runs: list[_Measured]) -> None:
    """Every repeat, every block of rows, every worker in turn, every run of that worker: A B A B."""
    timing = session.suite.timing
    batches = -(-rows // shape.batch_size)
    block = max(1, timing.block_rows // shape.batch_size)
    turns = list(itertools.product(range(timing.repeats), range(0, batches, block)))
    order = list(workers)
    bar = track(turns, description=f"  {shape.label}  timing {len(runs)} runs, turn by turn")
    for turn, (repeat, first) in enumerate(bar):
        last = min(first + block, batches)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            mine = [run for run in runs if worker_key(run.spec) == key and run.error is None]
            for run in mine[turn % max(1, len(mine)) :] + mine[: turn % max(1, len(mine))]:
                try:
                    seconds = workers[key]("time_block", run.index, first, last)
                except WorkerError as error:
                    run.error = str(error)
                    continue
                for batch, elapsed in zip(range(first, last), seconds, strict=True):
                    size = min(shape.batch_size, rows - batch * shape.batch_size)
                    run.seconds.append((repeat, batch, size, elapsed))


def _record(
    session: Session,
    run: _Measured,
    session_id: str,
    started_at: str,
    open_seconds: dict[Key, float],
    timed_rows: int,
    environ: dict[str, Any],
) -> RunRecord:
    spec, built, ok = run.spec, run.built, run.error is None
    labels = session.data.splits["dev"].labels
    majority = np.full(len(labels), np.bincount(labels).argmax()) if not session.task.regression else None
    return RunRecord(
        run_id=run.run_id,
        case=spec.case,
        suite=session.suite.name,
        session=session_id,
        started_at=started_at,
        status="ok" if ok else "error",
        error=run.error,
        task=session.task.name,
        headline_metric=session.task.headline_metric,
        num_classes=session.task.num_labels,
        data_hash=session.data.data_hash,
        split_counts=session.data.counts,
        checkpoint=session.member(spec).info,
        recipe=spec.recipe.model_dump(),
        engine=engine_label(spec.engine),
        with_exits=spec.with_exits,
        exits=list(spec.exits),
        policy=spec.policy.model_dump(),
        shape=spec.shape.model_dump() | {"threads": spec.shape.thread_count},
        recording=run.recording if ok else None,
        program=built.kind if built and ok else None,  # pyright: ignore[reportArgumentType]
        precision=built.precision if built and ok else None,
        size_bytes=built.size_bytes if built and ok else None,
        build_seconds=built.build_seconds + open_seconds[worker_key(spec)] if built and ok else None,
        coverage=built.coverage if built and ok else None,
        calibration=calibration(session, spec.recipe),
        scores=run.scores if ok else {},
        exit_counts=run.exit_counts if ok else {},
        majority_score=None
        if majority is None
        else session.task.metrics(labels, majority)[session.task.headline_metric],
        parity=run.parity if ok else None,
        timed_rows=timed_rows if ok else 0,
        warmup_seconds=built.warmup_seconds if built and ok else None,
        environment=environ,
    )
