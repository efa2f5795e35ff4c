"""Exit policies: replay against a plain reading of each rule, its properties, and its compiled form."""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openvino as ov
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openvino import opset13 as ov_ops
from pydantic import TypeAdapter, ValidationError

from models.config import UserError
from models.ops import NumpyOps
from models.policies import (
    Confidence,
    Entropy,
    Fixed,
    Imposed,
    Patience,
    Policy,
    Uncertainty,
    entropy,
    largest_probability,
    replay,
    top_two_gap,
)
from quant.openvino_ops import OpenVinoOps

MAX_LAYERS = 5
BY_THRESHOLD = (Entropy, Uncertainty, Confidence)
# Below this distance from its threshold, a decision may turn with the last bits of exp and log.
MARGIN = 1e-5

quick = settings(max_examples=80, deadline=None, derandomize=True)

thresholds = st.floats(0, 2, width=32)
# One strategy for each policy that is tried here.
POLICIES: dict[type, st.SearchStrategy] = {
    Fixed: st.builds(Fixed, layer=st.none() | st.integers(1, MAX_LAYERS)),
    Patience: st.builds(
        Patience, patience=st.integers(0, MAX_LAYERS), regression_threshold=st.floats(0.015625, 4, width=32)
    ),
    Entropy: st.builds(Entropy, threshold=thresholds),
    Uncertainty: st.builds(Uncertainty, speed=st.floats(0, 1, width=32)),
    Confidence: st.builds(Confidence, threshold=st.floats(0, 1, width=32)),
    Imposed: st.builds(Imposed, exit_layers=st.lists(st.integers(1, MAX_LAYERS), min_size=1, max_size=4)),
}


def recordings(classes: st.SearchStrategy[int], layers: int | None = None) -> st.SearchStrategy[np.ndarray]:
    """[L, N, C] float32 logits: anything sensible, or small whole numbers, among which ties are common."""
    values = st.floats(-30, 30, width=32) | st.integers(-2, 2).map(float)
    depth = st.just(layers) if layers else st.integers(1, MAX_LAYERS)
    shapes = st.tuples(depth, st.integers(1, 6), classes)
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=values, fill=st.nothing()))


any_classes = st.integers(1, 4)
several_classes = st.integers(2, 4)


@st.composite
def runs(draw: st.DrawFn, kind: type) -> tuple[Any, np.ndarray, list[int]]:
    """A policy, the logits of the exits it sees, and which exits of a deeper network those are."""
    policy = draw(POLICIES[kind])
    logits = draw(recordings(several_classes if policy.classification_only else any_classes))
    exits = draw(st.sets(st.integers(1, 8), min_size=len(logits), max_size=len(logits)))
    return policy, logits, sorted(exits)


def test_every_policy_is_tested():
    """Here (`POLICIES`, `LEAVES`), or in a file of its own."""
    elsewhere = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    kinds: tuple[Any, ...] = get_args(get_args(Policy)[0])
    names = {f"test_{kind.model_fields['kind'].default}": kind for kind in kinds}
    assert {kind for name, kind in names.items() if name not in elsewhere} <= set(POLICIES) == set(LEAVES)


# --- replay against the rules, written out row by row -----------------------------------------------------------------


def plain_softmax(logits: np.ndarray) -> list[float]:
    powers = [math.exp(float(x) - float(max(logits))) for x in logits]
    return [power / sum(powers) for power in powers]


def plain_entropy(logits: np.ndarray) -> float:
    return -sum(p * math.log(p) for p in plain_softmax(logits) if p > 0)


def leaves_fixed(policy: Fixed, seen: np.ndarray, layers: list[int], row: int) -> bool:
    return layers[-1] == policy.layer


