"""Engine `openvino`: OpenVINO's CPU kernels, with the exits inside one compiled graph."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import torch
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import nn

from models.config import UserError
from models.cpu import has_int8_dot_products
from models.policies import Policy
from quant import artefact
from quant.footprint import resident_bytes
from quant.graph import EXIT_LAYER, LOGITS, SegmentModels
from quant.openvino_graph import OpenVinoSegments, exit_model, recording_model, serving_model
from quant.programs import WHOLE_NETWORKS, Dials, ExitOutput, Inputs, Program, Recorder, StackedRecorder, SteppedProgram
from quant.segments import INPUT_NAMES, Graphs, Segments, of_one_structure, op_name

# Values of a token that share a scale in dynamic INT8: the smallest that kernels take, and their default.
GROUP_SIZE = "32"
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "u8": "int8", "i8": "int8"}


class OpenVinoSession:
    """Builds OpenVINO programs over one network's segments."""

    def __init__(self, segments: Segments, threads: int, program: Literal["graph", "trimmed", "stepped"] = "graph"):
        self.segments, self.program = convert(segments), program
        self.core = ov.Core()
        self.options = {
            # Explicit, or OpenVINO runs float32 in bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[segments.rest],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": "NO",
        }
        self.int8, self.native, self.calibration = segments.int8, segments.native, segments.calibration
        if self.native == "dynamic":
            self.segments = _weights_to_int8(self.segments)
            self.options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP_SIZE
        self._steps: OpenVinoSteps | None = None

    def compile(self, model: ov.Model) -> tuple[ov.CompiledModel, int]:
        """Save as IR, load it back and compile that: what is measured is what would be deployed."""
        with _saved(model) as path:
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            return self.core.compile_model(str(path), "CPU", self.options), size

    def precision(self, compiled: ov.CompiledModel) -> str:
        """What the compiled model reports, with `int8` where INT8 kernels were chosen."""
        reported = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        rest = PRECISIONS.get(reported, reported)
        return f"int8+{rest}" if self.int8 else rest

    def steps(self) -> "OpenVinoSteps":
        """The segments compiled one by one, shared by every stepped program."""
        if self._steps is None:
            self._steps = OpenVinoSteps(self)
        return self._steps

    def recorder(self, exits: Sequence[int]) -> Recorder:
        """All kept exits' logits from one graph; where whole networks are quantized, from one for each exit."""
        if self.native == "static":
            return StackedRecorder([self.without_exits(layer) for layer in exits])
        return self.recorder_of(self.segments, exits)

    def recorder_of(self, segments: OpenVinoSegments, exits: Sequence[int]) -> Recorder:
        """The same over other segments than the session's own."""
        return _GraphRecorder(self.compile(recording_model(segments, exits))[0])

    def network(self, exits: Sequence[int]) -> ov.Model:
        """The network without an `If`, quantized as a whole by NNCF where the recipe says so."""
        model = recording_model(self.segments, exits)
        if self.native != "static":
            return model
        import nncf

        rows, kind = nncf.Dataset(self.calibration), nncf.ModelType.TRANSFORMER
        options = nncf.AdvancedQuantizationParameters()
        if not has_int8_dot_products():
            options.overflow_fix = nncf.OverflowFix.ENABLE
        with redirect_stdout(StringIO()):  # its progress bars
            return nncf.quantize(
                model, rows, model_type=kind, subset_size=len(self.calibration), advanced_parameters=options
            )

    def save(self, policy: Policy, exits: Sequence[int], folder: Path) -> list[str]:
        """See `quant.programs.Servable`."""
        ov.save_model(serving_model(self.segments, policy, exits), folder / artefact.GRAPH, compress_to_fp16=False)
        return [artefact.GRAPH, artefact.WEIGHTS]

    def footprint(self, policy: Policy | None, exits: Sequence[int], inputs: Inputs) -> int:
        """See `quant.programs.Servable`."""
        model = self.network(exits[-1:]) if policy is None else exit_model(self.segments, policy, exits)
        with _saved(model) as path:
            return resident_bytes(path, inputs, self.options)

    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program:
        """A `GraphProgram`, or the stepped program where the engine says so."""
        if self.native == "static":
            raise UserError(WHOLE_NETWORKS)
        if self.program == "stepped":
            steps = self.steps()
            return SteppedProgram(steps, policy, exits, steps.precision, steps.size_bytes)
        compiled, size = self.compile(exit_model(self.segments, policy, exits, trim=self.program == "trimmed"))
        return GraphProgram(compiled, "graph", 0, self.precision(compiled), size)

    def without_exits(self, layer: int) -> Program:
        """The network up to `layer` and its exit, as one graph."""
        compiled, size = self.compile(self.network([layer]))
        return GraphProgram(compiled, "single", layer, self.precision(compiled), size)

    def precisions(self) -> dict[str, str]:
        """Read from the network with all its exits, compiled without an `If`, whose bodies OpenVINO does not show.

        Fusion may leave a node without its op's name; ops that are not found by name are what those nodes are, if
        these agree, and else `unknown`.
        """
        if self.native == "dynamic":
            return {}  # the compiled model names the type of the weights alone
        model = self.network(range(1, len(self.segments.exits) + 1))
        ops = {
            op
            for node in model.get_ops()
            if node.get_type_name() == "MatMul" and (op := _op_of(node.get_friendly_name()))
        }
        found, nameless = {}, set()
        for node in self.compile(model)[0].get_runtime_model().get_ops():
            info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
            if info.get("layerType") != "FullyConnected":
                continue
            precision = PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"])
            named = ops & {_op_of(name) for name in info["originalLayersNames"].split(",")}
            found |= dict.fromkeys(named, precision)
            nameless |= set() if named else {precision}
        return dict.fromkeys(ops, nameless.pop() if len(nameless) == 1 else "unknown") | found


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
        return self.request.infer(inputs, share_inputs=True)[LOGITS]


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
        return outputs[0], outputs[1]

    def layer(self, index: int, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.layers[index].infer([hidden, mask])[0]

    def exit(self, index: int, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.exits[index].infer([hidden, mask])[0]

    def take(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return array[rows]


@contextmanager
def _saved(model: ov.Model) -> Iterator[Path]:
    """The model as IR, alone in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        yield path


def convert(segments: Segments) -> OpenVinoSegments:
    """Every segment as an OpenVINO model with dynamic batch and length; a shared layer is converted once."""
    graphs: Graphs = {}
    modules = SegmentModels(segments.embeddings, segments.layers, segments.exits)
    ids, hidden = (
        (segments.example_ids(), segments.dynamic_ids()),
        (segments.example_hidden(), segments.dynamic_hidden()),
    )
    return modules.each(lambda module: _convert(module, *(ids if module is segments.embeddings else hidden), graphs))


def _weights_to_int8(segments: OpenVinoSegments) -> OpenVinoSegments:
    """Weights as symmetric INT8, a scale for each channel; kernels then quantize activations in groups as they come."""
    import nncf

    with redirect_stdout(StringIO()):  # its progress bars
        return segments.each(lambda model: nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM))


def _convert(module: nn.Module, inputs: tuple[torch.Tensor, ...], dynamic_shapes: Any, graphs: Graphs) -> ov.Model:
    """One segment; the nodes of a linear op are named `<its path>/linear/...`.

    Exporting and decomposing a graph takes five times as long as the rest, and is done once for each structure.
    """

    def decomposed() -> torch.fx.GraphModule:
        with torch.no_grad():
            exported = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
        return TorchFXPythonDecoder.from_exported_program(exported).pt_module

    graph = of_one_structure(module, graphs, decomposed)
    model = ov.convert_model(TorchFXPythonDecoder(graph, dynamic_shapes=True))
    paths = {
        node.name: next(reversed(node.meta["nn_module_stack"].values()))[0]
        for node in graph.graph.nodes
        if node.target == torch.ops.aten.linear.default
    }
    for node in model.get_ops():
        first, _, rest = node.get_friendly_name().partition("/")
        if first in paths:
            node.set_friendly_name(f"{op_name(paths[first])}/linear/{rest}")
    return model


def _op_of(name: str) -> str | None:
    """`layer_1/output.dense/linear/...` -> `layer_1.output.dense`; None for a node of no linear op."""
    parts = name.split("/")
    return ".".join(parts[:2]) if parts[2:3] == ["linear"] else None
