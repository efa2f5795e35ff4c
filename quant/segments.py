"""The network cut into segments: embeddings, layers and exits, exported and quantized one by one.

No exporter takes data-dependent exits, so none is asked to: each segment is a plain feed-forward module, and programs
put the exits between them (`quant/graph.py`, `quant/programs.py`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from models.network import MultiExitNetwork

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
MAX_BATCH = 4096
Precision = Literal["float32", "bfloat16", "float16"]
# Exported graphs of a network's segments, by structure.
Graphs: TypeAlias = dict[str, torch.fx.GraphModule]


class Embeddings(nn.Module):
    """Three [B, T] int64 arrays -> hidden [B, T, H] and additive mask [B, 1, 1, T]."""

    def __init__(self, network: MultiExitNetwork):
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network.embed(input_ids, attention_mask, token_type_ids)


class Layer(nn.Module):
    """Hidden [B, T, H] and mask [B, 1, 1, T] -> hidden [B, T, H]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden, mask)


@dataclass(frozen=True)
class Segments:
    """A network in pieces, ready for an engine.

    Attributes:
        embeddings: module over the three integer inputs.
        layers: L modules; a shared layer (ALBERT) is one object L times.
        exits: L modules, hidden and mask -> logits [B, C].
        hidden_size, num_labels, max_length: H, C and the longest input.
        int8: whether matrix products are quantized: as quantize / dequantize pairs in the modules, unless `native`.
        native: the engine is to quantize them, and how.
        calibration: int64 inputs [1, T] of single rows, for a native static quantizer.
        rest: the precision of everything that is not INT8.
    """

    embeddings: nn.Module
    layers: list[nn.Module]
    exits: list[nn.Module]
    hidden_size: int
    num_labels: int
    max_length: int
    int8: bool = False
    rest: Precision = "float32"
    native: Literal["static", "dynamic"] | None = None
    calibration: Sequence[dict[str, np.ndarray]] = ()

    def named(self) -> dict[str, nn.Module]:
        """Layers, then exits, by name: `layer_1`.., `exit_1`..; a shared layer has a name for each of its depths."""
        named = {f"layer_{i}": layer for i, layer in enumerate(self.layers, start=1)}
        return named | {f"exit_{i}": exit_ for i, exit_ in enumerate(self.exits, start=1)}

    def with_rest(self, rest: Precision) -> "Segments":
        """The same segments, asking the engine for another precision."""
        return replace(self, rest=rest)

    def example_ids(self) -> tuple[torch.Tensor, ...]:
        """Inputs of the embeddings for export: batch and length above 1, or exporters fix them.

        Three tensors, not one three times: exporters merge inputs that are the same object.
        """
        ids = torch.ones(2, min(8, self.max_length), dtype=torch.int64)
        return ids, ids.clone(), torch.zeros_like(ids)

    def example_hidden(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of a layer or exit for export."""
        length = min(8, self.max_length)
        return torch.randn(2, length, self.hidden_size), torch.zeros(2, 1, 1, length)

    def dynamic_ids(self) -> tuple[dict[int, torch.export.Dim], ...]:
        """Which dimensions of `example_ids` are dynamic."""
        batch, length = self._dims()
        return ({0: batch, 1: length},) * 3

    def dynamic_hidden(self) -> tuple[dict[int, torch.export.Dim], ...]:
        """Which dimensions of `example_hidden` are dynamic."""
        batch, length = self._dims()
        return {0: batch, 1: length}, {0: batch, 3: length}

    def _dims(self) -> tuple[torch.export.Dim, torch.export.Dim]:
        return torch.export.Dim("batch", min=1, max=MAX_BATCH), torch.export.Dim("length", min=2, max=self.max_length)


class Whole(nn.Module):
    """Embeddings, the first layers and one exit in a row: the network without exits, or truncated."""

    def __init__(self, segments: Segments, layer: int):
        super().__init__()
        self.embeddings, self.exit = segments.embeddings, segments.exits[layer - 1]
        self.steps = segments.layers[:layer]

    def forward(self, *ids: torch.Tensor) -> torch.Tensor:
        hidden, mask = self.embeddings(*ids)
        for step in self.steps:
            hidden = step(hidden, mask)
        return self.exit(hidden, mask)


def of_one_structure(module: nn.Module, graphs: Graphs, export: Callable[[], Any]) -> torch.fx.GraphModule:
    """A segment's graph, exported unless one of its structure stands in `graphs`.

    Graphs of one structure differ in their weights alone and, where they are quantized, in the scales and zero points
    of activations, which are numbers in the graph.
    """
    quantized = isinstance(module, torch.fx.GraphModule)
    structure = "\n".join(f"{node.op} {node.target}" for node in module.graph.nodes) if quantized else repr(module)
    if structure not in graphs:
        graphs[structure] = export()
    graph = copy.deepcopy(graphs[structure])
    graph.load_state_dict(module.state_dict())
    if quantized:
        for node, given in zip(_with_scales(graph), _with_scales(module), strict=True):
            node.args = (node.args[0], *given.args[1:])
    return graph


def _with_scales(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The nodes that quantize activations, and back."""
    ops = torch.ops.quantized_decomposed
    kinds = {ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default}
    return [node for node in graph.graph.nodes if node.target in kinds]


def op_name(path: str) -> str:
    """A module's path inside its segment, such as `attention.self.query`: what users and records call an op."""
    return path.removeprefix("layer.")


def cut(network: MultiExitNetwork) -> Segments:
    """Cut a network (in evaluation mode) into float32 segments that share its parameters."""
    wrapped: dict[int, Layer] = {}
    for layer in network.layers:
        wrapped.setdefault(id(layer), Layer(layer).eval())
    config = network.backbone.config
    # RoBERTa's table of positions begins after its padding index.
    first = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return Segments(
        embeddings=Embeddings(network).eval(),
        layers=[wrapped[id(layer)] for layer in network.layers],
        exits=[exit_.eval() for exit_ in network.exits],
        hidden_size=config.hidden_size,
        num_labels=network.num_labels,
        max_length=config.max_position_embeddings - first,
    )
