"""Tuning: its files, the search over a table of made-up figures, and one small search for real."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.expansion import expand
from benchmarks.floors import FLOORS
from benchmarks.other_floors import at_other_floors
from benchmarks.records import TRIALS, Timing, TrialRecord, read_records, read_trials
from benchmarks.strategies import STRATEGIES, Network, Space, Tried, following, space_of
from benchmarks.suite import RunSpec, layers_of, read_suite
from benchmarks.tuner import Outcome, meets, relative, spec_of, tune
from benchmarks.tuning import Tuning, read_tuning
from benchmarks.winner import beside, best_of_each
from benchmarks.worker import WorkerError
from models.config import UserError
from models.policies import Entropy, Fixed, Patience
from quant.artefact import EarlyExitModel
from quant.engine import OnnxRuntime
from quant.export import Exported
from quant.recipes import Float32
from tests import suites
from tests.workers import ThreadWorker

ROWS, LAYERS = 60, 4
TINY: dict[str, Any] = {
    "schema": "exitbench/tuning/1",
    "model": {"name": "tiny", "task": suites.TINY["tasks"][0], "checkpoints": suites.TINY["checkpoints"]},
    "quantization": {
        "calibration": {"sampling_size": [4, 8]},
        "model_wise": {"activation": {"algorithm": ["minmax", "kl"]}},
    },
    "early_exit": {
        "policies": [
            {"kind": "patience", "patience": [1, 2]},
            {"kind": "entropy", "threshold": {"from": 0.1, "to": 0.6, "steps": 6}},
        ],
        "exits": ["all", [1, 2]],
    },
    "tuning": {"accuracy_criterion": {"absolute": 0.05}, "exit_policy": {"max_trials": 12}},
    "evaluation": {"performance": {"warmup": 2, "iteration": 6, "configs": {"cores_per_instance": 1}}},
}
ON_ONNXRUNTIME = {
    "model": TINY["model"] | {"framework": "onnxruntime"},
    "quantization": {"approach": "post_training_dynamic_quant", "calibration": None, "model_wise": {}},
}
# Static INT8 on OpenVINO, dynamic on both engines.
EVERY_ROUTE = {
    "model": TINY["model"] | {"framework": ["openvino", "onnxruntime"]},
    "quantization": TINY["quantization"]
    | {"approach": ["post_training_static_quant", "post_training_dynamic_quant"]}
    | {"op_wise": {"exit_*": {"dtype": ["int8", "fp32"]}, "layer_1": {"dtype": ["int8", "fp32"]}}},
}


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


def write(folder: Path, **changes: Any) -> Path:
    """A tuning file with some sections of TINY updated."""
    content = {
        name: section | changes.get(name, {}) if isinstance(section, dict) else section
        for name, section in TINY.items()
    }
    path = folder / "tuning.yaml"
    path.write_text(yaml.safe_dump(content | {k: v for k, v in changes.items() if k not in TINY}))
    return path


def parse(**changes: Any) -> Tuning:
    with TemporaryDirectory() as folder:
        return read_tuning(write(Path(folder), **changes))


# Files


def test_a_file_says_what_is_searched():
    tuning = parse(quantization={"model_wise": {"rest": ["bfloat16", "float32"], "observer": "kl"}})
    assert tuning.quantization.axes() == {
        "calibration_rows": [4, 8],
        "rest": ["bfloat16", "float32"],
        "observer": ["kl"],
    }
    assert [dials[0].kind for dials in tuning.early_exit.by_kind()] == ["patience", "entropy"]
    assert tuning.early_exit.by_kind()[1] == [Entropy(threshold=t) for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    assert tuning.metric == "accuracy"
    assert (tuning.shape.batch_size, tuning.shape.thread_count) == (1, 1)


def test_criterion_is_a_distance_from_the_reference():
    assert parse().tuning.accuracy_criterion.floor(0.9) == pytest.approx(0.85)
    relative_ = parse(tuning={"accuracy_criterion": {"relative": 0.1}}).tuning.accuracy_criterion
    assert relative_.floor(0.5) == pytest.approx(0.45)
    assert relative_.floor(-0.5) == pytest.approx(-0.55)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"tuning": {"accuracy_criterion": {"relative": 0.01, "absolute": 0.01}}},
        "give relative or absolute, and not both",
    ),
    ({"tuning": {"accuracy_criterion": {"higher_is_better": False, "relative": 0.1}}}, "should be True, found False"),
    (
        {"tuning": {"strategy": {"name": "bayesain"}}},
        "tuning.strategy.name: input should be 'basic', 'mse', 'bayesian', 'random'",
    ),
    ({"tuning": {"strategy": {"name": "bayesain"}}}, "did you mean 'bayesian'?"),
    ({"tuning": {"strategy": {"name": "mse_v2"}}}, "found 'mse_v2'"),
    (
        {"tuning": {"objective": "accuracy"}},
        "tuning.objective: input should be 'performance', 'p99', 'footprint' or 'modelsize'",
    ),
    (
        {"tuning": {"objective": "p99", "multi_objectives": {"objective": ["p99"]}}},
        "give objective or multi_objectives, and not both",
    ),
    ({"tuning": {"multi_objectives": {"objective": ["p99"], "weight": [1.0, 2.0]}}}, "one for each objective"),
    (
        {"model": TINY["model"] | {"framework": "onnxruntime"}},
        "model.framework: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    (
        {"model": TINY["model"] | {"framework": ["openvino", "onnxruntime"]}},
        "model.framework: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    (
        ON_ONNXRUNTIME | {"quantization": {"approach": list(EVERY_ROUTE["quantization"]["approach"])}},
        "quantization.approach: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    ({"model": TINY["model"] | {"framework": ["openvino", "tensorrt"]}}, "found 'tensorrt'"),
    (
        EVERY_ROUTE | {"quantization": {"approach": ["post_training_dynamic_quant"], "model_wise": {"observer": "kl"}}},
        "int8_dynamic: top level: unknown key 'calibration_rows'",
    ),
    ({"tuning": {"exit_policy": {"max_trails": 3}}}, "unknown key 'max_trails'; allowed: timeout, max_trials"),
    ({"tuning": {"exit_policy": {"max_trials": 0}}}, "tuning.exit_policy.max_trials: input should be greater"),
    ({"device": "gpu"}, "device: input should be 'cpu', found 'gpu'"),
    ({"quantization": {"approach": "quant_aware_training"}}, "found 'quant_aware_training'"),
    ({"quantization": {"calibration": {"sampling_size": [0]}}}, "sampling_size.0: input should be greater"),
    (
        {"quantization": {"model_wise": {"activation": {"algorithm": "kll"}}}},
        "observer: input should be 'minmax' or 'kl'",
    ),
    ({"quantization": {"model_wise": {"activation": {"algo": "kl"}}}}, "unknown option 'activation.algo'"),
    ({"quantization": {"model_wise": {"observers": "kl"}}}, "unknown key 'observers'"),
    ({"quantization": {"op_wise": {"layer_1": {"dtype": "fp16"}}}}, "input should be 'int8' or 'fp32', found 'fp16'"),
    ({"evaluation": {"accuracy": {"metric": "f1"}}}, "evaluation.accuracy: unknown metric 'f1'; allowed: accuracy"),
    (
        {"evaluation": {"performance": {"configs": {"num_of_instance": 0}}}},
        "num_of_instance: input should be greater than or equal to 1, found 0",
    ),
    ({"early_exit": {"exits": ["none"]}}, "are what truncated: true tries"),
    ({"early_exit": {"policies": [{"kind": "fixed", "layer": 2}]}}, "are what truncated: true tries"),
    ({"early_exit": {"policies": [], "truncated": False}}, "give policies:, or truncated: true"),
    (
        {
            "early_exit": {
                "policies": [{"kind": "patience", "patience": [1, 2]}, {"kind": "entropy", "threshold": "low"}]
            }
        },
        "early_exit.policies.1.threshold: input should be a valid number, found 'low'",
    ),
    (
        {"early_exit": {"policies": [{"kind": "entropy", "threshold": {"from": 0, "to": "x", "steps": 3}}]}},
        "found {'from'",
    ),
    ({"early_exit": {"exits": [[1, 3]]}}, "exits [1, 3] must ascend within 1..2"),
    ({"notes": "x"}, "unknown key 'notes'; allowed: schema, model"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_mistakes_are_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], searched: Path
):
    path = tmp_path / "tuning.yaml"
    content = yaml.safe_load(write(tmp_path).read_text())
    for section, update in changes.items():
        content[section] = content.get(section, {}) | update if isinstance(update, dict) else update
    path.write_text(yaml.safe_dump(content))
    command = ["tune", str(path), "--output", str(tmp_path / "o"), "--checkpoints", str(searched / "checkpoints")]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err


def test_missing_file_names_those_that_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["tune", "yaml_configs/tuning/defualt.yaml", "--output", str(tmp_path)]) == 2
    assert "did you mean 'yaml_configs/tuning/default.yaml'?" in capsys.readouterr().err


# The search, over made-up figures


class Table:
    """A `Bench` whose figures depend on nothing but what is asked for; it can be killed at any call.

    Deeper exits are right more often, and earlier ones take less time.
    """

    def __init__(self, killed_at: int | None = None, noise: float = 0.3):
        self.killed_at, self.noise, self.calls = killed_at, noise, 0
        self.timed: list[str] = []
        self.labels = np.random.default_rng(1).integers(2, size=ROWS)

    def _count(self) -> None:
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.calls += 1

    def record(self, run: RunSpec) -> np.ndarray:
        self._count()
        draw = np.random.default_rng(crc32(f"{run.checkpoint}{run.recipe}".encode()))
        right = np.where(self.labels, 1.0, -1.0)
        logit = np.stack([right * depth + draw.normal(0, 2.0, ROWS) for depth in range(1, LAYERS + 1)])
        return np.stack([-logit, logit], axis=-1).astype(np.float32)

    def time(self, run: RunSpec) -> Timing:
        self._count()
        self.timed.append(run.case)
        factor = 1 + self.noise * (crc32(run.case.encode()) % 1000) / 1000
        seconds = factor * run.exits[-1] / LAYERS
        return Timing(seconds=[seconds] * 3, anchor_seconds=[1.0] * 3, size_bytes=1000, anchor_size_bytes=1000)


def test_options_count_where_the_recipe_has_them():
    """Three routes; calibration, observer and fall-backs are nothing to the two that quantize dynamically."""
    tuning = parse(**EVERY_ROUTE)
    routes = [(route.approach.split("_")[2], route.engine.kind) for route in tuning.routes]
    assert routes == [("static", "openvino"), ("dynamic", "openvino"), ("dynamic", "onnxruntime")]
    *_, alone = parse(**EVERY_ROUTE | {"evaluation": {"performance": {"dataloader": {"batch_size": 4}}}}).routes
    assert (tuning.routes[2].engine, alone.engine) == (OnnxRuntime(), OnnxRuntime(program="rows"))
    space = table_space(tuning)
    assert space.shape == (7, 3, 2, 2, 2, 2)
    points = {space.settled(choice) for choice in itertools.product(*map(range, space.shape))}
    assert space.size == len(points) == 7 * (16 + 1 + 1)
    cases = {run.case for choice in points for run in space.candidates(choice)}
    assert len(cases) == sum(len(space.candidates(choice)) for choice in points)  # no point repeats another
    assert space.recipe((0, 2, 1, 1, 1, 1)).model_dump() == {"kind": "int8_dynamic"}
    assert space.recipe((0, 0, 1, 1, 1, 0)).model_dump(include={"calibration_rows", "observer", "fallback"}) == {
        "calibration_rows": 8,
        "observer": "kl",
        "fallback": ["exit_*"],
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_comes_to_every_route(name: str, tmp_path: Path):
    """Networks without exits first, by every route; each trial is a point of its own, and says what ran it."""
    bench = Table()
    stop = {"strategy": {"name": name}, "exit_policy": {"max_trials": 1000}}
    few = EVERY_ROUTE | {"quantization": EVERY_ROUTE["quantization"] | {"model_wise": {}}}
    space = table_space(parse(**few, tuning=TINY["tuning"] | stop))
    outcome = tune(space, bench, bench.labels, "identity", tmp_path, say=lambda line: None)
    choices = [tuple(trial.choice) for trial in outcome.trials]
    if name != "exhaustive":
        assert choices[:3] == [(0, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 2, 0, 0, 0)]
    assert len(set(choices)) == len(choices)
    assert [space.settled(choice) for choice in choices] == choices
    if name not in ("basic", "mse"):  # these try fall-backs at the best point alone
        assert len(choices) == space.size
    assert {(trial.recipe["kind"], trial.engine["kind"]) for trial in outcome.trials} == {
        ("int8_static", "openvino"),
        ("int8_dynamic", "openvino"),
        ("int8_dynamic", "onnxruntime"),
    }
    for trial in outcome.trials:
        assert spec_of(outcome.tuning, trial).case == trial.case
    early = {run.engine.kind for run in best_of_each(outcome)}
    assert early == {"openvino", "onnxruntime"}


@pytest.mark.parametrize(("criterion", "warned"), [({"relative": 0.01}, False), ({"relative": 0.5}, True)])
def test_a_criterion_that_one_class_for_every_row_keeps_is_warned_of(
    tmp_path: Path, criterion: dict[str, float], warned: bool
):
    space = table_space(parse(tuning=TINY["tuning"] | {"accuracy_criterion": criterion}))
    bench, said = Table(), []
    tune(space, bench, bench.labels, "identity", tmp_path, say=said.append)
    share = max(np.bincount(bench.labels)) / ROWS
    assert [f"{share:.4f}" in line for line in said if line.startswith("Warning")] == [True] * warned


def table_space(tuning: Tuning) -> Space:
    policies = [Patience(patience=1), Patience(patience=2)], [Entropy(threshold=t) for t in (0.05, 0.2, 0.4)]
    exits = (1, 2, 3, 4), (2, 4), (3, 4)
    leaving = [Network("ck", kept, tuple(dials)) for kept in exits for dials in policies]
    return Space(tuning, [Network("ck", (1, 2, 3, 4)), *leaving], {"ck": LAYERS})


def search(folder: Path, bench: Table, **tuning: Any) -> Outcome:
    space = table_space(parse(tuning=TINY["tuning"] | tuning))
    return tune(space, bench, bench.labels, "identity", folder, say=lambda line: None)


def told(outcome: Outcome) -> list[dict[str, Any]]:
    """What a search came to, but for when and how long."""
    records = [outcome.baseline, *outcome.trials, outcome.best]
    return [record.model_dump(exclude={"trial_seconds", "started_at", "environment"}) for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: search(folder / name, Table(), strategy={"name": name}) for name in STRATEGIES}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    kills=st.lists(st.integers(0, 20), max_size=3),
    torn=st.integers(0, 40),
)
def test_killed_and_resumed_is_as_undisturbed(undisturbed: dict[str, Outcome], name: str, kills: list[int], torn: int):
    with TemporaryDirectory() as folder:
        finished = 0
        for kill in kills:
            try:
                search(Path(folder), Table(kill), strategy={"name": name})
            except KeyboardInterrupt:
                found = read_trials(Path(folder))
                assert len(found) >= finished
                finished = len(found)
                if found:  # the kill may also come while a line is written
                    with (Path(folder) / TRIALS).open("ab") as file:
                        file.write(b'{"schema_version":"exitbench/trial/1","tuning":"identity"'[:torn])
        outcome = search(Path(folder), Table(), strategy={"name": name})
        assert told(outcome) == told(undisturbed[name])
        assert [trial.number for trial in read_trials(Path(folder))] == list(range(len(outcome.trials) + 1))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_trial_is_repeated_and_the_floor_is_met(undisturbed: dict[str, Outcome], name: str):
    outcome = undisturbed[name]
    assert len({tuple(trial.choice) for trial in outcome.trials}) == len(outcome.trials) == 12
    assert outcome.trials[0].choice == [0, 0, 0, 0]
    assert outcome.passed
    assert outcome.baseline.score is not None
    for trial in outcome.trials:
        kept = trial.score is not None and trial.score >= outcome.baseline.score - 0.05
        assert (trial.timing is not None) == kept == meets(outcome.tuning, outcome.baseline, trial)
    within = [trial.timing for trial in outcome.trials if trial.timing is not None]
    assert outcome.best.timing is not None
    assert relative(outcome.tuning, outcome.best.timing) == min(relative(outcome.tuning, timing) for timing in within)


def test_exhaustive_finds_the_best_of_the_grid(tmp_path: Path):
    """Every point and every dial by brute force, timed or not."""
    bench = Table(noise=0.0)
    outcome = search(tmp_path, bench, strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    space = table_space(outcome.tuning)
    points = list(itertools.product(*map(range, space.shape)))
    assert [tuple(trial.choice) for trial in outcome.trials] == points
    for trial in outcome.trials:
        scores = []
        for run in space.candidates(tuple(trial.choice)):
            logits = bench.record(run)
            answer = runner.replay_run(run, logits, range(1, len(logits) + 1))
            score = float(np.mean(answer.logits.argmax(-1) == bench.labels))
            if meets(outcome.tuning, outcome.baseline, trial.model_copy(update={"score": score})):
                scores.append((answer.exit_layer.mean(), -score, run.case))
        if scores:
            assert trial.case == min(scores)[2]
        else:
            assert trial.timing is None


def test_the_best_at_other_floors(tmp_path: Path):
    """By brute force over all that can be had in the winner's recipe."""
    bench = Table(noise=0.0)
    outcome = search(tmp_path, bench, strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    space = table_space(outcome.tuning)
    found = []
    for network in range(len(space.networks)):
        for run in space.candidates((network, *outcome.best.choice[1:])):
            logits = bench.record(run)
            answer = runner.replay_run(run, logits, range(1, len(logits) + 1))
            score = float(np.mean(answer.logits.argmax(-1) == bench.labels))
            found.append((answer.exit_layer.mean(), len(run.exits), -score, run))
    assert outcome.baseline.score is not None
    expected = []
    for share in FLOORS:
        within = [one for one in found if -one[2] >= outcome.baseline.score * (1 - share)]
        for early in (True, False):
            rivals = [one for one in within if one[3].with_exits == early and (early or one[3].exits[-1] < LAYERS)]
            expected += [min(rivals, key=lambda one: one[:3])[3].case] if rivals else []
    given = [run.case for run in at_other_floors(space, bench, bench.labels, outcome)]
    assert given == expected
    assert len(set(given)) > 2  # other floors have other answers


def test_other_floors_hold_only_what_was_tried_with_exits(tmp_path: Path):
    bench = Table()
    outcome = search(tmp_path, bench, strategy={"name": "random"}, exit_policy={"max_trials": 4})
    space = table_space(outcome.tuning)
    recipe, engine = outcome.best.recipe, outcome.best.engine
    tried = {tuple(trial.exits) for trial in outcome.trials if (trial.recipe, trial.engine) == (recipe, engine)}
    runs = at_other_floors(space, bench, bench.labels, outcome)
    assert {run.exits for run in runs if run.with_exits} <= tried
    assert {(run.recipe.model_dump(), run.engine.model_dump()) == (recipe, engine) for run in runs} == {True}


def test_what_cannot_be_recorded_at_another_floor_is_no_rival(tmp_path: Path):
    """The search is over by then, and its winner stands."""
    outcome = search(tmp_path, Table(), strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})

    class Broken(Table):
        def record(self, run: RunSpec) -> np.ndarray:
            if not run.with_exits:
                raise WorkerError("no memory")
            return super().record(run)

    runs = at_other_floors(table_space(outcome.tuning), Broken(), Table().labels, outcome)
    assert {run.with_exits for run in runs} == {True}


