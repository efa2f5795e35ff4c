"""Engine `onnxruntime`: ONNX Runtime's CPU kernels and its own quantizers, with the exits inside one graph.

A matrix product of dynamic INT8 has one scale for the values of its whole input. So rows answer otherwise in other
company, and with exits, which change the company, they run one by one (`quant.engine.cannot_run`).
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import nn

from models.config import UserError
from models.cpu import has_int8_dot_products
from models.policies import Policy
from quant import artefact
from quant.footprint import resident_bytes
from quant.graph import EXIT_LAYER, LOGITS, SegmentModels
from quant.onnx_graph import (
    HIDDEN_NAMES,
    OPSET,
    OneRowGraph,
    OnnxGraph,
    OnnxSegments,
    exit_model,
    recording_model,
    serving_model,
)
from quant.programs import WHOLE_NETWORKS, Dials, ExitOutput, Inputs, Program, Recorder, StackedRecorder
from quant.segments import INPUT_NAMES, Segments

# Names of inputs or outputs, and what their dynamic axes are called.
Axes: TypeAlias = dict[str, dict[int, str]]
HIDDEN, MASK = {0: "batch", 1: "length"}, {0: "batch", 3: "length"}


class OnnxRuntimeSession:
    """Builds ONNX Runtime programs over one network's segments."""

    def __init__(self, segments: Segments, threads: int, program: Literal["graph", "rows"] = "graph"):
        self.segments, self.num_labels = convert(segments), segments.num_labels
        self.one_by_one = program == "rows"
        self.native, self.calibration = segments.native, segments.calibration
        self.precision = "int8+float32" if segments.int8 else "float32"
        self.options: dict[str, Any] = {"intra_op_num_threads": threads}
        self.singles: dict[int, Program] = {}
        if self.native == "dynamic":
            self.segments = self.segments.each(_weights_to_int8)

    def compile(self, model: onnx.ModelProto) -> tuple[ort.InferenceSession, int]:
        """Save, load back and optimize: what is measured is what would be deployed. And its bytes on disk."""
        with _saved(model) as path:
            settings = ort.SessionOptions()
            settings.intra_op_num_threads = self.options["intra_op_num_threads"]
            # Idle threads sleep: another worker may have the turn.
            settings.add_session_config_entry("session.force_spinning_stop", "1")
            settings.log_severity_level = 3
            return ort.InferenceSession(path, settings, ["CPUExecutionProvider"]), path.stat().st_size

    def save(self, policy: Policy, exits: Sequence[int], folder: Path) -> list[str]:
        """See `quant.programs.Servable`."""
        onnx.save(serving_model(self._graph(), policy, exits), folder / artefact.ONNX_GRAPH)
        return [artefact.ONNX_GRAPH]

    def footprint(self, policy: Policy | None, exits: Sequence[int], inputs: Inputs) -> int:
        """See `quant.programs.Servable`."""
        model = self.network(exits[-1:]) if policy is None else exit_model(self._graph(), policy, exits)
        first = {name: array[:1] if array.ndim else array for name, array in inputs.items()}
        with _saved(model) as path:
            return resident_bytes(path, first if self.one_by_one else inputs, self.options)

    def network(self, exits: Sequence[int]) -> onnx.ModelProto:
        """The network without an `If`, quantized as a whole where the recipe says so."""
        model = recording_model(self.segments, self.num_labels, exits)
        return _static(model, self.calibration) if self.native == "static" else model

    def recorder(self, exits: Sequence[int]) -> Recorder:
        """All kept exits' logits from one graph; where whole networks are quantized, from one for each exit."""
        if self.native == "static":
            return StackedRecorder([self.without_exits(layer) for layer in exits])
        recorder = _GraphRecorder(self.compile(self.network(exits))[0])
        return RecordedOneByOne(recorder) if self.one_by_one else recorder

    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program:
        """The network with its exits inside."""
        if self.native == "static":
            raise UserError(WHOLE_NETWORKS)
        session, size = self.compile(exit_model(self._graph(), policy, exits))
        return self._program(OnnxRuntimeProgram(session, "graph", 0, self.precision, size))

    def without_exits(self, layer: int) -> Program:
        """The network up to `layer` and its exit, as one graph; quantized once, for recordings and for runs."""
        if layer not in self.singles:
            session, size = self.compile(self.network([layer]))
            self.singles[layer] = self._program(OnnxRuntimeProgram(session, "single", layer, self.precision, size))
        return self.singles[layer]

    def _graph(self) -> OnnxGraph:
        """An empty graph for exits."""
        kind = OneRowGraph if self.native == "dynamic" or self.one_by_one else OnnxGraph
        return kind(self.segments, self.num_labels)

    def _program(self, program: Program) -> Program:
        return OneByOne(program) if self.one_by_one else program

    def precisions(self) -> dict[str, str]:
        """ONNX Runtime does not say what became of an op."""
        return {}


