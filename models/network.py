"""The multi-exit network: a backbone from `transformers` with an exit after every layer."""

import math
from itertools import zip_longest
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from models.config import Config
from models.families import family_of

# Added to the attention scores of padding. exp(-1e4) is zero in every number format in use, and unlike the smallest
# float32 it survives bfloat16 and leaves no room for infinities when masks are added.
MASKED = -1e4

Pooling = Literal["first_token", "mean", "attention"]


class ExitsConfig(Config):
    """What an exit is made of.

    Attributes:
        head: `pooler` (linear, tanh, classifier, as PABEE and DeeBERT have) or `attention` (FastBERT's student).
        pooling: what a vector is made from: the first token (as the references do), the mean over the tokens, or their
            mean by weights that each exit learns (attention pooling: Yang et al. 2016, section 2.2, without its
            hidden layer).
        pooler: for head `pooler`, one pooler for all exits (PABEE) or one each (DeeBERT); attention heads are never
            shared.
    """

    head: Literal["pooler", "attention"] = "pooler"
    pooling: Pooling = "first_token"
    pooler: Literal["shared", "per_exit"] = "shared"

    @model_validator(mode="after")
    def _queries_for_poolers_alone(self) -> Self:
        if (self.head, self.pooling) == ("attention", "attention"):
            raise ValueError("pooling: attention is for head pooler; attention heads pool first_token or mean")
        return self


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling, query: torch.Tensor | None = None) -> torch.Tensor:
    """Hidden [B, T, H], additive mask [B, 1, 1, T] and, for pooling attention, a query [H] -> [B, H]."""
    if pooling == "first_token":
        return hidden[:, 0]
    # For the mean, each of n tokens weighs exp(0) / n and the padding nothing: half the operations of counting them.
    scores = mask.squeeze(1)
    if query is not None:
        # No matrix product, which would be quantized: the weights are an exit's most sensitive numbers.
        scores = scores + (hidden * query).sum(dim=-1).unsqueeze(1)
    # Squeezed by itself: OpenVINO 2026.4 fuses what follows a sum that drops its dimension, and scales of channels with
    # it (`quant/smoothing.py`), and then takes the wrong ones for all rows of a batch but the first.
    return (hidden * torch.softmax(scores, dim=-1).transpose(1, 2)).sum(dim=1, keepdim=True).squeeze(1)


class Exit(nn.Module):
    """Pooler (linear and tanh), dropout and classifier: hidden [B, T, H] and mask [B, 1, 1, T] -> logits [B, C]."""

    def __init__(
        self,
        pooler: nn.Linear,
        dropout: nn.Dropout,
        classifier: nn.Linear,
        pooling: Pooling,
        query: nn.Parameter | None = None,
    ):
        super().__init__()
        self.pooler, self.dropout, self.classifier = pooler, dropout, classifier
        self.pooling: Pooling = pooling
        self.query = query

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, H], what the pooler reads."""
        return pool(hidden, mask, self.pooling, self.query)

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[B, H] -> [B, C]."""
        return self.classifier(self.dropout(torch.tanh(self.pooler(pooled))))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.classify(self.pool(hidden, mask))


class AttentionExit(nn.Module):
    """FastBERT's student (Liu et al. 2020, section 3.1.3): the tokens, made narrow, attend to each other once more.

    Down-projection to `WIDTH` and tanh, one self-attention of `HEADS` heads, pooling, linear and tanh, classifier:
    hidden [B, T, H] and mask [B, 1, 1, T] -> logits [B, C].
    """

    WIDTH, HEADS = 128, 2

    def __init__(self, hidden_size: int, num_labels: int, dropout: float, pooling: Pooling):
        super().__init__()
        self.down = nn.Linear(hidden_size, self.WIDTH)
        self.pooling: Pooling = pooling
        self.query, self.key, self.value, self.output, self.dense = (
            nn.Linear(self.WIDTH, self.WIDTH) for _ in range(5)
        )
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(self.WIDTH, num_labels)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        narrow = torch.tanh(self.down(hidden))

        def heads(projection: nn.Linear) -> torch.Tensor:
            return projection(narrow).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)

        # Written out: OpenVINO 2026.4's fused attention answers wrongly here in bfloat16.
        scores = heads(self.query) @ heads(self.key).transpose(-1, -2) / math.sqrt(self.WIDTH / self.HEADS) + mask
        mixed = self.output((torch.softmax(scores, dim=-1) @ heads(self.value)).transpose(1, 2).flatten(-2))
        pooled = pool(mixed, mask, self.pooling)
        return self.classifier(self.dropout(torch.tanh(self.dense(pooled))))