def test_what_the_winner_is_measured_beside(tmp_path: Path):
    peers = [{"recipe": "int8_native", "engine": "onnxruntime"}]
    tuning = parse(
        evaluation={"peers": peers},
        tuning=TINY["tuning"] | {"exit_policy": {"max_trials": 1000}, "strategy": {"name": "exhaustive"}},
    )
    networks = [
        network._replace(checkpoint=name) for name in ("ck", "other") for network in table_space(tuning).networks
    ]
    space = Space(tuning, networks, {"ck": LAYERS, "other": LAYERS})
    bench = Table()
    outcome = tune(space, bench, bench.labels, "identity", tmp_path, say=lambda line: None)
    winner = spec_of(tuning, outcome.best)
    fewer = space.without_exits("other", winner.recipe, winner.engine, layers=2)
    deeper = replace(fewer, exits=(3,), policy=Fixed(layer=3))
    runs = {run.case: run for run in beside(space, outcome, winner, [fewer, deeper])}
    best = {
        name: min(
            (relative(tuning, trial.timing), trial.case)
            for trial in outcome.trials
            if trial.checkpoint == name and trial.with_exits and trial.timing is not None
        )[1]
        for name in ("ck", "other")
    }
    assert {case for case, run in runs.items() if run.with_exits} == set(best.values())
    without = [
        (run.checkpoint, run.recipe.kind, run.engine.kind, run.exits) for run in runs.values() if not run.with_exits
    ]
    own, ours = winner.checkpoint, ("int8_static", "openvino")
    assert {(own, *ours, (LAYERS,)), ("other", *ours, (2,)), ("other", *ours, (3,))} <= set(without)
    assert {(own, "int8_native", "onnxruntime", (LAYERS,)), ("other", "int8_native", "onnxruntime", (2,))} <= set(
        without
    )
    assert outcome.baseline.case in runs
    assert space.anchor.case in runs


