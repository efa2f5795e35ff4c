"""Latency under load, simulated: what a server of one program would answer in, from the measured times of its calls.

Nothing is served here. Rows arrive one by one, as Poisson arrivals do. They wait in one queue, first come, first
served, and the program answers one at a time, each in a time drawn from all that were measured at batch 1. So a row's
latency is its wait and its own time (an M/G/1 queue, by Lindley's recursion, 1952).
"""

from typing import NamedTuple

import numpy as np

from reports.choice import Choice
from reports.notes import describe
from reports.runs import Row, Runs
from reports.tables import Cell, Column, OtherTable, text

ARRIVALS, SEED = 100_000, 0
# Arrival rates, as shares of what the network without exits can answer at all.
LOADS = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.1, 1.3, 1.6, 2.0]
# Nearer to what a program can answer, so many arrivals do not tell what its latency settles at.
BUSIEST = 0.97
NAMES = ["no exits", "fewer layers", "early exit"]
NOTES = [
    "Simulated from measured times, not served: rows arrive at random (Poisson), wait in one queue and are answered one"
    f" by one; each takes a time drawn from its program's calls at batch 1. {ARRIVALS} arrivals, seed {SEED}.",
    "Load: arrivals as a share of what the network without exits can answer. p50 and p99 are of a row's latency, its"
    " wait included; a dash where rows come about as fast as they are answered, or faster: the queue only grows.",
]


class Server(NamedTuple):
    """A program that answers: what it is called, the run, and the seconds of its calls [N]."""

    name: str
    run: Row
    seconds: np.ndarray

    @property
    def capacity_per_s(self) -> float:
        return 1 / float(self.seconds.mean())


def servers(runs: Runs, choice: Choice) -> list[Server]:
    """The fastest network without exits, in INT8 if there is one; the chosen networks of fewer layers and with exits.

    None where the first or the last is missing, or rows did not come one by one to one instance.
    """
    whole, early = choice.answers.get("int8") or choice.answers.get("float32"), choice.answers.get("early exit")
    if whole is None or early is None or (early.run["batch_size"], early.run["instances"]) != (1, 1):
        return []
    answers = zip(NAMES, (whole, choice.answers.get("truncated"), early), strict=True)
    runs_of = {name: answer.run for name, answer in answers if answer is not None}
    return [Server(name, run, runs.timings[run["run_id"]].seconds.ravel()) for name, run in runs_of.items()]


def latencies(seconds: np.ndarray, rate_per_s: float, seed: int = SEED) -> np.ndarray:
    """Seconds [ARRIVALS] from a row's arrival to its answer.

    Args:
        seconds: [N] that calls took; each is as likely as the next.
        rate_per_s: of the arrivals, below what the program can answer.
        seed: the same one draws the same arrivals and, of as many calls, the same calls.
    """
    draw = np.random.default_rng(seed)
    gaps = draw.exponential(1 / rate_per_s, ARRIVALS)
    service = seconds[draw.integers(len(seconds), size=ARRIVALS)]
    # Who comes waits as long as who came before him did, and for his answer, less the time between the two.
    steps = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    return steps - np.minimum.accumulate(steps) + service


def p50_p99_ms(server: Server, rate_per_s: float) -> tuple[float, float] | None:
    """Of the latency; None where the program cannot keep up."""
    if rate_per_s > BUSIEST * server.capacity_per_s:
        return None
    p50, p99 = np.quantile(latencies(server.seconds, rate_per_s), [0.5, 0.99]) * 1000
    return float(p50), float(p99)


def load_table(runs: Runs, choices: list[Choice]) -> OtherTable:
    """A row for each arrival rate of each task that was timed row by row."""
    rows, notes = [], list(NOTES)
    for choice in choices:
        serving = servers(runs, choice)
        notes += [f"{choice.task}, {choice.shape}: {one.name} is {describe(one.run)}." for one in serving]
        for load in LOADS if serving else []:
            rate = load * serving[0].capacity_per_s
            row: Row = {"task": choice.task, "shape": choice.shape, "load": load, "arrivals_per_s": rate}
            for one in serving:
                found = p50_p99_ms(one, rate)
                for name, value in zip(("p50_ms", "p99_ms"), found or (None, None), strict=True):
                    row[f"{one.name} {name}"] = value
            rows.append(row)
    columns = [
        Column("task", 0, text("task"), text=True),
        Column("shape", 3, text("shape"), text=True),
        Column("load %", 0, lambda row: f"{100 * row['load']:.0f}"),
        Column("arrivals / s", 0, lambda row: f"{row['arrivals_per_s']:.4g}"),
        *[
            Column(f"{name} {quantile} ms", 0, _ms(f"{name} {quantile}_ms"))
            for quantile in ("p50", "p99")
            for name in NAMES
        ],
    ]
    return OtherTable("Latency under load, simulated", columns, rows, notes, "load")


def _ms(name: str) -> Cell:
    """Milliseconds; nothing of a program that was not chosen, a dash for one that cannot keep up."""
    return lambda row: "" if name not in row else "-" if row[name] is None else f"{row[name]:.2f}"
