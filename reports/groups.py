"""Who pays for the speed: accuracy and exits of the chosen configurations by class and by length."""

from collections.abc import Iterator

import numpy as np

from reports.answers import Answers, difference
from reports.by_row import change_fields
from reports.choice import Choice
from reports.notes import describe
from reports.runs import Row, Runs
from reports.tables import Column, OtherTable, change, interval, number, text

THIRDS = ["shortest third", "middle third", "longest third"]
NOTES = [
    "The answers above, but for float32, and their accuracy on dev rows of one class, and of a third of lengths (in"
    " tokens, with special ones).",
    "from fp32: less that of the same checkpoint's whole float32 network on the same rows, tested as in the tables"
    " above; a group has fewer rows than dev, so that more is noise.",
]


def groups_table(runs: Runs, choices: list[Choice]) -> OtherTable:
    """A row for each group of dev rows of each answer, for classifiers whose predictions are there."""
    rows = [row for choice in choices for row in _choice_rows(runs, choice)]
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("shape", 2, text("shape"), text=True),
        Column("answer", 0, text("answer"), text=True),
        Column("run", 1, text("run"), text=True),
        Column("group", 0, text("group"), text=True),
        Column("rows", 0, text("rows")),
        Column("accuracy %", 0, number("accuracy", 1, 100)),
        Column("from fp32, points", 0, change("change")),
        Column("95 %", 1, interval("change", 1, 100)),
        Column("mean layer", 0, number("mean_layer", 2)),
    ]
    return OtherTable("Who pays for the speed", columns, rows, NOTES, file="groups")


def _choice_rows(runs: Runs, choice: Choice) -> Iterator[Row]:
    for answer in choice.answers.values():
        run_id, network = answer.run["run_id"], answer.run["float32_change_over"]
        if network is None or runs.records[run_id].num_classes == 1:
            continue
        given, before = runs.answers[run_id], runs.answers[network]
        shared = {"task": choice.task, "shape": choice.shape, "answer": answer.name, "run": describe(answer.run)}
        for name, inside in _groups(given):
            of_group = given.of(inside)
            yield {
                **shared,
                "group": name,
                "rows": int(inside.sum()),
                "accuracy": float(of_group.right.mean()),
                **change_fields("change", difference("accuracy", before.of(inside), of_group)),
                "mean_layer": float(of_group.exit_layers.mean()),
            }


def _groups(given: Answers) -> Iterator[tuple[str, np.ndarray]]:
    """The name and rows, [N] bool, of each class and each third of lengths that has rows."""
    for label in np.unique(given.labels):
        yield f"class {label}", given.labels == label
    third = np.digitize(given.lengths, np.quantile(given.lengths, [1 / 3, 2 / 3]), right=True)
    for i, name in enumerate(THIRDS):
        if (inside := third == i).any():
            lengths = given.lengths[inside]
            yield f"{name} ({lengths.min()} to {lengths.max()})", inside
