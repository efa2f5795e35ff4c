"""The one fine-tuning path: every method's stages run through `transformers.Trainer`.

bfloat16 autocast where the CPU has it, a progress bar, early stopping on `select`, and a state on disk at every
evaluation from which an interrupted training goes on.
"""

import hashlib
import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from models.checkpoints import is_checkpoint, load_classifier, save_checkpoint
from models.config import Config, UserError
from models.cpu import has_bfloat16
from models.encoding import Encoded, collate, encode, word_tokenizer
from models.families import Backbone, Fresh, fresh_backbone, load_pretrained
from models.methods import DeeBert, Loss, Method, Stage, StageConfig, TrainConfig
from models.network import MultiExitNetwork
from models.synthetic import SyntheticTask, vocabulary
from models.tasks import Task, TaskData

log = logging.getLogger(__name__)
EVALUATION_BATCH = 64


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
            return self.backbone.name if isinstance(self.backbone, Fresh) else Path(self.backbone.name).name
        return Path(self.classifier or "").name

    def folder_name(self, data_hash: str) -> str:
        """`task-method-start-hash`; the hash covers this whole spec and the data."""
        digest = hashlib.sha256((self.model_dump_json() + data_hash).encode()).hexdigest()
        return f"{self.task.name}-{self.method.kind}-{self.start_name}-{digest[:8]}"


class _Batches(Dataset):
    """Rows by position, for the collator; `input_ids` stands there for length grouping."""

    def __init__(self, encoded: Encoded):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": index, "input_ids": self.encoded.input_ids[index]}


class _Collator:
    """Positions -> padded int64 tensors and labels."""

    def __init__(self, encoded: Encoded, pad_token_id: int, max_seq_length: int):
        self.encoded, self.pad_token_id, self.max_seq_length = encoded, pad_token_id, max_seq_length

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [example["row"] for example in examples]
        arrays = collate(self.encoded, rows, self.pad_token_id, "longest", self.max_seq_length)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return batch | {"labels": torch.from_numpy(self.encoded.labels[rows])}


class _Objective(nn.Module):
    """A network and a loss over the logits of all its exits; logits leave as [B, L, C], rows first, for the Trainer."""

    accepts_loss_kwargs = False  # or the Trainer, seeing **inputs, adds one of its own

    def __init__(self, network: nn.Module, loss: Loss):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(**inputs)
        return {"loss": self.loss(logits, labels), "logits": logits.transpose(0, 1).float()}


class _ExitsOnFeatures(nn.Module):
    """The exits alone, over cached poolers' inputs [B, L, H] -> logits [L, B, C]."""

    def __init__(self, network: MultiExitNetwork):
        super().__init__()
        self.poolers, self.classifiers, self.dropout = network.poolers, network.classifiers, network.dropout
        self.exits = network.exits

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([exit_.classify(features[:, i]) for i, exit_ in enumerate(self.exits)])


class _Features(Dataset):
    """Cached features and labels by position."""

    def __init__(self, features: torch.Tensor, labels: np.ndarray):
        self.features, self.labels = features, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index].float(), "labels": self.labels[index]}


@torch.no_grad()
def frozen_features(network: MultiExitNetwork, encoded: Encoded, collator: _Collator) -> torch.Tensor:
    """What each exit's pooler reads, [N, L, H] in float16 (half the memory; layer-normed values fit it well)."""
    network.eval()
    features = torch.empty(len(encoded), network.num_layers, network.backbone.config.hidden_size, dtype=torch.float16)
    by_length = np.argsort([len(ids) for ids in encoded.input_ids], kind="stable")
    for rows in np.array_split(by_length, math.ceil(len(encoded) / EVALUATION_BATCH)):
        batch = collator([{"row": int(row)} for row in rows])
        batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            states, mask = network.hidden_states(**batch)
        pooled = [exit_.pool(hidden, mask) for exit_, hidden in zip(network.exits, states, strict=True)]
        features[torch.from_numpy(rows)] = torch.stack(pooled, dim=1).to(torch.float16)
    return features


def _arguments(folder: Path, train: StageConfig, rows: int, seed: int, grouped: bool) -> TrainingArguments:
    steps_per_epoch = math.ceil(rows / train.batch_size)
    total = max(1, math.ceil(steps_per_epoch * train.epochs))
    every = max(1, math.ceil(steps_per_epoch / train.evaluations_per_epoch))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        max_steps=total,
        learning_rate=train.learning_rate,
        warmup_steps=int(train.warmup * total),
        weight_decay=train.weight_decay,
        lr_scheduler_type="linear",
        bf16=has_bfloat16(),
        use_cpu=True,
        seed=seed,
        eval_strategy="steps",
        save_strategy="steps",
        logging_strategy="steps",
        eval_steps=min(every, total),
        save_steps=min(every, total),
        logging_steps=min(every, total),
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,
        metric_for_best_model="score",
        greater_is_better=True,
        train_sampling_strategy="group_by_length" if grouped else "random",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        dataloader_pin_memory=False,
    )


