"""A tuning file: LPOT 1.x's sections and names, and what may be searched beyond numerics.

Keys of LPOT that could not be followed to the letter are not there, so they are refused rather than ignored, such as
metrics that are better when lower.
"""

import itertools
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from benchmarks.floors import lowest_allowed
from benchmarks.numerics import Approach, Calibration, Quantization, listed
from benchmarks.suite import (
    SMOKE_LAYERS,
    Checkpoints,
    CheckpointSpec,
    Exits,
    PolicyCase,
    Shape,
    Suite,
    TimingConfig,
    grids,
    read_config,
    small_checkpoint,
)
from models.config import Config, unknown
from models.data import MetricName
from models.policies import Fixed, Policy
from models.tasks import Task
from quant.engine import SERVING, Engine, OnnxRuntime, ServingEngine, cannot_run
from quant.recipes import Recipe

SHIPPED = Path("yaml_configs/tuning")
SMOKE_TRIALS = 3
# The session that measures the winner on dev goes over its rows so often.
FINAL_REPEATS = 5
Objective = Literal["performance", "p99", "footprint", "modelsize"]


class ModelSection(Config):
    """What is tuned.

    Attributes:
        framework: the engines to choose from; that of the fastest candidate serves it. Where ONNX Runtime can leave
            a batch early only row by row, it does so.
        checkpoints: as in a suite, all of one tokenizer; `fewer_layers` join the truncated networks.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    framework: Annotated[list[Literal["openvino", "onnxruntime"]], BeforeValidator(listed)] = Field(
        default=["openvino"], min_length=1
    )
    task: Task
    checkpoints: Checkpoints


class EarlyExit(Config):
    """What is searched beyond numerics.

    Attributes:
        policies: with their dials, as in a suite; replay tries every dial, so they cost next to nothing.
        exits: the exits kept, `all` or lists of layers; each list is another program to time.
        truncated: whether the whole network and its first k layers alone, without exits, are candidates too.
    """

    policies: Annotated[list[PolicyCase], grids("policies")] = Field(default_factory=list)
    exits: list[Exits] = Field(default=["all"], min_length=1)
    truncated: bool = True

    @model_validator(mode="after")
    def _candidates(self) -> Self:
        if "none" in self.exits or any(isinstance(policy, Fixed) or policy.timing_only for policy in self.policies):
            raise ValueError(
                "exits: none, full_depth and fixed are what truncated: true tries, imposed cannot be served"
            )
        if not self.policies and not self.truncated:
            raise ValueError("give policies:, or truncated: true")
        return self

    def by_kind(self) -> list[list[Policy]]:
        """The dials of each policy kind."""
        kinds: dict[str, list[Policy]] = {}
        for policy in self.policies:
            kinds.setdefault(policy.kind, []).append(policy)
        return list(kinds.values())


class Strategy(Config):
    """How the space is searched: see `benchmarks/strategies.py`."""

    name: Literal["basic", "mse", "bayesian", "random", "exhaustive"] = "basic"


class AccuracyCriterion(Config):
    """How much of the float32 network's score on `tune` may be lost: a share of it, or so much."""

    relative: float | None = Field(default=None, ge=0, lt=1)
    absolute: float | None = Field(default=None, ge=0, lt=1)
    higher_is_better: Literal[True] = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give relative or absolute, and not both")
        return self

    def floor(self, reference: float) -> float:
        """The lowest score allowed."""
        if self.relative is not None:
            return lowest_allowed(reference, self.relative)
        return reference - (self.absolute or 0.0)


class MultiObjectives(Config):
    """Several objectives, each as a share of the anchor's, summed by weight (equal ones if none are given)."""

    objective: list[Objective] = Field(min_length=1)
    weight: list[Annotated[float, Field(gt=0)]] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weight is not None and len(self.weight) != len(self.objective):
            raise ValueError("weight: give one for each objective")
        return self


