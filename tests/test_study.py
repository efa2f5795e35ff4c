"""What is read from answers and recordings: the INT8 study, hindsight, what the policy's choice is worth, who pays."""

import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recordings import recording_path
from benchmarks.records import examples_path, write_columns
from benchmarks.statistics import Z_95
from models.calibration import expected_calibration_error
from models.ops import NumpyOps
from models.policies import entropy
from reports.__main__ import main
from reports.answers import Answers
from reports.choice import apply_floor, choose
from reports.groups import groups_table
from reports.hindsight import overthinking, random_exits
from reports.networks import networks_table
from reports.notes import header_notes
from reports.runs import Row, Runs, load_runs
from reports.shifts import find_moved, find_shifts
from reports.study import study_table
from reports.tables import OtherTable, markdown_text
from tests.fake_runs import ENTROPY, FLOAT32, INT8, LAYERS, SHAPE, add, add_examples, add_replayed, early, record

ROWS = {"tune": 300, "dev": 200}
REGRESSION: dict[str, Any] = {"num_classes": 1, "headline_metric": "pearson", "majority_score": None}


def labels_of(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {split: draw.integers(2, size=rows) for split, rows in ROWS.items()}


def logits_of(labels: dict[str, np.ndarray], scale: float = 1.0, seed: int = 1) -> dict[str, np.ndarray]:
    """[L, N, 2] by split: layers grow surer and more often right, and some rows are easier than others."""
    draw, found = np.random.default_rng(seed), {}
    for split, of_split in labels.items():
        ease, noise = draw.gamma(2.0, size=len(of_split)), draw.normal(size=(LAYERS, len(of_split)))
        strength = np.linspace(0.5, 1.5, LAYERS)[:, None] * ease + noise
        signed = np.where(of_split == 1, strength, -strength)
        found[split] = (scale * np.stack([-signed, signed], axis=-1)).astype(np.float32)
    return found


def add_pair(
    folder: Path, policy: dict[str, Any], scale: float = 0.5, seed: int = 1, prefix: str = "", **changes: Any
) -> None:
    """float32 and INT8 with one policy; INT8's logits are those of float32 times `scale`, or drawn by another seed."""
    labels = labels_of()
    sides = {"fp32": (FLOAT32, logits_of(labels)), "int8": (INT8, logits_of(labels, scale, seed))}
    name = " ".join(map(str, policy.values()))
    for side, (recipe, logits) in sides.items():
        run = early(f"{side} {name}", policy, recipe=recipe, recording=f"{prefix}{side}", **changes)
        add_replayed(folder, run, labels, logits, ms=1.0)


def add_whole(
    folder: Path, run_id: str = "whole", recipe: dict[str, Any] = FLOAT32, ms: float = 2.0, **changes: Any
) -> None:
    labels = labels_of()
    run = record(run_id, recording="fp32", **changes)
    add_replayed(folder, run, labels, logits_of(labels), ms)


def cells(table: OtherTable) -> list[dict[str, str]]:
    return [{column.title: column.cell(row) for column in table.columns} for row in table.rows]


def floored(folder: Path) -> Runs:
    return apply_floor(load_runs(folder))


def by_id(runs: Runs) -> dict[str, Row]:
    return {row["run_id"]: row for row in runs.rows}


RIGHT = st.integers(2, 5).flatmap(
    lambda exits: st.lists(st.lists(st.booleans(), min_size=exits, max_size=exits), min_size=1, max_size=20)
)


@settings(max_examples=50, deadline=None)
@given(RIGHT)
def test_overthinking_adds_up(rows: list[list[bool]]):
    right = np.array(rows).T
    exits = list(range(2, 2 + len(right)))
    found = overthinking(right, exits)
    assert found.destructive <= found.wasteful <= found.oracle_score
    assert found.oracle_score == pytest.approx(right[-1].mean() + found.destructive)
    assert found.oracle_score >= right.mean(axis=1).max() - 1e-12
    assert exits[0] <= found.oracle_layer <= exits[-1]


def test_overthinking_by_hand():
    """Right from the start; destroyed; right at the last only; never right."""
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool)
    assert overthinking(right, [1, 2, 4]) == (0.5, 0.25, 0.75, (1 + 2 + 4 + 4) / 4)


