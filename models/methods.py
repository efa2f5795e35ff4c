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
from models.network import ExitsConfig, MultiExitNetwork

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StageConfig(Config):
    """How one stage learns.

    Attributes:
        epochs: passes over `fit`.
        warmup: share of the steps over which the learning rate rises; it falls linearly from there.
        evaluations_per_epoch: how often `select` is scored (and a resumable state is saved).
        patience: evaluations without a better score on `select` before the stage stops early.
    """

    epochs: float = Field(default=5.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    evaluations_per_epoch: int = Field(default=2, ge=1)
    patience: int = Field(default=6, ge=1)


class TrainConfig(StageConfig):
    """A fine-tuning run: its main stage, and what all stages read.

    Attributes:
        max_seq_length: tokens a row is cut to.
        max_rows: train on the first rows of `fit` only (smoke runs).
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
        parameters: the modules that learn; everything else is frozen.
        frozen_features: the backbone is frozen, so the poolers' inputs are computed once and cached.
        loss: logits [L, B, C] and labels [B] -> scalar.
        scored: the exits (0-based) whose mean score on `select` picks the best state.
    """

    name: str
    train: StageConfig | None
    parameters: list[nn.Module]
    frozen_features: bool
    loss: Loss
    scored: list[int]


def row_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of [B, C] logits, or mean squared error where C is 1."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1).float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


def distilled(logits: torch.Tensor, labels: torch.Tensor, distillation: Distillation | None) -> list[torch.Tensor]:
    """The loss of each exit, earlier ones mixed with the divergence from the last exit's answer (detached)."""
    losses = [row_loss(exit_logits, labels) for exit_logits in logits]
    if distillation is None:
        return losses
    weight, temperature, teacher = distillation.weight, distillation.temperature, logits[-1].detach().float()

    def taught(exit_logits: torch.Tensor) -> torch.Tensor:
        if teacher.shape[-1] == 1:
            return F.mse_loss(exit_logits.float(), teacher)
        return temperature**2 * F.kl_div(
            F.log_softmax(exit_logits.float() / temperature, dim=-1),
            F.log_softmax(teacher / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )

    early = [(1 - weight) * loss + weight * taught(x) for loss, x in zip(losses[:-1], logits[:-1], strict=True)]
    return [*early, losses[-1]]


class Pabee(Config):
    """PABEE (Zhou et al. 2020, section 3.3): one joint stage, exits weighted by their depth.

    The reference is a shared pooler over the first token, without distillation: the defaults.
    """

    kind: Literal["pabee"] = "pabee"
    pooling: Literal["first_token", "mean"] = "first_token"
    pooler: Literal["shared", "per_exit"] = "shared"
    distillation: Distillation | None = None

    @property
    def exits(self) -> ExitsConfig:
        return ExitsConfig(pooling=self.pooling, pooler=self.pooler)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """sum_j j * l_j / sum_j j."""
        losses = torch.stack(distilled(logits, labels, self.distillation))
        weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
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

    def last_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Stage 1: the final classifier alone."""
        return row_loss(logits[-1], labels)

    def off_ramps_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Stage 2: the unweighted sum over the exits before the last."""
        return torch.stack(distilled(logits, labels, self.distillation)[:-1]).sum()

    def stages(self, network: MultiExitNetwork, fine_tuned: bool) -> list[Stage]:
        """Both stages, or the second alone over a classifier that is already `fine_tuned`."""
        last = network.num_layers - 1
        whole = [network.backbone, network.poolers[last], network.classifiers[last]]
        ramps = [*network.poolers[:last], *network.classifiers[:last]]
        first = Stage("classifier", None, whole, False, self.last_loss, [last])
        second = Stage("off_ramps", self.off_ramps, ramps, True, self.off_ramps_loss, list(range(last)))
        return [second] if fine_tuned else [first, second]


Method = Annotated[Pabee | DeeBert, Field(discriminator="kind")]