def test_random_search_comes_to_an_end(tmp_path: Path):
    outcome = search(tmp_path, Table(), strategy={"name": "random"}, exit_policy={"max_trials": 1000})
    space = table_space(outcome.tuning)
    assert len(outcome.trials) == np.prod(space.shape)


def test_seed_decides_the_search(tmp_path: Path):
    def choices(seed: int, name: str) -> list[list[int]]:
        return [
            trial.choice
            for trial in search(tmp_path / f"{name}{seed}", Table(), strategy={"name": name}, random_seed=seed).trials
        ]

    for name in ("random", "bayesian"):
        assert choices(1, name) != choices(2, name)


def switches() -> Space:
    """Two networks and three patterns that may fall back: axes 2, 3 and 4."""
    patterns = {name: {"dtype": ["int8", "fp32"]} for name in "abc"}
    tuning = parse(quantization={"calibration": None, "model_wise": {}, "op_wise": patterns})
    return Space(tuning, [Network("ck", (4,)), Network("ck", (1, 2), (Patience(patience=1),))], {"ck": 4})


def test_basic_goes_by_lpots_order():
    """All without fall-backs, each alone at the best of these, then together: the most useful two, then all."""
    gains = {2: 0.1, 3: -0.2, 4: 0.3}
    space, tried = switches(), []
    while (choice := following(space, tried, "basic", 0)) is not None:
        value = 1.0 - 0.5 * choice[0] - sum(gains[axis] for axis in gains if choice[axis])
        tried.append(Tried(choice, value))
    assert [attempt.choice for attempt in tried] == [
        *[(0, 0, 0, 0, 0), (1, 0, 0, 0, 0)],
        *[(1, 0, 1, 0, 0), (1, 0, 0, 1, 0), (1, 0, 0, 0, 1)],
        *[(1, 0, 1, 0, 1), (1, 0, 1, 1, 1)],
    ]


