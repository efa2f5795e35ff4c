"""Programs: what an engine builds and the benchmark runs.

`program.run(inputs, dials)` takes padded int64 arrays and answers with numpy arrays. Programs hold no state between
calls.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from models.ops import NumpyOps
from models.policies import Fixed, Policy
from models.tasks import Task

WHOLE_NETWORKS = "recipe int8_native quantizes whole networks, without exits: exits: [none]"
Inputs = dict[str, np.ndarray]
Dials = dict[str, np.ndarray]


def unfit(policy: Policy, exits: Sequence[int], num_layers: int, task: Task) -> str | None:
    """Why no program can have this policy over these kept exits, or None."""
    if policy.classification_only and task.regression:
        return f"policy {policy.kind} needs class probabilities, task {task.name} is a regression"
    if list(exits) != sorted(set(exits)) or not exits or not 1 <= exits[0] <= exits[-1] <= num_layers:
        return f"exits {list(exits)} must ascend within 1..{num_layers}"
    if isinstance(policy, Fixed) and policy.layer not in (None, *exits):
        return f"policy fixed: layer {policy.layer} is none of the exits {list(exits)}"
    return None


class ExitOutput(NamedTuple):
    """What a program answers for B rows: logits [B, C] float32 and the layer each row left at, [B] int64."""

    logits: np.ndarray
    exit_layer: np.ndarray


class Program(Protocol):
    """A runnable network with one policy kind inside, or none.

    Attributes:
        kind: graph (exits inside one compiled graph), stepped (a loop over segments), single (no exits).
        precision: what the compiled program reports to run in.
        size_bytes: weights and graph on disk; None where the engine does not say.
    """

    kind: Literal["graph", "stepped", "single"]
    precision: str
    size_bytes: int | None

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput: ...


class Steps(Protocol):
    """Compiled segments of an engine, over its own arrays; logits leave as float32 numpy."""

    def embed(self, inputs: Inputs) -> tuple[Any, Any]: ...
    def layer(self, index: int, hidden: Any, mask: Any) -> Any: ...
    def exit(self, index: int, hidden: Any, mask: Any) -> np.ndarray: ...
    def take(self, array: Any, rows: np.ndarray) -> Any: ...


class EngineSession(Protocol):
    """An engine opened over the segments of one network: builds every program a suite asks of it."""

    def recorder(self, exits: Sequence[int]) -> "Recorder": ...
    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program: ...
    def without_exits(self, layer: int) -> Program: ...
    def precisions(self) -> dict[str, str]:
        """Linear op -> what it was compiled to: int8, float32 or bfloat16; nothing where the engine does not say."""
        ...


@runtime_checkable
class Servable(Protocol):
    """A session whose graphs can be served without this project."""

    options: dict[str, Any]
    """What a graph is compiled with, beside its engine's defaults."""

    def save(self, policy: Policy, exits: Sequence[int], folder: Path) -> list[str]:
        """Write the graph that `quant/artefact.py` serves, and answer the names of its files, the graph's first."""
        ...

    def footprint(self, policy: Policy | None, exits: Sequence[int], inputs: Inputs) -> int:
        """Resident bytes of serving one graph: with the exits inside, or, without a policy, the network to the last."""
        ...


class Recorder(Protocol):
    """Runs the network to its end and answers the logits of every kept exit, [len(exits), B, C] float32."""

    def __call__(self, inputs: Inputs) -> np.ndarray: ...


class SteppedRecorder:
    """A `Recorder` over an engine's steps."""

    def __init__(self, steps: Steps, exits: Sequence[int]):
        self.steps, self.exits = steps, list(exits)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        hidden, mask = self.steps.embed(inputs)
        logits = []
        for layer in range(1, self.exits[-1] + 1):
            hidden = self.steps.layer(layer - 1, hidden, mask)
            if layer in self.exits:
                logits.append(self.steps.exit(layer - 1, hidden, mask))
        return np.stack(logits)


class StackedRecorder:
    """A `Recorder` over one network without exits for each exit."""

    def __init__(self, programs: Sequence[Program]):
        self.programs = programs

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return np.stack([program.run(inputs, {}).logits for program in self.programs])


class SteppedProgram:
    """Early exit as a short loop over compiled segments; rows that are done leave the batch."""

    kind: Literal["graph", "stepped", "single"] = "stepped"

    def __init__(self, steps: Steps, policy: Policy, exits: Sequence[int], precision: str, size_bytes: int | None):
        self.steps, self.policy, self.exits = steps, policy, list(exits)
        self.precision, self.size_bytes = precision, size_bytes

    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        ops, rows = NumpyOps(), np.arange(len(inputs["input_ids"]))
        hidden, mask = self.steps.embed(inputs)
        state: Any = self.policy.start(ops, rows, dials)
        answered, exit_layer = np.empty(0), np.empty(len(rows), np.int64)
        for layer in range(1, self.exits[-1] + 1):
            hidden = self.steps.layer(layer - 1, hidden, mask)
            if layer not in self.exits:
                continue
            logits = self.steps.exit(layer - 1, hidden, mask)
            if not len(answered):
                answered = np.empty((len(rows), logits.shape[-1]), np.float32)
            # Every row still here answers; the rows that go on are answered again later.
            answered[rows], exit_layer[rows] = logits, layer
            if layer == self.exits[-1]:
                break
            done, state = self.policy.step(ops, layer, logits, state, dials)
            if done.all():
                break
            if done.any():
                kept = np.flatnonzero(~done)
                hidden, mask, rows = self.steps.take(hidden, kept), self.steps.take(mask, kept), rows[kept]
                state = type(state)(*(array[kept] for array in state))
        return ExitOutput(answered, exit_layer)
