"""Suites made by hand, for the tests that parse, expand and run them."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.suite import Suite, read_suite

TINY: dict[str, Any] = {
    "schema": "exitbench/suite/1",
    "name": "tiny",
    "tasks": [{"kind": "synthetic", "fit_rows": 96, "select_rows": 16, "tune_rows": 24, "dev_rows": 40}],
    "checkpoints": [
        {
            "method": "pabee",
            # A wide start, so that a few steps of training make rows of every confidence.
            "backbone": {
                "kind": "fresh",
                "family": "bert",
                "num_layers": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 32,
                "initializer_range": 0.2,
            },
            "train": {"epochs": 2.0, "learning_rate": 1e-3, "max_seq_length": 40},
        }
    ],
    "recipes": ["float32"],
    "engines": ["openvino"],
    "policies": ["full_depth"],
}


def write(folder: Path, base: dict[str, Any] = TINY, **changes: Any) -> Path:
    """A suite file with some keys of `base` changed; a key changed to None is left out."""
    content = {key: value for key, value in (base | changes).items() if value is not None}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def parse(folder: Path, base: dict[str, Any] = TINY, **changes: Any) -> Suite:
    """The same, read back."""
    return read_suite(write(folder, base, **changes))