@pytest.mark.parametrize("name", STRATEGIES)
def test_networks_without_exits_are_tried_first(name: str):
    early = tuple(Patience(patience=patience) for patience in (1, 2))
    networks = [
        Network("a", (2, 4), early),
        Network("a", (1, 2, 3, 4)),
        Network("b", (2,)),
        Network("b", (1, 2), early),
    ]
    tuning = parse(quantization={"calibration": {"sampling_size": [4, 8, 16]}})
    space, tried = Space(tuning, networks, {"a": 4, "b": 2}), []
    while (choice := following(space, tried, name, 3)) is not None:
        tried.append(Tried(choice, value=1.0, mse=0.0))
    assert [attempt.choice for attempt in tried[:3]] == [(network, 0, 0, 0) for network in (0, 1, 2)]
    assert len({attempt.choice for attempt in tried}) == len(tried) == prod(space.shape)


def test_mse_puts_together_what_comes_nearest_to_float32():
    """As basic, whatever the fall-backs gain; the third alone is nearest, then the second."""
    nearness = {2: 0.1, 3: 0.2, 4: 0.3}
    space, tried = switches(), []
    while (choice := following(space, tried, "mse", 0)) is not None:
        mse = 1.0 - sum(nearness[axis] for axis in nearness if choice[axis])
        tried.append(Tried(choice, 1.0 - 0.5 * choice[0], mse))
    assert [attempt.choice for attempt in tried[-2:]] == [(1, 0, 0, 1, 1), (1, 0, 1, 1, 1)]
    assert len(tried) == 7