def answers_at(labels: np.ndarray, logits: np.ndarray, exit_layers: np.ndarray) -> Answers:
    predictions = logits.argmax(-1)[exit_layers - 1, np.arange(len(labels))]
    return Answers("da7a", labels, predictions, exit_layers, np.ones_like(labels), None)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=6))
def test_random_exits_are_the_mean_over_all_deals(rows: list[tuple[int, bool, bool, bool]]):
    """Every way of dealing out the exits to a handful of rows, one by one."""
    position, *right = (np.array(column) for column in zip(*rows, strict=True))
    logits = np.stack([~np.array(right), np.array(right)], axis=-1).astype(np.float32)
    answers = answers_at(np.ones(len(rows), int), logits, position + 1)
    found = random_exits("accuracy", answers, logits, [1, 2, 3])
    deals = [np.array(right)[list(deal), np.arange(len(rows))].mean() for deal in permutations(position)]
    assert found.estimate == pytest.approx(np.mean(deals))
    assert found.high - found.estimate == pytest.approx(Z_95 * np.std(deals))
    assert found.estimate - found.low == pytest.approx(Z_95 * np.std(deals))


def test_random_exits_of_other_metrics_are_seeded_deals():
    labels, draw = labels_of()["dev"], np.random.default_rng(0)
    logits = logits_of({"dev": labels})["dev"]
    answers = answers_at(labels, logits, draw.integers(1, LAYERS + 1, len(labels)))
    exact, found = (random_exits(metric, answers, logits, [1, 2, 3, 4]) for metric in ("accuracy", "f1"))
    assert found == random_exits("f1", answers, logits, [1, 2, 3, 4])
    # Of two even classes, f1 and accuracy are about the same.
    assert found == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("policy", [{"kind": "entropy", "threshold": 1.0}, {"kind": "patience", "patience": 1}])
def test_where_all_leave_together_the_choice_is_worth_nothing(tmp_path: Path, metric: str, policy: dict[str, Any]):
    kept = {"exits": [3]} if policy["kind"] == "patience" else {}
    add_pair(tmp_path, policy, headline_metric=metric, **kept)
    path = tmp_path / "records.jsonl"  # libraries sum in different orders
    scores = {row["dev_score"] for row in load_runs(tmp_path).rows}
    for score in scores:
        path.write_text(path.read_text().replace(repr(score), repr(float(np.nextafter(score, 1)))))
    runs = floored(tmp_path)
    for row in runs.rows:
        assert row["dev_score"] not in scores
        assert row["choice_worth"] == pytest.approx(0, abs=1e-9)
        assert row["choice_worth_noise"]
    assert "0 of 2 early-exit runs score more" in " ".join(header_notes(runs, runs.rows))
    (row,) = study_table(runs).rows
    assert (row["drift"], row["same_layers_dial"] is None) == (0, bool(kept))


def test_a_policy_that_knows_its_rows_is_worth_more_than_chance(tmp_path: Path):
    add_pair(tmp_path, ENTROPY)
    row = by_id(load_runs(tmp_path))["fp32 entropy 0.2"]
    assert row["choice_worth"] == pytest.approx(row["dev_score"] - row["random_exits_score"])
    assert row["choice_worth"] > 0.02
    assert not row["choice_worth_noise"]
    # The same exits, dealt out at random, are worth nothing.
    labels, logits = labels_of()["dev"], logits_of(labels_of())["dev"]
    dealt = np.random.default_rng(5).permutation(np.repeat([1, 2, 3, 4], row["exit_counts"]))
    answers = answers_at(labels, logits, dealt)
    found = random_exits("accuracy", answers, logits, [1, 2, 3, 4])
    assert found.estimate == pytest.approx(row["random_exits_score"])
    assert found.low <= answers.right.mean() <= found.high