class ExitPolicy(Config):
    """When to stop.

    Attributes:
        timeout: seconds of trials, those before a resume included; 0 stops at the first trial within the criterion, as
            LPOT does. A trial that has begun is finished.
        max_trials: of all sessions together.
        performance_only: choose without regard to the criterion; it still decides between PASS and FAIL.
    """

    timeout: float | None = Field(default=None, ge=0)
    max_trials: int = Field(default=100, ge=1)
    performance_only: bool = False


class Workspace(Config):
    """Where trials are kept. `resume: false` refuses a folder that already has some."""

    path: str | None = None
    resume: bool = True


class TuningSection(Config):
    """What is wanted. `random_seed` decides splits, training, the rows timed, and the search."""

    strategy: Strategy = Strategy()
    accuracy_criterion: AccuracyCriterion = AccuracyCriterion(relative=0.01)
    objective: Objective | None = None
    multi_objectives: MultiObjectives | None = None
    exit_policy: ExitPolicy = ExitPolicy()
    random_seed: int = Field(default=42, ge=0)
    workspace: Workspace = Workspace()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.objective and self.multi_objectives:
            raise ValueError("give objective or multi_objectives, and not both")
        return self

    def weights(self) -> dict[Objective, float]:
        """Each objective's share of the whole."""
        if self.multi_objectives is None:
            return {self.objective or "performance": 1.0}
        names = self.multi_objectives.objective
        weights = self.multi_objectives.weight or [1.0] * len(names)
        return {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}


class Accuracy(Config):
    """`metric`: of the task, which the criterion reads; its headline metric if none is given."""

    metric: MetricName | None = None


class Dataloader(Config):
    """Rows a call."""

    batch_size: int = Field(default=1, ge=1)


class Instances(Config):
    """How many instances are measured at once, and the threads of each; its share of all cores if not given."""

    cores_per_instance: int | None = Field(default=None, ge=1)
    num_of_instance: int = Field(default=1, ge=1)


class Performance(Config):
    """How a trial is timed.

    Attributes:
        warmup: calls of each side that are not counted, after the program has come to a steady pace.
        iteration: calls of each side that are.
    """

    warmup: int = Field(default=10, ge=0)
    iteration: int = Field(default=100, ge=1)
    dataloader: Dataloader = Dataloader()
    configs: Instances = Instances()


class Peer(Config):
    """A recipe on an engine, in which the networks without exits are measured beside the winner, too."""

    recipe: Recipe
    engine: Engine


class Evaluation(Config):
    """How trials are judged. `peers` join the session that measures the winner on dev."""

    accuracy: Accuracy = Accuracy()
    performance: Performance = Performance()
    peers: list[Peer] = Field(default_factory=list)


class Route(NamedTuple):
    """How INT8 may be run: whose numbers on whose kernels."""

    approach: Approach
    engine: ServingEngine


