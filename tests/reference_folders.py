"""Folders as the references' scripts leave them: their keys are listed here by hand, and their forward pass is written
out once more. Nothing here is ours.
"""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from torch.nn import functional as F

State = dict[str, torch.Tensor]

LAYERS, HIDDEN, HEADS, INNER, POSITIONS, NARROW = 3, 16, 2, 24, 132, 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "Fine", "film", "##s", ".", "dull"]
CLASSES = {
    ("pabee", "bert"): "BertForSequenceClassificationWithPabee",
    ("pabee", "albert"): "AlbertForSequenceClassificationWithPabee",
    ("deebert", "bert"): "DeeBertForSequenceClassification",
    ("deebert", "roberta"): "DeeRobertaForSequenceClassification",
}


# --- the layouts, by hand ---------------------------------------------------------------------------------------------


def linear(name: str, inputs: int, outputs: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}


def norm(name: str, width: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def embeddings(family: str, width: int) -> dict[str, list[int]]:
    name = f"{family}.embeddings"
    return {
        f"{name}.position_ids": [1, POSITIONS],
        f"{name}.word_embeddings.weight": [len(WORDS), width],
        f"{name}.position_embeddings.weight": [POSITIONS, width],
        f"{name}.token_type_embeddings.weight": [1 if family == "roberta" else 2, width],
        **norm(f"{name}.LayerNorm", width),
    }


def encoder(family: str, layers: int) -> dict[str, list[int]]:
    shapes = {}
    if family == "albert":
        shapes |= linear("albert.encoder.embedding_hidden_mapping_in", NARROW, HIDDEN)
        layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
        shapes |= norm(f"{layer}.full_layer_layer_norm", HIDDEN)
        for part in ("query", "key", "value", "dense"):
            shapes |= linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        shapes |= norm(f"{layer}.attention.LayerNorm", HIDDEN)
        shapes |= linear(f"{layer}.ffn", HIDDEN, INNER)
        shapes |= linear(f"{layer}.ffn_output", INNER, HIDDEN)
        return shapes
    for i in range(layers):
        layer = f"{family}.encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", HIDDEN)
        shapes |= linear(f"{layer}.intermediate.dense", HIDDEN, INNER)
        shapes |= linear(f"{layer}.output.dense", INNER, HIDDEN)
        shapes |= norm(f"{layer}.output.LayerNorm", HIDDEN)
    return shapes


def keys(layout: str, family: str, num_labels: int, layers: int) -> dict[str, list[int]]:
    """Every name and shape of a state dict of the reference's class."""
    shapes = embeddings(family, NARROW if family == "albert" else HIDDEN) | encoder(family, layers)
    if layout == "deebert":
        for i in range(layers):
            shapes |= linear(f"{family}.encoder.highway.{i}.pooler.dense", HIDDEN, HIDDEN)
            shapes |= linear(f"{family}.encoder.highway.{i}.classifier", HIDDEN, num_labels)
    shapes |= linear("albert.pooler" if family == "albert" else f"{family}.pooler.dense", HIDDEN, HIDDEN)
    if layout == "deebert":
        return shapes | linear("classifier", HIDDEN, num_labels)
    for i in range(layers):
        shapes |= linear(f"classifiers.{i}", HIDDEN, num_labels)
    return shapes


def random_state(layout: str, family: str, num_labels: int, layers: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in keys(layout, family, num_labels, layers).items():
        around = 1.0 if re.search(r"layer_?norm\.weight", name, re.IGNORECASE) else 0.0
        state[name] = around + 0.4 * torch.randn(shape, generator=generator)
    return state | {f"{family}.embeddings.position_ids": torch.arange(POSITIONS)[None]}


def configuration(layout: str, family: str, num_labels: int, task: str | None, layers: int = LAYERS) -> dict[str, Any]:
    """As version 3.5.1 writes it, with keys that nobody reads any more."""
    config: dict[str, Any] = {
        "architectures": [CLASSES[layout, family]],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu_new" if family == "albert" else "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "layer_norm_eps": 1e-5 if family == "roberta" else 1e-12,
        "max_position_embeddings": POSITIONS,
        "model_type": family,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "pad_token_id": 1 if family == "roberta" else 0,
        "type_vocab_size": 1 if family == "roberta" else 2,
        "vocab_size": len(WORDS),
    }
    if task is not None:
        config["finetuning_task"] = task
    if num_labels != 2:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(num_labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(num_labels)}
    return config | ({"embedding_size": NARROW, "num_hidden_groups": 1} if family == "albert" else {})


def write_tokenizer(folder: Path, family: str) -> None:
    if family == "roberta":
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "Ġa", "Ġb", "ab", "."]
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
        (folder / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ b\na b\n")
    elif family == "albert":
        (folder / "spiece.model").write_bytes(sentence_pieces())
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": False, "model_max_length": POSITIONS})
        )


