"""When to leave the network: every exit policy, each written once over `Ops`.

A policy class is its own configuration (inert, from YAML) and its own algorithm:

    start(ops, rows, dials) -> State                        a NamedTuple of [B] float32 arrays
    step(ops, layer, logits, state, dials) -> (done, State)  `done` is a [B] boolean array

`rows` is any array with one entry a row (only its length counts). Dials are the run-time numbers of a policy
(patience, threshold): changing one never recompiles a program. The last kept exit answers every row still there,
whatever `done` says. To add a policy, write its class and add it to `Policy`: suites, `list`, replay, stepped and
in-graph programs take it from there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from models.config import Config, UserError
from models.ops import Array, NumpyOps, Ops


def entropy(ops: Ops, logits: Array) -> Array:
    """Entropy in nats of softmax(logits) over the last axis, from log_softmax so that it cannot overflow."""
    log_p = ops.log_softmax(logits)
    return ops.sub(0.0, ops.sum(ops.mul(ops.exp(log_p), log_p)))


def uncertainty(ops: Ops, logits: Array) -> Array:
    """Entropy as a share of the largest possible, ln C: 0 is certain, 1 knows nothing."""
    return ops.mul(entropy(ops, logits), 1 / math.log(ops.classes(logits)))


def largest_probability(ops: Ops, logits: Array) -> Array:
    """The largest class probability of softmax(logits) over the last axis."""
    return ops.max(ops.exp(ops.log_softmax(logits)))


class NoState(NamedTuple):
    """The state of a policy that looks at one exit alone."""


class PatienceState(NamedTuple):
    """Per row: what the previous kept exit answered, and how many agreed in a row."""

    previous: Array
    count: Array


class ToldState(NamedTuple):
    """Per row: the layer at which it must leave."""

    exit_layer: Array


class PolicyConfig(Config):
    """What all policies share."""

    classification_only: ClassVar[bool] = False
    timing_only: ClassVar[bool] = False

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The run-time numbers of this policy, by name: scalars, or one number for each of `rows`.

        `rows` are positions in the run, so that a dial given per row does not depend on how rows are batched.
        """
        return {}

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> NamedTuple:
        """The state before the first exit."""
        return NoState()

    def margin(self, logits: np.ndarray) -> np.ndarray:
        """How far each decision is from turning: [L, N, C] logits -> [L, N], in the unit of the decision."""
        return np.full(logits.shape[:2], np.inf, np.float32)


class Fixed(PolicyConfig):
    """Leave at one layer: the whole network (layer `None` or L), or the network truncated at `layer`."""

    kind: Literal["fixed"] = "fixed"
    layer: int | None = Field(default=None, ge=1)

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"layer": np.asarray(self.layer or 0, np.float32)}

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> ToldState:
        # As state, for making a [B] array anew at every exit costs a graph more than all of entropy's operations.
        return ToldState(exit_layer=ops.broadcast(rows, dials["layer"]))

    @staticmethod
    def step(ops: Ops, layer: int, logits: Array, state: ToldState, dials: dict[str, Array]) -> tuple[Array, ToldState]:
        return ops.equal(state.exit_layer, float(layer)), state


class Patience(PolicyConfig):
    """Leave when `patience` exits in a row repeat the answer before them (PABEE: Zhou et al. 2020, section 3.2).

    Classification compares the arg max; regression asks for a change of less than `regression_threshold`. The first
    exit has nothing to agree with, so the earliest way out is exit `patience + 1`; patience 0 means full depth.
    """

    kind: Literal["patience"] = "patience"
    patience: int = Field(ge=0)
    regression_threshold: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "patience": np.asarray(self.patience, np.float32),
            "regression_threshold": np.asarray(self.regression_threshold, np.float32),
        }

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> PatienceState:
        # No class index and no regression value comes near this, so the first exit never agrees.
        return PatienceState(previous=ops.full(rows, -1e30), count=ops.full(rows, 0.0))

    @staticmethod
    def step(
        ops: Ops, layer: int, logits: Array, state: PatienceState, dials: dict[str, Array]
    ) -> tuple[Array, PatienceState]:
        if ops.classes(logits) == 1:
            answer = ops.sum(logits)
            agrees = ops.less(ops.abs(ops.sub(state.previous, answer)), dials["regression_threshold"])
        else:
            answer = ops.argmax(logits)
            agrees = ops.equal(state.previous, answer)
        count = ops.where(agrees, ops.add(state.count, 1.0), 0.0)
        done = ops.both(ops.equal(count, dials["patience"]), ops.less(0.0, dials["patience"]))
        return done, PatienceState(previous=answer, count=count)

    def margin(self, logits: np.ndarray) -> np.ndarray:
        if logits.shape[-1] > 1:
            return top_two_gap(logits)
        change = np.abs(np.diff(logits[..., 0], axis=0))
        first = np.full((1, logits.shape[1]), np.inf, np.float32)
        return np.concatenate([first, np.abs(change - self.regression_threshold)])


