"""A suite's axes multiplied out: the runs of every checkpoint, and roughly what they cost."""

import itertools
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.suite import CheckpointSpec, RunSpec, Suite, engine_label, layers_of, recipe_label, sizes_of
from models.config import UserError
from models.methods import Classifier
from models.policies import Fixed, Policy
from models.tasks import Task
from quant.engine import cannot_run
from quant.programs import unfit


def expand_whole(suite: Suite, task: Task, checkpoint: str, num_layers: int) -> list[RunSpec]:
    """The runs of a checkpoint that has no trained exits but its last: the whole of it, in every recipe and shape."""
    axes = itertools.product(suite.recipes, suite.engines, suite.shapes)
    runs = [
        RunSpec(task, checkpoint, recipe, engine, False, (num_layers,), Fixed(), shape)
        for recipe, engine, shape in axes
        if not _skipped(suite, cannot_run(recipe.kind, engine, with_exits=False) or shape.unfit())
    ]
    return [run for run in runs if not suite.excludes(run)]


def check_fewer_layers(spec: CheckpointSpec, num_layers: int) -> None:
    """Refuse depths that are not below the whole network's, or given twice."""
    wrong = [layers for layers in spec.fewer_layers if layers >= num_layers or spec.fewer_layers.count(layers) > 1]
    if wrong:
        raise UserError(
            f"fewer_layers: {wrong[0]} must lie below the network's {num_layers} layers and stand there once"
        )


def expand_all(suite: Suite, task: Task, spec: CheckpointSpec, num_layers: int, names: list[str]) -> list[RunSpec]:
    """The runs of a checkpoint and of its networks of fewer layers, whose names follow its own."""
    with_exits = not isinstance(spec.method, Classifier)
    runs = (expand if with_exits else expand_whole)(suite, task, names[0], num_layers)
    for name, layers in zip(names[1:], spec.fewer_layers, strict=True):
        runs += expand_whole(suite, task, name, layers)
    return runs


def expand(suite: Suite, task: Task, checkpoint: str, num_layers: int) -> list[RunSpec]:
    """The runs of one checkpoint on one task.

    Networks without exits take policy `fixed` alone (the whole network, or truncated); networks with exits take every
    policy but truncation, and `fixed` at full depth there means exits that never fire.

    Raises:
        UserError: a product that cannot run, unless the suite skips those.
    """
    runs: dict[str, RunSpec] = {}  # by case: what is named twice, such as `all` and every layer, is measured once
    axes = itertools.product(suite.recipes, suite.engines, suite.shapes, suite.exits, suite.policies)
    for recipe, engine, shape, exits, policy in axes:
        fixed = isinstance(policy, Fixed)
        if (exits == "none") != fixed and not (fixed and policy.layer is None):
            continue
        if exits == "none":
            assert isinstance(policy, Fixed)
            kept = (policy.layer or num_layers,)
        else:
            kept = tuple(range(1, num_layers + 1)) if exits == "all" else tuple(exits)
        problem = cannot_run(recipe.kind, engine, exits != "none", shape.batch_size)
        problem = problem or _beyond(policy, num_layers) or shape.unfit()
        if _skipped(suite, problem or unfit(policy, kept, num_layers, task)):
            continue
        run = RunSpec(task, checkpoint, recipe, engine, exits != "none", kept, policy, shape)
        if not suite.excludes(run):
            runs.setdefault(run.case, run)
    return list(runs.values())


def foreseen(suite: Suite) -> list[RunSpec]:
    """All runs of a suite without its data: a checkpoint's name has its seed, if it has one, where a hash will stand.

    Raises:
        UserError: as `expand`.
    """
    runs = []
    for task, spec in itertools.product(suite.tasks, suite.checkpoints):
        num_layers = layers_of(spec)
        check_fewer_layers(spec, num_layers)
        runs += expand_all(suite, task, spec, num_layers, _names(suite, task, spec))
    return runs


