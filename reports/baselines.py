"""Which run each speed-up is over: whole networks without exits, of the same session and shape."""

from collections import defaultdict
from collections.abc import Callable

from benchmarks.records import RunRecord
from reports.labels import role, shape_label
from reports.timings import Timings, comparable

# speedup_<key>: may `peer` (a whole network without exits) be the baseline of `run`? The fastest that may is taken.
BASELINES: dict[str, Callable[[RunRecord, RunRecord], bool]] = {
    "float32_same_engine": lambda run, peer: peer.recipe["kind"] == "float32" and peer.engine == run.engine,
    "best_float32": lambda run, peer: peer.recipe["kind"] == "float32",
    "best_int8": lambda run, peer: is_int8(peer),
    "no_exit": lambda run, peer: peer.recipe == run.recipe and peer.engine == run.engine,
}


def is_int8(record: RunRecord) -> bool:
    """Whether a run's recipe is one of the INT8 recipes."""
    return str(record.recipe["kind"]).startswith("int8")


def timed_together(record: RunRecord) -> tuple[str, ...]:
    """What two runs must share for a speed-up between them: task, shape, and session, hence the checkpoint.

    A session measures one checkpoint, and beside it that network's first layers, trained alone.
    """
    return record.task, record.session, shape_label(record.shape)


def find_baselines(records: list[RunRecord], timings: dict[str, Timings]) -> dict[str, dict[str, str]]:
    """run_id -> key of `BASELINES` -> run_id of the baseline, for timed runs; keys without a baseline are absent."""
    peers: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    timed = [record for record in records if record.run_id in timings]
    for record in timed:
        if role(record) == "no exits":
            peers[timed_together(record)].append(record)
    found: dict[str, dict[str, str]] = {}
    for run in timed:
        near = [p for p in peers[timed_together(run)] if comparable(timings[p.run_id], timings[run.run_id])]
        allowed = {key: [peer.run_id for peer in near if allows(run, peer)] for key, allows in BASELINES.items()}
        found[run.run_id] = {key: fastest(runs, timings) for key, runs in allowed.items() if runs}
    return found


def fastest(run_ids: list[str], timings: dict[str, Timings]) -> str:
    """The run with the fewest seconds per example; of equals, the first by run_id."""
    return min(run_ids, key=lambda run_id: (timings[run_id].per_example_s, run_id))
