"""Which numbers a network runs in: each recipe is inert configuration, applied to segments by `apply_recipe`.

INT8 comes from Neural Compressor 3.x post-training static quantization: every segment is exported, observed on
calibration rows and converted to a graph of quantize / dequantize pairs, which engines lower to real INT8 kernels.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import nn

from models.config import Config, UserError, nearest
from models.cpu import has_int8_dot_products
from models.data import Rows
from models.encoding import collate, encode
from models.network import MultiExitNetwork
from quant.segments import INPUT_NAMES, Graphs, Segments, cut, of_one_structure, op_name
from quant.smoothing import smoothed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class RecipeConfig(Config):
    """What all recipes share.

    Attributes:
        epsilon: how close to turning a decision must be (logits, nats or probability) for live and replayed exits to
            differ without it being a fault: kernels round differently at different batch sizes.
    """

    epsilon: ClassVar[float] = 0.1


class Float32(RecipeConfig):
    """Everything in float32."""

    epsilon: ClassVar[float] = 1e-3

    kind: Literal["float32"] = "float32"


class Bfloat16(RecipeConfig):
    """Matrix products in bfloat16; policies stay in float32."""

    kind: Literal["bfloat16"] = "bfloat16"


class Float16(RecipeConfig):
    """Everything but policies in float16, as GPUs do."""

    epsilon: ClassVar[float] = 1e-2

    kind: Literal["float16"] = "float16"


class Int8Static(RecipeConfig):
    """Neural Compressor static INT8: symmetric weights, per-tensor activations with observed ranges.

    Attributes:
        observer: how activation ranges are found: moving averages of each row's minimum and maximum, or the range that
            fits a histogram of all values best.
        activations: unsigned with a zero point, or signed around zero.
        weights: one scale for each output channel, or one for the whole matrix.
        smooth_alpha: how much of the activations' outliers moves into the weights (`quant.smoothing`); 0: nothing.
        calibration_rows: rows of `fit`, chosen by `seed`; none is padded, so that no padding enters the ranges.
        fallback: what is not quantized: segments (`layer_11`, `exit_*`), or parts and linear ops inside them
            (`layer_*.attention`, `layer_*.output.dense`). Each part of the dotted path is a shell pattern.
        rest: precision of what is not quantized.
    """

    kind: Literal["int8_static"] = "int8_static"
    observer: Literal["minmax", "kl"] = "minmax"
    activations: Literal["asymmetric", "symmetric"] = "asymmetric"
    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    smooth_alpha: float = Field(default=0.0, ge=0, lt=1)
    calibration_rows: int = Field(default=128, ge=1)
    seed: int = Field(default=42, ge=0)
    fallback: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?]+$")]] = Field(default_factory=list)
    rest: Literal["float32", "bfloat16"] = "float32"


class Int8Native(RecipeConfig):
    """Static INT8 of the whole network by the engine's own quantizer (NNCF, ONNX Runtime's), without exits.

    Attributes:
        calibration_rows: rows of `fit`, chosen by `seed`.
    """

    kind: Literal["int8_native"] = "int8_native"
    calibration_rows: int = Field(default=128, ge=1)
    seed: int = Field(default=42, ge=0)


class Int8Dynamic(RecipeConfig):
    """INT8 weights, and activations quantized as they come, by the engine: nothing is calibrated."""

    kind: Literal["int8_dynamic"] = "int8_dynamic"


Calibrated = Int8Static | Int8Native
Recipe = Annotated[
    Annotated[Float32 | Bfloat16 | Float16 | Int8Static | Int8Native | Int8Dynamic, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=Any),
]


def calibration_indices(recipe: Calibrated, fit_rows: int) -> np.ndarray:
    """Which rows of `fit` calibrate: drawn without replacement by the recipe's seed, in ascending order."""
    rows = min(recipe.calibration_rows, fit_rows)
    return np.sort(np.random.default_rng(recipe.seed).choice(fit_rows, size=rows, replace=False))


def calibration_inputs(
    recipe: Recipe, fit: Rows | None, tokenizer: "PreTrainedTokenizerFast", max_seq_length: int, pad_token_id: int
) -> list[dict[str, np.ndarray]]:
    """What `apply_recipe` calibrates on: the padded inputs of each row, or nothing where the recipe needs nothing."""
    if not isinstance(recipe, Calibrated):
        return []
    assert fit is not None, "an INT8 recipe calibrates on the task's rows"
    rows = encode(fit.take(calibration_indices(recipe, len(fit)).tolist()), tokenizer, max_seq_length)
    return [collate(rows, [row], pad_token_id, "longest", max_seq_length) for row in range(len(rows))]


def check_fallback(recipe: Recipe, network: MultiExitNetwork) -> None:
    """Refuse patterns that cannot be followed in a network.

    Raises:
        UserError: a pattern that matches nothing, or one that parts a shared layer from its other depths.
    """
    if not isinstance(recipe, Int8Static):
        return
    ops, named = linear_ops(network), cut(network).named()
    names = [name for segment in ops for name in (segment, *(f"{segment}.{op}" for op in ops[segment]))]
    for pattern in recipe.fallback:
        if not any(_is_in(name, pattern) for name in names):
            raise UserError(
                f"fallback: {pattern!r} matches nothing; there are layer_1 to layer_{network.num_layers} and as many "
                f"exit_*, with ops such as {names[1]}{nearest(pattern, names)}"
            )
    kept = fallen_back(recipe, network)
    for name, module in named.items():
        first = next(other for other in named if named[other] is module)
        if kept[name].keys() != kept[first].keys():
            raise UserError(f"fallback: {first} and {name} are one shared layer: name all its depths, as layer_*")


