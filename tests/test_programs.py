"""Programs: replayed, stepped and in-graph exits and labels are the same, whatever the network, numbers and policy.

Every network here is random and tiny, which is the hardest case: its margins are far smaller than a trained network's.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import quant.engines.onnxruntime as onnxruntime_engine
import quant.engines.openvino as openvino_engine
import quant.recipes as recipes
from models.cpu import has_bfloat16, has_int8_dot_products
from models.network import Exit, ExitsConfig
from models.ops import Array, NumpyOps, Ops
from models.policies import (
    Confidence,
    Entropy,
    Fixed,
    Imposed,
    Patience,
    PolicyConfig,
    Uncertainty,
    entropy,
    largest_probability,
    replay,
)
from quant.engine import Eager, OnnxRuntime, OpenVino, cannot_run
from quant.openvino_graph import exit_model
from quant.programs import ExitOutput, Program, SteppedProgram
from quant.recipes import Bfloat16, Float32, Int8Static, apply_recipe
from quant.segments import Embeddings, Layer, Segments, cut
from tests import tiny

LAYERS, ROWS = 3, 16
EXITS = [1, 2, 3]
BATCH_SIZES = (1, 3, 8)
RECIPES: dict[str, Any] = {r.kind: r for r in (Float32(), Bfloat16(), Int8Static(calibration_rows=8))}
ENGINES = {"graph": OpenVino(), "stepped": OpenVino(program="stepped"), "eager": Eager(), "onnx": OnnxRuntime()}
KINDS = {"graph": "graph", "stepped": "stepped", "eager": "stepped", "onnx": "graph"}
POLICIES: list[Any] = [
    Fixed(layer=2),
    Patience(patience=1, regression_threshold=1.0),
    Entropy(threshold=0.5),
    Uncertainty(speed=0.4),
    Confidence(threshold=0.7),
    Imposed(exit_layers=[1, 3, 2, 3]),
]
# A row may leave or answer otherwise than replayed only where its decision was this close to turning, and its logits
# may differ by as much as below. Programs in float32 and in INT8 (whose scales are fixed) differ in the last bits;
# bfloat16 keeps 8 bits wherever a kernel ends, and in another program kernels end elsewhere. Last bits may turn a value
# that stands between two steps of INT8, which is more than that: seldom, and seen on CPUs without VNNI.
EPSILON = {"float32": 1e-4, "bfloat16": 0.1, "int8_static": 1e-3 if has_int8_dot_products() else 1e-2}
LOGITS_TOLERANCE = {"float32": 5e-5, "bfloat16": 0.4, "int8_static": 5e-4 if has_int8_dot_products() else 1e-2}
# Between engines. INT8 kernels and their simulation, and bfloat16, round differently; without bfloat16 in the CPU,
# OpenVINO computes in float32.
BETWEEN_ENGINES = {
    "float32": 5e-5,
    "bfloat16": 0.4 if has_bfloat16() else 0.6,
    "int8_static": 0.6 if has_int8_dot_products() else 0.9,
}


class Case(NamedTuple):
    family: str
    exits: ExitsConfig
    recipe: str
    num_labels: int = 3

    @property
    def network(self) -> tiny.MultiExitNetwork:
        """The same for all recipes."""
        return network(self.family, self.exits.model_dump_json(), self.num_labels)

    @property
    def name(self) -> str:
        """For test ids."""
        head = self.exits.pooler if self.exits.head == "pooler" else self.exits.head
        parts = [self.family, head, self.exits.pooling, self.recipe]
        return "-".join([*parts, "regression"] if self.num_labels == 1 else parts)


# Shared poolers and one each, and both poolings, in every family and recipe; in BERT's float32 all four structures.
# Attention pooling in BERT's every recipe, and in INT8 of every family; attention heads likewise, on either pooling.
DIAGONAL = [ExitsConfig(pooling="first_token", pooler="shared"), ExitsConfig(pooling="mean", pooler="per_exit")]
OTHERS = [ExitsConfig(pooling="first_token", pooler="per_exit"), ExitsConfig(pooling="mean", pooler="shared")]
CASES = [Case(*which) for which in product(tiny.FAMILIES, DIAGONAL, RECIPES)]
CASES += [Case("bert", exits, "float32") for exits in OTHERS]
CASES += [Case("roberta", tiny.PABEE, "float32", num_labels=1)]
CASES += [Case("bert", tiny.QUERIES, recipe) for recipe in RECIPES]
CASES += [Case("roberta", tiny.QUERIES, "int8_static"), Case("albert", tiny.QUERIES, "int8_static")]
ATTENTION = [tiny.FASTBERT, tiny.FASTBERT.model_copy(update={"pooling": "mean"})]
CASES += [Case("bert", ATTENTION[i % 2], recipe) for i, recipe in enumerate(RECIPES)]
CASES += [Case("roberta", ATTENTION[1], "int8_static"), Case("albert", ATTENTION[0], "int8_static")]


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Export a module once: it takes a second, and the structures of a family share their embeddings and layers."""
    answers: dict[int, tuple[Any, Any]] = {}

    def once(*arguments: Any) -> Any:
        shared: Any = next(argument for argument in arguments if isinstance(argument, nn.Module))
        match shared:
            case Layer():
                shared = shared.layer
            case Embeddings():
                shared = shared.network.backbone
            case Exit():
                shared = shared.classifier
        if id(shared) not in answers:
            answers[id(shared)] = shared, function(*arguments)  # held, so that no other object gets its id
        return answers[id(shared)][1]

    return once


