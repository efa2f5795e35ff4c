"""A checkpoint is one folder that loads anywhere.

config.json        the backbone's configuration, the exits, the number of labels, task and method
model.safetensors  every parameter, once
training.json      how it came to be: specs, seed, data hash and counts, curves, seconds; or what it was imported from
...                the tokenizer's own files
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from models.config import UserError, first_line
from models.families import UNREADABLE, family_of, load_tokenizer
from models.network import ExitsConfig, MultiExitNetwork

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained multi-exit network with its tokenizer and history."""

    network: MultiExitNetwork
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    training: dict[str, Any]
    hash: str


def save_checkpoint(
    folder: Path,
    network: MultiExitNetwork,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, Any],
    training: dict[str, Any],
) -> None:
    """Write a checkpoint folder; `config` and `training` are json-able additions to what the network itself says."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    described = {
        "schema": "exitbench/checkpoint/1",
        "backbone": network.backbone.config.to_diff_dict() | {"model_type": network.backbone.config.model_type},
        "exits": network.exits_config.model_dump(),
        "num_labels": network.num_labels,
    }
    (folder / CONFIG).write_text(json.dumps(described | config, indent=2))
    (folder / TRAINING).write_text(json.dumps(training, indent=2))
    # Written last, whole or not at all: a folder without weights is not a checkpoint.
    unfinished = folder / f"{WEIGHTS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, unfinished)
    unfinished.replace(folder / WEIGHTS)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a finished checkpoint."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; the network is in evaluation mode.

    Raises:
        UserError: when a file is missing, truncated, or does not fit the others.
    """
    if not is_checkpoint(folder):
        raise UserError(f"checkpoint {str(folder)!r} must hold {CONFIG} and {WEIGHTS}; it does not: train it again")
    try:
        config = json.loads((folder / CONFIG).read_text())
        training = json.loads((folder / TRAINING).read_text())
        backbone_config = AutoConfig.for_model(**config["backbone"])
        backbone = AutoModel.from_config(backbone_config, attn_implementation="sdpa")
        network = MultiExitNetwork(backbone, ExitsConfig(**config["exits"]), config["num_labels"])
        network.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = load_tokenizer(str(folder))
    except UNREADABLE as error:
        raise UserError(
            f"checkpoint {str(folder)!r} cannot be read, it is truncated or altered: {first_line(error)}; "
            "delete the folder and train again"
        ) from error
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return Checkpoint(network.eval(), tokenizer, config, training, digest)


def load_classifier(
    source: str, exits: ExitsConfig, num_labels: int, label_names: Sequence[str] = ()
) -> tuple[MultiExitNetwork, PreTrainedTokenizerFast]:
    """A plain fine-tuned classifier (BERT, RoBERTa or ALBERT) as a network whose last exit is its own classifier.

    Args:
        source: hub name or local folder that `AutoModelForSequenceClassification` loads.
        exits: how many poolers they have; each begins as the classifier's own.
        num_labels: what the task needs; the classifier must answer as many.
        label_names: the task's classes. Where the classifier names the same ones in another order, its own are put into
            this one; other names (LABEL_0, positive for 1) tell nothing, and the order is taken to be the task's.

    Raises:
        UserError: when it cannot be read or answers another number of classes.
    """
    try:
        classifier, loading = AutoModelForSequenceClassification.from_pretrained(
            source, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True
        )
        tokenizer = load_tokenizer(source)
    except UNREADABLE as error:
        raise UserError(
            f"classifier {source!r} is neither a readable local folder nor a reachable hub model ({first_line(error)})"
        ) from error
    if loading["missing_keys"]:
        raise UserError(
            f"classifier {source!r} is not fine-tuned: it lacks {sorted(loading['missing_keys'])[0]!r}; "
            "give it as backbone: instead"
        )
    if classifier.config.num_labels != num_labels:
        raise UserError(
            f"classifier {source!r} answers {classifier.config.num_labels} labels; the task has {num_labels}"
        )
    backbone = classifier.base_model
    pooler: Any
    if classifier.config.model_type == "roberta":  # its head holds pooler and classifier
        pooler, head = classifier.classifier.dense, classifier.classifier.out_proj
    else:
        pooler, head = family_of(backbone).pooler(backbone), classifier.classifier
    network = MultiExitNetwork(backbone, exits, num_labels)
    for own in network.poolers:
        own.load_state_dict(pooler.state_dict())
    order = _order(classifier.config.id2label, label_names)
    network.classifiers[-1].load_state_dict({name: tensor[order] for name, tensor in head.state_dict().items()})
    return network, tokenizer


def _order(id2label: dict[int, str], label_names: Sequence[str]) -> list[int]:
    """Where a classifier has each of the task's classes, by name; as they stand where the names are others."""

    def plain(name: str) -> str:
        return name.lower().replace(" ", "_").replace("-", "_")

    theirs, ours = [plain(id2label[i]) for i in sorted(id2label)], [plain(name) for name in label_names]
    return [theirs.index(name) for name in ours] if sorted(theirs) == sorted(ours) else list(range(len(theirs)))