def test_scores_are_set_beside_the_float32_network_of_the_checkpoint(tmp_path: Path):
    add_pair(tmp_path, ENTROPY, seed=7)
    add_whole(tmp_path, "inductor", engine="inductor")
    add_whole(tmp_path, "own")
    add_whole(tmp_path, "other shape", shape=SHAPE | {"batch_size": 8})
    add_whole(tmp_path, "other rows", data_hash="other", engine="eager")
    rows = by_id(load_runs(tmp_path))
    row = rows["int8 entropy 0.2"]
    assert row["float32_change_over"] == "own"
    assert row["float32_change"] == pytest.approx(row["dev_score"] - rows["own"]["dev_score"])
    assert row["float32_change_low"] < row["float32_change"] < row["float32_change_high"]
    assert rows["inductor"]["float32_change_over"] is None
    assert rows["other rows"]["float32_change_over"] is None
    examples_path(tmp_path, "own").unlink()
    assert by_id(load_runs(tmp_path))["int8 entropy 0.2"]["float32_change_over"] == "inductor"


@pytest.mark.parametrize(("lost", "gained", "noise"), [(6, 4, True), (6, 0, False), (0, 6, False), (0, 0, True)])
def test_a_difference_inside_its_noise_is_printed_as_such(tmp_path: Path, lost: int, gained: int, noise: bool):
    before = np.arange(100) < 90
    after = before.copy()
    after[:lost], after[90 : 90 + gained] = False, True
    for run, right, ms in (
        (record("whole"), before, 8.0),
        (early("early", dev=float(after.mean())), after, 1.0),
        (record("fewer", exits=[2], policy={"kind": "fixed", "layer": 2}), before, 2.0),
    ):
        add(tmp_path, run, ms)
        add_examples(tmp_path, run.run_id, right, np.full(100, 2))
    runs = floored(tmp_path)
    row, points = by_id(runs)["early"], gained - lost
    assert (row["float32_change"], row["float32_change_noise"]) == (pytest.approx(points / 100), noise)
    (choice,) = choose(runs)
    assert f"% against 90.0 % on dev{' (noise)' if noise else ''}." in choice.sentence
    notes = " ".join(header_notes(runs, runs.rows))
    beyond = f"{int(not noise and gained > 0)} score above it and {int(not noise and lost > 0)} below"
    assert f"{2 if noise else 1} of 2 runs differ inside their noise, {beyond}" in notes
    text = f"{points:+.1f}{' (noise)' if noise else ''}"
    lines = markdown_text(runs, [choice], {}, []).splitlines()
    (line,) = [line for line in lines if line.startswith("| best early exit")]
    assert re.search(rf"\| \{points:+.1f} \([+-]\d+\.\d to [+-]\d+\.\d{', noise' if noise else ''}\) \|", line)
    (line,) = [line for line in lines if line.startswith("| pabee | float32 | openvino | entropy")]
    assert f"| {text} |" in line


def test_other_metrics_have_intervals_of_the_bootstrap(tmp_path: Path):
    add_pair(tmp_path, ENTROPY, seed=7, headline_metric="f1")
    add_whole(tmp_path, headline_metric="f1")
    runs = floored(tmp_path)
    row = by_id(runs)["int8 entropy 0.2"]
    assert row["dev_score_low"] < row["dev_score"] < row["dev_score_high"]
    assert row["float32_change_low"] < row["float32_change"] < row["float32_change_high"]
    assert row["float32_change_p"] is None
    assert row["float32_change_noise"] == (row["float32_change_low"] <= 0 <= row["float32_change_high"])
    assert row["random_exits_low"] < row["random_exits_score"] < row["random_exits_high"]
    assert "Score: f1, in percent, with its 95 % bootstrap interval" in " ".join(header_notes(runs, runs.rows))