@pytest.fixture(scope="module", autouse=True)
def _export_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "_quantize", remembered(recipes._quantize))
        patch.setattr(openvino_engine, "_convert", remembered(openvino_engine._convert))
        patch.setattr(onnxruntime_engine, "_convert", remembered(onnxruntime_engine._convert))
        yield


@cache
def body(family: str) -> PreTrainedModel:
    """A backbone for all networks of a family. Exports take most of the time here, so some layers come twice."""
    made: Any = tiny.backbone(family, num_layers=LAYERS)
    if family != "albert":
        first, second, _ = made.encoder.layer
        made.encoder.layer = nn.ModuleList([first, second, first] if family == "bert" else [first] * LAYERS)
    return made


@cache
def network(family: str, exits: str, num_labels: int) -> tiny.MultiExitNetwork:
    """Two different exits, the first of them once more at the end."""
    made = tiny.with_exits(body(family), ExitsConfig.model_validate_json(exits), num_labels)
    for parts in (made.poolers, made.classifiers, made.queries, made.heads):
        if len(parts) == LAYERS:
            parts[-1] = parts[0]
    return made


class Bench:
    """One network in one recipe, opened by every engine, and the rows to run it on."""

    def __init__(self, case: Case):
        self.case, self.rows = case, tiny.encoded(ROWS, seed=3)
        calibration = tiny.batches(tiny.encoded(8, seed=4), 1, case.family)
        self.segments = apply_recipe(RECIPES[case.recipe], case.network, calibration)
        self.engines = [name for name in ENGINES if not cannot_run(case.recipe, ENGINES[name], with_exits=True)]
        self.sessions: dict[str, Any] = {name: ENGINES[name].open(self._segments_for(name), 1) for name in self.engines}
        self.sessions["trimmed"] = copy.copy(self.sessions["graph"])
        self.sessions["trimmed"].program = "trimmed"
        self.programs: dict[Any, Program] = {}
        self.recordings: dict[str, np.ndarray] = {}

    def _segments_for(self, engine: str) -> Segments:
        """Eager casts the modules it is given to bfloat16, so it gets its own."""
        alone = engine == "eager" and self.case.recipe == "bfloat16"
        return copy.deepcopy(self.segments) if alone else self.segments

    @property
    def policies(self) -> list[Any]:
        return [p for p in POLICIES if self.case.num_labels > 1 or not p.classification_only]

    def program(self, engine: str, policy: Any, exits: list[int]) -> Program:
        """Built once for a policy kind: dials are not compiled. Stepped programs compile no policy, only segments."""
        key = engine, type(policy) if engine in ("graph", "trimmed", "onnx") else None, tuple(exits)
        if key not in self.programs:
            self.programs[key] = self.sessions[engine].with_exits(policy, exits)
        program: Any = self.programs[key]
        if isinstance(program, SteppedProgram) and type(program.policy) is not type(policy):
            return SteppedProgram(program.steps, policy, exits, program.precision, program.size_bytes)
        return program

    def recorded(self, engine: str) -> np.ndarray:
        """Logits of all exits, [L, N, C], recorded row by row."""
        if engine not in self.recordings:
            recorder = self.sessions[engine].recorder(EXITS)
            self.recordings[engine] = np.concatenate([recorder(row) for row in self.batches(1)], axis=1)
        return self.recordings[engine]

    def batches(self, size: int) -> list[dict[str, np.ndarray]]:
        return tiny.batches(self.rows, size, self.case.family)

    def run(self, engine: str, policy: Any, size: int, exits: list[int] = EXITS) -> ExitOutput:
        """All rows, in batches of `size`."""
        program = self.program(engine, policy, exits)
        starts = range(0, ROWS, size)
        outputs = [
            program.run(inputs, policy.dials(np.arange(start, min(start + size, ROWS))))
            for start, inputs in zip(starts, self.batches(size), strict=True)
        ]
        return ExitOutput(*(np.concatenate(arrays) for arrays in zip(*outputs, strict=True)))


