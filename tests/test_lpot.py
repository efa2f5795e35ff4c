"""LPOT's modes: the lines they print, the score a suite records, and what is no model."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import benchmarks.lpot as lpot
import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.records import read_records
from benchmarks.suite import CheckpointSpec, read_suite
from models.checkpoints import load_checkpoint
from models.policies import Entropy
from quant import artefact
from quant.export import export
from tests import suites, tiny
from tests.commands import Said
from tests.workers import ThreadWorker

ROOT = Path(__file__).resolve().parent.parent
POLICY, EXITS = Entropy(threshold=0.5), [1, 2, 3, 4]
FIGURE = r"(\d+\.\d{3})"
# The recipe of the modes, calibrated in less time.
INT8 = lpot.INT8.model_copy(update={"calibration_rows": 8})


class Measured(NamedTuple):
    """A checkpoint, its export in INT8, and dev accuracy as a suite records it: float32, INT8, and INT8 with exits."""

    checkpoint: Path
    exported: Path
    accuracies: dict[str, float]


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(lpot, "INT8", INT8)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("measured")
    recipes: list[Any] = ["float32", INT8.model_dump()]
    policies = ["full_depth", POLICY.model_dump()]
    timing = {"rows": 8, "repeats": 2, "block_rows": 8}
    checkpoint = folder / "checkpoint"  # random and spread; one hardly trained answers every row alike
    tiny.checkpoint(checkpoint)
    described = json.loads((checkpoint / "training.json").read_text())
    described["spec"]["task"] = suites.TINY["tasks"][0]
    (checkpoint / "training.json").write_text(
        json.dumps(described | {"data_seed": 42, "curves": {"": []}, "seconds": 0.0})
    )
    changes = {"checkpoints": [{"folder": str(checkpoint)}], "recipes": recipes, "policies": policies}
    path = suites.write(folder, timing=timing, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Worker", ThreadWorker)
        assert main(["run", str(path), "--checkpoints", str(folder / "ck"), "--output", str(folder / "output")]) == 0
    suite = read_suite(path)
    data = suite.tasks[0].load(None, suite.seed)
    export(folder / "served", load_checkpoint(checkpoint), suite.tasks[0], data, INT8, POLICY, EXITS)
    found = {
        f"{record.recipe['kind']} {record.policy['kind']}": record.scores["dev"]["accuracy"]
        for record in read_records(folder / "output")
        if record.with_exits == (record.policy["kind"] == "entropy")
    }
    assert len(set(found.values())) > 1, found  # or equality below would say nothing
    return Measured(checkpoint, folder / "served", found)


def accuracy_of(said: Said) -> float:
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].endswith("; accuracy over 40 rows of dev")
    assert re.fullmatch(r"Accuracy: \d\.\d{5}", lines[1])
    assert lines[2].startswith("Batch size = ")
    assert len(lines) == 3
    return float(lines[1].removeprefix("Accuracy: "))


def test_accuracy_is_what_a_suite_records(call: Callable[..., Said], measured: Measured):
    """LPOT's line, whose --config is the tuned model, with which the untuned one is measured, too."""
    checkpoint, exported = measured.checkpoint, measured.exported
    line, int8 = ["--topology", "default", "--input_model", checkpoint, "--config", exported], ["--int8", "true"]
    for given, size, recorded, named in (
        (line, 1, "float32 fixed", f"{checkpoint}: float32 on openvino, 4 layers without exits; "),
        (["--input_model", checkpoint, *int8], 16, "int8_static fixed", f"{checkpoint}: int8_static-kl-8-s42-float32 "),
        (
            [*line, *int8],
            7,
            "int8_static entropy",
            f"{exported}: int8_static on openvino, exits [1, 2, 3, 4] with entropy ",
        ),
        (["--input_model", exported, *int8], 1, "int8_static entropy", f"{exported}: int8_static on openvino, "),
    ):
        said = call("accuracy", *given, "--batch_size", size)
        assert accuracy_of(said) == pytest.approx(measured.accuracies[recorded], abs=5e-6), recorded
        assert said.out.startswith(named)
        assert said.out.endswith(f"Batch size = {size}\n")


def test_benchmark_prints_lpots_lines(call: Callable[..., Said], measured: Measured):
    said = call("benchmark", "--input_model", measured.exported, "--int8", "true", "--batch_size", "4", "--iters", "12")
    assert (said.code, said.err) == (0, "")
    form = (
        rf"{re.escape(str(measured.exported))}: int8_static on openvino, "
        rf"exits \[1, 2, 3, 4\] with entropy \(threshold 0\.5\); "
        rf"12 calls after 10 of warm-up: p50 {FIGURE} ms, p99 {FIGURE} ms a call\n"
        rf"Throughput: {FIGURE} samples/sec\nLatency: {FIGURE} ms\nBatch size = 4\n"
    )
    found = re.fullmatch(form, said.out)
    assert found, said.out
    p50, p99, throughput, latency = map(float, found.groups())
    assert 0 < p50 <= p99
    # Milliseconds a row may be so few that their three decimals show.
    assert latency == pytest.approx(1000 / throughput, abs=6e-4)