MOVES = st.lists(st.tuples(*[st.integers(1, LAYERS)] * 2, *[st.booleans()] * 2), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(MOVES)
def test_what_moved_adds_up(moves: list[tuple[int, int, bool, bool]]):
    one, other, right, right_after = (np.array(column) for column in zip(*moves, strict=True))
    rows, runs = len(moves), {}
    for name, layers, answered in (("fp32", one, right), ("int8", other, right_after)):
        unused = np.ones(rows, int)
        runs[name] = Answers("da7a", unused, answered.astype(int), layers, unused, None)
    found = find_moved(in_memory(runs), find_shifts(in_memory(runs).rows)[0])
    assert found is not None
    assert found.outcomes is not None
    assert found.matrix.sum() == rows
    assert found.agreement == pytest.approx(np.trace(found.matrix) / rows)
    assert found.drift == pytest.approx((other - one).mean())
    assert abs(found.drift) - 1e-9 <= found.wasserstein <= np.abs(other - one).mean() + 1e-9
    flips_same, flips_other, both, rescued, lost, neither = found.outcomes
    assert both + rescued + lost + neither == rows
    assert rescued - lost == right_after.sum() - right.sum()
    assert flips_same + flips_other == rescued + lost  # of two classes, whatever flips is gained or lost


def in_memory(answers: dict[str, Answers]) -> Runs:
    rows = [
        {"run_id": run_id, "role": "early exit", "exit_counts": [0] * LAYERS, "recipe": recipe}
        | dict.fromkeys(["task", "shape", "checkpoint", "engine", "configuration"])
        for run_id, recipe in (("fp32", "float32"), ("int8", "int8_static"))
    ]
    return Runs(rows, {run_id: early(run_id) for run_id in answers}, {}, answers, {})


POLICIES = [
    {"kind": "entropy", "threshold": 0.3},
    {"kind": "uncertainty", "speed": 0.4},
    {"kind": "confidence", "threshold": 0.9},
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["kind"])
def test_same_layers_finds_the_dial_that_undoes_what_moved_all_exits(tmp_path: Path, policy: dict[str, Any]):
    """INT8 that halves every logit keeps all labels and leaves later; of two classes, one threshold makes up for it."""
    add_pair(tmp_path, policy, scale=0.5)
    (row,) = study_table(floored(tmp_path)).rows
    assert row["drift"] > 0.2
    assert row["wasserstein"] == pytest.approx(row["drift"])
    assert row["same_layers_mean_layer"] == pytest.approx(row["float32_mean_layer"], abs=0.05)
    dial, own = float(row["same_layers_dial"]), list(policy.values())[-1]
    assert dial < own if policy["kind"] == "confidence" else dial > own
    assert abs(row["same_layers_score"] - row["float32_score"]) <= 0.01


def test_same_layers_of_patience_counts(tmp_path: Path):
    add_pair(tmp_path, {"kind": "patience", "patience": 2}, scale=0.5)
    (row,) = study_table(floored(tmp_path)).rows
    assert (row["same_exit"], row["drift"], row["same_layers_dial"]) == (1, 0, "2")
    assert (row["change"], row["change_noise"], row["flips_same_exit"], row["flips_other_exit"]) == (0, True, 0, 0)


def test_same_score_is_the_earliest_of_the_suites_dials_that_scores_as_much(tmp_path: Path):
    for threshold in (0.1, 0.3, 0.6):
        add_pair(tmp_path, {"kind": "entropy", "threshold": threshold}, scale=0.5)
    add_pair(tmp_path, {"kind": "patience", "patience": 1})
    runs = floored(tmp_path)
    rows = by_id(runs)
    for row in study_table(runs).rows:
        kind = row["configuration"].split()[0]
        wanted = rows[row["float32_run"]]["tune_score"]
        reaching = {
            run_id: other["mean_exit_layer"]
            for run_id, other in rows.items()
            if run_id.startswith(f"int8 {kind}") and other["tune_score"] >= wanted
        }
        best = min(reaching, key=lambda run_id: reaching[run_id], default=None)
        assert row["same_score_dial"] == (best and best.split()[-1].removesuffix(".0"))
        assert row["same_score_score"] == (best and rows[best]["dev_score"])
    assert len(study_table(runs).rows) == 4


def test_study_row_by_hand(tmp_path: Path):
    add_pair(tmp_path, ENTROPY, scale=0.5)
    table = study_table(floored(tmp_path))
    ((row,), (cell,)) = table.rows, cells(table)
    labels, logits = labels_of()["dev"], logits_of(labels_of())["dev"]
    change = [entropy(NumpyOps(), side).mean(axis=1) for side in (0.5 * logits, logits)]
    assert cell["entropy by exit"] == " ".join(f"{value:+.3f}" for value in change[0] - change[1])
    left = {run_id: answers.exit_layers - 1 for run_id, answers in load_runs(tmp_path).answers.items()}
    for side, scale, run_id in (("float32", 1, "fp32 entropy 0.2"), ("int8", 0.5, "int8 entropy 0.2")):
        answered = scale * logits[left[run_id], np.arange(len(labels))]
        assert row[f"{side}_ece"] == pytest.approx(expected_calibration_error(answered, labels))
    matrix = np.array([list(map(int, line.split())) for line in row["exit_shifts"].split(" / ")])
    assert matrix.sum() == 200
    assert row["rescued"] - row["lost"] == round(200 * row["change"])
    same, drift = f"{100 * row['same_exit']:.1f}", f"{row['drift']:+.2f}"
    assert table.notes[0] == (
        f"1 of 1 pairs differ in score inside their noise; the exit is the same on {same} to {same} % of rows; the mean"
        f" exit layer moves by {drift} to {drift}."
    )
    assert table.csv.splitlines()[0].startswith("task,shape,model,recipe,engine,configuration,float32_run,int8_run")


def test_other_shapes_are_in_the_csv_alone(tmp_path: Path):
    add_pair(tmp_path, ENTROPY)
    add_pair(tmp_path, {"kind": "entropy", "threshold": 0.3}, prefix="b8 ", shape=SHAPE | {"batch_size": 8})
    for table in (study_table(floored(tmp_path)), networks_table(floored(tmp_path))):
        assert {row["shape"] for row in table.rows} == {"batch 1, padding longest, threads 2"}
        assert table.csv.count("batch 8") == len(table.further) > 0


def test_without_recordings_the_study_holds_what_answers_tell(tmp_path: Path):
    add_pair(tmp_path, ENTROPY)
    for side in ("fp32", "int8"):
        recording_path(tmp_path, side).unlink()
    (row,) = study_table(floored(tmp_path)).rows
    assert row["drift"] > 0
    assert row["entropy_change_by_exit"] is row["int8_ece"] is row["same_layers_dial"] is None
    assert networks_table(floored(tmp_path)).rows == []
    assert by_id(floored(tmp_path))["fp32 entropy 0.2"]["random_exits_score"] is None


def test_a_recording_may_hold_fewer_exits(tmp_path: Path):
    policy, kept = {"kind": "entropy", "threshold": 0.3}, [2, 4]
    add_pair(tmp_path, policy, exits=kept)
    add_pair(tmp_path / "fewer", policy, exits=kept)
    for side in ("fp32", "int8"):
        path = recording_path(tmp_path / "fewer", side)
        with np.load(path) as file:
            arrays = dict(file)
        held = [exit_ - 1 for exit_ in kept]
        np.savez(path, allow_pickle=False, exits=np.array(kept), **{split: arrays[split][held] for split in ROWS})
    assert study_table(floored(tmp_path / "fewer")).rows == study_table(floored(tmp_path)).rows
    networks = networks_table(floored(tmp_path / "fewer")).rows
    assert [row["exits"] for row in networks] == ["2 4", "2 4"]
    assert all(len(row["scores"].split()) == 2 for row in networks)


def test_regression_has_no_labels_to_flip(tmp_path: Path):
    draw = np.random.default_rng(0)
    labels = {split: draw.normal(size=rows).astype(np.float32) for split, rows in ROWS.items()}
    noise = {split: 0.3 * draw.normal(size=(LAYERS, rows, 1)) for split, rows in ROWS.items()}
    policy = {"kind": "patience", "patience": 2, "regression_threshold": 0.4}
    for side, recipe, shift in (("fp32", FLOAT32, 0.0), ("int8", INT8, 0.05)):
        logits = {split: (labels[split][:, None] + noise[split] + shift).astype(np.float32) for split in ROWS}
        run = early(side, policy, recipe=recipe, recording=side, **REGRESSION)
        add_replayed(tmp_path, run, labels, logits, ms=1.0)
    runs = floored(tmp_path)
    (row,) = study_table(runs).rows
    assert (row["same_exit"], row["same_layers_dial"]) == (pytest.approx(1, abs=0.02), "2")
    assert (row["lost"], row["flips_same_exit"], row["int8_ece"]) == (None, None, None)
    assert row["change_low"] <= row["change"] <= row["change_high"]
    assert networks_table(runs).rows == groups_table(runs, choose(runs)).rows == []


def test_a_policy_of_another_version_leaves_its_figures_empty(tmp_path: Path):
    add_pair(tmp_path, ENTROPY)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace('"kind":"entropy","threshold":0.2', '"kind":"votes","enough":0.2'))
    (row,) = study_table(floored(tmp_path)).rows
    assert row["configuration"] == "votes 0.2"
    assert row["drift"] > 0
    assert row["int8_ece"] is row["same_layers_dial"] is row["same_score_dial"] is None


