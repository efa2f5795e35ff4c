"""The tasks a suite can name: GLUE, the generated task, or a user's own table.

A new task is one class, in a file of its own, and its line in `Task`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from models.data import METRICS, BaseTask, MetricName, Rows, TaskData
from models.glue import GlueTask
from models.synthetic import SyntheticTask
from models.tables import TableTask

__all__ = ["METRICS", "BaseTask", "GlueTask", "MetricName", "Rows", "SyntheticTask", "TableTask", "Task", "TaskData"]


def _expand(value: Any) -> Any:
    """A bare word is shorthand: `sst2` is `{kind: sst2}`."""
    return {"kind": value} if isinstance(value, str) else value


Task = Annotated[
    Annotated[GlueTask | SyntheticTask | TableTask, Field(discriminator="kind")],
    BeforeValidator(_expand),
]
