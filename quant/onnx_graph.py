"""Graphs of ONNX: the network's segments spliced into one model, with exits inside or without.

Bodies of an ONNX `If` see the values around them, so nothing is handed in. Each weight stands once, in the outermost
body that reads it: ONNX Runtime hands a body everything it reads from around it anew at every run.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.ops import Array
from models.policies import Policy
from quant.graph import EXIT_LAYER, LABEL, LOGITS, SCORES, SegmentModels, early_exit, every_exit
from quant.segments import INPUT_NAMES

OnnxSegments: TypeAlias = SegmentModels[ModelProto]
OPSET, IR_VERSION = 17, 8
# What layers and exits read.
HIDDEN_NAMES: tuple[str, str] = ("hidden", "mask")


class OnnxGraph:
    """`quant.graph.GraphOps` over the names of values; nodes are laid into the innermost body that is open."""

    # How many rows go in: any number.
    batch: str | int = "batch"

    def __init__(self, segments: OnnxSegments, num_labels: int):
        self.segments, self.num_labels = segments, num_labels
        self.nodes: list[NodeProto] = []
        # Of every body that is open, the outermost first.
        self.weights: list[dict[str, TensorProto]] = [{}]
        self.count = 0

    def model(self, outputs: Mapping[str, tuple[Array, int]], dials: dict[str, np.ndarray] | None = None) -> ModelProto:
        """The graph so far as a model.

        Args:
            outputs: name -> value and the element type it has.
            dials: inputs beside the three of the network, float32 and of the rank of these values.
        """
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        axes = [self.batch, "length"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUT_NAMES]
        for name, value in (dials or {}).items():
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes[: value.ndim]))
        results = [helper.make_tensor_value_info(name, kind, None) for name, (_, kind) in outputs.items()]
        graph = helper.make_graph(self.nodes, "network", inputs, results, list(self.weights[0].values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def segment(self, name: str, *sources: Array) -> list[Array]:
        """A copy of a segment's nodes, named after it; weights are named after what they hold."""
        graph = self.segments.named(name).graph
        # By name, for an input that nothing reads (the mask, in exits on the first token) is not in the model.
        inputs = INPUT_NAMES if name == "embeddings" else HIDDEN_NAMES
        names = {"": ""} | dict(zip(inputs, sources, strict=True))
        names |= {tensor.name: self._weight(tensor) for tensor in graph.initializer}
        for node in graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{name}/{node.name}"
            names |= {value: f"{name}/{value}" for value in node.output if value}
            copy.input[:] = [names[value] for value in node.input]
            copy.output[:] = [names[value] for value in node.output]
            self.nodes.append(copy)
        return [names[value.name] for value in graph.output]

    def with_layer(self, logits: Array, layer: int) -> Array:
        return self._node("Pad", logits, self._ints(0, 0, 0, 1), float(layer))

    def split_layer(self, answer: Array) -> tuple[Array, Array]:
        """[B, C + 1] -> logits [B, C] and exit layers [B] int64."""
        logits, layer = self._node("Split", answer, self._ints(self.num_labels, 1), outputs=2, axis=1)
        return logits, self._node("Cast", self._node("Squeeze", layer, self._ints(1)), to=TensorProto.INT64)

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Arrays of one shape along a new first axis."""
        return self._node("Concat", *(self._node("Unsqueeze", array, self._ints(0)) for array in arrays), axis=0)

    def staying(self, done: Array) -> tuple[Array, Array]:
        rows = self._node("Squeeze", self._node("NonZero", self._node("Not", done)), self._ints(0))
        return rows, self._node("Cast", self._node("Size", rows), to=TensorProto.BOOL)

    def kept(self, array: Array, rows: Array) -> Array:
        return self._node("Gather", array, rows, axis=0)

    def survivors(self, hidden: Array, mask: Array, rows: Array) -> tuple[Array, Array]:
        return self.kept(hidden, rows), self.kept(mask, rows)

    def scatter(self, answer: Array, rows: Array, deeper: Array) -> Array:
        return self._node("ScatterND", answer, self._node("Unsqueeze", rows, self._ints(1)), deeper)

    def branch(self, condition: Array, outer: dict[str, Array], body: Callable[[dict[str, Array]], Array]) -> Array:
        then = self._body("stay", lambda: body(outer))
        other = self._body("leave", lambda: self._node("Identity", outer["answer"]))
        return self._node("If", condition, then_branch=then, else_branch=other)

    def full(self, rows: Array, value: float) -> Array:
        return self._node("Expand", float(value), self._rows_of(rows))

    def broadcast(self, rows: Array, dial: Array) -> Array:
        return self._node("Expand", dial, self._rows_of(rows))

    def classes(self, logits: Array) -> int:
        return self.num_labels

    def label(self, logits: Array) -> Array:
        """[B, C] -> [B] int64, the first of equals."""
        return self._node("ArgMax", logits, axis=-1, keepdims=0)

    def softmax(self, logits: Array) -> Array:
        return self._node("Softmax", logits, axis=-1)

    def argmax(self, x: Array) -> Array:
        return self._node("Cast", self.label(x), to=TensorProto.FLOAT)

    def log_softmax(self, x: Array) -> Array:
        return self._node("LogSoftmax", x, axis=-1)

    def exp(self, x: Array) -> Array:
        return self._node("Exp", x)

    def mul(self, a: Array, b: Array) -> Array:
        return self._node("Mul", a, b)

    def add(self, a: Array, b: Array) -> Array:
        return self._node("Add", a, b)

    def sub(self, a: Array, b: Array) -> Array:
        return self._node("Sub", a, b)

    def abs(self, x: Array) -> Array:
        return self._node("Abs", x)

    def sum(self, x: Array) -> Array:
        return self._node("ReduceSum", x, self._ints(-1), keepdims=0)

    def max(self, x: Array) -> Array:
        return self._node("ReduceMax", x, axes=[-1], keepdims=0)

    def less(self, a: Array, b: Array) -> Array:
        return self._node("Less", a, b)

    def equal(self, a: Array, b: Array) -> Array:
        return self._node("Equal", a, b)

    def either(self, a: Array, b: Array) -> Array:
        return self._node("Or", a, b)

    def both(self, a: Array, b: Array) -> Array:
        return self._node("And", a, b)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        return self._node("Where", condition, a, b)

    def _rows_of(self, array: Array) -> Array:
        """The length of the first axis, as [1] int64."""
        return self._node("Shape", array, start=0, end=1)

    def _node(self, op: str, *inputs: Array, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; plain numbers become float32 constants."""
        self.count += 1
        name = f"{op}_{self.count}"
        given = [self._constant(np.float32(x)) if isinstance(x, (int, float)) else x for x in inputs]
        made = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, given, made, name, **attributes))
        return made[0] if outputs == 1 else made

    def _weight(self, tensor: TensorProto) -> Array:
        """A segment's weight, in the innermost body unless one around it has it, as it has those that exits share."""
        held = TensorProto()
        held.CopyFrom(tensor)
        held.ClearField("name")
        name = hashlib.sha256(held.SerializeToString(deterministic=True)).hexdigest()[:16]
        held.name = name
        if not any(name in weights for weights in self.weights):
            self.weights[-1][name] = held
        return name

    def _ints(self, *values: int) -> Array:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: Any) -> Array:
        # In the outermost graph: what follows a body may read the same number.
        name = f"{value.dtype}{value.tolist()}"
        self.weights[0].setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _body(self, name: str, lay: Callable[[], Array]) -> GraphProto:
        around, self.nodes = self.nodes, []
        self.weights.append({})
        result = helper.make_tensor_value_info(lay(), TensorProto.FLOAT, None)
        body = helper.make_graph(self.nodes, name, [], [result], list(self.weights.pop().values()))
        self.nodes = around
        return body


