"""What all plots share: a look, colours anyone can tell apart, and files that come out the same every time."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, told apart with any colour vision; black and yellow left out.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
METHODS = ["pabee", "deebert", "fastbert", "romebert"]
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "D", "int8_static": "^", "int8_native": "P", "int8_dynamic": "v"}
LINES = {
    "float32": ":",
    "bfloat16": "-.",
    "float16": "-.",
    "int8_static": "-",
    "int8_native": "--",
    "int8_dynamic": "--",
}
SPARE_MARKERS = "Phd<>p"
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "exitbench",
}


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colour of each setting: the same in every plot for a known method's name, or the next free one."""
    given = set(names)
    known = {name: PALETTE[i] for i, name in enumerate(METHODS) if name in given}
    free = [colour for colour in PALETTE if colour not in known.values()]
    return known | dict(zip(sorted(given - known.keys()), itertools.cycle(free), strict=False))


def markers(recipes: Iterable[str]) -> dict[str, str]:
    """The marker of each recipe: that of its kind, or a spare one where two recipes of a kind are shown."""
    chosen: dict[str, str] = {}
    spare = iter(SPARE_MARKERS)
    for recipe in dict.fromkeys(recipes):
        marker = MARKERS.get(kind_of(recipe), "*")
        chosen[recipe] = marker if marker not in chosen.values() else next(spare, marker)
    return chosen


def kind_of(recipe: str) -> str:
    """`int8_static(kl)` -> `int8_static`."""
    return recipe.partition("(")[0]


def key(label: str, **style: Any) -> Line2D:
    """One line of a legend: grey and without a line, where `style` does not say otherwise."""
    handle = Line2D([], [])
    handle.set(**({"label": label, "linestyle": "none", "color": "0.35"} | style))
    return handle


def look() -> Any:
    """A context in which figures are made with our style, whatever the user's own settings are."""
    defaults: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"}
    return mpl.rc_context(defaults | STYLE)


def lay_out(figure: Figure) -> None:
    """Find the layout and keep it. With an engine, even one that does nothing, each file would be drawn twice."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)


def save(figure: Figure, folder: Path, name: str) -> list[str]:
    """Write PNG and SVG without dates or versions; returns the file names, PNG first."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return [f"{name}.png", f"{name}.svg"]
