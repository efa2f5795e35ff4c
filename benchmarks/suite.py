"""A suite: one YAML file that names cases on every axis, parsed strictly and expanded into runs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from transformers import AutoConfig

from models.config import Config, UserError, cases, explain, first_line, read_yaml, unknown
from models.cpu import processors
from models.families import Backbone, Fresh, resolve_name
from models.methods import Classifier, Method, TrainConfig
from models.policies import Fixed, Policy
from models.tasks import Task
from models.training import TrainingSpec
from quant.engine import Engine
from quant.recipes import Calibrated, Int8Native, Int8Static, Recipe

SHIPPED = Path("yaml_configs/suites")
SMOKE_ROWS, SMOKE_LAYERS = 48, 3


# The lists whose mappings expand over their list-valued keys, each with the keys that hold lists themselves.
GRIDS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("fewer_layers",),
    "recipes": ("fallback",),
    "engines": (),
    "policies": ("exit_layers",),
    "shapes": (),
}


def grids(axis: str) -> BeforeValidator:
    """Expand each mapping over its list-valued keys: `threshold: [0.1, 0.2]` is two cases.

    `{from: 0.1, to: 0.5, steps: 5}` is a list too, of evenly spaced numbers.
    """

    def expand(values: Any) -> Any:
        return (
            [case for value in values for case in _expand(value, GRIDS[axis])] if isinstance(values, list) else values
        )

    return BeforeValidator(expand)


def _expand(value: Any, keep: tuple[str, ...]) -> Iterator[Any]:
    if not isinstance(value, dict):
        yield value
        return

    def is_grid(key: str, item: Any) -> bool:
        return isinstance(item, list) and bool(item) and (key not in keep or isinstance(item[0], list))

    listed = {key: _spaced(item) for key, item in value.items()}
    grid = {key: item for key, item in listed.items() if is_grid(key, item)}
    for choice in itertools.product(*grid.values()):
        yield value | dict(zip(grid, choice, strict=True))


def _spaced(item: Any) -> Any:
    """The numbers that `{from, to, steps}` stands for; anything else as it is, for its field to refuse."""
    if not (isinstance(item, dict) and item.keys() == {"from", "to", "steps"}):
        return item
    try:
        return np.linspace(item["from"], item["to"], item["steps"]).round(6).tolist()
    except (TypeError, ValueError):
        return item


def _policy_word(value: Any) -> Any:
    """`full_depth` is `{kind: fixed}`, the one policy that needs no dial."""
    if value == "full_depth":
        return {"kind": "fixed"}
    if isinstance(value, str):
        allowed = ["full_depth", *(f"{{kind: {kind}, ...}}" for kind in cases(Policy))]
        raise PydanticCustomError("unknown_key", "{text}", {"text": unknown("policy", value, allowed)})
    return value


class CheckpointSpec(Config):
    """What to train, or a finished checkpoint folder to use as it is.

    Attributes:
        method: how the exits are trained.
        backbone: what training starts from; or `classifier`, an already fine-tuned one that only gets exits.
        folder: a checkpoint folder written before; nothing is trained.
        fewer_layers: also fine-tune the backbone's first k layers alone, without exits, for each k given, and time them
            in the same session: truncated networks at their best.
        seed: of the fine-tuning, where it is not the suite's, which also cuts the splits. `seed: [42, 43, 44]` is three
            checkpoints on the same splits, of which reports show mean and spread.
    """

    method: Annotated[
        Method | None,
        BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=Any),
    ] = None
    backbone: Backbone | None = None
    classifier: str | None = None
    folder: str | None = None
    fewer_layers: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    train: TrainConfig = TrainConfig()
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = {name for name in ("method", "backbone", "classifier", "folder") if getattr(self, name) is not None}
        if given not in ({"folder"}, {"method", "backbone"}, {"method", "classifier"}):
            raise ValueError("a checkpoint is folder: alone, or method: with one of backbone: and classifier:")
        if self.fewer_layers and self.backbone is None:
            raise ValueError("fewer_layers: needs backbone:, whose first layers they are")
        if self.seed is not None and self.folder is not None:
            raise ValueError("seed: is of a fine-tuning, which folder: has behind it; remove it")
        return self

    def training(self, task: Task, seed: int) -> TrainingSpec:
        """The fine-tuning this asks for on one task; not for a finished `folder`."""
        assert self.method is not None
        return TrainingSpec(
            task=task,
            method=self.method,
            backbone=self.backbone,
            classifier=self.classifier,
            train=self.train,
            seed=seed,
        )

    def truncated(self, task: Task, seed: int) -> dict[int, TrainingSpec]:
        """The fine-tuning of each network of `fewer_layers`: the same backbone, rows, rates and pooling, no exits."""
        assert self.method is not None
        return {
            layers: TrainingSpec(
                task=task,
                method=Classifier(pooling=self.method.pooling),
                backbone=self.backbone.model_copy(update={"num_layers": layers}) if self.backbone else None,
                train=self.train,
                seed=seed,
            )
            for layers in self.fewer_layers
        }


class Shape(Config):
    """How rows reach a program.

    Attributes:
        batch_size: rows a call.
        padding: to the longest row of the batch, or to `length`.
        order: of the rows that are timed: as they come, or by length, so that a batch holds rows of like length.
        length: the longest input, in tokens; None for the checkpoint's own max_seq_length.
        threads: of the engine, in each instance; `all` is every core, shared out among the instances.
        instances: copies of the program that run the same batches at once, each pinned to processors of its own. With
            `threads` they are LPOT's num_of_instance and cores_per_instance.
    """

    batch_size: int = Field(default=1, ge=1)
    padding: Literal["longest", "max_length"] = "longest"
    order: Literal["given", "by_length"] = "given"
    length: int | None = Field(default=None, ge=4)
    threads: int | Literal["all"] = "all"
    instances: int = Field(default=1, ge=1)

    @property
    def thread_count(self) -> int:
        return self.threads if isinstance(self.threads, int) else max(1, len(processors()) // self.instances)

    @property
    def label(self) -> str:
        length = f"-{self.length}" if self.length else ""
        order = "-by_length" if self.order == "by_length" else ""
        instances = f"-{self.instances}i" if self.instances > 1 else ""
        return f"b{self.batch_size}-{self.padding}{length}{order}-{self.threads}t{instances}"

    def unfit(self) -> str | None:
        """Why this machine cannot pin so many instances, or None."""
        asked, ours = self.instances * self.thread_count, len(processors())
        if self.instances == 1 or asked <= ours:
            return None
        return f"{self.instances} instances of {self.thread_count} threads need {asked} processors; here are {ours}"


class TimingConfig(Config):
    """How long to measure.

    Attributes:
        rows: dev rows that are timed, drawn by the suite's seed.
        repeats: passes over them, taken turn by turn with every other run of the session.
        block_rows: rows a worker runs with each policy before its turn ends.
    """

    rows: int = Field(default=256, ge=1)
    repeats: int = Field(default=5, ge=1)
    block_rows: int = Field(default=64, ge=1)


PolicyCase = Annotated[Policy, BeforeValidator(_policy_word)]
Checkpoints = Annotated[list[CheckpointSpec], grids("checkpoints"), Field(min_length=1)]
Exits = Annotated[
    Annotated[Literal["all", "none"], Tag("word")] | Annotated[list[int], Tag("layers")],
    Discriminator(lambda value: "layers" if isinstance(value, list) else "word"),
]


class Suite(Config):
    """A suite file. See `yaml_configs/suites/` for complete ones.

    Attributes:
        exclude: shell patterns over cases (as `--dry-run` prints them) that are left out of the product.
        on_unsupported: whether a product that cannot run is an error or left out.
    """

    schema_: Literal["exitbench/suite/1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    seed: int = Field(default=42, ge=0)
    tasks: list[Task] = Field(min_length=1)
    checkpoints: Checkpoints
    recipes: Annotated[list[Recipe], grids("recipes")] = Field(min_length=1)
    engines: Annotated[list[Engine], grids("engines")] = Field(min_length=1)
    exits: list[Exits] = Field(default=["all", "none"], min_length=1)
    policies: Annotated[list[PolicyCase], grids("policies")] = Field(min_length=1)
    shapes: Annotated[list[Shape], grids("shapes")] = Field(default=[Shape()], min_length=1)
    timing: TimingConfig = TimingConfig()
    exclude: list[str] = Field(default_factory=list)
    on_unsupported: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if len({shape.length is None for shape in self.shapes}) > 1:
            raise ValueError("shapes: give all of them a length, or none: rows are tokenized once, to the longest")
        return self

    def excludes(self, run: "RunSpec") -> bool:
        """Whether a pattern of `exclude` matches the run's case."""
        return any(fnmatch(run.case, pattern) for pattern in self.exclude)

    def smoke(self) -> "Suite":
        """Every case of every axis at toy size: few rows and layers, one policy and method of each kind,
        and the smallest and the largest batch.

        Not every product of them: engines after the first, which may take minutes to compile, take the last recipe.
        """
        policies = _one_of_each_kind(self.policies)
        named = [layer for exits in self.exits if isinstance(exits, list) for layer in exits]
        named += [policy.layer for policy in policies if isinstance(policy, Fixed) and policy.layer is not None]

        def quick(recipe: Recipe) -> Recipe:
            if isinstance(recipe, Int8Static):
                anywhere = [pattern for pattern in recipe.fallback if not any(map(str.isdigit, pattern))]
                recipe = recipe.model_copy(update={"fallback": anywhere})
            few = {"calibration_rows": 4} if isinstance(recipe, Calibrated) else {}
            return recipe.model_copy(update=few)

        sized = {shape.batch_size: shape for shape in reversed(self.shapes)}
        recipes = [quick(recipe) for recipe in self.recipes]
        spared = itertools.product(recipes[:-1], self.engines[1:])
        exclude = [f"*/{recipe_label(recipe)}/{engine_label(engine)}/*" for recipe, engine in spared]
        return self.model_copy(
            update={
                "name": f"{self.name}-smoke",
                "checkpoints": [small_checkpoint(spec, named) for spec in _one_of_each_method(self.checkpoints)],
                "recipes": recipes,
                "policies": policies,
                "shapes": [sized[size] for size in sorted({min(sized), max(sized)})],
                "exclude": [*self.exclude, *exclude],
                "timing": TimingConfig(rows=8, repeats=2, block_rows=8),
            }
        )


