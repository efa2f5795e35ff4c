"""Output folders made by hand: small, but as a real run writes them."""

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks.records import (
    CheckpointInfo,
    Parity,
    RunRecord,
    append_record,
    examples_path,
    timings_path,
    write_columns,
)

LAYERS = 4
FLOAT32 = {"kind": "float32"}
INT8 = {"kind": "int8_static", "observer": "kl", "calibration_rows": 128, "rest": "float32"}
FULL_DEPTH: dict[str, Any] = {"kind": "fixed", "layer": None}
ENTROPY: dict[str, Any] = {"kind": "entropy", "threshold": 0.2}
SHAPE = {"batch_size": 1, "padding": "longest", "threads": 2}
ENVIRONMENT = {"cpu_model": "Fast CPU", "isa": ["avx2", "vnni"], "versions": {"torch": "2.13.0"}, "steal": 0.5}


def checkpoint(method: str = "pabee", backbone: str = "models/minilm", **changes) -> CheckpointInfo:
    given = {
        "name": f"sst2-{method}-{Path(backbone).name}",
        "method": method,
        "method_options": {},
        "family": "bert",
        "backbone": backbone,
        "num_layers": LAYERS,
        "hash": "c0ffee",
        "seed": 42,
        "trained_seconds": 60.0,
        "select_scores": [0.8, 0.9],
    }
    return CheckpointInfo(**(given | changes))


def record(run_id: str, dev: float | None = 0.9, tune: float | None = 0.9, **changes) -> RunRecord:
    """An ok float32 run of the whole network without exits, 100 dev rows."""
    scores = {split: {"accuracy": score} for split, score in (("dev", dev), ("tune", tune)) if score is not None}
    given = {
        "run_id": run_id,
        "case": f"case of {run_id}",
        "suite": "fake",
        "session": "s1",
        "started_at": "2026-01-01T00:00:00Z",
        "status": "ok",
        "task": "sst2",
        "headline_metric": "accuracy",
        "num_classes": 2,
        "data_hash": "da7a",
        "split_counts": {"fit": 1000, "tune": 100, "dev": 100},
        "checkpoint": checkpoint(),
        "recipe": FLOAT32,
        "engine": "openvino",
        "with_exits": False,
        "exits": [LAYERS],
        "policy": FULL_DEPTH,
        "shape": SHAPE,
        "program": "single",
        "precision": "f32",
        "size_bytes": 90_000_000,
        "build_seconds": 3.0,
        "scores": scores,
        "exit_counts": {"dev": [0, 0, 0, 100]},
        "majority_score": 0.51,
        "timed_rows": 8,
        "environment": ENVIRONMENT,
    }
    return RunRecord(**(given | changes))


def truncated(run_id: str, layer: int, **changes) -> RunRecord:
    counts = [0] * LAYERS
    counts[layer - 1] = 100
    given = {"exits": [layer], "policy": {"kind": "fixed", "layer": layer}, "exit_counts": {"dev": counts}}
    return record(run_id, **(given | changes))


def early(run_id: str, policy: dict[str, Any] = ENTROPY, **changes) -> RunRecord:
    """An early-exit run whose dev rows leave at 2 on average."""
    given = {
        "with_exits": True,
        "exits": [1, 2, 3, 4],
        "policy": policy,
        "program": "graph",
        "exit_counts": {"dev": [40, 30, 20, 10]},
        "parity": Parity(rows=8, differing=0, below_epsilon=0, epsilon=1e-4),
    }
    return record(run_id, **(given | changes))


def add(folder: Path, given: RunRecord, ms_per_row: float | None = None, rows: int = 1) -> None:
    """Append a record; with `ms_per_row`, 3 repeats of 8 batches; its noise cancels out in the total."""
    append_record(folder, given)
    if ms_per_row is None:
        return
    order = np.random.default_rng(crc32(given.run_id.encode())).permutation(8)
    noise = 1 + 0.02 * np.array([-2, -1, -1, 0, 0, 1, 1, 2])[order] * np.array([[1], [-1], [0.5]])
    add_timings(folder, given.run_id, ms_per_row / 1000 * rows * noise, rows)


def add_timings(folder: Path, run_id: str, seconds: np.ndarray, rows: int = 1) -> None:
    """Write [R, B] seconds as a run does."""
    repeats, batches = seconds.shape
    columns = {
        "repeat": np.repeat(np.arange(repeats), batches),
        "batch": np.tile(np.arange(batches), repeats),
        "rows": np.full(seconds.size, rows),
        "seconds": seconds.ravel(),
    }
    write_columns(timings_path(folder, run_id), columns)


def add_examples(folder: Path, run_id: str, right: np.ndarray, exit_layers: np.ndarray) -> None:
    """Write [N] dev rows as a run does: all of label 1, answered rightly or not, and where they left."""
    columns = {
        "id": [f"dev-{row}" for row in range(len(right))],
        "label": np.ones(len(right), np.int64),
        "prediction": right.astype(np.int64),
        "exit_layer": exit_layers,
    }
    write_columns(examples_path(folder, run_id), columns)
