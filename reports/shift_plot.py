"""The exit-shift matrix: where the rows that left at each layer in float32 leave in INT8."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.choice import Choice
from reports.drawing import lay_out, look, save
from reports.labels import slug
from reports.notes import describe
from reports.runs import Row, Runs
from reports.shifts import find_moved, find_shifts


def draw_shift(runs: Runs, rows: list[Row], choice: Choice, folder: Path) -> list[str]:
    """Write `shift_<task>_<shape>.png` and `.svg` of the chosen early exit, or of the first INT8 run that has a matrix.

    Returns their names, none where no run has one.
    """
    early = choice.answers.get("early exit")
    chosen = early and early.run["run_id"]
    shifts = sorted(find_shifts(rows), key=lambda shift: shift.int8["run_id"] != chosen)
    found = ((shift.int8, moved) for shift in shifts if (moved := find_moved(runs, shift)) is not None)
    row, moved = next(found, (None, None))
    if row is None or moved is None:
        return []
    with look():
        figure = Figure(figsize=(6.5, 5.6), layout="constrained")
        _matrix(figure, figure.subplots(), moved.matrix)
        flips = "" if moved.outcomes is None else f"; {moved.outcomes.flips} labels differ"
        figure.suptitle(
            f"{describe(row)}\n{choice.task}, {choice.shape}\n"
            f"the same exit on {100 * moved.agreement:.1f} % of dev rows; mean exit layer {moved.drift:+.2f}{flips}",
            fontsize=10,
        )
        lay_out(figure)
        return save(figure, folder, f"shift_{slug(choice.task)}_{slug(choice.shape)}")


def _matrix(figure: Figure, axes: Axes, matrix: np.ndarray) -> None:
    """Coloured by the share of each float32 layer, with the number of rows in each cell."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=matrix > 0)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, origin="upper")
    for (i, j), count in np.ndenumerate(matrix):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] < 0.5 else "black")
    layers = np.arange(len(matrix))
    axes.set_xticks(layers, layers + 1)
    axes.set_yticks(layers, layers + 1)
    axes.grid(visible=False)
    axes.set_xlabel("exit layer in INT8")
    axes.set_ylabel("exit layer in float32")
    figure.colorbar(image, ax=axes, label="share of the rows of the float32 layer")
