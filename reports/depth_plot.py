"""The plot of runs whose exits are told: measured speed-up against layer speed-up, each over its own whole network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from reports.choice import Choice
from reports.drawing import colours, key, lay_out, look, markers, save
from reports.front import ROLE_STYLES, trained
from reports.labels import slug
from reports.runs import Row
from reports.trust import untrusted

# By role, how a point is drawn and what the legend calls it.
ROLES: dict[str, tuple[str, dict[str, Any]]] = {
    "timing only": ("exits told by layer", {"markeredgecolor": "white"}),
    "exits never fire": ("exits that never fire", ROLE_STYLES["exits never fire"]),
    "truncated": ("truncated network", {"marker": "X", "markeredgecolor": "white"}),
}


def draw_depths(rows: list[Row], choice: Choice, folder: Path) -> list[str]:
    """Write `depths_<task>_<shape>.png` and `.svg`; returns their names, none where nothing was timed."""
    points = [row for row in rows if row["role"] in ROLES and row["speedup_no_exit"] and not untrusted(row)]
    if not points:
        return []
    engines = sorted({row["engine"] for row in points})
    by_trained, by_recipe = colours(map(trained, points)), markers(row["recipe"] for row in points)
    with look():
        figure = Figure(figsize=(4.6 * len(engines) + 3, 5), layout="constrained")
        panels = figure.subplots(1, len(engines), sharex=True, sharey=True, squeeze=False)[0]
        top = 1.1 * max(max(_layer_speedup(row), row["speedup_no_exit"]) for row in points)
        for axes, engine in zip(panels, engines, strict=True):
            axes.plot([0, top], [0, top], color="0.35", linewidth=0.9, linestyle=(0, (1, 3)))
            for row in points:
                if row["engine"] == engine:
                    _draw(axes, row, by_trained[trained(row)], by_recipe[row["recipe"]])
            axes.set(title=f"engine {engine}", xlim=(0, top), ylim=(0, top))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        panels[0].set_ylabel("measured speed-up over the whole network")
        figure.supxlabel("layer speed-up: L / mean exit layer", fontsize=10)
        figure.suptitle(f"{choice.task}, {choice.shape}: timing only", fontsize=12)
        figure.legend(handles=list(_legend(points, by_trained, by_recipe)), loc="outside right center", fontsize=9)
        lay_out(figure)
        return save(figure, folder, f"depths_{slug(choice.task)}_{slug(choice.shape)}")


def _layer_speedup(row: Row) -> float:
    return row["num_layers"] / row["mean_exit_layer"]


def _draw(axes: Axes, row: Row, colour: str, marker: str) -> None:
    style: dict[str, Any] = {"marker": marker, "markersize": 8, "markeredgewidth": 0.8} | ROLES[row["role"]][1]
    if row["role"] == "exits never fire":
        style |= {"markeredgecolor": colour}
    axes.plot(_layer_speedup(row), row["speedup_no_exit"], color=colour, **style)


def _legend(points: list[Row], by_trained: dict[str, str], by_recipe: dict[str, str]) -> Iterator[Line2D]:
    yield from (key(name, marker="o", color=colour) for name, colour in by_trained.items())
    yield from (key(name, marker=marker) for name, marker in by_recipe.items())
    there = {row["role"] for row in points}
    yield from (key(name, **({"marker": "o"} | style)) for role, (name, style) in ROLES.items() if role in there)
    yield key("as much faster as it has fewer layers", linestyle=(0, (1, 3)))