class OnnxRuntimeProgram:
    """One ONNX graph: with the exits inside (`graph`), or none (`single`)."""

    def __init__(
        self, session: ort.InferenceSession, kind: Literal["graph", "single"], layer: int, precision: str, size: int
    ):
        self.session = session
        self.kind: Literal["graph", "stepped", "single"] = kind
        self.layer, self.precision = layer, precision
        self.size_bytes: int | None = size

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        if self.kind == "single":
            ((logits,),) = _arrays(self.session, [LOGITS], inputs)
            return ExitOutput(logits, np.full(len(logits), self.layer, np.int64))
        return ExitOutput(*_arrays(self.session, [LOGITS, EXIT_LAYER], inputs | dials))


class OneByOne:
    """A program that runs the rows of a batch alone."""

    def __init__(self, program: Program):
        self.program = program
        self.kind: Literal["graph", "stepped", "single"] = program.kind
        self.precision, self.size_bytes = program.precision, program.size_bytes

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        of_row = [
            self.program.run(row, {name: dial[i : i + 1] if dial.ndim else dial for name, dial in dials.items()})
            for i, row in enumerate(_rows(inputs))
        ]
        return ExitOutput(*map(np.concatenate, zip(*of_row, strict=True)))


class RecordedOneByOne:
    """A recorder that runs the rows of a batch alone."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return np.concatenate([self.recorder(row) for row in _rows(inputs)], axis=1)


def _rows(inputs: Inputs) -> Iterator[Inputs]:
    """Each row of a batch [B, T], which is padded on the right, as [1, t] without its padding."""
    for i, length in enumerate(inputs["attention_mask"].sum(axis=1)):
        yield {name: array[i : i + 1, :length] for name, array in inputs.items()}


class _GraphRecorder:
    def __init__(self, session: ort.InferenceSession):
        self.session = session

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return _arrays(self.session, [LOGITS], inputs)[0]


def _arrays(session: ort.InferenceSession, names: list[str], inputs: Inputs) -> list[np.ndarray]:
    found: Any = session.run(names, inputs)
    return found


@contextmanager
def _saved(model: onnx.ModelProto) -> Iterator[Path]:
    """The model as a file that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / artefact.ONNX_GRAPH
        onnx.save(model, path)
        yield path


def convert(segments: Segments) -> OnnxSegments:
    """Every segment as an ONNX model with dynamic batch and length; a shared layer is converted once."""
    hidden: Axes = dict(zip(HIDDEN_NAMES, (HIDDEN, MASK), strict=True))

    def converted(module: nn.Module) -> onnx.ModelProto:
        if module is segments.embeddings:
            return _convert(module, segments.example_ids(), dict.fromkeys(INPUT_NAMES, HIDDEN), hidden)
        answer: Axes = {LOGITS: {0: "batch"}} if module in segments.exits else {"layer": HIDDEN}
        return _convert(module, segments.example_hidden(), hidden, answer)

    return SegmentModels(segments.embeddings, segments.layers, segments.exits).each(converted)


def _convert(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: Axes,
    outputs: Axes,
) -> onnx.ModelProto:
    """One segment."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the older one, and says so
        path = Path(folder) / "segment.onnx"
        torch.onnx.export(
            module.eval(),
            example,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=inputs | outputs,
        )
        return onnx.load(path)


def _weights_to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as INT8, a scale for each column; activations are quantized as they come."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        narrow = not has_int8_dot_products()
        quantize_dynamic(model, path, per_channel=True, reduce_range=narrow, weight_type=QuantType.QInt8)
        return onnx.load(path)


def _static(model: onnx.ModelProto, calibration: Sequence[Inputs]) -> onnx.ModelProto:
    """What its documentation advises for x86; and only products with weights, as the other quantizers here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            path,
            _Rows(calibration),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=not has_int8_dot_products(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


class _Rows(CalibrationDataReader):
    """Calibration rows, one at a time, as the quantizer asks for them."""

    def __init__(self, rows: Sequence[Inputs]):
        self.rows = iter(rows)

    def get_next(self) -> Any:
        return next(self.rows, None)
