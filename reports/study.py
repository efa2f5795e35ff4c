"""The INT8 study: what quantization does to exits, labels and confidence, and whether float32's thresholds carry over.

Each row is an INT8 early-exit run beside its float32 twin: the same checkpoint, exits, policy, engine and shape.
"""

import numpy as np

from benchmarks.statistics import score
from models.calibration import expected_calibration_error
from models.policies import replay
from reports.answers import Answers, difference
from reports.by_row import change_fields
from reports.hindsight import mean_entropies
from reports.matching import Matched, read_policy, same_layers, same_score
from reports.runs import Row, Runs
from reports.shifts import Outcomes, Shift, find_moved, find_shifts
from reports.tables import Cell, Column, OtherTable, change, interval, number, of_first_shapes, text

IDENTITY = ["task", "shape", "model", "recipe", "engine", "configuration"]
NOTES = [
    "INT8 beside the float32 run of the same checkpoint, exits, policy, engine and shape, on the same dev rows. Of each"
    " task's first shape; int8_study.csv has all.",
    "from fp32 twin: dev % of INT8 less that of float32. (noise): as in the tables above.",
    "drift: mean exit layer of INT8 less that of float32. W1: the Wasserstein-1 distance of their exit histograms.",
    "flips: rows whose label differs, though they left at the same exit, or after they left at another. rescued: right"
    " in INT8 alone; lost: right in float32 alone.",
    "entropy by exit: of the answer of each kept exit, mean over all rows, INT8 less float32, in nats. ECE: expected"
    " calibration error of the answers given, 15 bins.",
    "So far with float32's dial. same layers: with the dial that on tune brings INT8's mean exit layer nearest to"
    " float32's. same score: with the one of the suite's dials that leaves earliest while its tune score is not below"
    " float32's; empty where there is none. points: dev % less that of the float32 twin.",
]


def study_table(runs: Runs) -> OtherTable:
    """A row for each pair whose answers are there."""
    pairs = [row for shift in find_shifts(runs.rows) if (row := _pair(runs, shift)) is not None]
    shown, further = of_first_shapes(pairs)
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("model", 0, text("model"), text=True),
        Column("recipe", 1, text("recipe"), text=True),
        Column("engine", 2, text("engine"), text=True),
        Column("configuration", 0, text("configuration"), text=True),
        Column("dev % fp32", 2, number("float32_score", 1, 100)),
        Column("dev % INT8", 2, number("int8_score", 1, 100)),
        Column("from fp32 twin, points", 0, change("change")),
        Column("95 %", 3, interval("change", 1, 100)),
        Column("same exit %", 0, number("same_exit", 1, 100)),
        Column("mean layer fp32", 3, number("float32_mean_layer", 2)),
        Column("drift", 0, _signed("drift", 2)),
        Column("W1", 2, number("wasserstein", 2)),
        Column("flips at the same / another exit", 1, _counts("flips_same_exit", "flips_other_exit")),
        Column("rescued / lost", 1, _counts("rescued", "lost")),
        Column("both right / wrong", 4, _counts("both_right", "both_wrong")),
        Column("entropy by exit", 5, text("entropy_change_by_exit"), text=True),
        Column("ECE fp32", 4, number("float32_ece", 3)),
        Column("ECE INT8", 4, number("int8_ece", 3)),
        *_arm_columns("same layers", "same_layers"),
        *_arm_columns("same score", "same_score"),
    ]
    notes = [*_summary(pairs), *NOTES]
    return OtherTable("INT8 against float32, policy by policy", columns, shown, notes, "int8_study", further)


def _summary(pairs: list[Row]) -> list[str]:
    """All pairs in one line, of every shape."""
    if not pairs:
        return []
    same, drift = ([row[name] for row in pairs] for name in ("same_exit", "drift"))
    return [
        f"{sum(row['change_noise'] for row in pairs)} of {len(pairs)} pairs differ in score inside their noise; the"
        f" exit is the same on {100 * min(same):.1f} to {100 * max(same):.1f} % of rows; the mean exit layer moves by"
        f" {min(drift):+.2f} to {max(drift):+.2f}."
    ]


def _pair(runs: Runs, shift: Shift) -> Row | None:
    float32, int8 = shift
    if (moved := find_moved(runs, shift)) is None:
        return None
    before, after = (runs.answers[run["run_id"]] for run in shift)
    row: Row = {name: int8[name] for name in IDENTITY}
    row |= {"float32_run": float32["run_id"], "int8_run": int8["run_id"]}
    row |= {"float32_score": float32["dev_score"], "int8_score": int8["dev_score"]}
    row |= change_fields("change", difference(int8["metric"], before, after))
    row |= {"float32_mean_layer": float32["mean_exit_layer"], "int8_mean_layer": int8["mean_exit_layer"]}
    row |= {"same_exit": moved.agreement, "drift": moved.drift, "wasserstein": moved.wasserstein}
    row["exit_shifts"] = " / ".join(" ".join(map(str, counts)) for counts in moved.matrix)
    row |= moved.outcomes._asdict() if moved.outcomes else dict.fromkeys(Outcomes._fields)
    row |= _confidence(runs, shift, before.labels)
    row |= _arm("same_layers", int8["metric"], before, same_layers(runs, *shift))
    return row | _arm("same_score", int8["metric"], before, same_score(runs, *shift))


def _confidence(runs: Runs, shift: Shift, labels: np.ndarray) -> Row:
    """Entropy and calibration, from the recordings; nothing for regression, and where they are not there."""
    one, other = (_replayed(runs, run["run_id"]) for run in shift)
    if one is None or other is None:
        return dict.fromkeys(["entropy_change_by_exit", "float32_ece", "int8_ece"])
    (before, float32), (after, int8) = one, other
    return {
        "entropy_change_by_exit": " ".join(f"{value:+.3f}" for value in mean_entropies(after) - mean_entropies(before)),
        "float32_ece": expected_calibration_error(float32, labels),
        "int8_ece": expected_calibration_error(int8, labels),
    }


def _replayed(runs: Runs, run_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The logits of all exits, [E, N, C], and those that answer, [N, C]."""
    record, recording = runs.records[run_id], runs.recording(run_id)
    policy = read_policy(record)
    if recording is None or policy is None or record.num_classes == 1:
        return None
    logits = recording.of("dev", record.exits)
    return logits, replay(policy, logits, record.exits).logits


def _arm(name: str, metric: str, float32: Answers, found: Matched | None) -> Row:
    """INT8 with another dial: the dial, its mean exit layer, its score and the change from float32."""
    after = None if found is None else found.answers
    row: Row = {
        f"{name}_dial": None if found is None else f"{found.dial:.3g}",
        f"{name}_mean_layer": None if after is None else float(after.exit_layers.mean()),
        f"{name}_score": None if after is None else score(metric, after.labels, after.predictions),
    }
    return row | change_fields(f"{name}_change", difference(metric, float32, after))


def _arm_columns(title: str, name: str) -> list[Column]:
    return [
        Column(f"{title}: dial", 3, text(f"{name}_dial")),
        Column(f"{title}: mean layer", 3, number(f"{name}_mean_layer", 2)),
        Column(f"{title}: points", 3, change(f"{name}_change")),
    ]


def _signed(name: str, digits: int) -> Cell:
    return lambda row: f"{row[name]:+.{digits}f}"


def _counts(*names: str) -> Cell:
    return lambda row: "" if row[names[0]] is None else " / ".join(str(row[name]) for name in names)