def _names(suite: Suite, task: Task, spec: CheckpointSpec) -> list[str]:
    if spec.folder is not None:
        return [Path(spec.folder).name]
    trainings = [spec.training(task, suite.seed), *spec.truncated(task, suite.seed).values()]
    return [f"{training.stem}-{'' if spec.seed is None else f'seed{spec.seed}'}" for training in trainings]


def selected(runs: list[RunSpec], only: str | None) -> list[RunSpec]:
    """The runs whose case contains `only`."""
    return [run for run in runs if only is None or only in run.case]


def nothing_to_run(suite: Suite, only: str | None) -> UserError:
    """What to say when no run is left."""
    if only is not None:
        return UserError(f"--only {only!r} is in no case of suite {suite.name}; --dry-run prints the cases")
    return UserError(f"suite {suite.name} has no run left: give policies that fit its exits, or exclude less")


def left_out(suite: Suite) -> list[str]:
    """Why recipes, engines or shapes of a suite are not measured here, where it skips those."""
    if suite.on_unsupported == "error":
        return []
    products = itertools.product(suite.recipes, suite.engines, suite.exits, suite.shapes)
    reasons = [
        cannot_run(recipe.kind, engine, exits != "none", shape.batch_size) for recipe, engine, exits, shape in products
    ]
    reasons += [shape.unfit() for shape in suite.shapes]
    return list(dict.fromkeys(reason for reason in reasons if reason))


def unmatched(suite: Suite) -> list[str]:
    """The patterns of `exclude` that no case matches: a mistake, or they name what cannot run here anyway."""
    if not suite.exclude:
        return []
    cases = [run.case for run in foreseen(suite.model_copy(update={"exclude": []}))]
    return [pattern for pattern in suite.exclude if not any(fnmatch(case, pattern) for case in cases)]


def _skipped(suite: Suite, problem: str | None) -> bool:
    """Whether a product that cannot run is left out; an error unless the suite skips those."""
    if problem and suite.on_unsupported == "error":
        raise UserError(f"{problem}; remove it, or set on_unsupported: skip")
    return problem is not None


def _beyond(policy: Policy, num_layers: int) -> str | None:
    if isinstance(policy, Fixed) and policy.layer is not None and policy.layer > num_layers:
        return f"policy fixed: layer {policy.layer} is beyond the network's {num_layers} layers"
    return None


@dataclass(frozen=True)
class Estimate:
    """A rough cost, for deciding whether to start."""

    minutes: float
    disk_mb: float


def estimate(suite: Suite, runs: list[RunSpec]) -> Estimate:
    """Rough minutes and disk of one session of foreseen runs: half a minute a worker, and every layer in float32.

    A layer takes what its weights' multiplications take at this machine's speed, and a little for being called. Rows
    that are not padded to a length count as 32 tokens.
    """
    parameters = {
        name: sizes_of(spec).layer_parameters
        for task, spec in itertools.product(suite.tasks, suite.checkpoints)
        for name in _names(suite, task, spec)
    }
    workers = {
        (run.checkpoint, recipe_label(run.recipe), engine_label(run.engine), run.shape.thread_count) for run in runs
    }
    call, speed = 2e-4, _operations_per_second()
    a_row = 0.0
    for run in runs:
        tokens = (run.shape.length or 128) if run.shape.padding == "max_length" else 32
        a_row += run.exits[-1] * (call / run.shape.batch_size + 2 * parameters[run.checkpoint] * tokens / speed)
    seconds = 30.0 * len(workers) + a_row * suite.timing.rows * (suite.timing.repeats + 3)
    return Estimate(minutes=seconds / 60, disk_mb=0.05 * len(runs) + 0.5 * len(workers))


def _operations_per_second() -> float:
    """Of a float32 matrix product on all cores, the best of a few."""
    matrix, product, seconds = np.ones((1024, 1024), np.float32), np.empty((1024, 1024), np.float32), []
    for _ in range(5):
        begun = perf_counter()
        np.matmul(matrix, matrix, out=product)
        seconds.append(perf_counter() - begun)
    return 2 * 1024**3 / min(seconds)
