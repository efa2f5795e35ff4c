"""How exits are trained: the methods, each with its configuration and its loss, over the logits of all exits.

A method is a list of stages. A stage names the parameters that learn and the loss over logits [L, B, C] and labels [B].
A new method is one class here and its place in `Method`.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from models.config import Config
from models.network import ExitsConfig, MultiExitNetwork, Pooling

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StageConfig(Config):
    """How one stage learns.

    Attributes:
        epochs: passes over `fit`.
        exits_learning_rate: of everything outside the backbone, where it is not `learning_rate`.
        warmup: share of the steps over which the learning rate rises; it falls linearly from there.
        evaluations_per_epoch: how often `select` is scored (and a resumable state is saved).
        patience: evaluations without a better score on `select` before the stage stops early.
    """

    epochs: float = Field(default=5.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    exits_learning_rate: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    evaluations_per_epoch: int = Field(default=2, ge=1)
    patience: int = Field(default=6, ge=1)


class TrainConfig(StageConfig):
    """A fine-tuning run: its main stage, and what all stages read.

    Attributes:
        max_seq_length: tokens a row is cut to.
        max_rows: read the first rows of `fit` and of `select` only (smoke runs).
    """

    max_seq_length: int = Field(default=128, ge=8)
    max_rows: int | None = Field(default=None, ge=1)


class Distillation(Config):
    """Self-distillation: every earlier exit also learns the last exit's probabilities at `temperature`."""

    weight: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=2.0, gt=0)


class Stage(NamedTuple):
    """One stage of a method.

    Attributes:
        name: for files and curves.
        train: the stage's configuration, or None for the run's own.
        parameters: the modules that learn; everything else is frozen, and runs without dropout.
        cached_features: the backbone is frozen and the exits read pooled vectors, so those are computed once.
        loss: logits [L, B, C] and labels [B] -> scalar.
        scored: the exits (0-based) whose mean score on `select` picks the best state.
        protected: a part of `loss` whose gradient on the backbone the rest must not oppose (`without_conflict`).
    """

    name: str
    train: StageConfig | None
    parameters: list[nn.Module]
    cached_features: bool
    loss: Loss
    scored: list[int]
    protected: Loss | None = None


def row_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of [B, C] logits, or mean squared error where C is 1."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1).float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


