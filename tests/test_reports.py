"""Reports: every derived figure against one worked out by hand, from output folders made by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox
from rich.console import Console

from benchmarks.records import Coverage, Parity, examples_path, timings_path, write_columns
from benchmarks.statistics import proportion_interval, ratio_interval
from models.config import UserError
from reports import columns, labels, tables
from reports.__main__ import main
from reports.choice import Choice, apply_floor, choose
from reports.exits_plot import pairs, spaced
from reports.frame import load_frame
from reports.front import Place, pareto_front
from reports.notes import failures, header_notes
from reports.other_tables import lpot, other_tables, papers
from reports.runs import Row, Runs, load_runs
from reports.shift_plot import draw_shift
from reports.shifts import Outcomes, find_moved, find_shifts
from tests.fake_runs import (
    ENTROPY,
    FLOAT32,
    INT8,
    SHAPE,
    add,
    add_drawn_examples,
    add_timings,
    checkpoint,
    early,
    record,
    truncated,
)

ROOT = Path(__file__).resolve().parent.parent
NEVER = {"kind": "fixed", "layer": None}
FILES = {"index.html", "results.md", "results.csv", "results.json", "results_columns.md"}
TABLES = {"floors.csv", "speed_axis.csv", "training.csv", "load.csv"}
IMPOSED = {"kind": "imposed", "exit_layers": [2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One checkpoint, one session: early exit (1.0 ms) beats two layers (1.5 ms) and whole INT8 (2.5 ms)."""
    add(tmp_path, early("early", recipe=INT8, dev=0.89, tune=0.895), 1.0)
    add(tmp_path, record("fp32", dev=0.9, tune=0.9), 8.0)
    add(tmp_path, record("fp32-inductor", engine="inductor", dev=0.9, tune=0.9), 10.0)
    add(tmp_path, record("int8", recipe=INT8, dev=0.88, tune=0.899), 2.5)
    add(tmp_path, truncated("two", 2, recipe=INT8, dev=0.87, tune=0.893), 1.5)
    add(tmp_path, truncated("one", 1, recipe=INT8, dev=0.91, tune=0.7), 0.5)
    add(tmp_path, early("never", NEVER, recipe=INT8, exit_counts={"dev": [0, 0, 0, 100]}, tune=0.899), 2.75)
    add(tmp_path, early("fp32-early", dev=0.9, tune=0.9), 4.0)
    add(tmp_path, early("told", IMPOSED, recipe=INT8, parity=None), 1.2)
    add(tmp_path, early("broken", {"kind": "patience", "patience": 2}, status="error", error="no g++ |\n found"))
    return tmp_path


def rows_of(folder: Path) -> dict[str, Row]:
    return {row["run_id"]: row for row in apply_floor(load_runs(folder)).rows}


def only_choice(folder: Path, relative_floor: float = 0.01) -> Choice:
    (choice,) = choose(load_runs(folder), relative_floor)
    return choice


def test_names(folder: Path):
    rows = rows_of(folder)
    names = {run_id: (row["role"], row["exits"], row["policy"], row["configuration"]) for run_id, row in rows.items()}
    assert names == {
        "early": ("early exit", "[1, 2, 3, 4]", "entropy 0.2", "entropy 0.2"),
        "fp32-early": ("early exit", "[1, 2, 3, 4]", "entropy 0.2", "entropy 0.2"),
        "fp32": ("no exits", "none", "full depth", "no exits"),
        "fp32-inductor": ("no exits", "none", "full depth", "no exits"),
        "int8": ("no exits", "none", "full depth", "no exits"),
        "two": ("truncated", "truncated@2", "fixed@2", "2 of 4 layers"),
        "one": ("truncated", "truncated@1", "fixed@1", "1 of 4 layers"),
        "never": ("exits never fire", "[1, 2, 3, 4]", "exits never fire", "exits never fire"),
        "told": ("timing only", "[1, 2, 3, 4]", "imposed 2", "imposed 2"),
        "broken": ("early exit", "[1, 2, 3, 4]", "patience 2", "patience 2"),
    }
    assert {row["recipe"] for row in rows.values()} == {"float32", "int8_static(kl)"}
    assert {row["model"] for row in rows.values()} == {"pabee"}
    assert rows["early"]["shape"] == "batch 1, padding longest, threads 2"


def test_names_of_less_common_runs():
    assert labels.configuration_label(early("a", exits=[2, 4])) == "entropy 0.2 at [2, 4]"
    assert labels.role(early("a", {"kind": "fixed", "layer": 2})) == "fixed exit"
    assert labels.policy_label(early("a", {"kind": "random", "share": 0.5, "seed": 1})) == "random share=0.5 seed=1"
    patience = {"kind": "patience", "patience": 3, "regression_threshold": 0.1}
    assert labels.policy_label(early("a", patience)) == "patience 3"
    assert labels.policy_label(early("a", patience, num_classes=1)) == "patience patience=3 regression_threshold=0.1"
    unknown = record("a", checkpoint=None, exit_counts={}, scores={})
    assert (labels.exits_label(unknown), labels.num_layers(unknown)) == ("none", None)
    assert labels.exits_label(truncated("a", 2, checkpoint=None, exit_counts={})) == "truncated@2"