def test_mse_is_measured_over_the_logits_of_all_exits(undisturbed: dict[str, Outcome]):
    outcome, table = undisturbed["mse"], Table()
    for trial in outcome.trials:
        run = spec_of(outcome.tuning, trial)
        plain = table.record(replace(run, recipe=Float32()))
        assert trial.mse == pytest.approx(np.mean((table.record(run) - plain) ** 2))
    assert {trial.mse for trial in undisturbed["basic"].trials} == {None}


def test_bayesian_search_learns():
    """On a plain bowl it comes nearer to the bottom than chance does, on average over seeds."""
    tuning = parse(
        quantization={"calibration": {"sampling_size": list(range(1, 16))}, "model_wise": {"seed": list(range(15))}}
    )
    space = Space(tuning, [Network("ck", (4,))], {"ck": 4})

    def found(name: str, seed: int) -> float:
        tried: list[Tried] = []
        for _ in range(45):
            choice = following(space, tried, name, seed)
            assert choice is not None
            tried.append(Tried(choice, float((choice[2] - 11) ** 2 + (choice[3] - 4) ** 2)))
        return min(attempt.value for attempt in tried)

    best = {name: np.mean([found(name, 1000 * seed) for seed in range(6)]) for name in ("bayesian", "random")}
    assert best["bayesian"] < best["random"]


