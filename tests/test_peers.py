"""Quantizers that come with an engine: dynamic INT8, and the static peers without exits."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest

from models.config import UserError
from models.policies import Entropy, replay
from quant.engines.onnxruntime import OnnxRuntimeSession, _export
from quant.engines.openvino import OpenVinoSession
from quant.programs import Inputs
from quant.recipes import Float32, Int8Dynamic, Int8Native, apply_recipe
from tests import tiny

LAYERS = 2
EXITS = [1, 2]
ROWS = tiny.encoded(24, seed=5)
OPEN = {"openvino": lambda segments: OpenVinoSession(segments, 1)}
OPEN["onnxruntime"] = lambda segments: OnnxRuntimeSession(segments, 1)  # pyright: ignore[reportArgumentType]


@cache
def network(family: str) -> tiny.MultiExitNetwork:
    """Wide enough for two groups of dynamic quantization."""
    body = tiny.backbone(family, num_layers=LAYERS, hidden_size=64, intermediate_size=96)
    return tiny.with_exits(body, tiny.FASTBERT if family == "albert" else tiny.PABEE, num_labels=3)


@cache
def opened(engine: str, recipe: Any, family: str) -> Any:
    calibration = tiny.batches(tiny.encoded(12, seed=6), 1, family)
    return OPEN[engine](apply_recipe(recipe, network(family), calibration))


def batches(size: int, family: str = "bert") -> list[Inputs]:
    return tiny.batches(ROWS, size, family)


def recorded(engine: str, recipe: Any, size: int, family: str = "bert") -> np.ndarray:
    recorder = opened(engine, recipe, family).recorder(EXITS)
    return np.concatenate([recorder(batch) for batch in batches(size, family)], axis=1)


def expected(family: str = "bert") -> np.ndarray:
    return tiny.all_logits(network(family), tiny.batch(ROWS, range(len(ROWS)), family))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_onnxruntime_in_float32_is_the_network(family: str):
    for size in (1, 8):
        np.testing.assert_allclose(recorded("onnxruntime", Float32(), size, family), expected(family), atol=5e-5)
    program = opened("onnxruntime", Float32(), family).without_exits(1)
    outputs = [program.run(batch, {}) for batch in batches(8, family)]
    np.testing.assert_allclose(np.concatenate([output.logits for output in outputs]), expected(family)[0], atol=5e-5)
    assert all((output.exit_layer == 1).all() for output in outputs)
    assert (program.kind, program.precision) == ("single", "float32")


@pytest.mark.parametrize(("engine", "recipe"), list(product(OPEN, [Int8Native(), Int8Dynamic()])), ids=str)
def test_quantized_networks_answer_nearly_as_float32(engine: str, recipe: Any):
    logits = recorded(engine, recipe, 1)
    likeness = np.corrcoef(logits.ravel(), expected().ravel())[0, 1]
    assert 0.95 < likeness < 0.999999
    for layer in EXITS:
        program = opened(engine, recipe, "bert").without_exits(layer)
        alone = np.concatenate([program.run(batch, {}).logits for batch in batches(1)])
        np.testing.assert_allclose(alone, logits[layer - 1], atol=1e-4)
        assert program.precision == "int8+float32"


def test_onnx_graphs_hold_the_operators_of_their_recipe(tmp_path: Path):
    for recipe, operators in (
        (Int8Dynamic(), {"DynamicQuantizeLinear", "MatMulInteger"}),
        (Int8Native(), {"QuantizeLinear", "DequantizeLinear"}),
    ):
        session = opened("onnxruntime", recipe, "bert")
        _export(session.segments, LAYERS, tmp_path / "network.onnx")
        graph = onnx.load(session._quantized(tmp_path / "network.onnx")).graph
        assert operators <= {node.op_type for node in graph.node}


def test_nncf_puts_every_linear_op_into_int8():
    found = opened("openvino", Int8Native(), "bert").precisions()
    assert set(found.values()) == {"int8"}
    assert len(found) == LAYERS * (6 + 2)


def test_dynamic_int8_on_openvino_quantizes_activations_and_not_only_weights():
    session = opened("openvino", Int8Dynamic(), "bert")
    grouped = recorded("openvino", Int8Dynamic(), 1)
    session.options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    weights_only = recorded("openvino", Int8Dynamic(), 1)
    session.options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32"
    assert np.abs(grouped - weights_only).max() > 1e-4
    constants = [n for n in session.segments.layers[0].get_ops() if n.get_type_name() == "Constant"]
    assert {tuple(n.get_shape()) for n in constants if n.get_element_type() == ov.Type.i8} >= {(64, 64), (96, 64)}


def test_dynamic_int8_on_openvino_leaves_early_and_does_not_depend_on_the_batch():
    """Scales belong to the values of one token, so padding and neighbours do not move them."""
    logits, policy = recorded("openvino", Int8Dynamic(), 1), Entropy(threshold=0.5)
    answer = replay(policy, logits, EXITS)
    assert len(set(answer.exit_layer)) == 2
    program = opened("openvino", Int8Dynamic(), "bert").with_exits(policy, EXITS)
    for size in (1, 8):
        outputs = [program.run(batch, policy.dials(np.arange(1))) for batch in batches(size)]
        sure = answer.margin > 1e-3
        left = np.concatenate([output.exit_layer for output in outputs])
        np.testing.assert_array_equal(left[sure], answer.exit_layer[sure])
        same = left == answer.exit_layer
        given = np.concatenate([output.logits for output in outputs])
        np.testing.assert_allclose(given[same], answer.logits[same], atol=1e-3)


def test_what_only_whole_networks_run_has_no_exits():
    for engine, recipe, what in (
        ("openvino", Int8Native(), "recipe int8_native"),
        ("onnxruntime", Float32(), "engine onnxruntime"),
    ):
        with pytest.raises(UserError, match=what):
            opened(engine, recipe, "bert").with_exits(Entropy(threshold=0.5), EXITS)
