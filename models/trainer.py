"""Stages through `transformers.Trainer`: batches, objectives, cached features and what the Trainer lacks.

bfloat16 autocast where the CPU has it, a progress bar, early stopping on `select`, and a state on disk at every
evaluation from which an interrupted stage goes on.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from models.cpu import has_bfloat16
from models.encoding import Encoded, collate
from models.methods import Stage, StageConfig, without_conflict
from models.network import MultiExitNetwork
from models.tasks import Task

EVALUATION_BATCH = 64
# Called after each optimizer step with the steps of the stage so far and the network.
OnStep = Callable[[int, MultiExitNetwork], None]


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


class Objective(nn.Module):
    """A network and a stage's loss over the logits of all exits; logits leave rows first, [B, L, C], for the Trainer.

    What is `frozen` runs as in evaluation, without dropout.
    """

    accepts_loss_kwargs = False  # or the Trainer, seeing **inputs, adds one of its own

    def __init__(self, network: nn.Module, stage: Stage, frozen: list[nn.Module]):
        super().__init__()
        self.network, self.stage, self.frozen = network, stage, frozen

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(**inputs)
        answer = {"loss": self.stage.loss(logits, labels), "logits": logits.transpose(0, 1).float()}
        if self.training and self.stage.protected is not None:
            answer["protected"] = self.stage.protected(logits, labels)
        return answer


class _ExitsOnFeatures(nn.Module):
    """The exits alone, over cached poolers' inputs [B, L, H] -> logits [L, B, C]."""

    def __init__(self, network: MultiExitNetwork):
        super().__init__()
        self.exits = nn.ModuleList(network.exits)
        self.exits[-1].dropout = nn.Identity()  # it is frozen, and may teach the others

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([exit_.classify(features[:, i]) for i, exit_ in enumerate(self.exits)])  # pyright: ignore


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
    for rows, batch in _by_length(encoded, collator):
        with _autocast():
            states, mask = network.hidden_states(**batch)
        pooled = [exit_.pool(hidden, mask) for exit_, hidden in zip(network.exits, states, strict=True)]  # pyright: ignore
        features[torch.from_numpy(rows)] = torch.stack(pooled, dim=1).to(torch.float16)
    return features


@torch.no_grad()
def all_logits(network: MultiExitNetwork, encoded: Encoded, max_seq_length: int) -> np.ndarray:
    """The logits of every exit in evaluation mode, [N, L, C] float32."""
    network.eval()
    logits = np.empty((len(encoded), network.num_layers, network.num_labels), np.float32)
    collator = _Collator(encoded, network.backbone.config.pad_token_id, max_seq_length)
    for rows, batch in _by_length(encoded, collator):
        with _autocast():
            logits[rows] = network(**batch).transpose(0, 1).float().numpy()
    return logits


def _by_length(encoded: Encoded, collator: _Collator) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Positions and inputs of batches of about equal lengths."""
    by_length = np.argsort([len(ids) for ids in encoded.input_ids], kind="stable")
    for rows in np.array_split(by_length, math.ceil(len(encoded) / EVALUATION_BATCH)):
        batch = collator([{"row": int(row)} for row in rows])
        batch.pop("labels")
        yield rows, batch


def _autocast() -> torch.autocast:
    """As the Trainer computes."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


def training_arguments(folder: Path, train: StageConfig, rows: int, seed: int, grouped: bool) -> TrainingArguments:
    """A stage's configuration in the Trainer's words; `grouped` draws batches of about equal lengths."""
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
    return [task.metrics(labels, task.predictions(x))[task.headline_metric] for x in logits.transpose(1, 0, 2)]


class _Steps(TrainerCallback):
    """Tells `on_step` of every step."""

    def __init__(self, on_step: OnStep, network: MultiExitNetwork):
        self.on_step, self.network = on_step, network

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, self.network)


