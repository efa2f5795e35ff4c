"""The plot of accuracy against measured speed-up, with the Pareto front and the truncated networks on it."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Line
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from reports.choice import COMPETING, Choice
from reports.drawing import LINES, colours, key, kind_of, lay_out, look, markers, save
from reports.labels import WITHOUT_EXITS, slug
from reports.runs import Row
from reports.trust import untrusted

X_AXES = {
    "speedup_best_int8": "measured speed-up over the fastest INT8 network without exits",
    "speedup_best_float32": "measured speed-up over the fastest float32 network without exits (no INT8 here)",
}
DEPTH_SHOWN = 0.08  # scores this far below the best float32 are left off the axis, so that the rest can be told apart
LABELS = 14
ROLE_STYLES: dict[str, dict[str, Any]] = {
    "no exits": {"markersize": 11, "markeredgecolor": "black", "markeredgewidth": 1.6},
    "exits never fire": {"markerfacecolor": "white", "markeredgewidth": 1.4},
}
RING: dict[str, Any] = {"marker": "o", "markersize": 18, "markerfacecolor": "none", "markeredgecolor": "black"}


class Label(NamedTuple):
    """The name of a point, and where the point is."""

    text: str
    at: tuple[float, float]
    colour: str


class Place(NamedTuple):
    """Where a label is written, in pixels, and the line from there to its point."""

    box: Bbox
    line: Line

    def disturbs(self, other: "Place") -> bool:
        """Whether one label covers the other, a line runs through one, or the lines cross."""
        ends = ((self.line, other.box), (other.line, self.box))
        crossed = any(line.intersects_bbox(box, filled=False) for line, box in ends)
        return crossed or self.box.overlaps(other.box) or self.line.intersects_path(other.line, filled=False)


def draw_front(rows: list[Row], choice: Choice, folder: Path) -> list[str]:
    """Write `front_<task>_<shape>.png` and `.svg`; returns their names, none where nothing has a score and a speed."""
    x, points, invalid = plotted(rows)
    if not points:
        return []
    engines = sorted({row["engine"] for row in points})
    with look():
        figure = Figure(figsize=(6.5 * len(engines) + 2.5, 6.2), layout="constrained")
        panels = figure.subplots(1, len(engines), sharex=True, sharey=True, squeeze=False)[0]
        front, chosen = pareto_front(points, x), _chosen(choice, x)
        for axes, engine in zip(panels, engines, strict=True):
            _panel(axes, _on(engine, points), points, front, x)
            for row in _on(engine, chosen):
                axes.plot(row[x], 100 * row["dev_score"], **RING, zorder=5)
            axes.set_title(f"engine {engine}")
        _scale(panels, points, choice, x)
        _note_missing(panels[0], points, invalid)
        panels[0].set_ylabel(f"{points[0]['metric']} on dev, %")
        figure.supxlabel(X_AXES[x], fontsize=10)
        figure.suptitle(f"{choice.task}, {choice.shape}: score against measured speed-up", fontsize=12)
        figure.legend(handles=_legend(points, choice, bool(chosen)), loc="outside right center", fontsize=9)
        lay_out(figure)  # before labels are placed in it
        for axes, engine in zip(panels, engines, strict=True):
            _annotate(axes, _on(engine, chosen), _on(engine, front), points, x)
        return save(figure, folder, f"front_{slug(choice.task)}_{slug(choice.shape)}")


def plotted(rows: list[Row]) -> tuple[str, list[Row], int]:
    """The speed-up to plot by, the runs that have it and a score, and how many more were INVALID."""
    x = next((name for name in X_AXES if any(row[name] is not None for row in rows)), next(iter(X_AXES)))
    measured = [row for row in rows if row[x] is not None and row["dev_score"] is not None]
    points = [row for row in measured if not untrusted(row)]
    return x, points, len(measured) - len(points)


def score_range(points: list[Row], choice: Choice) -> tuple[float, float]:
    """Lowest and highest dev score drawn; shallow networks near chance fall below it."""
    scores = [row["dev_score"] for row in points]
    best = (choice.reference or {}).get("dev_score")
    return min(scores) if best is None else max(min(scores), best - DEPTH_SHOWN), max(scores)


def trained(row: Row) -> str:
    """What a point's colour stands for: how its exits were trained; networks fine-tuned alone are of one colour."""
    return (row["method"] if row["method"] == "classifier" else row["setting"]) or "no method"


