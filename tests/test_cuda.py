"""Engine `cuda`: as the CPU answers, in every float format; left out with one line where there is no GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.records import read_records
from models.config import UserError
from models.policies import Entropy
from quant.engine import Cuda, Eager
from quant.engines.pytorch import TorchSession
from quant.recipes import Bfloat16, Float16, Float32, Recipe, apply_recipe
from tests import suites, tiny
from tests.test_suite import runs

EXITS = [1, 2, 3]
TOLERANCE = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.1}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU-less machine")
SKIPPING = {"engines": ["openvino", "cuda"], "on_unsupported": "skip"}


@needs_gpu
@pytest.mark.parametrize("recipe", [Float32(), Float16(), Bfloat16()], ids=lambda recipe: recipe.kind)
def test_it_answers_as_the_cpu(recipe: Recipe):
    network, batch = tiny.network("bert", num_layers=3), tiny.batch(tiny.encoded(8), range(8), "bert")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cpu = Eager().open(apply_recipe(Float32(), network), threads=1)
    gpu = Cuda().open(apply_recipe(recipe, network), threads=1)
    expected, found = cpu.recorder(EXITS)(batch), gpu.recorder(EXITS)(batch)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[recipe.kind], rtol=0)
    whole = gpu.without_exits(3).run(batch, {})
    np.testing.assert_allclose(whole.logits, expected[-1], atol=TOLERANCE[recipe.kind], rtol=0)
    policy = Entropy(threshold=0.0)  # nobody leaves, so that all layers run
    left = gpu.with_exits(policy, EXITS).run(batch, policy.dials(np.arange(8)))
    assert set(left.exit_layer) == {3}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@needs_gpu
def test_a_suite_measures_it_beside_the_cpu(tmp_path: Path):
    suite = suites.write(tmp_path, recipes=["float32", "float16"], timing={"rows": 8, "repeats": 1}, **SKIPPING)
    folders = ["--output", str(tmp_path / "output"), "--checkpoints", str(tmp_path / "checkpoints")]
    assert main(["run", str(suite), *folders]) == 0
    peaks = {(one.recipe["kind"], one.engine): one.peak_memory_bytes for one in read_records(tmp_path / "output")}
    assert peaks.keys() == {("float32", "openvino"), ("float32", "cuda"), ("float16", "cuda")}
    assert peaks["float32", "openvino"] is None
    assert peaks["float16", "cuda"] > 0


@needs_none
def test_without_a_gpu_it_is_left_out_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert {run.engine.kind for run in runs(tmp_path, **SKIPPING)} == {"openvino"}
    assert main(["run", str(suites.write(tmp_path, **SKIPPING)), "--dry-run"]) == 0
    assert "left out: engine cuda finds no GPU here\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="engine cuda finds no GPU here; remove it, or set on_unsupported: skip"):
        runs(tmp_path, engines=["cuda"])


@pytest.mark.parametrize(
    ("recipe", "engine", "message"),
    [
        ("int8_static", "cuda", "recipe int8_static runs on eager and inductor and openvino, not on cuda"),
        ("float16", "openvino", "recipe float16 runs on cuda, not on openvino"),
    ],
)
def test_numbers_that_only_one_side_has(tmp_path: Path, recipe: str, engine: str, message: str):
    with pytest.raises(UserError, match=message):
        runs(tmp_path, recipes=[recipe], engines=[engine])


def test_casting_leaves_the_network_and_its_answers():
    """What the GPU runs is cast the same way on any device."""
    network, batch = tiny.network("bert", num_layers=3), tiny.batch(tiny.encoded(8), range(8), "bert")
    expected = Eager().open(apply_recipe(Float32(), network), threads=1).recorder(EXITS)(batch)
    half = TorchSession(apply_recipe(Float16(), network), threads=1)
    assert {parameter.dtype for parameter in half.segments.exits[0].parameters()} == {torch.float16}
    found = half.recorder(EXITS)(batch)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE["float16"], rtol=0)
    assert not np.array_equal(found, expected)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
