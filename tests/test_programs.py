"""Programs: replayed, stepped and in-graph exits and labels are the same, whatever the network, numbers and policy.

Every network here is random and tiny, which is the hardest case: its margins are far smaller than a trained network's.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import nn

import quant.engines.openvino as openvino_engine
import quant.recipes as recipes
from models.config import Config
from models.network import ExitsConfig, MultiExitNetwork
from models.policies import Confidence, Entropy, Fixed, Imposed, Patience, PolicyConfig, entropy, replay
from models.ops import Array, NumpyOps, Ops
from quant.engine import Eager, OpenVino
from quant.recipes import Bfloat16, Float32, Int8Static, apply_recipe
from quant.segments import Embeddings, Layer, Segments
from tests import tiny

LAYERS, ROWS, CLASSES = 3, 24, 3
EXITS = [1, 2, 3]
STRUCTURES = [ExitsConfig(pooling=p, pooler=q) for p, q in product(("first_token", "mean"), ("shared", "per_exit"))]
RECIPES = {r.kind: r for r in (Float32(), Bfloat16(), Int8Static(observer="minmax", calibration_rows=8))}
ENGINES = {"graph": OpenVino(), "stepped": OpenVino(program="stepped"), "eager": Eager()}
POLICIES: list[Any] = [
    Fixed(layer=2),
    Patience(patience=1),
    Entropy(threshold=0.5),
    Confidence(threshold=0.7),
    Imposed(exit_layers=[1, 3, 2, 3]),
]
BATCH_SIZES = (1, 3, 8)
# A row may leave or answer otherwise than replayed only where its decision was this close to turning. float32 programs
# differ in the last bits alone; bfloat16 rounds to 8 bits wherever a kernel starts or ends, and an INT8 activation that
# falls on the other side of a rounding moves by a whole step.
EPSILON = {"float32": 1e-4, "bfloat16": 0.2, "int8_static": 0.2}


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Export a module once: it takes a second, and the structures of a family share their embeddings and layers."""
    answers: dict[int, tuple[Any, Any]] = {}

    def once(*arguments: Any) -> Any:
        module = next(a for a in arguments if isinstance(a, nn.Module))
        shared: Any = module
        if isinstance(module, Layer):
            shared = module.layer
        elif isinstance(module, Embeddings):
            shared = module.network.backbone
        if id(shared) not in answers:
            answers[id(shared)] = shared, function(*arguments)  # kept, so that its id is not given away
        return answers[id(shared)][1]

    return once


@pytest.fixture(scope="module", autouse=True)
def export_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "_quantize", remembered(recipes._quantize))
        patch.setattr(openvino_engine, "_convert", remembered(openvino_engine._convert))
        yield


class Case(NamedTuple):
    family: str
    exits: ExitsConfig
    recipe: str
    num_labels: int = CLASSES


class Bench:
    """One network in one recipe, opened by every engine."""

    def __init__(self, case: Case, body: Any):
        self.case = case
        network = tiny.with_exits(body, case.exits, case.num_labels)
        self.rows = tiny.encoded(ROWS, seed=3)
        calibration = tiny.batches(tiny.encoded(8, seed=4), 1, case.family)
        segments = apply_recipe(RECIPES[case.recipe], network, calibration)
        self.sessions = {}
        for name, engine in ENGINES.items():
            # Eager casts the modules it is given, so it gets its own.
            own = copy.deepcopy(segments) if name == "eager" and case.recipe == "bfloat16" else segments
            self.sessions[name] = engine.open(own, threads=1)


import time


def main():
    body = {}
    t_all = time.process_time()
    for fam in tiny.FAMILIES:
        body[fam] = tiny.backbone(fam, num_layers=LAYERS)
        if fam == "roberta":
            body[fam].encoder.layer = nn.ModuleList([body[fam].encoder.layer[0]] * LAYERS)
        for r in RECIPES:
            for ex in STRUCTURES:
                t = time.process_time()
                w = time.time()
                b = Bench(Case(fam, ex, r), body[fam])
                t1 = time.process_time() - t
                t = time.process_time()
                recs = {k: s.recorder(EXITS) for k, s in b.sessions.items()}
                t2 = time.process_time() - t
                t = time.process_time()
                st = {k: b.sessions[k].with_exits(POLICIES[1], EXITS) for k in ("stepped", "eager")}
                t3 = time.process_time() - t
                t = time.process_time()
                g = [b.sessions["graph"].with_exits(p, EXITS) for p in POLICIES]
                t4 = time.process_time() - t
                t = time.process_time()
                logits = {}
                for k, rec in recs.items():
                    logits[k] = [
                        np.concatenate([rec(i) for i in tiny.batches(b.rows, s, fam)], axis=1) for s in BATCH_SIZES
                    ]
                t5 = time.process_time() - t
                ref = logits["graph"][0]
                d = {k: [round(float(abs(x - ref).max()), 6) for x in v] for k, v in logits.items()}
                print(
                    fam,
                    r,
                    ex.pooling,
                    ex.pooler,
                    "open %.2f rec %.2f stepped %.2f graph %.2f run %.2f wall %.1f"
                    % (t1, t2, t3, t4, t5, time.time() - w),
                    d,
                    flush=True,
                )
    print(time.process_time() - t_all)


if __name__ == "__main__":
    recipes._quantize = remembered(recipes._quantize)
    openvino_engine._convert = remembered(openvino_engine._convert)
    main()
