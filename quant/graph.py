"""Early exit inside one OpenVINO graph: any batch size, every threshold, one inference call.

Segments are spliced into one model. After each kept exit the policy's `step` is laid down as graph nodes and an `If`
follows: its then-body runs the next stage on the rows that stay, alone, and scatters their answers over this stage's;
its else-body answers at once. Bodies nest, the last layer innermost:

    hidden, mask = embeddings(ids)
    stage(1):  hidden = layers(hidden);  logits = exit(hidden);  done, state = policy.step(logits, state)
               if any row stays:  scatter(logits, stay, stage(2)(gather(hidden, mask, state, stay)))
               else:              logits

Dials are inputs, so changing a threshold compiles nothing. The saved IR runs in any OpenVINO runtime.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ov_ops

from models.network import MASKED
from models.policies import Policy
from quant.openvino_ops import OpenVinoOps
from quant.segments import INPUT_NAMES

LOGITS, EXIT_LAYER, LABEL, SCORES = "logits", "exit_layer", "label", "scores"


@dataclass(frozen=True)
class OpenVinoSegments:
    """Segments converted to OpenVINO models, one each; a shared layer is one model L times."""

    embeddings: ov.Model
    layers: list[ov.Model]
    exits: list[ov.Model]


def splice(name: str, model: ov.Model, *sources: Any) -> list[Any]:
    """Lay a copy of a segment's nodes, named after it, behind `sources` and return its outputs."""
    copy = model.clone()
    for node in copy.get_ops():
        node.set_friendly_name(f"{name}/{node.get_friendly_name()}")
    for parameter, source in zip(copy.get_parameters(), sources, strict=True):
        parameter.output(0).replace(source)
    return [result.input(0).get_source_output() for result in copy.get_results()]


def _inputs() -> list[Any]:
    parameters = [ov_ops.parameter([-1, -1], np.int64, name=name) for name in INPUT_NAMES]
    for parameter, name in zip(parameters, INPUT_NAMES, strict=True):
        parameter.output(0).set_names({name})
    return parameters


def _run_layers(segments: OpenVinoSegments, hidden: Any, mask: Any, first: int, last: int) -> Any:
    """Layers `first`..`last`, counted from 1."""
    for layer in range(first, last + 1):
        (hidden,) = splice(f"layer_{layer}", segments.layers[layer - 1], hidden, mask)
    return hidden


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
    hidden, mask = splice("embeddings", segments.embeddings, *(parameter.output(0) for parameter in parameters))
    logits, previous = [], 0
    for layer in exits:
        hidden = _run_layers(segments, hidden, mask, previous + 1, layer)
        (exit_logits,) = splice(f"exit_{layer}", segments.exits[layer - 1], hidden, mask)
        logits.append(ov_ops.unsqueeze(exit_logits, ov_ops.constant(np.int64(0))))
        previous = layer
    stacked = ov_ops.concat(logits, axis=0) if len(logits) > 1 else logits[0]
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
    parameters = _inputs()
    dials = {}
    for name, value in policy.dials(np.arange(1)).items():
        dials[name] = ov_ops.parameter([-1] * value.ndim, np.float32, name=name)
        dials[name].output(0).set_names({name})
    hidden, mask = splice("embeddings", segments.embeddings, *(parameter.output(0) for parameter in parameters))
    dial_outputs = {name: dial.output(0) for name, dial in dials.items()}
    state = policy.start(OpenVinoOps(), hidden, dial_outputs)
    answer = _stage(segments, policy, list(exits), 0, hidden, mask, state, dial_outputs, trim)
    logits, exit_layer = ov_ops.variadic_split(answer, _index(1), _index(-1, 1)).outputs()
    exit_layer = ov_ops.convert(ov_ops.squeeze(exit_layer, _index(1)), "i64").output(0)
    return [*parameters, *dials.values()], logits, exit_layer


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


def _stage(
    segments: OpenVinoSegments,
    policy: Policy,
    exits: list[int],
    previous: int,
    hidden: Any,
    mask: Any,
    state: Any,
    dials: dict[str, Any],
    trim: bool,
) -> Any:
    """Run from after layer `previous` to the first of `exits`, and on from there for the rows that stay.

    Answers [n, C + 1]: each row's logits and, as a last column, the layer it left at. One array costs half the nodes of
    two, and nodes are what an exit costs on short inputs.
    """
    ops, layer = OpenVinoOps(), exits[0]
    hidden = _run_layers(segments, hidden, mask, previous + 1, layer)
    (logits,) = splice(f"exit_{layer}", segments.exits[layer - 1], hidden, mask)
    layer_column = ov_ops.constant(np.float32(layer))
    answer = ov_ops.pad(logits, _index(0, 0), _index(0, 1), "constant", layer_column).output(0)
    if len(exits) == 1:
        return answer
    done, state = policy.step(ops, layer, logits, state, dials)
    stays = ov_ops.logical_not(done)
    rows = ov_ops.squeeze(ov_ops.non_zero(stays, output_type="i64"), _index(0)).output(0)
    any_stays = ov_ops.reduce_logical_or(stays, _index(0))

    def kept(array: Any) -> Any:
        return ov_ops.gather(array, rows, _index(0)).output(0)

    # Survivors are gathered before the `If`: inside its body the same gathers cost twice as much.
    hidden, mask = _trimmed(kept(hidden), kept(mask)) if trim else (kept(hidden), kept(mask))
    outer = {"hidden": hidden, "mask": mask, "rows": rows, "answer": answer}
    outer |= {f"state_{i}": kept(array) for i, array in enumerate(state)}
    outer |= {f"dial_{name}": dial for name, dial in dials.items()}
    inner = {name: _parameter_like(source) for name, source in outer.items()}
    deeper = _stage(
        segments,
        policy,
        exits[1:],
        layer,
        inner["hidden"].output(0),
        inner["mask"].output(0),
        type(state)(*(inner[f"state_{i}"].output(0) for i in range(len(state)))),
        {name: inner[f"dial_{name}"].output(0) for name in dials},
        trim,
    )
    merged = ov_ops.result(ov_ops.scatter_update(inner["answer"], inner["rows"], deeper, _index(0)))
    unchanged = _parameter_like(answer)
    left = ov_ops.result(unchanged)
    # A policy may leave a dial or a state unread in the deeper stages; an unused parameter is not declared.
    used = {name: p for name, p in inner.items() if p.output(0).get_target_inputs()}
    branch: Any = ov_ops.if_op(any_stays.output(0))
    branch.set_then_body(_model([merged], list(used.values()), f"stay_after_{layer}"))
    branch.set_else_body(_model([left], [unchanged], f"leave_at_{layer}"))
    for name, parameter in used.items():
        branch.set_input(outer[name], parameter, unchanged if name == "answer" else None)
    return branch.set_output(merged, left)
