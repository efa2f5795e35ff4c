"""Scores at equal layer speed-ups, L / mean exit layer: every way of leaving early, beside fewer layers.

FastBERT's paper compares methods so (Liu et al. 2020, section 4), counting FLOPs where this counts layers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import Spread, spread
from reports.runs import Row, Runs
from reports.seeds import RULE, fields, plus_minus, scored
from reports.tables import Column, OtherTable, text

SPEEDUPS = [1, 2, 3, 4, 5]
OWN_LAYERS, ALONE = "own first layers", "first layers, trained alone"
RIVALS = [OWN_LAYERS, ALONE]
NOTES = [
    "Layer speed-up: L / mean exit layer, on dev. It counts layers and not seconds, as FastBERT's paper (section 4)"
    " counts FLOPs. Of each task, read from the runs of its first shape, on the engine with most of them.",
    "Between two thresholds, or two depths, a score is read off the line between them over the mean exit layer: what"
    " drawing lots between the two for each row would score, for accuracy. No threshold was chosen by its score.",
    "Area: the mean score over mean exit layers, along the line from its first to its last point; over fewer layers:"
    f" less that of {OWN_LAYERS} between the same mean exit layers.",
    f"up to, from: nothing that was measured leaves sooner, or later. {OWN_LAYERS}: exit k answers every row."
    f" {ALONE}: the networks of fewer_layers.",
]


class Line(NamedTuple):
    """One way of leaving one setting's networks, such as entropy with any threshold."""

    task: str
    setting: str
    recipe: str
    leaves_by: str


@dataclass(frozen=True)
class Curve:
    """What one seed's network reaches: [P] mean exit layers, ascending, with their [P] dev scores."""

    layers: np.ndarray
    scores: np.ndarray
    num_layers: int

    @property
    def slowest(self) -> float:
        return self.num_layers / float(self.layers[-1])

    @property
    def fastest(self) -> float:
        return self.num_layers / float(self.layers[0])

    def at(self, speedup: float) -> float | None:
        """The score at a layer speed-up, None beyond the curve's ends."""
        if not self.slowest <= speedup <= self.fastest:
            return None
        return float(np.interp(self.num_layers / speedup, self.layers, self.scores))

    def mean_height(self, first: float, last: float) -> float | None:
        """The area below the curve between two mean exit layers, over their distance; None beyond the curve's ends."""
        if not self.layers[0] <= first < last <= self.layers[-1]:
            return None
        inside = self.layers[(first < self.layers) & (self.layers < last)]
        layers = np.concatenate([[first], inside, [last]])
        return float(np.trapezoid(np.interp(layers, self.layers, self.scores), layers) / (last - first))


def read_curves(runs: Runs) -> dict[Line, dict[int, Curve]]:
    """The curve of each line and seed; whole networks are the slow end of all lines of their checkpoint."""
    rows = _of_one_program(scored(runs))
    alone = {row["run_id"] for row in rows if _truncates(runs, row) and row["method"] == "classifier"}
    wholes = {row["session"]: row for row in rows if not _truncates(runs, row)}
    points: dict[Line, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    depths = {}
    for row in rows:
        main = wholes.get(row["session"], row) if row["run_id"] in alone else row
        if (leaves_by := _leaves_by(row, row["run_id"] in alone)) is not None:
            line = Line(row["task"], main["setting"], row["recipe"], leaves_by)
            points[line][row["seed"]][row["mean_exit_layer"]] = row["dev_score"]
            depths[line] = row["num_layers"]
    for row in rows:
        if row["role"] == "no exits":
            for line in points:
                # The whole of a classifier was trained alone as well; that of a network with exits was not.
                fits = (line.leaves_by == ALONE) == (row["method"] == "classifier")
                if fits and line[:3] == (row["task"], row["setting"], row["recipe"]):
                    points[line][row["seed"]][row["mean_exit_layer"]] = row["dev_score"]
    return {
        line: {seed: _curve(found, depths[line]) for seed, found in seeds.items()} for line, seeds in points.items()
    }


def averaged(curves: Iterable[Curve], speedup: float) -> Spread | None:
    """The score at a layer speed-up over seeds; None where one of them does not reach it."""
    return _over_seeds([curve.at(speedup) for curve in curves])


def speed_table(curves: dict[Line, dict[int, Curve]]) -> OtherTable:
    """A row for each line, where there is early exit at all."""
    rows, recipes = [], list(dict.fromkeys(line.recipe for line in curves))

    def place(line: Line) -> tuple:
        return line.task, recipes.index(line.recipe), line.leaves_by in RIVALS, line.leaves_by

    for line, seeds in sorted(curves.items(), key=lambda item: place(item[0])):
        given = list(seeds.values())
        row: Row = line._asdict() | {"seeds": " ".join(map(str, sorted(seeds)))}
        row |= {"slowest": max(c.slowest for c in given), "fastest": min(c.fastest for c in given)}
        for speedup in SPEEDUPS:
            row |= fields(f"score_{speedup}x", averaged(given, speedup))
        rows.append(row | _areas(line, curves))
    if all(row["leaves_by"] in RIVALS for row in rows):
        rows = []
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("model", 0, text("setting"), text=True),
        Column("recipe", 0, text("recipe"), text=True),
        Column("leaves by", 0, text("leaves_by"), text=True),
        Column("seeds", 1, text("seeds"), text=True),
        *(Column(f"{speedup}x", 0, _cell(speedup)) for speedup in SPEEDUPS),
        Column("area %", 1, plus_minus("area", 1, 100)),
        Column("area over fewer layers, points", 1, plus_minus("area_gain", 1, 100)),
    ]
    notes = list(NOTES)
    if any(len(seeds) > 1 for seeds in curves.values()):
        notes.append(
            "Several seeds: mean ± sample standard deviation. ≈ marks what differs from the best of its column (of one"
            f" task and recipe) by no more than {RULE}."
        )
    marked = [row | _near_the_best(row, rows) for row in rows]
    return OtherTable("Scores at equal layer speed-ups", columns, marked, notes, file="speed_axis")


