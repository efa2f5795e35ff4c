"""Quantizers that come with an engine: dynamic INT8, and the static peers without exits; ONNX Runtime in all else."""

from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import openvino as ov
import pytest
from onnx import GraphProto, numpy_helper
from torch import nn

from models.config import UserError
from models.cpu import has_int8_dot_products
from models.ops import NumpyOps
from models.policies import Entropy, Imposed, entropy, replay
from quant.engine import OnnxRuntime, cannot_run
from quant.engines import onnxruntime
from quant.engines.onnxruntime import OnnxRuntimeSession
from quant.engines.openvino import OpenVinoSession
from quant.onnx_graph import OnnxGraph, exit_model
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


def test_onnx_graphs_hold_the_operators_of_their_recipe():
    for recipe, operators in (
        (Int8Dynamic(), {"DynamicQuantizeLinear", "MatMulInteger"}),
        (Int8Native(), {"QuantizeLinear", "DequantizeLinear"}),
    ):
        graph = opened("onnxruntime", recipe, "bert").network([LAYERS]).graph
        assert operators <= {node.op_type for node in graph.node}


def test_dynamic_int8_on_onnxruntime_has_a_scale_for_each_column():
    graph = opened("onnxruntime", Int8Dynamic(), "bert").segments.layers[0].graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger" and node.input[1] in sizes]
    assert [96, 64] in [sizes[name] for name in weights]
    assert all(sizes[name.replace("_quantized", "_scale")] == sizes[name][1:] for name in weights)


@pytest.mark.parametrize("family", ["albert", "bert"])
def test_an_onnx_graph_holds_each_weight_once(family: str):
    """ALBERT's layers are one, and the bodies of an `If` read what stands outside; their own weights stand in them."""
    module = network(family)
    session = opened("onnxruntime", Float32(), family)
    early = exit_model(OnnxGraph(session.segments, 3), Entropy(threshold=0.5), EXITS).graph
    for graph in (session.network(EXITS).graph, early):
        assert sum(bytes_of_bodies(graph)) == pytest.approx(bytes_of(module.parameters()), rel=0.1)
    first, second = ({*module.layers[i].parameters(), *module.exits[i].parameters()} for i in (0, 1))
    assert sum(bytes_of_bodies(early)[1:]) == pytest.approx(bytes_of(second - first), rel=0.02)


def bytes_of(parameters: Iterable[nn.Parameter]) -> int:
    """What these take as float32."""
    return 4 * sum(parameter.numel() for parameter in parameters)


def bytes_of_bodies(graph: GraphProto) -> list[int]:
    """Bytes of a graph's own weights, then those of each body in it."""
    found = [sum(len(tensor.raw_data) for tensor in graph.initializer)]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += bytes_of_bodies(attribute.g)
    return found


@pytest.mark.parametrize("recipe", [Int8Native(), Int8Dynamic()], ids=["static", "dynamic"])
@pytest.mark.parametrize(("dot_products", "most"), [(True, 128), (False, 64)])
def test_onnx_weights_take_7_bits_where_sums_take_16(
    monkeypatch: pytest.MonkeyPatch, recipe: Any, dot_products: bool, most: int
):
    monkeypatch.setattr(onnxruntime, "has_int8_dot_products", lambda: dot_products)
    calibration = tiny.batches(tiny.encoded(12, seed=6), 1, "bert")
    session = OnnxRuntimeSession(apply_recipe(recipe, network("bert"), calibration), 1)
    tensors = map(numpy_helper.to_array, session.network([LAYERS]).graph.initializer)
    largest = [np.abs(values.astype(int)).max() for values in tensors if values.dtype == np.int8 and values.ndim == 2]
    assert most - 1 <= max(largest) <= most


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
    # Without VNNI the kernels leave activations in float32.
    assert (np.abs(grouped - weights_only).max() > 1e-4) == has_int8_dot_products()
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


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dynamic_int8_on_onnxruntime_leaves_as_replayed_at_batch_1(family: str):
    logits, policy = recorded("onnxruntime", Int8Dynamic(), 1, family), Entropy(threshold=0.5)
    program = opened("onnxruntime", Int8Dynamic(), family).with_exits(policy, EXITS)
    for threshold in (0.5, float(np.median(entropy(NumpyOps(), logits[0])))):
        policy = Entropy(threshold=threshold)
        outputs = [program.run(batch, policy.dials(np.arange(1))) for batch in batches(1, family)]
        answer = replay(policy, logits, EXITS)
        sure = answer.margin > 1e-5
        np.testing.assert_array_equal(np.concatenate([o.exit_layer for o in outputs])[sure], answer.exit_layer[sure])
        np.testing.assert_allclose(np.concatenate([o.logits for o in outputs])[sure], answer.logits[sure], atol=1e-5)
    assert set(answer.exit_layer) == set(EXITS)


def test_dynamic_int8_on_onnxruntime_does_depend_on_the_batch():
    """Why exits take rows alone there: the scale is that of all rows."""
    alone, together = (recorded("onnxruntime", Int8Dynamic(), size) for size in (1, 8))
    assert np.abs(alone - together).max() > 1e-3
    assert "batch_size: 1" in str(cannot_run("int8_dynamic", OnnxRuntime(), with_exits=True, batch_size=8))
    assert cannot_run("int8_dynamic", OnnxRuntime(program="rows"), with_exits=True, batch_size=8) is None


@pytest.mark.parametrize("recipe", [Float32(), Int8Dynamic()], ids=["float32", "dynamic"])
def test_onnxruntime_runs_a_batch_row_by_row(recipe: Any):
    """With a dial for each; and dynamic INT8 would answer otherwise with padding in its scale, or other rows."""
    session = OnnxRuntime(program="rows").open(apply_recipe(recipe, network("bert"), []), threads=1)
    logits = np.concatenate([session.recorder(EXITS)(batch) for batch in batches(8)], axis=1)
    np.testing.assert_allclose(logits, recorded("onnxruntime", recipe, 1), atol=1e-5)
    for policy in (Entropy(threshold=0.5), Imposed(exit_layers=[1, 2, 2])):
        program, answer = session.with_exits(policy, EXITS), replay(policy, logits, EXITS)
        starts = range(0, len(ROWS), 8)
        outputs = [
            program.run(batch, policy.dials(np.arange(i, i + 8))) for i, batch in zip(starts, batches(8), strict=True)
        ]
        sure = answer.margin > 1e-5
        given, left = map(np.concatenate, zip(*outputs, strict=True))
        np.testing.assert_array_equal(left[sure], answer.exit_layer[sure])
        np.testing.assert_allclose(given[sure], answer.logits[sure], atol=1e-5)
        assert set(left) == set(EXITS)
    policy, (batch, *_) = Imposed(exit_layers=[1, 2, 2]), batches(8)
    assert session.footprint(policy, EXITS, batch | policy.dials(np.arange(8))) > 0


@pytest.mark.parametrize("engine", OPEN)
def test_what_only_whole_networks_run_has_no_exits(engine: str):
    with pytest.raises(UserError, match="recipe int8_native"):
        opened(engine, Int8Native(), "bert").with_exits(Entropy(threshold=0.5), EXITS)
