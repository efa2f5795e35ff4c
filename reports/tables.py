"""Results as tables: on the console, as Markdown, CSV and JSON. What is printed in percent says so."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.choice import Answer, Choice
from reports.columns import COLUMNS as FIELDS
from reports.columns import METRIC_TEXT
from reports.frame import to_frame
from reports.notes import describe, failures, header_notes, heading
from reports.runs import Row, Runs
from reports.trust import untrusted

Cell = Callable[[Any], str]


@dataclass(frozen=True)
class Column:
    """One column of a printed table. On a narrow console, columns of the highest `priority` are left out first."""

    title: str
    priority: int
    cell: Cell
    text: bool = False  # left-aligned


class OtherTable(NamedTuple):
    """One more table over the whole folder, with the lines that explain it.

    `file` names the CSV of its rows, for a table that shows what `results.csv` does not hold; that also has the
    `further` rows.
    """

    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    file: str | None = None
    further: Sequence[Row] = ()

    @property
    def csv(self) -> str:
        """Every field of every row, numbers to six digits."""
        return pd.DataFrame([*self.rows, *self.further]).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def of_first_shapes(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of each task's first shape, and all others: they hardly differ but in time."""
    first = {row["task"]: row["shape"] for row in reversed(rows)}
    shown = [row for row in rows if row["shape"] == first[row["task"]]]
    return shown, [row for row in rows if row["shape"] != first[row["task"]]]


def number(name: str, digits: int, scale: float = 1) -> Cell:
    """Formats a field of a row; empty where the row lacks it."""
    return lambda row: "" if row[name] is None else f"{row[name] * scale:.{digits}f}"


def interval(name: str, digits: int, scale: float = 1) -> Cell:
    """Formats `<name>_low` to `<name>_high`; empty where the row lacks them."""
    low, high = number(f"{name}_low", digits, scale), number(f"{name}_high", digits, scale)
    return lambda row: "" if row[f"{name}_low"] is None else f"{low(row)} to {high(row)}"


def change(name: str) -> Cell:
    """A difference of scores in points, said to be noise where it is: `-0.3 (noise)`; empty where the row lacks it."""
    noise = f"{name}_noise"
    return lambda row: "" if row[name] is None else f"{row[name] * 100:+.1f}{' (noise)' if row[noise] else ''}"


def text(name: str) -> Cell:
    """A field as it stands; empty where the row lacks it."""
    return lambda row: "" if row[name] is None else str(row[name])


def note(row: Row) -> str:
    """What a reader must know of a run before comparing it."""
    remarks = ["failed"] if row["status"] == "error" else []
    remarks += ["INVALID"] if untrusted(row) else []
    remarks += ["warning"] if row["timing_validity"] == "warning" else []
    remarks += ["timing only"] if row["role"] == "timing only" else []
    if row["exit_overhead"] is not None:
        remarks.append(f"overhead {row['exit_overhead'] * 100:+.1f} %")
    return ", ".join(remarks)


COLUMNS = [
    Column("model", 0, text("model"), text=True),
    Column("recipe", 0, text("recipe"), text=True),
    Column("engine", 0, text("engine"), text=True),
    Column("configuration", 0, text("configuration"), text=True),
    Column("dev %", 0, number("dev_score", 1, 100)),
    Column("dev 95 %", 4, interval("dev_score", 1, 100)),
    Column("from fp32, points", 1, change("float32_change")),
    Column("from fp32 95 %", 5, interval("float32_change", 1, 100)),
    Column("over random exits, points", 4, change("choice_worth")),
    Column("tune %", 3, number("tune_score", 1, 100)),
    Column("mean layer", 1, number("mean_exit_layer", 2)),
    Column("layer saving %", 2, number("layer_saving", 1, 100)),
    Column("ms / example", 0, number("latency_s_per_example", 3, 1000)),
    Column("p50 ms", 6, number("p50_ms", 2)),
    Column("p95 ms", 6, number("p95_ms", 2)),
    Column("p99 ms", 6, number("p99_ms", 2)),
    Column("p99 / no exit", 2, number("p99_over_no_exit", 2)),
    Column("examples / s", 7, number("throughput_per_s", 1)),
    Column("x INT8", 0, number("speedup_best_int8", 2)),
    Column("x INT8 95 %", 4, interval("speedup_best_int8", 2)),
    Column("x fewer layers", 1, number("speedup_best_truncated", 2)),
    Column("x no exit", 5, number("speedup_no_exit", 2)),
    Column("exit eff.", 5, number("exit_efficiency", 2)),
    Column("x fp32 same", 7, number("speedup_float32_same_engine", 2)),
    Column("x fp32 best", 3, number("speedup_best_float32", 2)),
    Column("MB", 6, number("size_mb", 1)),
    Column("GPU MB", 6, number("peak_memory_mb", 1)),
    Column("note", 0, note, text=True),
]