def test_networks_row_by_hand(tmp_path: Path):
    add_pair(tmp_path, ENTROPY)
    add_pair(tmp_path, {"kind": "entropy", "threshold": 0.3})  # of the same recordings
    table = networks_table(floored(tmp_path))
    labels, logits = labels_of()["dev"], logits_of(labels_of())["dev"]
    right = logits.argmax(-1) == labels
    assert [row["recipe"] for row in table.rows] == ["float32", "int8_static(kl)"]
    row = table.rows[0]
    assert (row["last_score"], row["oracle_score"]) == (right[-1].mean(), right.any(axis=0).mean())
    assert row["scores"] == " ".join(f"{100 * score:.1f}" for score in right.mean(axis=1))
    assert row["ece"] == " ".join(f"{expected_calibration_error(side, labels):.3f}" for side in logits)


def test_who_pays_is_told_by_class_and_by_length(tmp_path: Path):
    add_whole(tmp_path, ms=8.0)
    add_pair(tmp_path, ENTROPY)
    runs = floored(tmp_path)
    choices = choose(runs, 0.9)
    rows = groups_table(runs, choices).rows
    (chosen,) = {row["run"] for row in rows}
    assert chosen.endswith("entropy 0.2")
    groups = [row["group"] for row in rows]
    assert groups[:2] == ["class 0", "class 1"]
    assert [group.split(" (")[0] for group in groups[2:]] == ["shortest third", "middle third", "longest third"]
    answer = choices[0].answers["early exit"].run
    for part in (rows[:2], rows[2:]):
        weights = np.array([row["rows"] for row in part])
        assert weights.sum() == 200
        assert weights @ [row["accuracy"] for row in part] / 200 == pytest.approx(answer["dev_score"])
        assert weights @ [row["change"] for row in part] / 200 == pytest.approx(answer["float32_change"])
        assert weights @ [row["mean_layer"] for row in part] / 200 == pytest.approx(answer["mean_exit_layer"])
    spans = [group.split(" (")[1].rstrip(")").split(" to ") for group in groups[2:]]
    assert [int(low) for low, _ in spans[1:]] == [int(high) + 1 for _, high in spans[:-1]]