def fallen_back(recipe: Int8Static, network: MultiExitNetwork) -> dict[str, dict[str, str]]:
    """Segment -> the ops that `fallback` keeps in floating point -> the first pattern that does."""
    return {
        segment: {
            op: pattern for op in ops for pattern in reversed(recipe.fallback) if _is_in(f"{segment}.{op}", pattern)
        }
        for segment, ops in linear_ops(network).items()
    }


def _is_in(name: str, pattern: str) -> bool:
    """Whether a dotted name is what a pattern names, or lies inside it."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) >= len(patterns) and all(map(fnmatchcase, parts, patterns))


def linear_ops(network: MultiExitNetwork) -> dict[str, list[str]]:
    """Segment -> its linear ops: what INT8 quantizes."""
    return {
        segment: [op_name(path) for path, part in module.named_modules() if isinstance(part, nn.Linear)]
        for segment, module in cut(network).named().items()
    }


def apply_recipe(
    recipe: Recipe, network: MultiExitNetwork, calibration: Sequence[dict[str, np.ndarray]] = ()
) -> Segments:
    """Cut the network and turn its segments into the recipe's numbers.

    Args:
        recipe: the numbers.
        network: in evaluation mode; its parameters are shared by the float recipes and copied by INT8.
        calibration: int64 inputs [1, T] of single rows; static INT8 reads them.
    """
    segments = cut(network)
    match recipe:
        case Float32():
            return segments
        case Bfloat16() | Float16():
            return segments.with_rest(recipe.kind)
        case Int8Static():
            return _int8_static(recipe, network, segments, calibration)
        case Int8Native():
            return replace(segments, int8=True, native="static", calibration=calibration)
        case Int8Dynamic():
            return replace(segments, int8=True, native="dynamic")


def _int8_static(
    recipe: Int8Static, network: MultiExitNetwork, segments: Segments, calibration: Sequence[dict[str, np.ndarray]]
) -> Segments:
    """Quantize every layer and exit over the float activations that reach it.

    A shared layer is observed over the inputs of all its depths and converted once. Embeddings hold look-ups, which
    static quantization leaves as they are.
    """
    inputs: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    with torch.no_grad():
        # Histograms add up, so many rows may be one batch; Neural Compressor's minmax is a moving average, row by row.
        for batch in _of_equal_length(calibration) if recipe.observer == "kl" else calibration:
            hidden, mask = network.embed(*(torch.from_numpy(batch[name]) for name in INPUT_NAMES))
            for layer, exit_ in zip(segments.layers, segments.exits, strict=True):
                inputs[id(layer)].append((hidden, mask))
                hidden = layer(hidden, mask)
                inputs[id(exit_)].append((hidden, mask))
    kept = fallen_back(recipe, network)
    quantized: dict[int, nn.Module] = {}
    graphs: Graphs = {}
    for name, module in segments.named().items():
        if id(module) not in quantized:
            quantized[id(module)] = _quantize(recipe, segments, module, inputs.pop(id(module)), set(kept[name]), graphs)
    return replace(
        segments,
        layers=[quantized[id(layer)] for layer in segments.layers],
        exits=[quantized[id(exit_)] for exit_ in segments.exits],
        int8=True,
        rest=recipe.rest,
    )


def _of_equal_length(rows: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Single rows [1, T] as batches [B, T]: many rows at once without a padded token."""
    by_length: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
    for row in rows:
        by_length[row["input_ids"].shape[1]].append(row)
    return [
        {name: np.concatenate([row[name] for row in alike]) for name in INPUT_NAMES} for alike in by_length.values()
    ]


def _quantize(
    recipe: Int8Static,
    segments: Segments,
    module: nn.Module,
    inputs: list[tuple[torch.Tensor, torch.Tensor]],
    kept: set[str],
    graphs: Graphs,
) -> nn.Module:
    """One segment through Neural Compressor: export, prepare, calibrate, convert; `kept` ops stay in floating point."""
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if all(op_name(path) in kept for path in linear):
        return module
    if recipe.smooth_alpha:
        module = smoothed(module, inputs, recipe.smooth_alpha, {path for path in linear if op_name(path) in kept})
    # Imported here: it takes seconds, and float recipes do without.
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    symmetric = recipe.activations == "symmetric"
    config = INT8StaticQuantConfig(
        act_algo=recipe.observer,
        act_sym=symmetric,
        act_dtype="int8" if symmetric else "uint8",  # symmetric in unsigned numbers still costs a zero point
        w_granularity=recipe.weights,
    )
    for path in linear:
        if op_name(path) in kept:
            config.set_local(path, INT8StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
    inputs_like: Any = segments.example_hidden()
    dynamic: Any = segments.dynamic_hidden()
    graph: Any = of_one_structure(module, graphs, lambda: export(module, inputs_like, dynamic_shapes=dynamic))
    graph._exported, graph.dynamic_shapes = True, dynamic  # what Neural Compressor hangs on graphs, and copies lose
    prepared: Any = prepare(graph, config)
    if not has_int8_dot_products():
        _spare_a_bit_of_weights(prepared)
    with torch.no_grad():
        for hidden, mask in inputs:
            prepared(hidden, mask)
    return convert(prepared)


def _spare_a_bit_of_weights(prepared: torch.fx.GraphModule) -> None:
    """Let weights take 7 bits, so that two products with 8-bit activations fit into 16 bits."""
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args and node.args[0].op == "get_attr":
            observer: Any = prepared.get_submodule(node.target)
            observer.quant_min, observer.quant_max = -64, 63
