"""The answer at other floors: where early exit beats fewer layers, and where it does not."""

from itertools import pairwise

from benchmarks.floors import FLOORS
from benchmarks.statistics import Interval
from reports.by_row import change_fields
from reports.choice import COMPETING, Answer, Choice, Versus, choose
from reports.notes import describe
from reports.runs import Row, Runs
from reports.tables import Column, OtherTable, change, number, text

OVER_TRUNCATED = [f"over_truncated{end}" for end in ("", "_low", "_high", "_by_sessions")]
NOTES = [
    "The answer again, with other shares of the best float32 score on tune that may be lost, from"
    f" {FLOORS[0] * 100:g} to {FLOORS[-1] * 100:g} %; a floor that changes nothing is left out. The fastest run of"
    " either kind is chosen on tune and read on dev; empty where none keeps the floor. Of the runs in this folder: the"
    " last session of a tuning holds the best at each of these floors in its winner's recipe, on its winner's engine.",
    "x fewer layers: how fast early exit is over the truncated network beside it. points: its dev score less that"
    " one's, tested as in the tables above. Both choices may lose other shares on dev than on tune.",
]


def floors_table(runs: Runs) -> OtherTable:
    """A row for each floor that changes the answer to a task and shape; none where all give the same."""
    rows: list[Row] = []
    for choices in zip(*(choose(runs, floor) for floor in FLOORS), strict=True):
        found = [_floor_row(choice) for choice in choices]
        changed = [row for before, row in pairwise(found) if any(row[kind] != before[kind] for kind in COMPETING)]
        rows += [found[0], *changed] if changed else []
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("shape", 2, text("shape"), text=True),
        Column("may lose %", 0, number("relative_floor", 1, 100)),
        Column("x fewer layers", 0, _over_truncated),
        Column("points", 0, change("change")),
        Column("early exit: dev %", 0, number("early exit_dev_score", 1, 100)),
        Column("early exit: ms", 1, number("early exit_latency_s_per_example", 3, 1000)),
        Column("truncated: dev %", 0, number("truncated_dev_score", 1, 100)),
        Column("truncated: ms", 1, number("truncated_latency_s_per_example", 3, 1000)),
        Column("early exit", 1, text("early exit"), text=True),
        Column("truncated", 1, text("truncated"), text=True),
    ]
    return OtherTable("At other floors", columns, rows, NOTES, file="floors")


def _floor_row(choice: Choice) -> Row:
    row: Row = {"task": choice.task, "shape": choice.shape, "relative_floor": choice.relative_floor}
    for kind in COMPETING:
        answer = choice.answers.get(kind)
        row[kind] = None if answer is None else describe(answer.run)
        for name in ("dev_score", "mean_exit_layer", "latency_s_per_example"):
            row[f"{kind}_{name}"] = None if answer is None else answer.run[name]
    early = choice.answers.get("early exit")
    return row | _beside_truncated(early) | change_fields("change", early and early.change_from_truncated)


def _beside_truncated(early: Answer | None) -> Row:
    over = None if early is None else early.over_truncated
    values = [None] * 4 if over is None else [*over.ratio, over.by_sessions]
    return dict(zip(OVER_TRUNCATED, values, strict=True))


def _over_truncated(row: Row) -> str:
    if row["over_truncated"] is None:
        return ""
    *ratio, by_sessions = (row[name] for name in OVER_TRUNCATED)
    return Versus(Interval(*ratio), by_sessions).cell
