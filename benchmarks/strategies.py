"""The space of a tuning, and what to try next in it.

A point of the space names one option of each axis: a network (a checkpoint, the exits it keeps and a policy kind, or
its truncations), a route (whose numbers on whose kernels), and the recipe's options; where the route's recipe has no
such option, its axis stays at the default. Dials are no axis: replay tries all of them at every point.

A strategy is a function of the seed and of what was tried, so a resumed search goes on as if it had never stopped.
Every one begins with the first option of each axis and with all networks without exits, whole and of fewer layers, by
every route, the rivals of what it searches; and none tries a point twice.
"""

import itertools
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from benchmarks.numerics import Approach
from benchmarks.session import Member
from benchmarks.suite import RunSpec
from benchmarks.tuning import Route, Tuning
from models.config import UserError
from models.policies import Fixed, Policy
from quant.engine import Engine
from quant.programs import unfit
from quant.recipes import Float32, Recipe

NETWORK, ROUTE = "network", "route"
# Random points before the Bayesian search trusts its model, and how often it may propose a known one.
START_UP, PROPOSALS = 8, 20

Choice = tuple[int, ...]


class Network(NamedTuple):
    """How one checkpoint may be left: after the kept `exits` by `policies` (dials of one kind), or not at all.

    Without policies it is the network cut after any one of the `exits`.
    """

    checkpoint: str
    exits: tuple[int, ...]
    policies: tuple[Policy, ...] = ()


class Tried(NamedTuple):
    """A point and what came of it: lower is better.

    Attributes:
        value: the objectives, or how far from the floor.
        mse: how far its logits are from float32's; known where the strategy asks for it.
    """

    choice: Choice
    value: float
    mse: float | None = None


@dataclass(frozen=True)
class Space:
    """What a tuning may try.

    Attributes:
        networks: of every checkpoint; the first is the default.
        layers: how many each checkpoint has.
    """

    tuning: Tuning
    networks: list[Network]
    layers: dict[str, int]

    @property
    def deepest(self) -> int:
        """L of a whole network."""
        return max(self.layers.values())

    @property
    def whole(self) -> list[str]:
        """The checkpoints that have all layers."""
        return [name for name, layers in self.layers.items() if layers == self.deepest]

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The options of every axis, defaults first."""
        return {NETWORK: self.networks, ROUTE: self.tuning.routes} | self.tuning.quantization.axes()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(options) for options in self.axes.values())

    @property
    def size(self) -> int:
        """How many points there are."""
        options = [
            [len(values) for axis, values in self.axes.items() if axis not in (ROUTE, *self._idle[route.approach])]
            for route in self.axes[ROUTE]
        ]
        return sum(map(prod, options))

    def settled(self, choice: Choice) -> Choice:
        """The point that a choice comes to: what its route has no use for is at the default."""
        idle = self._idle[self.route(choice).approach]
        return tuple(0 if axis in idle else option for axis, option in zip(self.axes, choice, strict=True))

    def unknown(self, choices: Iterable[Choice], known: Container[Choice]) -> Choice | None:
        """The first choice that is a point and not known."""
        return next((choice for choice in choices if choice not in known and self.settled(choice) == choice), None)

    def route(self, choice: Choice) -> Route:
        """The route of a point."""
        return self.axes[ROUTE][choice[1]]

    @cached_property
    def _idle(self) -> dict[Approach, set[str]]:
        quantization = self.tuning.quantization
        return {approach: quantization.idle(approach) for approach in quantization.approach}

    @property
    def fallbacks(self) -> list[int]:
        """The axes on which something may fall back from INT8, by position."""
        patterns = self.tuning.quantization.op_wise
        return [i for i, (axis, options) in enumerate(self.axes.items()) if axis in patterns and len(options) > 1]

    def recipe(self, choice: Choice) -> Recipe:
        """The recipe of a point."""
        taken = {axis: options[i] for (axis, options), i in zip(self.axes.items(), choice, strict=True)}
        route = taken.pop(ROUTE)
        del taken[NETWORK]
        return self.tuning.quantization.recipe(route.approach, taken)

    @property
    def anchor(self) -> RunSpec:
        """What all trials are timed beside: the first checkpoint without exits, in the default recipe."""
        default = (0,) * len(self.axes)
        return self.without_exits(self.whole[0], self.recipe(default), self.route(default).engine)

    def without_exits(self, checkpoint: str, recipe: Recipe, engine: Engine, layers: int | None = None) -> RunSpec:
        """A checkpoint without exits, cut after so many layers."""
        every = self.layers[checkpoint]
        kept, policy = (every, Fixed()) if layers in (None, every) else (layers, Fixed(layer=layers))
        return RunSpec(self.tuning.model.task, checkpoint, recipe, engine, False, (kept,), policy, self.tuning.shape)

    @property
    def references(self) -> list[RunSpec]:
        """All that float32 could be without early exit: every checkpoint, and cut where fewer layers are tried."""
        cuts = {network.checkpoint: network.exits for network in self.networks if not network.policies}
        return [
            self.without_exits(checkpoint, Float32(), self.anchor.engine, layers)
            for checkpoint, every in self.layers.items()
            for layers in cuts.get(checkpoint, (every,))
        ]

    def candidates(self, choice: Choice) -> list[RunSpec]:
        """Every dial of a point."""
        network, recipe = self.networks[choice[0]], self.recipe(choice)
        given = self.tuning.model.task, network.checkpoint, recipe, self.route(choice).engine
        if network.policies:
            return [RunSpec(*given, True, network.exits, policy, self.tuning.shape) for policy in network.policies]
        return [self.without_exits(network.checkpoint, recipe, self.route(choice).engine, k) for k in network.exits]


def space_of(tuning: Tuning, members: list[Member]) -> Space:
    """Every way of leaving every checkpoint; truncations come first. Exits beyond a checkpoint's layers are not its.

    Raises:
        UserError: exits that no checkpoint can have, or policies that do not fit the task.
    """
    found, deepest = [], max(member.checkpoint.network.num_layers for member in members)
    for member in members:
        layers = member.checkpoint.network.num_layers
        every = tuple(range(1, layers + 1))
        if member.info.method == "classifier":  # only its last exit was trained
            found.append(Network(member.name, (layers,)))
            continue
        if tuning.early_exit.truncated:
            found.append(Network(member.name, every))
        for exits, policies in itertools.product(tuning.early_exit.exits, tuning.early_exit.by_kind()):
            kept = every if isinstance(exits, str) else tuple(exits)
            if problem := unfit(policies[0], kept, deepest, tuning.model.task):
                raise UserError(f"early_exit: {problem}")
            if kept[-1] <= layers:
                found.append(Network(member.name, kept, tuple(policies)))
    found = [network for i, network in enumerate(found) if network not in found[:i]]  # `all`, and every layer by name
    return Space(tuning, found, {member.name: member.checkpoint.network.num_layers for member in members})


def following(space: Space, tried: list[Tried], name: str, seed: int) -> Choice | None:
    """What the strategy called `name` tries next, or None where nothing is left."""
    known = {attempt.choice for attempt in tried}
    if len(known) == space.size:
        return None
    defaults = (0,) * (len(space.shape) - 2)
    without_exits = [i for i, network in enumerate(space.networks) if not network.policies]
    rivals = itertools.product(without_exits, range(space.shape[1]))
    begin = space.unknown(((*start, *defaults) for start in [(0, 0), *rivals]), known)
    return begin or STRATEGIES[name](space, tried, seed + len(tried))


def _basic(space: Space, tried: list[Tried], seed: int) -> Choice | None:
    """LPOT's order: all without fall-backs; then, at the best of these, each alone; then these together, best first."""
    return _fall_back(space, tried, lambda attempt: attempt.value)


