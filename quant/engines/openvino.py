"""Engine `openvino`: OpenVINO's CPU kernels, with the exits inside one compiled graph."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import torch
from torch import nn

from models.policies import Policy
from quant.graph import EXIT_LAYER, LOGITS, OpenVinoSegments, exit_model, recording_model
from quant.programs import Dials, ExitOutput, Inputs, Program, Recorder, SteppedProgram
from quant.segments import INPUT_NAMES, Segments


class OpenVinoSession:
    """Builds OpenVINO programs over one network's segments."""

    def __init__(self, segments: Segments, threads: int, stepped: bool):
        self.segments, self.stepped = convert(segments), stepped
        self.core = ov.Core()
        self.options = {
            # Explicit, or OpenVINO runs float32 in bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[segments.rest],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": "NO",
        }
        self.int8 = segments.int8
        self._steps: OpenVinoSteps | None = None

    def compile(self, model: ov.Model) -> tuple[ov.CompiledModel, int]:
        """Save as IR, load it back and compile that: what is measured is what would be deployed."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.xml"
            ov.save_model(model, path, compress_to_fp16=False)
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            return self.core.compile_model(str(path), "CPU", self.options), size

    def precision(self, compiled: ov.CompiledModel) -> str:
        """What the compiled model reports, with `int8` where INT8 kernels were chosen."""
        reported = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        rest = {"f32": "float32", "bf16": "bfloat16"}.get(reported, reported)
        return f"int8+{rest}" if self.int8 else rest

    def steps(self) -> "OpenVinoSteps":
        """The segments compiled one by one, shared by every stepped program."""
        if self._steps is None:
            self._steps = OpenVinoSteps(self)
        return self._steps

    def recorder(self, exits: Sequence[int]) -> Recorder:
        """All kept exits' logits from one graph (stepped: from compiled segments)."""
        return _GraphRecorder(self.compile(recording_model(self.segments, exits))[0])

    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program:
        """A `GraphProgram`, or the stepped program where the engine says so."""
        if self.stepped:
            steps = self.steps()
            return SteppedProgram(steps, policy, exits, steps.precision, steps.size_bytes)
        compiled, size = self.compile(exit_model(self.segments, policy, exits))
        return GraphProgram(compiled, "graph", 0, self.precision(compiled), size)

    def without_exits(self, layer: int) -> Program:
        """The network up to `layer` and its exit, as one graph."""
        compiled, size = self.compile(recording_model(self.segments, [layer]))
        return GraphProgram(compiled, "single", layer, self.precision(compiled), size)


class GraphProgram:
    """One compiled OpenVINO graph: with the exits inside (`graph`), or none (`single`)."""

    def __init__(
        self, compiled: ov.CompiledModel, kind: Literal["graph", "single"], layer: int, precision: str, size_bytes: int
    ):
        self.request = compiled.create_infer_request()
        self.kind: Literal["graph", "stepped", "single"] = kind
        self.layer, self.precision = layer, precision
        self.size_bytes: int | None = size_bytes

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        if self.kind == "single":
            logits = self.request.infer(inputs, share_inputs=True)[LOGITS][0]
            return ExitOutput(logits, np.full(len(logits), self.layer, np.int64))
        outputs = self.request.infer(inputs | dials, share_inputs=True)
        return ExitOutput(outputs[LOGITS], outputs[EXIT_LAYER])


class _GraphRecorder:
    def __init__(self, compiled: ov.CompiledModel):
        self.request = compiled.create_infer_request()

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return self.request.infer(inputs, share_inputs=True)[LOGITS].copy()


class OpenVinoSteps:
    """Segments compiled one by one (`quant.programs.Steps`)."""

    def __init__(self, session: OpenVinoSession):
        compiled: dict[int, tuple[ov.CompiledModel, int]] = {}
        models = [session.segments.embeddings, *session.segments.layers, *session.segments.exits]
        for model in models:
            if id(model) not in compiled:
                compiled[id(model)] = session.compile(model)
        requests = {key: model.create_infer_request() for key, (model, _) in compiled.items()}
        self.embeddings = requests[id(session.segments.embeddings)]
        self.layers = [requests[id(model)] for model in session.segments.layers]
        self.exits = [requests[id(model)] for model in session.segments.exits]
        self.precision = session.precision(compiled[id(models[0])][0])
        self.size_bytes = sum(size for _, size in compiled.values())

    def embed(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        outputs = self.embeddings.infer([inputs[name] for name in INPUT_NAMES])
        return outputs[0].copy(), outputs[1].copy()

    def layer(self, index: int, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.layers[index].infer([hidden, mask])[0].copy()

    def exit(self, index: int, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.exits[index].infer([hidden, mask])[0].copy()

    def take(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return array[rows]


def convert(segments: Segments) -> OpenVinoSegments:
    """Every segment as an OpenVINO model with dynamic batch and length; a shared layer is converted once."""
    layers: dict[int, ov.Model] = {}
    hidden = (segments.example_hidden(), segments.dynamic_hidden())
    for layer in segments.layers:
        if id(layer) not in layers:
            layers[id(layer)] = _convert(layer, *hidden)
    return OpenVinoSegments(
        embeddings=_convert(segments.embeddings, segments.example_ids(), segments.dynamic_ids()),
        layers=[layers[id(layer)] for layer in segments.layers],
        exits=[_convert(exit_, *hidden) for exit_ in segments.exits],
    )


def _convert(module: nn.Module, inputs: tuple[torch.Tensor, ...], dynamic_shapes: Any) -> ov.Model:
    with torch.no_grad():
        return ov.convert_model(torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes))
