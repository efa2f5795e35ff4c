"""All plots of an output folder, as PNG and SVG."""

from pathlib import Path

from reports.choice import Choice
from reports.exits_plot import draw_exits
from reports.front import draw_front
from reports.runs import Runs
from reports.shift_plot import draw_shift


def draw_all(runs_folder: Path, runs: Runs, choices: list[Choice], folder: Path) -> dict[tuple[str, str], list[str]]:
    """Draw every plot into `folder`; returns (task, shape) -> names of the PNG files.

    Raises:
        UserError: a file of predictions in `runs_folder`, which `runs` was read from, is damaged.
    """
    drawn = {}
    for choice, (task, shape, rows) in zip(choices, runs.groups(), strict=True):
        names = draw_front(rows, choice, folder) + draw_exits(rows, folder)
        names += draw_shift(runs_folder, rows, choice, folder)
        drawn[task, shape] = [name for name in names if name.endswith(".png")]
    return drawn