LEGEND = [
    "from fp32: dev % less that of the same checkpoint's whole float32 network, paired by row. (noise): equally good"
    " networks would often differ as much, by McNemar's exact test at 5 % for accuracy, by the bootstrap else.",
    "over random exits: dev % less what as many rows at each exit score when chosen at random. (noise): inside the"
    " range that holds 95 % of such choices.",
    "x INT8, x fp32 best: speed-up over the fastest whole network without exits in INT8, in float32, of any engine.",
    "x fp32 same: over float32 without exits on the same engine. x no exit: over the same recipe without exits.",
    "x fewer layers: over the fastest truncated network whose tune score keeps the floor.",
    "A speed-up is total baseline seconds / total seconds over the same rows, timed turn by turn in one session.",
    "layer saving = 1 - mean layer / L. exit eff. = x no exit / (L / mean layer): 1 where saved layers become time.",
    "p99 / no exit: the 99th percentile of a batch's time over that of the same recipe without exits. Rows that stay to"
    " the end pay for every exit on the way, so early exit shortens the mean; the tail it shortens only by ending at"
    " fewer layers.",
    "INVALID: not to be trusted, and never chosen. warning: ratios hold, but see the notes above the table.",
    "overhead: seconds of a network whose exits never fire over those of the same network without exits, less 1.",
]


def _versus(answer: Answer) -> str:
    return "" if answer.over_truncated is None else answer.over_truncated.cell


def _from_fewer_layers(answer: Answer) -> str:
    found = answer.change_from_truncated
    if found is None:
        return ""
    points, low, high = (f"{100 * value:+.1f}" for value in found.interval)
    return f"{points} ({low} to {high}{', noise' if found.is_noise else ''})"


def _kept(choice: Choice) -> Cell:
    base = (choice.reference or {}).get("dev_score")
    return lambda answer: (
        "" if not base or answer.run["dev_score"] is None else f"{answer.run['dev_score'] / base * 100:.1f}"
    )


def _floor_note(answer: Answer) -> str:
    below = [split for split, is_below in (("tune", not answer.within_floor), ("dev", answer.below_on_dev)) if is_below]
    return f"below the floor on {' and '.join(below)}" if below else ""


def _of(cell: Cell) -> Cell:
    return lambda answer: cell(answer.run)


def answer_columns(choice: Choice) -> list[Column]:
    """The columns of the table of answers; its rows are `Answer`s."""
    return [
        Column("answer", 0, lambda answer: answer.name, text=True),
        Column("run", 0, lambda answer: describe(answer.run), text=True),
        Column("dev %", 0, _of(number("dev_score", 1, 100))),
        Column("dev 95 %", 1, _of(interval("dev_score", 1, 100))),
        Column("from fp32, points", 1, _of(change("float32_change"))),
        Column("% of float32", 2, _kept(choice)),
        Column("tune %", 2, _of(number("tune_score", 1, 100))),
        Column("mean layer", 1, _of(number("mean_exit_layer", 2))),
        Column("ms / example", 0, _of(number("latency_s_per_example", 3, 1000))),
        Column("x INT8", 0, _of(number("speedup_best_int8", 2))),
        Column("x INT8 95 %", 1, _of(interval("speedup_best_int8", 2))),
        Column("x fewer layers", 0, _versus),
        Column("from fewer layers, points", 1, _from_fewer_layers),
        Column("note", 0, _floor_note, text=True),
    ]


def answer_lines(choice: Choice) -> list[str]:
    """How the answers were chosen."""
    lines = []
    if choice.reference is not None and choice.floor is not None and not choice.timing_only:
        lines.append(
            f"Chosen on tune: the fastest run that scores at least {choice.floor * 100:.2f} %, which is"
            f" {choice.relative_floor * 100:g} % below the best float32 network without exits, whole or of fewer"
            f" layers: {describe(choice.reference)}, {choice.reference['tune_score'] * 100:.2f} %. Read once on dev."
        )
    if choice.invalid:
        lines.append(f"INVALID runs left out: {choice.invalid}.")
    return lines


