"""What training made of each exit: its score and calibration on `select`, beside networks that were trained without.

What joint training costs the last exit, and what it gives the early ones, is the gain over a network of as many layers
whose one loss was that of its last exit.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from benchmarks.records import CheckpointInfo
from benchmarks.statistics import spread
from reports.labels import setting_labels
from reports.runs import Row, Runs
from reports.seeds import fields, plus_minus
from reports.tables import Column, OtherTable, number, text

# Methods whose last exit learns from nothing but its own loss, so that the whole network is as if it had no others.
ALONE = ["classifier", "deebert", "fastbert"]
NOTES = [
    "Scores and expected calibration error (ECE, 15 bins) of each exit on select, before any recipe.",
    "Trained alone: a network of as many layers of the same backbone and seed whose one loss was that of its last exit:"
    f" fewer_layers, classifier, or the whole network of {' or '.join(ALONE[1:])}; of several, the best on select.",
    "Area: the mean height of the line through the scores over depth, between the depths named.",
    "Gain: select % less trained alone, seed by seed; `inside the spread` where it is no more than its deviation.",
]


class Trained(NamedTuple):
    """A checkpoint of a task. `start` is what the whole network began as, also for one of fewer layers."""

    task: str
    setting: str
    start: str
    info: CheckpointInfo


def training_table(runs: Runs) -> OtherTable:
    """A row for each exit of each setting with exits, and one for their area."""
    checkpoints = _checkpoints(runs)
    alone: dict[tuple, dict[int, float]] = defaultdict(dict)
    for task, _, start, info in checkpoints:
        if info.method in ALONE and info.select_scores:
            found = alone[task, start, info.seed]
            found[info.num_layers] = max(info.select_scores[-1], found.get(info.num_layers, -1.0))
    settings: dict[tuple, list[Trained]] = defaultdict(list)
    for checkpoint in checkpoints:
        if checkpoint.info.method != "classifier" and checkpoint.info.select_scores:
            settings[checkpoint.task, checkpoint.setting].append(checkpoint)
    rows = [row for given in settings.values() for row in _rows(given, alone)]
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("model", 0, text("setting"), text=True),
        Column("seeds", 1, text("seeds"), text=True),
        Column("exit", 0, text("exit")),
        Column("select %", 0, plus_minus("score", 1, 100)),
        Column("ECE", 0, number("ece", 3)),
        Column("trained alone %", 0, plus_minus("alone", 1, 100)),
        Column("gain, points", 0, _gain, text=True),
    ]
    return OtherTable("What training made of each exit", columns, rows, NOTES, file="training")


def _checkpoints(runs: Runs) -> list[Trained]:
    labels = setting_labels(list(runs.records.values()))
    named = [(record, info) for record in runs.records.values() if (info := record.checkpoint) is not None]
    starts = {record.session: info.backbone for record, info in named if info.truncates is None}
    found = {
        (record.task, info.name): Trained(
            record.task, labels[record.run_id], starts.get(record.session, info.backbone), info
        )
        for record, info in named
    }
    return list(found.values())


def _rows(seeds: list[Trained], alone: dict[tuple, dict[int, float]]) -> list[Row]:
    """The exits of one setting, of all its seeds."""
    infos = sorted((checkpoint.info for checkpoint in seeds), key=lambda info: info.seed or 0)
    task, setting, start, _ = seeds[0]
    own = [dict(enumerate(info.select_scores, start=1)) for info in infos]
    rivals = [alone.get((task, start, info.seed), {}) for info in infos]
    shared: Row = {"task": task, "setting": setting, "seeds": " ".join(str(info.seed) for info in infos)}
    rows = []
    for exit_ in own[0]:
        ece = [info.select_ece[exit_ - 1] for info in infos if info.select_ece]
        row = shared | {"exit": str(exit_), "ece": float(np.mean(ece)) if ece else None}
        rows.append(row | _compared([x[exit_] for x in own], [rival.get(exit_) for rival in rivals]))
    depths = sorted(set.intersection(*map(set, rivals)) & set(own[0]))
    known = len(depths) > 1
    ends = depths if known else list(own[0])
    areas = [area({depth: x[depth] for depth in x if ends[0] <= depth <= ends[-1]}) for x in own]
    theirs = [area(rival) if known else None for rival in rivals]
    row = shared | {"exit": f"area {ends[0]} to {ends[-1]}", "ece": None}
    return [*rows, row | _compared(areas, theirs)]


def area(scores: dict[int, float]) -> float:
    """The mean height of the line through scores by depth, from the shallowest to the deepest."""
    depths = sorted(scores)
    if len(depths) == 1:
        return scores[depths[0]]
    return float(np.trapezoid([scores[depth] for depth in depths], depths) / (depths[-1] - depths[0]))


def _compared(own: list[float], alone: list[float | None]) -> Row:
    """Scores by seed beside those of networks trained alone; where a seed has none, only the former."""
    rivals = [score for score in alone if score is not None]
    if len(rivals) < len(own):
        return fields("score", spread(own)) | fields("alone", None) | fields("gain", None)
    gains = spread([score - rival for score, rival in zip(own, rivals, strict=True)])
    return fields("score", spread(own)) | fields("alone", spread(rivals)) | fields("gain", gains)


def _gain(row: Row) -> str:
    if row["gain"] is None:
        return ""
    inside = row["gain_spread"] is not None and abs(row["gain"]) <= row["gain_spread"]
    return f"{row['gain'] * 100:+.1f}" + (" (inside the spread)" if inside else "")
