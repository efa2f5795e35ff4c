"""The `quantization` section of a tuning file: which recipes are searched, in LPOT 1.x's words."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from models.config import Config, explain, unknown
from quant.recipes import Int8Dynamic, Int8Static

Approach = Literal["post_training_static_quant", "post_training_dynamic_quant"]
APPROACHES: dict[Approach, type[Int8Static | Int8Dynamic]] = {
    "post_training_static_quant": Int8Static,
    "post_training_dynamic_quant": Int8Dynamic,
}
# What LPOT calls the options of a recipe, and their values where the recipe has other words.
OPTIONS = {
    ("activation", "algorithm"): "observer",
    ("activation", "scheme"): "activations",
    ("weight", "granularity"): "weights",
}
VALUES = {"sym": "symmetric", "asym": "asymmetric"}
PRECISIONS = ("int8", "fp32")


def listed(value: Any) -> list[Any]:
    """One value or several, each once: a trial is not to be repeated."""
    values = value if isinstance(value, list) else [value]
    return [one for i, one in enumerate(values) if one not in values[:i]]


class Calibration(Config):
    """`sampling_size`: rows of `fit` that an INT8 recipe is calibrated on; several are searched."""

    sampling_size: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(listed)] = Field(min_length=1)


class OpWise(Config):
    """`dtype`: the precisions searched for what a pattern matches; weights and activations change together."""

    dtype: Annotated[list[Literal["int8", "fp32"]], BeforeValidator(listed)] = Field(min_length=1)


class Quantization(Config):
    """Which recipes are searched: every combination of the options given.

    Attributes:
        approach: one or both; an option counts wherever the approach's recipe has it.
        model_wise: options of the recipe by its own names or LPOT's (`activation: {algorithm: [minmax, kl]}`), each one
            value or a list of them; the first is the default.
        op_wise: shell patterns of segments and ops, such as `layer_5`, and the precisions to try there.
    """

    approach: Annotated[list[Approach], BeforeValidator(listed)] = Field(
        default=["post_training_static_quant"], min_length=1
    )
    calibration: Calibration | None = None
    model_wise: dict[str, Any] = Field(default_factory=dict)
    op_wise: dict[str, OpWise] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_recipe_is_one(self) -> Self:
        axes = self.axes()
        default = {axis: options[0] for axis, options in axes.items()}
        for approach in self.approach:
            try:
                for axis, options in axes.items():
                    for option in options:
                        self.recipe(approach, default | {axis: option})
            except ValidationError as error:
                problem = str(explain(error, APPROACHES[approach].model_fields["kind"].default))
                raise PydanticCustomError("unknown_key", "{text}", {"text": problem}) from error
        return self

    def axes(self) -> dict[str, list[Any]]:
        """The options of each field of the recipe, and the precisions of each pattern; defaults first."""
        axes: dict[str, list[Any]] = {"calibration_rows": self.calibration.sampling_size} if self.calibration else {}
        for key, value in self.model_wise.items():
            parts = value if key in ("activation", "weight") and isinstance(value, dict) else {None: value}
            for part, options in parts.items():
                field = key if part is None else OPTIONS.get((key, part))
                if field in (None, "kind", "fallback", "calibration_rows"):
                    name = f"{key}.{part}" if part else key
                    allowed = [*(".".join(names) for names in OPTIONS), "the recipe's own options"]
                    raise PydanticCustomError("unknown_key", "{text}", {"text": unknown("option", name, allowed)})
                axes[field] = [VALUES.get(str(option), option) for option in listed(options)] or [None]
        return axes | {
            pattern: [precision for precision in PRECISIONS if precision in op.dtype]
            for pattern, op in self.op_wise.items()
        }

    def idle(self, approach: Approach) -> set[str]:
        """The axes that count for another approach, and not for this one."""

        def counts(axis: str, approach: Approach) -> bool:
            return ("fallback" if axis in self.op_wise else axis) in APPROACHES[approach].model_fields

        return {
            axis
            for axis in self.axes()
            if not counts(axis, approach) and any(counts(axis, other) for other in self.approach)
        }

    def most_fallbacks(self, approach: Approach) -> Int8Static | Int8Dynamic:
        """One with all that may fall back: it holds every pattern there is to check."""
        return self.recipe(approach, {axis: options[-1] for axis, options in self.axes().items()})

    def recipe(self, approach: Approach, chosen: dict[str, Any]) -> Int8Static | Int8Dynamic:
        """The recipe of an approach and one option of each axis."""
        counting = {axis: option for axis, option in chosen.items() if axis not in self.idle(approach)}
        fields = {name: option for name, option in counting.items() if name not in self.op_wise}
        kept = [pattern for pattern in self.op_wise if counting.get(pattern) == "fp32"]
        return APPROACHES[approach].model_validate(fields | ({"fallback": kept} if kept else {}))