def test_objectives():
    timing = Timing(
        seconds=[1.0, 1.0, 2.0],
        anchor_seconds=[2.0, 2.0, 4.0],
        size_bytes=30,
        anchor_size_bytes=40,
        footprint_bytes=20,
        anchor_footprint_bytes=80,
    )
    assert relative(parse(), timing) == 0.5
    assert relative(parse(tuning={"objective": "modelsize"}), timing) == 0.75
    assert relative(parse(tuning={"objective": "footprint"}), timing) == 0.25
    assert relative(parse(tuning={"objective": "p99"}), timing) == pytest.approx(0.5)
    both = {"objective": ["performance", "modelsize"], "weight": [3.0, 1.0]}
    assert relative(parse(tuning={"multi_objectives": both}), timing) == pytest.approx((3 * 0.5 + 0.75) / 4)


@given(st.integers(0, 1), st.integers(0, 54), st.floats(40, 1e4))
def test_a_pause_of_the_machine_counts_on_neither_side(side: int, call: int, pause: float):
    """It falls on one side alone, and would make the other look fast."""
    seconds = np.ones((2, 55)) * [[1.0], [2.0]]
    seconds[side, call] += pause
    timing = Timing(seconds=list(seconds[0]), anchor_seconds=list(seconds[1]), size_bytes=None, anchor_size_bytes=None)
    assert relative(parse(), timing) == 0.5


