"""The runner: one small suite measured for real, what it leaves on disk, and what becomes of broken combinations."""

import hashlib
import itertools
import logging
import re
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from pydantic import TypeAdapter

import benchmarks.runner as runner
import benchmarks.worker as worker
from benchmarks.__main__ import main
from benchmarks.expansion import expand
from benchmarks.recordings import recording_path
from benchmarks.records import (
    Coverage,
    RunRecord,
    append_record,
    examples_path,
    read_columns,
    read_records,
    timings_path,
)
from benchmarks.session import run_id, sessions
from benchmarks.suite import RunSpec, Shape, Suite, TimingConfig, read_suite
from benchmarks.worker import Built, Worker, WorkerError, _Service
from models.cpu import processors
from models.policies import Entropy, Fixed, Policy, replay
from models.tasks import TaskData
from quant.engine import OpenVino
from quant.engines.openvino import OpenVinoSession
from quant.programs import ExitOutput
from quant.recipes import Bfloat16, Float32, Int8Static, calibration_indices
from tests import kills, suites
from tests.workers import DeadWorker, ThreadWorker

DEV_ROWS, TIMED_ROWS, REPEATS = 40, 10, 2
AXES: dict[str, Any] = {
    "recipes": ["float32", {"kind": "int8_static", "calibration_rows": 8}],
    "policies": [
        "full_depth",
        {"kind": "fixed", "layer": 1},
        {"kind": "patience", "patience": 1},
        {"kind": "entropy", "threshold": [0.5, 0.65]},
    ],
    "shapes": [{"batch_size": [1, 4], "threads": 1}],
    "timing": {"rows": TIMED_ROWS, "repeats": REPEATS, "block_rows": 4},
}


