"""What every configuration in ExitBench is made of: strict, frozen, inert data, and one kind of user error."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the rule, the offending value and the fix. Command lines print it without a
    traceback and exit with code 2.
    """


class Config(BaseModel):
    """Base of every configuration class: unknown keys are refused, values are not coerced, instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: Any) -> Any:
        """Refuse an unknown key with what is allowed and the nearest match, which pydantic's own message lacks."""
        if isinstance(data, dict):
            allowed = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in allowed and key not in cls.model_fields:
                    raise PydanticCustomError("unknown_key", "{text}", {"text": _unknown("key", key, allowed)})
        return data


def nearest(value: object, allowed: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    found = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    return f"unknown {what} {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}"


def explain(error: ValidationError, source: str) -> UserError:
    """The first problem of a validation error as one line: where, what, what is allowed."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or "top level"
    context = first.get("ctx", {})
    if first["type"] == "union_tag_invalid":
        tags = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
        problem = _unknown("kind", context["tag"], tags)
    elif first["type"] == "unknown_key":
        problem = first["msg"]
    elif first["type"] == "missing":
        problem = "is required; add it"
    else:
        problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}, found {first['input']!r}"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UserError(f"{source}: {path}: {problem}{more}")
