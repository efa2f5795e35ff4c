"""Which run each speed-up is over, and each score set beside: whole networks without exits, of the same shape."""

from collections import defaultdict
from collections.abc import Callable

from benchmarks.records import RunRecord
from reports.answers import Answers, same_rows
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


def find_float32(records: list[RunRecord], answers: dict[str, Answers]) -> dict[str, str]:
    """run_id -> run_id of the whole float32 network without exits that its score is set beside, where there is one.

    It is of the same task, shape and checkpoint, and answers the same rows; a network of fewer layers, trained alone,
    has that of its session. Of several engines, the run's own comes first.
    """
    answered = [record for record in records if record.run_id in answers]
    whole = [record for record in answered if role(record) == "no exits" and record.recipe["kind"] == "float32"]
    found = {}
    for run in answered:
        near = [
            peer
            for peer in whole
            if (peer.task, shape_label(peer.shape)) == (run.task, shape_label(run.shape))
            and (peer.checkpoint == run.checkpoint or peer.session == run.session)
            and same_rows(answers[peer.run_id], answers[run.run_id])
        ]
        if near:
            best = max(near, key=lambda peer: (peer.checkpoint == run.checkpoint, peer.engine == run.engine))
            found[run.run_id] = best.run_id
    return found
