"""Whose kernels run a network: the engines a suite can name.

Configurations are inert; `open` imports what it needs, so that a suite is read and listed without every engine
installed.
"""

import importlib.util
import shutil
from os import environ
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from models.config import Config, UserError
from quant.programs import EngineSession
from quant.segments import Segments


class Eager(Config):
    """PyTorch, uncompiled and stepped: the readable reference. INT8 is simulated."""

    kind: Literal["eager"] = "eager"

    def check(self) -> None:
        """Nothing to miss: PyTorch is always there."""

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Ready the segments for building programs."""
        from quant.engines.torch_cpu import open_eager

        return open_eager(segments, threads)


class Inductor(Config):
    """PyTorch compiled by inductor (needs g++), stepped; without exits, one graph."""

    kind: Literal["inductor"] = "inductor"

    def check(self) -> None:
        """Refuse early where there is no C++ compiler."""
        compiler = environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise UserError(f"engine inductor needs a C++ compiler, {compiler!r} is not found: install g++ or set CXX")

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Ready the segments for building programs."""
        from quant.engines.torch_cpu import open_inductor

        return open_inductor(segments, threads)


class OpenVino(Config):
    """OpenVINO's CPU kernels.

    Attributes:
        program: `graph` puts the exits into one compiled graph (the fast path); `stepped` loops over compiled segments.
    """

    kind: Literal["openvino"] = "openvino"
    program: Literal["graph", "stepped"] = "graph"

    def check(self) -> None:
        """Refuse early where OpenVINO is not installed."""
        if importlib.util.find_spec("openvino") is None:
            raise UserError("engine openvino is not installed: pip install openvino")

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Convert every segment once; programs are assembled from them."""
        from quant.engines.openvino import OpenVinoSession

        return OpenVinoSession(segments, threads, stepped=self.program == "stepped")


Engine = Annotated[
    Annotated[Eager | Inductor | OpenVino, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=Any),
]