def test_defaults_of_a_shape_are_not_named():
    assert labels.shape_label({"batch_size": 8, "length": None, "threads": 2}) == "batch 8, threads 2"


def test_recipes_and_models_are_told_apart_where_needed():
    other = {**INT8, "calibration_rows": 512}
    named = labels.recipe_labels([record("a", recipe=INT8), record("b", recipe=other), record("c")])
    assert named == {
        "a": "int8_static(kl, calibration_rows=128)",
        "b": "int8_static(kl, calibration_rows=512)",
        "c": "float32",
    }
    roberta = checkpoint(backbone="roberta-base")
    seeds = [checkpoint("deebert", name=name) for name in ("s1", "s2")]
    given = [record(str(i), checkpoint=info) for i, info in enumerate([checkpoint(), roberta, *seeds, None])]
    assert labels.model_labels(given) == {"0": "pabee minilm", "1": "pabee roberta-base", "2": "s1", "3": "s2"}


def test_scores_and_exits(folder: Path):
    row = rows_of(folder)["early"]
    wilson = proportion_interval(89, 100)
    assert (row["dev_score"], row["dev_score_low"], row["dev_score_high"]) == (0.89, wilson.low, wilson.high)
    assert (row["tune_score"], row["score_tune_accuracy"], row["score_dev_accuracy"]) == (0.895, 0.895, 0.89)
    assert (row["dev_rows"], row["one_example_points"], row["majority_score"]) == (100, 1.0, 0.51)
    assert row["exit_counts"] == [40, 30, 20, 10]
    assert (row["mean_exit_layer"], row["layer_saving"]) == (2.0, 0.5)
    assert (row["size_mb"], row["build_seconds"], row["precision"], row["program"]) == (90, 3.0, "f32", "graph")


def test_where_exits_are_told_nothing_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, record("int8", recipe=INT8), 2.0)
    add(tmp_path, truncated("two", 2, recipe=INT8), 1.0)
    add(tmp_path, early("told", IMPOSED, recipe=INT8, parity=None, exit_counts={"dev": [0, 100, 0, 0]}), 1.2)
    choice = only_choice(tmp_path)
    assert choice.timing_only
    assert (choice.answers, tables.answer_lines(choice)) == ({}, [])
    assert main(["render", str(tmp_path)]) == 0
    assert "threads 2: Timing only: where rows leave is told" in capsys.readouterr().out
    drawn = {file.name for file in (tmp_path / "report").glob("*.png")}
    assert drawn == {"depths_sst2_batch-1-padding-longest-threads-2.png"}
    page = (tmp_path / "report" / "results.md").read_text()
    assert "## The answer" in page
    assert "Chosen on tune" not in page
    assert rows_of(tmp_path)["told"]["speedup_no_exit"] == pytest.approx(2.0 / 1.2)
    # One row that a policy decides is enough for an answer.
    add(tmp_path, early("early", recipe=INT8), 1.0)
    assert not only_choice(tmp_path).timing_only


def test_interval_is_left_empty_for_other_metrics(tmp_path: Path):
    scores = {"dev": {"matthews": 0.5, "accuracy": 0.8}, "tune": {"matthews": 0.6}}
    add(tmp_path, record("a", headline_metric="matthews", scores=scores), 1.0)
    row = rows_of(tmp_path)["a"]
    assert (row["dev_score"], row["tune_score"], row["dev_score_low"]) == (0.5, 0.6, None)
    assert row["score_dev_accuracy"] == 0.8


def test_dev_rows_are_those_scored(tmp_path: Path):
    add(tmp_path, early("a", dev=0.75, exit_counts={"dev": [4, 4, 0, 0]}))
    row = rows_of(tmp_path)["a"]
    assert (row["dev_rows"], row["one_example_points"]) == (8, 12.5)
    assert (row["dev_score_low"], row["dev_score_high"]) == proportion_interval(6, 8)[1:]


def test_speed(tmp_path: Path):
    add(tmp_path, record("a", shape={**SHAPE, "batch_size": 2}))
    add_timings(tmp_path, "a", np.array([[0.010, 0.020], [0.030, 0.020]]), rows=2)
    row = rows_of(tmp_path)["a"]
    assert row["latency_s_per_example"] == pytest.approx(0.08 / 8)
    assert row["throughput_per_s"] == pytest.approx(100)
    assert row["p50_ms"] == pytest.approx(20)
    assert row["p95_ms"] == pytest.approx(20 + 0.85 * 10)
    assert (row["batch_size"], row["padding"], row["threads"]) == (2, "longest", 2)


def test_speedups_over_each_baseline(folder: Path):
    rows = rows_of(folder)
    keys = ["float32_same_engine", "best_float32", "best_int8", "no_exit", "best_truncated"]
    early_exit = rows["early"]
    assert [early_exit[f"speedup_{key}"] for key in keys] == pytest.approx([8, 8, 2.5, 2.5, 1.5])
    assert [early_exit[f"speedup_{key}_over"] for key in keys] == ["fp32", "fp32", "int8", "int8", "two"]
    assert [rows["fp32-inductor"][f"speedup_{key}"] for key in keys] == pytest.approx([1, 0.8, 0.25, 1, 0.15])
    assert rows["fp32-inductor"]["speedup_float32_same_engine_over"] == "fp32-inductor"
    assert early_exit["exit_efficiency"] == pytest.approx(2.5 / (4 / 2))
    assert rows["never"]["exit_overhead"] == pytest.approx(0.1)
    assert early_exit["exit_overhead"] is None
    assert rows["broken"]["speedup_best_int8"] is None


