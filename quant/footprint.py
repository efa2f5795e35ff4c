"""What serving a graph holds in memory: a process of its own loads it, answers once, and says how much it grew."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import psutil


def resident_bytes(graph: Path, inputs: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> int:
    """Resident bytes that a graph, compiled and having answered once, adds to a process with OpenVINO and nothing else.

    Args:
        graph: a saved IR (.xml, its weights beside it).
        inputs: what it answers.
        options: it is compiled with.

    Raises:
        subprocess.CalledProcessError: the process failed; what it said went to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, allow_pickle=False, **inputs)
        # -P: this folder's files must not hide modules of the same name.
        command = [sys.executable, "-P", __file__, str(graph), str(arrays), json.dumps(dict(options))]
        return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _growth(graph: str, arrays: str, options: str) -> int:
    """The same, of this process."""
    core, process = ov.Core(), psutil.Process()
    with np.load(arrays) as saved:
        inputs = dict(saved)
    before = process.memory_info().rss
    compiled = core.compile_model(graph, "CPU", json.loads(options))
    compiled.create_infer_request().infer(inputs)
    return process.memory_info().rss - before


if __name__ == "__main__":
    sys.stdout.write(str(_growth(*sys.argv[1:])))