def small_checkpoint(spec: CheckpointSpec, named: Sequence[int] = ()) -> CheckpointSpec:
    """The same training at toy size, with as many layers as it takes to hold the `named` ones."""
    train = spec.train.model_copy(update={"max_rows": SMOKE_ROWS, "epochs": 1.0, "evaluations_per_epoch": 1})
    fewer, backbone = spec.fewer_layers[:1], spec.backbone
    if backbone is not None:
        enough = max([SMOKE_LAYERS, *named, *(layers + 1 for layers in fewer)])
        sizes: dict[str, Any] = {"num_layers": min(layers_of(spec), enough)}
        if isinstance(backbone, Fresh):
            sizes |= {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
        backbone = backbone.model_copy(update=sizes)
    return spec.model_copy(update={"train": train, "backbone": backbone, "fewer_layers": fewer})


def _one_of_each_method(specs: list[CheckpointSpec]) -> list[CheckpointSpec]:
    """The first checkpoint of each method and start; of those, one with networks of fewer layers where there is one."""
    first: dict[str, CheckpointSpec] = {}
    for spec in sorted(specs, key=lambda spec: not spec.fewer_layers):
        start = spec.model_dump_json(include={"backbone", "classifier", "folder"})
        first.setdefault(f"{spec.method and spec.method.kind} {start}", spec)
    return list(first.values())


def _one_of_each_kind(policies: list[Policy]) -> list[Policy]:
    """The first setting of each policy kind; truncation at the shallowest layer and full depth count as two kinds."""
    by_depth = sorted(policies, key=lambda policy: isinstance(policy, Fixed) and (policy.layer or 0))
    kinds: dict[tuple[str, bool], Policy] = {}
    for policy in by_depth:
        kinds.setdefault((policy.kind, isinstance(policy, Fixed) and policy.layer is None), policy)
    return list(kinds.values())


@dataclass(frozen=True)
class RunSpec:
    """One point on the axes: what one record measures."""

    task: Task
    checkpoint: str
    recipe: Recipe
    engine: Engine
    with_exits: bool
    exits: tuple[int, ...]
    policy: Policy
    shape: Shape

    @property
    def case(self) -> str:
        """The readable, resolved spec; the same on any machine."""
        exits = "exits-" + ".".join(map(str, self.exits)) if self.with_exits else "no-exits"
        return "/".join(
            [
                self.task.name,
                self.checkpoint,
                recipe_label(self.recipe),
                engine_label(self.engine),
                exits,
                policy_label(self.policy),
                self.shape.label,
            ]
        )


def recipe_label(recipe: Recipe) -> str:
    """`int8_static-kl-128-s42-float32`: the kind and its options; those below only where they are not the default."""
    if isinstance(recipe, Int8Native):
        return f"{recipe.kind}-{recipe.calibration_rows}-s{recipe.seed}"
    if not isinstance(recipe, Int8Static):
        return "-".join([recipe.kind, *map(str, recipe.model_dump(exclude={"kind"}).values())])
    options = [recipe.observer, str(recipe.calibration_rows), f"s{recipe.seed}", recipe.rest]
    options += [option for option in (recipe.activations, recipe.weights) if option in ("symmetric", "per_tensor")]
    options += [f"smooth-{recipe.smooth_alpha:.15g}"] if recipe.smooth_alpha else []
    options += [f"fallback-{','.join(recipe.fallback)}"] if recipe.fallback else []
    return "-".join([recipe.kind, *options])


def engine_label(engine: Engine) -> str:
    """`openvino`, or `openvino-stepped` where a program other than the engine's own is asked for."""
    program = getattr(engine, "program", "graph")
    return engine.kind if program == "graph" else f"{engine.kind}-{program}"


def policy_label(policy: Policy) -> str:
    """`entropy-0.2`: the kind and its dials."""
    if isinstance(policy, Fixed):
        return f"fixed-{policy.layer or 'last'}"
    values = policy.model_dump(exclude={"kind"}).values()
    return "-".join([policy.kind, *(".".join(map(str, v)) if isinstance(v, list) else f"{v:.15g}" for v in values)])


def read_suite(path: Path) -> Suite:
    """Parse a suite file.

    Raises:
        UserError: missing file, broken YAML, or the first thing in it that is not allowed, with its key path.
    """
    return read_config(path, Suite, "suite", SHIPPED)


File = TypeVar("File", bound=Config)


def read_config(path: Path, kind: type[File], what: str, shipped: Path) -> File:
    """Parse a file of a `kind`, whose policies and shapes may be grids; `what` and `shipped`: see `read_yaml`.

    Raises:
        UserError: as `read_suite`.
    """
    raw = read_yaml(path, what, shipped)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise explain(error, str(path), lambda problem: _key_path(problem, raw)) from error


def _key_path(problem: Any, raw: dict[str, Any]) -> list[str | int]:
    """Where a problem lies in the file.

    Validation sees grids expanded, so its index counts cases; and it adds the kinds it passed, which are no keys.
    """
    place = list(problem["loc"])
    path: list[str | int] = []
    here: Any = raw
    for part in place:
        if path and path[-1] in GRIDS and isinstance(here, list) and isinstance(part, int):
            part = [i for i, value in enumerate(here) for _ in _expand(value, GRIDS[str(path[-1])])][part]
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(part)
    return [*path, place[-1]] if problem["type"] == "missing" else path


class Sizes(NamedTuple):
    """L of a network, and how wide its layers are."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def layer_parameters(self) -> int:
        """Weights of a layer's six matrices."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate


def layers_of(spec: CheckpointSpec) -> int:
    """L of a checkpoint before it exists."""
    return sizes_of(spec).layers


def sizes_of(spec: CheckpointSpec) -> Sizes:
    """The sizes of a checkpoint before it exists, from its backbone's configuration."""
    if isinstance(spec.backbone, Fresh):
        hidden = spec.backbone.hidden_size
        return Sizes(spec.backbone.num_layers, hidden, spec.backbone.intermediate_size or 4 * hidden)
    name = spec.folder or spec.classifier or (spec.backbone.name if spec.backbone else "")
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size")
    if spec.folder:
        import json

        try:
            config = json.loads((Path(name) / "config.json").read_text())["backbone"]
            return Sizes(*(config[key] for key in keys))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint folder {name!r} has no readable config.json: give one that has") from error
    try:
        config = AutoConfig.from_pretrained(resolve_name(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {name!r} is neither a readable local folder, a reachable hub model nor a known short name "
            f"({first_line(error)})"
        ) from error
    whole = Sizes(*(getattr(config, key) for key in keys))
    asked = spec.backbone and spec.backbone.num_layers
    return whole._replace(layers=asked) if asked else whole