def test_speedup_interval_is_that_of_the_raw_timings(folder: Path):
    runs = load_runs(folder)
    expected = ratio_interval(runs.timings["int8"].seconds, runs.timings["early"].seconds)
    row = rows_of(folder)["early"]
    assert (row["speedup_best_int8_low"], row["speedup_best_int8_high"]) == (expected.low, expected.high)
    assert expected.low < 2.5 < expected.high


@pytest.mark.parametrize(
    "other",
    [
        {"session": "s2"},
        {"shape": {**SHAPE, "batch_size": 8}},
        {"status": "error", "error": "failed"},
    ],
)
def test_baseline_is_of_the_same_session_and_shape(tmp_path: Path, other: dict):
    add(tmp_path, record("fp32", **other), 8.0)
    add(tmp_path, early("early"), 4.0)
    assert rows_of(tmp_path)["early"]["speedup_best_float32"] is None


def test_no_ratio_over_other_batches(tmp_path: Path):
    add(tmp_path, record("fp32"), 8.0, rows=2)
    add(tmp_path, early("early"), 4.0)
    assert rows_of(tmp_path)["early"]["speedup_best_float32"] is None


def test_what_a_record_lacks_stays_empty(tmp_path: Path):
    bare = {"checkpoint": None, "scores": {}, "exit_counts": {}, "majority_score": None, "size_bytes": None}
    add(tmp_path, early("bare", parity=None, precision=None, build_seconds=None, split_counts={}, **bare))
    row = rows_of(tmp_path)["bare"]
    held = {"run_id", "case", "status", "session", "task", "recipe", "engine", "program", "exits", "policy", "metric"}
    held |= {"configuration", "role", "shape", "batch_size", "padding", "threads", "instances", "timed_rows"}
    assert {name for name, value in row.items() if value is not None} == held


def test_a_folder_without_a_whole_record_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "records.jsonl").write_text('{"schema_version": "exit')
    assert main(["render", str(tmp_path)]) == 2
    assert "holds no whole record" in capsys.readouterr().err


def test_timing_only_and_failed_runs_have_no_score(folder: Path):
    rows = rows_of(folder)
    assert all(rows[name]["dev_score"] is None and rows[name]["tune_score"] is None for name in ("told", "broken"))
    assert rows["told"]["speedup_best_int8"] == pytest.approx(2.5 / 1.2)
    assert not any(name.startswith("score_") for name in rows["told"])
    assert rows["broken"]["error"] == "no g++ |\n found"


def test_parity(tmp_path: Path):
    for name, differing, below in (("good", 0, 0), ("near", 3, 3), ("bad", 3, 2)):
        parity = Parity(rows=8, differing=differing, below_epsilon=below, epsilon=0.1)
        add(tmp_path, early(name, {"kind": "entropy", "threshold": differing + below}, parity=parity), 1.0)
    add(tmp_path, record("fp32"), 2.0)
    rows = rows_of(tmp_path)
    verdicts = {name: row["validity"] for name, row in rows.items()}
    assert verdicts == {"good": "valid", "near": "valid", "bad": "INVALID", "fp32": None}
    lines = header_notes(apply_floor(load_runs(tmp_path)), list(rows.values()))
    assert any("in 2 of 3 runs 6 live exits or labels differ" in line and "5 of them" in line for line in lines)
    assert any("held to no replay" in line and line.endswith("batch: 1.") for line in lines)
    assert any(line.startswith("INVALID: pabee") and "1 of 8" in line for line in lines)
    choice = only_choice(tmp_path)
    assert (choice.answers["early exit"].run["run_id"], choice.invalid) == ("good", 1)


@pytest.mark.parametrize("kind", ["int8_native", "int8_dynamic"])
def test_a_faster_peer_of_another_engine_is_the_int8_baseline(tmp_path: Path, kind: str):
    add(tmp_path, record("int8", recipe=INT8), 4.0)
    add(tmp_path, record("peer", recipe={"kind": kind}, engine="onnxruntime"), 2.0)
    add(tmp_path, early("early", recipe=INT8), 1.0)
    row = rows_of(tmp_path)["early"]
    assert (row["speedup_best_int8_over"], row["speedup_best_int8"]) == ("peer", pytest.approx(2.0))
    assert only_choice(tmp_path).answers["int8"].run["run_id"] == "peer"


