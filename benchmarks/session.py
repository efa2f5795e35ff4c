"""A session: what is measured turn by turn on one task, and how a suite becomes sessions."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.environment import decisive
from benchmarks.expansion import check_fewer_layers, expand, expand_all, nothing_to_run, selected
from benchmarks.records import MAY_KNOW_TUNE, Calibration, CheckpointInfo
from benchmarks.suite import SMOKE_ROWS, CheckpointSpec, RunSpec, Suite, layers_of
from models.checkpoints import Checkpoint, load_checkpoint
from models.config import UserError
from models.tasks import Task, TaskData
from models.training import TrainingSpec, fine_tune, start_network
from quant.recipes import Calibrated, Int8Static, Recipe, calibration_indices, check_fallback

Say = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """A checkpoint of a session.

    Attributes:
        truncates: layers of the network whose first layers these are, fine-tuned alone; None for a whole network.
        may_know_tune: whether it was fine-tuned elsewhere, or on other splits of the data, at least at first.
    """

    folder: Path
    checkpoint: Checkpoint
    truncates: int | None = None
    may_know_tune: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def depth(self) -> int:
        """Layers that exits are counted over: the whole network's."""
        return self.truncates or self.checkpoint.network.num_layers

    @property
    def info(self) -> CheckpointInfo:
        config, training = self.checkpoint.config, self.checkpoint.training
        spec = training["spec"]  # of an imported one, only what is known
        curves = list(training.get("curves", {}).values())
        curve = [entry for entry in (curves[-1] if curves else []) if "eval_scores" in entry]
        best = max(curve, key=lambda entry: entry["eval_score"], default={"eval_scores": []})
        return CheckpointInfo(
            name=self.name,
            method=config["method"]["kind"],
            method_options={key: value for key, value in config["method"].items() if key != "kind"},
            family=config["backbone"]["model_type"],
            backbone=TrainingSpec.model_validate(spec).start_name,
            num_layers=self.checkpoint.network.num_layers,
            truncates=self.truncates,
            hash=self.checkpoint.hash,
            imported=training.get("imported", {}).get("layout"),
            may_know_tune=self.may_know_tune,
            seed=spec.get("seed"),
            train=spec["train"],
            trained_seconds=training.get("seconds"),
            select_scores=best["eval_scores"],
            select_ece=[exit_["ece"] for exit_ in training.get("exits", []) if "ece" in exit_],
        )


@dataclass(frozen=True)
class Session:
    """What is measured turn by turn: a checkpoint on one task, and its networks of fewer layers, if any.

    Attributes:
        members: by name, as runs give it; the checkpoint first. They share one tokenizer.
    """

    suite: Suite
    task: Task
    data: TaskData
    members: dict[str, Member]
    runs: list[RunSpec]
    output: Path

    def member(self, run: RunSpec) -> Member:
        """The checkpoint of a run."""
        return self.members[run.checkpoint]

    @property
    def main(self) -> Checkpoint:
        """The checkpoint that has exits."""
        return next(iter(self.members.values())).checkpoint


