"""What reports make of timings that cannot be trusted, and of several instances."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.records import timings_path, write_columns
from models.config import UserError
from reports.choice import Choice, apply_floor, choose
from reports.notes import header_notes
from reports.runs import Row, load_runs
from reports.tables import note
from tests.fake_runs import INT8, add, add_timings, early, record, truncated
from tests.measured import LOADED

COSTS = 0.002 * np.random.default_rng(0).lognormal(0, 0.3, 64)


def seconds(scale: float = 1.0, last: float = 1.0, seed: int = 0) -> np.ndarray:
    """Four repeats of 64 calls [R, B], from `scale` to `scale` times `last` times their costs."""
    noise = np.random.default_rng(seed).normal(1, 0.02, (4, 64))
    return scale * COSTS * noise * np.linspace(1, last, 256).reshape(4, 64)


def write(folder: Path, **last: float) -> None:
    """A float32 and an INT8 network without exits, two early exits and fewer layers; what drifts is named with how far.

    Early exit `a` is the faster.
    """
    runs = [record("float32"), record("int8", recipe=INT8), truncated("fewer", 2, recipe=INT8)]
    runs += [early(name, {"kind": "entropy", "threshold": 0.1 + i / 10}, recipe=INT8) for i, name in enumerate("ab")]
    scales = {"float32": 4.0, "int8": 2.0, "fewer": 1.5, "a": 1.0, "b": 1.2}
    for i, run in enumerate(runs):
        add(folder, run)
        add_timings(folder, run.run_id, seconds(scales[run.run_id], last.get(run.run_id, 1.0), seed=i))


def read(folder: Path) -> tuple[dict[str, Row], Choice, list[str]]:
    """Rows by run_id, the choice, and the lines above the table."""
    runs = apply_floor(load_runs(folder))
    (choice,) = choose(runs)
    return {row["run_id"]: row for row in runs.rows}, choice, header_notes(runs, runs.rows)


def test_sound_runs_are_valid(tmp_path: Path):
    write(tmp_path)
    rows, choice, lines = read(tmp_path)
    assert {(row["timing_validity"], row["timing_doubts"], note(row)) for row in rows.values()} == {("valid", None, "")}
    assert (choice.answers["early exit"].run["run_id"], choice.invalid) == ("a", 0)
    assert not any("INVALID" in line or "arning" in line for line in lines)


def test_a_run_that_drifts_by_itself_is_never_chosen(tmp_path: Path):
    write(tmp_path, a=1.6)
    rows, choice, lines = read(tmp_path)
    assert {name for name, row in rows.items() if row["timing_validity"] != "valid"} == {"a"}
    assert "INVALID: drift: +4" in rows["a"]["timing_doubts"]
    assert note(rows["a"]) == "INVALID"
    assert (choice.answers["early exit"].run["run_id"], choice.invalid) == ("b", 1)
    (line,) = [line for line in lines if "INVALID" in line]
    assert line.startswith("INVALID: drift: +4")
    assert line.endswith(
        "% from first to last beside the other runs (pabee, int8_static(kl) on openvino, entropy 0.1); never chosen."
    )


def test_what_is_compared_with_a_run_that_drifts_is_warned_of(tmp_path: Path):
    write(tmp_path, int8=1.6)
    rows, _, lines = read(tmp_path)
    assert rows["int8"]["timing_validity"] == "INVALID"
    others = {name: row for name, row in rows.items() if name != "int8"}
    assert {name for name, row in others.items() if row["timing_validity"] == "warning"} == set(others)
    assert "Warning: baseline: a run that it is compared with is INVALID (4 of 5 runs)." in lines


def test_no_answer_where_all_of_one_side_is_invalid(tmp_path: Path):
    write(tmp_path, a=1.6, b=1.6)
    _, choice, _ = read(tmp_path)
    assert choice.sentence == "No answer: every early exit run that keeps the floor is INVALID."


def test_a_loaded_machine_makes_all_of_its_session_invalid(tmp_path: Path):
    for name, session, conditions in (("a", "s1", LOADED), ("b", "s1", LOADED), ("c", "s2", None)):
        add(tmp_path, record(name, session=session, conditions=conditions))
        add_timings(tmp_path, name, seconds())
    rows, _, lines = read(tmp_path)
    assert {name: row["timing_validity"] for name, row in rows.items()} == {
        "a": "INVALID",
        "b": "INVALID",
        "c": "valid",
    }
    assert "INVALID: load: other processes took 50 % of the processors' time (2 of 3 runs); never chosen." in lines
    told = "other processes took up to 50.0 % and the hypervisor kept up to 0.0 %"
    assert f"Of the processors' time while runs were timed, {told}." in lines


def test_scores_stand_though_seconds_do_not(tmp_path: Path):
    add(tmp_path, record("a", conditions=LOADED))
    add_timings(tmp_path, "a", seconds())
    (row,) = load_runs(tmp_path).rows
    assert (row["dev_score"], row["validity"]) == (0.9, None)


def test_the_tail_stands_beside_that_without_exits(tmp_path: Path):
    """The shorter half of the rows leave early, and the others pay a tenth more than without exits."""
    whole = seconds()
    add(tmp_path, record("whole"))
    add_timings(tmp_path, "whole", whole)
    add(tmp_path, early("early"))
    add_timings(tmp_path, "early", whole * np.where(np.argsort(np.argsort(COSTS)) < 32, 0.3, 1.1))
    few = {"shape": {"batch_size": 32, "padding": "longest", "threads": 2}}
    add(tmp_path, record("few", **few), ms_per_row=1.0, rows=32)
    rows = {row["run_id"]: row for row in load_runs(tmp_path).rows}
    assert rows["early"]["speedup_no_exit"] > 1.2
    assert rows["early"]["p99_over_no_exit"] == pytest.approx(1.1)
    assert rows["whole"]["p99_over_no_exit"] == 1
    expected = np.quantile(whole, [0.5, 0.9, 0.95, 0.99]) * 1000
    assert [rows["whole"][f"p{q}_ms"] for q in (50, 90, 95, 99)] == pytest.approx(expected)
    assert rows["few"]["p95_ms"] is not None
    assert (rows["few"]["p99_ms"], rows["few"]["p99_over_no_exit"]) == (None, None)  # of 24 calls, it is the slowest


def test_several_instances_add_up(tmp_path: Path):
    """Two instances that take 2 and 4 ms a call of 8 rows answer 8 / 3 rows a ms."""
    shape = {"batch_size": 8, "padding": "longest", "threads": 1, "instances": 2}
    add(tmp_path, record("two", shape=shape))
    repeat, batch, instance = (axis.ravel() for axis in np.meshgrid(range(3), range(8), range(2), indexing="ij"))
    columns = {"repeat": repeat, "batch": batch, "instance": instance, "rows": np.full(48, 8)}
    columns["seconds"] = 0.002 + 0.002 * instance
    path = timings_path(tmp_path, record("two"))
    write_columns(path, columns)
    (row,) = load_runs(tmp_path).rows
    assert row["throughput_per_s"] == pytest.approx(2 * 8 / 0.003)
    assert row["latency_s_per_example"] == pytest.approx(0.003 / 8)
    assert (row["instances"], row["shape"]) == (2, "batch 8, padding longest, threads 1, instances 2")
    write_columns(path, {name: values for name, values in columns.items() if name != "rows"})
    with pytest.raises(UserError, match="has no column 'rows'"):
        load_runs(tmp_path)
