"""What errors say in one line."""

import pytest

from models.config import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("too small", "too small"),
        ("Exception from src/a.cpp:1:\nException from src/b.cpp:2:\nshapes differ\nand more", "shapes differ"),
        ("\n  first\nsecond", "first"),
        ("", "ValueError"),
        ("Exception from src/a.cpp:1:", "ValueError"),
        ("x" * 200, "x" * 157 + "..."),
    ],
)
def test_the_first_line_that_says_why(message: str, line: str):
    assert first_line(ValueError(message)) == line
