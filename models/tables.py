"""TSV and CSV files as rows of a task, with errors that name the file, the line and the fix."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from models.config import UserError
from models.data import BaseTask, MetricName, Rows, TaskData
from models.splits import split_rows


@dataclass(frozen=True)
class Table:
    """Some columns of a file, cell by cell, beside the line number (from 1) of each row."""

    path: Path
    lines: list[int]
    columns: dict[str, list[str]]
    malformed_rows: int


def read_table(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None, malformed_allowed: int = 0
) -> Table:
    """Read `columns` of a UTF-8 table: `.csv` with the usual quoting, anything else tab-separated and unquoted.

    `header` names the columns of a file without a header line. Up to `malformed_allowed` lines with the wrong number
    of cells are left out and counted; one more is an error. Blank lines at the end do not count.

    Raises:
        UserError: no such file or column, not UTF-8, no rows, or a line with the wrong number of cells.
    """
    rows = _lines(path)
    names = list(header) if header is not None else [name.strip() for name in next(rows, (0, []))[1]]
    positions = [_position(path, names, column) for column in columns]
    lines: list[int] = []
    cells: list[list[str]] = [[] for _ in columns]
    malformed: list[tuple[int, list[str]]] = []
    for line, row in rows:
        if len(row) != len(names):
            malformed.append((line, row))
            continue
        lines.append(line)
        for column, position in zip(cells, positions, strict=True):
            column.append(row[position])
    if not lines:
        raise UserError(f"{path} must hold at least one row with {len(names)} columns, found none; add rows")
    malformed = [(line, row) for line, row in malformed if any(row) or line < lines[-1]]
    if len(malformed) > malformed_allowed:
        line, row = malformed[malformed_allowed]
        raise UserError(
            f"{path}, line {line}: a row must have {len(names)} columns ({', '.join(names)}), this one has "
            f"{len(row)}; mend or remove the line"
        )
    return Table(path, lines, dict(zip(columns, cells, strict=True)), len(malformed))


def _position(path: Path, names: list[str], column: str) -> int:
    if column not in names:
        raise UserError(f"{path} must have a column {column!r}; its columns are {', '.join(names) or 'none'}")
    return names.index(column)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and cells. Only a line feed ends a TSV row: texts may hold U+2028 or a carriage return."""
    if not path.is_file():
        raise UserError(f"data file not found: {path}; check the path")
    is_csv = path.suffix.lower() == ".csv"
    try:
        with path.open(encoding="utf-8-sig", newline="" if is_csv else "\n") as file:
            if is_csv:
                reader = csv.reader(file, strict=True)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(file, start=1))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} must be UTF-8, found the byte 0x{error.object[error.start]:02x}; convert it"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path} must be a valid CSV file: {error}; quote cells as RFC 4180 says") from error


def rows_of(table: Table, split: str, text_columns: Sequence[str], labels: np.ndarray) -> Rows:
    """The texts of a table beside its parsed `labels`; row i of `split` is called `split-i`."""
    columns = [[cell.strip() for cell in table.columns[name]] for name in text_columns]
    texts = list(zip(*columns, strict=True))
    for line, row in zip(table.lines, texts, strict=True):
        if not any(row):
            raise UserError(
                f"{table.path}, line {line}: a row must have text in {' or '.join(text_columns)}, found none"
            )
    return Rows([f"{split}-{i}" for i in range(len(texts))], texts, labels)


def class_ids(table: Table, column: str, values: Sequence[str]) -> np.ndarray:
    """The position in `values` of every cell of `column`: int64 [N]."""
    position = {value: i for i, value in enumerate(values)}
    labels = np.empty(len(table.lines), dtype=np.int64)
    for i, (line, cell) in enumerate(zip(table.lines, table.columns[column], strict=True)):
        if cell.strip() not in position:
            raise UserError(
                f"{table.path}, line {line}: {column} must be one of {', '.join(values)}, found {cell!r}; mend the row"
            )
        labels[i] = position[cell.strip()]
    return labels


def targets(table: Table, column: str, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    """Every cell of `column` as a finite number in [low, high]: float32 [N]."""
    values = np.empty(len(table.lines), dtype=np.float32)
    for i, (line, cell) in enumerate(zip(table.lines, table.columns[column], strict=True)):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(
                f"{table.path}, line {line}: {column} must be a number in [{low:g}, {high:g}], found {cell!r}; "
                f"mend the row"
            )
        values[i] = value
    return values


class TableTask(BaseTask):
    """A user's own data: a train and a dev file (TSV or CSV, by suffix) with named columns.

    `labels` lists the classes in the order of their ids; without it the label column holds numbers and the task is a
    regression. Relative paths start at `--dataset_location`, or at the working directory without one. A text that
    stands in both files is refused. Beside `metric`, classification reports accuracy, regression both correlations.
    """

    kind: Literal["table"]
    name: str = Field(min_length=1)
    train: str
    dev: str
    text: Annotated[list[str], Field(min_length=1, max_length=2)]
    label: str
    labels: Annotated[list[str], Field(min_length=2)] | None = None
    metric: MetricName

    @model_validator(mode="after")
    def _metric_fits(self) -> Self:
        allowed: list[MetricName] = ["accuracy", "f1", "matthews"] if self.labels else ["pearson", "spearman"]
        if self.metric not in allowed:
            what = "classification (labels given)" if self.labels else "regression (no labels given)"
            raise ValueError(f"metric of a {what} must be one of {', '.join(allowed)}, found {self.metric!r}")
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from one another, found {self.labels}")
        if self.metric == "f1" and len(self.labels or ()) != 2:
            raise ValueError(f"metric f1 needs two labels (the second is the positive one), found {self.labels}")
        return self

    @property
    def label_names(self) -> list[str]:
        """The classes by id; empty for regression."""
        return list(self.labels or ())

    @property
    def metric_names(self) -> Sequence[MetricName]:
        """`metric` first, then what is customary beside it."""
        others: Sequence[MetricName] = ("accuracy",) if self.labels else ("pearson", "spearman")
        return (self.metric, *(name for name in others if name != self.metric))

    def load(self, location: Path | None, seed: int) -> TaskData:
        """Read both files and slice train; raises UserError for anything that is missing, malformed or leaked."""
        root = location or Path()
        train, dev = (self._read(root / path, split) for split, path in (("train", self.train), ("dev", self.dev)))
        return split_rows(train, {"dev": dev}, seed, overlap="refuse")

    def _read(self, path: Path, split: str) -> Rows:
        table = read_table(path, [*self.text, self.label])
        labels = class_ids(table, self.label, self.labels) if self.labels else targets(table, self.label)
        return rows_of(table, split, self.text, labels)