def test_time_out_holds_over_sessions(tmp_path: Path):
    stop = {"timeout": 1000.0, "max_trials": 12}
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Table(killed_at=6), strategy={"name": "random"}, exit_policy=stop)
    lines = (tmp_path / TRIALS).read_text().splitlines()
    spent = [TrialRecord.model_validate_json(line).model_copy(update={"trial_seconds": 400.0}) for line in lines]
    (tmp_path / TRIALS).write_text("".join(trial.model_dump_json() + "\n" for trial in spent))
    before = len(spent) - 1
    assert 1 <= before <= 2  # 400 or 800 s of 1000: it goes on
    resumed = search(tmp_path, Table(), strategy={"name": "random"}, exit_policy=stop)
    assert len(resumed.trials) == 12
    again = search(tmp_path, Table(), strategy={"name": "random"}, exit_policy={"timeout": 100.0, "max_trials": 50})
    assert len(again.trials) == 12


def test_time_out_0_stops_at_the_first_within_the_criterion(tmp_path: Path):
    outcome = search(tmp_path, Table(), exit_policy={"timeout": 0.0})
    assert [meets(outcome.tuning, outcome.baseline, trial) for trial in outcome.trials] == [
        *[False] * (len(outcome.trials) - 1),
        True,
    ]


class Hopeless(Table):
    """INT8 knows nothing."""

    def record(self, run: RunSpec) -> np.ndarray:
        logits = super().record(run)
        return logits if run.recipe.kind == "float32" else logits * np.random.default_rng(0).choice([-1, 1], (ROWS, 1))


def test_without_a_trial_within_the_criterion_the_best_score_fails(tmp_path: Path):
    bench = Hopeless()
    outcome = search(tmp_path, bench, strategy={"name": "random"})
    assert not outcome.passed
    assert len(bench.timed) == 1  # the float32 network alone
    assert outcome.best.score == max(trial.score or 0 for trial in outcome.trials)


def test_performance_only_times_what_is_below_the_criterion(tmp_path: Path):
    outcome = search(tmp_path, Hopeless(), exit_policy={"performance_only": True, "max_trials": 5})
    assert all(trial.timing is not None for trial in outcome.trials)
    assert not outcome.passed


class Broken(Table):
    """Some combinations cannot be built."""

    def time(self, run: RunSpec) -> Timing:
        if run.policy.kind == "patience":
            raise WorkerError("no such kernel")
        return super().time(run)


