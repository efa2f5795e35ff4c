"""Sensitivity: each segment's INT8 alone, and what it can and cannot move."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from models.checkpoints import Checkpoint, load_checkpoint
from models.methods import Pabee
from models.policies import Entropy
from quant.__main__ import main
from quant.engines.openvino import OpenVinoSession, convert
from quant.recipes import Int8Static, apply_recipe, calibration_inputs
from quant.segments import cut
from quant.sensitivity import EVERYTHING, Sensitivity, _Comparison, _record, _with_one, sensitivity
from tests import tiny

RECIPE, POLICY, LAYERS = Int8Static(calibration_rows=8), Entropy(threshold=0.5), 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trained") / "checkpoint"
    tiny.checkpoint(made, "bert", Pabee(pooler="per_exit"))
    backbone = {"kind": "pretrained", "name": "minilm"}
    spec = {"task": tiny.task(tune_rows=48).model_dump(), "method": {"kind": "pabee"}, "backbone": backbone}
    spec["train"] = {"max_seq_length": 40}
    (made / "training.json").write_text(json.dumps({"spec": spec, "data_hash": "0" * 64}))
    return made


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint) -> Sensitivity:
    task = tiny.task(tune_rows=48)
    return sensitivity(checkpoint, task, task.load(None, 42), RECIPE, POLICY, rows=40)


def test_a_segment_moves_no_exit_before_it_and_an_exit_only_itself(found: Sensitivity):
    assert found.rows == 40
    assert len(found.shifts) == (2 * LAYERS + 1) * LAYERS
    moved = set()
    for shift in found.shifts:
        if shift.entropy_change:
            moved.add((shift.segment, shift.exit_layer))
    layers = {(f"layer_{i}", exit_) for i in range(1, LAYERS + 1) for exit_ in range(i, LAYERS + 1)}
    exits = {(f"exit_{i}", i) for i in range(1, LAYERS + 1)}
    assert moved == layers | exits | {(EVERYTHING, i) for i in range(1, LAYERS + 1)}


def test_figures_of_a_segment_agree_with_those_of_its_exits():
    random = np.random.default_rng(0)
    plain = random.normal(size=(LAYERS, 200, 3)).astype(np.float32) * np.arange(1, LAYERS + 1)[:, None, None]
    noisy = (plain + random.normal(size=plain.shape) / 2).astype(np.float32)
    compare = _Comparison(tiny.task(), POLICY, plain[-1].argmax(-1), plain.astype(np.float32))
    moved, shifts = compare.policy_of("layer_1", noisy), compare.exits_of("layer_1", noisy)
    leaving = np.array([shift.leaving_change for shift in shifts])
    assert leaving.any()
    assert leaving.sum() == pytest.approx(0, abs=1e-9)
    assert moved.layer_change == pytest.approx(leaving @ np.arange(1, LAYERS + 1))
    assert np.abs(leaving).sum() / 2 - 1e-9 <= moved.exits_moved < 1
    assert shifts[-1].score_change == pytest.approx((noisy[-1].argmax(-1) == plain[-1].argmax(-1)).mean() - 1)
    assert compare.policy_of("none", plain) == ("none", 0, 0, 0)


def test_one_segment_in_int8_is_the_recipe_with_all_others_fallen_back(checkpoint: Checkpoint):
    network, task = checkpoint.network, tiny.task()
    backbone, fit = network.backbone.config, task.load(None, 42).splits["fit"]
    longest = checkpoint.training["spec"]["train"]["max_seq_length"]
    calibration = calibration_inputs(RECIPE, fit, checkpoint.tokenizer, longest, backbone.pad_token_id)
    batches = tiny.batches(tiny.encoded(8), 8, "bert")
    others = [name for name in cut(network).named() if name != "layer_2"]
    alone = RECIPE.model_copy(update={"fallback": others})
    expected = OpenVinoSession(apply_recipe(alone, network, calibration), 1)
    whole = OpenVinoSession(apply_recipe(RECIPE, network, calibration), 1)
    mixed = _with_one(convert(cut(network)), whole.segments, "layer_2")
    np.testing.assert_allclose(_record(whole, mixed, batches), _record(expected, expected.segments, batches), atol=1e-5)


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "found.csv"
    options = ["--recipe", "{kind: int8_static, calibration_rows: 2, fallback: [layer_*]}", "--rows", "8"]
    assert main(["sensitivity", str(folder), *options, "--csv", str(path)]) == 0
    said = capsys.readouterr().out
    assert "8 rows of tune" in said
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["segment"] for row in rows[::LAYERS]] == [
        *(f"layer_{i}" for i in range(1, LAYERS + 1)),
        *(f"exit_{i}" for i in range(1, LAYERS + 1)),
        EVERYTHING,
    ]
    # What falls back in any case moves nothing.
    assert {float(row["entropy_change"]) for row in rows if row["segment"].startswith("layer")} == {0.0}
    assert any(float(row["entropy_change"]) for row in rows if row["segment"].startswith("exit"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "float32"], "--recipe: sensitivity is that of int8_static, found float32"),
        (["--rows", "0"], "--rows: must be at least 1, found 0"),
        (["--recipe", "{kind: int8_static, fallback: [layer_9]}"], "fallback: 'layer_9' matches nothing"),
        (["--policy", "{kind: imposed, exit_layers: [1]}"], "policy imposed decides nothing on task synthetic"),
    ],
)
def test_unusable_input(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str):
    assert main(["sensitivity", str(folder), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