def labels(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(-1)


def differing(bench: Bench, engine: str, policy: Any, size: int, exits: list[int] = EXITS) -> np.ndarray:
    """Which rows leave or answer otherwise than replayed, after checking that all others answer the same numbers."""
    live = bench.run(engine, policy, size, exits)
    expected = replay(policy, bench.recorded(engine)[[layer - 1 for layer in exits]], exits)
    assert live.exit_layer.dtype == np.int64
    assert live.logits.dtype == np.float32
    assert live.logits.shape == expected.logits.shape
    differ = (live.exit_layer != expected.exit_layer) | (labels(live.logits) != labels(expected.logits))
    epsilon = EPSILON[bench.case.recipe]
    assert (expected.margin[differ] < epsilon).all(), (engine, policy, size, expected.margin[differ])
    moved = LOGITS_TOLERANCE[bench.case.recipe]
    np.testing.assert_allclose(live.logits[~differ], expected.logits[~differ], atol=moved, rtol=0)
    return differ


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


COMPARED: Counter[str] = Counter()
DIFFERING: Counter[str] = Counter()
LEFT: Counter[int] = Counter()


def test_replayed_stepped_and_in_graph_agree(bench: Bench):
    """Each engine's live runs against its own recording at batch 1; both OpenVINO programs share one recording."""
    for engine, policy, size in product(bench.engines, bench.policies, BATCH_SIZES):
        DIFFERING[bench.case.recipe] += int(differing(bench, engine, policy, size).sum())
        COMPARED[bench.case.recipe] += ROWS
    for policy in bench.policies:
        LEFT.update(replay(policy, bench.recorded("graph"), EXITS).exit_layer.tolist())


def test_batches_of_every_size_and_length_one_after_another(bench: Bench):
    """One compiled graph, told where each row leaves: no call may be touched by the shapes of those before it."""
    random = np.random.default_rng(0)
    told = Imposed(exit_layers=EXITS)
    program = bench.program("graph", told, EXITS)
    for _ in range(40):
        chosen = random.choice(ROWS, size=random.integers(1, 9), replace=False)
        rows = random.integers(0, LAYERS, len(chosen))
        live = program.run(tiny.batch(bench.rows, chosen, bench.case.family), told.dials(rows))
        np.testing.assert_array_equal(live.exit_layer, rows + 1)
        expected = bench.recorded("graph")[rows, chosen]
        np.testing.assert_allclose(live.logits, expected, atol=LOGITS_TOLERANCE[bench.case.recipe], rtol=0)


def test_engines_agree_with_each_other(bench: Bench):
    """float32 to the last bits."""
    bound = BETWEEN_ENGINES[bench.case.recipe]
    np.testing.assert_allclose(bench.recorded("eager"), bench.recorded("graph"), atol=bound, rtol=0)
    if bench.case.recipe == "float32":
        inputs = tiny.batch(bench.rows, range(ROWS), bench.case.family)
        expected = tiny.all_logits(bench.case.network, inputs)
        for engine in ("graph", "onnx"):
            np.testing.assert_allclose(expected, bench.recorded(engine), atol=5e-5, rtol=0)


def test_without_exits(bench: Bench):
    """The network truncated at a layer answers what that layer's exit does."""
    for engine, layer in product(bench.engines, [2, 3] if bench.case.recipe == "float32" else [3]):
        program = bench.sessions[engine].without_exits(layer)
        assert program.kind == "single"
        for size in (1, 8):
            outputs = [program.run(inputs, {}) for inputs in bench.batches(size)]
            logits = np.concatenate([output.logits for output in outputs])
            expected, moved = bench.recorded(engine)[layer - 1], LOGITS_TOLERANCE[bench.case.recipe]
            np.testing.assert_allclose(logits, expected, atol=moved, rtol=0)
            assert all((output.exit_layer == layer).all() for output in outputs)


def test_what_programs_say_of_themselves(bench: Bench):
    names = {"float32": "float32", "bfloat16": "bfloat16", "int8_static": "int8+float32"}
    policy = bench.policies[1]
    programs = {engine: bench.program(engine, policy, EXITS) for engine in bench.engines}
    assert {engine: program.kind for engine, program in programs.items()} == {
        name: KINDS[name] for name in bench.engines
    }
    for engine, program in programs.items():
        # Without bfloat16 in the CPU, OpenVINO computes in float32, and says so.
        turned = bench.case.recipe == "bfloat16" and engine != "eager" and not has_bfloat16()
        assert program.precision == ("float32" if turned else names[bench.case.recipe])
    for engine in {"graph", "onnx"} & programs.keys():
        assert (programs[engine].size_bytes or 0) > 10_000


def test_fewer_layers_and_exits_are_smaller():
    """Each by what is left out: the embeddings stand in all of them."""
    network = tiny.network("bert", tiny.DEEBERT)

    def parameters(module: nn.Module) -> int:
        return 4 * sum(parameter.numel() for parameter in module.parameters())

    session = ENGINES["eager"].open(cut(network), 1)
    whole, two = (session.without_exits(layer).size_bytes or 0 for layer in (4, 2))
    assert whole - two == 2 * parameters(network.layers[0])
    both, last = (session.with_exits(Fixed(), exits).size_bytes or 0 for exits in ([2, 4], [4]))
    assert (both - last, last) == (parameters(network.exits[1]), whole)
    assert whole + 3 * parameters(network.exits[0]) == parameters(network)


def test_enough_was_compared_and_next_to_nothing_differs():
    """Closes the tests above (it passes over what was not run): rows left everywhere, and few stand near a margin."""
    if set(COMPARED) != set(RECIPES):
        return
    print({recipe: f"{DIFFERING[recipe]} of {COMPARED[recipe]}" for recipe in RECIPES}, dict(LEFT))
    assert set(LEFT) == set(EXITS)
    assert min(LEFT.values()) > 0.15 * sum(LEFT.values())
    assert DIFFERING["float32"] <= 0.001 * COMPARED["float32"]
    assert DIFFERING["int8_static"] <= 0.001 * COMPARED["int8_static"]
    assert DIFFERING["bfloat16"] <= 0.02 * COMPARED["bfloat16"]


# --- one network in detail --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Bench:
    return Bench(Case("bert", tiny.PABEE, "float32"))


engines = pytest.mark.parametrize("engine", ENGINES)


@engines
@pytest.mark.parametrize("exits", [[1, 3], [2, 3], [1, 2], [3], [1]], ids=str)
def test_some_exits_kept(bert: Bench, engine: str, exits: list[int]):
    for policy in (Patience(patience=1), Entropy(threshold=0.5)):
        for size in (1, 8):
            assert not differing(bert, engine, policy, size, exits).any()


@engines
def test_recorders_answer_for_the_exits_they_are_asked(bert: Bench, engine: str):
    inputs = tiny.batch(bert.rows, range(ROWS), "bert")
    for exits in ([1, 3], [2]):
        logits = bert.sessions[engine].recorder(exits)(inputs)
        np.testing.assert_allclose(logits, bert.recorded(engine)[[layer - 1 for layer in exits]], atol=5e-5, rtol=0)


@engines
def test_dials_turn_without_compiling(bert: Bench, engine: str):
    """One program, built once: from nobody leaving early to everybody."""
    for dials in (
        [Entropy(threshold=t) for t in (0.0, 0.2, 0.8, 5.0)],
        [Confidence(threshold=t) for t in (1.0, 0.9, 0.5, 0.0)],
        [Patience(patience=p) for p in (0, 1, 2, 3)],
        [Fixed(layer=k) for k in (None, 1, 2, 3)],
    ):
        program, recorded = bert.sessions[engine].with_exits(dials[0], EXITS), bert.recorded(engine)
        inputs = tiny.batch(bert.rows, range(ROWS), "bert")
        for policy in dials:
            output, expected = program.run(inputs, policy.dials(np.arange(ROWS))), replay(policy, recorded, EXITS)
            np.testing.assert_array_equal(output.exit_layer, expected.exit_layer)
            np.testing.assert_allclose(output.logits, expected.logits, atol=5e-5, rtol=0)


@engines
@pytest.mark.parametrize("where", [[1], [2], [3], [1, 3], [3, 1], [2, 3, 1, 1, 3, 2, 1]], ids=str)
def test_who_leaves_does_not_matter_to_who_stays(bert: Bench, engine: str, where: list[int]):
    """All rows, no rows and any mixture leave; answers come back in the order of the rows."""
    inputs = tiny.batch(bert.rows, range(ROWS), "bert")
    policy = Imposed(exit_layers=where)
    output = bert.program(engine, policy, EXITS).run(inputs, policy.dials(np.arange(ROWS)))
    expected = np.resize(where, ROWS)
    np.testing.assert_array_equal(output.exit_layer, expected)
    logits = bert.recorded(engine)[expected - 1, np.arange(ROWS)]
    np.testing.assert_allclose(output.logits, logits, atol=5e-5, rtol=0)


@engines
def test_order_and_padding_do_not_matter(bert: Bench, engine: str):
    order = np.random.default_rng(0).permutation(ROWS)
    policy = Entropy(threshold=0.5)
    shuffled = bert.program(engine, policy, EXITS).run(
        tiny.collate(bert.rows, order, tiny.PAD["bert"], "max_length", tiny.LONGEST), policy.dials(order)
    )
    expected = bert.run(engine, policy, 1)
    np.testing.assert_array_equal(shuffled.exit_layer, expected.exit_layer[order])
    np.testing.assert_allclose(shuffled.logits, expected.logits[order], atol=5e-5, rtol=0)


@engines
def test_programs_remember_nothing(bert: Bench, engine: str):
    """A run changes neither the next answer nor the arrays of the last one, nor its inputs."""
    policy = Patience(patience=1)
    program, dials = bert.program(engine, policy, EXITS), policy.dials(np.arange(8))
    one, other = bert.batches(8)[:2]
    before = {name: array.copy() for name, array in one.items()}
    first = program.run(one, dials)
    kept = ExitOutput(first.logits.copy(), first.exit_layer.copy())
    program.run(other, dials)
    again = program.run(one, dials)
    for arrays in zip(first, kept, again, strict=True):
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[2], arrays[1])
    for name, array in one.items():
        np.testing.assert_array_equal(array, before[name])