def test_int8_coverage(tmp_path: Path):
    others = {"exit_4": "float32: fallback exit_4", "layer_1.output.dense": "float32: the engine's choice"}
    coverage = Coverage(int8_ops=27, linear_ops=30, others=others)
    for name in ("a", "b"):
        add(tmp_path, record(name, recipe=INT8, coverage=coverage), 1.0)
    add(tmp_path, record("fp32"), 2.0)
    rows = rows_of(tmp_path)
    assert {name: row["int8_share"] for name, row in rows.items()} == {"a": 0.9, "b": 0.9, "fp32": None}
    lines = header_notes(apply_floor(load_runs(tmp_path)), list(rows.values()))
    assert [line for line in lines if "linear ops" in line] == [
        "int8_static(kl) on openvino: 27 of 30 linear ops run in INT8 (exit_4 in float32: fallback exit_4; "
        "layer_1.output.dense in float32: the engine's choice)."
    ]


def test_frame_has_the_documented_columns_and_a_stable_order(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    frame = load_frame(folder)
    assert list(frame.columns) == [*columns.COLUMNS, "score_dev_accuracy", "score_tune_accuracy"]
    reversed_folder = tmp_path_factory.mktemp("reversed")
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (reversed_folder / "records.jsonl").write_text("".join(lines[::-1]))
    assert list(load_frame(reversed_folder)["run_id"]) == list(frame["run_id"])
    assert list(frame["run_id"])[-6:] == ["int8", "one", "two", "never", "early", "told"]


def test_batch_8_stands_before_batch_32(tmp_path: Path):
    for size in (32, 8):
        add(tmp_path, record(str(size), shape={**SHAPE, "batch_size": size}))
    assert list(rows_of(tmp_path)) == ["8", "32"]


def test_choice(folder: Path):
    choice = only_choice(folder)
    chosen = {kind: answer.run["run_id"] for kind, answer in choice.answers.items()}
    assert chosen == {"early exit": "early", "truncated": "two", "int8": "int8", "float32": "fp32"}
    assert choice.floor == pytest.approx(0.9 * 0.99)
    over = {kind: answer.over_truncated for kind, answer in choice.answers.items()}
    assert [versus.ratio.estimate for versus in over.values() if versus] == pytest.approx([1.5, 1, 0.6, 1.5 / 8])
    assert not any(versus.by_sessions for versus in over.values() if versus)
    assert choice.sentence.startswith("Early exit wins: 1.50x as fast as the best truncated network (95 % interval 1.")
    assert choice.sentence.endswith(
        "at 89.0 % against 87.0 % on dev. On dev, early exit and the truncated network fell below the floor"
        " kept on tune."
    )
    notes = [column.cell for column in tables.answer_columns(choice) if column.title == "note"]
    assert {kind: note(answer) for kind, answer in choice.answers.items() for note in notes} == {
        "early exit": "below the floor on dev",
        "truncated": "below the floor on dev",
        "int8": "below the floor on dev",
        "float32": "",
    }


def test_choice_reads_tune_and_not_dev(tmp_path: Path):
    add(tmp_path, record("fp32", dev=0.5, tune=0.9), 8.0)
    add(tmp_path, early("good-on-dev", {"kind": "entropy", "threshold": 0.6}, dev=0.99, tune=0.8), 1.0)
    add(tmp_path, early("good-on-tune", ENTROPY, dev=0.6, tune=0.9), 2.0)
    assert only_choice(tmp_path).answers["early exit"].run["run_id"] == "good-on-tune"


def test_floor_is_of_the_best_checkpoint_on_tune(tmp_path: Path):
    weak = {"checkpoint": checkpoint("deebert"), "session": "s2"}
    add(tmp_path, record("fp32", tune=0.9), 8.0)
    add(tmp_path, record("weak-fp32", tune=0.8, **weak), 8.0)
    add(tmp_path, early("weak-early", tune=0.8, **weak), 1.0)
    choice = only_choice(tmp_path)
    assert choice.floor == pytest.approx(0.891)
    assert "early exit" not in choice.answers
    assert "weak-early" in {answer.run["run_id"] for answer in only_choice(tmp_path, 0.2).answers.values()}


def test_floor_below_a_negative_score(tmp_path: Path):
    add(tmp_path, record("fp32", tune=-0.1), 8.0)
    assert only_choice(tmp_path).floor == pytest.approx(-0.101)
    assert only_choice(tmp_path, 0.0).answers["float32"].within_floor


def test_peers_below_the_floor_are_shown_as_such(tmp_path: Path):
    add(tmp_path, record("fp32", tune=0.9), 8.0)
    add(tmp_path, record("int8", recipe=INT8, tune=0.5), 2.0)
    answer = only_choice(tmp_path).answers["int8"]
    assert (answer.run["run_id"], answer.within_floor) == ("int8", False)
    assert answer.name == "fastest INT8 without exits"
    add(tmp_path, record("kept", recipe=INT8, tune=0.9), 3.0)  # a user may serve this one
    answer = only_choice(tmp_path).answers["int8"]
    assert (answer.run["run_id"], answer.name) == ("kept", "fastest INT8 without exits within the floor")


def test_early_exit_that_loses_is_said(tmp_path: Path):
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, record("int8", recipe=INT8), 1.0)
    add(tmp_path, truncated("two", 2, recipe=INT8), 2.0)
    add(tmp_path, early("early", recipe=INT8), 4.0)
    sentence = only_choice(tmp_path).sentence
    assert sentence.startswith(
        "Early exit loses, fewer layers win: the best truncated network is 2.00x as fast as the best early exit"
    )
    assert sentence.endswith("Neither is faster than the whole network in INT8.")


