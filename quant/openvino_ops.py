"""The OpenVINO reading of `models.ops.Ops`: every operation adds a node to the graph being built."""

import numpy as np
from openvino import opset13 as ov_ops

from models.ops import Array


def _node(x: Array) -> Array:
    """Plain numbers become float32 constants; nodes become their output."""
    if isinstance(x, (int, float)):
        return ov_ops.constant(np.float32(x)).output(0)
    return x.output(0) if hasattr(x, "output") else x


class OpenVinoOps:
    """`Ops` over `openvino.Output`."""

    def rows_of(self, array: Array) -> Array:
        """The length of the first axis, as a [1] int64 node."""
        shape = ov_ops.shape_of(array, output_type="i64")
        return ov_ops.gather(shape, ov_ops.constant(np.array([0], np.int64)), ov_ops.constant(np.int64(0))).output(0)

    def full(self, rows: Array, value: float) -> Array:
        return ov_ops.broadcast(_node(float(value)), self.rows_of(rows)).output(0)

    def broadcast(self, rows: Array, dial: Array) -> Array:
        return ov_ops.broadcast(dial, self.rows_of(rows)).output(0)

    def classes(self, logits: Array) -> int:
        return logits.get_partial_shape()[1].get_length()

    def argmax(self, x: Array) -> Array:
        # A stable sort by value keeps the first of equals, as numpy does.
        top = ov_ops.topk(x, ov_ops.constant(np.int64(1)), axis=-1, mode="max", sort="value", stable=True)
        return ov_ops.convert(ov_ops.squeeze(top.output(1), ov_ops.constant(np.int64(-1))), "f32").output(0)

    def log_softmax(self, x: Array) -> Array:
        return ov_ops.log_softmax(x, -1).output(0)

    def exp(self, x: Array) -> Array:
        return ov_ops.exp(x).output(0)

    def mul(self, a: Array, b: Array) -> Array:
        return ov_ops.multiply(_node(a), _node(b)).output(0)

    def add(self, a: Array, b: Array) -> Array:
        return ov_ops.add(_node(a), _node(b)).output(0)

    def sub(self, a: Array, b: Array) -> Array:
        return ov_ops.subtract(_node(a), _node(b)).output(0)

    def abs(self, x: Array) -> Array:
        return ov_ops.abs(x).output(0)

    def sum(self, x: Array) -> Array:
        return ov_ops.reduce_sum(x, ov_ops.constant(np.int64(-1))).output(0)

    def max(self, x: Array) -> Array:
        return ov_ops.reduce_max(x, ov_ops.constant(np.int64(-1))).output(0)

    def less(self, a: Array, b: Array) -> Array:
        return ov_ops.less(_node(a), _node(b)).output(0)

    def equal(self, a: Array, b: Array) -> Array:
        return ov_ops.equal(_node(a), _node(b)).output(0)

    def either(self, a: Array, b: Array) -> Array:
        return ov_ops.logical_or(a, b).output(0)

    def both(self, a: Array, b: Array) -> Array:
        return ov_ops.logical_and(a, b).output(0)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        return ov_ops.select(condition, _node(a), _node(b)).output(0)
