"""The one fine-tuning path: from a spec and data to a checkpoint folder, stage by stage (`models/trainer.py`)."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import Field
from transformers import PreTrainedTokenizerFast, set_seed

from models.calibration import expected_calibration_error
from models.checkpoints import Checkpoint, is_checkpoint, load_classifier, save_checkpoint
from models.config import Config, UserError
from models.encoding import Encoded, encode, word_tokenizer
from models.families import Backbone, Fresh, check_length, fresh_backbone, load_pretrained
from models.methods import Method, TrainConfig
from models.network import MultiExitNetwork
from models.synthetic import SyntheticTask, vocabulary
from models.tasks import Task, TaskData
from models.trainer import OnStep, all_logits, exit_scores, run_stage


class TrainingSpec(Config):
    """Everything that decides a checkpoint, apart from the data: the folder is named by its hash."""

    task: Task
    method: Method
    backbone: Backbone | None = None
    classifier: str | None = None
    train: TrainConfig = TrainConfig()
    seed: int = Field(default=42, ge=0)

    @property
    def start_name(self) -> str:
        """A short name of what training starts from."""
        if self.backbone is not None:
            return self.backbone.label
        return Path(self.classifier or "").name

    @property
    def stem(self) -> str:
        """`task-method-start`, which a folder's name begins with."""
        return f"{self.task.name}-{self.method.kind}-{self.start_name}"

    def folder_name(self, data_hash: str) -> str:
        """`task-method-start-hash`; the hash covers this whole spec and the data."""
        digest = hashlib.sha256((self.model_dump_json() + data_hash).encode()).hexdigest()
        return f"{self.stem}-{digest[:8]}"


def trained_on(checkpoint: Checkpoint) -> tuple[TrainingSpec, int]:
    """How a checkpoint was trained, and the seed that cut its data."""
    spec = TrainingSpec.model_validate(checkpoint.training["spec"])
    return spec, checkpoint.training.get("data_seed", spec.seed)  # absent where it was trained when both were one


def start_network(spec: TrainingSpec) -> tuple[MultiExitNetwork, PreTrainedTokenizerFast]:
    """The network before fine-tuning: pre-trained or fresh backbone with new exits, or a fine-tuned classifier."""
    task, exits = spec.task, spec.method.exits
    if spec.classifier is not None:
        if exits.head != "pooler" or exits.pooling != "first_token":
            raise UserError(
                "classifier: its own pooler and classifier become the last exit, so the method must have exits of that "
                f"kind and pooling first_token; the suite says {spec.method.kind} with pooling {exits.pooling}: "
                "change it, or give a backbone"
            )
        network, tokenizer = load_classifier(spec.classifier, exits, task.num_labels, task.label_names)
        check_length(network.backbone.config, spec.train.max_seq_length)
        return network, tokenizer
    if isinstance(spec.backbone, Fresh):
        if not isinstance(task, SyntheticTask):
            raise UserError(
                f"backbone {spec.backbone.label!r} is fresh: only the synthetic task brings its own vocabulary; "
                f"give task {task.name!r} a pre-trained backbone"
            )
        tokenizer = word_tokenizer(vocabulary(), spec.train.max_seq_length)
        backbone = fresh_backbone(spec.backbone, tokenizer, spec.train.max_seq_length)
    elif spec.backbone is not None:
        backbone, tokenizer = load_pretrained(spec.backbone)
        check_length(backbone.config, spec.train.max_seq_length)
    else:
        raise UserError("a checkpoint needs backbone: or classifier:")
    return MultiExitNetwork(backbone, exits, task.num_labels), tokenizer


def fine_tune(spec: TrainingSpec, data: TaskData, folder: Path, on_step: OnStep | None = None) -> Path:
    """Train what `spec` says on `fit`, choosing states on `select`; a finished folder is returned as it is.

    Args:
        folder: the checkpoint folder to write. `<folder>.partial` holds the resumable states until it is finished.
        on_step: called after each optimizer step of each stage.

    Raises:
        UserError: when the spec does not fit the task, the loss is no longer finite, or another process is at it.
    """
    if is_checkpoint(folder):
        return folder
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / ".lock", timeout=0):
            if not is_checkpoint(folder):  # another process may have finished it a moment ago
                _fine_tune(spec, data, folder, partial, on_step)
    except Timeout:
        raise UserError(f"another process is fine-tuning {str(folder)!r}: wait until it ends") from None
    return folder


def _fine_tune(spec: TrainingSpec, data: TaskData, folder: Path, partial: Path, on_step: OnStep | None) -> None:
    started = time.monotonic()
    set_seed(spec.seed)
    network, tokenizer = start_network(spec)
    task, rows = spec.task, {"fit": data.splits["fit"], "select": data.splits["select"]}
    if spec.train.max_rows is not None:
        rows = {name: split.take(range(min(spec.train.max_rows, len(split)))) for name, split in rows.items()}
    sets = {name: encode(split, tokenizer, spec.train.max_seq_length) for name, split in rows.items()}
    curves = {}
    for stage in spec.method.stages(network, fine_tuned=spec.classifier is not None):
        train = stage.train or spec.train
        finished = partial / f"{stage.name}.pt"
        if finished.exists():
            saved = torch.load(finished, weights_only=True)
            network.load_state_dict(saved["state"])
            curves[stage.name] = json.loads(saved["curve"])
            continue
        curves[stage.name] = run_stage(
            stage, train, network, sets, partial / stage.name, task, spec.train.max_seq_length, spec.seed, on_step
        )
        unfinished = finished.with_suffix(".tmp")
        torch.save({"state": network.state_dict(), "curve": json.dumps(curves[stage.name])}, unfinished)
        unfinished.replace(finished)
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise UserError(
            f"training {folder.name!r} diverged (weights are not finite): lower learning_rate "
            f"{spec.train.learning_rate}, then delete {str(partial)!r}"
        )
    save_checkpoint(
        folder,
        network,
        tokenizer,
        config={"task": spec.task.model_dump(), "method": spec.method.model_dump()},
        training={
            "spec": spec.model_dump(),
            "data_hash": data.data_hash,
            "data_seed": data.seed,
            "counts": data.counts,
            "fit_rows": len(rows["fit"]),
            "seconds": time.monotonic() - started,
            "curves": curves,
            "exits": _exit_report(task, network, sets["select"], spec.train.max_seq_length),
        },
    )
    shutil.rmtree(partial)


def _exit_report(task: Task, network: MultiExitNetwork, select: Encoded, max_seq_length: int) -> list[dict[str, Any]]:
    """What each exit is worth on `select`: headline score and, for classification, calibration error."""
    logits = all_logits(network, select, max_seq_length)
    scores = exit_scores(task, logits, select.labels)
    report: list[dict[str, Any]] = [{"layer": i + 1, "score": score} for i, score in enumerate(scores)]
    if not task.regression:
        for entry, exit_logits in zip(report, logits.transpose(1, 0, 2), strict=True):
            entry["ece"] = expected_calibration_error(exit_logits, select.labels)
    return report
