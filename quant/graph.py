"""Early exit inside one graph: any batch size, every threshold, one inference call.

Segments are spliced into one model. After each kept exit the policy's `step` is laid down as graph nodes and an `If`
follows: its then-body runs the next stage on the rows that stay, alone, and scatters their answers over this stage's;
its else-body answers at once. Bodies nest, the last layer innermost:

    hidden, mask = embeddings(ids)
    stage(1):  hidden = layers(hidden);  logits = exit(hidden);  done, state = policy.step(logits, state)
               if any row stays:  scatter(logits, stay, stage(2)(gather(hidden, mask, state, stay)))
               else:              logits

Dials are inputs, so changing a threshold compiles nothing. Written once over `GraphOps`, which OpenVINO
(`quant/openvino_graph.py`) and ONNX (`quant/onnx_graph.py`) read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from models.ops import Array, Ops
from models.policies import Policy

LOGITS, EXIT_LAYER, LABEL, SCORES = "logits", "exit_layer", "label", "scores"
Model = TypeVar("Model")
Other = TypeVar("Other")


@dataclass(frozen=True)
class SegmentModels(Generic[Model]):
    """Segments converted to models of one runtime, one each; a shared layer is one model L times."""

    embeddings: Model
    layers: list[Model]
    exits: list[Model]

    def named(self, name: str) -> Model:
        """A segment by the name it has in graphs: `embeddings`, `layer_1`.., `exit_1`.."""
        if name == "embeddings":
            return self.embeddings
        kind, number = name.split("_")
        return {"layer": self.layers, "exit": self.exits}[kind][int(number) - 1]

    def each(self, change: Callable[[Model], Other]) -> "SegmentModels[Other]":
        """What `change` makes of every model, of a shared one once."""
        parts = {id(model): model for model in [self.embeddings, *self.layers, *self.exits]}
        made = {key: change(model) for key, model in parts.items()}
        return SegmentModels(
            made[id(self.embeddings)],
            [made[id(layer)] for layer in self.layers],
            [made[id(exit_)] for exit_ in self.exits],
        )


class GraphOps(Ops, Protocol):
    """`Ops` that add nodes to a graph, and what else exits inside a graph take."""

    def segment(self, name: str, *sources: Array) -> list[Array]:
        """Lay down `embeddings`, `layer_1`.. or `exit_1`.. behind `sources`."""
        ...

    def with_layer(self, logits: Array, layer: int) -> Array:
        """[n, C] -> [n, C + 1]: the layer as a last column. One array costs half the nodes of two."""
        ...

    def staying(self, done: Array) -> tuple[Array, Array]:
        """[n] -> the positions of the rows that are not done, and whether there are any."""
        ...

    def kept(self, array: Array, rows: Array) -> Array:
        """An array's rows at these positions."""
        ...

    def survivors(self, hidden: Array, mask: Array, rows: Array) -> tuple[Array, Array]:
        """Hidden [n, T, H] and mask [n, 1, 1, T] of the rows at these positions."""
        ...

    def scatter(self, answer: Array, rows: Array, deeper: Array) -> Array:
        """`answer` with the rows at these positions replaced."""
        ...

    def branch(self, condition: Array, outer: dict[str, Array], body: Callable[[dict[str, Array]], Array]) -> Array:
        """What `body` makes of `outer` where the condition holds, and else `outer["answer"]` as it is."""
        ...


def _run_layers(ops: GraphOps, hidden: Array, mask: Array, first: int, last: int) -> Array:
    """Layers `first`..`last`, counted from 1."""
    for layer in range(first, last + 1):
        (hidden,) = ops.segment(f"layer_{layer}", hidden, mask)
    return hidden


def every_exit(ops: GraphOps, inputs: Sequence[Array], exits: Sequence[int]) -> list[Array]:
    """The logits [B, C] of each of these exits; no row leaves."""
    hidden, mask = ops.segment("embeddings", *inputs)
    logits, previous = [], 0
    for layer in exits:
        hidden = _run_layers(ops, hidden, mask, previous + 1, layer)
        logits += ops.segment(f"exit_{layer}", hidden, mask)
        previous = layer
    return logits


def early_exit(
    ops: GraphOps, inputs: Sequence[Array], policy: Policy, exits: Sequence[int], dials: dict[str, Array]
) -> Array:
    """Each row's logits and the layer it left at, [B, C + 1]."""
    hidden, mask = ops.segment("embeddings", *inputs)
    return _stage(ops, policy, list(exits), 0, hidden, mask, policy.start(ops, hidden, dials), dials)


def _stage(
    ops: GraphOps,
    policy: Policy,
    exits: list[int],
    previous: int,
    hidden: Array,
    mask: Array,
    state: Any,
    dials: dict[str, Array],
) -> Array:
    """Run from after layer `previous` to the first of `exits`, and on from there for the rows that stay."""
    layer = exits[0]
    hidden = _run_layers(ops, hidden, mask, previous + 1, layer)
    (logits,) = ops.segment(f"exit_{layer}", hidden, mask)
    answer = ops.with_layer(logits, layer)
    if len(exits) == 1:
        return answer
    done, state = policy.step(ops, layer, logits, state, dials)
    rows, any_stays = ops.staying(done)
    # Survivors are gathered before the `If`: inside its body the same gathers cost twice as much in OpenVINO.
    hidden, mask = ops.survivors(hidden, mask, rows)
    outer = {"hidden": hidden, "mask": mask, "rows": rows, "answer": answer}
    outer |= {f"state_{i}": ops.kept(array, rows) for i, array in enumerate(state)}
    outer |= {f"dial_{name}": dial for name, dial in dials.items()}

    def deeper(inner: dict[str, Array]) -> Array:
        state_inside = type(state)(*(inner[f"state_{i}"] for i in range(len(state))))
        dials_inside = {name: inner[f"dial_{name}"] for name in dials}
        found = _stage(ops, policy, exits[1:], layer, inner["hidden"], inner["mask"], state_inside, dials_inside)
        return ops.scatter(inner["answer"], inner["rows"], found)

    return ops.branch(any_stays, outer, deeper)
