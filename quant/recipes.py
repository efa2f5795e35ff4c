"""Which numbers a network runs in: each recipe is inert configuration, applied to segments by `apply_recipe`.

INT8 comes from Neural Compressor 3.x post-training static quantization: every segment is exported, observed on
calibration rows and converted to a graph of quantize / dequantize pairs, which engines lower to real INT8 kernels.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import nn

from models.config import Config
from models.data import Rows
from models.encoding import collate, encode
from models.network import MultiExitNetwork
from quant.segments import INPUT_NAMES, Segments, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Float32(Config):
    """Everything in float32."""

    kind: Literal["float32"] = "float32"


class Bfloat16(Config):
    """Matrix products in bfloat16; policies stay in float32."""

    kind: Literal["bfloat16"] = "bfloat16"


class Int8Static(Config):
    """Neural Compressor static INT8: per-channel weights, per-tensor activations with observed ranges.

    Attributes:
        observer: how activation ranges are found.
        calibration_rows: rows of `fit`, chosen by `seed`, each run alone so that no padding enters the ranges.
        rest: precision of what is not quantized.
    """

    kind: Literal["int8_static"] = "int8_static"
    observer: Literal["minmax", "kl"] = "minmax"
    calibration_rows: int = Field(default=128, ge=1)
    seed: int = Field(default=42, ge=0)
    rest: Literal["float32", "bfloat16"] = "float32"


Recipe = Annotated[
    Annotated[Float32 | Bfloat16 | Int8Static, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=Any),
]


def calibration_indices(recipe: Int8Static, fit_rows: int) -> np.ndarray:
    """Which rows of `fit` calibrate: drawn without replacement by the recipe's seed, in ascending order."""
    rows = min(recipe.calibration_rows, fit_rows)
    return np.sort(np.random.default_rng(recipe.seed).choice(fit_rows, size=rows, replace=False))


def calibration_inputs(
    recipe: Recipe, fit: Rows | None, tokenizer: "PreTrainedTokenizerFast", max_seq_length: int, pad_token_id: int
) -> list[dict[str, np.ndarray]]:
    """What `apply_recipe` calibrates on: the padded inputs of each row, or nothing where the recipe needs nothing."""
    if not isinstance(recipe, Int8Static):
        return []
    assert fit is not None, "an INT8 recipe calibrates on the task's rows"
    rows = encode(fit.take(calibration_indices(recipe, len(fit)).tolist()), tokenizer, max_seq_length)
    return [collate(rows, [row], pad_token_id, "longest", max_seq_length) for row in range(len(rows))]


def apply_recipe(
    recipe: Recipe, network: MultiExitNetwork, calibration: Sequence[dict[str, np.ndarray]] = ()
) -> Segments:
    """Cut the network and turn its segments into the recipe's numbers.

    Args:
        recipe: the numbers.
        network: in evaluation mode; its parameters are shared by the float recipes and copied by INT8.
        calibration: int64 inputs [1, T] of single rows; only int8_static reads them.
    """
    segments = cut(network)
    match recipe:
        case Float32():
            return segments
        case Bfloat16():
            return segments.with_rest("bfloat16")
        case Int8Static():
            return _int8_static(recipe, network, segments, calibration)


def _int8_static(
    recipe: Int8Static, network: MultiExitNetwork, segments: Segments, calibration: Sequence[dict[str, np.ndarray]]
) -> Segments:
    """Quantize every layer and exit over the float activations that reach it.

    A shared layer is observed over the inputs of all its depths and converted once. Embeddings hold look-ups, which
    static quantization leaves as they are.
    """
    layer_inputs: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    exit_inputs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in segments.exits]
    with torch.no_grad():
        for row in calibration:
            hidden, mask = network.embed(*(torch.from_numpy(row[name]) for name in INPUT_NAMES))
            for i, layer in enumerate(segments.layers):
                layer_inputs.setdefault(id(layer), []).append((hidden, mask))
                hidden = layer(hidden, mask)
                exit_inputs[i].append((hidden, mask))
    layers: dict[int, nn.Module] = {}
    for layer in segments.layers:
        if id(layer) not in layers:
            layers[id(layer)] = _quantize(recipe, segments, layer, layer_inputs.pop(id(layer)))
    exits = [
        _quantize(recipe, segments, exit_, inputs) for exit_, inputs in zip(segments.exits, exit_inputs, strict=True)
    ]
    return replace(
        segments, layers=[layers[id(layer)] for layer in segments.layers], exits=exits, int8=True, rest=recipe.rest
    )


def _quantize(
    recipe: Int8Static, segments: Segments, module: nn.Module, inputs: list[tuple[torch.Tensor, torch.Tensor]]
) -> nn.Module:
    """One segment through Neural Compressor: export, prepare, calibrate, convert."""
    # Imported here: it takes seconds, and float recipes do without.
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    inputs_like: Any = segments.example_hidden()
    dynamic: Any = segments.dynamic_hidden()
    graph: Any = export(module, inputs_like, dynamic_shapes=dynamic)
    prepared: Any = prepare(graph, INT8StaticQuantConfig(act_algo=recipe.observer))
    with torch.no_grad():
        for hidden, mask in inputs:
            prepared(hidden, mask)
    return convert(prepared)
