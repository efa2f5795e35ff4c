"""All further tables of a report; here those in shapes known from elsewhere: LPOT's, and that of early-exit papers.

LPOT's is the table of tuned models in the README of Intel's Low Precision Optimization Tool (now Neural Compressor).
"""

from collections import defaultdict
from typing import NamedTuple

from benchmarks.floors import lowest_allowed
from reports.choice import Choice
from reports.floors import floors_table
from reports.groups import groups_table
from reports.load import load_table
from reports.networks import networks_table
from reports.runs import Row, Runs
from reports.seeds import seeds_table
from reports.speed_axis import read_curves, speed_table
from reports.study import study_table
from reports.tables import Column, OtherTable, number, text
from reports.training_table import training_table

# What each method's paper leaves the network by; any other policy is another combination and not called by its name.
OWN_POLICY = {"pabee": "patience", "deebert": "entropy", "fastbert": "uncertainty", "romebert": "entropy"}


class Published(NamedTuple):
    """Dev scores in percent as printed by Zhou et al. 2020 (PABEE), one speed-up over all tasks."""

    backbone: str
    speedup: float
    full_depth: dict[str, float]
    pabee: dict[str, float]


THEIRS = "published:"
_GLUE = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
_THREE = ["mnli", "sst2", "stsb"]


def _scores(tasks: list[str], *scores: float) -> dict[str, float]:
    return dict(zip(tasks, scores, strict=True))


PUBLISHED = [
    Published(
        "ALBERT-base",
        1.57,
        full_depth=_scores(_GLUE, 58.9, 84.6, 89.5, 91.7, 89.6, 78.6, 92.8, 89.5),
        pabee=_scores(_GLUE, 61.2, 85.1, 90.0, 91.8, 89.6, 80.1, 93.0, 90.1),
    ),
    Published("BERT-base", 1.62, _scores(_THREE, 84.5, 92.1, 88.9), _scores(_THREE, 83.6, 92.0, 88.7)),
    Published("ALBERT-large", 2.42, _scores(_THREE, 86.4, 94.9, 90.4), _scores(_THREE, 86.8, 95.2, 90.6)),
]


def other_tables(runs: Runs, choices: list[Choice]) -> list[OtherTable]:
    """The tables that have rows; `runs` has gone through `apply_floor`."""
    own = [floors_table(runs), study_table(runs), groups_table(runs, choices), networks_table(runs)]
    own += [seeds_table(runs), speed_table(read_curves(runs)), training_table(runs), load_table(runs, choices)]
    return [table for table in (*own, lpot(runs), papers(runs, choices)) if table.rows]


def lpot(runs: Runs) -> OtherTable:
    """FP32 against INT8 for each whole network without exits, as LPOT's table of models shows them."""
    peers = {_network(row): row for row in runs.rows if _is_whole(row) and row["recipe"] == "float32"}
    rows = []
    for row in runs.rows:
        if not _is_whole(row) or not row["recipe"].startswith("int8") or row["status"] == "error":
            continue
        fp32 = peers.get(_network(row), {})
        known = None not in (row["dev_score"], fp32.get("dev_score")) and fp32["dev_score"]
        rows.append(
            row
            | {
                "fp32_score": fp32.get("dev_score"),
                "score_ratio": row["dev_score"] / fp32["dev_score"] - 1 if known else None,
                "fp32_throughput_per_s": fp32.get("throughput_per_s"),
            }
        )
    columns = [
        Column("engine", 0, text("engine"), text=True),
        Column("task", 0, text("task"), text=True),
        Column("model", 0, text("model"), text=True),
        Column("recipe", 0, text("recipe"), text=True),
        Column("shape", 0, text("shape"), text=True),
        Column("accuracy INT8 %", 0, number("dev_score", 2, 100)),
        Column("accuracy FP32 %", 0, number("fp32_score", 2, 100)),
        Column("acc ratio [(INT8-FP32)/FP32] %", 0, number("score_ratio", 2, 100)),
        Column("throughput INT8 / s", 0, number("throughput_per_s", 1)),
        Column("throughput FP32 / s", 0, number("fp32_throughput_per_s", 1)),
        Column("ratio [FP32/INT8 latency]", 0, number("speedup_float32_same_engine", 2)),
    ]
    notes = ["Whole networks without exits, on dev; accuracy stands for the task's headline metric."]
    return OtherTable("In LPOT's shape", columns, rows, notes)