def test_no_winner_where_the_interval_holds_one(tmp_path: Path):
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, truncated("two", 2), 2.0)
    add(tmp_path, early("early"))
    noise = np.where(np.arange(24).reshape(3, 8) % 2, 1.2, 0.8) * np.random.default_rng(0).normal(1, 0.01, (3, 8))
    add_timings(tmp_path, "early", 0.00201 * noise)
    assert only_choice(tmp_path).sentence.startswith("No winner: early exit is 1.00x as fast")


@pytest.mark.parametrize(
    ("low", "said"),
    [
        ({"early"}, "Early exit loses, fewer layers win: no early-exit configuration keeps the floor."),
        ({"two"}, "Early exit wins: no truncated network keeps the floor."),
        ({"early", "two"}, "Neither early exit nor a truncated network keeps the floor: serve a whole network."),
    ],
)
def test_sentence_where_something_is_below_the_floor(tmp_path: Path, low: set[str], said: str):
    tune = {name: 0.5 if name in low else 0.9 for name in ("early", "two")}
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, truncated("two", 2, tune=tune["two"]), 2.0)
    add(tmp_path, early("early", tune=tune["early"]), 1.0)
    assert only_choice(tmp_path).sentence == said


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ({"early"}, "No answer: these runs hold no early exit that a policy decides."),
        ({"two"}, "No answer: these runs hold no truncated network."),
        (
            {"early", "two"},
            "No answer: these runs hold no early exit that a policy decides and no truncated network.",
        ),
        ({"fp32"}, "No answer: there is no float32 network without exits to set the floor by."),
    ],
)
def test_sentence_where_something_is_missing(tmp_path: Path, left_out: set[str], said: str):
    given = [(record("fp32"), 8.0), (truncated("two", 2, recipe=INT8), 2.0), (early("early"), 1.0)]
    for made, ms in given:
        if made.run_id not in left_out:
            add(tmp_path, made, ms)
    assert only_choice(tmp_path).sentence == said


def test_sessions_are_compared_by_their_own_int8(tmp_path: Path):
    for session, method, int8_ms in (("s1", "pabee", 2.0), ("s2", "deebert", 3.0)):
        shared = {"session": session, "checkpoint": checkpoint(method)}
        add(tmp_path, record(f"fp32-{session}", **shared), 8.0)
        add(tmp_path, record(f"int8-{session}", recipe=INT8, **shared), int8_ms)
    add(tmp_path, early("early", recipe=INT8, session="s1", checkpoint=checkpoint("pabee")), 1.0)
    add(tmp_path, truncated("two", 2, recipe=INT8, session="s2", checkpoint=checkpoint("deebert")), 2.0)
    choice = only_choice(tmp_path)
    over = choice.answers["early exit"].over_truncated
    assert over is not None
    assert over.by_sessions
    assert over.ratio.estimate == pytest.approx((2.0 / 1.0) / (3.0 / 2.0))
    assert over.ratio.low < over.ratio.estimate < over.ratio.high
    assert "by sessions" in choice.sentence


def test_sessions_are_not_compared_by_int8_networks_that_differ(tmp_path: Path):
    """The fastest beside early exit has no like in the other session, and the slower one has."""
    two, small = checkpoint("deebert"), checkpoint("classifier", backbone="models/small")
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, record("int8", recipe=INT8), 3.0)
    add(tmp_path, record("int8-inductor", recipe=INT8, engine="inductor"), 2.0)
    add(tmp_path, early("early", recipe=INT8), 1.0)
    add(tmp_path, record("int8-s2", recipe=INT8, session="s2", checkpoint=two), 4.0)
    add(tmp_path, truncated("two", 2, recipe=INT8, session="s2", checkpoint=two), 2.0)
    over = only_choice(tmp_path).answers["early exit"].over_truncated
    assert over is not None
    assert over.ratio.estimate == pytest.approx((3.0 / 1.0) / (4.0 / 2.0))
    add(tmp_path, record("int8-s3", recipe=INT8, session="s3", checkpoint=small), 0.5)
    add(tmp_path, truncated("cut", 2, recipe=INT8, session="s3", checkpoint=small), 0.25)
    assert only_choice(tmp_path).sentence.startswith("Undecided: early exit and the truncated network share neither")


def test_sessions_without_int8_are_not_compared(tmp_path: Path):
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, early("early", session="s1"), 1.0)
    add(tmp_path, truncated("two", 2, session="s2"), 2.0)
    assert only_choice(tmp_path).sentence.startswith("Undecided")


def test_header_notes(folder: Path):
    runs = apply_floor(load_runs(folder))
    text = "\n".join(header_notes(runs, runs.rows))
    assert "Machine: cpu model Fast CPU; isa avx2 vnni; torch 2.13.0; steal 0.5." in text
    assert "100 dev rows, so 1 example = 1.00 points; the majority class alone scores 51.0" in text
    assert "fastest INT8 without exits 2.5 ms (int8_static(kl) on openvino)" in text
    assert "best truncated network within the floor 1.5 ms (int8_static(kl) on openvino, 2 of 4 layers)" in text
    assert "agree on every timed row of 3 runs" in text
    assert "Timing only" in text
    assert "Sessions began from 2026-01-01 00:00 to 2026-01-01 00:00 (UTC)." in text
    assert failures(runs.rows) == ["pabee, float32 on openvino, patience 2: no g++ | found"]