def sentence_pieces() -> bytes:
    """A small vocabulary of sentencepiece, with the ids of ALBERT's special pieces."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a fine film", "a dull film", "fine"] * 8),
        model_writer=written,
        vocab_size=16,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    return written.getvalue()


def write(
    folder: Path, layout: str, family: str, num_labels: int = 2, task: str | None = "mrpc", layers: int = LAYERS
) -> State:
    """A folder as the reference leaves it."""
    folder.mkdir()
    state = random_state(layout, family, num_labels, layers)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(configuration(layout, family, num_labels, task, layers)))
    write_tokenizer(folder, family)
    return state


# --- their forward pass, by hand --------------------------------------------------------------------------------------


def apply(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: State, name: str, x: torch.Tensor, family: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = torch.sqrt((centred**2).mean(-1, keepdim=True) + (1e-5 if family == "roberta" else 1e-12))
    return centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]


def attended(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Attention of one sentence [T, H] without padding."""
    q, k, v = (apply(state, f"{name}.{part}", x).split(HIDDEN // HEADS, dim=-1) for part in ("query", "key", "value"))
    scale = math.sqrt(HIDDEN // HEADS)
    return torch.cat([torch.softmax(q[h] @ k[h].T / scale, dim=-1) @ v[h] for h in range(HEADS)], dim=-1)


def after_layer(state: State, family: str, i: int, x: torch.Tensor) -> torch.Tensor:
    if family == "albert":
        layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
        mixed = apply(state, f"{layer}.attention.dense", attended(state, f"{layer}.attention", x))
        x = normed(state, f"{layer}.attention.LayerNorm", x + mixed, family)
        wide = F.gelu(apply(state, f"{layer}.ffn", x), approximate="tanh")
        return normed(state, f"{layer}.full_layer_layer_norm", x + apply(state, f"{layer}.ffn_output", wide), family)
    layer = f"{family}.encoder.layer.{i}"
    mixed = apply(state, f"{layer}.attention.output.dense", attended(state, f"{layer}.attention.self", x))
    x = normed(state, f"{layer}.attention.output.LayerNorm", x + mixed, family)
    wide = F.gelu(apply(state, f"{layer}.intermediate.dense", x))
    return normed(state, f"{layer}.output.LayerNorm", x + apply(state, f"{layer}.output.dense", wide), family)


def forward(
    state: State, layout: str, family: str, ids: list[int], types: list[int], layers: int = LAYERS
) -> torch.Tensor:
    """The logits of every exit for one sentence, [L, C]; DeeBERT's last exit is its final classifier."""
    name, first = f"{family}.embeddings", 2 if family == "roberta" else 0
    x = state[f"{name}.word_embeddings.weight"][ids]
    x = x + state[f"{name}.position_embeddings.weight"][first : first + len(ids)]
    x = x + state[f"{name}.token_type_embeddings.weight"][[0] * len(ids) if family == "roberta" else types]
    x = normed(state, f"{name}.LayerNorm", x, family)
    if family == "albert":
        x = apply(state, "albert.encoder.embedding_hidden_mapping_in", x)
    pooler = "albert.pooler" if family == "albert" else f"{family}.pooler.dense"
    logits = []
    for i in range(layers):
        x = after_layer(state, family, i, x)
        classifier, pooled = f"classifiers.{i}", pooler
        if layout == "deebert":
            off_ramp, last = f"{family}.encoder.highway.{i}", i == layers - 1
            classifier, pooled = (
                ("classifier", pooler) if last else (f"{off_ramp}.classifier", f"{off_ramp}.pooler.dense")
            )
        logits.append(apply(state, classifier, torch.tanh(apply(state, pooled, x[0]))))
    return torch.stack(logits)
