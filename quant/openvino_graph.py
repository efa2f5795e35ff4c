"""Graphs of OpenVINO: the network's segments spliced into one model, with exits inside or without."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ov_ops

from models.network import MASKED
from models.ops import Array
from models.policies import Policy
from quant.graph import EXIT_LAYER, LABEL, LOGITS, SCORES, SegmentModels, early_exit, every_exit
from quant.openvino_ops import OpenVinoOps
from quant.segments import INPUT_NAMES

OpenVinoSegments: TypeAlias = SegmentModels[ov.Model]


class OpenVinoGraph(OpenVinoOps):
    """`quant.graph.GraphOps` over `openvino.Output`.

    Args:
        segments: what is laid down.
        trim: after each exit, cut the padding that no row left needs.
    """

    def __init__(self, segments: OpenVinoSegments, trim: bool = False):
        self.segments, self.trim = segments, trim

    def segment(self, name: str, *sources: Array) -> list[Array]:
        """A copy of a segment's nodes, named after it."""
        copy = self.segments.named(name).clone()
        for node in copy.get_ops():
            node.set_friendly_name(f"{name}/{node.get_friendly_name()}")
        for parameter, source in zip(copy.get_parameters(), sources, strict=True):
            parameter.output(0).replace(source)
        return [result.input(0).get_source_output() for result in copy.get_results()]

    def with_layer(self, logits: Array, layer: int) -> Array:
        column = ov_ops.constant(np.float32(layer))
        return ov_ops.pad(logits, _index(0, 0), _index(0, 1), "constant", column).output(0)

    def staying(self, done: Array) -> tuple[Array, Array]:
        stays = ov_ops.logical_not(done)
        rows = ov_ops.squeeze(ov_ops.non_zero(stays, output_type="i64"), _index(0)).output(0)
        return rows, ov_ops.reduce_logical_or(stays, _index(0)).output(0)

    def kept(self, array: Array, rows: Array) -> Array:
        return ov_ops.gather(array, rows, _index(0)).output(0)

    def survivors(self, hidden: Array, mask: Array, rows: Array) -> tuple[Array, Array]:
        hidden, mask = self.kept(hidden, rows), self.kept(mask, rows)
        return _trimmed(hidden, mask) if self.trim else (hidden, mask)

    def scatter(self, answer: Array, rows: Array, deeper: Array) -> Array:
        return ov_ops.scatter_update(answer, rows, deeper, _index(0)).output(0)

    def branch(self, condition: Array, outer: dict[str, Array], body: Callable[[dict[str, Array]], Array]) -> Array:
        inner = {name: _parameter_like(source) for name, source in outer.items()}
        found = ov_ops.result(body({name: parameter.output(0) for name, parameter in inner.items()}))
        unchanged = _parameter_like(outer["answer"])
        left = ov_ops.result(unchanged)
        # A policy may leave a dial or a state unread in the deeper stages; an unused parameter is not declared.
        used = {name: p for name, p in inner.items() if p.output(0).get_target_inputs()}
        node: Any = ov_ops.if_op(condition)
        node.set_then_body(_model([found], list(used.values()), "stay"))
        node.set_else_body(_model([left], [unchanged], "leave"))
        for name, parameter in used.items():
            node.set_input(outer[name], parameter, unchanged if name == "answer" else None)
        return node.set_output(found, left)


def _inputs() -> list[Any]:
    parameters = [ov_ops.parameter([-1, -1], np.int64, name=name) for name in INPUT_NAMES]
    for parameter, name in zip(parameters, INPUT_NAMES, strict=True):
        parameter.output(0).set_names({name})
    return parameters


def _model(results: list[Any], parameters: list[Any], name: str) -> ov.Model:
    return ov.Model(results, parameters, name)  # pyright: ignore[reportGeneralTypeIssues]  (OpenVINO's own stubs)


def _index(*values: int) -> Any:
    """An int64 constant: a scalar, or an array where several are given."""
    return ov_ops.constant(np.squeeze(np.array(values, np.int64)))


def _parameter_like(source: Any) -> Any:
    return ov_ops.parameter(source.get_partial_shape(), source.get_element_type())


def _named(output: Any, name: str) -> Any:
    result = ov_ops.result(output, name=name)
    result.output(0).set_names({name})
    return result