def divergence(logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(teacher || student) of [B, C] logits at a temperature, mean over rows; squared error where C is 1."""
    if teacher.shape[-1] == 1:
        return F.mse_loss(logits.float(), teacher.float())
    return temperature**2 * F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(teacher.float() / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )


def distilled(logits: torch.Tensor, labels: torch.Tensor, distillation: Distillation | None) -> list[torch.Tensor]:
    """The loss of each exit, earlier ones mixed with the divergence from the last exit (detached)."""
    losses = [row_loss(exit_logits, labels) for exit_logits in logits]
    if distillation is None:
        return losses
    weight, temperature, teacher = distillation.weight, distillation.temperature, logits[-1].detach()
    early = [
        (1 - weight) * loss + weight * divergence(exit_logits, teacher, temperature)
        for loss, exit_logits in zip(losses[:-1], logits[:-1], strict=True)
    ]
    return [*early, losses[-1]]


def without_conflict(rest: list[torch.Tensor], protected: list[torch.Tensor]) -> list[torch.Tensor]:
    """`rest` less its part that points against `protected`: two gradients, each a list of tensors read as one vector.

    Where their inner product is negative, `rest` is projected onto the plane normal to `protected`; else it is returned
    as it is (gradient regularization: Geng et al. 2021, section 3.3).
    """
    inner = sum((r * p).sum() for r, p in zip(rest, protected, strict=True))
    norm = sum((p * p).sum() for p in protected)
    share = torch.clamp(torch.as_tensor(inner / norm), max=0.0).nan_to_num()
    return [r - share * p for r, p in zip(rest, protected, strict=True)]


class Classifier(Config):
    """Plain fine-tuning of the backbone and the last exit; the exits before it stay untrained and are never used.

    What early exit is measured against: a whole network, or one with fewer layers, that never shared its training.
    """

    kind: Literal["classifier"] = "classifier"
    pooling: Pooling = "first_token"

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(pooling=self.pooling)

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """The one stage, or none over a classifier that is already `fine_tuned`."""
        return [] if fine_tuned else [classifier_stage(network)]


class Pabee(Config):
    """PABEE (Zhou et al. 2020, section 3.3): one joint stage, exits weighted by their depth.

    The reference is a shared pooler over the first token, weights by depth, without distillation: the defaults.
    """

    kind: Literal["pabee"] = "pabee"
    pooling: Pooling = "first_token"
    pooler: Literal["shared", "per_exit"] = "shared"
    layer_weights: Literal["depth", "uniform"] = "depth"
    distillation: Distillation | None = None

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(pooling=self.pooling, pooler=self.pooler)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """sum_j w_j * l_j / sum_j w_j, where w_j is j or 1."""
        losses = torch.stack(distilled(logits, labels, self.distillation))
        depth = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
        weights = depth if self.layer_weights == "depth" else torch.ones_like(depth)
        return (weights * losses).sum() / weights.sum()

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """The one joint stage; `fine_tuned` starts it from a classifier instead of a pre-trained backbone."""
        return [Stage("joint", None, [network], False, self.loss, [network.num_layers - 1])]


class DeeBert(Config):
    """DeeBERT (Xin et al. 2020, section 3): fine-tune the whole network, then its off-ramps with all else frozen.

    Attributes:
        off_ramps: the second stage. The reference trains it like the first; on cached features more epochs at a higher
            learning rate cost seconds.
    """

    kind: Literal["deebert"] = "deebert"
    pooling: Literal["first_token", "mean"] = "first_token"
    distillation: Distillation | None = None
    off_ramps: StageConfig = StageConfig(epochs=3.0, batch_size=8)

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(pooling=self.pooling, pooler="per_exit")

    def off_ramps_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Stage 2: the unweighted sum over the exits before the last."""
        return torch.stack(distilled(logits, labels, self.distillation)[:-1]).sum()

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """Both stages, or the second alone over a classifier that is already `fine_tuned`."""
        early = list(range(network.num_layers - 1))
        second = Stage("off_ramps", self.off_ramps, network.exits[:-1], True, self.off_ramps_loss, early)
        return [second] if fine_tuned else [classifier_stage(network), second]


class FastBert(Config):
    """FastBERT (Liu et al. 2020, section 3.2): a fine-tuned teacher, then students distilled with all else frozen.

    Every exit is a `models.network.AttentionExit`; the last one is the teacher. The paper writes the divergence the
    other way round, KL(student || teacher); this is its published code's, KL(teacher || student). The second stage
    reads no labels.

    Attributes:
        students: the second stage; the reference runs it longer than the first.
    """

    kind: Literal["fastbert"] = "fastbert"
    pooling: Literal["first_token", "mean"] = "first_token"
    students: StageConfig = StageConfig(epochs=5.0)

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(head="attention", pooling=self.pooling, pooler="per_exit")

    def students_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Stage 2: the unweighted sum of each student's divergence from the teacher."""
        return torch.stack([divergence(student, logits[-1].detach()) for student in logits[:-1]]).sum()

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """The teacher's fine-tuning, then the students' distillation."""
        early = list(range(network.num_layers - 1))
        second = Stage("students", self.students, network.exits[:-1], False, self.students_loss, early)
        return [classifier_stage(network), second]


class RomeBert(Config):
    """RomeBERT (Geng et al. 2021, section 3): one joint stage of gradient-regularized self-distillation.

    The exits are DeeBERT's. On the backbone, the gradient of the earlier exits' losses loses whatever part of it points
    against the gradient of the last exit's. (The published code leaves biases, layer norms and the last layer out of
    that, and for small tasks swaps the two roles.)
    """

    kind: Literal["romebert"] = "romebert"
    pooling: Pooling = "first_token"
    distillation: Distillation = Distillation(weight=0.9, temperature=3.0)
    gradient_regularization: bool = True

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(pooling=self.pooling, pooler="per_exit")

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """CE_L + sum_{i<L} [(1 - g) CE_i + g T^2 KL_i]."""
        return torch.stack(distilled(logits, labels, self.distillation)).sum()

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """The one joint stage; `fine_tuned` starts it from a classifier instead of a pre-trained backbone."""
        protected = last_loss if self.gradient_regularization else None
        return [Stage("joint", None, [network], False, self.loss, [network.num_layers - 1], protected)]


def last_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of the last exit alone."""
    return row_loss(logits[-1], labels)


def classifier_stage(network: MultiExitNetwork) -> Stage:
    """Plain fine-tuning: the backbone and the last exit."""
    parameters = [network.backbone, network.exits[-1]]
    return Stage("classifier", None, parameters, False, last_loss, [network.num_layers - 1])


Method = Annotated[Classifier | Pabee | DeeBert | FastBert | RomeBert, Field(discriminator="kind")]
