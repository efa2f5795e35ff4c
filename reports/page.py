"""The page: one HTML file that holds its data, its charts and what draws them, and opens offline."""

from pathlib import Path
from typing import Any

import numpy as np
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports.choice import COMPETING, Answer, Choice
from reports.drawing import LINES, colours, kind_of, markers
from reports.exits_plot import SIDES
from reports.front import X_AXES, ladder_of, pareto_front, plotted, score_range, trained
from reports.labels import WITHOUT_EXITS
from reports.notes import caveats, describe, failures, heading, invalid, machine
from reports.runs import Row, Runs
from reports.shifts import Shift, find_moved, find_shifts
from reports.tables import COLUMNS, LEGEND, OtherTable, answer_columns, answer_lines, change, fitting
from reports.trust import untrusted

TEMPLATE = Path(__file__).with_name("template")
FILTERS = ["model", "recipe", "engine"]
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
# matplotlib's markers and line styles as Vega draws them.
SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "d": "M0,-1L.6,0L0,1L-.6,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.22,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.22,-.31Z",
}
DASHES = {":": [1, 3], "-.": [6, 2, 1, 2], "-": [1, 0], "--": [5, 3]}


def page_html(runs: Runs, choices: list[Choice], others: list[OtherTable]) -> str:
    """The page of an output folder; `runs` has gone through `apply_floor`."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    grouped = list(zip(choices, runs.groups(), strict=True))
    return environment.get_template("page.html").render(
        heading=heading(runs),
        style=_read("page.css"),
        library=_inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")),
        script=_inline(_read("charts.js") + _read("page.js")),
        data=_data(runs, choices),
        groups=[_described(runs, choice, rows) for choice, (_, _, rows) in grouped],
        rows=runs.rows,
        columns=COLUMNS,
        filters={name: sorted({_axes(row)[name] for row in runs.rows}) for name in FILTERS},
        invalid=[f"INVALID: {_name(choice)}: {line}" for choice, (_, _, rows) in grouped for line in invalid(rows)],
        untrusted=sum(map(untrusted, runs.rows)),
        failed=[f"Failed: {_name(choice)}: {line}" for choice, (_, _, rows) in grouped for line in failures(rows)],
        machine=machine(list(runs.records.values())),
        others=others,
        legend=LEGEND,
        fitting=fitting,
    )


def _read(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """JavaScript that cannot end the element it stands in; in its strings a slash may follow a backslash."""
    return script.replace("</script", "<\\/script")


def _name(choice: Choice) -> str:
    return f"{choice.task}, {choice.shape}"


def _described(runs: Runs, choice: Choice, rows: list[Row]) -> dict[str, Any]:
    """What the page says of one task and shape."""
    within = [answer for answer in choice.answers.values() if answer.within_floor]
    fastest = min(within, key=lambda answer: answer.run["latency_s_per_example"], default=None)
    return {
        "name": _name(choice),
        "choice": choice,
        "fastest": fastest and _outcome(fastest),
        "columns": answer_columns(choice),
        "lines": answer_lines(choice),
        "caveats": caveats(runs, rows),
    }


def _outcome(answer: Answer) -> str:
    """What runs, its time, its speed-up and its score, as far as they are known."""
    run = answer.run
    said = [f"{run['latency_s_per_example'] * 1000:.3g} ms an example"]
    if run["speedup_best_int8"] is not None:
        said.append(f"{run['speedup_best_int8']:.2f}x INT8 without exits")
    if run["dev_score"] is not None:
        said.append(f"{run['dev_score'] * 100:.1f} % on dev{' (below the floor there)' if answer.below_on_dev else ''}")
    return f"{describe(run)}: {', '.join(said)}"


def _axes(row: Row) -> dict[str, str]:
    """A run's name, and what it can be filtered by."""
    return {"name": describe(row), "model": trained(row), "recipe": row["recipe"], "engine": row["engine"]}