def exit_scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The headline score of every exit from logits [N, L, C]."""
    return [
        task.metrics(labels, x[:, 0] if task.regression else x.argmax(-1))[task.headline_metric]
        for x in logits.transpose(1, 0, 2)
    ]


def _run_stage(
    stage: Stage,
    train: StageConfig,
    network: MultiExitNetwork,
    sets: dict[str, Encoded],
    folder: Path,
    spec: TrainingSpec,
) -> list[dict[str, Any]]:
    """Fine-tune `network` in place and return the curve: step, loss, score and scores per exit at each evaluation."""
    network.requires_grad_(False)
    for module in stage.parameters:
        module.requires_grad_(True)
    pad = network.backbone.config.pad_token_id
    collators = {name: _Collator(encoded, pad, spec.train.max_seq_length) for name, encoded in sets.items()}
    if stage.frozen_features:
        datasets: dict[str, Dataset] = {
            name: _Features(frozen_features(network, encoded, collators[name]), encoded.labels)
            for name, encoded in sets.items()
        }
        model = _Objective(_ExitsOnFeatures(network), stage.loss)
    else:
        datasets = {name: _Batches(encoded) for name, encoded in sets.items()}
        model = _Objective(network, stage.loss)

    def scores(prediction: EvalPrediction) -> dict[str, Any]:
        per_exit = exit_scores(spec.task, np.asarray(prediction.predictions), np.asarray(prediction.label_ids))
        return {"score": float(np.mean([per_exit[i] for i in stage.scored])), "scores": per_exit}

    trainer = _StageTrainer(
        None if stage.frozen_features else collators,
        model=model,
        args=_arguments(folder, train, len(sets["fit"]), spec.seed, grouped=not stage.frozen_features),
        train_dataset=datasets["fit"],
        eval_dataset=datasets["select"],
        compute_metrics=scores,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=train.patience)],
    )
    trainer.train(resume_from_checkpoint=_last_state(folder))
    kept = ("step", "epoch", "loss", "eval_loss", "eval_score", "eval_scores")
    return [{key: entry[key] for key in kept if key in entry} for entry in trainer.state.log_history]


def _last_state(folder: Path) -> str | None:
    """The newest resumable state that was written whole; one cut short by a kill is passed over."""
    states = [state for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (state / TRAINER_STATE_NAME).is_file()]
    return str(max(states, key=lambda state: int(state.name.rpartition("-")[2]))) if states else None


class _StageTrainer(Trainer):
    """A Trainer whose rows are collated from the split they belong to."""

    def __init__(self, collators: dict[str, _Collator] | None, **options: Any):
        super().__init__(**options)
        self.collators = collators

    def get_train_dataloader(self) -> Any:
        if self.collators:
            self.data_collator = self.collators["fit"]
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if self.collators:
            self.data_collator = self.collators["select"]
        return super().get_eval_dataloader(eval_dataset)


def start_network(spec: TrainingSpec) -> tuple[MultiExitNetwork, PreTrainedTokenizerFast]:
    """The network before fine-tuning: pre-trained or fresh backbone with new exits, or a fine-tuned classifier."""
    task, exits = spec.task, spec.method.exits
    if spec.classifier is not None:
        if not isinstance(spec.method, DeeBert) or spec.method.pooling != "first_token":
            raise UserError(
                "classifier: exits are added to a fine-tuned classifier by method deebert with pooling first_token; "
                f"the suite says {spec.method.kind}: use deebert, or give a backbone"
            )
        return load_classifier(spec.classifier, exits, task.num_labels)
    if isinstance(spec.backbone, Fresh):
        if not isinstance(task, SyntheticTask):
            raise UserError(
                f"backbone {spec.backbone.name!r} is fresh: only the synthetic task brings its own vocabulary; "
                f"give task {task.name!r} a pre-trained backbone"
            )
        tokenizer = word_tokenizer(vocabulary(), spec.train.max_seq_length)
        backbone = fresh_backbone(spec.backbone, tokenizer, spec.train.max_seq_length)
    elif spec.backbone is not None:
        backbone, tokenizer = load_pretrained(spec.backbone)
    else:
        raise UserError("a checkpoint needs backbone: or classifier:")
    return MultiExitNetwork(backbone, exits, task.num_labels), tokenizer


def fine_tune(spec: TrainingSpec, data: TaskData, folder: Path) -> Path:
    """Train what `spec` says on `fit`, choosing states on `select`; a finished folder is returned as it is.

    Args:
        folder: the checkpoint folder to write. `<folder>.partial` holds the resumable states until it is finished.

    Raises:
        UserError: when the spec does not fit the task, or the loss is no longer finite.
    """
    if is_checkpoint(folder):
        return folder
    started = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    set_seed(spec.seed)
    network, tokenizer = start_network(spec)
    rows = {"fit": data.splits["fit"], "select": data.splits["select"]}
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
        log.info("training %s: stage %s on %d rows", folder.name, stage.name, len(rows["fit"]))
        curves[stage.name] = _run_stage(stage, train, network, sets, partial / stage.name, spec)
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
            "counts": data.counts,
            "fit_rows": len(rows["fit"]),
            "seconds": time.monotonic() - started,
            "curves": curves,
        },
    )
    shutil.rmtree(partial)
    return folder
