"""Measures a session: records, replays, times and writes the records of all its runs.

A session is one checkpoint on one task (and its networks of fewer layers): its workers record every exit's logits once,
replay every policy from them, and time every run live, turn by turn (A B A B ...), so that ratios inside a session see
the same machine.
"""

import hashlib
import itertools
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.environment import conditions, decisive, environment, moment
from benchmarks.recordings import Recording, read_recording, recording_path, save_recording
from benchmarks.records import (
    RECORDS,
    Conditions,
    Parity,
    RunRecord,
    append_record,
    examples_path,
    read_records,
    timings_path,
    write_columns,
)
from benchmarks.session import Say, Session, calibration, max_length, run_id
from benchmarks.suite import RunSpec, Shape, engine_label, recipe_label
from benchmarks.validity import Doubt, doubts
from benchmarks.worker import Built, Worker, WorkerError, WorkerSpec, answer_all, ask_all
from models.config import UserError
from models.cpu import processors
from models.encoding import Encoded, encode
from models.policies import Replayed, replay
from quant.engine import depends_on_batch
from quant.recipes import calibration_inputs


@dataclass
class _Measured:
    """What a run has collected on its way to a record."""

    spec: RunSpec
    run_id: str
    error: str | None = None
    recording: str | None = None
    built: Built | None = None
    number: int = -1
    parity: Parity | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    exit_counts: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    seconds: list[tuple[int, int, int, int, float]] = field(default_factory=list)


def measure(session: Session, say: Say) -> list[RunRecord]:
    """Measure the runs of every shape that is not all there, write their records, and return those of failures.

    A shape is measured again whole when any of its runs is missing, or was timed apart from the others: a ratio needs
    both its sides in the same session.
    """
    runs = unfinished(session)
    shapes = list(dict.fromkeys(run.shape for run in runs))
    if len(runs) < len(session.runs):
        already = len(session.runs) - len(runs)
        say(f"  {already} of {len(session.runs)} runs already measured in {session.output}")
    if not runs:
        return []
    encoded = encode_recorded(session)
    failed: list[RunRecord] = []
    served_by: dict[tuple[int, int], list[Shape]] = defaultdict(list)
    for shape in shapes:
        served_by[shape.thread_count, shape.instances].append(shape)
    for served in served_by.values():
        with _workers(session, [run for run in runs if run.shape in served], encoded) as workers:
            for shape in served:
                _replace_dead(session, workers, runs, encoded)
                mine = [_Measured(run, _run_id(session, run)) for run in runs if run.shape == shape]
                busy = {
                    key: worker for key, worker in workers.items() if any(worker_key(run.spec) == key for run in mine)
                }
                failed += _measure_shape(session, shape, encoded, busy, mine, say)
    return failed


def unfinished(session: Session) -> list[RunSpec]:
    """The runs of the shapes whose runs are not all measured side by side, in one session."""
    existing = read_records(session.output) if (session.output / RECORDS).exists() else []
    done = {record.run_id: record.session for record in existing if record.status == "ok"}
    found: dict[Shape, set[str | None]] = {}
    for run in session.runs:
        found.setdefault(run.shape, set()).add(done.get(_run_id(session, run)))
    return [run for run in session.runs if None in found[run.shape] or len(found[run.shape]) > 1]


def _run_id(session: Session, run: RunSpec) -> str:
    return run_id(run, session.data.data_hash, session.member(run).checkpoint.hash)


def encode_recorded(session: Session) -> dict[str, Encoded]:
    """The splits that are recorded, tokenized."""
    return {
        split: encode(rows, session.main.tokenizer, max_length(session))
        for split, rows in session.data.splits.items()
        if split not in ("fit", "select")
    }


Key = tuple[str, str, str]
# One worker for each instance.
Workers = dict[Key, list[Worker]]


def worker_key(run: RunSpec) -> Key:
    """What runs must share to share a worker."""
    return run.checkpoint, recipe_label(run.recipe), engine_label(run.engine)


def open_workers(session: Session, run: RunSpec, splits: dict[str, Encoded], timed: str = "dev") -> list[Worker]:
    """Start the worker of a run, or of each of its instances: it records `splits` and times rows of `timed`."""
    spec, shape, log = worker_spec(session, run, splits, timed), run.shape, worker_log(session, run)
    if shape.instances == 1:
        return [Worker(spec, log)]
    shares = [processors()[i * shape.thread_count :][: shape.thread_count] for i in range(shape.instances)]
    return [Worker(replace(spec, processors=share), log) for share in shares]