def _mse(space: Space, tried: list[Tried], seed: int) -> Choice | None:
    """The same, but the fall-backs that bring the logits nearest to float32's come together first."""
    return _fall_back(space, tried, lambda attempt: np.inf if attempt.mse is None else attempt.mse)


def _fall_back(space: Space, tried: list[Tried], worth: Callable[[Tried], float]) -> Choice | None:
    known = {attempt.choice: attempt for attempt in tried}
    ranges = [range(1 if i in space.fallbacks else size) for i, size in enumerate(space.shape)]
    if (choice := space.unknown(itertools.product(*ranges), known)) is not None:
        return choice
    best = min(filter(known.get, itertools.product(*ranges)), key=lambda choice: known[choice].value)

    def with_fallbacks(*axes: int) -> Choice:
        return tuple(1 if i in axes else option for i, option in enumerate(best))

    if (choice := space.unknown(map(with_fallbacks, space.fallbacks), known)) is not None:
        return choice
    tried_alone = [axis for axis in space.fallbacks if with_fallbacks(axis) in known]
    order = sorted(tried_alone, key=lambda axis: worth(known[with_fallbacks(axis)]))
    return space.unknown((with_fallbacks(*order[:n]) for n in range(2, len(order) + 1)), known)


def _exhaustive(space: Space, tried: list[Tried], seed: int) -> Choice | None:
    """Every point in order."""
    return space.unknown(itertools.product(*map(range, space.shape)), {attempt.choice for attempt in tried})


def _random(space: Space, tried: list[Tried], seed: int) -> Choice:
    """Any point that was not tried."""
    draw, known = np.random.default_rng(seed), {attempt.choice for attempt in tried}
    while (choice := space.settled(tuple(draw.integers(space.shape).tolist()))) in known:
        pass
    return choice


def _bayesian(space: Space, tried: list[Tried], seed: int) -> Choice:
    """What Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) proposes after all that was tried."""
    import optuna  # a second to import, and the other strategies do without

    distributions: dict[str, Any] = {
        axis: optuna.distributions.CategoricalDistribution(range(size))
        for axis, size in zip(space.axes, space.shape, strict=True)
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=START_UP))
    for attempt in tried:
        params = dict(zip(space.axes, attempt.choice, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=attempt.value))
    known = {attempt.choice for attempt in tried}
    for _ in range(PROPOSALS):
        params = study.ask(distributions).params
        if (choice := space.settled(tuple(params[axis] for axis in space.axes))) not in known:
            return choice
    return _random(space, tried, seed)


STRATEGIES: dict[str, Callable[[Space, list[Tried], int], Choice | None]] = {
    "basic": _basic,
    "mse": _mse,
    "bayesian": _bayesian,
    "random": _random,
    "exhaustive": _exhaustive,
}
