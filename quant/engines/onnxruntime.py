"""Engine `onnxruntime`: ONNX Runtime's CPU kernels and its own quantizers, for networks without exits.

It is a peer: what a user would run instead. The whole or truncated network is exported as one ONNX graph.
"""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from models.config import UserError
from models.policies import Policy
from quant.programs import Dials, ExitOutput, Inputs, Program, Recorder, StackedRecorder
from quant.segments import INPUT_NAMES, Segments, Whole

LOGITS, OPSET = "logits", 17


class OnnxRuntimeSession:
    """Builds ONNX Runtime programs over one network's segments."""

    def __init__(self, segments: Segments, threads: int):
        self.segments = segments
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        # Idle threads sleep: another worker may have the turn.
        self.options.add_session_config_entry("session.force_spinning_stop", "1")
        self.options.log_severity_level = 3
        self.programs: dict[int, Program] = {}

    def compile(self, layer: int) -> tuple[ort.InferenceSession, int]:
        """Export, quantize and load the network up to `layer`; and its bytes on disk."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            _export(self.segments, layer, path)
            path = self._quantized(path)
            return ort.InferenceSession(path, self.options, ["CPUExecutionProvider"]), path.stat().st_size

    def _quantized(self, path: Path) -> Path:
        quantized = path.with_name("quantized.onnx")
        match self.segments.native:
            case None:
                return path
            case "dynamic":
                quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
            case "static":
                # What its documentation advises for x86; and only products with weights, as the other quantizers here.
                quantize_static(
                    path,
                    quantized,
                    _Rows(self.segments.calibration),
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True},
                )
        return quantized

    def recorder(self, exits: Sequence[int]) -> Recorder:
        """Each exit's logits from a truncated network of its own.

        In one graph of them all, ONNX Runtime's quantizer would transpose the weights of a shared pooler once for each
        exit, and answer nonsense without an error.
        """
        return StackedRecorder([self.without_exits(layer) for layer in exits])

    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program:
        """Refused, as suites do before."""
        raise UserError("engine onnxruntime runs networks without exits: exits: [none]")

    def without_exits(self, layer: int) -> Program:
        """The network up to `layer` and its exit, as one graph."""
        if layer not in self.programs:
            precision = "int8+float32" if self.segments.int8 else "float32"
            self.programs[layer] = OnnxRuntimeProgram(*self.compile(layer), layer, precision)
        return self.programs[layer]

    def precisions(self) -> dict[str, str]:
        """ONNX Runtime does not say what became of an op."""
        return {}


class OnnxRuntimeProgram:
    """The whole or truncated network as one ONNX graph."""

    kind: Literal["graph", "stepped", "single"] = "single"

    def __init__(self, session: ort.InferenceSession, size_bytes: int, layer: int, precision: str):
        self.session, self.layer, self.precision = session, layer, precision
        self.size_bytes: int | None = size_bytes

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        (logits,) = self.session.run([LOGITS], inputs)
        assert isinstance(logits, np.ndarray)
        return ExitOutput(logits, np.full(len(logits), self.layer, np.int64))


class _Rows(CalibrationDataReader):
    """Calibration rows, one at a time, as the quantizer asks for them."""

    def __init__(self, rows: Sequence[Inputs]):
        self.rows = iter(rows)

    def get_next(self) -> Any:
        return next(self.rows, None)


def _export(segments: Segments, layer: int, path: Path) -> None:
    batch_and_length = {0: "batch", 1: "length"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the older one, and says so
        torch.onnx.export(
            Whole(segments, layer).eval(),
            segments.example_ids(),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUT_NAMES),
            output_names=[LOGITS],
            dynamic_axes=dict.fromkeys(INPUT_NAMES, batch_and_length) | {LOGITS: {0: "batch"}},
        )
