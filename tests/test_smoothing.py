"""SmoothQuant: the same function in float, less error in INT8."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.cpu import has_int8_dot_products
from models.network import ExitsConfig, Pooling
from quant.engine import OpenVino
from quant.engines.pytorch import open_eager
from quant.recipes import Int8Static, apply_recipe
from quant.segments import INPUT_NAMES, cut
from quant.smoothing import SmoothedLinear, smoothed
from tests import tiny

ALPHA = 0.7
# The weights that read what a layer normalization leaves.
READERS = ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight", "poolers.0.weight")
ROWS = tiny.encoded(24, seed=5)
CALIBRATION = tiny.encoded(12, seed=6)


class OneOp(nn.Module):
    """A linear op as a segment."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.dense = nn.Linear(weight.shape[1], weight.shape[0])
        self.dense.weight.data = weight

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.dense(hidden)


def test_scales_by_hand():
    module = OneOp(torch.tensor([[1.0, -2.0], [0.5, 0.25]]))
    inputs = [(torch.tensor([[[4.0, 1.0]]]), torch.ones(1)), (torch.tensor([[[-16.0, 0.5]]]), torch.ones(1))]
    found: Any = smoothed(module, inputs, 0.5, ())
    expected = torch.tensor([16.0, 1.0]).sqrt() / torch.tensor([1.0, 2.0]).sqrt()
    torch.testing.assert_close(found.dense.shrink, 1 / expected)
    torch.testing.assert_close(found.dense.weight, module.dense.weight * expected)


def test_a_silent_channel_has_a_scale():
    found: Any = smoothed(OneOp(torch.zeros(2, 2)), [(torch.zeros(1, 1, 2), torch.ones(1))], ALPHA, ())
    assert torch.isfinite(found.dense.shrink).all()


def embedded(given: tiny.MultiExitNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    """What reaches the first layer: hidden states and mask."""
    inputs = tiny.tensors(tiny.batch(ROWS, range(len(ROWS)), given.backbone.config.model_type))
    with torch.no_grad():
        return given.embed(*(inputs[name] for name in INPUT_NAMES))


def smoothed_ops(module: nn.Module) -> dict[str, SmoothedLinear]:
    return {path: part for path, part in module.named_modules() if isinstance(part, SmoothedLinear)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_smoothed_segments_are_the_same_function(family: str):
    given = tiny.network(family, tiny.FASTBERT if family == "albert" else tiny.PABEE, num_layers=2)
    hidden, mask = embedded(given)
    segments = cut(given)
    for module in [*segments.layers, *segments.exits]:
        before = [parameter.clone() for parameter in module.parameters()]
        moved = smoothed(module, [(hidden[:4], mask[:4]), (hidden[4:], mask[4:])], ALPHA, ())
        ops = smoothed_ops(moved)
        assert len(ops) == sum(isinstance(part, nn.Linear) for part in module.modules())
        assert not any(torch.equal(op.weight, module.get_parameter(f"{path}.weight")) for path, op in ops.items())
        with torch.no_grad():
            torch.testing.assert_close(moved(hidden, mask), module(hidden, mask), atol=1e-4, rtol=1e-4)
        assert all(map(torch.equal, before, module.parameters()))


def test_ops_that_read_the_same_are_shrunk_alike_and_what_is_kept_is_not():
    given = tiny.network("bert", tiny.PABEE, num_layers=2)
    layer, kept = cut(given).layers[0], "layer.output.dense"
    ops = smoothed_ops(smoothed(layer, [embedded(given)], ALPHA, {kept}))
    linear = {path for path, part in layer.named_modules() if isinstance(part, nn.Linear)}
    assert set(ops) == linear - {kept}
    query, key, value = (ops[f"layer.attention.self.{name}"].shrink for name in ("query", "key", "value"))
    assert torch.equal(query, key)
    assert torch.equal(query, value)
    assert not torch.equal(query, ops["layer.attention.output.dense"].shrink)


def test_int8_errs_less_on_outliers():
    """A normalization with one channel 40 times as large, as fine-tuned networks have them."""
    given = tiny.network("bert", tiny.PABEE, num_layers=2)
    with torch.no_grad():
        for name, parameter in given.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter[3] *= 40
            elif (
                parameter.ndim == 2
                and "embeddings" not in name
                and parameter.shape[1] == given.backbone.config.hidden_size
            ):
                parameter[:, 3] /= 40
    inputs = tiny.batch(ROWS, range(len(ROWS)), "bert")
    calibration = tiny.batches(CALIBRATION, 1, "bert")
    exact = tiny.all_logits(given, inputs)

    def error(alpha: float) -> float:
        segments = apply_recipe(Int8Static(observer="kl", smooth_alpha=alpha), given, calibration)
        return float(np.abs(open_eager(segments, 1).recorder([1, 2])(inputs) - exact).mean())

    assert error(ALPHA) < 0.5 * error(0.0)


@pytest.mark.parametrize("pooling", ["first_token", "mean", "attention"])
def test_a_row_in_a_batch_answers_as_alone(pooling: Pooling):
    """The division in front of the pooler is one of channels, for every row (OpenVINO fuses it with what is before)."""
    given = tiny.network("bert", ExitsConfig(pooling=pooling, pooler="per_exit"), num_layers=2)
    recipe = Int8Static(observer="kl", smooth_alpha=ALPHA)
    segments = apply_recipe(recipe, given, tiny.batches(CALIBRATION, 1, "bert"))
    whole = OpenVino().open(segments, 1).without_exits(2)
    alone = [whole.run(row, {}).logits for row in tiny.batches(ROWS, 1, "bert")]
    together = whole.run(tiny.batch(ROWS, range(len(ROWS)), "bert"), {}).logits
    error = 5e-4 if has_int8_dot_products() else 1e-2  # a last bit may turn a step of INT8
    np.testing.assert_allclose(together, np.concatenate(alone), atol=error)