def run_id(spec: RunSpec, data_hash: str, checkpoint_hash: str) -> str:
    """The hash of case, data, checkpoint, library versions and the CPU's kernels: what resume skips on."""
    parts = json.dumps([spec.case, data_hash, checkpoint_hash, decisive()], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


class Plan(NamedTuple):
    """A session before its checkpoints are there.

    Attributes:
        folders: of its checkpoints, the one with exits first, with what trains each if it is not there yet.
        runs: those that are asked for; not every checkpoint need have one.
    """

    task: Task
    data: TaskData
    num_layers: int
    folders: list[tuple[Path, TrainingSpec | None]]
    runs: list[RunSpec]

    @property
    def needed(self) -> list[tuple[Path, TrainingSpec | None]]:
        """The folders of checkpoints that have runs."""
        names = {run.checkpoint for run in self.runs}
        return [(folder, training) for folder, training in self.folders if folder.name in names]


def plan(suite: Suite, location: Path | None, checkpoints: Path, only: str | None) -> Iterator[Plan]:
    """Load data, one session after the other.

    Raises:
        UserError: whatever is wrong with the data or the products, or no run is left.
    """
    planned = [(spec, layers_of(spec)) for spec in suite.checkpoints]
    for task, (spec, num_layers) in itertools.product(suite.tasks, planned):
        # Refuse products that cannot run before hours of training.
        check_fewer_layers(spec, num_layers)
        expand(suite, task, "", num_layers)
        _check_fallbacks(suite, task, spec)
    for engine in suite.engines:
        engine.check()
    any_runs = False
    for task in suite.tasks:
        data = task.load(location, suite.seed)
        for spec, num_layers in planned:
            folders = planned_folders(spec, task, suite.seed, data.data_hash, checkpoints)
            runs = selected(expand_all(suite, task, spec, num_layers, [folder.name for folder, _ in folders]), only)
            if runs:
                any_runs = True
                yield Plan(task, data, num_layers, folders, runs)
    if not any_runs:
        raise nothing_to_run(suite, only)


def sessions(
    suite: Suite, location: Path | None, checkpoints: Path, output: Path, only: str | None, smoke: bool, say: Say
) -> Iterator[Session]:
    """Load data and checkpoints (training what is missing), one session after the other.

    Raises:
        UserError: as `plan`, or whatever is wrong with a checkpoint.
    """
    for one in plan(suite, location, checkpoints, only):
        task, data, members = one.task, one.data, {}
        for folder, training in one.needed:
            if training is not None:
                fine_tune(training, data, folder)
            checkpoint = load_checkpoint(folder)
            truncates = None if folder == one.folders[0][0] else one.num_layers
            _check_fits(task, folder, checkpoint)
            known = _may_know_tune(checkpoint, data.data_hash)
            members[folder.name] = Member(folder, checkpoint, truncates, known)
            if known:
                say(f"Warning: {folder.name}: {MAY_KNOW_TUNE}")
        say(f"{task.name}: {', '.join(members)}, {len(one.runs)} runs")
        yield Session(suite, task, _few(data) if smoke else data, members, one.runs, output)


def planned_folders(
    spec: CheckpointSpec, task: Task, seed: int, data_hash: str, checkpoints: Path
) -> list[tuple[Path, TrainingSpec | None]]:
    """The folder of a checkpoint and of each of its `fewer_layers`, with what trains it if it is not there."""
    if spec.folder is not None:
        return [(Path(spec.folder), None)]
    seed = seed if spec.seed is None else spec.seed
    trainings = [spec.training(task, seed), *spec.truncated(task, seed).values()]
    return [(checkpoints / training.folder_name(data_hash), training) for training in trainings]


def _few(data: TaskData) -> TaskData:
    splits = {name: rows.take(range(min(SMOKE_ROWS, len(rows)))) for name, rows in data.splits.items()}
    counts = data.counts | {name: len(rows) for name, rows in splits.items()}
    return TaskData(splits=splits, data_hash=data.data_hash + "-smoke", counts=counts, seed=data.seed)


def _check_fallbacks(suite: Suite, task: Task, spec: CheckpointSpec) -> None:
    """Refuse patterns that match nothing in the network; its fewer layers need not have all that is named."""
    if not any(isinstance(recipe, Int8Static) and recipe.fallback for recipe in suite.recipes):
        return
    trained = load_checkpoint(Path(spec.folder)).network if spec.folder is not None else None
    network = trained or start_network(spec.training(task, suite.seed))[0]
    for recipe in suite.recipes:
        check_fallback(recipe, network)


def _check_fits(task: Task, folder: Path, checkpoint: Checkpoint) -> None:
    trained_on = checkpoint.config["task"]
    if checkpoint.network.num_labels != task.num_labels or trained_on["kind"] != task.kind:
        raise UserError(
            f"checkpoint {str(folder)!r} was trained on task {trained_on['kind']!r} with "
            f"{checkpoint.network.num_labels} labels; the suite measures {task.name!r} with {task.num_labels}"
        )
    if not all(torch.isfinite(parameter).all() for parameter in checkpoint.network.parameters()):
        raise UserError(f"checkpoint {str(folder)!r} holds weights that are NaN or infinite: train it again")


def _may_know_tune(checkpoint: Checkpoint, data_hash: str) -> bool:
    """Whether nothing says that `fit` of these splits is all it was fine-tuned on."""
    training = checkpoint.training
    return training.get("data_hash") != data_hash or training["spec"].get("classifier") is not None


def max_length(session: Session) -> int:
    """The longest input of a session, in tokens: the checkpoint's, or a shape's own."""
    lengths = [shape.length for shape in session.suite.shapes if shape.length is not None]
    return max([session.main.training["spec"]["train"]["max_seq_length"], *lengths])


def calibration(session: Session, recipe: Recipe) -> Calibration | None:
    """What the record says of the rows of `fit` a recipe is calibrated on."""
    if not isinstance(recipe, Calibrated):
        return None
    fit = session.data.splits["fit"]
    rows = calibration_indices(recipe, len(fit))
    digest = hashlib.sha256("\n".join(fit.ids[row] for row in rows).encode()).hexdigest()
    return Calibration(split="fit", rows=len(rows), seed=recipe.seed, ids_hash=digest)