def worker_spec(session: Session, run: RunSpec, splits: dict[str, Encoded], timed: str = "dev") -> WorkerSpec:
    """What the worker of a run is opened with."""
    pad = session.main.network.backbone.config.pad_token_id
    length, fit = max_length(session), session.data.splits["fit"]
    return WorkerSpec(
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


def worker_log(session: Session, run: RunSpec) -> Path:
    """Where the worker of a run writes what its libraries print."""
    name = "-".join(worker_key(run))[:200]  # file names end somewhere, lists of patterns need not
    return session.output / "logs" / f"{name}.log"


@contextmanager
def _workers(session: Session, runs: list[RunSpec], encoded: dict[str, Encoded]) -> Iterator[Workers]:
    """The workers of runs whose shapes have the same threads and instances."""
    workers: Workers = {}
    try:
        for run in runs:
            if worker_key(run) not in workers:
                workers[worker_key(run)] = open_workers(session, run, encoded)
        yield workers
    finally:
        for worker in itertools.chain(*workers.values()):
            worker.stop()


def _replace_dead(session: Session, workers: Workers, runs: list[RunSpec], encoded: dict[str, Encoded]) -> None:
    """Open those anew that did not survive the shape before: the next one may be easier on them."""
    for key, instances in workers.items():
        if not all(worker.alive for worker in instances):
            for worker in instances:
                worker.stop()
            workers[key] = open_workers(session, next(run for run in runs if worker_key(run) == key), encoded)


def _measure_shape(
    session: Session,
    shape: Shape,
    encoded: dict[str, Encoded],
    workers: Workers,
    runs: list[_Measured],
    say: Say,
) -> list[RunRecord]:
    """Record, replay, build and time all runs of one shape; write their records."""
    session_id, started_at = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat()
    timed = draw_timed(session, shape, encoded["dev"].lengths)
    open_seconds: dict[Key, float] = {}
    spent: dict[str, float] = defaultdict(float)
    for worker in itertools.chain(*workers.values()):
        worker.ask("opened")  # all together: quantizing and converting is not timed
    for key, instances in workers.items():
        mine = [run for run in runs if worker_key(run.spec) == key]
        say(f"  {shape.label}  {' on '.join(key[1:])}{_of(session, key)}: quantize, record, build")
        try:
            open_seconds[key] = answer_all(instances)[0]
            exits, path = recording_of(session, [run.spec for run in mine])
            if not path.exists():
                with _clock(spent, "recording"):
                    save_recording(path, Recording(exits, instances[0]("record", shape, exits)))
        except WorkerError as error:
            for run in mine:
                run.error = str(error)
            continue
        recording = read_recording(path)
        for number, run in enumerate(mine):
            run.recording, run.number = path.parent.name, number
            _replay_and_build(session, run, recording, encoded["dev"].lengths, instances, timed, spent)
    with _clock(spent, "timing"):
        seen = _time_and_watch(session, shape, len(timed), workers, [run for run in runs if run.error is None], say)
    say(f"  {len(runs)} runs: {', '.join(f'{what} {seconds:.1f} s' for what, seconds in spent.items())}")
    environ = environment() | {"threads": shape.thread_count}
    failed = []
    for run in runs:
        record = _record(session, run, session_id, started_at, open_seconds, len(timed), environ, seen)
        if run.error is None:
            write_columns(examples_path(session.output, run.run_id), run.examples)
            columns = zip(*run.seconds, strict=True)
            write_columns(
                timings_path(session.output, record),
                dict(zip(("repeat", "batch", "instance", "rows", "seconds"), map(np.asarray, columns), strict=True)),
            )
        else:
            failed.append(record)
        append_record(session.output, record)
    for instances in workers.values():
        with suppress(WorkerError):  # one is dead, or never opened: its runs say so
            ask_all(instances, "forget_runs")
    return failed


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    """Add the seconds of what is inside to those of its kind."""
    started = time.perf_counter()
    yield
    spent[what] += time.perf_counter() - started


def draw_timed(session: Session, shape: Shape, lengths: np.ndarray) -> list[int]:
    """Which rows of `dev` are timed, drawn by the suite's seed, in the order in which batches are cut from them."""
    drawn = np.sort(np.random.default_rng(session.suite.seed).permutation(len(lengths))[: session.suite.timing.rows])
    by_length = drawn[np.argsort(lengths[drawn], kind="stable")]
    return (by_length if shape.order == "by_length" else drawn).tolist()


def _work_seconds(workers: Workers) -> float:
    """Processor seconds of the runner and its workers so far; NaN once one of them is dead."""
    try:
        return time.process_time() + sum(ask_all([*itertools.chain(*workers.values())], "processor_seconds"))
    except WorkerError:
        return float("nan")


def _of(session: Session, key: Key) -> str:
    """Which network, where it is not the session's first."""
    member = session.members[key[0]]
    return "" if member.truncates is None else f" ({member.checkpoint.network.num_layers} of {member.depth} layers)"


def recording_of(session: Session, runs: Sequence[RunSpec]) -> tuple[list[int], Path]:
    """The exits that must be recorded for runs of one shape and worker, and where their recording is kept."""
    exits = sorted({layer for run in runs for layer in deciding_exits(run)})
    return exits, recording_path(session.output, recording_id(session, runs[0], exits))


def recording_id(session: Session, run: RunSpec, exits: Sequence[int]) -> str:
    """What runs share that are replayed from one recording pass of these exits, in whatever order rows are timed."""
    checkpoint, shape = session.member(run).checkpoint.hash, run.shape.model_copy(update={"order": "given"})
    parts = [checkpoint, worker_key(run), shape.label, list(exits), session.data.data_hash, decisive()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def deciding_exits(run: RunSpec) -> tuple[int, ...]:
    """The exits whose logits decide a run's answers: of `fixed`, whatever is kept, only the last."""
    return run.exits[-1:] if run.policy.kind == "fixed" else run.exits


def replay_run(run: RunSpec, logits: np.ndarray, exits: Sequence[int]) -> Replayed:
    """A run's answers from the recorded logits of `exits`, [len(exits), N, C]."""
    deciding = deciding_exits(run)
    return replay(run.policy, logits[[exits.index(layer) for layer in deciding]], deciding)


def _replay_and_build(
    session: Session,
    run: _Measured,
    recording: Recording,
    lengths: np.ndarray,
    instances: list[Worker],
    timed: list[int],
    spent: dict[str, float],
) -> None:
    """Scores and exits by replay, the live program, and how well the two agree on the timed rows."""
    spec, layers = run.spec, session.member(run.spec).depth
    try:
        with _clock(spent, "replaying"):
            replayed = {split: replay_run(spec, logits, recording.exits) for split, logits in recording.logits.items()}
        with _clock(spent, "building and warming up"):
            run.built = ask_all(instances, "build", run.number, spec, timed)[0]
    except (WorkerError, UserError) as error:
        run.error = str(error)
        return
    for split, answer in replayed.items():
        rows = session.data.splits[split]
        predictions = session.task.predictions(answer.logits)
        if not spec.policy.timing_only:
            run.scores[split] = session.task.metrics(rows.labels, predictions)
        run.exit_counts[split] = np.bincount(answer.exit_layer, minlength=layers + 1)[1:].tolist()
        if split == "dev":
            run.examples = {"id": rows.ids, "label": rows.labels, "length": lengths, "prediction": predictions}
            run.examples |= {"exit_layer": answer.exit_layer} | ({} if rows.grade is None else {"grade": rows.grade})
    if not depends_on_batch(spec.recipe.kind, spec.engine, spec.shape.batch_size):  # else recorded in other batches
        run.parity = _parity(run, replayed["dev"], timed, session.task.regression)


def _parity(run: _Measured, replayed: Any, timed: list[int], regression: bool) -> Parity:
    assert run.built is not None
    live, epsilon = run.built.output, run.spec.recipe.epsilon
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


def _time(session: Session, shape: Shape, rows: int, workers: Workers, runs: list[_Measured]) -> None:
    """Every repeat, every block of rows, every worker in turn, every run of that worker: A B A B.

    All instances of a run have the turn together.
    """
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
                    of_instances = ask_all(workers[key], "time_block", run.number, first, last)
                except WorkerError as error:
                    run.error = str(error)
                    continue
                for instance, seconds in enumerate(of_instances):
                    for batch, elapsed in zip(range(first, last), seconds, strict=True):
                        size = min(shape.batch_size, rows - batch * shape.batch_size)
                        run.seconds.append((repeat, batch, instance, size, elapsed))


def _time_and_watch(
    session: Session, shape: Shape, rows: int, workers: Workers, runs: list[_Measured], say: Say
) -> Conditions | None:
    """Time all runs, and see what else the machine does meanwhile; None where there is nothing to time."""
    if not runs:
        return None
    timing = {key: workers[key] for key in workers if any(worker_key(run.spec) == key for run in runs)}
    before = moment(_work_seconds(timing))
    _time(session, shape, rows, timing, runs)
    seen = conditions(before, moment(_work_seconds(timing)))
    _say_doubts([run for run in runs if run.error is None], seen, say)
    return seen


def _say_doubts(runs: list[_Measured], seen: Conditions, say: Say) -> None:
    """Say at once what reports will: why timings are not to be trusted."""
    seconds = {run.run_id: np.array([call[-1] for call in sorted(run.seconds)]) for run in runs}
    repeats = {run.run_id: len({call[0] for call in run.seconds}) for run in runs}
    found = doubts({name: calls.reshape(repeats[name], -1) for name, calls in seconds.items()}, seen)
    alike: dict[tuple[bool, str], list[Doubt]] = defaultdict(list)
    for doubt in itertools.chain(*found.values()):
        alike[doubt.invalid, doubt.kind].append(doubt)
    for of_kind in alike.values():
        others = ", and the like" if len(set(of_kind)) > 1 else ""
        say(f"  {of_kind[0].line}{others} ({len(of_kind)} of {len(runs)} runs)")


def _record(
    session: Session,
    run: _Measured,
    session_id: str,
    started_at: str,
    open_seconds: dict[Key, float],
    timed_rows: int,
    environ: dict[str, Any],
    seen: Conditions | None,
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
        peak_memory_bytes=built.peak_memory_bytes if built and ok else None,
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
        conditions=seen if ok else None,
        timings=f"timings-{session_id}.parquet",
        warmup_seconds=built.warmup_seconds if built and ok else None,
        environment=environ,
    )
