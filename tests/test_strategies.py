"""The space of a tuning, and what each strategy tries next in it."""

import itertools
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.strategies import STRATEGIES, Network, Space, Tried, following, space_of
from benchmarks.tuner import spec_of, tune
from benchmarks.winner import best_of_each
from models.policies import Patience
from quant.engine import OnnxRuntime
from tests.tunings import EVERY_ROUTE, TINY, Table, parse, search, table_space


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


def test_mse_puts_together_what_comes_nearest_to_float32():
    """As basic, whatever the fall-backs gain; the third alone is nearest, then the second."""
    nearness = {2: 0.1, 3: 0.2, 4: 0.3}
    space, tried = switches(), []
    while (choice := following(space, tried, "mse", 0)) is not None:
        mse = 1.0 - sum(nearness[axis] for axis in nearness if choice[axis])
        tried.append(Tried(choice, 1.0 - 0.5 * choice[0], mse))
    assert [attempt.choice for attempt in tried[-2:]] == [(1, 0, 0, 1, 1), (1, 0, 1, 1, 1)]
    assert len(tried) == 7


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
