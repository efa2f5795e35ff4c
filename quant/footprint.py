"""What serving a graph holds in memory: a process of its own loads it, answers once, and says how much it grew."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil


def resident_bytes(graph: Path, inputs: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> int:
    """Resident bytes that a graph, compiled and having answered once, adds to a process with its engine alone.

    Args:
        graph: a saved IR of OpenVINO (.xml, its weights beside it), or an .onnx file, for ONNX Runtime.
        inputs: what it answers.
        options: it is compiled with; of ONNX Runtime's, those of a session.

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
    process, given = psutil.Process(), json.loads(options)
    with np.load(arrays) as saved:
        inputs = dict(saved)
    if graph.endswith(".onnx"):
        import onnxruntime as ort

        settings = ort.SessionOptions()
        for name, value in given.items():
            setattr(settings, name, value)
        before = process.memory_info().rss
        session = ort.InferenceSession(graph, settings, ["CPUExecutionProvider"])
        session.run(None, inputs)
        return process.memory_info().rss - before
    import openvino as ov

    core = ov.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, which is the engine's
    before = process.memory_info().rss
    compiled = core.compile_model(graph, "CPU", given)
    compiled.create_infer_request().infer(inputs)
    return process.memory_info().rss - before


if __name__ == "__main__":
    sys.stdout.write(str(_growth(*sys.argv[1:])))
