"""Tuning files made by hand, and a search over a table of made-up figures, for the tests that need them."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import yaml

from benchmarks.records import Timing
from benchmarks.strategies import Network, Space
from benchmarks.suite import RunSpec
from benchmarks.tuner import Outcome, tune
from benchmarks.tuning import Tuning, read_tuning
from models.policies import Entropy, Patience
from tests import suites

ROWS, LAYERS = 60, 4
TINY: dict[str, Any] = {
    "schema": "exitbench/tuning/1",
    "model": {"name": "tiny", "task": suites.TINY["tasks"][0], "checkpoints": suites.TINY["checkpoints"]},
    "quantization": {
        "calibration": {"sampling_size": [4, 8]},
        "model_wise": {"activation": {"algorithm": ["minmax", "kl"]}},
    },
    "early_exit": {
        "policies": [
            {"kind": "patience", "patience": [1, 2]},
            {"kind": "entropy", "threshold": {"from": 0.1, "to": 0.6, "steps": 6}},
        ],
        "exits": ["all", [1, 2]],
    },
    "tuning": {"accuracy_criterion": {"absolute": 0.05}, "exit_policy": {"max_trials": 12}},
    "evaluation": {"performance": {"warmup": 2, "iteration": 6, "configs": {"cores_per_instance": 1}}},
}
ON_ONNXRUNTIME = {
    "model": TINY["model"] | {"framework": "onnxruntime"},
    "quantization": {"approach": "post_training_dynamic_quant", "calibration": None, "model_wise": {}},
}
# Static INT8 on OpenVINO, dynamic on both engines.
EVERY_ROUTE = {
    "model": TINY["model"] | {"framework": ["openvino", "onnxruntime"]},
    "quantization": TINY["quantization"]
    | {"approach": ["post_training_static_quant", "post_training_dynamic_quant"]}
    | {"op_wise": {"exit_*": {"dtype": ["int8", "fp32"]}, "layer_1": {"dtype": ["int8", "fp32"]}}},
}


def write(folder: Path, **changes: Any) -> Path:
    """A tuning file with some sections of TINY updated."""
    content = {
        name: section | changes.get(name, {}) if isinstance(section, dict) else section
        for name, section in TINY.items()
    }
    path = folder / "tuning.yaml"
    path.write_text(yaml.safe_dump(content | {k: v for k, v in changes.items() if k not in TINY}))
    return path


def parse(**changes: Any) -> Tuning:
    with TemporaryDirectory() as folder:
        return read_tuning(write(Path(folder), **changes))


class Table:
    """A `Bench` whose figures depend on nothing but what is asked for; it can be killed at any call.

    Deeper exits are right more often, and earlier ones take less time.
    """

    def __init__(self, killed_at: int | None = None, noise: float = 0.3):
        self.killed_at, self.noise, self.calls = killed_at, noise, 0
        self.timed: list[str] = []
        self.labels = np.random.default_rng(1).integers(2, size=ROWS)

    def _count(self) -> None:
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.calls += 1

    def record(self, run: RunSpec) -> np.ndarray:
        self._count()
        draw = np.random.default_rng(crc32(f"{run.checkpoint}{run.recipe}".encode()))
        right = np.where(self.labels, 1.0, -1.0)
        logit = np.stack([right * depth + draw.normal(0, 2.0, ROWS) for depth in range(1, LAYERS + 1)])
        return np.stack([-logit, logit], axis=-1).astype(np.float32)

    def time(self, run: RunSpec) -> Timing:
        self._count()
        self.timed.append(run.case)
        factor = 1 + self.noise * (crc32(run.case.encode()) % 1000) / 1000
        seconds = factor * run.exits[-1] / LAYERS
        return Timing(seconds=[seconds] * 3, anchor_seconds=[1.0] * 3, size_bytes=1000, anchor_size_bytes=1000)


def table_space(tuning: Tuning) -> Space:
    policies = [Patience(patience=1), Patience(patience=2)], [Entropy(threshold=t) for t in (0.05, 0.2, 0.4)]
    exits = (1, 2, 3, 4), (2, 4), (3, 4)
    leaving = [Network("ck", kept, tuple(dials)) for kept in exits for dials in policies]
    return Space(tuning, [Network("ck", (1, 2, 3, 4)), *leaving], {"ck": LAYERS})


def search(folder: Path, bench: Table, **tuning: Any) -> Outcome:
    space = table_space(parse(tuning=TINY["tuning"] | tuning))
    return tune(space, bench, bench.labels, "identity", folder, say=lambda line: None)
