"""The load curve: simulated p50 and p99 latency against arrivals (`reports/load.py`)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.choice import Choice
from reports.drawing import PALETTE, lay_out, look, save
from reports.labels import slug
from reports.load import BUSIEST, NAMES, p50_p99_ms, servers
from reports.notes import describe
from reports.runs import Runs

POINTS = 25
COLOURS = dict(zip(NAMES, PALETTE, strict=False))


def draw_load(runs: Runs, choice: Choice, folder: Path) -> list[str]:
    """Write `load_<task>_<shape>.png` and `.svg`; returns their names, none where rows did not come one by one."""
    serving = servers(runs, choice)
    if not serving:
        return []
    with look():
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axes = figure.subplots()
        for one in serving:
            rates = np.linspace(0.02, BUSIEST, POINTS) * one.capacity_per_s
            p50, p99 = zip(*filter(None, (p50_p99_ms(one, rate) for rate in rates)), strict=True)
            axes.plot(rates, p99, color=COLOURS[one.name], label=f"{one.name}: {describe(one.run)}")
            axes.plot(rates, p50, color=COLOURS[one.name], linestyle="--")
        axes.set_yscale("log")
        axes.set_xlabel("arrivals per second")
        axes.set_ylabel("latency, waiting included, ms")
        axes.set_title(
            f"{choice.task}, {choice.shape}: latency under load\n"
            "simulated from the measured times, not served: one queue, Poisson arrivals"
        )
        styles = [
            Line2D([], [], color="black", label="p99"),
            Line2D([], [], color="black", linestyle="--", label="p50"),
        ]
        handles = [*axes.get_legend_handles_labels()[0], *styles]
        figure.legend(handles=handles, loc="outside lower center", fontsize=9)
        lay_out(figure)
        return save(figure, folder, f"load_{slug(choice.task)}_{slug(choice.shape)}")
