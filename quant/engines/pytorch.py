"""Engines `eager`, `inductor` and `cuda`: PyTorch, uncompiled or through `torch.compile`, or on a GPU.

Early exit is stepped; without exits the network is one module, compiled whole by inductor.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from models.policies import Policy
from quant.programs import Dials, ExitOutput, Inputs, Program, Recorder, SteppedProgram, SteppedRecorder
from quant.segments import INPUT_NAMES, Segments, Whole

# One compiled variant for batch 1, one for other batches, for each of up to 48 layers and exits.
RECOMPILE_LIMIT = 256


class TorchSession:
    """Builds programs over torch segments, each moved to `device` and passed through `compile_module` first."""

    def __init__(
        self,
        segments: Segments,
        threads: int,
        compile_module: Callable[[nn.Module], Any] = lambda module: module,
        device: str = "cpu",
    ):
        torch.set_num_threads(threads)
        # Quantized segments keep their float graph and autocast the rest; float ones are cast for good.
        self.autocast = segments.int8 and segments.rest == "bfloat16"
        if not segments.int8 and (segments.rest != "float32" or device != "cpu"):
            segments = deepcopy(segments)  # the network they were cut from stays where and what it is
            for module in (segments.embeddings, *segments.layers, *segments.exits):
                module.to(device, getattr(torch, segments.rest))
        self.segments, self.compile_module, self.device = segments, compile_module, device
        self.precision = f"int8+{segments.rest}" if segments.int8 else segments.rest
        self._steps: TorchSteps | None = None

    def steps(self) -> "TorchSteps":
        """The compiled segments, shared by every stepped program."""
        if self._steps is None:
            self._steps = TorchSteps(self)
        return self._steps

    def mode(self) -> AbstractContextManager[Any]:
        """Under what a module runs."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()

    def tensors(self, inputs: Inputs) -> list[torch.Tensor]:
        """What the embeddings take."""
        return [torch.from_numpy(inputs[name]).to(self.device) for name in INPUT_NAMES]

    def size_bytes(self, exits: Sequence[int]) -> int | None:
        """Bytes of the parameters these exits take; unknown for INT8, whose weights torch packs when it first runs."""
        if self.segments.int8:
            return None
        modules = [*self.segments.layers[: exits[-1]], *(self.segments.exits[layer - 1] for layer in exits)]
        parameters = {id(p): p for module in modules for p in module.parameters()}
        # The embeddings are read out of a whole network.
        others = {id(p) for module in (*self.segments.layers, *self.segments.exits) for p in module.parameters()}
        parameters |= {id(p): p for p in self.segments.embeddings.parameters() if id(p) not in others}
        return sum(p.numel() * p.element_size() for p in parameters.values())

    def recorder(self, exits: Sequence[int]) -> Recorder:
        """All kept exits' logits, stepped."""
        return SteppedRecorder(self.steps(), exits)

    def with_exits(self, policy: Policy, exits: Sequence[int]) -> Program:
        """A stepped program."""
        return SteppedProgram(self.steps(), policy, exits, self.precision, self.size_bytes(exits))

    def without_exits(self, layer: int) -> Program:
        """The network up to `layer` and its exit, as one module."""
        return SingleProgram(self, layer)

    def precisions(self) -> dict[str, str]:
        """PyTorch does not say what it compiled."""
        return {}


class TorchSteps:
    """Segments run one by one (`quant.programs.Steps`)."""

    def __init__(self, session: TorchSession):
        self.session, segments = session, session.segments
        compiled = {
            id(module): session.compile_module(module)
            for module in (segments.embeddings, *segments.layers, *segments.exits)
        }
        self.embeddings = compiled[id(segments.embeddings)]
        self.layers = [compiled[id(module)] for module in segments.layers]
        self.exits = [compiled[id(module)] for module in segments.exits]

    @torch.no_grad()
    def embed(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        with self.session.mode():
            return self.embeddings(*self.session.tensors(inputs))

    @torch.no_grad()
    def layer(self, index: int, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with self.session.mode():
            return self.layers[index](hidden, mask)

    @torch.no_grad()
    def exit(self, index: int, hidden: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        with self.session.mode():
            return self.exits[index](hidden, mask).float().numpy(force=True)

    def take(self, array: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return array[torch.from_numpy(rows).to(array.device)]


class SingleProgram:
    """The whole or truncated network as one module, without exits."""

    kind: Literal["graph", "stepped", "single"] = "single"

    def __init__(self, session: TorchSession, layer: int):
        whole = Whole(session.segments, layer)
        self.session, self.layer, self.precision = session, layer, session.precision
        self.size_bytes = session.size_bytes([layer])
        self.module = session.compile_module(whole)

    @torch.no_grad()
    def run(self, inputs: Inputs, dials: Dials) -> ExitOutput:
        with self.session.mode():
            logits = self.module(*self.session.tensors(inputs)).float().numpy(force=True)
        return ExitOutput(logits, np.full(len(logits), self.layer, np.int64))


def open_eager(segments: Segments, threads: int) -> TorchSession:
    """PyTorch as it is. INT8 is simulated (quantize / dequantize around float kernels): right answers, no speed."""
    return TorchSession(segments, threads)


def open_inductor(segments: Segments, threads: int) -> TorchSession:
    """`torch.compile` with frozen weights; Neural Compressor's pairs lower to INT8 kernels."""
    import torch._dynamo.config
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    return TorchSession(segments, threads, lambda module: torch.compile(module, dynamic=True))


def open_cuda(segments: Segments, threads: int) -> TorchSession:
    """PyTorch as it is, on the first GPU. A call ends when its answer is in the memory of the host."""
    return TorchSession(segments, threads, device="cuda")