def test_seconds_become_throughput_and_latency(monkeypatch: pytest.MonkeyPatch):
    """10 calls of warm-up are not counted; 40 calls of 5 rows at 20 ms are 250 rows a second, 4 ms a row."""
    seconds, calls = iter([9.0] * 10 + [0.02] * 40), []
    monkeypatch.setattr(lpot, "_seconds", lambda model, inputs: calls.append(inputs) or next(seconds))
    rows: Any = list(range(3))  # fewer than a call takes
    model = lpot.Model("tiny", suites.TINY["tasks"][0], rows, list, np.asarray)
    options: Any = type("Options", (), {"batch_size": 5, "iters": 40})
    assert lpot.benchmark(model, options) == [
        "tiny; 40 calls after 10 of warm-up: p50 20.000 ms, p99 20.000 ms a call",
        "Throughput: 250.000 samples/sec",
        "Latency: 4.000 ms",
        "Batch size = 5",
    ]
    assert [len(call) for call in calls] == [5] * 50
    assert set(np.ravel(calls)) == {0, 1, 2}


def test_tuning_takes_lpots_folders(call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("benchmarks.winner.run_tuning", lambda *given: asked.append(given) or 0)
    given = ["tune", "yaml_configs/tuning/default.yaml", "--output", tmp_path / "output"]
    assert call(*given).code == 0
    assert call(*given, "--input_model", "ck", "--output_model", tmp_path / "saved").code == 0
    (usual, *_), (tuning, *_) = asked
    assert tuning == usual.of_checkpoint(Path("ck"))
    assert tuning.model.checkpoints == [CheckpointSpec(folder="ck")]
    assert [artefact for *_, artefact, _, _ in asked] == [tmp_path / "output" / "artefact", tmp_path / "saved"]


def test_an_output_model_in_use_is_refused_before_the_search(
    call: Callable[..., Said], measured: Measured, tmp_path: Path
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    given = ["--input_model", measured.checkpoint, "--output_model", tmp_path / "mine", "--output", tmp_path / "out"]
    said = call("tune", "yaml_configs/tuning/default.yaml", *given)
    assert (said.code, said.err) == (2, f"Error: '{tmp_path}/mine' exists and is not an export: give another folder\n")


def test_what_is_no_model(call: Callable[..., Said], measured: Measured, tmp_path: Path):
    ck, served = measured.checkpoint, measured.exported
    for given, message in (
        ([], "--input_model is required: a checkpoint folder, or a folder that was exported"),
        (["--int8", "true"], "--input_model is required"),
        (["--config", served], "--input_model is required"),  # read with --int8 true alone
        (["--input_model", tmp_path / "none"], "is neither a checkpoint nor an exported model: give a folder that is"),
        (["--input_model", tmp_path, "--int8", "true"], "is neither a checkpoint nor an exported model"),
        (["--input_model", served], "holds int8_static: give --int8=true"),
        (["--input_model", ck, "--iters", "0"], "--batch_size and --iters must be at least 1, found 16 and 0"),
        (["--input_model", ck, "--batch_size", "0"], "must be at least 1, found 0 and 100"),
        (["--input_model", ck, "--topology", "bert_base_MRPC"], "suite 'yaml_configs/suites/bert_base_MRPC.yaml' does"),
        (["--input_model", ck, "--topology", "sst2_minilm"], "--topology sst2_minilm is of sst2, but "),
        (["--input_model", ck, "--topology", "mrpc_exits"], "--topology mrpc_exits is of mrpc, but "),
        (["--input_model", served, "--int8", "true", "--topology", "sst2_minilm"], "is of sst2, but "),
    ):
        for mode in ("accuracy", "benchmark"):
            said = call(mode, *given)
            assert (said.code, said.out) == (2, "")
            assert re.fullmatch(rf"Error: .*{re.escape(message)}.*\n", said.err), said.err


def test_damaged_models(call: Callable[..., Said], measured: Measured, tmp_path: Path):
    broken = shutil.copytree(measured.checkpoint, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    save_file({name: np.nan * tensor for name, tensor in state.items()}, broken / "model.safetensors")
    said = call("accuracy", "--input_model", broken)
    assert (said.code, said.err.startswith("Error: recorded logits must be finite")) == (2, True)

    altered = shutil.copytree(measured.exported, tmp_path / "altered")
    (altered / artefact.TOKENIZER).write_text("{}")
    said = call("accuracy", "--input_model", altered, "--int8", "true")
    assert (said.code, "is not the file that was exported" in said.err) == (2, True)

    old = shutil.copytree(measured.exported, tmp_path / "old")
    described = json.loads((old / artefact.DESCRIPTION).read_text())
    described["schema"] = "exitbench/artefact/1"
    (old / artefact.DESCRIPTION).write_text(json.dumps(described))
    said = call("accuracy", "--input_model", old, "--int8", "true")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "has schema 'exitbench/artefact/1', this loader reads 'exitbench/artefact/2': export it again" in said.err

    alone = shutil.copytree(measured.exported, tmp_path / "alone")
    described = json.loads((alone / artefact.DESCRIPTION).read_text())
    (alone / artefact.DESCRIPTION).write_text(json.dumps(described | {"rows_alone": True}))
    said = call("accuracy", "--input_model", alone, "--int8", "true", "--batch_size", 2)
    assert (said.code, said.err) == (2, f"Error: '{alone}' takes rows one by one: --batch_size=1, found 2\n")