def recording_model(segments: OpenVinoSegments, exits: Sequence[int]) -> ov.Model:
    """All kept exits' logits, [len(exits), B, C]; with a single exit, the whole or truncated network."""
    parameters = _inputs()
    logits = every_exit(OpenVinoGraph(segments), [parameter.output(0) for parameter in parameters], exits)
    each = [ov_ops.unsqueeze(exit_logits, _index(0)) for exit_logits in logits]
    stacked = ov_ops.concat(each, axis=0) if len(each) > 1 else each[0]
    return _model([_named(stacked.output(0), LOGITS)], parameters, "recording")


def exit_model(segments: OpenVinoSegments, policy: Policy, exits: Sequence[int], trim: bool = False) -> ov.Model:
    """The network with its exits inside: logits [B, C] and exit_layer [B].

    Args:
        segments: the network's segments.
        policy: its kind is compiled in; its dials become inputs of the same names (scalars, or [B] where a dial is
            given per row).
        exits: kept exits, ascending; the last one answers all rows left.
        trim: after each exit, cut the padding that no row left needs.
    """
    parameters, logits, exit_layer = _early_exit(segments, policy, exits, trim)
    return _model([_named(logits, LOGITS), _named(exit_layer, EXIT_LAYER)], parameters, "early_exit")


def serving_model(segments: OpenVinoSegments, policy: Policy, exits: Sequence[int]) -> ov.Model:
    """The same, answering what servers ask: label [B], scores [B, C] (regression: only these) and exit_layer [B]."""
    parameters, logits, exit_layer = _early_exit(segments, policy, exits)
    if logits.get_partial_shape()[1].get_length() == 1:
        results = [_named(logits, SCORES)]
    else:
        label = ov_ops.convert(OpenVinoOps().argmax(logits), "i64").output(0)
        results = [_named(label, LABEL), _named(ov_ops.softmax(logits, -1).output(0), SCORES)]
    return _model([*results, _named(exit_layer, EXIT_LAYER)], parameters, "early_exit")


def _early_exit(
    segments: OpenVinoSegments, policy: Policy, exits: Sequence[int], trim: bool = False
) -> tuple[list[Any], Any, Any]:
    """Parameters (inputs, then dials), logits [B, C] and exit layers [B]."""
    inputs, dials = _inputs(), {}
    for name, value in policy.dials(np.arange(1)).items():
        dials[name] = ov_ops.parameter([-1] * value.ndim, np.float32, name=name)
        dials[name].output(0).set_names({name})
    dial_outputs = {name: dial.output(0) for name, dial in dials.items()}
    ids = [parameter.output(0) for parameter in inputs]
    answer = early_exit(OpenVinoGraph(segments, trim), ids, policy, exits, dial_outputs)
    logits, exit_layer = ov_ops.variadic_split(answer, _index(1), _index(-1, 1)).outputs()
    exit_layer = ov_ops.convert(ov_ops.squeeze(exit_layer, _index(1)), "i64").output(0)
    return [*inputs, *dials.values()], logits, exit_layer


def step_model(policy: Policy, num_labels: int) -> ov.Model:
    """A policy's first step alone, over logits [B, C]: what it costs by itself."""
    logits = ov_ops.parameter([-1, num_labels], np.float32, name=LOGITS)
    ops, source = OpenVinoOps(), logits.output(0)
    dials = {name: ov_ops.constant(value).output(0) for name, value in policy.dials(np.arange(1)).items()}
    done, _ = policy.step(ops, 1, source, policy.start(ops, source, dials), dials)  # pyright: ignore[reportArgumentType]
    return _model([ov_ops.result(done)], [logits], "step")


def _trimmed(hidden: Any, mask: Any) -> tuple[Any, Any]:
    """Hidden [n, T, H] and mask [n, 1, 1, T] cut to the longest row's tokens; of no rows, to one."""
    tokens = ov_ops.greater(mask, ov_ops.constant(np.float32(MASKED / 2)))
    lengths = ov_ops.reduce_sum(ov_ops.convert(tokens, "i64"), _index(1, 2, 3))
    first, one = (ov_ops.constant(np.array([value], np.int64)) for value in (0, 1))
    longest = ov_ops.maximum(ov_ops.reduce_max(lengths, _index(0), keep_dims=True), one)
    hidden = ov_ops.slice(hidden, first, longest, one, one).output(0)
    return hidden, ov_ops.slice(mask, first, longest, one, ov_ops.constant(np.array([3], np.int64))).output(0)
