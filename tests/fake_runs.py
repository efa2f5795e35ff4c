"""Output folders made by hand: small, but as a real run writes them."""

import itertools
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import TypeAdapter

from benchmarks.recordings import recording_path
from benchmarks.records import (
    CheckpointInfo,
    Parity,
    RunRecord,
    append_record,
    examples_path,
    timings_path,
    write_columns,
)
from benchmarks.statistics import score
from models.policies import Policy, replay

LAYERS = 4
Columns = dict[str, np.ndarray]
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
    write_columns(timings_path(folder, record(run_id)), columns)


def add_examples(folder: Path, run_id: str, right: np.ndarray, exit_layers: np.ndarray) -> None:
    """Write [N] dev rows as a run does: all of label 1, answered rightly or not, and where they left."""
    columns = {
        "id": [f"dev-{row}" for row in range(len(right))],
        "label": np.ones(len(right), np.int64),
        "length": np.arange(len(right)) % 40 + 3,
        "prediction": right.astype(np.int64),
        "exit_layer": exit_layers,
    }
    write_columns(examples_path(folder, run_id), columns)


def add_replayed(
    folder: Path,
    given: RunRecord,
    labels: Columns,
    logits: Columns,
    ms: float | None = None,
) -> None:
    """Add a run whose scores, exits and predictions are those of its policy on recorded logits, as a run does.

    `labels` [N] and `logits` [L, N, C] by split; its recording is named `given.recording` and holds all layers.
    """
    layers = list(range(1, LAYERS + 1))
    scores, counts, columns = {}, {}, {}
    for split, of_split in labels.items():
        deciding = given.exits[-1:] if given.policy["kind"] == "fixed" else given.exits
        policy = TypeAdapter(Policy).validate_python(given.policy)
        found = replay(policy, logits[split][[layer - 1 for layer in deciding]], deciding)
        answered = found.logits[:, 0] if given.num_classes == 1 else found.logits.argmax(axis=-1)
        scores[split] = {given.headline_metric: score(given.headline_metric, of_split, answered)}
        counts[split] = np.bincount(found.exit_layer, minlength=LAYERS + 1)[1:].tolist()
        columns[split] = {
            "id": [f"{split}-{row}" for row in range(len(of_split))],
            "label": of_split,
            "length": np.arange(len(of_split)) % 30 + 3,
            "prediction": answered,
            "exit_layer": found.exit_layer,
        }
    add(folder, given.model_copy(update={"scores": scores, "exit_counts": counts}), ms)
    write_columns(examples_path(folder, given.run_id), columns["dev"])
    if given.recording is not None:
        path = recording_path(folder, given.recording)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, exits=np.array(layers), **logits)


def add_drawn_examples(folder: Path, given: RunRecord, seed: int = 0, grades: bool = False) -> None:
    """Write predictions of as many rows as left at each layer by `given`, in an order drawn by `seed`."""
    counts = given.exit_counts["dev"]
    draw = np.random.default_rng(seed)
    exit_layers = draw.permutation(np.repeat(np.arange(1, len(counts) + 1), counts))
    rows = len(exit_layers)
    columns: dict[str, Any] = {
        "id": [f"dev-{i}" for i in range(rows)],
        "label": np.arange(rows) % 2,
        "length": 5 + np.arange(rows) % 40,
        "prediction": draw.integers(2, size=rows),
        "exit_layer": exit_layers,
    }
    write_columns(examples_path(folder, given.run_id), columns | ({"grade": np.arange(rows) % 4} if grades else {}))


def add_suite(folder: Path, policies: int, rows: int = 100, batches: int = 8, tasks: int = 1) -> int:
    """A suite of two methods, two recipes and two batch sizes; returns how many runs it has.

    Each combination has the whole network, three truncated ones, exits that never fire, and `policies` thresholds.
    """
    written = 0
    for task, method, batch, recipe in itertools.product(range(tasks), ("pabee", "deebert"), (1, 8), (FLOAT32, INT8)):
        name = f"{task}-{method}-{batch}-{recipe['kind']}"
        shared: dict[str, Any] = {"task": f"task{task}", "checkpoint": checkpoint(method), "recipe": recipe}
        shared |= {"session": f"{task}-{method}", "shape": SHAPE | {"batch_size": batch}}
        runs = [record(f"{name}-whole", **shared)]
        runs += [truncated(f"{name}-first-{layer}", layer, dev=0.8 + 0.02 * layer, **shared) for layer in (1, 2, 3)]
        runs.append(early(f"{name}-never", FULL_DEPTH, **(shared | {"exit_counts": {"dev": [0, 0, 0, rows]}})))
        for i in range(policies):
            leaving = [rows * (i + 1) // (2 * policies), rows // 4, rows // 8]
            counts = {"dev": [*leaving, rows - sum(leaving)]}
            policy = {"kind": "entropy", "threshold": round(0.7 * (i + 1) / policies, 3)}
            runs.append(early(f"{name}-entropy-{i}", policy, dev=0.9 - 0.001 * i, exit_counts=counts, **shared))
        for i, run in enumerate(runs):
            append_record(folder, run)
            layers = np.average(np.arange(1, 5), weights=run.exit_counts["dev"])
            noise = np.random.default_rng(i).normal(1, 0.05, size=(3, batches)).clip(0.5)
            faster = 2 if recipe is INT8 else 1
            add_timings(folder, run.run_id, layers * batch / 1000 / faster * noise, batch)
            add_drawn_examples(folder, run, seed=i, grades=task == 0)
        written += len(runs)
    return written
