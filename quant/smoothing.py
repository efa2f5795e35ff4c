"""SmoothQuant (Xiao et al. 2023, section 4): outliers of activations move into the weights that multiply them.

Static INT8 has one scale for a whole activation, which its largest channel decides. Every channel j of a linear op's
input is divided by `s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)` and its column of weights multiplied by it: the same
product, of factors that 8 bits hold better.
"""

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn
from torch.nn import functional as F

# No channel's largest value counts as less, or a silent one would have no scale.
SMALLEST = 1e-5


class SmoothedLinear(nn.Linear):
    """A linear op over `x / s` with the weights `w s`.

    The division belongs to the op and is not folded into the normalization before it, which a residual reads, too.

    Args:
        linear: the op whose function this is.
        channels: s, [in_features].
    """

    shrink: torch.Tensor

    def __init__(self, linear: nn.Linear, channels: torch.Tensor):
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = nn.Parameter(linear.weight * channels), linear.bias
        self.register_buffer("shrink", channels.reciprocal())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input * self.shrink, self.weight, self.bias)


@torch.no_grad()
def smoothed(
    module: nn.Module, inputs: Sequence[tuple[torch.Tensor, torch.Tensor]], alpha: float, kept: Collection[str]
) -> nn.Module:
    """A copy of a segment whose linear ops are smoothed.

    Args:
        module: in evaluation mode.
        inputs: what reaches it in calibration.
        alpha: how much of the difficulty moves from activations (0) to weights (1).
        kept: paths of linear ops that stay as they are.
    """
    module = copy.deepcopy(module)
    largest: dict[str, torch.Tensor] = {}
    read: dict[str, torch.Tensor] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen = given[0].abs().flatten(0, -2).amax(0)
            largest[path] = torch.maximum(largest[path], seen) if path in largest else seen
            read[path] = given[0]  # held, so that no other tensor takes its place in memory

        return hook

    linear = [(path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear) and path not in kept]
    hooks = [part.register_forward_pre_hook(watch(path)) for path, part in linear]
    for hidden, mask in inputs:
        module(hidden, mask)
    for hook in hooks:
        hook.remove()
    together: dict[int, list[tuple[str, nn.Linear]]] = {}
    for path, part in linear:
        together.setdefault(id(read[path]), []).append((path, part))
    for group in together.values():  # ops that read the same are to quantize it once
        weights = torch.stack([part.weight.abs().amax(0) for _, part in group]).amax(0)
        channels = largest[group[0][0]].clamp(min=SMALLEST) ** alpha / weights.clamp(min=SMALLEST) ** (1 - alpha)
        for path, part in group:
            module.set_submodule(path, SmoothedLinear(part, channels))
    return module