def _over_seeds(values: list[float | None]) -> Spread | None:
    """None where a seed has no value."""
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def _areas(line: Line, curves: dict[Line, dict[int, Curve]]) -> Row:
    """The mean height of a line between its own ends, and how far that is above the network's own first layers."""
    fewer = {} if line.leaves_by in RIVALS else curves.get(line._replace(leaves_by=OWN_LAYERS), {})
    heights, gains = [], []
    for seed, curve in curves[line].items():
        ends = float(curve.layers[0]), float(curve.layers[-1])
        height, rival = curve.mean_height(*ends), fewer[seed].mean_height(*ends) if seed in fewer else None
        heights.append(height)
        gains.append(None if height is None or rival is None else height - rival)
    return fields("area", _over_seeds(heights)) | fields("area_gain", _over_seeds(gains))


def _of_one_program(rows: list[Row]) -> list[Row]:
    """Rows that know their mean exit layer, of each task's first shape, on the engine that has most of them."""
    shapes = {row["task"]: row["shape"] for row in reversed(rows)}
    known = [row for row in rows if row["shape"] == shapes[row["task"]] and row["mean_exit_layer"] is not None]
    counts = {task: Counter(row["engine"] for row in known if row["task"] == task) for task in shapes}
    return [row for row in known if row["engine"] == counts[row["task"]].most_common(1)[0][0]]


def _truncates(runs: Runs, row: Row) -> bool:
    info = runs.records[row["run_id"]].checkpoint
    return info is not None and info.truncates is not None


def _leaves_by(row: Row, alone: bool) -> str | None:
    """The name of a row's line; None for rows of whole networks, which belong to several or to none."""
    if row["role"] == "truncated":
        return ALONE if alone else OWN_LAYERS
    if row["role"] != "early exit":
        return None
    kind, kept = row["policy"].split()[0], row["configuration"].partition(" at ")[2]
    return f"{kind} at {kept}" if kept else kind


def _curve(points: dict[float, float], num_layers: int) -> Curve:
    ordered = sorted(points.items())
    return Curve(np.array([layer for layer, _ in ordered]), np.array([score for _, score in ordered]), num_layers)


def _near_the_best(row: Row, rows: list[Row]) -> Row:
    """For each speed-up: is the row inside the spread of the best, without being it?"""
    marks = {}
    for speedup in SPEEDUPS:
        name = f"score_{speedup}x"
        peers = [peer for peer in rows if (peer["task"], peer["recipe"]) == (row["task"], row["recipe"])]
        known = [peer for peer in peers if peer[name] is not None]
        best = max(known, key=lambda peer: peer[name], default=row)
        marks[f"{name}_inside"] = (
            row[name] is not None and row is not best and _spread(row, name).holds(_spread(best, name))
        )
    return marks


def _spread(row: Row, name: str) -> Spread:
    return Spread(row[name], row[f"{name}_spread"])


def _cell(speedup: int) -> Callable[[Row], str]:
    name = f"score_{speedup}x"
    score = plus_minus(name, 1, 100)

    def cell(row: Row) -> str:
        if row[name] is not None:
            return score(row) + (" ≈" if row[f"{name}_inside"] else "")
        return f"up to {row['fastest']:.2f}x" if row["fastest"] < speedup else f"from {row['slowest']:.2f}x"

    return cell
