"""Settings that were fine-tuned with several seeds: what they reach on average, and how far their seeds spread.

Here a difference between two settings counts as noise where it is inside their spread (`Spread.holds`).
"""

from collections import defaultdict
from collections.abc import Callable

from benchmarks.statistics import Spread, spread
from reports.runs import Row, Runs
from reports.summaries import newest
from reports.tables import Cell, Column, OtherTable, number, text

RULE = "the root of the sum of both squared deviations"
FIGURES = ["dev_score", "tune_score", "mean_exit_layer", "speedup_best_int8", "speedup_best_truncated"]


def scored(runs: Runs) -> list[Row]:
    """The newest run of each case that has a dev score, INVALID ones left out; each with its `seed`."""
    kept, found = {row["run_id"] for row in newest(runs).values()}, []
    for row in runs.rows:
        info = runs.records[row["run_id"]].checkpoint
        if info and row["run_id"] in kept and row["dev_score"] is not None and row["validity"] != "INVALID":
            found.append(row | {"seed": info.seed})
    return found


def by_seed(rows: list[Row], key: Callable[[Row], tuple]) -> dict[tuple, dict[int, list[Row]]]:
    """Rows by `key`, and below that by seed; all in their order."""
    groups: dict[tuple, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[key(row)][row["seed"]].append(row)
    return groups


def fields(name: str, found: Spread | None) -> Row:
    """A figure's mean and spread as two fields of a row."""
    return {name: None if found is None else found.mean, f"{name}_spread": None if found is None else found.deviation}


def plus_minus(name: str, digits: int, scale: float = 1) -> Cell:
    """Formats `name` and `<name>_spread`: `88.1 ± 0.4`, or the figure alone where there is no spread."""
    mean, deviation = number(name, digits, scale), number(f"{name}_spread", digits, scale)
    return lambda row: " ± ".join(filter(None, [mean(row), deviation(row)]))


def seeds_table(runs: Runs) -> OtherTable:
    """A row for each configuration of a setting with several seeds; none where no setting has."""
    rows = scored(runs)
    several = {key for key, seeds in by_seed(rows, _setting).items() if len(seeds) > 1}
    rows = [row for row in rows if _setting(row) in several]
    found = [_averaged(list(seeds.values())) for seeds in by_seed(rows, _configuration).values()]
    best: dict[tuple, Row] = {}
    for row in found:
        rival = best.setdefault(_compared(row), row)
        best[_compared(row)] = max(row, rival, key=lambda row: row["dev_score"])
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("shape", 3, text("shape"), text=True),
        Column("model", 0, text("setting"), text=True),
        Column("recipe", 0, text("recipe"), text=True),
        Column("engine", 2, text("engine"), text=True),
        Column("configuration", 0, text("configuration"), text=True),
        Column("seeds", 0, text("seeds"), text=True),
        Column("dev %", 0, plus_minus("dev_score", 1, 100)),
        Column("below the best, points", 0, _below),
        Column("tune %", 4, plus_minus("tune_score", 1, 100)),
        Column("mean layer", 1, plus_minus("mean_exit_layer", 2)),
        Column("x INT8", 0, plus_minus("speedup_best_int8", 2)),
        Column("x fewer layers", 1, plus_minus("speedup_best_truncated", 2)),
    ]
    notes = [
        "Mean ± sample standard deviation over fine-tuning seeds, on the same splits; without failed and INVALID runs.",
        "Below the best: the mean dev score against the highest of its configuration, recipe, engine and shape;"
        f" `inside the spread` where the difference is no more than {RULE}.",
    ]
    order = list(best)
    found.sort(key=lambda row: order.index(_compared(row)))
    compared = [row | _against(row, best[_compared(row)]) for row in found]
    return OtherTable("Over seeds", columns, compared, notes, file="seeds")


def _setting(row: Row) -> tuple:
    return row["task"], row["setting"]


def _compared(row: Row) -> tuple:
    return row["task"], row["shape"], row["recipe"], row["engine"], row["configuration"]


def _configuration(row: Row) -> tuple:
    return *_compared(row), row["setting"]


def _averaged(seeds: list[list[Row]]) -> Row:
    """One row for a configuration; of each seed, the last run."""
    rows = [given[-1] for given in seeds]
    averaged: Row = {name: rows[0][name] for name in ("task", "shape", "setting", "recipe", "engine", "configuration")}
    averaged["seeds"] = " ".join(str(row["seed"]) for row in sorted(rows, key=lambda row: row["seed"]))
    for name in FIGURES:
        values = [row[name] for row in rows if row[name] is not None]
        averaged |= fields(name, spread(values) if len(values) == len(rows) else None)
    return averaged


def _against(row: Row, best: Row) -> Row:
    own, other = (Spread(given["dev_score"], given["dev_score_spread"]) for given in (row, best))
    return {"below_best": other.mean - own.mean, "inside_spread": own.holds(other)}


def _below(row: Row) -> str:
    inside = " (inside the spread)" if row["inside_spread"] and row["below_best"] else ""
    return f"{row['below_best'] * 100:.1f}{inside}"
