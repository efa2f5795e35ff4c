"""Whose kernels run a network: the engines a suite can name.

Configurations are inert; `open` imports what it needs, so that a suite is read and listed without every engine
installed.
"""

import importlib.util
import shutil
from os import environ
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BeforeValidator, Field

from models.config import Config, UserError
from quant.programs import WHOLE_NETWORKS, EngineSession
from quant.segments import Segments


class Eager(Config):
    """PyTorch, uncompiled and stepped: the readable reference. INT8 is simulated."""

    kind: Literal["eager"] = "eager"

    def check(self) -> None:
        """Nothing to miss: PyTorch is always there."""

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Ready the segments for building programs."""
        from quant.engines.pytorch import open_eager

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
        from quant.engines.pytorch import open_inductor

        return open_inductor(segments, threads)


class OpenVino(Config):
    """OpenVINO's CPU kernels.

    Attributes:
        program: `graph` puts the exits into one compiled graph (the fast path); `trimmed` is that graph, and each exit
            also cuts the padding that no row left needs, which pays from batches of about 32 on; `stepped` loops over
            compiled segments.
    """

    kind: Literal["openvino"] = "openvino"
    program: Literal["graph", "trimmed", "stepped"] = "graph"

    def check(self) -> None:
        """Refuse early where OpenVINO is not installed."""
        if importlib.util.find_spec("openvino") is None:
            raise UserError("engine openvino is not installed: pip install openvino")

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Convert every segment once; programs are assembled from them."""
        from quant.engines.openvino import OpenVinoSession

        return OpenVinoSession(segments, threads, self.program)


class Cuda(Config):
    """PyTorch on an NVIDIA GPU, stepped; without exits, one module. A baseline: INT8 here is the CPU's."""

    kind: Literal["cuda"] = "cuda"

    def check(self) -> None:
        """Nothing to install; where there is no GPU, `cannot_run` says so."""

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Move the segments to the GPU."""
        from quant.engines.pytorch import open_cuda

        return open_cuda(segments, threads)


class OnnxRuntime(Config):
    """ONNX Runtime's CPU kernels and its own quantizers, with the exits inside one graph.

    Attributes:
        program: `graph` runs a batch as it is; `rows` runs the rows of a batch one by one, each without its padding.
    """

    kind: Literal["onnxruntime"] = "onnxruntime"
    program: Literal["graph", "rows"] = "graph"

    def check(self) -> None:
        """Refuse early where ONNX Runtime is not installed."""
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"engine onnxruntime needs {package}, which is not installed: pip install {package}")

    def open(self, segments: Segments, threads: int) -> EngineSession:
        """Ready the segments for building programs."""
        from quant.engines.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(segments, threads, self.program)


# The engines whose graphs are served without this project.
ServingEngine: TypeAlias = OpenVino | OnnxRuntime
SERVING: dict[str, ServingEngine] = {"openvino": OpenVino(), "onnxruntime": OnnxRuntime()}

# The recipes that not every engine runs.
ENGINES_OF: dict[str, tuple[str, ...]] = {
    "bfloat16": ("eager", "inductor", "openvino", "cuda"),
    "float16": ("cuda",),
    "int8_static": ("eager", "inductor", "openvino"),
    "int8_native": ("openvino", "onnxruntime"),
    "int8_dynamic": ("openvino", "onnxruntime"),
}


def depends_on_batch(recipe: str, engine: "Engine", batch_size: int) -> bool:
    """Whether a row's logits depend on the rows beside it: ONNX Runtime's dynamic INT8 has one scale for a batch."""
    return batch_size > 1 and (recipe, engine) == ("int8_dynamic", OnnxRuntime())


def cannot_run(recipe: str, engine: "Engine", with_exits: bool, batch_size: int = 1) -> str | None:
    """Why a kind of recipe does not run on an engine, or None."""
    if engine.kind not in ENGINES_OF.get(recipe, (engine.kind,)):
        return f"recipe {recipe} runs on {' and '.join(ENGINES_OF[recipe])}, not on {engine.kind}"
    if engine.kind == "cuda" and not torch.cuda.is_available():
        return "engine cuda finds no GPU here"
    if with_exits and depends_on_batch(recipe, engine, batch_size):
        # Who left would move the answers of who stays: not what was replayed.
        return (
            "recipe int8_dynamic on onnxruntime, which has one scale for a batch, takes exits at batch_size: 1, "
            "or with engine: {kind: onnxruntime, program: rows}"
        )
    if with_exits and recipe == "int8_native":
        return WHOLE_NETWORKS
    return None


Engine = Annotated[
    Annotated[Eager | Inductor | OpenVino | OnnxRuntime | Cuda, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=Any),
]