def papers(runs: Runs, choices: list[Choice]) -> OtherTable:
    """A row for each task, backbone and recipe that ran whole, and the published rows of that task below ours.

    The first shape of each task is taken: it changes the time, not what the papers print.
    """
    rows: list[Row] = []
    share = choices[0].relative_floor
    for task in dict.fromkeys(choice.task for choice in choices):
        found = next(group for name, _, group in runs.groups() if name == task)
        networks: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in found:
            if None not in (row["dev_score"], row["tune_score"]):
                networks[row["backbone"], row["recipe"]].append(row)
        ours = [_ours(task, scored, share) for scored in networks.values() if any(map(_is_whole, scored))]
        theirs = [_theirs(task, published) for published in PUBLISHED if task in published.full_depth]
        rows += [*ours, *theirs] if ours else []
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("network", 0, text("network"), text=True),
        Column("full depth", 0, text("full depth")),
        *[Column(method, 0, text(method)) for method in OWN_POLICY],
    ]
    notes = [
        "Dev scores in percent. Of each method, with its paper's own policy, the run that saves most layers while on"
        f" tune it stays within {share * 100:g} % of the full depth beside it; empty where there is none.",
    ]
    if any(row["network"].startswith(THEIRS) for row in rows):
        notes.append(
            "Published rows are theirs, not measured here: dev scores and the one speed-up over all tasks as printed by"
            " Zhou et al. 2020 (PABEE). Xin et al. 2020 (DeeBERT) save up to about 40 % of the time at minimal loss."
        )
    return OtherTable("In the papers' shape", columns, rows, notes)


def _network(row: Row) -> tuple:
    return tuple(row[name] for name in ("task", "shape", "checkpoint", "engine"))


def _is_whole(row: Row) -> bool:
    return row["role"] == "no exits"


def _ours(task: str, rows: list[Row], share: float) -> Row:
    best = max(filter(_is_whole, rows), key=lambda row: row["tune_score"])
    floor = lowest_allowed(best["tune_score"], share)
    ours = {"task": task, "network": f"ours: {best['backbone'] or 'unknown'}, {best['recipe']}"}
    ours["full depth"] = number("dev_score", 1, 100)(best)
    return ours | {method: _method_cell(method, policy, rows, floor) for method, policy in OWN_POLICY.items()}


def _method_cell(method: str, policy: str, rows: list[Row], floor: float) -> str | None:
    """`88.6 (entropy 0.2: 57 % of layers saved)`, or nothing."""
    allowed = [
        row
        for row in rows
        if (row["method"], row["role"], row["policy"].split()[0]) == (method, "early exit", policy)
        and row["validity"] != "INVALID"
        and row["layer_saving"] is not None
        and row["tune_score"] >= floor
    ]
    if not allowed:
        return None
    best = max(allowed, key=lambda row: row["layer_saving"])
    return f"{best['dev_score'] * 100:.1f} ({best['policy']}: {best['layer_saving'] * 100:.0f} % of layers saved)"


def _theirs(task: str, published: Published) -> Row:
    empty: Row = dict.fromkeys(OWN_POLICY)
    return empty | {
        "task": task,
        "network": f"{THEIRS} {published.backbone} (theirs)",
        "full depth": f"{published.full_depth[task]:.1f}",
        "pabee": f"{published.pabee[task]:.1f} ({published.speedup:.2f}x)",
    }
