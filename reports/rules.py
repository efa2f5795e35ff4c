"""The rules of a gate: each judges one run, alone or against the baseline's run of the same case.

A new rule is one class here and its name in `Rule`. Limits are inclusive. A message says what was found, by how much
it moved, and what is allowed.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field

from benchmarks.statistics import Interval, exit_shift, mean_layer, paired_difference_interval, ratio_change
from models.config import Config
from reports.summaries import Summary, other_data, other_exits, other_machine

ROUNDING = 1e-9  # 0.98 - 0.97 is a hair more than 0.01
Limit = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=0.5)]
T = TypeVar("T")


class Judged(NamedTuple):
    """What a rule found on one run. `invalid`: it could not be judged."""

    outcome: Literal["pass", "fail", "invalid"]
    message: str


class _Selecting(Config):
    """`runs` is a shell pattern over cases."""

    runs: str = "*"


class Records(_Selecting):
    """Every run of the baseline has a record that is ok and valid. The other rules, too, ask this of their runs."""

    kind: Literal["records"]

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """Only sound records come here (`reports.gate.judge`)."""
        return Judged("pass", "has a record that is ok and valid")


class ScoreFloor(_Selecting):
    """A score is at least so much, whatever the baseline's was."""

    kind: Literal["score_floor"]
    split: str = "dev"
    metric: str | None = None
    at_least: Annotated[float, Field(ge=-1, le=1)]

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None for a run without that score, such as one that is timing only."""
        score = _score(after, self.split, self.metric)
        if score is None:
            return None
        within = score >= self.at_least - ROUNDING
        name = f"{self.metric or after.metric} on {self.split}"
        return _judged(within, f"{name} is {score:.4f}; at least {self.at_least:g} is asked")


class ScoreDrop(_Selecting):
    """A score is at most so much below the baseline's: in points of [-1, 1], or as a share of the baseline's.

    The same rows were scored, so the drop itself decides; its interval says what other rows might have shown.
    """

    kind: Literal["score_drop"]
    split: str = "dev"
    metric: str | None = None
    at_most: Limit
    relative: bool = False

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None where the baseline has no such score."""
        name = f"{self.metric or after.metric} on {self.split}"

        def compare(was: float, found: float) -> Judged:
            allowed = self.at_most * (abs(was) if self.relative else 1)
            message = f"{name} went from {was:.4f} to {found:.4f}, by {found - was:+.4f}{self._interval(before, after)}"
            return _judged(was - found <= allowed + ROUNDING, f"{message}; a drop of {allowed:.4g} is allowed")

        return _against(before, after, name, lambda run: _score(run, self.split, self.metric), compare, self._refusal)

    def _refusal(self, before: Summary, after: Summary) -> str | None:
        return other_data(before, after, self.split)

    def _interval(self, before: Summary | None, after: Summary) -> str:
        """Of the difference, paired by row; nothing where the rows' answers were not kept."""
        if before is None or (self.split, self.metric or after.metric) != ("dev", "accuracy"):
            return ""
        was, found = before.right_rows, after.right_rows
        if was is None or found is None:
            return ""
        difference = paired_difference_interval(was, found)
        return f" (95 % interval {difference.low:+.4f} to {difference.high:+.4f})"


class MeanLayerChange(_Selecting):
    """The mean exit layer stays within so many layers of the baseline's, up or down."""

    kind: Literal["mean_layer_change"]
    at_most: Limit

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None where the baseline counted no exits."""

        def compare(was: list[int], found: list[int]) -> Judged:
            means = mean_layer(was), mean_layer(found)
            moved = means[1] - means[0]
            message = f"mean exit layer went from {means[0]:.2f} to {means[1]:.2f}, by {moved:+.2f} layers"
            return _judged(abs(moved) <= self.at_most + ROUNDING, f"{message}; {self.at_most:g} either way is allowed")

        return _against(before, after, "exit counts", _exits, compare, other_exits)


class ExitShift(_Selecting):
    """The histogram of exits moved at most so many layers (Wasserstein-1), even where its mean stands still."""

    kind: Literal["exit_shift"]
    at_most: Limit

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None where the baseline counted no exits."""

        def compare(was: list[int], found: list[int]) -> Judged:
            moved = exit_shift(was, found)
            message = f"exits moved by {moved:.2f} layers (Wasserstein-1), from {was} to {found}"
            return _judged(moved <= self.at_most + ROUNDING, f"{message}; {self.at_most:g} is allowed")

        return _against(before, after, "exit counts", _exits, compare, other_exits)