def leaves_patience(policy: Patience, seen: np.ndarray, layers: list[int], row: int) -> bool:
    """Whether the last `patience` exits all repeat the one before them."""

    def same(one: np.ndarray, other: np.ndarray) -> bool:
        if len(one) == 1:
            return bool(np.abs(one[0] - other[0]) < np.float32(policy.regression_threshold))
        return int(np.argmax(one)) == int(np.argmax(other))

    pairs = list(pairwise(seen))
    return 0 < policy.patience <= len(pairs) and all(same(a, b) for a, b in pairs[-policy.patience :])


def leaves_entropy(policy: Entropy, seen: np.ndarray, layers: list[int], row: int) -> bool:
    return plain_entropy(seen[-1]) < policy.threshold


def leaves_uncertainty(policy: Uncertainty, seen: np.ndarray, layers: list[int], row: int) -> bool:
    return plain_entropy(seen[-1]) / math.log(len(seen[-1])) < policy.speed


def leaves_confidence(policy: Confidence, seen: np.ndarray, layers: list[int], row: int) -> bool:
    return max(plain_softmax(seen[-1])) > policy.threshold


def leaves_imposed(policy: Imposed, seen: np.ndarray, layers: list[int], row: int) -> bool:
    return layers[-1] >= policy.exit_layers[row % len(policy.exit_layers)]


LEAVES: dict[type, Callable[..., bool]] = {
    Fixed: leaves_fixed,
    Patience: leaves_patience,
    Entropy: leaves_entropy,
    Uncertainty: leaves_uncertainty,
    Confidence: leaves_confidence,
    Imposed: leaves_imposed,
}


def plain_exit(policy: Any, logits: np.ndarray, exits: list[int], row: int) -> int:
    """Where one row leaves, by the rule as it reads."""
    for i, layer in enumerate(exits[:-1]):
        if LEAVES[type(policy)](policy, logits[: i + 1, row], exits[: i + 1], row):
            return layer
    return exits[-1]


@pytest.mark.parametrize("kind", POLICIES)
@quick
@given(data=st.data())
def test_replay_follows_the_rule(kind: type, data: st.DataObject):
    policy, logits, exits = data.draw(runs(kind))
    answer = replay(policy, logits, exits)
    sure = answer.margin > MARGIN if kind in BY_THRESHOLD else np.ones(logits.shape[1], bool)
    expected = np.array([plain_exit(policy, logits, exits, row) for row in range(logits.shape[1])])
    np.testing.assert_array_equal(answer.exit_layer[sure], expected[sure])
    positions = [exits.index(layer) for layer in answer.exit_layer]
    np.testing.assert_array_equal(answer.logits, logits[positions, np.arange(len(positions))])
    assert (answer.margin >= 0).all()


@pytest.mark.parametrize("kind", POLICIES)
@quick
@given(data=st.data())
def test_a_row_leaves_alike_in_any_batch(kind: type, data: st.DataObject):
    policy, logits, exits = data.draw(runs(kind))
    together = replay(policy, logits, exits)
    rows = logits.shape[1]
    order = data.draw(st.permutations(range(rows)))
    for row in range(rows):
        alone_policy = policy
        if isinstance(policy, Imposed):  # its dial goes with a row's position in the run
            alone_policy = Imposed(exit_layers=[policy.exit_layers[row % len(policy.exit_layers)]])
        alone = replay(alone_policy, logits[:, [row]], exits)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], many[row])
    if not isinstance(policy, Imposed):
        for moved, many in zip(replay(policy, logits[:, order], exits), together, strict=True):
            np.testing.assert_array_equal(moved, many[order])