class Measured(NamedTuple):
    """A suite after `run`: its file, its checkpoints and its output."""

    path: Path
    suite: Suite
    checkpoints: Path
    output: Path

    def run(self, output: Path, *more: str) -> int:
        """The same suite into another folder, or with other options."""
        return main(["run", str(self.path), "--checkpoints", str(self.checkpoints), "--output", str(output), *more])


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Trained for a few steps, quantized, measured by real worker processes."""
    folder = tmp_path_factory.mktemp("measured")
    path = suites.write(folder, **AXES)
    made = Measured(path, read_suite(path), folder / "checkpoints", folder / "output")
    assert made.run(made.output) == 0
    return made


@pytest.fixture(scope="module")
def records(measured: Measured) -> list[RunRecord]:
    return read_records(measured.output)


@pytest.fixture(scope="module")
def data(measured: Measured) -> TaskData:
    return measured.suite.tasks[0].load(None, measured.suite.seed)


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """What workers in this process have quantized and converted so far: seconds each, and all of one checkpoint."""
    return {}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch, opened: dict[str, Any]) -> None:
    """Workers in this process."""
    convert, quantize = OpenVino.open, worker.apply_recipe

    def apply_recipe(recipe: Any, *given: Any) -> Any:
        if recipe.kind not in opened:
            opened[recipe.kind] = quantize(recipe, *given)
        return opened[recipe.kind]

    def open_session(engine: OpenVino, segments: Any, threads: int) -> Any:
        key = f"session {segments.int8}"
        if key not in opened:
            opened[key] = convert(engine, segments, threads)
        return opened[key]

    monkeypatch.setattr(worker, "apply_recipe", apply_recipe)
    monkeypatch.setattr(OpenVino, "open", open_session)
    monkeypatch.setattr(runner, "Worker", ThreadWorker)


# What a run leaves on disk


def test_every_case_has_its_record(measured: Measured, records: list[RunRecord]):
    (folder,) = measured.checkpoints.iterdir()
    expected = expand(measured.suite, measured.suite.tasks[0], folder.name, 2)
    assert Counter(record.case for record in records) == Counter(run.case for run in expected)
    assert len(records) == 2 * 2 * (4 + 2)
    assert [(record.status, record.error) for record in records] == [("ok", None)] * len(records)
    assert len({record.run_id for record in records}) == len(records)


def test_records_say_what_ran(records: list[RunRecord]):
    for record in records:
        int8 = record.recipe["kind"] == "int8_static"
        assert record.precision == ("int8+float32" if int8 else "float32")
        assert record.program == ("graph" if record.with_exits else "single")
        assert record.exits == ([1, 2] if record.with_exits else [record.policy["layer"] or 2])
        assert record.shape["threads"] == 1
        assert (record.calibration is not None) == int8
        ops = 2 * (6 + 2)
        assert record.coverage == (Coverage(int8_ops=ops, linear_ops=ops, others={}) if int8 else None)
        assert record.size_bytes is not None
        assert record.size_bytes > 0
        assert record.build_seconds is not None
        assert record.build_seconds > 0
        assert record.checkpoint is not None
        assert (record.checkpoint.method, record.checkpoint.family, record.checkpoint.num_layers) == (
            "pabee",
            "bert",
            2,
        )
        assert len(record.checkpoint.select_scores) == 2
        assert record.environment["threads"] == 1
        assert record.split_counts["dev"] == DEV_ROWS


def test_examples_are_the_dev_rows(measured: Measured, records: list[RunRecord], data: TaskData):
    dev = data.splits["dev"]
    assert dev.grade is not None
    for record in records:
        examples = read_columns(examples_path(measured.output, record.run_id))
        assert set(examples) == {"id", "label", "length", "grade", "prediction", "exit_layer"}
        assert examples["id"].tolist() == dev.ids
        assert np.array_equal(examples["label"], dev.labels)
        assert np.array_equal(examples["grade"], dev.grade)
        # [CLS], one token a word, [SEP]; the task's words are all in its vocabulary.
        assert examples["length"].tolist() == [len(text.split()) + 2 for (text,) in dev.texts]
        if not record.with_exits:
            assert set(examples["exit_layer"]) == {record.exits[-1]}


def test_scores_and_exits_follow_from_the_examples(measured: Measured, records: list[RunRecord], data: TaskData):
    task = measured.suite.tasks[0]
    majority = np.bincount(data.splits["dev"].labels).max() / DEV_ROWS
    for record in records:
        examples = read_columns(examples_path(measured.output, record.run_id))
        assert task.metrics(examples["label"], examples["prediction"]) == record.scores["dev"]
        assert np.bincount(examples["exit_layer"], minlength=3)[1:].tolist() == record.exit_counts["dev"]
        assert set(record.scores) == set(record.exit_counts) == {"tune", "dev"}
        assert record.majority_score == pytest.approx(majority)


def test_timings_cover_every_repeat_and_batch(measured: Measured, records: list[RunRecord]):
    for record in records:
        size = record.shape["batch_size"]
        timings = read_columns(timings_path(measured.output, record))
        assert set(timings) == {"repeat", "batch", "instance", "rows", "seconds"}
        assert set(timings["instance"]) == {0}
        batches = -(-TIMED_ROWS // size)
        pairs = list(zip(timings["repeat"].tolist(), timings["batch"].tolist(), strict=True))
        assert sorted(pairs) == list(itertools.product(range(REPEATS), range(batches)))
        assert timings["rows"].sum() == REPEATS * TIMED_ROWS
        assert (timings["seconds"] > 0).all()
        assert record.timed_rows == TIMED_ROWS


@pytest.mark.usefixtures("threads")
def test_rows_in_order_of_length_answer_the_same(measured: Measured, tmp_path: Path):
    shapes = [{"batch_size": 4, "threads": 1, "order": ["given", "by_length"]}]
    path = suites.write(tmp_path, **AXES | {"shapes": shapes})
    assert measured._replace(path=path).run(tmp_path / "output") == 0
    found = read_records(tmp_path / "output")
    sorted_ = {one.case.replace("-by_length", ""): one for one in found if one.shape["order"] == "by_length"}
    assert len(found) == 2 * len(sorted_)
    for one in found:
        other = sorted_[one.case.replace("-by_length", "")]
        assert (one.scores, one.exit_counts) == (other.scores, other.exit_counts)
        assert one.recording == other.recording  # one pass serves both orders
        assert one.parity is not None
        assert one.parity.differing == one.parity.below_epsilon  # each row's live answer is held to its own replay


def test_timed_rows_are_drawn_once_and_ordered():
    lengths = np.random.default_rng(0).integers(4, 40, 100)
    session: Any = SimpleNamespace(suite=SimpleNamespace(seed=1, timing=SimpleNamespace(rows=30)))
    given = runner.draw_timed(session, Shape(), lengths)
    by_length = runner.draw_timed(session, Shape(order="by_length"), lengths)
    assert given == sorted(by_length)
    assert len(set(given)) == 30
    assert (np.diff(lengths[by_length]) >= 0).all()
    assert (np.diff(lengths[given]) < 0).any()


def test_the_recording_replays_to_the_same(measured: Measured, records: list[RunRecord], data: TaskData):
    task, recordings = measured.suite.tasks[0], Counter(record.recording for record in records)
    assert len(recordings) == 4  # one a recipe and shape
    for record in records:
        assert record.recording is not None
        stored = np.load(recording_path(measured.output, record.recording))
        assert stored["exits"].tolist() == [1, 2]
        assert stored["dev"].shape == (2, DEV_ROWS, 2)
        policy: Policy = TypeAdapter(Policy).validate_python(record.policy)
        exits = record.exits[-1:] if isinstance(policy, Fixed) else record.exits
        kept = [layer - 1 for layer in exits]
        replayed = {split: replay(policy, stored[split][kept], exits) for split in ("tune", "dev")}
        examples = read_columns(examples_path(measured.output, record.run_id))
        assert np.array_equal(replayed["dev"].exit_layer, examples["exit_layer"])
        assert np.array_equal(replayed["dev"].logits.argmax(-1), examples["prediction"])
        tune = task.metrics(data.splits["tune"].labels, replayed["tune"].logits.argmax(-1))
        assert tune == record.scores["tune"]


def test_live_runs_agree_with_the_replay(records: list[RunRecord]):
    for record in records:
        assert record.parity is not None
        assert record.parity.rows == TIMED_ROWS
        assert record.parity.differing == record.parity.below_epsilon


def test_rows_do_leave_early(records: list[RunRecord]):
    """Or most of the above would hold for a program that ignores its policy."""
    counts = np.array([record.exit_counts["dev"] for record in records if record.policy["kind"] == "entropy"])
    assert counts.sum(axis=0).min() > 0


def test_runs_of_a_shape_share_a_session(records: list[RunRecord]):
    by_shape = {size: {r.session for r in records if r.shape["batch_size"] == size} for size in (1, 4)}
    assert [len(found) for found in by_shape.values()] == [1, 1]
    assert by_shape[1] != by_shape[4]


def test_calibration_reads_fit(records: list[RunRecord], data: TaskData):
    fit = data.splits["fit"]
    rows = calibration_indices(Int8Static(calibration_rows=8), len(fit))
    digest = hashlib.sha256("\n".join(fit.ids[row] for row in rows).encode()).hexdigest()
    told = [record.calibration for record in records if record.calibration is not None]
    assert len(told) == 12
    assert all((c.split, c.rows, c.seed, c.ids_hash) == ("fit", 8, 42, digest) for c in told)


# Resuming


def test_a_finished_suite_is_left_as_it_is(measured: Measured, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(runner, "Worker", refuse)
    before = (measured.output / "records.jsonl").read_bytes()
    assert measured.run(measured.output) == 0
    assert (measured.output / "records.jsonl").read_bytes() == before


@pytest.mark.usefixtures("threads")
def test_a_missing_record_has_its_session_measured_again(measured: Measured, tmp_path: Path):
    chosen = "/float32/"
    shutil.copytree(measured.output, tmp_path / "output")
    path = tmp_path / "output" / "records.jsonl"
    old = {record.run_id: record for record in read_records(path.parent)}
    lines = path.read_bytes().splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if chosen.encode() in line and b"/b4-" in line)
    path.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
    assert measured.run(path.parent, "--only", chosen) == 0
    new = {record.run_id: record for record in read_records(path.parent)}
    assert set(new) == set(old)
    for identity, record in new.items():
        assert record.status == "ok"
        # A ratio needs both its sides in one session, so the whole session is new, and what was not chosen is not.
        again = chosen in record.case and record.shape["batch_size"] == 4
        assert (record.session != old[identity].session) == again
        if again:
            assert (record.case, record.scores) == (old[identity].case, old[identity].scores)
        # The earlier session's raw timings stay as they are.
        assert timings_path(path.parent, old[identity]).read_bytes() == (
            timings_path(measured.output, old[identity]).read_bytes()
        )
    # Now the shape was timed in two sessions, which the whole suite joins.
    assert measured.run(path.parent) == 0
    by_shape = {
        size: {r.session for r in read_records(path.parent) if r.shape["batch_size"] == size} for size in (1, 4)
    }
    assert [len(found) for found in by_shape.values()] == [1, 1]
    assert by_shape[1] == {record.session for record in old.values() if record.shape["batch_size"] == 1}


@pytest.mark.usefixtures("threads")
def test_a_killed_suite_goes_on_with_the_session_in_flight(
    measured: Measured, records: list[RunRecord], tmp_path: Path
):
    """`python -m tests.kills 5 suite` kills at random moments."""
    chosen = "/float32/"

    def until_the_first_session_is_there(process: subprocess.Popen) -> None:
        while process.poll() is None and len(kills.read(tmp_path)) < 6:
            time.sleep(0.01)

    asked = ["run", str(measured.path), "--checkpoints", str(measured.checkpoints), "--output", str(tmp_path)]
    assert kills.run_and_kill([*asked, "--only", chosen], until_the_first_session_is_there)
    finished = read_records(tmp_path)
    assert {record.shape["batch_size"] for record in finished[:6]} == {1}
    assert measured.run(tmp_path, "--only", chosen) == 0
    found = read_records(tmp_path)
    assert [record for record in finished[:6] if record not in found] == []
    assert kills.comparable(found) == kills.comparable([record for record in records if chosen in record.case])
    for record in found:
        calls = len(read_columns(timings_path(tmp_path, record))["seconds"])
        assert calls == REPEATS * -(-TIMED_ROWS // record.shape["batch_size"])


def test_run_id_names_all_that_decides_a_run(measured: Measured, monkeypatch: pytest.MonkeyPatch):
    first, second = expand(measured.suite, measured.suite.tasks[0], "ck", 2)[:2]
    ids = [run_id(first, "d", "c"), run_id(second, "d", "c"), run_id(first, "e", "c"), run_id(first, "d", "f")]
    assert run_id(first, "d", "c") == ids[0]
    monkeypatch.setattr("benchmarks.environment.toolchain", lambda: {"torch": "0"})
    ids.append(run_id(first, "d", "c"))
    monkeypatch.setattr("benchmarks.environment.kernel_flags", lambda: ["avx2"])
    assert len({*ids, run_id(first, "d", "c")}) == 6


def test_only_what_is_asked_for_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (spec,) = suites.TINY["checkpoints"]
    suite = suites.parse(tmp_path, checkpoints=[spec, spec | {"method": "deebert"}])
    trained = []
    monkeypatch.setattr("benchmarks.session.fine_tune", lambda spec, *_: trained.append(spec.method.kind))
    # Nothing is really trained, so loading fails.
    with pytest.raises(Exception, match="train it again"):
        list(sessions(suite, None, tmp_path, tmp_path, "-deebert-", False, print))
    assert trained == ["deebert"]


@pytest.mark.usefixtures("threads")
def test_several_instances_measure_the_same(
    measured: Measured, records: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a machine said to have two processors; workers in this process are not pinned."""
    started = []

    def start(spec: Any, log: Path) -> Worker:
        started.append(spec.processors)
        return ThreadWorker(spec, log)

    monkeypatch.setattr(runner, "Worker", start)
    for module in ("benchmarks.suite", "benchmarks.runner"):
        monkeypatch.setattr(f"{module}.processors", lambda: [0, 1])
    path = suites.write(tmp_path, **AXES | {"shapes": [{"batch_size": 4, "threads": 1, "instances": 2}]})
    asked = ["--checkpoints", str(measured.checkpoints), "--output", str(tmp_path / "output"), "--only", "/float32/"]
    assert main(["run", str(path), *asked]) == 0
    assert started == [[0], [1]]
    alone = {record.case: record for record in records}
    for record in read_records(tmp_path / "output"):
        assert record.case.endswith("/b4-longest-1t-2i")
        other = alone[record.case.removesuffix("-2i")]
        assert (record.scores, record.exit_counts) == (other.scores, other.exit_counts)
        timings = read_columns(timings_path(tmp_path / "output", record))
        calls = itertools.product(range(REPEATS), range(3), range(2))
        names = ("repeat", "batch", "instance")
        assert sorted(zip(*(timings[name].tolist() for name in names), strict=True)) == list(calls)
        assert timings["rows"].sum() == 2 * REPEATS * TIMED_ROWS


