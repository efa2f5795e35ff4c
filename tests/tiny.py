"""Tiny seeded networks, batches and checkpoints: quick to build, and random enough that rows leave at every exit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from models.checkpoints import save_checkpoint
from models.encoding import Encoded, collate, word_tokenizer
from models.methods import Method, Pabee
from models.network import ExitsConfig, MultiExitNetwork
from models.synthetic import SyntheticTask, vocabulary

FAMILIES = ("bert", "roberta", "albert")
VOCABULARY, LONGEST = 60, 16
# RoBERTa's own padding index is 1, and its positions are counted from it.
PAD = {"bert": 0, "roberta": 1, "albert": 0}
FIRST_WORD = 5
PABEE = ExitsConfig(pooling="first_token", pooler="shared")
DEEBERT = ExitsConfig(pooling="first_token", pooler="per_exit")
QUERIES = ExitsConfig(pooling="attention", pooler="per_exit")
FASTBERT = ExitsConfig(head="attention", pooling="first_token", pooler="per_exit")


def backbone_options(family: str, num_layers: int = 4, **changes: Any) -> dict[str, Any]:
    """What `AutoConfig.for_model` takes, for a backbone whose layers visibly change what they are given."""
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": num_layers,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": LONGEST + 2,
        "pad_token_id": PAD[family],
        "type_vocab_size": 1 if family == "roberta" else 2,
        "initializer_range": 0.2,
    }
    return options | ({"embedding_size": 24} if family == "albert" else {}) | changes


def shaken(module: nn.Module, scale: float, seed: int) -> None:
    """Add noise to every parameter in place, so that no bias is 0, no norm 1 and no two exits the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def backbone(family: str, seed: int = 0, num_layers: int = 4, **changes: Any) -> PreTrainedModel:
    """A random backbone in evaluation mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **backbone_options(family, num_layers, **changes))
    made = AutoModel.from_config(config, attn_implementation="sdpa")
    shaken(made, 0.05, seed)
    return made.eval()


def with_exits(body: PreTrainedModel, exits: ExitsConfig, num_labels: int, seed: int = 0) -> MultiExitNetwork:
    """A network over `body` (whose pooler it takes) with random exits, in evaluation mode."""
    torch.manual_seed(seed)
    made = MultiExitNetwork(body, exits, num_labels)
    shaken(made.poolers, 0.1, seed)
    shaken(made.classifiers, 0.6, seed)
    shaken(made.queries, 1.0, seed)
    shaken(made.heads, 0.2, seed)
    spread(made.eval())
    return made


@torch.no_grad()
def spread(made: MultiExitNetwork) -> None:
    """Centre and scale every exit in place over random rows, so that they disagree about them and are not all sure."""
    config = made.backbone.config
    rows = encoded(64, seed=7)
    logits = made(**tensors(batch(rows, range(len(rows)), config.model_type)))
    for exit_, given in zip(made.exits, logits, strict=True):
        classifier = exit_.classifier
        assert isinstance(classifier, nn.Linear)
        centre = given.mean(dim=0)
        scale = 2.0 / (given - centre).std()
        classifier.weight.mul_(scale)
        classifier.bias.sub_(centre).mul_(scale)


def network(
    family: str, exits: ExitsConfig = PABEE, num_labels: int = 3, seed: int = 0, num_layers: int = 4
) -> MultiExitNetwork:
    """A random multi-exit network in evaluation mode."""
    return with_exits(backbone(family, seed, num_layers), exits, num_labels, seed)


def encoded(rows: int, seed: int = 0, num_labels: int = 3, shortest: int = 4) -> Encoded:
    """Random rows of `shortest` to LONGEST tokens in two segments, with class ids or (one label) float targets."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, LONGEST + 1, rows)
    labels = random.integers(0, num_labels, rows) if num_labels > 1 else random.normal(size=rows).astype(np.float32)
    return Encoded(
        input_ids=[random.integers(FIRST_WORD, VOCABULARY, n).tolist() for n in lengths],
        token_type_ids=[(np.arange(n) >= n // 2).astype(int).tolist() for n in lengths],
        ids=[f"row-{i}" for i in range(rows)],
        labels=labels,
    )


def batch(given: Encoded, indices: Sequence[int], family: str) -> dict[str, np.ndarray]:
    """Rows padded to the longest of them: int64 [B, T] inputs."""
    return collate(given, indices, PAD[family], "longest", LONGEST)


def batches(given: Encoded, size: int, family: str) -> list[dict[str, np.ndarray]]:
    """All rows in order, `size` at a time."""
    return [batch(given, range(i, min(i + size, len(given))), family) for i in range(0, len(given), size)]


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch for torch modules."""
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


@torch.no_grad()
def all_logits(given: MultiExitNetwork, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of every exit, [L, B, C]."""
    return given(**tensors(inputs)).numpy()


def task(**changes: Any) -> SyntheticTask:
    """The generated task with next to no rows."""
    sizes: dict[str, Any] = {"fit_rows": 64, "select_rows": 16, "tune_rows": 8, "dev_rows": 8}
    return SyntheticTask(kind="synthetic", **(sizes | changes))


def checkpoint(folder: Path, family: str = "bert", method: Method | None = None) -> MultiExitNetwork:
    """Write a checkpoint of a random network with the synthetic task's tokenizer, and return the network."""
    method = method or Pabee()
    tokenizer = word_tokenizer(vocabulary(), 40)
    body = backbone(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=42)
    made = with_exits(body, method.exits, task().num_labels)
    described = {"task": task().model_dump(), "method": method.model_dump()}
    spec = described | {"backbone": "minilm", "train": {"max_seq_length": 40}, "seed": 0}
    save_checkpoint(folder, made, tokenizer, described, {"spec": spec, "data_hash": "0" * 64})
    return made
