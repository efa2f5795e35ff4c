"""The array operations an exit policy may use, and their numpy reading.

A policy is written once against `Ops` and read by numpy (replay over recorded logits, stepped programs) and by the
graphs of OpenVINO (`quant/openvino_ops.py`) and ONNX (`quant/onnx_graph.py`), so the exits that are replayed are the
exits that are compiled.
"""

from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy.ndarray, openvino.Output or a name in an ONNX graph


class Ops(Protocol):
    """Array operations over rows.

    Values are float32, masks are boolean, reductions run over the last axis. Elementwise operations broadcast, and take
    plain numbers and scalar dials as they are.
    """

    def full(self, rows: Array, value: float) -> Array:
        """A [B] float32 array of `value`, with as many rows as the array `rows`."""
        ...

    def broadcast(self, rows: Array, dial: Array) -> Array:
        """A [B] float32 array from a dial that is a scalar or already holds one value a row."""
        ...

    def classes(self, logits: Array) -> int:
        """C, the static width of [B, C] logits (1 for regression)."""
        ...

    def argmax(self, x: Array) -> Array:
        """[B, C] -> [B], the class index as float32 (the first of equals)."""
        ...

    def log_softmax(self, x: Array) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def mul(self, a: Array, b: Array) -> Array: ...
    def add(self, a: Array, b: Array) -> Array: ...
    def sub(self, a: Array, b: Array) -> Array: ...
    def abs(self, x: Array) -> Array: ...

    def sum(self, x: Array) -> Array:
        """[B, C] -> [B]."""
        ...

    def max(self, x: Array) -> Array:
        """[B, C] -> [B]."""
        ...

    def less(self, a: Array, b: Array) -> Array: ...
    def equal(self, a: Array, b: Array) -> Array: ...
    def either(self, a: Array, b: Array) -> Array: ...
    def both(self, a: Array, b: Array) -> Array: ...
    def where(self, condition: Array, a: Array, b: Array) -> Array: ...


class NumpyOps:
    """`Ops` over numpy arrays in float32."""

    def full(self, rows: Array, value: float) -> Array:
        return np.full(len(rows), value, np.float32)

    def broadcast(self, rows: Array, dial: Array) -> Array:
        return np.broadcast_to(np.asarray(dial, np.float32), (len(rows),))

    def classes(self, logits: Array) -> int:
        return logits.shape[-1]

    def argmax(self, x: Array) -> Array:
        return np.argmax(x, axis=-1).astype(np.float32)

    def log_softmax(self, x: Array) -> Array:
        shifted = np.asarray(x, np.float32) - np.max(x, axis=-1, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def mul(self, a: Array, b: Array) -> Array:
        return np.multiply(a, b, dtype=np.float32)

    def add(self, a: Array, b: Array) -> Array:
        return np.add(a, b, dtype=np.float32)

    def sub(self, a: Array, b: Array) -> Array:
        return np.subtract(a, b, dtype=np.float32)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def sum(self, x: Array) -> Array:
        return np.sum(x, axis=-1, dtype=np.float32)

    def max(self, x: Array) -> Array:
        return np.max(x, axis=-1)

    def less(self, a: Array, b: Array) -> Array:
        return np.less(np.asarray(a, np.float32), np.asarray(b, np.float32))

    def equal(self, a: Array, b: Array) -> Array:
        return np.equal(np.asarray(a, np.float32), np.asarray(b, np.float32))

    def either(self, a: Array, b: Array) -> Array:
        return np.logical_or(a, b)

    def both(self, a: Array, b: Array) -> Array:
        return np.logical_and(a, b)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition, np.asarray(a, np.float32), np.asarray(b, np.float32))