@pytest.mark.usefixtures("threads")
def test_an_instance_that_fails_is_the_run_that_fails(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the other instances' runs are not taken for others."""
    built, calls = _Service.build, itertools.count()

    def build(self: _Service, number: int, run: RunSpec, rows: Sequence[int]) -> Built:
        if next(calls) == 1:  # the first run, on the second instance
            raise MemoryError
        return built(self, number, run, rows)

    def time_block(self: _Service, number: int, first: int, last: int) -> list[float]:
        return [len(self.runs[number].spec.case)] * (last - first)

    monkeypatch.setattr(_Service, "build", build)
    monkeypatch.setattr(_Service, "time_block", time_block)
    monkeypatch.setattr("benchmarks.suite.processors", lambda: [0, 1])
    path = suites.write(tmp_path, **AXES | {"shapes": [{"batch_size": 4, "threads": 1, "instances": 2}]})
    asked = ["--checkpoints", str(measured.checkpoints), "--output", str(tmp_path / "output"), "--only", "/float32/"]
    assert main(["run", str(path), *asked]) == 1
    failed, *others = read_records(tmp_path / "output")
    assert (failed.error or "").startswith("MemoryError: ")
    for record in others:
        assert set(read_columns(timings_path(tmp_path / "output", record))["seconds"]) == {len(record.case)}


# Broken combinations


Breakage = Callable[[pytest.MonkeyPatch], str]


def _broken_open(monkeypatch: pytest.MonkeyPatch) -> str:
    opened = OpenVino.open

    def open_float(self: OpenVino, segments: Any, threads: int) -> Any:
        if segments.int8:
            raise RuntimeError("no kernel\nfor this")
        return opened(self, segments, threads)

    monkeypatch.setattr(OpenVino, "open", open_float)
    return r"RuntimeError: no kernel \(test_runner\.py:\d+\)"


def _dead_worker(monkeypatch: pytest.MonkeyPatch) -> str:
    def start(spec: Any, log: Path) -> Worker:
        return DeadWorker(spec, log) if spec.recipe.kind == "int8_static" else ThreadWorker(spec, log)

    monkeypatch.setattr(runner, "Worker", start)
    return r"the worker process died \(exit code -9; -9 usually means out of memory\)"


@pytest.mark.usefixtures("threads")
def test_a_worker_that_died_is_replaced_at_the_next_shape(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = itertools.count()  # the first is dead before it is asked anything, and so is replaced at once

    def start(spec: Any, log: Path) -> Worker:
        return DeadWorker(spec, log) if next(started) < 2 else ThreadWorker(spec, log)

    monkeypatch.setattr(runner, "Worker", start)
    assert measured.run(tmp_path, "--only", "/float32/") == 1
    found = {record.status: record.shape["batch_size"] for record in read_records(tmp_path)}
    assert found == {"ok": 4, "error": 1}
    assert next(started) == 3


def test_rows_that_training_may_have_seen_are_told(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The same data cut by another seed: rows of `tune` are among those that were trained on."""
    (folder,) = measured.checkpoints.iterdir()
    monkeypatch.setattr(runner, "Worker", ThreadWorker)
    for seed, known in ((measured.suite.seed, False), (measured.suite.seed + 1, True)):
        path = suites.write(tmp_path, checkpoints=[{"folder": str(folder)}], seed=seed, exits=["none"])
        assert main(["run", str(path), "--output", str(tmp_path / str(seed))]) == 0
        (record,) = read_records(tmp_path / str(seed))
        assert record.checkpoint is not None
        assert record.checkpoint.may_know_tune == known
        assert ("Warning: " in capsys.readouterr().err) == known


def _nan_logits(monkeypatch: pytest.MonkeyPatch) -> str:
    recorded = _Service.record

    def record(self: _Service, shape: Shape, exits: Sequence[int]) -> dict[str, np.ndarray]:
        logits = recorded(self, shape, exits)
        if self.spec.recipe.kind == "int8_static":
            logits["dev"][:, 3] = np.nan
        return logits

    monkeypatch.setattr(_Service, "record", record)
    return "recorded logits must be finite, .*"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("breakage", [_broken_open, _dead_worker, _nan_logits])
def test_a_broken_recipe_becomes_error_records(
    measured: Measured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    breakage: Any,
):
    message = breakage(monkeypatch)
    assert measured.run(tmp_path, "--only", "b4-") == 1
    found = read_records(tmp_path)
    assert len(found) == 12
    assert capsys.readouterr().err.count("failed: synthetic/") == 6
    for record in found:
        if record.recipe["kind"] == "float32":
            assert record.status == "ok"
            assert len(read_columns(timings_path(tmp_path, record))["seconds"]) == REPEATS * 3
        else:
            assert record.status == "error"
            assert (record.scores, record.program, record.parity) == ({}, None, None)
            assert not examples_path(tmp_path, record.run_id).exists()
            assert re.fullmatch(message, record.error or "")  # one line: `.` is no line end


@pytest.mark.usefixtures("threads")
def test_a_mended_combination_is_measured_on_resume(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr(OpenVino, "open", lambda *_: 1 / 0)
        assert measured.run(tmp_path, "--only", "/float32/") == 1
    assert {record.status for record in read_records(tmp_path)} == {"error"}
    assert measured.run(tmp_path, "--only", "/float32/") == 0
    found = read_records(tmp_path)
    assert [record.status for record in found] == ["ok"] * 12


@pytest.mark.usefixtures("threads")
def test_a_program_that_fails_to_warm_up_leaves_the_others_alone(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And every other run is timed as itself: here each program's seconds are made to say which one it is."""
    built = OpenVinoSession.with_exits

    def with_exits(self: OpenVinoSession, policy: Policy, exits: Any) -> Any:
        program = built(self, policy, exits)
        return SimpleNamespace(run=_fail) if isinstance(policy, Entropy) else program

    def time_block(self: _Service, number: int, first: int, last: int) -> list[float]:
        return [len(self.runs[number].spec.case)] * (last - first)

    monkeypatch.setattr(OpenVinoSession, "with_exits", with_exits)
    monkeypatch.setattr(_Service, "time_block", time_block)
    # Entropy before patience, so that a miscount would show.
    suite = read_suite(measured.path)
    policies = [*suite.policies[3:], *suite.policies[:3]]
    monkeypatch.setattr("benchmarks.suite.read_suite", lambda _: suite.model_copy(update={"policies": policies}))
    assert measured.run(tmp_path, "--only", "/float32/") == 1
    for record in read_records(tmp_path):
        if record.policy["kind"] == "entropy":
            assert (record.status, (record.error or "").split(" (")[0]) == ("error", "ValueError: no such kernel")
        else:
            seconds = read_columns(timings_path(tmp_path, record))["seconds"]
            assert set(seconds) == {len(record.case)}


def _fail(*_: Any) -> ExitOutput:
    raise ValueError("no such kernel")


@pytest.mark.usefixtures("threads")
def test_a_run_that_fails_while_timed_leaves_the_others_alone(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    timed, calls = _Service.time_block, itertools.count()

    def time_block(self: _Service, number: int, first: int, last: int) -> list[float]:
        if number == 1 and next(calls) == 1:
            raise MemoryError
        return timed(self, number, first, last)

    monkeypatch.setattr(_Service, "time_block", time_block)
    assert measured.run(tmp_path, "--only", "b1-") == 1
    found = read_records(tmp_path)
    assert Counter(record.status for record in found) == {"ok": 11, "error": 1}
    (failed,) = (record for record in found if record.status == "error")
    assert (failed.error or "").startswith("MemoryError: ")
    for record in found:
        if record.status == "ok":
            assert len(read_columns(timings_path(tmp_path, record))["seconds"]) == REPEATS * TIMED_ROWS


@pytest.mark.usefixtures("threads")
def test_a_full_disk_ends_the_run_and_keeps_what_is_written(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The third record is cut, as files of this process cannot grow any further."""
    written, before = itertools.count(), resource.getrlimit(resource.RLIMIT_FSIZE)

    def append(folder: Path, record: RunRecord) -> None:
        if next(written) == 2:
            size = (folder / "records.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
        append_record(folder, record)

    with monkeypatch.context() as full:
        full.setattr(runner, "append_record", append)
        try:
            assert measured.run(tmp_path, "--only", "/float32/") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"Error: File too large: {tmp_path / 'records.jsonl'}"
    assert [record.status for record in read_records(tmp_path)] == ["ok", "ok"]
    assert not (tmp_path / "records.jsonl").read_bytes().endswith(b"\n")
    assert measured.run(tmp_path, "--only", "/float32/") == 0
    assert [record.status for record in read_records(tmp_path)] == ["ok"] * 12


def test_a_worker_process_tells_what_went_wrong(tmp_path: Path):
    ours = processors()[-1:]
    spec: Any = SimpleNamespace(checkpoint=tmp_path / "nothing", processors=ours)
    process = Worker(spec, tmp_path / "logs" / "worker.log")
    try:
        with pytest.raises(WorkerError, match=r"^checkpoint .* must hold config\.json and model\.safetensors"):
            process("opened")
        assert psutil.Process(process.process.pid).cpu_affinity() == ours
        process.process.kill()
        with pytest.raises(WorkerError, match=r"died \(exit code -9"):
            process("opened")
    finally:
        process.stop()
    assert not process.process.is_alive()
    assert (tmp_path / "logs" / "worker.log").exists()


# Taking turns


class Clock:
    """A worker that notes when it is asked to time what."""

    def __init__(self, name: str, calls: list[tuple[str, int, int]]):
        self.name, self.calls = name, calls

    def ask(self, request: str, number: int, first: int, last: int) -> None:
        assert request == "time_block"
        self.calls.append((self.name, number, first))
        self.seconds = [0.5] * (last - first)

    def answer(self) -> list[float]:
        return self.seconds


def timed(recipes: list[Any], runs_each: int, shape: Shape, timing: TimingConfig, rows: int) -> tuple[list, list]:
    """`_time` with fake workers, one for each instance: the calls in their order, and the runs."""
    calls: list[tuple[str, int, int]] = []
    task: Any = SimpleNamespace(name="task")
    runs = []
    for recipe in recipes:
        for index in range(runs_each):
            spec = RunSpec(task, "ck", recipe, OpenVino(), True, (1, 2), Entropy(threshold=index), shape)
            runs.append(runner._Measured(spec, f"{recipe.kind}-{index}", number=index))
    instances = range(shape.instances)
    workers: Any = {
        ("ck", recipe.kind, "openvino"): [Clock(recipe.kind, calls) for _ in instances] for recipe in recipes
    }
    session: Any = SimpleNamespace(suite=SimpleNamespace(timing=timing))
    runner._time(session, shape, rows, workers, runs)
    return calls, runs


def test_workers_take_turns_block_by_block():
    timing = TimingConfig(rows=8, repeats=2, block_rows=4)
    calls, _ = timed([Float32(), Bfloat16()], 1, Shape(batch_size=2), timing, rows=8)
    assert [(name[0], first) for name, _, first in calls] == [
        *[("f", 0), ("b", 0)],
        *[("b", 2), ("f", 2)],  # the second block; who was last goes first
        *[("f", 0), ("b", 0)],
        *[("b", 2), ("f", 2)],
    ]


def test_nobody_goes_twice_before_all_have_been():
    timing = TimingConfig(rows=12, repeats=3, block_rows=4)
    calls, _ = timed([Float32(), Bfloat16()], 3, Shape(batch_size=4), timing, rows=12)
    turns = [calls[i : i + 6] for i in range(0, len(calls), 6)]
    assert len(turns) == 3 * 3
    for turn in turns:
        assert len({(name, index) for name, index, _ in turn}) == 6
        assert len({first for *_, first in turn}) == 1
    # Each worker's runs rotate, so that none is always the first after a change of worker.
    leaders = Counter(index for turn in turns for name, index, _ in turn[:3:3])
    assert set(leaders) == {0, 1, 2}


def test_every_batch_is_timed_once_a_repeat_with_its_rows():
    timing = TimingConfig(rows=10, repeats=2, block_rows=8)
    _, runs = timed([Float32()], 2, Shape(batch_size=4), timing, rows=10)
    for run in runs:
        expected = [(repeat, batch, 0, rows, 0.5) for repeat in (0, 1) for batch, rows in enumerate((4, 4, 2))]
        assert sorted(run.seconds) == expected


def test_instances_have_the_turn_together():
    timing = TimingConfig(rows=8, repeats=1, block_rows=4)
    calls, runs = timed([Float32(), Bfloat16()], 1, Shape(batch_size=4, instances=2), timing, rows=8)
    assert [(name[0], first) for name, _, first in calls] == [
        *[("f", 0), ("f", 0), ("b", 0), ("b", 0)],
        *[("b", 1), ("b", 1), ("f", 1), ("f", 1)],
    ]
    for run in runs:
        assert sorted(run.seconds) == [(0, batch, instance, 4, 0.5) for batch in (0, 1) for instance in (0, 1)]


def test_differing_rows_are_counted_beside_the_close_ones():
    """Parity, by hand: rows 1 and 3 differ, and only row 3 was within epsilon."""
    spec: Any = SimpleNamespace(recipe=Float32(), policy=Entropy(threshold=0.5))
    logits = np.array([[1.0, 0.0]] * 4, np.float32)
    live = ExitOutput(logits.copy(), np.array([1, 2, 1, 1]))
    live.logits[3] = [0.0, 1.0]
    run = runner._Measured(spec, "id", built=Built("graph", "f32", 1, 0.0, 0.0, live))
    margin = np.array([0.0, 1.0, 0.0, 1e-6], np.float32)
    replayed = SimpleNamespace(exit_layer=np.array([1, 1, 1, 1]), logits=logits, margin=margin)
    found = runner._parity(run, replayed, [0, 1, 2, 3], regression=False)
    assert (found.rows, found.differing, found.below_epsilon) == (4, 2, 1)
