"""A worker: one process that holds one (checkpoint, recipe, engine, threads) and answers the runner's requests.

It records the logits of all exits, builds and warms the programs of its runs, and times a block of rows when it has the
turn. Between requests it sleeps on its pipe.
"""

import multiprocessing as mp
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.process import serve
from benchmarks.records import Coverage
from benchmarks.suite import RunSpec, Shape
from models.checkpoints import load_checkpoint
from models.config import UserError, first_line
from models.encoding import Encoded, collate
from models.network import MultiExitNetwork
from quant.engine import Engine
from quant.programs import EngineSession, ExitOutput, Inputs, Program, Servable
from quant.recipes import Int8Static, Recipe, apply_recipe, fallen_back

# Warm-up passes over the timed rows: until two agree this well, at most so many.
STEADY, MOST_WARM_UPS = 0.05, 4


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with.

    Attributes:
        splits: what it records.
        timed: the split whose rows are timed.
        calibration: single rows [1, T] of `fit`.
        processors: that it is pinned to; None for no pinning.
    """

    checkpoint: Path
    recipe: Recipe
    engine: Engine
    threads: int
    splits: dict[str, Encoded]
    timed: str
    calibration: list[Inputs]
    pad_token_id: int
    max_seq_length: int
    processors: list[int] | None = None


class Built(NamedTuple):
    """A program that is ready and warm, and what it answered for the timed rows."""

    kind: str
    precision: str
    size_bytes: int | None
    build_seconds: float
    warmup_seconds: float
    output: ExitOutput
    coverage: Coverage | None = None
    peak_memory_bytes: int | None = None


@dataclass
class _Run:
    spec: RunSpec
    program: Program
    batches: list[tuple[Inputs, dict[str, np.ndarray]]] = field(default_factory=list)


def batches_of(encoded: Encoded, rows: Sequence[int], shape: Shape, spec: WorkerSpec) -> list[Inputs]:
    """Rows in their order, cut into padded batches."""
    length = shape.length or spec.max_seq_length
    cuts = [rows[i : i + shape.batch_size] for i in range(0, len(rows), shape.batch_size)]
    return [collate(encoded, cut, spec.pad_token_id, shape.padding, length) for cut in cuts]


def _coverage(recipe: Recipe, network: MultiExitNetwork, precisions: dict[str, str]) -> Coverage:
    """What runs in INT8 and what does not, and why; a segment of which all is alike is named as a whole."""
    asked = fallen_back(recipe, network) if isinstance(recipe, Int8Static) else {}
    segments: dict[str, dict[str, str]] = defaultdict(dict)
    for name, precision in sorted(precisions.items()):
        segment, op = name.split(".", 1)
        if pattern := asked.get(segment, {}).get(op):
            reason = f"fallback {pattern}"
        elif asked and segment not in asked:
            reason = "never quantized"
        else:
            reason = "the engine's choice"
        segments[segment][name] = "int8" if precision == "int8" else f"{precision}: {reason}"
    others: dict[str, str] = {}
    for segment, found in segments.items():
        alike = len(set(found.values())) == 1
        named = {segment: next(iter(found.values()))} if alike else found
        others |= {name: what for name, what in named.items() if what != "int8"}
    int8_ops = list(precisions.values()).count("int8")
    return Coverage(int8_ops=int8_ops, linear_ops=len(precisions), others=others)


class _Service:
    """The requests a worker answers, over the session it opened."""

    def __init__(self, spec: WorkerSpec):
        self.spec = spec
        started = time.perf_counter()
        checkpoint = load_checkpoint(spec.checkpoint)
        segments = apply_recipe(spec.recipe, checkpoint.network, spec.calibration)
        self.session: EngineSession = spec.engine.open(segments, spec.threads)
        self.programs: dict[Any, tuple[Program, float]] = {}
        self.runs: dict[int, _Run] = {}
        self.open_seconds = time.perf_counter() - started
        self.coverage: Coverage | None = None
        if segments.int8 and (precisions := self.session.precisions()):
            self.coverage = _coverage(spec.recipe, checkpoint.network, precisions)

    def opened(self) -> float:
        """Seconds to load, quantize and convert."""
        return self.open_seconds

    def record(self, shape: Shape, exits: Sequence[int]) -> dict[str, np.ndarray]:
        """Logits of these exits, split -> [len(exits), N, C], at this shape.

        What records is dropped at the end: it holds the whole network's weights once more, and there are many workers.
        """
        recorder, recorded = self.session.recorder(tuple(exits)), {}
        for split, encoded in self.spec.splits.items():
            batches = batches_of(encoded, range(len(encoded)), shape, self.spec)
            recorded[split] = np.concatenate([recorder(batch) for batch in batches], axis=1).astype(np.float32)
        return recorded

    def build(self, number: int, run: RunSpec, rows: Sequence[int]) -> Built:
        """Build the program of a run (shared by all dials of a policy kind) and warm it up over the timed rows.

        `number` is what the run is called by from now on.
        """
        key = (run.policy.kind, run.with_exits, run.exits)
        if key not in self.programs:
            started = time.perf_counter()
            if run.with_exits:
                program = self.session.with_exits(self._policy(run), run.exits)
            else:
                program = self.session.without_exits(run.exits[-1])
            self.programs[key] = program, time.perf_counter() - started
        program, build_seconds = self.programs[key]
        inputs = batches_of(self.spec.splits[self.spec.timed], rows, run.shape, self.spec)
        policy, position = self._policy(run), 0
        ready = _Run(run, program)
        for batch in inputs:
            size = len(batch["input_ids"])
            ready.batches.append((batch, policy.dials(np.arange(position, position + size))))
            position += size
        outputs, warmup_seconds = self._warm_up(ready)
        self.runs[number] = ready
        peak = torch.cuda.max_memory_allocated() if self.spec.engine.kind == "cuda" else None
        said = program.kind, program.precision, program.size_bytes
        return Built(*said, build_seconds, warmup_seconds, outputs, self.coverage, peak)

    def _policy(self, run: RunSpec) -> Any:
        """The run's policy with a `None` layer resolved to the last."""
        if run.policy.kind == "fixed" and run.policy.layer is None:
            return run.policy.model_copy(update={"layer": run.exits[-1]})
        return run.policy

    def _warm_up(self, run: _Run) -> tuple[ExitOutput, float]:
        started, previous = time.perf_counter(), float("inf")
        outputs: list[ExitOutput] = []
        for _ in range(MOST_WARM_UPS):
            before = time.perf_counter()
            outputs = [run.program.run(*batch) for batch in run.batches]
            seconds = time.perf_counter() - before
            if abs(seconds - previous) < STEADY * seconds:
                break
            previous = seconds
        logits = np.concatenate([output.logits for output in outputs])
        exit_layer = np.concatenate([output.exit_layer for output in outputs])
        return ExitOutput(logits, exit_layer), time.perf_counter() - started

    def time_block(self, number: int, first: int, last: int) -> list[float]:
        """Seconds of batches `first`..`last` - 1 of one run: padded arrays in, numpy out, one call before untimed."""
        run = self.runs[number]
        run.program.run(*run.batches[first])
        seconds = []
        for inputs, dials in run.batches[first:last]:
            started = time.perf_counter()
            run.program.run(inputs, dials)
            seconds.append(time.perf_counter() - started)
        return seconds

    def footprint(self, number: int) -> int:
        """Resident bytes that the program of a run adds to a process that serves it."""
        run, session = self.runs[number], self.session
        if not isinstance(session, Servable):
            raise UserError(f"engine {self.spec.engine.kind} does not say what a program holds in memory")
        inputs, dials = run.batches[0]
        if run.spec.with_exits:
            return session.footprint(self._policy(run.spec), run.spec.exits, inputs | dials)
        return session.footprint(None, run.spec.exits, inputs)

    def processor_seconds(self) -> float:
        """What this process has used so far, all its threads together."""
        return time.process_time()

    def forget_run(self, number: int) -> None:
        """Drop a run, and its program where no other run has it."""
        program = self.runs.pop(number).program
        if all(run.program is not program for run in self.runs.values()):
            self.programs = {key: built for key, built in self.programs.items() if built[0] is not program}

    def forget_runs(self) -> None:
        """Drop the runs of a finished shape; programs stay."""
        self.runs.clear()