def test_failed_trials_are_records_and_never_win(tmp_path: Path):
    outcome = search(tmp_path, Broken(), strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    failed = [trial for trial in outcome.trials if trial.error is not None]
    assert {trial.policy["kind"] for trial in failed} == {"patience"}
    assert {trial.error for trial in failed} == {"no such kernel"}
    assert outcome.best.error is None


def test_another_tuning_in_the_folder_is_refused(tmp_path: Path):
    search(tmp_path, Table())
    with pytest.raises(UserError, match="holds 13 trials: give another --output"):
        search(tmp_path, Table(), workspace={"resume": False})
    space = table_space(parse())
    with pytest.raises(UserError, match="trials of another tuning"):
        tune(space, Table(), Table().labels, "another", tmp_path, say=lambda line: None)


# One search for real


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `checkpoints`, a finished tuning in `output`, its winner in `saved_results`, its words in `printed`."""
    folder = tmp_path_factory.mktemp("searched")
    saved = ["--output_model", str(folder / "saved_results")]
    assert run_tiny(folder, folder / "output", folder / "printed", saved) in (0, 1)
    return folder


def run_tiny(folder: Path, output: Path, printed: Path, more: Sequence[str] = ()) -> int:
    objectives = {"multi_objectives": {"objective": ["performance", "footprint"]}}
    few = TINY["tuning"] | {"strategy": {"name": "exhaustive"}, "exit_policy": {"max_trials": 6}} | objectives
    numerics = EVERY_ROUTE["quantization"] | {"calibration": {"sampling_size": 4}, "model_wise": {}, "op_wise": {}}
    path = write(folder, model=EVERY_ROUTE["model"], tuning=few, quantization=numerics)
    command = ["tune", str(path), "--checkpoints", str(folder / "checkpoints"), "--output", str(output), *more]
    with pytest.MonkeyPatch.context() as patch, printed.open("w") as file:
        patch.setattr(runner, "Worker", ThreadWorker)
        patch.setattr("sys.stdout", file)
        return main(command)


def test_exits_on_fewer_layers_compete_where_they_are_deep_enough():
    def member(name: str, layers: int, truncates: int | None) -> Any:
        network, info = SimpleNamespace(num_layers=layers), SimpleNamespace(method="romebert")
        checkpoint = SimpleNamespace(network=network)
        return SimpleNamespace(name=name, checkpoint=checkpoint, info=info, truncates=truncates)

    policies = [{"kind": "entropy", "threshold": [0.1, 0.2]}]
    tuning = parse(early_exit={"policies": policies, "exits": ["all", [1, 2], [2, 4]]})
    space = space_of(tuning, [member("four", 4, None), member("two", 2, 4)])
    leaving = [(network.checkpoint, network.exits) for network in space.networks if network.policies]
    assert leaving == [("four", (1, 2, 3, 4)), ("four", (1, 2)), ("four", (2, 4)), ("two", (1, 2))]
    assert space.whole == ["four"]  # what all is timed beside is the deeper one
    # The floor is below the best there is in float32, on however many layers.
    assert [(run.checkpoint, *run.exits) for run in space.references] == [
        *[("four", layers) for layers in (1, 2, 3, 4)],
        *[("two", layers) for layers in (1, 2)],
    ]
    whole = space_of(parse(early_exit={"policies": policies, "truncated": False}), [member("four", 4, None)])
    assert [run.exits for run in whole.references] == [(4,)]


def test_it_prints_as_lpot_does(searched: Path):
    lines = (searched / "printed").read_text().splitlines()
    assert sum(line.startswith("FP32 baseline is: [accuracy: 0.") for line in lines) == 1
    results = [line for line in lines if line.startswith("Tune ")]
    # Truncations and patience, by three routes each.
    assert [line.split(" result is: [accuracy: ")[0] for line in results] == [f"Tune {n}" for n in range(1, 7)]
    assert all(", Best tune result is: [accuracy: " in line for line in results)
    assert all("x INT8, footprint (MB): " in line for line in results if "not timed" not in line)
    verdicts = [line for line in lines if line.startswith(("PASS: accuracy on tune", "FAIL: accuracy on tune"))]
    assert len(verdicts) == 1
    assert sum(" won" in line for line in lines) == 1


def test_winner_can_be_made_again_and_served(searched: Path):
    output = searched / "output"
    trials = read_trials(output)
    tuning = read_tuning(searched / "tuning.yaml")
    outcome = Outcome(tuning, trials[0], trials[1:], _best(tuning, trials))
    winner = spec_of(tuning, outcome.best)
    suite = read_suite(output / "winner.yaml")
    cases = {run.case for run in expand(suite, suite.tasks[0], winner.checkpoint, layers_of(suite.checkpoints[0]))}
    measured = {record.case: record for record in read_records(output / "winner")}
    assert winner.case in cases
    assert winner.case in measured
    assert {record.status for record in measured.values()} == {"ok"}
    whole = [record for record in measured.values() if not record.with_exits and record.exits == [2]]
    assert {record.recipe["kind"] for record in whole} == {"float32", "int8_static", winner.recipe.kind}
    trials_of = {trial.case for trial in trials if trial.with_exits and trial.engine["kind"] == "onnxruntime"}
    assert trials_of & measured.keys()  # the best early exit on every engine, whichever won
    served = EarlyExitModel.load(searched / "saved_results").predict(["the acting was superb ."])
    assert served.exit_layer[0] in winner.exits


def _best(tuning: Tuning, trials: list[TrialRecord]) -> TrialRecord:
    timed = [(relative(tuning, trial.timing), trial) for trial in trials[1:] if trial.timing is not None]
    return min(timed, key=lambda entry: entry[0])[1]


def test_resumed_when_finished_it_tries_nothing_again(searched: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.winner.export", lambda *given, engine: Exported(1.0, 1.0, 1.0, 1000, 2000))
    monkeypatch.setattr(
        "benchmarks.bench.open_workers", lambda *given, **options: pytest.fail("nothing is left to measure")
    )
    before = (searched / "output" / TRIALS).read_bytes()
    assert run_tiny(searched, searched / "output", searched / "again") in (0, 1)
    assert (searched / "output" / TRIALS).read_bytes() == before
    was = [line.split(" was:")[0] for line in (searched / "again").read_text().splitlines() if " was:" in line]
    assert was == [f"Tune {n}" for n in range(1, 7)]