def run_stage(
    stage: Stage,
    train: StageConfig,
    network: MultiExitNetwork,
    sets: dict[str, Encoded],
    folder: Path,
    task: Task,
    max_seq_length: int,
    seed: int,
    on_step: OnStep | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune `network` in place and return the curve: step, loss, score and scores per exit at each evaluation."""
    network.requires_grad_(False)
    for module in stage.parameters:
        module.requires_grad_(True)
    pad = network.backbone.config.pad_token_id
    collators = {name: _Collator(encoded, pad, max_seq_length) for name, encoded in sets.items()}
    datasets: dict[str, Dataset]
    if stage.cached_features:
        datasets = {
            name: _Features(frozen_features(network, encoded, collators[name]), encoded.labels)
            for name, encoded in sets.items()
        }
        model = Objective(_ExitsOnFeatures(network), stage, [])
    else:
        datasets = {name: _Batches(encoded) for name, encoded in sets.items()}
        parts = [network.backbone, *network.heads]
        model = Objective(network, stage, [part for part in parts if not _learns(part)])

    def scores(prediction: EvalPrediction) -> dict[str, Any]:
        per_exit = exit_scores(task, np.asarray(prediction.predictions), np.asarray(prediction.label_ids))
        return {"score": float(np.mean([per_exit[i] for i in stage.scored])), "scores": per_exit}

    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(early_stopping_patience=train.patience)]
    callbacks += [] if on_step is None else [_Steps(on_step, network)]
    trainer = StageTrainer(
        train,
        network.backbone,
        None if stage.cached_features else collators,
        model=model,
        args=training_arguments(folder, train, len(sets["fit"]), seed, grouped=not stage.cached_features),
        train_dataset=datasets["fit"],
        eval_dataset=datasets["select"],
        compute_metrics=scores,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=_last_state(folder))
    kept = ("step", "epoch", "loss", "eval_loss", "eval_score", "eval_scores")
    return [{key: entry[key] for key in kept if key in entry} for entry in trainer.state.log_history]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _last_state(folder: Path) -> str | None:
    """The newest resumable state that was written whole; one cut short by a kill is passed over."""
    states = [state for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (state / TRAINER_STATE_NAME).is_file()]
    return str(max(states, key=lambda state: int(state.name.rpartition("-")[2]))) if states else None


class StageTrainer(Trainer):
    """A Trainer whose rows are collated from the split they belong to, with a learning rate for each part.

    Where the stage protects a loss, the gradient of the rest is kept from opposing it on the backbone.
    """

    def __init__(self, stage: StageConfig, backbone: nn.Module, collators: dict[str, _Collator] | None, **options: Any):
        self.stage, self.backbone, self.collators = stage, backbone, collators
        super().__init__(**options)

    def get_train_dataloader(self) -> Any:
        if self.collators:
            self.data_collator = self.collators["fit"]
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if self.collators:
            self.data_collator = self.collators["select"]
        return super().get_eval_dataloader(eval_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.stage.exits_learning_rate is None:
            return super().create_optimizer(*([] if model is None else [model]))
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            inside = {id(parameter) for parameter in self.backbone.parameters()}
            assert isinstance(self.model, nn.Module)
            decaying = set(self.get_decay_parameter_names(self.model))
            parts: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    rate = self.stage.learning_rate if id(parameter) in inside else self.stage.exits_learning_rate
                    parts[rate, self.stage.weight_decay if name in decaying else 0.0].append(parameter)
            groups = [{"params": part, "lr": rate, "weight_decay": decay} for (rate, decay), part in parts.items()]
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        objective = self.model
        assert isinstance(objective, Objective)
        if objective.stage.protected is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        with self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs))
        shared = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        protected = torch.autograd.grad(
            outputs["protected"], shared, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        self.accelerator.backward(outputs["loss"])
        # Only the last exit's loss reaches some of the backbone, and neither reaches the rest of it.
        total = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
        rest = without_conflict([t - p for t, p in zip(total, protected, strict=True)], list(protected))
        for parameter, kept, own in zip(shared, rest, protected, strict=True):
            parameter.grad = kept + own
        return outputs["loss"].detach()
