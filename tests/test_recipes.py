"""INT8 options and fallbacks: each changes what is compiled, and the record says what that came to."""

from functools import cache
from typing import Any

import numpy as np
import openvino as ov
import pytest

from benchmarks.worker import _coverage
from models.config import UserError
from models.cpu import has_bfloat16
from models.network import ExitsConfig
from quant import recipes
from quant.engines.openvino import OpenVinoSession
from quant.recipes import Int8Static, _of_equal_length, apply_recipe, check_fallback, linear_ops
from tests import tiny

ROWS = tiny.encoded(24, seed=5)
LAYERS = 2
# Without bfloat16 in the CPU, OpenVINO computes in float32 what was to be bfloat16, and says so.
REST = "bfloat16" if has_bfloat16() else "float32"


@cache
def network(family: str, exits: str) -> tiny.MultiExitNetwork:
    return tiny.network(family, ExitsConfig.model_validate_json(exits), num_layers=LAYERS)


BERT = network("bert", tiny.PABEE.model_dump_json())
ALBERT = network("albert", tiny.FASTBERT.model_dump_json())


def session(given: tiny.MultiExitNetwork, recipe: Int8Static) -> OpenVinoSession:
    calibration = tiny.batches(tiny.encoded(12, seed=6), 1, given.backbone.config.model_type)
    return OpenVinoSession(apply_recipe(recipe, given, calibration), 1)


def likeness(given: tiny.MultiExitNetwork, opened: OpenVinoSession) -> float:
    """Correlation of the last exit's logits with float32's."""
    inputs = tiny.batch(ROWS, range(len(ROWS)), given.backbone.config.model_type)
    logits = opened.recorder([LAYERS])(inputs)[0]
    return float(np.corrcoef(logits.ravel(), tiny.all_logits(given, inputs)[-1].ravel())[0, 1])


def kernel_inputs(opened: OpenVinoSession, model: ov.Model) -> set[str]:
    """What a segment's linear kernels read, as OpenVINO compiled them."""
    nodes = opened.compile(model)[0].get_runtime_model().get_ops()
    infos = [{key: value.astype(str) for key, value in node.get_rt_info().items()} for node in nodes]
    return {info["runtimePrecision"] for info in infos if info["layerType"] == "FullyConnected"}


def weight_scales(model: ov.Model) -> set[int]:
    """How many scales the INT8 matrices of a segment have."""
    scales = set()
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8 and len(node.get_shape()) == 2:
            (convert,) = (target.get_node() for target in node.output(0).get_target_inputs())
            (multiply,) = (target.get_node() for target in convert.output(0).get_target_inputs())
            scales.add(int(np.prod(multiply.input(1).get_source_output().get_shape())))
    return scales


def test_rows_are_observed_together_and_without_a_padded_token():
    rows = tiny.batches(ROWS, 1, "bert")
    batches = _of_equal_length(rows)
    assert 1 < len(batches) < len(rows)
    assert all((batch["attention_mask"] == 1).all() for batch in batches)
    observed = [tuple(ids) for batch in batches for ids in batch["input_ids"].tolist()]
    assert sorted(observed) == sorted(tuple(row["input_ids"][0].tolist()) for row in rows)


def test_symmetric_activations_are_signed_numbers_in_the_kernels():
    for activations, read in (("asymmetric", "u8"), ("symmetric", "i8")):
        opened = session(BERT, Int8Static(activations=activations))
        assert kernel_inputs(opened, opened.segments.layers[0]) == {read}
        assert 0.9 < likeness(BERT, opened) < 0.99999


def test_weights_have_a_scale_for_each_channel_or_one():
    for weights, expected in (("per_channel", {32, 48}), ("per_tensor", {1})):
        opened = session(BERT, Int8Static(weights=weights))
        assert weight_scales(opened.segments.layers[0]) == expected
        assert 0.9 < likeness(BERT, opened) < 0.99999


