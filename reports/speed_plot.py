"""The plot of scores over layer speed-ups: each method's policies, and the best that fewer layers reach."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.statistics import Spread
from reports.drawing import colours, lay_out, look, save
from reports.labels import slug
from reports.speed_axis import RIVALS, SPEEDUPS, Curve, Line, averaged

GRID = np.linspace(SPEEDUPS[0], SPEEDUPS[-1], 81)
STYLES = ["-", "--", ":", "-."]
MARKERS = ["o", "s", "D"]
Lines = dict[Line, dict[int, Curve]]


def draw_speeds(curves: Lines, task: str, folder: Path) -> list[str]:
    """Write `speeds_<task>.png` and `.svg`; returns their names, none where the task has no early exit."""
    lines = {line: seeds for line, seeds in curves.items() if line.task == task}
    policies = sorted({line.leaves_by for line in lines if line.leaves_by not in RIVALS})
    if not policies:
        return []
    recipes = list(dict.fromkeys(line.recipe for line in lines))
    settings = list(dict.fromkeys(line.setting for line in lines if line.leaves_by in policies))
    by_setting = colours(settings)
    # Where colours come round again, the marker tells two settings apart.
    alike = {name: [other for other in settings if by_setting[other] == by_setting[name]] for name in settings}
    marks = {name: MARKERS[others.index(name) % len(MARKERS)] for name, others in alike.items()}
    reached: list[float] = []  # by fewer layers
    with look():
        figure = Figure(figsize=(4.5 * len(recipes) + 3.5, 5.5), layout="constrained")
        panels = figure.subplots(1, len(recipes), sharex=True, sharey=True, squeeze=False)[0]
        for axes, recipe in zip(panels, recipes, strict=True):
            shown = {line: list(seeds.values()) for line, seeds in lines.items() if line.recipe == recipe}
            for line, given in shown.items():
                if line.leaves_by in policies:
                    style = {"linestyle": STYLES[policies.index(line.leaves_by) % len(STYLES)]}
                    style |= {"marker": marks[line.setting]}
                    label = f"{line.setting}, {line.leaves_by}"
                    _draw(axes, [averaged(given, x) for x in GRID], label, color=by_setting[line.setting], **style)
            for i, kind in enumerate(RIVALS):
                rivals = [given for line, given in shown.items() if line.leaves_by == kind]
                best = [max(filter(None, (averaged(given, x) for given in rivals)), default=None) for x in GRID]
                reached += [100 * score.mean for score in best if score is not None]
                _draw(axes, best, f"{kind}: the best", color="black", linestyle=STYLES[i], marker="X", linewidth=2.2)
            axes.set_title(recipe)
        _cut_below(panels[0], reached)
        panels[0].set_ylabel("score on dev, %")
        panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        figure.supxlabel("layer speed-up: L / mean exit layer (layers, not seconds)", fontsize=10)
        figure.suptitle(f"{task}: score at equal layer speed-ups", fontsize=12)
        drawn = [axes.get_legend_handles_labels() for axes in panels]
        handles = {label: handle for found in drawn for handle, label in zip(*found, strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9)
        lay_out(figure)
        return save(figure, folder, f"speeds_{slug(task)}")


def _cut_below(axes: Axes, reached: list[float]) -> None:
    """End the shared axis as far below what fewer layers reach as their scores spread: worse needs no resolution."""
    if not reached:
        return
    low, high = min(reached), max(reached)
    bottom = low - max(high - low, 2.0)
    if axes.get_ylim()[0] < bottom:
        axes.set_ylim(bottom=bottom)
        axes.text(0.01, 0.01, "lines that leave go on below", transform=axes.transAxes, fontsize=8, color="0.3")


def _draw(axes: Axes, found: list[Spread | None], label: str, **style: Any) -> None:
    """A line where the score is known, marked at whole speed-ups, there with the spread over seeds."""
    known = [(x, 100 * score.mean, 100 * (score.deviation or 0)) for x, score in zip(GRID, found, strict=True) if score]
    if not known:
        return
    whole = [i for i, (x, _, _) in enumerate(known) if x in SPEEDUPS]
    xs, means, deviations = map(np.array, zip(*known, strict=True))
    axes.plot(xs, means, markevery=whole, markersize=5, label=label, **style)
    axes.errorbar(
        xs[whole], means[whole], deviations[whole], fmt="none", ecolor=style["color"], elinewidth=0.8, capsize=2
    )