@pytest.mark.parametrize("kind", POLICIES)
@quick
@given(data=st.data())
def test_the_margin_is_how_far_logits_may_move(kind: type, data: st.DataObject):
    """Moving every logit by less than a fourth of the margin changes neither exit nor label."""
    policy, logits, exits = data.draw(runs(kind))
    before = replay(policy, logits, exits)
    room = np.minimum(before.margin, 10.0) * 0.25 - MARGIN
    assume((room > 0).any())
    directions = data.draw(hnp.arrays(np.float32, logits.shape, elements=st.sampled_from([-1.0, 0.0, 1.0])))
    after = replay(policy, logits + directions * np.maximum(room, 0)[None, :, None].astype(np.float32), exits)
    safe = room > 0
    np.testing.assert_array_equal(after.exit_layer[safe], before.exit_layer[safe])
    if logits.shape[-1] > 1:
        np.testing.assert_array_equal(after.logits.argmax(-1)[safe], before.logits.argmax(-1)[safe])


# --- properties of single policies ------------------------------------------------------------------------------------


@quick
@given(recordings(several_classes), thresholds, thresholds)
def test_a_higher_entropy_threshold_leaves_no_later(logits: np.ndarray, one: float, other: float):
    exits = list(range(1, len(logits) + 1))
    low, high = (replay(Entropy(threshold=t), logits, exits).exit_layer for t in sorted([one, other]))
    assert (high <= low).all()


@quick
@given(recordings(several_classes), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_confidence_threshold_leaves_no_earlier(logits: np.ndarray, one: float, other: float):
    exits = list(range(1, len(logits) + 1))
    low, high = (replay(Confidence(threshold=t), logits, exits).exit_layer for t in sorted([one, other]))
    assert (high >= low).all()


@quick
@given(recordings(any_classes), st.integers(1, MAX_LAYERS))
def test_more_patience_leaves_no_earlier(logits: np.ndarray, patience: int):
    exits = list(range(1, len(logits) + 1))
    less, more = (replay(Patience(patience=p), logits, exits).exit_layer for p in (patience, patience + 1))
    assert (more >= less).all()
    assert (less >= min(patience + 1, len(logits))).all()


@quick
@given(recordings(st.just(1)), st.integers(1, 3), st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_wider_regression_threshold_leaves_no_later(logits: np.ndarray, patience: int, one: float, other: float):
    exits = list(range(1, len(logits) + 1))
    narrow, wide = (
        replay(Patience(patience=patience, regression_threshold=t), logits, exits).exit_layer
        for t in sorted([one, other])
    )
    assert (wide <= narrow).all()


@quick
@given(recordings(any_classes))
def test_full_depth(logits: np.ndarray):
    exits = list(range(1, len(logits) + 1))
    for policy in (Fixed(), Patience(patience=0), Patience(patience=len(logits))):
        np.testing.assert_array_equal(replay(policy, logits, exits).exit_layer, len(logits))
    for layer in exits:
        np.testing.assert_array_equal(replay(Fixed(layer=layer), logits, exits).exit_layer, layer)


@quick
@given(recordings(several_classes))
def test_thresholds_that_always_and_never_fire(logits: np.ndarray):
    exits, classes = list(range(1, len(logits) + 1)), logits.shape[-1]
    for always in (Entropy(threshold=math.log(classes) + 1e-3), Confidence(threshold=1 / classes - 1e-3)):
        np.testing.assert_array_equal(replay(always, logits, exits).exit_layer, 1)
    for never in (Entropy(threshold=0.0), Confidence(threshold=1.0)):
        np.testing.assert_array_equal(replay(never, logits, exits).exit_layer, len(logits))


@quick
@given(recordings(several_classes, layers=2))
def test_thresholds_are_strict(logits: np.ndarray):
    """A decision exactly at its threshold stays; the next number lets it go."""
    logits = logits[:, :1]
    uncertain = entropy(NumpyOps(), logits)[0, 0]
    sure = largest_probability(NumpyOps(), logits)[0, 0]

    def left(policy: Any) -> int:
        return int(replay(policy, logits, [1, 2]).exit_layer[0])

    assert left(Entropy(threshold=float(uncertain))) == 2
    assert left(Entropy(threshold=float(np.nextafter(uncertain, np.float32(9))))) == 1
    assert left(Confidence(threshold=float(min(sure, np.float32(1))))) == 2
    assert left(Confidence(threshold=float(np.nextafter(sure, np.float32(-1))))) == 1


def test_the_regression_threshold_is_strict():
    # Quarters are exact in float32, so a change of 0.25 is exactly at the threshold.
    logits = np.array([[0.0, 0.0], [0.25, 0.125], [1.0, 1.0]], np.float32)[..., None]
    answer = replay(Patience(patience=1, regression_threshold=0.25), logits, [1, 2, 3])
    np.testing.assert_array_equal(answer.exit_layer, [3, 2])
    assert answer.margin[0] == 0


def test_patience_starts_again_after_a_change():
    predictions = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 1]])
    logits = np.eye(2, dtype=np.float32)[predictions]
    assert replay(Patience(patience=1), logits, [1, 2, 3, 4, 5, 6]).exit_layer.tolist() == [2, 3, 2]
    assert replay(Patience(patience=2), logits, [1, 2, 3, 4, 5, 6]).exit_layer.tolist() == [5, 4, 6]
    # Of exits 2, 4 and 6 alone: (0 1 1), (1 1 0), (1 0 0).
    logits = logits[[1, 3, 5]]
    assert replay(Patience(patience=1), logits, [2, 4, 6]).exit_layer.tolist() == [6, 4, 4]


