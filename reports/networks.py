"""What each network's exits know: overthinking, the oracle, and how certain and how calibrated each exit is."""

import numpy as np

from benchmarks.recordings import Recording
from models.calibration import best_temperature, expected_calibration_error
from reports.hindsight import mean_entropies, overthinking, predictions_of
from reports.runs import Row, Runs
from reports.tables import Column, OtherTable, number, of_first_shapes, text

NOTES = [
    "Each network with several exits: all rows of dev go through all of them, whatever a policy does. Of each task's"
    " first shape; exits.csv has all.",
    "Shares of all rows. wasteful: an exit before the last is right already; destructive: and the last is wrong"
    " (Kaya et al. 2019). Oracle: every row leaves at its first right exit, or at the last where none is right.",
    "By exit: accuracy in percent, mean entropy of the answer in nats, expected calibration error (15 bins), and the"
    " temperature: what its logits would have to be divided by to be calibrated. Where those of all exits are alike,"
    " calibrating each is one other threshold for all.",
]


def networks_table(runs: Runs) -> OtherTable:
    """A row for each recording of a classifier with several exits."""
    first: dict[str | None, Row] = {}
    for row in runs.rows:
        record, recording = runs.records[row["run_id"]], runs.recording(row["run_id"])
        if row["run_id"] not in runs.answers or recording is None or record.recording in first:
            continue
        if len(recording.exits) > 1 and record.num_classes > 1:
            first[record.recording] = _network(row, recording, runs.answers[row["run_id"]].labels)
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("model", 0, text("model"), text=True),
        Column("recipe", 0, text("recipe"), text=True),
        Column("engine", 2, text("engine"), text=True),
        Column("exits", 2, text("exits"), text=True),
        Column("last exit %", 0, number("last_score", 1, 100)),
        Column("wasteful %", 0, number("wasteful", 1, 100)),
        Column("destructive %", 0, number("destructive", 1, 100)),
        Column("oracle %", 0, number("oracle_score", 1, 100)),
        Column("oracle mean layer", 0, number("oracle_layer", 2)),
        Column("% by exit", 1, text("scores"), text=True),
        Column("entropy by exit", 3, text("entropies"), text=True),
        Column("ECE by exit", 2, text("ece"), text=True),
        Column("temperature by exit", 2, text("temperatures"), text=True),
    ]
    shown, further = of_first_shapes(list(first.values()))
    return OtherTable("What the exits know", columns, shown, NOTES, "exits", further)


def _network(row: Row, recording: Recording, labels: np.ndarray) -> Row:
    logits = recording.logits["dev"]
    right = predictions_of(logits) == labels
    ece = [expected_calibration_error(exit_logits, labels) for exit_logits in logits]
    return {
        **{name: row[name] for name in ("task", "shape", "model", "recipe", "engine")},
        "exits": " ".join(map(str, recording.exits)),
        "last_score": float(right[-1].mean()),
        **overthinking(right, recording.exits)._asdict(),
        "scores": _listed(100 * right.mean(axis=1), 1),
        "entropies": _listed(mean_entropies(logits), 3),
        "ece": _listed(ece, 3),
        "temperatures": _listed([best_temperature(exit_logits, labels) for exit_logits in logits], 2),
    }


def _listed(values: np.ndarray | list[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)
