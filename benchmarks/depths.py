"""What an exit costs by depth: random weights, exits imposed at each layer, against the network without exits.

Timing only. Each turn of a case stands beside a turn of the no-exit network, so that a machine whose speed drifts moves
both; the embeddings, an exit head and a policy step are timed alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModel

from benchmarks.environment import environment
from benchmarks.statistics import Interval, ratio_interval
from models.network import ExitsConfig, MultiExitNetwork
from models.policies import Imposed
from quant.engines.openvino import OpenVinoSession
from quant.openvino_graph import step_model
from quant.programs import Inputs
from quant.recipes import Recipe, apply_recipe

VOCABULARY = 30522
WARM_UPS = 1
CALLS_PER_TURN = 6
CALIBRATION_ROWS = 8


class DepthRow(NamedTuple):
    """What leaving at `depth` costs.

    Efficiency is (depth / L x seconds of the no-exit network) / seconds of the graph, from calls that stood side by
    side: 1 is a free exit.
    """

    depth: int
    graph_s: float
    stepped_s: float
    efficiency: Interval


class DepthCosts(NamedTuple):
    """All figures of one input length, in mean seconds a call."""

    length: int
    no_exit_s: float
    rows: list[DepthRow]
    embeddings_s: float
    exit_head_s: float
    policy_step_s: float


def random_network(family: str, num_layers: int, hidden_size: int) -> MultiExitNetwork:
    """A randomly initialised network of the given shape, with a binary exit after every layer."""
    torch.manual_seed(0)
    options = {"embedding_size": 128} if family == "albert" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=514,
        **options,
    )
    backbone = AutoModel.from_config(config, attn_implementation="sdpa")
    return MultiExitNetwork(backbone, ExitsConfig(), num_labels=2).eval()


def random_inputs(batch_size: int, length: int) -> Inputs:
    """Full-length rows of random tokens."""
    ids = np.random.default_rng(length).integers(1000, VOCABULARY, (batch_size, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def measure_depths(
    session: OpenVinoSession, num_layers: int, lengths: list[int], batch_size: int, repeats: int
) -> list[DepthCosts]:
    """Time every depth at every length."""
    every = list(range(1, num_layers + 1))
    policies = [Imposed(exit_layers=[depth]) for depth in every]
    whole, graph = session.without_exits(num_layers), session.with_exits(policies[0], every)
    session.program = "stepped"
    stepped = session.with_exits(policies[0], every)
    steps = session.steps()
    policy_step = session.compile(step_model(policies[0], num_labels=2))[0].create_infer_request()
    rows = np.arange(batch_size)
    found = []
    for length in lengths:
        inputs = random_inputs(batch_size, length)
        hidden, mask = steps.embed(inputs)
        logits = steps.exit(0, hidden, mask)
        cases: dict[Any, Callable[[], Any]] = {
            "embeddings": lambda inputs=inputs: steps.embed(inputs),
            "exit_head": lambda hidden=hidden, mask=mask: steps.exit(0, hidden, mask),
            "policy_step": lambda logits=logits: policy_step.infer([logits]),
        }
        for depth, policy in zip(every, policies, strict=True):
            dials = policy.dials(rows)
            cases["graph", depth] = lambda inputs=inputs, dials=dials: graph.run(inputs, dials)
            cases["stepped", depth] = lambda inputs=inputs, dials=dials: stepped.run(inputs, dials)
        for depth in every:
            left = graph.run(inputs, policies[depth - 1].dials(rows)).exit_layer
            assert (left == depth).all(), (depth, left)
        beside = _side_by_side(lambda inputs=inputs: whole.run(inputs, {}), cases, repeats)
        found.append(_costs(length, every, beside))
    return found


def _side_by_side(
    baseline: Callable[[], Any], cases: dict[Any, Callable[[], Any]], repeats: int
) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Seconds a call of the baseline and of the case beside it, both [repeats], for every case."""
    names, seconds = list(cases), {name: np.empty((2, repeats)) for name in cases}
    for repeat in range(-WARM_UPS, repeats):
        start = repeat % len(names)
        for name in names[start:] + names[:start]:
            pair = _turn(baseline), _turn(cases[name])
            if repeat >= 0:
                seconds[name][:, repeat] = pair
    return {name: (pair[0], pair[1]) for name, pair in seconds.items()}


def _turn(call: Callable[[], Any]) -> float:
    """Mean seconds of a few calls in a row, as a server makes them: the first finds the other program's data cached."""
    call()
    before = time.perf_counter()
    for _ in range(CALLS_PER_TURN):
        call()
    return (time.perf_counter() - before) / CALLS_PER_TURN


def _costs(length: int, every: list[int], beside: dict[Any, tuple[np.ndarray, np.ndarray]]) -> DepthCosts:
    mean_s = {name: float(case.mean()) for name, (_, case) in beside.items()}
    rows = []
    for depth in every:
        whole, graph = beside["graph", depth]
        efficiency = ratio_interval(whole[:, None] * depth / len(every), graph[:, None])
        rows.append(DepthRow(depth, mean_s["graph", depth], mean_s["stepped", depth], efficiency))
    no_exit_s = float(np.mean([whole for whole, _ in beside.values()]))
    return DepthCosts(length, no_exit_s, rows, mean_s["embeddings"], mean_s["exit_head"], mean_s["policy_step"])


def print_costs(costs: DepthCosts, num_layers: int, console: Console) -> None:
    """One table: milliseconds by depth and the share of the ideal d / L speed-up that is reached."""
    table = Table(title=f"length {costs.length}: no exits {1e3 * costs.no_exit_s:.2f} ms")
    ideal = f"ideal (d/{num_layers}) ms"
    for column in ("leaves at", "graph ms", "stepped ms", ideal, "graph efficiency", "graph speed-up"):
        table.add_column(column, justify="right")
    for row in costs.rows:
        table.add_row(
            str(row.depth),
            f"{1e3 * row.graph_s:.2f}",
            f"{1e3 * row.stepped_s:.2f}",
            f"{1e3 * costs.no_exit_s * row.depth / num_layers:.2f}",
            "{:.3f} ({:.3f} to {:.3f})".format(*row.efficiency),
            f"{row.efficiency.estimate * num_layers / row.depth:.2f}x",
        )
    console.print(table)
    console.print(
        f"alone: embeddings {1e3 * costs.embeddings_s:.3f} ms, one exit head {1e3 * costs.exit_head_s:.3f} ms, "
        f"one policy step {1e3 * costs.policy_step_s:.3f} ms (each with a call's own overhead)\n"
    )


def run(options: argparse.Namespace, recipe: Recipe) -> int:
    """The `depths` command."""
    console = Console(width=110)
    network = random_network(options.family, options.layers, options.hidden)
    calibration = [random_inputs(1, 32 + i) for i in range(CALIBRATION_ROWS)]
    started = time.perf_counter()
    session = OpenVinoSession(apply_recipe(recipe, network, calibration), options.threads)
    where = environment()
    console.print(
        f"{options.family} {options.layers} x {options.hidden}, random weights, {recipe.kind} on openvino, batch "
        f"{options.batch}, {options.threads} threads, {where['cpu']} ({' '.join(where['kernel_flags'])}); "
        f"quantized and converted in {time.perf_counter() - started:.0f} s; timing only, no scores",
        highlight=False,
    )
    for costs in measure_depths(session, options.layers, options.length, options.batch, options.repeats):
        print_costs(costs, options.layers, console)
    return 0