def _data(runs: Runs, choices: list[Choice]) -> dict[str, Any]:
    """What the charts draw. A run and a shift name their group by its place."""
    groups, shown, shifts = [], [], []
    for i, (choice, (_, _, rows)) in enumerate(zip(choices, runs.groups(), strict=True)):
        # Scores of runs whose exits are told mean nothing.
        x, points, left_out = plotted([] if choice.timing_only else rows)
        groups.append(_group(choice, x, points, left_out))
        answers = {answer.run["run_id"]: kind for kind, answer in choice.answers.items()}
        chosen = [run_id for run_id, kind in answers.items() if kind in COMPETING]
        for row in rows:
            marks = {"group": i, "chosen": row["run_id"] in chosen, "answer": row["run_id"] in answers}
            marks |= {"score": None} if choice.timing_only else {}
            shown.append(_run(runs, row, x) | marks)
        shifts += [
            _shift(runs, shift) | {"group": i, "chosen": shift.int8["run_id"] in chosen} for shift in find_shifts(rows)
        ]
    recipes = markers(row["recipe"] for row in runs.rows)
    return {
        "groups": groups,
        "runs": shown,
        "shifts": shifts,
        "colours": colours(map(trained, runs.rows)),
        "shapes": {recipe: SHAPES[marker] for recipe, marker in recipes.items()},
        "dashes": {recipe: DASHES[LINES.get(kind_of(recipe), "-")] for recipe in recipes},
        "sides": list(SIDES.values()),
    }


def _group(choice: Choice, x: str, points: list[Row], left_out: int) -> dict[str, Any]:
    """One task and shape: the axes of its front, which every engine's chart shares."""
    group: dict[str, Any] = {
        "name": f"{choice.task}, {choice.shape}",
        "x_title": X_AXES[x].replace(" over", "\nover").split("\n"),
        "invalid": left_out,
        "timing_only": choice.timing_only,
    }
    if not points:
        return group
    speeds = [row[x] for row in points]
    low, high = score_range(points, choice)
    room = 0.06 * (high - low) or 0.01
    return group | {
        "metric": f"{points[0]['metric']} on dev, %",
        "scores": [100 * (low - room), 100 * (high + 2 * room)],
        "speeds": [min(speeds) / 1.1, max(speeds) * 1.1],
        "log": max(speeds) > 3 * min(speeds),
        "reference": (choice.reference or {}).get("dev_score"),
        "front": [{"speedup": row[x], "score": 100 * row["dev_score"]} for row in pareto_front(points, x)],
    }


def _run(runs: Runs, row: Row, x: str) -> dict[str, Any]:
    names = ["role", "configuration", "mean_exit_layer"]
    timed = runs.timings.get(row["run_id"])
    quantiles = None if timed is None else 1000 * np.quantile(timed.seconds, QUANTILES)
    return {name: row[name] for name in names} | {
        **_axes(row),
        "ladder": " ".join(map(str, ladder_of(row))) if row["role"] in WITHOUT_EXITS else None,
        "invalid": untrusted(row),
        "score": None if row["dev_score"] is None else 100 * row["dev_score"],
        "change": change("float32_change")(row),
        "speedup": row[x],
        "ms": None if row["latency_s_per_example"] is None else 1000 * row["latency_s_per_example"],
        "quantiles": None if quantiles is None else quantiles.round(4).tolist(),
    }


def _shift(runs: Runs, shift: Shift) -> dict[str, Any]:
    row, moved = shift.int8, find_moved(runs, shift)
    counts = {"float32": shift.float32["exit_counts"], "int8": row["exit_counts"]}
    found = {**_axes(row), "counts": counts, "moved": None}
    if moved is None:
        return found
    outcomes = moved.outcomes and moved.outcomes._asdict()
    return found | {"moved": moved._asdict() | {"matrix": moved.matrix.tolist(), "outcomes": outcomes}}