def test_rows_of_one_length_are_one_group(tmp_path: Path):
    add_whole(tmp_path, ms=8.0)
    add_pair(tmp_path, ENTROPY)
    for path in (tmp_path / "columns").glob("*/examples.parquet"):
        run = load_runs(tmp_path).answers[path.parent.name]
        columns = {"label": run.labels, "prediction": run.predictions, "exit_layer": run.exit_layers}
        write_columns(path, columns | {"length": np.full(200, 7)})
    runs = floored(tmp_path)
    groups = [row["group"] for row in groups_table(runs, choose(runs, 0.9)).rows]
    assert groups == ["class 0", "class 1", "shortest third (7 to 7)"]


@pytest.mark.parametrize("damage", ["cut", "without exits", "empty"])
def test_a_damaged_recording_is_one_line(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture):
    add_pair(tmp_path, ENTROPY)
    path = recording_path(tmp_path, "int8")
    if damage == "without exits":
        np.savez(path, allow_pickle=False, dev=np.zeros((4, 2, 2)))
    else:
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2] if damage == "cut" else b"")
    assert main(["render", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "exits.npz' cannot be read" in stderr
    assert "delete it, and run the suite again" in stderr
    assert stderr.count("\n") == 1


def test_answers_without_a_column_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    add(tmp_path, record("whole"), 1.0)
    write_columns(examples_path(tmp_path, "whole"), {"label": [1], "prediction": [1], "exit_layer": [4]})
    assert main(["table", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "lacks the column 'length'; run the suite again" in stderr
    assert stderr.count("\n") == 1