class AtOneExit(PolicyConfig):
    """What policies share that look at one exit alone: leave when a quantity of its answer is below the dial, strictly.

    A subclass may turn that round.

    Attributes:
        dial: the field that holds the limit.
        quantity: of [..., C] logits, one number for each row.
    """

    classification_only: ClassVar[bool] = True
    dial: ClassVar[str] = "threshold"
    quantity: ClassVar[Callable[[Ops, Array], Array]]

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {self.dial: np.asarray(getattr(self, self.dial), np.float32)}

    @classmethod
    def step(
        cls, ops: Ops, layer: int, logits: Array, state: NamedTuple, dials: dict[str, Array]
    ) -> tuple[Array, NamedTuple]:
        return ops.less(cls.quantity(ops, logits), dials[cls.dial]), state

    def margin(self, logits: np.ndarray) -> np.ndarray:
        return np.abs(type(self).quantity(NumpyOps(), logits) - getattr(self, self.dial))


class Entropy(AtOneExit):
    """Leave when the entropy of the answer (natural log, not normalised) is below `threshold`, strictly.

    DeeBERT: Xin et al. 2020, section 3. A threshold above ln C leaves everywhere at the first kept exit.
    """

    quantity = staticmethod(entropy)

    kind: Literal["entropy"] = "entropy"
    threshold: float = Field(ge=0)


class Uncertainty(AtOneExit):
    """Leave when the entropy, divided by its largest value ln C, is below `speed`, strictly.

    FastBERT: Liu et al. 2020, section 3.3: a higher `speed` leaves earlier, and means the same for any number of
    classes.
    """

    dial = "speed"
    quantity = staticmethod(uncertainty)

    kind: Literal["uncertainty"] = "uncertainty"
    speed: float = Field(ge=0, le=1)


class Confidence(AtOneExit):
    """Leave when the largest class probability is above `threshold`, strictly."""

    quantity = staticmethod(largest_probability)

    kind: Literal["confidence"] = "confidence"
    threshold: float = Field(ge=0, le=1)

    @classmethod
    def step(
        cls, ops: Ops, layer: int, logits: Array, state: NamedTuple, dials: dict[str, Array]
    ) -> tuple[Array, NamedTuple]:
        return ops.less(dials["threshold"], cls.quantity(ops, logits)), state


class Imposed(PolicyConfig):
    """Timing only: pay for a real policy's operations (entropy), then leave where told.

    `exit_layers` is repeated over the rows of a run: `[6]` sends every row out at layer 6, `[1, 11]` every other one.
    """

    timing_only: ClassVar[bool] = True

    kind: Literal["imposed"] = "imposed"
    exit_layers: list[int] = Field(min_length=1)

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"imposed_layer": np.asarray(self.exit_layers, np.float32)[rows % len(self.exit_layers)]}

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> ToldState:
        return ToldState(exit_layer=ops.broadcast(rows, dials["imposed_layer"]))

    @staticmethod
    def step(ops: Ops, layer: int, logits: Array, state: ToldState, dials: dict[str, Array]) -> tuple[Array, ToldState]:
        # Entropy is never negative, so the real rule is computed and never fires.
        never = ops.less(entropy(ops, logits), -1.0)
        return ops.either(never, ops.less(state.exit_layer, layer + 0.5)), state


Policy = Annotated[Fixed | Patience | Entropy | Uncertainty | Confidence | Imposed, Field(discriminator="kind")]


def top_two_gap(logits: np.ndarray) -> np.ndarray:
    """Difference between the two largest logits over the last axis (infinite for regression)."""
    if logits.shape[-1] == 1:
        return np.full(logits.shape[:-1], np.inf, np.float32)
    top = np.partition(logits, -2, axis=-1)
    return top[..., -1] - top[..., -2]


def check_finite(logits: np.ndarray) -> None:
    """Refuse logits, of any shape, that no score can be read from.

    Raises:
        UserError: some are NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            "recorded logits must be finite, but some are NaN or infinite: the checkpoint or the recipe is numerically "
            "broken; try recipe float32, or train again"
        )


class Replayed(NamedTuple):
    """What a policy does with recorded logits: [N] exit layers, [N, C] logits answered, [N] smallest margin met."""

    exit_layer: np.ndarray
    logits: np.ndarray
    margin: np.ndarray


def replay(policy: Policy, logits: np.ndarray, exits: Sequence[int]) -> Replayed:
    """Fold a policy over the recorded logits of the kept exits.

    Args:
        policy: the policy, with its dials.
        logits: [len(exits), N, C] float32, one slice for each kept exit in ascending order.
        exits: the kept exits (layers from 1), in ascending order.

    Raises:
        UserError: when the logits hold NaN or infinity.
    """
    check_finite(logits)
    ops, rows = NumpyOps(), np.arange(logits.shape[1])
    dials = policy.dials(rows)
    state, position, left = (
        policy.start(ops, rows, dials),
        np.full(len(rows), len(exits) - 1),
        np.zeros(len(rows), bool),
    )
    for i, layer in enumerate(exits[:-1]):
        done, state = policy.step(ops, layer, logits[i], state, dials)  # pyright: ignore[reportArgumentType]
        position = np.where(done & ~left, i, position)
        left |= done
    met = np.arange(len(exits))[:, None] <= np.minimum(position, len(exits) - 2)
    margin = np.where(met, policy.margin(logits), np.inf).min(axis=0)
    answered = logits[position, rows]
    return Replayed(np.asarray(exits)[position], answered, np.minimum(margin, top_two_gap(answered)))