def test_environments_that_differ_are_said(tmp_path: Path):
    for i in range(3):
        add(tmp_path, record(str(i), environment={"cpu_model": f"cpu {i % 2}", "steal": i / 2}))
    runs = apply_floor(load_runs(tmp_path))
    assert "Differs between runs: cpu model cpu 0 / cpu 1; steal 0 to 1." in header_notes(runs, runs.rows)


@pytest.mark.parametrize(
    ("flags", "warned"), [(["avx2"], True), (["avx2", "avx512_vnni"], False), (["amx_int8"], False)]
)
def test_int8_without_its_instructions_is_warned_of(tmp_path: Path, flags: list[str], warned: bool):
    add(tmp_path, record("int8", recipe=INT8, environment={"kernel_flags": flags}))
    runs = apply_floor(load_runs(tmp_path))
    assert any("neither VNNI nor AMX" in line for line in header_notes(runs, runs.rows)) == warned


def rendered(folder: Path, output: Path) -> dict[str, bytes]:
    assert main(["render", str(folder), "--output", str(output)]) == 0
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_render_twice_is_byte_identical(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    first, second = rendered(folder, tmp_path / "a"), rendered(folder, tmp_path / "b")
    assert first == second
    shape = "batch-1-padding-longest-threads-2"
    plots = [f"front_sst2_{shape}", f"exits_sst2_{shape}_sst2-pabee-minilm", f"load_sst2_{shape}", "speeds_sst2"]
    assert set(first) == FILES | TABLES | {f"{name}.{kind}" for name in plots for kind in ("png", "svg")}
    assert all(first[f"{name}.png"].startswith(b"\x89PNG") and b"<svg" in first[f"{name}.svg"] for name in plots)
    assert capsys.readouterr().out.startswith("sst2, batch 1, padding longest, threads 2: Early exit wins")


def test_markdown(folder: Path):
    runs = apply_floor(load_runs(folder))
    text = tables.markdown_text(
        runs,
        choose(runs),
        {("sst2", "batch 1, padding longest, threads 2"): ["front.png"]},
        other_tables(runs, choose(runs)),
    )
    answer, table = text.index("## The answer"), text.index("## sst2: batch 1, padding longest, threads 2")
    assert text.startswith("# ExitBench: fake\n")
    assert answer < table < text.index("![front.png](front.png)") < text.index("| model |")
    assert "Scores are in percent" in text[:answer]
    assert table < text.index("## In LPOT's shape") < text.index("## In the papers' shape")
    assert "\n\n\n" not in text
    assert "no g++ \\| found" in text
    bodies = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {len(line.replace("\\|", "").split("|")) for line in bodies if line.startswith(("| pabee", "| model"))}
    assert len(widths) == 1
    (never,) = [line for line in bodies if "exits never fire" in line]
    assert "overhead +10.0 %" in never


def test_csv_is_tidy_and_documented(folder: Path):
    import pandas as pd

    runs = apply_floor(load_runs(folder))
    text = tables.csv_text(runs)
    frame = pd.read_csv(pd.io.common.StringIO(text)).set_index("run_id")
    assert len(frame) == 10
    assert frame.loc["early", "exit_counts"] == "40 30 20 10"
    assert frame.loc["early", "speedup_best_int8"] == pytest.approx(2.5)
    assert math.isnan(frame.loc["told", "dev_score"])
    documented = columns.markdown()
    assert all(f"`{name}`" in documented for name in text.splitlines()[0].split(",") if not name.startswith("score_"))


def test_json_holds_the_rows_and_what_their_columns_mean(folder: Path):
    runs = apply_floor(load_runs(folder))
    found = json.loads(tables.json_text(runs))
    assert found["columns"] == columns.COLUMNS
    assert [row["run_id"] for row in found["rows"]] == [row["run_id"] for row in runs.rows]
    by_id = {row["run_id"]: row for row in found["rows"]}
    assert {tuple(row) for row in found["rows"]} == {(*columns.COLUMNS, "score_dev_accuracy", "score_tune_accuracy")}
    assert (by_id["early"]["exit_counts"], by_id["early"]["dev_score"]) == ([40, 30, 20, 10], 0.89)
    assert by_id["told"]["dev_score"] is None


def test_lpot_table_sets_int8_beside_float32_of_the_same_engine(folder: Path):
    summary = lpot(rendered_runs(folder))
    cells = [[column.cell(row) for column in summary.columns] for row in summary.rows]
    shape = "batch 1, padding longest, threads 2"
    expected = ["88.00", "90.00", "-2.22", "400.0", "125.0", "3.20"]
    assert cells == [["openvino", "sst2", "pabee", "int8_static(kl)", shape, *expected]]


def test_lpot_table_leaves_empty_what_was_not_run(tmp_path: Path):
    add(tmp_path, record("int8", recipe=INT8))
    summary = lpot(rendered_runs(tmp_path))
    (row,) = summary.rows
    assert [column.cell(row) for column in summary.columns][5:] == ["90.00", "", "", "", "", ""]


def test_papers_table_takes_each_method_with_its_own_policy(tmp_path: Path):
    patience = [{"kind": "patience", "patience": patience} for patience in (1, 2, 3)]
    saving = [{"dev": counts} for counts in ([60, 40, 0, 0], [40, 30, 20, 10], [0, 0, 50, 50])]
    add(tmp_path, record("fp32", dev=0.9, tune=0.9), 8.0)
    add(tmp_path, early("below the floor", patience[0], dev=0.91, tune=0.8, exit_counts=saving[0]), 1.0)
    add(tmp_path, early("saves most", patience[1], dev=0.88, tune=0.9, exit_counts=saving[1]), 2.0)
    add(tmp_path, early("saves less", patience[2], dev=0.89, tune=0.9, exit_counts=saving[2]), 3.0)
    add(tmp_path, early("not PABEE", ENTROPY, dev=0.92, tune=0.9, exit_counts=saving[0]), 1.0)
    weak = {"checkpoint": checkpoint("deebert", "weak"), "session": "s2"}
    add(tmp_path, record("weak-fp32", dev=0.7, tune=0.7, **weak), 8.0)
    add(tmp_path, early("weak-early", ENTROPY, dev=0.68, tune=0.7, exit_counts=saving[1], **weak), 8.0)
    add(tmp_path, early("never whole", ENTROPY, recipe=INT8), 8.0)
    runs = rendered_runs(tmp_path)
    table = papers(runs, choose(runs))
    rows = [[column.cell(row) for column in table.columns] for row in table.rows]
    # Each network is held to its own full depth, however good others are.
    assert rows.pop(0)[1:5] == ["ours: weak, float32", "70.0", "", "68.0 (entropy 0.2: 50 % of layers saved)"]
    assert rows[0][:4] == ["sst2", "ours: models/minilm, float32", "90.0", "88.0 (patience 2: 50 % of layers saved)"]
    assert rows[0][4:] == ["", "", ""]
    assert rows[1] == ["sst2", "published: ALBERT-base (theirs)", "92.8", "93.0 (1.57x)", "", "", ""]
    assert [row[1:4] for row in rows[2:]] == [
        ["published: BERT-base (theirs)", "92.1", "92.0 (1.62x)"],
        ["published: ALBERT-large (theirs)", "94.9", "95.2 (2.42x)"],
    ]


def test_shift_counts_rows_by_both_exit_layers(tmp_path: Path):
    pair = [early("fp32"), early("int8", recipe=INT8), early("elsewhere", recipe=INT8, engine="inductor")]
    columns_of = {"fp32": ([1, 1, 2, 4], [0, 1, 0, 1]), "int8": ([1, 2, 2, 3], [0, 1, 1, 1])}
    for given in pair:
        add(tmp_path, given)
    (shift,) = find_shifts(load_runs(tmp_path).rows)
    assert (shift.float32["run_id"], shift.int8["run_id"]) == ("fp32", "int8")
    assert find_moved(load_runs(tmp_path), shift) is None
    for name, (exit_layers, predictions) in columns_of.items():
        columns = {"label": [1, 1, 0, 1], "length": [5] * 4, "prediction": predictions, "exit_layer": exit_layers}
        write_columns(examples_path(tmp_path, name), columns)
    moved = find_moved(load_runs(tmp_path), shift)
    assert moved is not None
    assert moved.matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert (moved.agreement, moved.drift, moved.wasserstein) == (0.5, 0.0, 0.5)
    assert moved.outcomes == Outcomes(
        flips_same_exit=1, flips_other_exit=0, both_right=2, rescued=0, lost=1, both_wrong=1
    )
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace("da7a", "other", 1))
    assert find_moved(load_runs(tmp_path), shift) is None