def exit_dropout(config: PreTrainedConfig) -> float:
    """What the family's own classifiers drop: ALBERT's configuration has a number for it, those of the others may."""
    own = [getattr(config, name, None) for name in ("classifier_dropout_prob", "classifier_dropout")]
    return next((share for share in own if share is not None), config.hidden_dropout_prob)


class MultiExitNetwork(nn.Module):
    """A backbone with an exit after each of its L layers.

    Poolers start from the backbone's pre-trained pooler where it has one. Each parameter is registered once, so that
    the state dict holds shared layers (ALBERT) and a shared pooler (PABEE) a single time.
    """

    def __init__(self, backbone: PreTrainedModel, exits: ExitsConfig, num_labels: int):
        super().__init__()
        config = backbone.config
        self.family = family_of(backbone)
        self.exits_config, self.num_labels = exits, num_labels
        self.num_layers: int = config.num_hidden_layers
        pretrained = self.family.pooler(backbone)
        backbone.pooler = None  # pyright: ignore[reportArgumentType]
        self.backbone = backbone
        dropout = exit_dropout(config)
        self.dropout = nn.Dropout(dropout)
        with_pooler = exits.head == "pooler"
        poolers = (1 if exits.pooler == "shared" else self.num_layers) if with_pooler else 0
        self.poolers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(poolers))
        self.classifiers = nn.ModuleList(
            nn.Linear(config.hidden_size, num_labels) for _ in range(self.num_layers if with_pooler else 0)
        )
        # Nothing stands out at first: of zeros, the weights are those of the mean.
        self.queries = nn.ParameterList(
            torch.zeros(config.hidden_size) for _ in range(self.num_layers if exits.pooling == "attention" else 0)
        )
        self.heads = nn.ModuleList(
            AttentionExit(config.hidden_size, num_labels, dropout, exits.pooling)
            for _ in range(0 if with_pooler else self.num_layers)
        )
        if pretrained is not None:
            for pooler in self.poolers:
                pooler.load_state_dict(pretrained.state_dict())
        for classifier in self.classifiers:
            nn.init.normal_(classifier.weight, std=config.initializer_range)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(classifier.bias)  # pyright: ignore[reportArgumentType]

    @property
    def exits(self) -> list[nn.Module]:
        """The L exits in order, as modules over the registered parameters."""
        if self.exits_config.head == "attention":
            return list(self.heads)
        pooling = self.exits_config.pooling
        return [
            Exit(self.poolers[i % len(self.poolers)], self.dropout, classifier, pooling, query)  # pyright: ignore
            for i, (classifier, query) in enumerate(zip_longest(self.classifiers, self.queries))
        ]

    @property
    def layers(self) -> list[nn.Module]:
        """The L layers in order; a shared layer (ALBERT) appears L times."""
        return self.family.layers(self.backbone)

    def embed(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Three [B, T] int64 arrays -> hidden [B, T, H] and additive mask [B, 1, 1, T]."""
        hidden = self.family.embed(self.backbone, input_ids, token_type_ids)
        mask = (1.0 - attention_mask.to(hidden.dtype))[:, None, None, :] * MASKED
        return hidden, mask

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The hidden state after each layer (L of [B, T, H]) and the additive mask."""
        hidden, mask = self.embed(input_ids, attention_mask, token_type_ids)
        states = []
        for layer in self.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        return states, mask

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Logits of every exit, [L, B, C]."""
        states, mask = self.hidden_states(input_ids, attention_mask, token_type_ids)
        return torch.stack([exit_(hidden, mask) for exit_, hidden in zip(self.exits, states, strict=True)])
