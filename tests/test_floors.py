"""The table of other floors, over runs whose scores and times are made up."""

from pathlib import Path

import pytest

from reports.floors import FLOORS, floors_table
from reports.runs import load_runs
from reports.tables import OtherTable
from tests.fake_runs import ENTROPY, add, early, record, truncated


def cells(table: OtherTable) -> list[list[str]]:
    return [[column.cell(row) for column in table.columns] for row in table.rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """At 0.5 % only the careful early exit is left; 1 % lets in two layers, 2 % the hasty exit, 5 % one layer."""
    hasty = ENTROPY | {"threshold": 0.6}
    add(tmp_path, record("whole", tune=0.9), 8.0)
    add(tmp_path, early("careful", dev=0.88, tune=0.898), 4.0)
    add(tmp_path, early("hasty", hasty, dev=0.85, tune=0.885), 2.0)
    add(tmp_path, truncated("two", 2, dev=0.89, tune=0.893), 5.0)
    add(tmp_path, truncated("one", 1, dev=0.8, tune=0.86), 1.0)
    return tmp_path


def test_a_row_for_each_floor_that_changes_the_answer(folder: Path):
    assert FLOORS == [0.005, 0.01, 0.02, 0.03, 0.05]
    rows = floors_table(load_runs(folder)).rows
    told = [(row["relative_floor"], row["early exit_dev_score"], row["truncated_dev_score"]) for row in rows]
    assert told == [(0.005, 0.88, None), (0.01, 0.88, 0.89), (0.02, 0.85, 0.89), (0.05, 0.85, 0.8)]
    ratios = [row["over_truncated"] for row in rows]
    assert ratios == [None, *map(pytest.approx, [5 / 4, 5 / 2, 1 / 2])]


def test_its_cells(folder: Path):
    first, second, *_ = cells(floors_table(load_runs(folder)))
    assert first[2:-2] == ["0.5", "", "", "88.0", "4.000", "", ""]
    assert first[-2].endswith("entropy 0.2")
    assert second[2] == "1.0"
    assert second[3].startswith("1.25 (1.")
    assert second[5:-2] == ["88.0", "4.000", "89.0", "5.000"]
    assert second[-1].endswith("2 of 4 layers")


def test_none_where_every_floor_gives_the_same(tmp_path: Path):
    add(tmp_path, record("whole", tune=0.9), 8.0)
    add(tmp_path, early("early", tune=0.9), 4.0)
    assert floors_table(load_runs(tmp_path)).rows == []