def rendered_runs(folder: Path) -> Runs:
    return apply_floor(load_runs(folder))


def test_shift_plot_is_of_the_chosen_early_exit(tmp_path: Path):
    add(tmp_path, record("fp32"), 8.0)
    for threshold, ms in ((0.1, 4.0), (0.2, 2.0)):
        for recipe in (FLOAT32, INT8):
            policy = {"kind": "entropy", "threshold": threshold}
            run = early(f"{recipe['kind']}-{threshold}", policy, recipe=recipe)
            add(tmp_path, run, ms / (2 if recipe is INT8 else 1))
            add_drawn_examples(tmp_path, run)
    runs = rendered_runs(tmp_path)
    (choice,) = choose(runs)
    names = draw_shift(runs, runs.rows, choice, tmp_path / "plots")
    assert names == [f"shift_sst2_batch-1-padding-longest-threads-2.{kind}" for kind in ("png", "svg")]
    drawn = (tmp_path / "plots" / names[1]).read_text()
    assert "int8_static(kl) on openvino, entropy 0.2" in drawn
    assert "the same exit on 100.0 % of dev rows; mean exit layer +0.00; 0 labels differ" in drawn
    examples_path(tmp_path, "int8_static-0.2").unlink()
    draw_shift(rendered_runs(tmp_path), runs.rows, choice, tmp_path / "plots")
    assert "entropy 0.1" in (tmp_path / "plots" / names[1]).read_text()
    examples_path(tmp_path, "int8_static-0.1").unlink()
    assert draw_shift(rendered_runs(tmp_path), runs.rows, choice, tmp_path / "plots") == []


