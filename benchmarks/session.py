"""A session: one checkpoint on one task with the runs to measure, and how a suite becomes sessions."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.environment import toolchain
from benchmarks.records import Calibration, CheckpointInfo
from benchmarks.suite import SMOKE_ROWS, RunSpec, Suite, expand, layers_of, nothing_to_run, selected
from models.checkpoints import Checkpoint, load_checkpoint
from models.config import UserError
from models.tasks import Task, TaskData
from models.training import TrainingSpec, fine_tune
from quant.recipes import Int8Static, Recipe, calibration_indices

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """One checkpoint on one task, ready to be measured."""

    suite: Suite
    task: Task
    data: TaskData
    folder: Path
    checkpoint: Checkpoint
    runs: list[RunSpec]
    output: Path

    @property
    def info(self) -> CheckpointInfo:
        config, training = self.checkpoint.config, self.checkpoint.training
        curve = [entry for entry in list(training["curves"].values())[-1] if "eval_scores" in entry]
        best = max(curve, key=lambda entry: entry["eval_score"], default={"eval_scores": []})
        return CheckpointInfo(
            name=self.folder.name,
            method=config["method"]["kind"],
            method_options={key: value for key, value in config["method"].items() if key != "kind"},
            family=config["backbone"]["model_type"],
            backbone=TrainingSpec.model_validate(training["spec"]).start_name,
            num_layers=self.checkpoint.network.num_layers,
            hash=self.checkpoint.hash,
            seed=training["spec"]["seed"],
            trained_seconds=training["seconds"],
            select_scores=best["eval_scores"],
        )


def run_id(spec: RunSpec, data_hash: str, checkpoint_hash: str) -> str:
    """The hash of case, data, checkpoint and toolchain versions: what resume skips on."""
    parts = json.dumps([spec.case, data_hash, checkpoint_hash, toolchain()], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def sessions(
    suite: Suite, location: Path | None, checkpoints: Path, output: Path, only: str | None, smoke: bool, say: Say
) -> Iterator[Session]:
    """Load data and checkpoints (training what is missing), one session after the other.

    Raises:
        UserError: whatever is wrong with data, checkpoint or products, or no run is left.
    """
    planned = [(task, spec, layers_of(spec)) for task in suite.tasks for spec in suite.checkpoints]
    for task, _, num_layers in planned:  # refuse products that cannot run before hours of training
        expand(suite, task, "", num_layers)
    for engine in suite.engines:
        engine.check()
    any_runs = False
    for task, spec, num_layers in planned:
        data = task.load(location, suite.seed)
        training = None if spec.folder is not None else spec.training(task, suite.seed)
        folder = checkpoints / training.folder_name(data.data_hash) if training else Path(spec.folder or "")
        runs = selected(expand(suite, task, folder.name, num_layers), only)
        if not runs:
            continue
        any_runs = True
        if training is not None:
            fine_tune(training, data, folder)
        checkpoint = load_checkpoint(folder)
        _check_fits(task, folder, checkpoint)
        say(f"{task.name}: {folder.name}, {len(runs)} runs")
        yield Session(suite, task, _few(data) if smoke else data, folder, checkpoint, runs, output)
    if not any_runs:
        raise nothing_to_run(suite, only)


def _few(data: TaskData) -> TaskData:
    splits = {name: rows.take(range(min(SMOKE_ROWS, len(rows)))) for name, rows in data.splits.items()}
    counts = data.counts | {name: len(rows) for name, rows in splits.items()}
    return TaskData(splits=splits, data_hash=data.data_hash + "-smoke", counts=counts)


def _check_fits(task: Task, folder: Path, checkpoint: Checkpoint) -> None:
    trained_on = checkpoint.config["task"]
    if checkpoint.network.num_labels != task.num_labels or trained_on["kind"] != task.kind:
        raise UserError(
            f"checkpoint {str(folder)!r} was trained on task {trained_on['kind']!r} with "
            f"{checkpoint.network.num_labels} labels; the suite measures {task.name!r} with {task.num_labels}"
        )
    if not all(torch.isfinite(parameter).all() for parameter in checkpoint.network.parameters()):
        raise UserError(f"checkpoint {str(folder)!r} holds weights that are NaN or infinite: train it again")


def max_length(session: Session) -> int:
    """The longest input of a session, in tokens: the checkpoint's, or a shape's own."""
    lengths = [run.shape.length for run in session.runs if run.shape.length is not None]
    return max([session.checkpoint.training["spec"]["train"]["max_seq_length"], *lengths])


def calibration(session: Session, recipe: Recipe) -> tuple[list[int], Calibration | None]:
    """The rows of `fit` a recipe is calibrated on, by position, and what the record says of them."""
    if not isinstance(recipe, Int8Static):
        return [], None
    fit = session.data.splits["fit"]
    rows = calibration_indices(recipe, len(fit)).tolist()
    digest = hashlib.sha256("\n".join(fit.ids[row] for row in rows).encode()).hexdigest()
    return rows, Calibration(split="fit", rows=len(rows), seed=recipe.seed, ids_hash=digest)
