"""What a command ended with, for the tests that run one; the fixture `call` of `tests/conftest.py` runs it."""

from typing import NamedTuple


class Said(NamedTuple):
    """Exit code and output."""

    code: int
    out: str
    err: str
