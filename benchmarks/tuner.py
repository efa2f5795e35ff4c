"""The loop of a tuning: propose a point, replay its dials, time the best of them if it keeps the floor, write it down.

What measures is given (`Bench`), so the loop is the same over a table of made-up figures.
"""

import hashlib
import json
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import TypeAdapter

from benchmarks.environment import decisive, environment
from benchmarks.records import Timing, TrialRecord, append_record, read_trials
from benchmarks.runner import replay_run
from benchmarks.session import Say
from benchmarks.strategies import Choice, Space, Tried, following
from benchmarks.suite import RunSpec
from benchmarks.tuning import Objective, Tuning
from benchmarks.worker import WorkerError
from models.config import UserError
from models.policies import Policy
from quant.engine import Engine
from quant.recipes import Float32, Recipe

# Calls of each side in turn: short enough that both see the same machine.
TURN = 10
# A turn that takes so many times as long as half of them do is the machine's doing.
PAUSE = 3.0
# What the search is told of a point that may not be served; measured ones lie around 1.
BELOW_FLOOR, FAILED = 10.0, 100.0


class Bench(Protocol):
    """What measures. Both raise `WorkerError` where a combination fails."""

    def record(self, run: RunSpec) -> np.ndarray:
        """Logits of every exit of a run's checkpoint and recipe over `tune`, [L, N, C]."""
        ...

    def time(self, run: RunSpec) -> Timing:
        """A run's seconds, turn by turn with the anchor's: the same whole INT8 network for all trials."""
        ...


class Candidate(NamedTuple):
    """A run and what replay says of it: its score on `tune` and how many rows leave at layers 1..L."""

    run: RunSpec
    score: float
    exit_counts: list[int]

    @property
    def mean_layer(self) -> float:
        return float(np.average(np.arange(1, len(self.exit_counts) + 1), weights=self.exit_counts))


@dataclass(frozen=True)
class Outcome:
    """What a tuning came to.

    Attributes:
        baseline: trial 0, float32 without exits.
        trials: from number 1 on.
        best: the fastest within the criterion, or, where there is none, the one that scores best.
    """

    tuning: Tuning
    baseline: TrialRecord
    trials: list[TrialRecord]
    best: TrialRecord

    @property
    def passed(self) -> bool:
        return meets(self.tuning, self.baseline, self.best)


