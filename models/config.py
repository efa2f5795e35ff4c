"""What every configuration in ExitBench is made of: strict, frozen, inert data, and one kind of user error."""

from pydantic import BaseModel, ConfigDict


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the rule, the offending value and the fix. Command lines print it without a
    traceback and exit with code 2.
    """


class Config(BaseModel):
    """Base of every configuration class: unknown keys are refused, values are not coerced, instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
