"""All plots of an output folder, as PNG and SVG."""

from pathlib import Path

from reports.choice import Choice
from reports.depth_plot import draw_depths
from reports.exits_plot import draw_exits
from reports.front import draw_front
from reports.load_plot import draw_load
from reports.runs import Runs
from reports.shift_plot import draw_shift
from reports.speed_axis import read_curves
from reports.speed_plot import draw_speeds


def draw_all(runs: Runs, choices: list[Choice], folder: Path) -> dict[tuple[str, str], list[str]]:
    """Draw every plot into `folder`; returns (task, shape) -> names of the PNG files."""
    drawn, curves = {}, read_curves(runs)
    for choice, (task, shape, rows) in zip(choices, runs.groups(), strict=True):
        first = task not in {drawn_task for drawn_task, _ in drawn}
        draw = draw_depths if choice.timing_only else draw_front
        names = draw(rows, choice, folder) + draw_exits(rows, folder)
        names += draw_shift(runs, rows, choice, folder)
        names += draw_load(runs, choice, folder)
        names += draw_speeds(curves, task, folder) if first else []
        drawn[task, shape] = [name for name in names if name.endswith(".png")]
    return drawn