def tuning_id(tuning: Tuning, data_hash: str, checkpoint_hashes: list[str]) -> str:
    """The hash of all that decides what a trial measures; when to stop, where to write and the peers do not."""
    told = {"tuning": {"exit_policy": {"timeout", "max_trials"}, "workspace": True}, "evaluation": {"peers"}}
    asked = tuning.model_dump(mode="json", exclude=told)
    parts = json.dumps([asked, data_hash, checkpoint_hashes, decisive()], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def tune(space: Space, bench: Bench, labels: np.ndarray, identity: str, folder: Path, say: Say) -> Outcome:
    """Search until the exit policy says stop or nothing is left; trials already in `folder` are not run again.

    Args:
        space: what may be tried, and how it is judged.
        bench: what measures.
        labels: of `tune`, [N].
        identity: as `tuning_id` gives it.
        folder: where trials are written.
        say: prints a line.

    Raises:
        UserError: the folder holds another tuning, or the float32 network or every trial failed.
    """
    tuning = space.tuning
    baseline, *trials = _resumed(tuning, identity, folder) or [_baseline(space, bench, labels, identity, folder)]
    say(f"FP32 baseline is: {told(baseline)}")
    if (blind := _blind_score(tuning, labels)) >= floor_of(tuning, baseline):
        say(
            f"Warning: one class for every row scores {tuning.metric} {blind:.4f} on tune, within the criterion: "
            "tighten tuning.accuracy_criterion, or judge by another evaluation.accuracy.metric"
        )
    for trial in trials:
        say(f"Tune {trial.number} was: {told(trial)}")
    best = best_of(tuning, trials)
    while not _stops(tuning, baseline, trials):
        history = _history(tuning, baseline, trials)
        choice = following(space, history, tuning.tuning.strategy.name, tuning.tuning.random_seed)
        if choice is None:
            break
        trial = _trial(space, bench, labels, baseline, choice, len(trials) + 1, identity)
        append_record(folder, trial)
        trials.append(trial)
        best = best_of(tuning, trials)
        say(f"Tune {trial.number} result is: {told(trial)}, Best tune result is: {told(best)}")
        say(f"  {trial.case}" + (f": {trial.error}" if trial.error else ""))
    if best is None:
        raise UserError(f"every trial failed, the last with: {trials[-1].error}; see {folder / 'logs'}")
    return Outcome(tuning, baseline, trials, best)


def floor_of(tuning: Tuning, baseline: TrialRecord) -> float:
    """The lowest score the criterion allows."""
    assert baseline.score is not None, "a baseline that failed is no record"
    return tuning.tuning.accuracy_criterion.floor(baseline.score)


def meets(tuning: Tuning, baseline: TrialRecord, trial: TrialRecord) -> bool:
    """Whether a trial's score keeps the criterion."""
    return trial.score is not None and trial.score >= floor_of(tuning, baseline)


def relative(tuning: Tuning, timing: Timing) -> float:
    """The weighted objectives of a trial as a share of the anchor's: lower is better."""
    return sum(weight * _share(timing, name) for name, weight in tuning.tuning.weights().items())


def best_of(tuning: Tuning, trials: list[TrialRecord]) -> TrialRecord | None:
    """The best timed trial, the earlier of two that are equal; without one, the best score; None where all failed."""
    timed = [(relative(tuning, trial.timing), trial.number, trial) for trial in trials if trial.timing is not None]
    scored = [(-trial.score, trial.number, trial) for trial in trials if trial.score is not None]
    return min(timed or scored, key=lambda entry: entry[:2], default=(0.0, 0, None))[-1]


def spec_of(tuning: Tuning, trial: TrialRecord) -> RunSpec:
    """The run of a trial."""
    recipe: Recipe = TypeAdapter(Recipe).validate_python(trial.recipe)
    policy: Policy = TypeAdapter(Policy).validate_python(trial.policy)
    engine: Engine = TypeAdapter(Engine).validate_python(trial.engine)
    given = tuning.model.task, trial.checkpoint, recipe, engine
    return RunSpec(*given, trial.with_exits, tuple(trial.exits), policy, tuning.shape)


def told(trial: TrialRecord | None) -> str:
    """`[accuracy: 0.8956, duration (seconds): 1.2340]`, as LPOT puts it, the speed-up over the anchor, and memory."""
    if trial is None:
        return "None"
    if trial.score is None:
        return "[failed]"
    if trial.timing is None:
        return f"[{trial.metric}: {trial.score:.4f}, duration (seconds): not timed, below the criterion]"
    seconds, anchor = _without_pauses(trial.timing).sum(axis=1).tolist()
    said = f"{trial.metric}: {trial.score:.4f}, duration (seconds): {seconds:.4f}, {anchor / seconds:.2f}x INT8"
    held = trial.timing.footprint_bytes
    return f"[{said}]" if held is None else f"[{said}, footprint (MB): {held / 1e6:.1f}]"


def _share(timing: Timing, objective: Objective) -> float:
    if objective == "modelsize":
        return (timing.size_bytes or 0) / (timing.anchor_size_bytes or 1)
    if objective == "footprint":
        return (timing.footprint_bytes or 0) / (timing.anchor_footprint_bytes or 1)
    seconds, anchor = _without_pauses(timing)
    if objective == "p99":
        return float(np.quantile(seconds, 0.99) / np.quantile(anchor, 0.99))
    return float(seconds.sum() / anchor.sum())


def _without_pauses(timing: Timing) -> np.ndarray:
    """Seconds of the candidate and of the anchor, [2, calls]; where one of them was held up, neither's turn counts."""
    sides = np.array([timing.seconds, timing.anchor_seconds])
    turns = np.arange(sides.shape[1]) // TURN
    means = np.array([np.bincount(turns, weights=side) for side in sides]) / np.bincount(turns)
    steady: np.ndarray = np.all(means < PAUSE * np.median(means, axis=1, keepdims=True), axis=0)
    return sides[:, steady[turns]]


def _blind_score(tuning: Tuning, labels: np.ndarray) -> float:
    """What answering with one class throughout scores at best; minus infinity in a regression."""
    task = tuning.model.task
    answers = [] if task.regression else [np.full(len(labels), label) for label in range(task.num_labels)]
    return max((task.metrics(labels, answer)[tuning.metric] for answer in answers), default=-float("inf"))


def _resumed(tuning: Tuning, identity: str, folder: Path) -> list[TrialRecord]:
    found = read_trials(folder)
    if found and not tuning.tuning.workspace.resume:
        raise UserError(f"{str(folder)!r} holds {len(found)} trials: give another --output, or workspace: resume: true")
    if any(trial.tuning != identity for trial in found):
        raise UserError(f"{str(folder)!r} holds trials of another tuning, data or toolchain: give another --output")
    return found


def _stops(tuning: Tuning, baseline: TrialRecord, trials: list[TrialRecord]) -> bool:
    policy = tuning.tuning.exit_policy
    if len(trials) >= policy.max_trials:
        return True
    if policy.timeout == 0:
        return any(meets(tuning, baseline, trial) for trial in trials)
    return policy.timeout is not None and sum(trial.trial_seconds for trial in trials) >= policy.timeout


def _history(tuning: Tuning, baseline: TrialRecord, trials: list[TrialRecord]) -> list[Tried]:
    floor, history = floor_of(tuning, baseline), []
    for trial in trials:
        if trial.timing is not None:
            value = relative(tuning, trial.timing)
        else:
            value = FAILED if trial.score is None else BELOW_FLOOR + floor - trial.score
        history.append(Tried(tuple(trial.choice), value, trial.mse))
    return history


def _baseline(space: Space, bench: Bench, labels: np.ndarray, identity: str, folder: Path) -> TrialRecord:
    """Trial 0: the best float32 network without exits; it sets the floor."""
    started, tuning = _now(), space.tuning
    try:
        found = replay_all(tuning, bench, space.references, labels)
        best = max(found, key=lambda candidate: candidate.score)
        record = _record(tuning, identity, 0, (), best, started, timing=bench.time(best.run))
    except WorkerError as error:
        raise UserError(f"the float32 network cannot be measured: {error}; see {folder / 'logs'}") from error
    append_record(folder, record)
    return record


def _trial(
    space: Space, bench: Bench, labels: np.ndarray, baseline: TrialRecord, choice: Choice, number: int, identity: str
) -> TrialRecord:
    started, tuning = _now(), space.tuning
    floor, runs = floor_of(tuning, baseline), space.candidates(choice)
    best, mse = Candidate(runs[0], 0.0, []), None
    try:
        logits = bench.record(runs[0])
        if tuning.tuning.strategy.name == "mse":
            mse = float(np.mean((logits - bench.record(replace(runs[0], recipe=Float32()))) ** 2))
        best = best_dial([replayed(tuning, run, logits, labels) for run in runs], floor, tuning)
        served = best.score >= floor or tuning.tuning.exit_policy.performance_only
        timing = bench.time(best.run) if served else None
    except (WorkerError, UserError) as error:  # a recipe that breaks the numbers is a trial that failed
        return _record(tuning, identity, number, choice, best, started, error=str(error))
    return _record(tuning, identity, number, choice, best, started, timing=timing, mse=mse)


def best_dial(candidates: list[Candidate], floor: float, tuning: Tuning) -> Candidate:
    """The dial that leaves earliest within the floor, or scores best where none keeps it.

    At one point of the space dials differ in nothing but who leaves where, so fewer layers are less time.
    """
    if tuning.tuning.exit_policy.performance_only:
        floor = -float("inf")
    within = [candidate for candidate in candidates if candidate.score >= floor]
    if within:
        return min(within, key=lambda candidate: (candidate.mean_layer, -candidate.score))
    return max(candidates, key=lambda candidate: candidate.score)


def replay_all(tuning: Tuning, bench: Bench, runs: list[RunSpec], labels: np.ndarray) -> list[Candidate]:
    """What runs in one recipe on one engine come to; each checkpoint is recorded, or read, once."""
    first = {run.checkpoint: run for run in reversed(runs)}
    logits = {checkpoint: bench.record(run) for checkpoint, run in first.items()}
    return [replayed(tuning, run, logits[run.checkpoint], labels) for run in runs]


def replayed(tuning: Tuning, run: RunSpec, logits: np.ndarray, labels: np.ndarray) -> Candidate:
    """What a run does with the logits [L, N, C] of all exits: see `Candidate`."""
    answer, task = replay_run(run, logits, range(1, len(logits) + 1)), tuning.model.task
    score = task.metrics(labels, task.predictions(answer.logits))[tuning.metric]
    return Candidate(run, score, np.bincount(answer.exit_layer, minlength=len(logits) + 1)[1:].tolist())


def _now() -> tuple[str, float]:
    return datetime.now(UTC).isoformat(), time.perf_counter()


def _record(
    tuning: Tuning,
    identity: str,
    number: int,
    choice: Choice,
    candidate: Candidate,
    started: tuple[str, float],
    timing: Timing | None = None,
    mse: float | None = None,
    error: str | None = None,
) -> TrialRecord:
    run = candidate.run
    return TrialRecord(
        tuning=identity,
        number=number,
        choice=list(choice),
        case=run.case,
        checkpoint=run.checkpoint,
        recipe=run.recipe.model_dump(),
        engine=run.engine.model_dump(),
        with_exits=run.with_exits,
        exits=list(run.exits),
        policy=run.policy.model_dump(),
        metric=tuning.metric,
        score=candidate.score if error is None else None,
        exit_counts=candidate.exit_counts,
        mse=mse,
        timing=timing,
        error=error,
        trial_seconds=time.perf_counter() - started[1],
        started_at=started[0],
        environment=environment(),
    )
