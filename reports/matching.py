"""Whether thresholds carry over: the dial with which an INT8 run leaves as early, or scores as well, as float32.

Both are found on `tune` and read on `dev`. The first may be any, tried by replay. The second is one that the suite
measured: scores on `tune` are in its records, but the labels of those rows are not.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from benchmarks.records import RunRecord
from benchmarks.statistics import mean_layer
from models.ops import NumpyOps
from models.policies import AtOneExit, Patience, Policy, replay
from reports.answers import Answers
from reports.hindsight import predictions_of
from reports.runs import Row, Runs

POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)


class Matched(NamedTuple):
    """An INT8 run with another dial: the dial, and the answers to the dev rows with it."""

    dial: float
    answers: Answers


def read_policy(record: RunRecord) -> Policy | None:
    """A run's policy; None for one that this version does not know."""
    try:
        return POLICY.validate_python(record.policy)
    except ValidationError:
        return None


def same_layers(runs: Runs, float32: Row, int8: Row) -> Matched | None:
    """INT8 with the dial that on `tune` brings its mean exit layer nearest to that of float32.

    None for a policy without a dial of its own, with one exit kept, and where recording or exits on `tune` are missing.
    """
    record, recording = runs.records[int8["run_id"]], runs.recording(int8["run_id"])
    policy, counts = read_policy(record), runs.records[float32["run_id"]].exit_counts.get("tune")
    name = dial_name(policy)
    if policy is None or name is None or recording is None or not counts or len(record.exits) == 1:
        return None
    dial = _nearest(policy, name, recording.of("tune", record.exits), record.exits, mean_layer(counts))
    found = replay(_turned(policy, name, dial), recording.of("dev", record.exits), record.exits)
    given = runs.answers[int8["run_id"]]
    return Matched(dial, given._replace(predictions=predictions_of(found.logits), exit_layers=found.exit_layer))


def same_score(runs: Runs, float32: Row, int8: Row) -> Matched | None:
    """Of the INT8 runs that differ in their dial alone, the one that leaves earliest and on `tune` scores no less.

    None where no dial of the suite scores as much on `tune` as float32, and for a policy without a dial of its own.
    """
    name = dial_name(read_policy(runs.records[int8["run_id"]]))
    if name is None or float32["tune_score"] is None:
        return None
    others = [runs.records[row["run_id"]] for row in runs.rows if _but_for_the_dial(runs, row, int8)]
    metric = int8["metric"]
    reaching = [other for other in others if other.scores["tune"][metric] >= float32["tune_score"]]
    best = min(reaching, key=lambda other: mean_layer(other.exit_counts["tune"]), default=None)
    return None if best is None else Matched(best.policy[name], runs.answers[best.run_id])


def dial_name(policy: Policy | None) -> str | None:
    """The field that moves a policy's exits from early to late; None where there is none."""
    if isinstance(policy, Patience):
        return "patience"
    return policy.dial if isinstance(policy, AtOneExit) else None


def _but_for_the_dial(runs: Runs, row: Row, int8: Row) -> bool:
    """Whether a run that has answers, and a score and exits on `tune`, is INT8's, or as it with another dial."""
    one, other = (runs.records[given["run_id"]] for given in (row, int8))
    if row["run_id"] not in runs.answers or row["tune_score"] is None or "tune" not in one.exit_counts:
        return False
    same = all(row[name] == int8[name] for name in ("task", "shape", "checkpoint", "recipe", "engine", "role"))
    return same and (one.exits, one.policy["kind"]) == (other.exits, other.policy["kind"])


def _turned(policy: Policy, name: str, dial: float) -> Policy:
    return policy.model_copy(update={name: dial})


def _nearest(policy: Policy, name: str, logits: np.ndarray, exits: Sequence[int], mean: float) -> float:
    """The dial with which the mean exit layer of these rows, [len(exits), N, C], comes nearest to `mean`."""

    def mean_at(dial: float) -> float:
        return float(replay(_turned(policy, name, dial), logits, exits).exit_layer.mean())

    dials: list[float] = list(range(1, len(exits)))
    if isinstance(policy, AtOneExit):
        # Between two values that were seen, a threshold decides alike.
        seen = np.unique(type(policy).quantity(NumpyOps(), logits[:-1]))
        dials = [float(np.nextafter(seen[0], -np.inf)), *seen.tolist(), float(np.nextafter(seen[-1], np.inf))]
    if mean_at(dials[0]) > mean_at(dials[-1]):
        dials.reverse()
    place = bisect_left(dials, mean, key=mean_at)
    return min(dials[max(place - 1, 0) : place + 1], key=lambda dial: abs(mean_at(dial) - mean))