def ladder_of(row: Row) -> tuple[str, ...]:
    """What networks without exits share that a line joins: one fine-tuning, cut at several layers; or all alone."""
    alone = row["method"] == "classifier"
    return row["session"], row["method"] if alone else row["checkpoint"], row["recipe"]


def pareto_front(points: list[Row], x: str) -> list[Row]:
    """Points that no other beats in both speed and dev score, slowest first."""
    front: list[Row] = []
    for row in sorted(points, key=lambda row: (-row[x], -row["dev_score"], row["run_id"])):
        if not front or row["dev_score"] > front[-1]["dev_score"]:
            front.append(row)
    return front[::-1]


def _panel(axes: Axes, shown: list[Row], points: list[Row], front: list[Row], x: str) -> None:
    """One engine's points; the front is that of all engines, as steps down."""
    by_trained, by_recipe = colours(map(trained, points)), markers(row["recipe"] for row in points)
    axes.step([row[x] for row in front], _percent(front), where="pre", color="0.35", linewidth=5, alpha=0.25, zorder=1)
    ladders: dict[tuple, list[Row]] = defaultdict(list)
    for row in shown:
        if row["role"] in WITHOUT_EXITS:
            ladders[ladder_of(row)].append(row)
    for ladder in ladders.values():
        steps = sorted(ladder, key=lambda row: row["mean_exit_layer"])
        line = LINES.get(kind_of(steps[0]["recipe"]), "-")
        colour = by_trained[trained(steps[0])]
        axes.plot([row[x] for row in steps], _percent(steps), line, color=colour, linewidth=1.2, alpha=0.8, zorder=2)
    for row in shown:
        colour = by_trained[trained(row)]
        style = {"markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8} | ROLE_STYLES.get(row["role"], {})
        if row["role"] == "exits never fire":
            style |= {"markeredgecolor": colour}
        marker = "X" if row["role"] == "truncated" else by_recipe[row["recipe"]]
        zorder = 4 if row["role"] == "early exit" else 3
        axes.plot(row[x], row["dev_score"] * 100, marker=marker, color=colour, zorder=zorder, **style)


def _chosen(choice: Choice, x: str) -> list[Row]:
    """The two answers that compete, early exit and fewer layers, where they can be drawn."""
    runs = [answer.run for kind in COMPETING if (answer := choice.answers.get(kind)) is not None]
    return [run for run in runs if None not in (run[x], run["dev_score"])]


def _on(engine: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["engine"] == engine]


def _scale(panels: list[Axes], points: list[Row], choice: Choice, x: str) -> None:
    """Log speed where it spans more than a factor of 3; shallow networks near chance are counted, not drawn."""
    axes, speeds = panels[0], [row[x] for row in points]
    best = (choice.reference or {}).get("dev_score")
    floor, top = (100 * score for score in score_range(points, choice))
    room = 0.06 * (top - floor) or 1.0
    axes.set_ylim(floor - room, top + 4 * room)
    if max(speeds) > 3 * min(speeds):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if max(speeds) < 30 * min(speeds) else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    # Room on the right and above, where by its nature nothing lies beyond the front: names of points go there.
    span = max(speeds) / min(speeds) if axes.get_xscale() == "log" else 1.0
    right = max(speeds) * span**0.3 if span > 1 else max(speeds) + 0.35 * (max(speeds) - min(speeds)) + 0.1
    axes.set_xlim(min(speeds) / 1.12, right)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    for panel in panels:
        if best is not None:
            panel.axhline(100 * best, color="0.3", linewidth=0.9, linestyle=(0, (1, 3)))


def _note_missing(axes: Axes, points: list[Row], invalid: int) -> None:
    below = sum(score < axes.get_ylim()[0] for score in _percent(points))
    remarks = [f"points below this axis: {below}"] if below else []
    remarks += [f"INVALID runs left out: {invalid}"] if invalid else []
    axes.text(0.01, 0.01, "; ".join(remarks), transform=axes.transAxes, fontsize=8, color="0.3")


def _legend(points: list[Row], choice: Choice, ringed: bool) -> list[Line2D]:
    recipes = markers(row["recipe"] for row in points)
    handles = [key(name, marker="o", color=c) for name, c in colours(map(trained, points)).items()]
    handles += [key(name, marker=m, linestyle=LINES.get(kind_of(name), "-")) for name, m in recipes.items()]
    roles = {row["role"] for row in points}
    if "no exits" in roles:
        handles.append(key("whole network, no exits", marker="o", **ROLE_STYLES["no exits"]))
    if "exits never fire" in roles:
        handles.append(key("exits that never fire", marker="o", **ROLE_STYLES["exits never fire"]))
    if "truncated" in roles:
        handles.append(key("truncated network (line: by layer)", marker="X"))
    whose = ", all engines" if len({row["engine"] for row in points}) > 1 else ""
    handles.append(key(f"Pareto front on dev{whose}", linestyle="-", linewidth=5, alpha=0.3))
    if ringed:
        handles.append(key("chosen on tune, within the floor", **RING))
    if choice.reference is not None:
        handles.append(key("best float32 without exits, on tune: its dev score", linestyle=(0, (1, 3))))
    return handles


def _annotate(axes: Axes, chosen: list[Row], front: list[Row], points: list[Row], x: str) -> None:
    """Name the first of the chosen points and the front, each where it covers no point and disturbs no other name."""
    by_trained = colours(map(trained, points))
    marks = [*((row, 6) for row in points), *((row, 13) for row in chosen)]  # half of a marker, of a ring, in pixels
    taken = [Bbox([at - half, at + half]) for row, half in marks for at in [_pixels(axes, row, x)]]
    low, high = axes.get_ylim()
    seen = {row["run_id"]: row for row in [*chosen, *front]}
    visible = [row for row in seen.values() if low <= row["dev_score"] * 100 <= high][:LABELS]
    alike = Counter((trained(row), row["configuration"]) for row in visible)
    places: list[Place] = []
    for row in visible:
        text = row["configuration"]
        if alike[trained(row), text] > 1:
            text += f", {kind_of(row['recipe'])}"
        label = Label(text, (row[x], row["dev_score"] * 100), by_trained[trained(row)])
        place = _free_place(axes, label, taken, places)
        if place is not None:
            places.append(place)


def _pixels(axes: Axes, row: Row, x: str) -> np.ndarray:
    return axes.transData.transform((row[x], row["dev_score"] * 100))


def _free_place(axes: Axes, label: Label, taken: list[Bbox], places: list[Place]) -> Place | None:
    """Write the label at the nearest free place around its point; nothing is written where all are taken."""
    inside, point = axes.get_window_extent(), axes.transData.transform(label.at)
    for distance in (14, 22, 30, 40, 52, 66, 82):
        for angle in (17, 39, -17, 68, -39, 107, -68, 149, -107, -149):
            offset = (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
            trial = _write(axes, label, offset)
            box = trial.get_window_extent().padded(2)
            trial.remove()
            place = Place(box, Line(np.vstack([point, box.get_points().mean(axis=0)])))
            within = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if within and not any(map(box.overlaps, taken)) and not any(map(place.disturbs, places)):
                line = {"arrowstyle": "-", "color": "0.4", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
                _write(axes, label, offset, arrowprops=line)
                return place
    return None


def _write(axes: Axes, label: Label, offset: tuple[float, float], **line: Any) -> Annotation:
    side = "left" if offset[0] > 0 else "right"
    style = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8, "zorder": 6}
    style |= {"path_effects": [withStroke(linewidth=2.5, foreground="white")]}  # legible across lines
    return axes.annotate(label.text, label.at, xytext=offset, color=label.colour, **style, **line)


def _percent(rows: list[Row]) -> list[float]:
    return [row["dev_score"] * 100 for row in rows]
