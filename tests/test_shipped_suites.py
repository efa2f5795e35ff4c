"""Every suite that comes with ExitBench, at toy size: from training to reports.

`EXITBENCH_SMOKE` names a folder where toy runs may stand already, each in `<suite>/`; they are resumed, not run again.
"""

import csv
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.expansion import expand
from benchmarks.records import RunRecord, examples_path, read_records, timings_path
from benchmarks.suite import CheckpointSpec, Suite, engine_label, layers_of, read_suite
from models.families import SHORT_NAMES, Pretrained
from models.policies import Fixed
from models.tasks import GlueTask, Task
from reports.__main__ import main as report
from tests.workers import ThreadWorker

ROOT = Path(__file__).resolve().parent.parent
SUITES = sorted((ROOT / "yaml_configs" / "suites").glob("*.yaml"))
# Suites of many methods, of which one is run in each, or of many workers: theirs have no process of their own.
ONLY = {
    "ablation_rte": "deebert",
    "ablation_sst2": "fastbert",
    "bert_base_timing": "pabee",
    "bert_large_timing": "pabee",
    "mrpc_exits": "romebert",
    "shapes_timing": "pabee",
    "sst2_exits": "deebert",
    "sst2_minilm": "deebert",
    "stsb_exits": "pabee",
}


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield
    logging.disable(logging.NOTSET)


def location(tasks: list[Task], checkpoints: list[CheckpointSpec], request: pytest.FixtureRequest) -> list[str]:
    """What a file needs from outside, or a skip."""
    for spec in checkpoints:
        package = SHORT_NAMES.get(spec.backbone.name) if isinstance(spec.backbone, Pretrained) else None
        if package is not None and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if any(isinstance(task, GlueTask) for task in tasks):
        return ["--dataset_location", str(request.getfixturevalue("glue_folder"))]
    return []


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suite_is_what_it_says(path: Path):
    suite = read_suite(path)
    assert suite.name == path.stem
    for task in suite.tasks:
        for spec in suite.checkpoints:
            runs = expand(suite, task, "ck", layers_of(spec))
            assert len({run.case for run in runs}) == len(runs)
            roles = {(run.with_exits, isinstance(run.policy, Fixed) and run.policy.layer is None) for run in runs}
            # Early exit is only shown beside what a user can have without it.
            assert roles >= {(True, False), (True, True), (False, True), (False, False)}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suite_runs_and_reports(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    suite, folder = read_suite(path), Path(os.environ.get("EXITBENCH_SMOKE", tmp_path)) / path.stem
    output = folder / "output"
    command = ["run", str(path), "--smoke", "--output", str(output)]
    command += ["--checkpoints", str(folder / "checkpoints"), *location(suite.tasks, suite.checkpoints, request)]
    # Inductor compiles for minutes at any size; tests/test_inductor.py runs it on a network of two layers.
    suite = suite.model_copy(update={"engines": [engine for engine in suite.engines if engine.kind != "inductor"]})
    command += ["--only", f"/{suite.engines[0].kind}/"] if len(suite.engines) == 1 else []
    if (method := ONLY.get(path.stem)) is not None:
        monkeypatch.setattr(runner, "Worker", ThreadWorker)
        command += ["--only", f"{method}-"]
        chosen = [spec for spec in suite.checkpoints if spec.method is not None and spec.method.kind == method]
        suite = suite.model_copy(update={"checkpoints": chosen})
    assert main(command) == 0
    records = read_records(output)
    assert [(record.case, record.error) for record in records if record.status != "ok"] == []
    assert_every_case_ran(suite, records)
    for record in records:
        assert examples_path(output, record.run_id).exists()
        assert timings_path(output, record).exists()
        if (
            record.recipe["kind"] == "int8_dynamic"
            and record.engine == "onnxruntime"
            and record.shape["batch_size"] > 1
        ):
            assert record.parity is None  # one scale for a batch
        else:
            assert record.parity is not None
            assert record.parity.differing == record.parity.below_epsilon

    assert report(["render", str(output)]) == 0
    written = {file.name for file in (output / "report").iterdir()}
    assert {"results.csv", "results.md"} <= written
    assert {Path(name).suffix for name in written} >= {".png", ".svg"}
    with (output / "report" / "results.csv").open() as file:
        assert {row["run_id"] for row in csv.DictReader(file)} == {record.run_id for record in records}


def assert_every_case_ran(suite: Suite, records: list[RunRecord]) -> None:
    """Toy size leaves out settings, never a case of an axis."""
    assert {record.task for record in records} == {task.name for task in suite.tasks}
    assert {record.policy["kind"] for record in records} == {policy.kind for policy in suite.policies}
    assert {record.recipe["kind"] for record in records} == {recipe.kind for recipe in suite.recipes}
    assert {record.engine.split("-")[0] for record in records} == {engine.kind for engine in suite.engines}
    sizes = [shape.batch_size for shape in suite.shapes]
    assert {record.shape["batch_size"] for record in records} == {min(sizes), max(sizes)}
    assert {record.with_exits for record in records} == {exits != "none" for exits in suite.exits}
    trained = {record.checkpoint.name: record.checkpoint for record in records if record.checkpoint is not None}
    alone = {name for name, info in trained.items() if info.truncates}
    methods = {info.method for name, info in trained.items() if name not in alone}
    assert methods == {spec.method.kind for spec in suite.checkpoints if spec.method is not None}
    assert len(trained) - len(alone) == len(suite.tasks) * len(suite.smoke().checkpoints)
    # Those of one method are picked by name, which networks of fewer layers do not share.
    assert bool(alone) == (suite.name not in ONLY and any(spec.fewer_layers for spec in suite.checkpoints))
    # The first engine runs every recipe that it runs at full size.
    first = {record.recipe["kind"] for record in records if record.engine == engine_label(suite.engines[0])}
    full = expand(suite, suite.tasks[0], "ck", layers_of(suite.checkpoints[0]))
    assert first == {run.recipe.kind for run in full if run.engine == suite.engines[0]}