def test_the_saved_graph_runs_without_us(bert: Bench, tmp_path: Path):
    """One IR file, read by a plain OpenVINO runtime: integer inputs and dials by name, any batch and length."""
    session: Any = bert.sessions["graph"]
    policy = Entropy(threshold=0.5)
    ov.save_model(exit_model(session.segments, policy, EXITS), tmp_path / "program.xml", compress_to_fp16=False)
    model = ov.Core().read_model(tmp_path / "program.xml")
    names = {name for port in model.inputs for name in port.names}
    assert names == {"input_ids", "attention_mask", "token_type_ids", "threshold"}
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 8):
        outputs = [compiled(inputs | {"threshold": np.float32(0.5)}) for inputs in bert.batches(size)]
        exit_layer = np.concatenate([output["exit_layer"] for output in outputs])
        np.testing.assert_array_equal(exit_layer, bert.run("graph", policy, size).exit_layer)
        assert outputs[0]["logits"].shape == (size, 3)


@pytest.mark.parametrize("engine", ["graph", "stepped"])
def test_policies_are_float32_in_a_bfloat16_network(engine: str):
    """What a row answered on its way out is itself the proof that the rule let it go."""
    bench = Bench(Case("bert", DIAGONAL[0], "bfloat16"))
    for threshold in (0.1, 0.3, 0.5, 0.7):
        for policy, value in ((Entropy(threshold=threshold), entropy), (Confidence(threshold=1 - threshold), None)):
            output = bench.run(engine, policy, 8)
            early = output.exit_layer < LAYERS
            value = entropy(NumpyOps(), output.logits) if value else -largest_probability(NumpyOps(), output.logits)
            bound = threshold if isinstance(policy, Entropy) else threshold - 1
            assert early.any()
            assert (value[early] < bound + 1e-5).all()


