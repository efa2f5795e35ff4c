"""Where examples leave the network: exit-layer distributions of each policy, float32 beside INT8."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.drawing import PALETTE, lay_out, look, save
from reports.labels import slug
from reports.runs import Row

POLICIES = 8
COLUMNS = 4
SIDES = {"float32": PALETTE[0], "int8": PALETTE[1]}
Pair = dict[str, Row]


def draw_exits(rows: list[Row], folder: Path) -> list[str]:
    """Write one figure for each checkpoint of one task and shape; returns the file names."""
    by_checkpoint: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["role"] == "early exit" and row["exit_counts"] and _side(row):
            by_checkpoint[row["checkpoint"] or row["task"]].append(row)
    names = []
    for checkpoint, given in by_checkpoint.items():
        names += _draw(checkpoint, given, folder)
    return names


def pairs(rows: list[Row]) -> list[Pair]:
    """float32 and INT8 runs of equal policy and exits, on one engine and with one INT8 recipe.

    Of engines and recipes, those with the most runs are taken; of equals, the fastest.
    """
    recipes = sorted({row["recipe"] for row in rows if _side(row) == "int8"}) or [""]
    engines = sorted({row["engine"] for row in rows})
    options = [
        [row for row in rows if row["engine"] == engine and row["recipe"] in ("float32", int8)]
        for engine in engines
        for int8 in recipes
    ]
    paired: dict[str, Pair] = defaultdict(dict)
    for row in max(options, key=lambda chosen: (len(chosen), -_seconds(chosen))):
        paired[row["configuration"]][_side(row)] = row
    return list(paired.values())


def _seconds(rows: list[Row]) -> float:
    return sum(row["latency_s_per_example"] or 0 for row in rows)


def spaced(found: list[Pair], count: int) -> list[Pair]:
    """At most `count` of the pairs, evenly spaced over their mean exit layer, shallowest first."""
    ordered = sorted(found, key=_mean_layer)
    if len(ordered) <= count:
        return ordered
    wanted = np.linspace(_mean_layer(ordered[0]), _mean_layer(ordered[-1]), count)
    chosen: list[int] = []
    for target in wanted:
        free = [i for i in range(len(ordered)) if i not in chosen]
        chosen.append(min(free, key=lambda i: (abs(_mean_layer(ordered[i]) - target), i)))
    return [ordered[i] for i in sorted(chosen)]


def _draw(checkpoint: str, rows: list[Row], folder: Path) -> list[str]:
    found = pairs(rows)
    shown = spaced(found, POLICIES)
    across, down = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    with look():
        figure = Figure(figsize=(max(3.1 * across, 6.5), 2.5 * down + 1.4), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, pair in zip(panels.flat, shown, strict=False):
            _histogram(axes, pair)
        for axes in list(panels.flat)[len(shown) :]:
            axes.remove()
        first = next(iter(shown[0].values()))
        part = f"{len(shown)} of {len(found)} policies, evenly spaced over" if len(shown) < len(found) else "ordered by"
        figure.suptitle(
            f"Where dev rows leave {first['model'] or checkpoint}: {first['engine']}, {first['shape']}\n"
            f"({part} the mean exit layer, which is given beside each name)",
            fontsize=11,
        )
        figure.supxlabel("exit layer", fontsize=10)
        figure.supylabel("dev rows, %", fontsize=10)
        recipes = dict.fromkeys((_side(row), row["recipe"]) for pair in shown for row in pair.values())
        handles = [Patch(color=SIDES[side], label=recipe) for side, recipe in sorted(recipes)]
        figure.legend(handles=handles, loc="outside lower right", ncols=2)
        lay_out(figure)
        return save(figure, folder, f"exits_{slug(first['task'])}_{slug(first['shape'])}_{slug(checkpoint)}")


def _histogram(axes: Axes, pair: Pair) -> None:
    width, means = 0.8 / len(pair), []
    layers = np.arange(1, len(next(iter(pair.values()))["exit_counts"]) + 1)
    for i, side in enumerate(side for side in SIDES if side in pair):
        counts = np.asarray(pair[side]["exit_counts"])
        axes.bar(layers + (i + 0.5) * width - 0.4, 100 * counts / counts.sum(), width, color=SIDES[side])
        means.append(f"{pair[side]['mean_exit_layer']:.2f}")
    axes.set_xticks(layers, minor=False)
    axes.grid(axis="x", visible=False)
    axes.tick_params(labelbottom=True)
    axes.set_title(f"{next(iter(pair.values()))['configuration']}  ({' / '.join(means)})", fontsize=9.5)


def _side(row: Row) -> str:
    """`float32`, `int8`, or nothing for other recipes."""
    return next((side for side in SIDES if row["recipe"].startswith(side)), "")


def _mean_layer(pair: Pair) -> float:
    return float(np.mean([row["mean_exit_layer"] for row in pair.values()]))