def csv_text(runs: Runs) -> str:
    """`results.csv`: every run and every column, numbers to six digits."""
    frame = to_frame(runs)
    counts = frame["exit_counts"].map(lambda value: " ".join(map(str, value)) if isinstance(value, list) else "")
    return frame.assign(exit_counts=counts).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def json_text(runs: Runs) -> str:
    """`results.json`: the rows of `results.csv`, null where a record lacks something, and what the columns mean."""
    names = to_frame(runs).columns
    rows = [{name: row.get(name) for name in names} for row in runs.rows]
    content = {"schema": "exitbench/results/1", "columns": FIELDS, "further_columns": METRIC_TEXT, "rows": rows}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def markdown_text(
    runs: Runs, choices: list[Choice], images: dict[tuple[str, str], list[str]], others: list[OtherTable]
) -> str:
    """`results.md`: the answers, a table for each task and shape, the others.

    `images`: (task, shape) -> files beside it.
    """
    lines = [f"# {_safe(heading(runs))}", "", "Scores are in percent. Every column of `results.csv` is described in"]
    lines += ["[results_columns.md](results_columns.md).", "", "## The answer", ""]
    for choice in choices:
        lines += [f"**{_safe(choice.task)}, {_safe(choice.shape)}.** {choice.sentence}", ""]
        if choice.answers:
            lines += [*_markdown_table(answer_columns(choice), list(choice.answers.values())), ""]
        lines += [f"- {line}" for line in answer_lines(choice)] + [""]
    for task, shape, rows in runs.groups():
        lines += [f"## {_safe(task)}: {_safe(shape)}", ""]
        lines += [f"- {_safe(line)}" for line in header_notes(runs, rows)]
        lines += [f"- Failed: {_safe(line)}" for line in failures(rows)] + [""]
        lines += [line for name in images.get((task, shape), []) for line in (f"![{name}]({name})", "")]
        lines += [*_markdown_table(COLUMNS, rows), ""]
    for other in others:
        lines += [f"## {other.title}", "", *[f"- {line}" for line in other.notes], ""]
        lines += [*_markdown_table(other.columns, other.rows), ""]
    lines += ["## Reading the tables", "", *[f"- {line}" for line in LEGEND]]
    return "\n".join(_without_double_blanks(lines)) + "\n"


def print_tables(console: Console, runs: Runs, choices: list[Choice], others: list[OtherTable]) -> None:
    """The answers and the tables, in what columns the console has room for."""
    for choice in choices:
        console.print(Text(f"{choice.task}, {choice.shape}", style="bold"))
        console.print(Text(choice.sentence))
        if choice.answers:
            _print_table(console, answer_columns(choice), list(choice.answers.values()))
        _print_lines(console, answer_lines(choice))
    for task, shape, rows in runs.groups():
        console.print(Text(f"\n{task}: {shape}", style="bold"))
        _print_lines(console, header_notes(runs, rows))
        _print_table(console, COLUMNS, rows)
        _print_lines(console, [f"Failed: {line}" for line in failures(rows)])
    for other in others:
        console.print(Text(f"\n{other.title}", style="bold"))
        _print_lines(console, other.notes)
        _print_table(console, other.columns, other.rows)
    _print_lines(console, LEGEND)


def fitting(columns: list[Column], rows: list[Any], width: int) -> list[Column]:
    """The columns that hold something and fit `width`; priority 0 stays whatever the width."""
    kept = [column for column in columns if any(column.cell(row) for row in rows)]
    while _width(kept, rows) > width and any(column.priority for column in kept):
        last = max(column.priority for column in kept)
        drop = [column for column in kept if column.priority == last][-1]
        kept.remove(drop)
    return kept


def _width(columns: list[Column], rows: list[Any]) -> int:
    """Each column is as wide as its widest cell or word of the title; three spaces stand between two."""
    cells = [[*(column.cell(row) for row in rows), *column.title.split(" ")] for column in columns]
    return sum(max(map(len, given)) + 3 for given in cells) - 3


def _print_table(console: Console, columns: list[Column], rows: list[Any]) -> None:
    kept = fitting(columns, rows, console.width)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in kept:
        title = Text(column.title.replace(" ", "\n"))  # else rich would narrow cells to keep a long title on one line
        table.add_column(title, justify="left" if column.text else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(column.cell(row)) for column in kept])
    console.print(table)
    left_out = [column.title for column in columns if column not in kept and any(column.cell(row) for row in rows)]
    if left_out:
        console.print(Text(f"Left out for width (all are in results.csv): {', '.join(left_out)}", style="dim"))


def _print_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Text(f"- {line}"))


def _markdown_table(columns: list[Column], rows: list[Any]) -> list[str]:
    kept = fitting(columns, rows, width=10**6)
    head = "| " + " | ".join(column.title for column in kept) + " |"
    rule = "| " + " | ".join("---" if column.text else "---:" for column in kept) + " |"
    body = ["| " + " | ".join(_safe(column.cell(row)) for column in kept) + " |" for row in rows]
    return [head, rule, *body]


def _safe(cell: str) -> str:
    """Text that cannot break a Markdown table or be read as markup."""
    for mark in "\\|<*":
        cell = cell.replace(mark, f"\\{mark}")
    return " ".join(cell.split())


def _without_double_blanks(lines: list[str]) -> list[str]:
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
