"""Fewer layers, trained alone: the rival of early exit, fine-tuned for its depth and timed in the same session."""

from pathlib import Path
from typing import Any

import pytest

import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.records import RunRecord, read_records
from models.config import UserError
from reports.choice import apply_floor
from reports.labels import configuration_label, role
from reports.runs import load_runs
from tests import suites
from tests.workers import ThreadWorker

CHECKPOINT: dict[str, Any] = suites.TINY["checkpoints"][0]
POLICIES = ["full_depth", {"kind": "fixed", "layer": 1}, {"kind": "entropy", "threshold": 0.6}]
AXES: dict[str, Any] = {
    "checkpoints": [CHECKPOINT | {"fewer_layers": [1]}],
    "policies": POLICIES,
    "timing": {"rows": 8, "repeats": 2, "block_rows": 4},
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a suite with one network of one layer beside its checkpoint of two."""
    folder = tmp_path_factory.mktemp("fewer_layers")
    path = suites.write(folder, **AXES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Worker", ThreadWorker)
        assert main(["run", str(path), "--checkpoints", str(folder / "ck"), "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def alone(output: Path) -> RunRecord:
    """The record of the one-layer network."""
    (found,) = [record for record in read_records(output) if record.checkpoint and record.checkpoint.truncates]
    return found


def test_it_is_trained_alone_and_timed_in_the_same_session(output: Path, alone: RunRecord):
    records = read_records(output)
    assert len(records) == 5
    assert {record.status for record in records} == {"ok"}
    assert len({record.session for record in records}) == 1
    info = alone.checkpoint
    assert info is not None
    assert (info.method, info.backbone, info.num_layers, info.truncates) == ("classifier", "bert-1x32", 1, 2)
    assert (alone.with_exits, alone.exits, alone.program) == (False, [1], "single")
    assert alone.exit_counts["dev"] == [40, 0]
    assert alone.recording not in {record.recording for record in records if record.run_id != alone.run_id}


def test_reports_take_it_for_a_truncated_network(output: Path, alone: RunRecord, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reports.choice.untrusted", lambda row: False)  # other tests share the machine
    assert role(alone) == "truncated"
    assert configuration_label(alone) == "1 of 2 layers, trained alone"
    assert alone.checkpoint is not None
    with_exits = alone.checkpoint.model_copy(update={"method": "pabee"})  # trained with exits, on as few layers
    assert configuration_label(alone.model_copy(update={"checkpoint": with_exits})) == "1 of 2 layers"
    rows = {row["run_id"]: row for row in apply_floor(load_runs(output), 0.999).rows}
    row = rows[alone.run_id]
    assert (row["num_layers"], row["mean_exit_layer"], row["layer_saving"]) == (2, 1.0, 0.5)
    whole = next(row for row in rows.values() if row["role"] == "no exits")
    assert row["speedup_best_float32_over"] == whole["run_id"]
    # Whichever of the two networks of one layer is faster, it is what early exit is compared with.
    early = next(row for row in rows.values() if row["role"] == "early exit")
    truncated = [row for row in rows.values() if row["role"] == "truncated"]
    fastest = min(truncated, key=lambda row: row["latency_s_per_example"])
    assert len(truncated) == 2
    assert early["speedup_best_truncated_over"] == fastest["run_id"]


def test_a_checkpoint_without_exits_has_whole_networks_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = suites.write(tmp_path, **AXES | {"checkpoints": [CHECKPOINT | {"method": "classifier"}]})
    assert main(["run", str(path), "--dry-run"]) == 0
    cases = [line for line in capsys.readouterr().out.splitlines() if "/" in line]
    assert [case.split("/")[-3:-1] for case in cases] == [["no-exits", "fixed-last"]]


@pytest.mark.parametrize("layers", [[2], [1, 1]], ids=["not fewer", "twice"])
def test_depths_that_make_no_sense(layers: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = suites.write(tmp_path, **AXES | {"checkpoints": [CHECKPOINT | {"fewer_layers": layers}]})
    for options in (["--dry-run"], ["--checkpoints", str(tmp_path / "ck"), "--output", str(tmp_path / "out")]):
        assert main(["run", str(path), *options]) == 2
        assert f"fewer_layers: {layers[0]} must lie below the network's 2 layers" in capsys.readouterr().err
    assert not (tmp_path / "ck").exists()


def test_fewer_layers_of_a_backbone(tmp_path: Path):
    start = {key: value for key, value in CHECKPOINT.items() if key not in ("backbone", "method")}
    with pytest.raises(UserError, match="fewer_layers: needs backbone"):
        suites.parse(tmp_path, checkpoints=[start | {"folder": "somewhere", "fewer_layers": [1]}])
