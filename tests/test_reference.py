"""Every method against a second, plain transcription of its definition.

The transcription takes `transformers` modules as they are and shares no code with ours: its own masks, poolers, loops
and losses, one row at a time where the definition does so. Only the weights are ours, read from the state dict.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.methods import DeeBert, Distillation, FastBert, Pabee, RomeBert, without_conflict
from models.policies import Entropy, Patience, replay
from tests import tiny

LAYERS, ROWS = 4, 24
LOGITS_TOLERANCE, LOSS_TOLERANCE = 1e-5, 1e-6

families = pytest.mark.parametrize("family", tiny.FAMILIES)
label_counts = pytest.mark.parametrize("num_labels", [3, 2, 1], ids=["three_classes", "two_classes", "regression"])


@dataclass
class Reference:
    """A backbone with its own pooler, and plain copies of the weights of the exits."""

    backbone: Any
    poolers: list[nn.Linear]
    classifiers: list[nn.Linear]

    def embed(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings, and the mask of BERT's original code with the most negative number there is."""
        types = None if self.backbone.config.model_type == "roberta" else batch["token_type_ids"]
        hidden = self.backbone.embeddings(batch["input_ids"], token_type_ids=types)
        mask = batch["attention_mask"][:, None, None, :].float()
        return hidden, (1.0 - mask) * torch.finfo(torch.float32).min

    def layer(self, index: int, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        encoder = self.backbone.encoder
        if self.backbone.config.model_type != "albert":
            return encoder.layer[index](hidden, mask)
        if index == 0:  # ALBERT maps embeddings to its hidden size once, before its first layer
            hidden = encoder.embedding_hidden_mapping_in(hidden)
        return encoder.albert_layer_groups[0](hidden, mask)

    def exit(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        pooler = self.poolers[index if len(self.poolers) > 1 else 0]
        return self.classifiers[index](torch.tanh(pooler(hidden[:, 0, :])))

    def all_logits(self, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        hidden, mask = self.embed(batch)
        answers = []
        for i in range(LAYERS):
            hidden = self.layer(i, hidden, mask)
            answers.append(self.exit(i, hidden))
        return answers


def build(family: str, exits: tiny.ExitsConfig, num_labels: int) -> tuple[tiny.MultiExitNetwork, Reference]:
    """Our network and the reference, over equal weights."""
    backbone = tiny.backbone(family, num_layers=LAYERS)
    untouched = copy.deepcopy(backbone)
    ours = tiny.with_exits(backbone, exits, num_labels)
    state = ours.state_dict()

    def linears(name: str) -> list[nn.Linear]:
        made = []
        while f"{name}.{len(made)}.weight" in state:
            weight, bias = state[f"{name}.{len(made)}.weight"], state[f"{name}.{len(made)}.bias"]
            made.append(nn.Linear(weight.shape[1], weight.shape[0]))
            made[-1].load_state_dict({"weight": weight, "bias": bias})
        return made

    return ours, Reference(untouched, linears("poolers"), linears("classifiers"))


def single_rows(family: str, num_labels: int) -> list[dict[str, np.ndarray]]:
    return tiny.batches(tiny.encoded(ROWS, seed=1, num_labels=num_labels), 1, family)


@families
def test_the_transcription_is_the_backbone(family: str):
    """The grounds of all below: its loop over layers ends where `transformers` does."""
    _, reference = build(family, tiny.PABEE, 2)
    inputs = tiny.batch(tiny.encoded(8), range(8), family)
    if family == "roberta":
        inputs["token_type_ids"][:] = 0
    batch = tiny.tensors(inputs)
    with torch.no_grad():
        hidden, mask = reference.embed(batch)
        for i in range(LAYERS):
            hidden = reference.layer(i, hidden, mask)
        expected, real = reference.backbone(**batch).last_hidden_state, batch["attention_mask"].bool()
    torch.testing.assert_close(hidden[real], expected[real], atol=1e-5, rtol=0)


@families
@label_counts
@pytest.mark.parametrize("exits", [tiny.PABEE, tiny.DEEBERT], ids=["pabee", "deebert"])
def test_logits_of_every_exit(family: str, num_labels: int, exits: tiny.ExitsConfig):
    ours, reference = build(family, exits, num_labels)
    inputs = tiny.batch(tiny.encoded(ROWS), range(ROWS), family)
    assert (inputs["attention_mask"] == 0).any()
    with torch.no_grad():
        expected = torch.stack(reference.all_logits(tiny.tensors(inputs))).numpy()
    np.testing.assert_allclose(tiny.all_logits(ours, inputs), expected, atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
def pabee_inference(
    reference: Reference, batch: dict[str, torch.Tensor], patience: int, regression_threshold: float
) -> tuple[int, torch.Tensor]:
    """PABEE's loop for one row: the layer it left at, and the logits there."""
    hidden, mask = reference.embed(batch)
    if patience == 0:
        for i in range(LAYERS):
            hidden = reference.layer(i, hidden, mask)
        return LAYERS, reference.exit(LAYERS - 1, hidden)
    counter, result, layers_run = 0, None, 0
    logits = torch.empty(0)
    for i in range(LAYERS):
        layers_run += 1
        hidden = reference.layer(i, hidden, mask)
        logits = reference.exit(i, hidden)
        if result is None:
            counter = 0
        elif logits.shape[1] == 1:
            counter = counter + 1 if torch.abs(result - logits) < regression_threshold else 0
        else:
            counter = counter + 1 if torch.all(result.argmax(dim=1).eq(logits.argmax(dim=1))) else 0
        result = logits
        if counter == patience:
            break
    return layers_run, logits


@families
@label_counts
def test_pabee_leaves_where_its_definition_does(family: str, num_labels: int):
    ours, reference = build(family, tiny.PABEE, num_labels)
    rows = single_rows(family, num_labels)
    recorded = np.concatenate([tiny.all_logits(ours, row) for row in rows], axis=1)
    seen: set[int] = set()
    for patience in range(LAYERS + 1):
        for threshold in [1.0] if num_labels > 1 else [0.1, 1.0, 2.5]:
            policy = Patience(patience=patience, regression_threshold=threshold)
            answer = replay(policy, recorded, range(1, LAYERS + 1))
            expected = [pabee_inference(reference, tiny.tensors(row), patience, threshold) for row in rows]
            assert answer.exit_layer.tolist() == [layer for layer, _ in expected]
            logits = torch.cat([logits for _, logits in expected]).numpy()
            np.testing.assert_allclose(answer.logits, logits, atol=LOGITS_TOLERANCE, rtol=0)
            seen |= set(answer.exit_layer)
    assert seen == {2, 3, 4}


def safe_entropy(logits: torch.Tensor) -> float:
    """Entropy in nats of one row, in float64 with the largest logit taken off first."""
    shifted = logits.double().squeeze(0) - logits.max().double()
    probabilities = shifted.exp() / shifted.exp().sum()
    return float(-(probabilities * probabilities.log()).sum())


@torch.no_grad()
def deebert_inference(reference: Reference, batch: dict[str, torch.Tensor], tau: float) -> tuple[int, torch.Tensor]:
    """DeeBERT's highway for one row; at the last layer the final classifier answers."""
    hidden, mask = reference.embed(batch)
    for i in range(LAYERS - 1):
        hidden = reference.layer(i, hidden, mask)
        highway_logits = reference.exit(i, hidden)
        if safe_entropy(highway_logits) < tau:
            return i + 1, highway_logits
    return LAYERS, reference.exit(LAYERS - 1, reference.layer(LAYERS - 1, hidden, mask))


@families
@pytest.mark.parametrize("num_labels", [3, 2])
def test_deebert_leaves_where_its_definition_does(family: str, num_labels: int):
    ours, reference = build(family, tiny.DEEBERT, num_labels)
    rows = single_rows(family, num_labels)
    recorded = np.concatenate([tiny.all_logits(ours, row) for row in rows], axis=1)
    seen: set[int] = set()
    for tau in [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, math.log(num_labels) + 0.01]:
        answer = replay(Entropy(threshold=tau), recorded, range(1, LAYERS + 1))
        expected = [deebert_inference(reference, tiny.tensors(row), tau) for row in rows]
        assert answer.exit_layer.tolist() == [layer for layer, _ in expected]
        logits = torch.cat([logits for _, logits in expected]).numpy()
        np.testing.assert_allclose(answer.logits, logits, atol=LOGITS_TOLERANCE, rtol=0)
        seen |= set(answer.exit_layer)
    assert seen == {1, 2, 3, 4}


def plain_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross entropy of [B, C] logits, or mean squared error of [B, 1], in float64."""
    total = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        if len(row) == 1:
            total += (row[0] - float(label)) ** 2
        else:
            total += math.log(sum(math.exp(x - row.max()) for x in row)) + row.max() - row[int(label)]
    return total / len(labels)


def plain_divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Mean over rows of KL(teacher || student) between softened answers, in float64."""

    def softened(row: np.ndarray) -> np.ndarray:
        powers = np.exp((row.astype(np.float64) - row.max()) / temperature)
        return powers / powers.sum()

    pairs = [(softened(s), softened(t)) for s, t in zip(student, teacher, strict=True)]
    return float(np.mean([(t * (np.log(t) - np.log(s))).sum() for s, t in pairs]))


def loss_inputs(num_labels: int) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Logits [L, B, C] of a network (as a tensor and as an array) and labels."""
    rows = tiny.encoded(ROWS, num_labels=num_labels)
    network = tiny.network("bert", tiny.PABEE, num_labels, num_layers=LAYERS)
    logits = tiny.all_logits(network, tiny.batch(rows, range(ROWS), "bert"))
    return torch.from_numpy(logits), logits, torch.from_numpy(rows.labels)


@label_counts
def test_pabee_loss(num_labels: int):
    """Exits weighted by their depth: sum_j j * l_j / sum_j j."""
    logits, arrays, labels = loss_inputs(num_labels)
    total, weights = 0.0, 0
    for j, exit_logits in enumerate(arrays, start=1):
        total += j * plain_loss(exit_logits, labels.numpy())
        weights += j
    assert float(Pabee().loss(logits, labels)) == pytest.approx(total / weights, rel=LOSS_TOLERANCE)


@label_counts
def test_deebert_losses(num_labels: int):
    """Stage 1: the last exit's; stage 2: the unweighted sum of all others'."""
    logits, arrays, labels = loss_inputs(num_labels)
    network = tiny.network("bert", tiny.DEEBERT, num_labels, num_layers=LAYERS)
    first, second = DeeBert().stages(network, fine_tuned=False)
    expected = plain_loss(arrays[-1], labels.numpy())
    assert float(first.loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    expected = sum(plain_loss(exit_logits, labels.numpy()) for exit_logits in arrays[:-1])
    assert float(second.loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)


@label_counts
def test_self_distillation(num_labels: int):
    """Earlier exits mix their own loss with the divergence from the last (regression: the squared distance)."""
    logits, arrays, labels = loss_inputs(num_labels)
    weight, temperature = 0.3, 2.5
    losses = []
    for exit_logits in arrays[:-1]:
        if num_labels == 1:
            taught = float(np.mean((exit_logits.astype(np.float64) - arrays[-1]) ** 2))
        else:
            taught = temperature**2 * plain_divergence(exit_logits, arrays[-1], temperature)
        losses.append((1 - weight) * plain_loss(exit_logits, labels.numpy()) + weight * taught)
    losses.append(plain_loss(arrays[-1], labels.numpy()))
    distillation = Distillation(weight=weight, temperature=temperature)
    expected = sum(j * loss for j, loss in enumerate(losses, start=1)) / sum(range(1, LAYERS + 1))
    assert float(Pabee(distillation=distillation).loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    ramps = DeeBert(distillation=distillation).off_ramps_loss(logits, labels)
    assert float(ramps) == pytest.approx(sum(losses[:-1]), rel=LOSS_TOLERANCE)


def test_the_teacher_does_not_learn_from_its_pupils():
    logits, _, labels = loss_inputs(3)
    logits.requires_grad_(True)
    method = DeeBert(distillation=Distillation(weight=0.5))
    method.off_ramps_loss(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad[-1] == 0).all()
    assert (logits.grad[:-1] != 0).any()


@label_counts
def test_pabee_with_equal_weights(num_labels: int):
    logits, arrays, labels = loss_inputs(num_labels)
    expected = sum(plain_loss(exit_logits, labels.numpy()) for exit_logits in arrays) / LAYERS
    assert float(Pabee(layer_weights="uniform").loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)


def taught(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """What a student learns from a teacher: KL(teacher || student), or the squared distance in regression."""
    if student.shape[-1] == 1:
        return float(np.mean((student.astype(np.float64) - teacher) ** 2))
    return plain_divergence(student, teacher, temperature)


@label_counts
def test_romebert_loss(num_labels: int):
    """CE_L + sum_{i<L} [(1 - g) CE_i + g T^2 KL_i], g = 0.9, T = 3."""
    logits, arrays, labels = loss_inputs(num_labels)
    expected = plain_loss(arrays[-1], labels.numpy())
    for exit_logits in arrays[:-1]:
        kl = taught(exit_logits, arrays[-1], 3.0) * (9 if num_labels > 1 else 1)
        expected += 0.1 * plain_loss(exit_logits, labels.numpy()) + 0.9 * kl
    assert float(RomeBert().loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    network = tiny.network("bert", tiny.DEEBERT, num_labels, num_layers=LAYERS)
    (stage,) = RomeBert().stages(network, fine_tuned=False)
    assert stage.protected is not None
    assert float(stage.protected(logits, labels)) == pytest.approx(plain_loss(arrays[-1], labels.numpy()), rel=1e-6)


@label_counts
def test_fastbert_losses(num_labels: int):
    """Stage 1: the teacher's; stage 2: each student's divergence from the teacher, whatever the labels are."""
    logits, arrays, labels = loss_inputs(num_labels)
    network = tiny.network("bert", tiny.FASTBERT, num_labels, num_layers=LAYERS)
    first, second = FastBert().stages(network, fine_tuned=False)
    assert float(first.loss(logits, labels)) == pytest.approx(plain_loss(arrays[-1], labels.numpy()), rel=1e-6)
    expected = sum(taught(exit_logits, arrays[-1], 1.0) for exit_logits in arrays[:-1])
    assert float(second.loss(logits, labels)) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    assert torch.equal(second.loss(logits, labels), second.loss(logits, labels.flip(0)))


def test_an_attention_exit():
    """FastBERT's student, one sentence and one head at a time, over its real tokens alone."""
    network = tiny.network("bert", tiny.FASTBERT, num_layers=2)
    given, state = tiny.encoded(5), dict(network.heads[1].state_dict())
    states, mask = network.hidden_states(**tiny.tensors(tiny.batch(given, range(5), "bert")))
    logits = network.exits[1](states[1], mask)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for row, ids in enumerate(given.input_ids):
        narrow = torch.tanh(linear("down", states[1][row, : len(ids)]))
        q, k, v = (linear(name, narrow).split(64, dim=-1) for name in ("query", "key", "value"))
        heads = [torch.softmax(q[h] @ k[h].T / 8.0, dim=-1) @ v[h] for h in range(2)]
        mixed = linear("output", torch.cat(heads, dim=-1))
        answer = linear("classifier", torch.tanh(linear("dense", mixed[0])))
        np.testing.assert_allclose(logits[row].detach(), answer.detach(), atol=LOGITS_TOLERANCE, rtol=0)


def test_gradients_in_conflict():
    """By hand: against (1, 0), (-3, 2) keeps (0, 2); split over two tensors it is the same vector."""
    protected = [torch.tensor([1.0]), torch.tensor([0.0])]
    kept = without_conflict([torch.tensor([-3.0]), torch.tensor([2.0])], protected)
    assert [float(x) for x in kept] == [0.0, 2.0]
    # Against (3, 4): the inner product of (-5, 0) is -15, so 15/25 of (3, 4) is added.
    kept = without_conflict([torch.tensor([-5.0, 0.0])], [torch.tensor([3.0, 4.0])])
    assert kept[0].tolist() == pytest.approx([-3.2, 2.4])


@pytest.mark.parametrize("rest", [[2.0, -1.0], [0.0, 5.0]], ids=["along", "across"])
def test_gradients_that_agree_are_left_alone(rest: list[float]):
    assert without_conflict([torch.tensor(rest)], [torch.tensor([1.0, 0.0])])[0].tolist() == rest


def test_no_gradient_to_protect():
    assert without_conflict([torch.tensor([-1.0])], [torch.tensor([0.0])])[0].tolist() == [-1.0]