class OneRowGraph(OnnxGraph):
    """The same for one row, which stays or leaves: nothing is gathered or scattered."""

    batch = 1

    def staying(self, done: Array) -> tuple[Array, Array]:
        return done, self._node("Not", done)

    def kept(self, array: Array, rows: Array) -> Array:
        return array

    def survivors(self, hidden: Array, mask: Array, rows: Array) -> tuple[Array, Array]:
        return hidden, mask

    def scatter(self, answer: Array, rows: Array, deeper: Array) -> Array:
        return deeper


def recording_model(segments: OnnxSegments, num_labels: int, exits: Sequence[int]) -> ModelProto:
    """All kept exits' logits, [len(exits), B, C]; with a single exit, the whole or truncated network."""
    graph = OnnxGraph(segments, num_labels)
    return graph.model({LOGITS: (graph.stack(every_exit(graph, INPUT_NAMES, exits)), TensorProto.FLOAT)})


def exit_model(graph: OnnxGraph, policy: Policy, exits: Sequence[int]) -> ModelProto:
    """The network with its exits inside, laid into an empty graph: logits [B, C] and exit_layer [B]."""
    dials, logits, exit_layer = _early_exit(graph, policy, exits)
    return graph.model({LOGITS: (logits, TensorProto.FLOAT), EXIT_LAYER: (exit_layer, TensorProto.INT64)}, dials)


def serving_model(graph: OnnxGraph, policy: Policy, exits: Sequence[int]) -> ModelProto:
    """The same, answering what servers ask: label [B], scores [B, C] (regression: only these) and exit_layer [B]."""
    dials, logits, exit_layer = _early_exit(graph, policy, exits)
    outputs = {EXIT_LAYER: (exit_layer, TensorProto.INT64)}
    if graph.num_labels == 1:
        outputs[SCORES] = logits, TensorProto.FLOAT
    else:
        outputs |= {SCORES: (graph.softmax(logits), TensorProto.FLOAT), LABEL: (graph.label(logits), TensorProto.INT64)}
    return graph.model(outputs, dials)


def _early_exit(graph: OnnxGraph, policy: Policy, exits: Sequence[int]) -> tuple[dict[str, np.ndarray], Array, Array]:
    """The policy's dials, logits [B, C] and exit layers [B]."""
    dials = policy.dials(np.arange(1))
    answer = early_exit(graph, INPUT_NAMES, policy, exits, {name: name for name in dials})
    return dials, *graph.split_layer(answer)
