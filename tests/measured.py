"""A small measured folder, as realistic as a fake can be, into which a test plants a regression."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import Conditions, Parity, RunRecord
from tests.fake_runs import INT8, add_examples, add_timings, append_record, early, record, truncated

ROWS, BATCHES, REPEATS = 1000, 128, 4
EARLY, WHOLE, FEWER = "sst2/ck/int8/exits-1.2.3.4/entropy-0.2", "sst2/ck/int8/no-exits/last", "sst2/ck/int8/no-exits/2"
MACHINE = {"cpu": "Fast CPU", "cores": 2, "kernel_flags": ["avx2", "avx512_vnni"], "revision": "abc123"}
# Half of the machine's time went to other processes.
LOADED = Conditions(processors=2, wall_seconds=10, other_seconds=10, stolen_seconds=0, clock_gap_seconds=0)


def measure(
    folder: Path,
    *,
    noise: int = 0,
    lost: int = 0,
    later: int = 0,
    slower: float = 1.0,
    differing: int = 0,
    without: str = "",
    **changes: Any,
) -> Path:
    """Write three runs of one session, 1000 dev rows each, and return the folder.

    Args:
        folder: where to.
        noise: seed of the timing noise; the rows themselves always cost the same.
        lost: rows that the early exit answers wrongly on top of 100.
        later: layers that it leaves later.
        slower: its seconds, times this.
        differing: its timed rows that left elsewhere than replayed.
        without: a case to leave out.
        changes: fields of every record.
    """
    layers = np.minimum(np.repeat([1, 2, 3, 4], [400, 300, 200, 100]) + later, 4)
    parity = Parity(rows=BATCHES, differing=differing, below_epsilon=0, epsilon=1e-3)
    shared = {"environment": MACHINE, "recipe": INT8, "timed_rows": BATCHES} | changes
    runs = [
        (early(EARLY, dev=0.9 - lost / ROWS, case=EARLY, parity=parity, **_exits(layers), **shared), 2.0 * slower),
        (record(WHOLE, dev=0.9, case=WHOLE, **_exits(np.full(ROWS, 4)), **shared), 4.0),
        (truncated(FEWER, 2, dev=0.85, case=FEWER, **_exits(np.full(ROWS, 2)), **shared), 2.2),
    ]
    draw = np.random.default_rng(noise)
    costs = np.random.default_rng(0).lognormal(0, 0.3, BATCHES)
    for given, ms in runs:
        if given.case == without:
            continue
        append_record(folder, given)
        bursts = draw.normal(1, 0.03, (REPEATS, BATCHES)) * draw.normal(1, 0.02, (REPEATS, 1))
        add_timings(folder, given.run_id, ms / 1000 * costs * bursts)
        _add_examples(folder, given)
    return folder


def _exits(layers: np.ndarray) -> dict[str, Any]:
    return {"exit_counts": {"dev": np.bincount(layers, minlength=5)[1:].tolist()}}


def _add_examples(folder: Path, given: RunRecord) -> None:
    """Wrong rows are the last ones; a row that is lost later was right before."""
    right = np.arange(ROWS) < round(given.scores["dev"]["accuracy"] * ROWS)
    add_examples(folder, given.run_id, right, np.repeat([1, 2, 3, 4], given.exit_counts["dev"]))