def test_names_on_the_front_do_not_disturb_each_other():
    def place(x: float, y: float, point: tuple[float, float]) -> Place:
        return Place(Bbox.from_bounds(x, y, 10, 4), Line([point, (x + 5, y + 2)]))

    name = place(0, 0, (20, 2))
    assert name.disturbs(place(5, 2, (5, 20)))  # covered
    assert name.disturbs(place(40, 0, (-5, 2)))  # the other's line runs through it
    assert place(40, 0, (-5, 2)).disturbs(name)
    assert name.disturbs(place(11, -10, (17, 10)))  # lines cross
    assert not name.disturbs(place(0, 10, (20, 12)))


@pytest.mark.parametrize("width", [80, 120, 160, 240])
def test_console_fits(folder: Path, width: int):
    runs = apply_floor(load_runs(folder))
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    choices = choose(runs)
    tables.print_tables(console, runs, choices, other_tables(runs, choices))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "Early exit wins" in text
    assert "Failed: pabee, float32 on openvino, patience 2: no g++ | found" in " ".join(text.split())
    assert ("Left out for width" in text) == (width < 240)
    if width >= 120:
        assert "exits never fire" in text  # cells are whole: columns go, not letters


def test_table_command_without_a_terminal_takes_160_columns(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["table", str(folder)]) == 0
    assert 120 < max(map(len, capsys.readouterr().out.splitlines())) <= 160


def test_pareto_front():
    points = [
        {"run_id": str(i), "x": x, "dev_score": y}
        for i, (x, y) in enumerate([(1, 9), (2, 8), (2, 7), (1.5, 8), (3, 5)])
    ]
    assert [row["run_id"] for row in pareto_front(points, "x")] == ["0", "1", "4"]


def test_exit_plot_pairs_float32_with_int8(folder: Path):
    found = pairs([row for row in load_runs(folder).rows if row["role"] == "early exit" and row["exit_counts"]])
    assert {side: row["run_id"] for pair in found for side, row in pair.items()} == {
        "float32": "fp32-early",
        "int8": "early",
    }


def test_exit_plot_spaces_policies_over_the_mean_exit_layer():
    layers = [1.0, 1.1, 1.2, 1.3, 3.0, 4.0]
    found = [{"float32": {"mean_exit_layer": layer}} for layer in layers]
    assert [pair["float32"]["mean_exit_layer"] for pair in spaced(found, 3)] == [1.0, 3.0, 4.0]


def test_render_of_failures_alone(tmp_path: Path):
    add(tmp_path, record("a", status="error", error="nothing works", scores={}, exit_counts={}, checkpoint=None))
    files = rendered(tmp_path, tmp_path / "report")
    assert set(files) == FILES
    assert all(b"nothing works" in files[name] for name in ("results.md", "results.json", "index.html"))
    assert b"theirs" not in files["results.md"]  # published figures stand beside ours, not alone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "{}/missing"], "holds no records.jsonl"),
        (["table", "{}/missing"], "holds no records.jsonl"),
        (["render", "{}", "--floor", "1"], "the floor is a share"),
        (["render", "{}", "--floor", "nan"], "the floor is a share"),
        (["render", "{}", "--output", "{}/records.jsonl/x"], "name another folder with --output"),
    ],
)
def test_user_errors_are_one_line(folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str):
    assert main([argument.format(folder) for argument in arguments]) == 2
    stderr = capsys.readouterr().err
    assert said in stderr
    assert stderr.count("\n") == 1


def test_damaged_timings_are_a_user_error(folder: Path, capsys: pytest.CaptureFixture):
    path = timings_path(folder, early("early"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert main(["table", str(folder)]) == 2
    assert "timings.parquet" in capsys.readouterr().err
    write_columns(path, {"repeat": [0, 0, 1], "batch": [0, 1, 0], "rows": [1, 1, 1], "seconds": [0.1, 0.1, 0.1]})
    with pytest.raises(UserError, match="same batches in every repeat"):
        load_runs(folder)


def test_help_teaches(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "python -m reports render runs/default" in capsys.readouterr().out


def test_no_heavy_imports(folder: Path):
    """No torch behind any report, and what a gate needs comes without pandas, scipy and matplotlib."""
    code = """
import json, sys
from reports.choice import choose
from reports.runs import load_runs
light = sorted({"torch", "transformers", "openvino", "pandas", "scipy", "matplotlib"} & set(sys.modules))
from reports.__main__ import main
assert main(["render", sys.argv[1]]) == 0
heavy = sorted({"torch", "transformers", "openvino"} & set(sys.modules))
print(json.dumps([light, heavy]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout.splitlines()[-1]) == [[], []]


def test_runs_is_not_changed_by_a_floor(folder: Path):
    runs: Runs = load_runs(folder)
    before = [dict(row) for row in runs.rows]
    apply_floor(runs, 0.2)
    assert runs.rows == before