def answer_requests(pipe: Connection) -> None:
    """The life of a worker process: read its spec, then answer requests until told to stop."""
    spec, service = pipe.recv(), None
    while True:
        name, arguments = pipe.recv()
        if name == "stop":
            return
        try:
            service = service or _Service(spec)
            pipe.send((True, getattr(service, name)(*arguments)))
        except UserError as error:
            pipe.send((False, str(error)))
        except Exception as error:  # a broken combination becomes an error record; the others go on
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            pipe.send((False, f"{type(error).__name__}: {first_line(error)} ({where})"))


class WorkerError(Exception):
    """A request to a worker failed; the message is one line for the error record."""


class Worker:
    """The runner's handle on a worker process, whose own output goes to `log`."""

    def __init__(self, spec: WorkerSpec, log: Path):
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, log, spec.processors), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.send(spec)

    def ask(self, request: str, *arguments: Any) -> None:
        """Send a request; `answer` waits for what it brings."""
        try:
            self.pipe.send((request, arguments))
        except OSError:
            self.process.join(timeout=5)  # `answer` finds the pipe closed and says why

    def answer(self) -> Any:
        """Wait for the answer to the last request.

        Raises:
            WorkerError: the request failed, or the process died.
        """
        try:
            done, answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise WorkerError(
                f"the worker process died (exit code {self.process.exitcode}; -9 usually means out of memory)"
            ) from error
        if not done:
            raise WorkerError(answer)
        return answer

    def __call__(self, request: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self.ask(request, *arguments)
        return self.answer()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self.process.is_alive()

    def stop(self) -> None:
        """End the process, politely if it still listens."""
        self.ask("stop")
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def ask_all(workers: Sequence[Worker], request: str, *arguments: Any) -> list[Any]:
    """Ask several workers for the same at once, and wait for their answers.

    Raises:
        WorkerError: as `answer_all`.
    """
    for worker in workers:
        worker.ask(request, *arguments)
    return answer_all(workers)


def answer_all(workers: Sequence[Worker]) -> list[Any]:
    """Wait for the answers of several workers.

    Raises:
        WorkerError: one of them failed; the others have answered, too, and can be asked again.
    """
    answers, failure = [], None
    for worker in workers:
        try:
            answers.append(worker.answer())
        except WorkerError as error:
            failure = error
    if failure is not None:
        raise failure
    return answers
