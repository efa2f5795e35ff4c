"""Which segment's INT8 moves the exits: one segment at a time is quantized, all others stay in floating point.

The network is recorded once in floating point, once for each quantized segment, and once with all of them. What differs
between the recordings is that segment's doing: a layer moves all exits from its own on, an exit only itself.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from models.checkpoints import Checkpoint
from models.config import UserError
from models.encoding import collate, encode
from models.ops import NumpyOps
from models.policies import Policy, entropy, replay
from models.tasks import Task, TaskData
from quant.engines.openvino import OpenVinoSession, convert
from quant.openvino_graph import OpenVinoSegments
from quant.programs import Inputs
from quant.recipes import Int8Static, apply_recipe, calibration_inputs, check_fallback
from quant.segments import cut

BATCH_SIZE = 32
EVERYTHING = "all"


class Shift(NamedTuple):
    """What quantizing one segment does at one exit, less what floating point does there.

    Attributes:
        segment: `layer_1`.., `exit_1`.., or `all` of them together.
        exit_layer: the exit, counted from 1.
        score_change: of the exit's own answers, in the task's headline metric.
        entropy_change: mean over the rows, in nats; None for a regression.
        leaving_change: share of all rows that the policy lets leave here.
    """

    segment: str
    exit_layer: int
    score_change: float
    entropy_change: float | None
    leaving_change: float


class Moved(NamedTuple):
    """What quantizing one segment does to the policy's exits and answers, less what floating point does.

    Attributes:
        exits_moved: share of the rows that leave at another layer.
        layer_change: of the mean exit layer.
        score_change: of the policy's answers, in the task's headline metric.
    """

    segment: str
    exits_moved: float
    layer_change: float
    score_change: float


class Sensitivity(NamedTuple):
    """Figures for each segment, and for each segment and exit."""

    rows: int
    metric: str
    moved: list[Moved]
    shifts: list[Shift]


def sensitivity(
    checkpoint: Checkpoint, task: Task, data: TaskData, recipe: Int8Static, policy: Policy, rows: int
) -> Sensitivity:
    """Quantize each segment alone, then all, and compare with floating point over rows of `tune`.

    Args:
        checkpoint: the trained network.
        task: what it was trained on.
        data: its rows: `fit` calibrates, `tune` is compared on.
        recipe: the numbers; what its `fallback` names stays in floating point throughout.
        policy: decides where rows leave, over all exits.
        rows: how many rows of `tune`, drawn by the recipe's seed.

    Raises:
        UserError: a recipe or policy that does not fit the network or the task.
    """
    if policy.timing_only or (policy.classification_only and task.regression):
        raise UserError(f"policy {policy.kind} decides nothing on task {task.name}: give another --policy")
    network = checkpoint.network
    check_fallback(recipe, network)
    tune, random = data.splits["tune"], np.random.default_rng(recipe.seed)
    chosen = tune.take(np.sort(random.permutation(len(tune))[:rows]).tolist())
    max_seq_length, pad = checkpoint.training["spec"]["train"]["max_seq_length"], network.backbone.config.pad_token_id
    encoded = encode(chosen, checkpoint.tokenizer, max_seq_length)
    order = np.argsort(encoded.lengths, kind="stable")
    batches = [
        collate(encoded, order[i : i + BATCH_SIZE].tolist(), pad, "longest", max_seq_length)
        for i in range(0, len(order), BATCH_SIZE)
    ]
    labels = chosen.labels[order]
    calibration = calibration_inputs(recipe, data.splits["fit"], checkpoint.tokenizer, max_seq_length, pad)
    session = OpenVinoSession(apply_recipe(recipe, network, calibration), threads=0)
    plain = convert(cut(network))
    compare = _Comparison(task, policy, labels, _record(session, plain, batches))
    moved, shifts = [], []
    for segment in [*cut(network).named(), EVERYTHING]:
        mixed = session.segments if segment == EVERYTHING else _with_one(plain, session.segments, segment)
        logits = _record(session, mixed, batches)
        moved.append(compare.policy_of(segment, logits))
        shifts += compare.exits_of(segment, logits)
    return Sensitivity(len(labels), task.headline_metric, moved, shifts)


def _with_one(plain: OpenVinoSegments, quantized: OpenVinoSegments, segment: str) -> OpenVinoSegments:
    """`plain` with one segment of `quantized`."""
    kind, layer = segment.split("_")
    field, index = f"{kind}s", int(layer) - 1
    mixed = list(getattr(plain, field))
    mixed[index] = getattr(quantized, field)[index]
    return replace(plain, **{field: mixed})


def _record(session: OpenVinoSession, segments: OpenVinoSegments, batches: Sequence[Inputs]) -> np.ndarray:
    """Logits of every exit, [L, N, C]."""
    recorder = session.recorder_of(segments, range(1, len(segments.exits) + 1))
    return np.concatenate([recorder(batch) for batch in batches], axis=1)


class _Comparison:
    """Recordings against the one in floating point."""

    def __init__(self, task: Task, policy: Policy, labels: np.ndarray, plain: np.ndarray):
        self.task, self.policy, self.labels, self.plain = task, policy, labels, plain
        self.exits = list(range(1, len(plain) + 1))

    def score(self, logits: np.ndarray) -> float:
        """The headline metric of logits [N, C]."""
        return self.task.metrics(self.labels, self.task.predictions(logits))[self.task.headline_metric]

    def policy_of(self, segment: str, logits: np.ndarray) -> Moved:
        before, after = (replay(self.policy, recorded, self.exits) for recorded in (self.plain, logits))
        return Moved(
            segment,
            exits_moved=float((before.exit_layer != after.exit_layer).mean()),
            layer_change=float(after.exit_layer.mean() - before.exit_layer.mean()),
            score_change=self.score(after.logits) - self.score(before.logits),
        )

    def exits_of(self, segment: str, logits: np.ndarray) -> list[Shift]:
        before, after = (replay(self.policy, recorded, self.exits).exit_layer for recorded in (self.plain, logits))
        shifts = []
        for layer, was, now in zip(self.exits, self.plain, logits, strict=True):
            uncertain = None
            if not self.task.regression:
                uncertain = float((entropy(NumpyOps(), now) - entropy(NumpyOps(), was)).mean())
            leaving = float((after == layer).mean() - (before == layer).mean())
            shifts.append(Shift(segment, layer, self.score(now) - self.score(was), uncertain, leaving))
        return shifts


def write_csv(path: Path, found: Sensitivity) -> None:
    """A row for each segment and exit: the fields of `Shift`, in that order."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Shift._fields)
        writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in shift] for shift in found.shifts)


def table(found: Sensitivity) -> Table:
    """A line for each segment; of its exits, the ones it moves most."""
    made = Table()
    for column in ("in INT8", "exits moved %", "mean layer", f"{found.metric} %", "most at one exit", "entropy"):
        made.add_column(column, justify="left" if column == "in INT8" else "right")
    for moved in found.moved:
        own = [shift for shift in found.shifts if shift.segment == moved.segment]
        score = max(own, key=lambda shift: abs(shift.score_change))
        cells = [f"{moved.exits_moved * 100:.1f}", f"{moved.layer_change:+.3f}", f"{moved.score_change * 100:+.2f}"]
        cells.append(f"{score.score_change * 100:+.2f} at {score.exit_layer}" if score.score_change else "none")
        certain = max(own, key=lambda shift: abs(shift.entropy_change or 0))
        cells.append(f"{certain.entropy_change:+.4f} at {certain.exit_layer}" if certain.entropy_change else "none")
        made.add_row(moved.segment, *cells, end_section=moved is found.moved[-2])
    return made
