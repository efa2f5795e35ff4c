"""Segments as OpenVINO models: what OpenVINO's own conversion makes of each, though one of a structure is exported."""

from collections import Counter

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from models.network import ExitsConfig
from quant.engines.openvino import convert
from quant.recipes import Int8Static, apply_recipe
from quant.segments import Segments, cut
from tests import tiny

CASES = [
    ("bert", tiny.PABEE, "float32"),
    ("roberta", ExitsConfig(pooling="mean", pooler="per_exit"), "int8_static"),
    ("albert", tiny.FASTBERT, "int8_static"),
]
INT8 = Int8Static(observer="kl", smooth_alpha=0.85, fallback=["layer_2.output.dense"])


def segments_of(family: str, exits: ExitsConfig, numerics: str) -> Segments:
    given = tiny.network(family, exits, num_layers=2)
    if numerics == "float32":
        return cut(given)
    return apply_recipe(INT8, given, tiny.batches(tiny.encoded(8, seed=6), 1, family))


def by_openvino(module: nn.Module, segments: Segments) -> ov.Model:
    with torch.no_grad():
        inputs, dynamic = segments.example_hidden(), segments.dynamic_hidden()
        return ov.convert_model(torch.export.export(module, inputs, dynamic_shapes=dynamic))


@pytest.mark.parametrize(("family", "exits", "numerics"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_layers_and_exits_are_those_of_openvinos_own_conversion(family: str, exits: ExitsConfig, numerics: str):
    segments, core = segments_of(family, exits, numerics), ov.Core()
    models = convert(segments)
    rng = np.random.default_rng(3)
    for name in ("layer_2", "exit_2"):  # the second of a structure: its graph was made for the first
        ours, theirs = models.named(name), by_openvino(segments.named()[name], segments)
        kinds = [Counter(node.get_type_name() for node in model.get_ops()) for model in (ours, theirs)]
        assert kinds[0] == kinds[1]
        for rows, length in ((1, 3), (4, 7)):
            mask = np.zeros((rows, 1, 1, length), np.float32)
            mask[..., length - 1 :] = -1e4
            inputs = [rng.standard_normal((rows, length, segments.hidden_size), np.float32), mask]
            answers = [core.compile_model(model, "CPU")(inputs)[0] for model in (ours, theirs)]
            np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("numerics", ["float32", "int8_static"])
def test_every_structure_is_exported_once(numerics: str, monkeypatch: pytest.MonkeyPatch):
    segments, seen = segments_of("bert", tiny.PABEE, numerics), []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda module, *a, **k: seen.append(module) or export(module, *a, **k))
    models = convert(segments)
    fallen_back = [segments.layers[1]] if numerics == "int8_static" else []
    assert seen == [segments.embeddings, segments.layers[0], *fallen_back, segments.exits[0]]
    assert len({id(model) for model in models.layers}) == 2
