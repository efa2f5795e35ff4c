"""Measures trials with workers: one recording pass for each checkpoint and recipe, and timing beside the anchor."""

import itertools
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

from benchmarks.recordings import Recording, read_recording, recording_path, save_recording
from benchmarks.records import Timing
from benchmarks.runner import Key, Workers, open_workers, recording_id, worker_key
from benchmarks.session import Session, max_length
from benchmarks.suite import RunSpec
from benchmarks.tuner import TURN
from benchmarks.tuning import Performance
from benchmarks.worker import Built, WorkerError, ask_all
from models.encoding import encode

# Workers stay, for they take long to open again, until this share of memory is taken; then those opened first end.
MEMORY_SHARE = 0.5


class WorkerBench:
    """The `Bench` of real tunings. Only `tune` reaches its workers.

    Args:
        session: the checkpoints and data; recordings and logs go to its output folder.
        anchor: what every run is timed beside.
        performance: how long.
        footprint: whether memory is measured, too.
    """

    def __init__(self, session: Session, anchor: RunSpec, performance: Performance, footprint: bool):
        self.session, self.anchor, self.performance, self.footprint = session, anchor, performance, footprint
        tune, size = session.data.splits["tune"], performance.dataloader.batch_size
        self.splits = {"tune": encode(tune, session.main.tokenizer, max_length(session))}
        drawn = np.random.default_rng(session.suite.seed).permutation(len(tune))
        # Short of rows, calls come back to the first ones.
        self.rows = np.resize(drawn, (performance.warmup + performance.iteration) * size).tolist()
        self.workers: Workers = {}
        self.anchor_built: Built | None = None
        self.anchor_held: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for key in list(self.workers):
            self._close(key)

    def record(self, run: RunSpec) -> np.ndarray:
        """See `Bench`. Recordings are kept on disk, so a resumed tuning makes none again."""
        exits = list(range(1, self.session.member(run).checkpoint.network.num_layers + 1))
        path = recording_path(self.session.output, recording_id(self.session, run, exits))
        if not path.exists():
            save_recording(path, Recording(exits, self._call(run, "record", run.shape, exits, instances=1)[0]))
        return read_recording(path).logits["tune"]

    def time(self, run: RunSpec) -> Timing:
        """See `Bench`."""
        anchor: Built = self.anchor_built or self._call(self.anchor, "build", 0, self.anchor, self.rows)[0]
        self.anchor_built = anchor
        built: Built = self._call(run, "build", 1, run, self.rows)[0]
        sides = [self.anchor, run]
        seconds: list[list[float]] = [[], []]
        warmup, iteration = self.performance.warmup, self.performance.iteration
        cuts = sorted({*([0] if warmup else []), *range(warmup, warmup + iteration, TURN), warmup + iteration})
        for turn, (first, last) in enumerate(itertools.pairwise(cuts)):
            for side in (0, 1) if turn % 2 else (1, 0):
                of_instances = self._call(sides[side], "time_block", side, first, last)
                seconds[side] += itertools.chain(*of_instances) if first >= warmup else []
        held = None
        if self.footprint:
            self.anchor_held = self.anchor_held or self._call(self.anchor, "footprint", 0, instances=1)[0]
            held = self._call(run, "footprint", 1, instances=1)[0]
        self._call(run, "forget_run", 1)
        return Timing(
            seconds=seconds[1],
            anchor_seconds=seconds[0],
            size_bytes=built.size_bytes,
            anchor_size_bytes=anchor.size_bytes,
            footprint_bytes=held,
            anchor_footprint_bytes=self.anchor_held,
        )

    def _call(self, run: RunSpec, request: str, *arguments: Any, instances: int | None = None) -> list[Any]:
        """Ask the run's workers, or so many of them, opened if need be.

        Where one fails, all are closed, so that the next trial finds new ones.
        """
        key = worker_key(run)
        if key not in self.workers:
            others = [other for other in self.workers if other != worker_key(self.anchor)]
            while others and psutil.virtual_memory().percent > 100 * MEMORY_SHARE:
                self._close(others.pop(0))
            self.workers[key] = open_workers(self.session, run, self.splits, timed="tune")
        try:
            return ask_all(self.workers[key][:instances], request, *arguments)
        except WorkerError:
            self._close(key)
            if key == worker_key(self.anchor):
                self.anchor_built = None
            raise

    def _close(self, key: Key) -> None:
        for worker in self.workers.pop(key):
            worker.stop()
