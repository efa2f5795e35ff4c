"""What every configuration in ExitBench is made of: strict, frozen, inert data, and one kind of user error."""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the rule, the offending value and the fix. Command lines print it without a
    traceback and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """What another library said, fit for a one-line message; OpenVINO says where it failed before it says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.startswith("Exception from ")), type(error).__name__)
    return line if len(line) <= 160 else f"{line[:157]}..."


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
                    raise PydanticCustomError("unknown_key", "{text}", {"text": unknown("key", key, allowed)})
        return data


def read_yaml(path: Path, what: str, shipped: Path) -> dict[str, Any]:
    """The mapping a YAML file holds, such as a suite's.

    Args:
        path: the file.
        what: what it should be, in one word.
        shipped: the folder of those that come with ExitBench.

    Raises:
        UserError: missing file, broken YAML, or no mapping.
    """
    if not path.is_file():
        known = [str(p) for p in sorted(shipped.glob("*.yaml"))]
        raise UserError(f"{what} {str(path)!r} does not exist{nearest(path, known)} (known: {', '.join(known)})")
    try:
        raw = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a {what} is a mapping of keys; see {shipped}")
    return raw


def parsed(name: str, text: str, union: Any) -> Any:
    """What an option of a command line holds, written as in a suite.

    Raises:
        UserError: broken YAML, or no case of the union.
    """
    try:
        return TypeAdapter(union).validate_python(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {text!r}") from error
    except ValidationError as error:
        raise explain(error, name) from error


def nearest(value: object, allowed: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    found = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """`unknown WHAT 'value'; allowed: ...`, with the nearest match."""
    allowed = list(allowed)
    return f"unknown {what} {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}"


def cases(union: object) -> dict[str, type]:
    """Kind -> configuration class, of a (nested) annotated union of classes that have a literal `kind`."""
    found: dict[str, type] = {}
    for part in get_args(union):
        kinds = get_args(part.model_fields["kind"].annotation) if hasattr(part, "model_fields") else ()
        found |= dict.fromkeys(kinds, part) or cases(part)
    return found


def explain(
    error: ValidationError, source: str, key_path: Callable[[Any], Iterable[str | int]] = lambda problem: problem["loc"]
) -> UserError:
    """The first problem of a validation error as one line: where, what, what is allowed.

    Args:
        error: what pydantic found.
        source: what was read, such as a file name.
        key_path: where one of pydantic's error details lies in the source, if not where pydantic says.
    """
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in key_path(first)) or "top level"
    context, given = first.get("ctx", {}), first["input"]
    if first["type"] == "union_tag_invalid":
        problem = unknown("kind", context["tag"], _quoted(context["expected_tags"]))
    elif first["type"] == "literal_error":
        problem = f"{_lower(first['msg'])}, found {given!r}{nearest(given, _quoted(context['expected']))}"
    elif first["type"] == "unknown_key":
        problem = first["msg"]
    elif first["type"] == "missing":
        problem = "is required; add it"
    elif first["type"] == "union_tag_not_found":
        problem = f"kind: is required; add it to {given!r}"
    else:
        message = _lower(first["msg"].removeprefix("Value error, "))
        problem = message if ", found " in message else f"{message}, found {given!r}"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UserError(f"{source}: {path}: {problem}{more}")


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