def test_trimming_changes_no_answer(bench: Bench):
    policy = Patience(patience=1, regression_threshold=1.0)
    bench.recordings["trimmed"] = bench.recorded("graph")
    for size in BATCH_SIZES:
        differing(bench, "trimmed", policy, size)
    segments: Any = bench.sessions["graph"].segments
    plain, trimmed = (exit_model(segments, policy, EXITS, trim=trim).get_ops() for trim in (False, True))
    slices = [sum(op.get_type_name() == "Slice" for op in ops) for ops in (plain, trimmed)]
    assert slices[1] == slices[0] + 2  # of hidden and mask after the first exit; the others lie inside the `If`


def test_opening_eager_leaves_the_network_as_it_was():
    """A network may be opened in several recipes: the next one must find it in float32."""
    made = tiny.network("bert", num_layers=1)
    before = copy.deepcopy(made.state_dict())
    Eager().open(apply_recipe(Bfloat16(), made), threads=1)
    for name, tensor in made.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, before[name]), name


# --- a policy nobody has heard of -------------------------------------------------------------------------------------


class Momentum(PolicyConfig):
    """Leave when the running mean of the confidence passes a threshold: two states, two dials, most operations."""

    kind: Literal["momentum"] = "momentum"
    threshold: float
    decay: float = 0.5

    class State(NamedTuple):
        """Per row: the running mean, and how many exits it has seen."""

        mean: Array
        seen: Array

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"threshold": np.asarray(self.threshold, np.float32), "decay": np.asarray(self.decay, np.float32)}

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> "Momentum.State":
        return Momentum.State(mean=ops.full(rows, 0.0), seen=ops.full(rows, 0.0))

    @staticmethod
    def step(
        ops: Ops, layer: int, logits: Array, state: "Momentum.State", dials: dict[str, Array]
    ) -> tuple[Array, "Momentum.State"]:
        sure = largest_probability(ops, logits)
        mixed = ops.add(ops.mul(dials["decay"], state.mean), ops.mul(ops.sub(1.0, dials["decay"]), sure))
        mean = ops.where(ops.less(state.seen, 0.5), sure, mixed)
        return ops.less(dials["threshold"], mean), Momentum.State(mean=mean, seen=ops.add(state.seen, 1.0))


@engines
def test_a_new_policy_is_one_class(bert: Bench, engine: str):
    left: set[int] = set()
    for threshold, size in product([0.5, 0.7, 0.8], BATCH_SIZES):
        policy: Any = Momentum(threshold=threshold)
        assert not differing(bert, engine, policy, size).any()
        left |= set(bert.run(engine, policy, size).exit_layer)
    assert left == set(EXITS)