def test_of_equal_logits_the_first_is_the_answer():
    logits = np.array([[[1, 1, 0]], [[1, 0, 0]], [[0, 0, 0]]], np.float32)
    assert replay(Patience(patience=1), logits, [1, 2, 3]).exit_layer.tolist() == [2]
    assert replay(Patience(patience=1), logits, [1, 2, 3]).margin.tolist() == [0]


def test_imposed_layers_go_round():
    logits = np.zeros((4, 7, 2), np.float32)
    answer = replay(Imposed(exit_layers=[1, 4, 2]), logits, [1, 2, 3, 4])
    assert answer.exit_layer.tolist() == [1, 4, 2, 1, 4, 2, 1]
    # A layer that keeps no exit is passed on to the next one that does.
    assert replay(Imposed(exit_layers=[1, 2, 9]), logits[:2], [2, 4]).exit_layer.tolist() == [2, 2, 4] * 2 + [2]


def test_entropy_and_confidence_do_not_overflow():
    logits = np.array([[1e30, -1e30], [500.0, 499.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(entropy(NumpyOps(), logits), [0, 0.582203, math.log(2)], atol=1e-6)
    np.testing.assert_allclose(largest_probability(NumpyOps(), logits), [1, 0.731059, 0.5], atol=1e-6)
    np.testing.assert_array_equal(top_two_gap(logits[1:]), [1, 0])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", [Fixed(), Patience(patience=1), Entropy(threshold=0.1)])
def test_broken_logits_are_refused(policy: Any, broken: float):
    logits = np.zeros((3, 4, 2), np.float32)
    logits[2, 1, 0] = broken
    with pytest.raises(UserError, match="must be finite"):
        replay(policy, logits, [1, 2, 3])


@pytest.mark.parametrize(
    "given_policy",
    [
        {"kind": "fixed", "layer": 0},
        {"kind": "patience"},
        {"kind": "patience", "patience": -1},
        {"kind": "patience", "patience": 1.5},
        {"kind": "patience", "patience": 1, "regression_threshold": 0.0},
        {"kind": "patience", "patience": 1, "regression_threshold": math.inf},  # would leave at the first exit
        {"kind": "entropy", "threshold": -0.1},
        {"kind": "entropy", "threshold": math.nan},
        {"kind": "entropy", "threshold": "0.1"},
        {"kind": "confidence", "threshold": 1.5},
        {"kind": "confidence", "threshold": math.nan},
        {"kind": "imposed", "exit_layers": []},
        {"kind": "entropy", "threshold": 0.1, "patience": 1},
        {"kind": "unheard_of"},
    ],
)
def test_impossible_policies_are_refused(given_policy: dict[str, Any]):
    with pytest.raises(ValidationError):
        TypeAdapter(Policy).validate_python(given_policy)


# --- the compiled reading ---------------------------------------------------------------------------------------------


@cache
def compiled_steps(kind: type, layers: int, classes: int) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """`start` and `layers` folds of `step` as one OpenVINO graph of nothing else: done and state after each fold."""
    ops = OpenVinoOps()
    example = {
        Fixed: Fixed(),
        Patience: Patience(patience=1),
        Uncertainty: Uncertainty(speed=0.5),
        Imposed: Imposed(exit_layers=[1]),
    }
    policy = example.get(kind) or kind(threshold=0.5)
    logits: list[Any] = [ov_ops.parameter([-1, classes], np.float32, name=f"logits_{i}") for i in range(layers)]
    dials: dict[str, Any] = {
        name: ov_ops.parameter([-1] * value.ndim, np.float32, name=name)
        for name, value in policy.dials(np.arange(1)).items()
    }
    for parameter in (*logits, *dials.values()):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    dial_outputs = {name: dial.output(0) for name, dial in dials.items()}
    state, outputs = policy.start(ops, logits[0].output(0), dial_outputs), {}
    for i in range(layers):
        done, state = policy.step(ops, i + 1, logits[i].output(0), state, dial_outputs)
        outputs |= {f"{name}_{i}": output for name, output in {"done": done, **state._asdict()}.items()}
    inputs: list[Any] = [*logits, *dials.values()]
    unread = [parameter for parameter in inputs if not parameter.output(0).get_target_inputs()]
    # The model takes no parameter that nothing reads.
    results: list[Any] = [ov_ops.result(output) for output in (*outputs.values(), *unread)]
    model = ov.Model(results, inputs, "steps")  # pyright: ignore[reportGeneralTypeIssues]
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = request.infer(inputs)
        return {name: answers[i] for i, name in enumerate(outputs)}

    return run


@pytest.mark.parametrize("kind", POLICIES)
@settings(quick, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_compiled_step_is_the_numpy_step(kind: type, data: st.DataObject):
    layers = 4
    policy = data.draw(POLICIES[kind])
    logits = data.draw(recordings(st.sampled_from([2, 3] if policy.classification_only else [1, 2, 3]), layers))
    ops, rows = NumpyOps(), np.arange(logits.shape[1])
    dials = policy.dials(rows)
    compiled = compiled_steps(kind, layers, logits.shape[-1])({f"logits_{i}": x for i, x in enumerate(logits)} | dials)
    state = policy.start(ops, rows, dials)
    # Comparisons and counts agree to the bit; what passes through exp and log may differ near its threshold.
    margin = policy.margin(logits) if kind in BY_THRESHOLD else np.full(logits.shape[:2], np.inf)
    for i, layer_logits in enumerate(logits):
        done, state = policy.step(ops, i + 1, layer_logits, state, dials)
        assert done.dtype == bool
        sure = margin[i] > MARGIN
        np.testing.assert_array_equal(compiled[f"done_{i}"].astype(bool)[sure], done[sure])
        for name, array in state._asdict().items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(compiled[f"{name}_{i}"], array)


def test_compiled_thresholds_of_zero_and_one_never_fire():
    """Certain answers: entropy is 0, not below it, in whatever way a kernel computes exp and log."""
    logits = np.array([[80, -80, 0], [30, 0, 0], [9, -9, 8.9], [1e4, 0, -1e4]], np.float32)
    for policy, kind in ((Entropy(threshold=0.0), Entropy), (Confidence(threshold=1.0), Confidence)):
        inputs = {f"logits_{i}": logits for i in range(4)} | policy.dials(np.arange(4))
        assert not compiled_steps(kind, 4, 3)(inputs)["done_0"].any()