@pytest.mark.parametrize(
    ("given", "recipe", "others"),
    [
        (BERT, Int8Static(), {}),
        (
            BERT,
            Int8Static(activations="symmetric", fallback=["layer_*.output.dense", "exit_2", "exit_*"]),
            {
                "layer_1.output.dense": "float32: fallback layer_*.output.dense",
                "layer_2.output.dense": "float32: fallback layer_*.output.dense",
                "exit_1": "float32: fallback exit_*",
                "exit_2": "float32: fallback exit_2",
            },
        ),
        (BERT, Int8Static(fallback=["layer_1"], rest="bfloat16"), {"layer_1": f"{REST}: fallback layer_1"}),
        (
            BERT,
            Int8Static(fallback=["layer_2.attention.self"]),
            {
                f"layer_2.attention.self.{op}": "float32: fallback layer_2.attention.self"
                for op in ("key", "query", "value")
            },
        ),
        (
            ALBERT,
            Int8Static(fallback=["layer_*.*.*.ffn", "exit_1.query"]),
            {
                "embeddings": "float32: never quantized",  # ALBERT widens its embeddings by a linear map
                "exit_1.query": "float32: fallback exit_1.query",
                "layer_1.albert_layers.0.ffn": "float32: fallback layer_*.*.*.ffn",
                "layer_2.albert_layers.0.ffn": "float32: fallback layer_*.*.*.ffn",
            },
        ),
    ],
    ids=["none", "ops-and-segments", "bfloat16", "parts", "albert"],
)
def test_what_falls_back_is_what_the_compiled_model_says(
    given: tiny.MultiExitNetwork, recipe: Int8Static, others: dict[str, str]
):
    check_fallback(recipe, given)
    opened = session(given, recipe)
    found = _coverage(recipe, given, opened.precisions())
    assert found.others == others
    whole = sum(len(linear_ops(given).get(name, [name])) for name in others)  # ops, and segments by their ops
    assert found.linear_ops == sum(map(len, linear_ops(given).values())) + ("embeddings" in others)
    assert found.int8_ops == found.linear_ops - whole
    assert likeness(given, opened) > 0.9


def test_all_fallen_back_is_float32_to_the_last_bits():
    opened = session(BERT, Int8Static(fallback=["layer_*", "exit_*"]))
    assert set(opened.precisions().values()) == {"float32"}
    assert likeness(BERT, opened) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "pattern", "message"),
    [
        (BERT, "layer_3", "'layer_3' matches nothing; there are layer_1 to layer_2 .* did you mean 'layer_2'"),
        (BERT, "exit_1.pooller", "'exit_1.pooller' matches nothing.* did you mean 'exit_1.pooler'"),
        (BERT, "embeddings", "'embeddings' matches nothing.*ops such as layer_1.attention.self.query"),
        (ALBERT, "layer_2", "layer_1 and layer_2 are one shared layer: name all its depths, as layer_"),
    ],
)
def test_patterns_that_cannot_be_followed(given: tiny.MultiExitNetwork, pattern: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        check_fallback(Int8Static(fallback=["exit_1", pattern]), given)
    assert "\n" not in str(caught.value)


def test_shared_layers_fall_back_together():
    named: list[Any] = ["layer_1", "layer_2"]
    check_fallback(Int8Static(fallback=named), ALBERT)


@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
@pytest.mark.parametrize(("dot_products", "largest"), [(True, 127), (False, 63)])
def test_weights_take_7_bits_where_sums_take_16(
    monkeypatch: pytest.MonkeyPatch, weights: Any, dot_products: bool, largest: int
):
    """255 * 64 * 2 fits into 16 bits; 255 * 127 * 2 does not."""
    monkeypatch.setattr(recipes, "has_int8_dot_products", lambda: dot_products)
    opened = session(BERT, Int8Static(weights=weights))
    stored = [
        op for op in opened.segments.layers[0].get_ops() if op.get_element_type() == ov.Type.i8 and not op.inputs()
    ]
    values = [np.abs(op.get_data().astype(int)).max() for op in stored if op.get_data().ndim == 2]
    assert len(values) == 6
    assert all(largest <= value <= largest + 1 for value in values)