class SpeedupDrop(_Selecting):
    """A speed-up formed inside the run is at most this share below the baseline's.

    Fails where the whole interval of the change lies beyond `at_most`. Where only the estimate does, or noise leaves
    room for a drop of twice `at_most`, the measurement cannot tell, and is INVALID. On another machine than the
    baseline's, `across_machines` takes the place of `at_most`; without it such runs are INVALID.
    """

    kind: Literal["speedup_drop"]
    over: Literal["no_exit", "best_int8", "best_float32", "float32_same_engine"] = "no_exit"
    at_most: Share
    across_machines: Share | None = None

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None where the baseline has no such speed-up."""
        allowed = self.at_most
        if before is not None and self.across_machines is not None and other_machine(before, after):
            allowed = self.across_machines

        def compare(was: Interval, found: Interval) -> Judged:
            change = ratio_change(was, found)
            moved, low, high = ((value - 1) * 100 for value in change)
            message = (
                f"speed-up over {self.over} went from {was.estimate:.2f} to {found.estimate:.2f}, by {moved:+.1f} %"
                f" (95 % interval {low:+.1f} to {high:+.1f})"
            )
            limit = 1 - allowed
            if change.high >= limit and (change.estimate < limit or change.low < limit - allowed):
                return Judged("invalid", f"{message}: too noisy to tell whether it is a drop of {allowed * 100:.3g} %")
            return _judged(change.high >= limit, f"{message}; a drop of {allowed * 100:.3g} % is allowed")

        name = f"speed-up over {self.over}"
        return _against(before, after, name, lambda run: run.speedups.get(self.over), compare, self._refusal)

    def _refusal(self, before: Summary, after: Summary) -> str | None:
        """Where rows leave, and so what exits save, depends on the data."""
        return (
            after.timing_invalid
            or before.timing_invalid
            or other_data(before, after, "dev")
            or (other_machine(before, after) if self.across_machines is None else None)
        )


class SizeGrowth(_Selecting):
    """A program's size on disk grew by at most this share."""

    kind: Literal["size_growth"]
    at_most: Limit

    def judge(self, before: Summary | None, after: Summary) -> Judged | None:
        """None where the baseline has no size."""

        def compare(was: int, found: int) -> Judged:
            grown = found / was - 1
            message = f"size went from {was} to {found} bytes, by {grown * 100:+.1f} %"
            return _judged(grown <= self.at_most + ROUNDING, f"{message}; {self.at_most * 100:+.3g} % is allowed")

        return _against(before, after, "size", lambda run: run.size_bytes, compare)


Rule = Annotated[
    Records | ScoreFloor | ScoreDrop | MeanLayerChange | ExitShift | SpeedupDrop | SizeGrowth,
    Field(discriminator="kind"),
]


def _against(
    before: Summary | None,
    after: Summary,
    quantity: str,
    read: Callable[[Summary], T | None],
    compare: Callable[[T, T], Judged],
    refusal: Callable[[Summary, Summary], str | None] = lambda before, after: None,
) -> Judged | None:
    """Compare one quantity with the baseline's; None where the baseline has none, so there is nothing to hold to."""
    if before is None or (was := read(before)) is None:
        return None
    if (found := read(after)) is None:
        return Judged("invalid", f"has no {quantity}, but the baseline's run has")
    if (reason := refusal(before, after)) is not None:
        return Judged("invalid", f"{quantity} cannot be compared with the baseline's: {reason}")
    return compare(was, found)


def _judged(within: bool, message: str) -> Judged:
    return Judged("pass" if within else "fail", message)


def _score(run: Summary, split: str, metric: str | None) -> float | None:
    return run.scores.get(split, {}).get(metric or run.metric)


def _exits(run: Summary) -> list[int] | None:
    return run.exit_counts.get("dev")