class Tuning(Config):
    """A tuning file. See `yaml_configs/tuning/` for complete ones."""

    schema_: Literal["exitbench/tuning/1"] = Field(alias="schema")
    model: ModelSection
    device: Literal["cpu"] = "cpu"
    quantization: Quantization = Quantization()
    early_exit: EarlyExit = EarlyExit()
    tuning: TuningSection = TuningSection()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _runs(self) -> Self:
        routes = [(route.approach, route.engine.kind) for route in self.routes]
        for framework in self.model.framework:
            if all(framework != engine for _, engine in routes):
                raise ValueError(f"model.framework: {self._problem(self.quantization.approach[0], SERVING[framework])}")
        for approach in self.quantization.approach:
            if all(approach != served for served, _ in routes):
                raise ValueError(f"quantization.approach: {self._problem(approach, SERVING[self.model.framework[0]])}")
        return self

    @model_validator(mode="after")
    def _metric_of_the_task(self) -> Self:
        if self.metric not in self.model.task.metric_names:
            text = unknown("metric", self.metric, self.model.task.metric_names)
            raise PydanticCustomError("unknown_key", "{text}", {"text": f"evaluation.accuracy: {text}"})
        return self

    @property
    def metric(self) -> MetricName:
        """What the criterion reads."""
        return self.evaluation.accuracy.metric or self.model.task.headline_metric

    @property
    def routes(self) -> list[Route]:
        """Every approach on every framework that runs it; the first is the default."""
        pairs = itertools.product(self.quantization.approach, self.model.framework)
        return [route for route in itertools.starmap(self._route, pairs) if route]

    def _route(self, approach: Approach, framework: str) -> Route | None:
        """With the first of the framework's programs that runs it."""
        programs = [SERVING[framework], *([OnnxRuntime(program="rows")] if framework == "onnxruntime" else [])]
        return next((Route(approach, engine) for engine in programs if not self._problem(approach, engine)), None)

    def _problem(self, approach: Approach, engine: ServingEngine) -> str | None:
        recipe, exits = self.quantization.most_fallbacks(approach).kind, bool(self.early_exit.policies)
        return cannot_run(recipe, engine, with_exits=exits, batch_size=self.shape.batch_size)

    @property
    def shape(self) -> Shape:
        """How rows reach a program."""
        performance = self.evaluation.performance
        asked = performance.configs
        return Shape(
            batch_size=performance.dataloader.batch_size,
            threads="all" if asked.cores_per_instance is None else asked.cores_per_instance,
            instances=asked.num_of_instance,
        )

    def suite(
        self,
        checkpoints: list[CheckpointSpec],
        recipes: list[Recipe],
        engines: list[Engine],
        exits: list[Exits],
        policies: list[Policy],
    ) -> Suite:
        """The suite of some of its combinations, timed as its final session is."""
        performance = self.evaluation.performance
        rows = performance.iteration * performance.dataloader.batch_size
        return Suite(
            schema="exitbench/suite/1",
            name=f"{self.model.name}-winner",
            seed=self.tuning.random_seed,
            tasks=[self.model.task],
            checkpoints=checkpoints,
            recipes=recipes,
            engines=engines,
            exits=exits,
            policies=policies,
            shapes=[self.shape],
            timing=TimingConfig(rows=rows, repeats=FINAL_REPEATS, block_rows=min(rows, 64)),
        )

    def of_checkpoint(self, folder: Path) -> "Tuning":
        """The same search over one finished checkpoint."""
        checkpoints = [CheckpointSpec(folder=str(folder))]
        return self.model_copy(update={"model": self.model.model_copy(update={"checkpoints": checkpoints})})

    def smoke(self) -> "Tuning":
        """The same at toy size: two checkpoints, few layers and trials; patterns that name a layer are left out."""
        short = [
            exits if isinstance(exits, str) else [e for e in exits if e <= SMOKE_LAYERS]
            for exits in self.early_exit.exits
        ]
        patterns = {name: op for name, op in self.quantization.op_wise.items() if not any(map(str.isdigit, name))}
        static = "post_training_static_quant" in self.quantization.approach
        calibration = Calibration(sampling_size=[4]) if static else None
        quantization = {"calibration": calibration, "op_wise": patterns}
        performance = self.evaluation.performance.model_copy(update={"warmup": 1, "iteration": 8})
        stop = self.tuning.exit_policy.model_copy(update={"max_trials": SMOKE_TRIALS})
        checkpoints = [small_checkpoint(spec) for spec in self.model.checkpoints[:2]]
        updates = {
            "model": {"name": f"{self.model.name}-smoke", "checkpoints": checkpoints},
            "quantization": quantization,
            "early_exit": {"exits": [exits for exits in short if exits]},
            "tuning": {"exit_policy": stop},
            "evaluation": {"performance": performance, "peers": []},
        }
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=update) for name, update in updates.items()}
        )


def read_tuning(path: Path) -> Tuning:
    """Parse a tuning file.

    Raises:
        UserError: missing file, broken YAML, or the first thing in it that is not allowed, with its key path.
    """
    return read_config(path, Tuning, "tuning", SHIPPED)
