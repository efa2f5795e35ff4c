"""What moved between two output folders, of different commits or machines, beyond noise; and what must not be compared.

Runs are matched by case. Each quantity has a condition of its own: all need the same data, seconds also the same
machine, threads and batches; a speed-up that was formed inside each folder may cross machines.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.statistics import (
    Interval,
    difference_interval,
    exit_shift,
    exit_shift_by_chance,
    mean_layer,
    paired_difference_interval,
    percentile_interval,
    proportion_interval,
    ratio_change,
)
from models.config import UserError
from reports.runs import load_runs
from reports.summaries import Summary, newest, other_data, other_exits, other_machine, summarize
from reports.timings import Timings, comparable

TOLERANCE = 0.05


@dataclass(frozen=True)
class Change:
    """How a quantity changed: the numbers, a reader's words for them, and whether it is beyond noise."""

    before: float
    after: float
    text: str
    moved: bool


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case in two folders. Exactly one of `change` and `refused`, the reason, is given."""

    case: str
    quantity: Literal["record", "score", "exits", "latency", "speed-up"]
    change: Change | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Comparisons:
    """All of two folders; `only_before` and `only_after` are cases that one of them lacks."""

    before: str
    after: str
    compared: list[Comparison]
    only_before: list[str]
    only_after: list[str]

    @property
    def moved(self) -> list[Comparison]:
        """What moved beyond noise."""
        return [found for found in self.compared if found.change is not None and found.change.moved]


class Folder(NamedTuple):
    """An output folder: by case, the summary and the timings of its newest run."""

    name: str
    runs: dict[str, Summary]
    timings: dict[str, Timings]


def read_folder(path: Path) -> Folder:
    """Read an output folder.

    Raises:
        UserError: it holds no records, or a file in it is damaged.
    """
    runs = load_runs(path, by_row=False)
    ids = {case: row["run_id"] for case, row in newest(runs).items()}
    timings = {case: runs.timings[run_id] for case, run_id in ids.items() if run_id in runs.timings}
    return Folder(str(path), summarize(path, runs), timings)


def compare(before: Folder, after: Folder, tolerance: float = TOLERANCE) -> Comparisons:
    """Compare all cases that both folders hold.

    Args:
        before: what is compared with.
        after: what is compared.
        tolerance: a latency or speed-up has moved where its whole interval lies beyond this share, for the interval
            knows the noise inside a session, not that between two.

    Raises:
        UserError: the folders have no case in common.
    """
    both = [case for case in before.runs if case in after.runs]
    if not both:
        raise UserError(f"{before.name!r} and {after.name!r} have no case in common: nothing can be compared")
    return Comparisons(
        before.name,
        after.name,
        [found for case in both for found in _compare_case(case, before, after, tolerance)],
        [case for case in before.runs if case not in after.runs],
        [case for case in after.runs if case not in before.runs],
    )


def _compare_case(case: str, before: Folder, after: Folder, tolerance: float) -> Iterator[Comparison]:
    """What either run lacks is left out."""
    was, now = before.runs[case], after.runs[case]
    for folder, run in ((before, was), (after, now)):
        if run.error or run.invalid:
            what = f"failed: {run.error}" if run.error else f"INVALID: {run.invalid}"
            yield Comparison(case, "record", refused=f"{what} (in {folder.name})")
            return
    other, untimed = other_data(was, now, "dev"), was.timing_invalid or now.timing_invalid
    scores = [run.scores.get("dev", {}).get(run.metric) for run in (was, now)]
    if scores[0] is not None and scores[1] is not None:
        change, refused = (None, other) if other else _score(was, now, scores[0], scores[1])
        yield Comparison(case, "score", change, refused)
    if "dev" in was.exit_counts and "dev" in now.exit_counts:
        refused = other_exits(was, now)
        yield Comparison(case, "exits", *((None, refused) if refused else (_exits(was, now), None)))
    if case in before.timings and case in after.timings:
        refused = untimed or other or other_machine(was, now)
        timings = before.timings[case], after.timings[case]
        yield Comparison(case, "latency", *((None, refused) if refused else _latency(*timings, tolerance)))
    if "no_exit" in was.speedups and "no_exit" in now.speedups:
        refused = untimed or other
        yield Comparison(case, "speed-up", *((None, refused) if refused else (_speedup(was, now, tolerance), None)))


def _score(was: Summary, now: Summary, before: float, after: float) -> tuple[Change | None, str | None]:
    """Paired by row where the rows' answers are there."""
    if was.metric != "accuracy":
        return None, f"{was.metric} has no interval here; it went from {before:.4f} to {after:.4f}"
    rights = was.right_rows, now.right_rows
    if rights[0] is not None and rights[1] is not None:
        interval, how = paired_difference_interval(rights[0], rights[1]), "paired by row"
    else:
        rows = sum(was.exit_counts["dev"])
        shares = [proportion_interval(round(score * rows), rows) for score in (before, after)]
        interval, how = difference_interval(shares[0], shares[1]), "not paired"
    retrained = "" if was.checkpoint == now.checkpoint else ", another checkpoint"
    text = f"{after - before:+.4f} ({interval.low:+.4f} to {interval.high:+.4f}, {how}{retrained})"
    return Change(before, after, text, _beyond(interval, 0, 0)), None


def _exits(was: Summary, now: Summary) -> Change:
    """By histogram, as if the rows had been drawn anew."""
    counts = was.exit_counts["dev"], now.exit_counts["dev"]
    shift, chance = exit_shift(*counts), exit_shift_by_chance(*counts)
    means = mean_layer(counts[0]), mean_layer(counts[1])
    text = f"{means[1] - means[0]:+.2f} layers, Wasserstein-1 {shift:.2f} (by chance up to {chance:.2f})"
    return Change(means[0], means[1], text, shift > chance)


def _latency(before: Timings, after: Timings, tolerance: float) -> tuple[Change | None, str | None]:
    """The same rows were timed, so that batches are resampled in pairs."""
    if not comparable(before, after):
        return None, "other batches were timed"
    ratio = percentile_interval(after.total_s / before.total_s, after.draws_s / before.draws_s)
    return Change(before.per_example_s, after.per_example_s, _percent(ratio), _moved(ratio, tolerance)), None


def _speedup(was: Summary, now: Summary, tolerance: float) -> Change:
    before, after = was.speedups["no_exit"], now.speedups["no_exit"]
    ratio = ratio_change(before, after)
    across = ", another machine" if other_machine(was, now) else ""
    return Change(before.estimate, after.estimate, _percent(ratio) + across, _moved(ratio, tolerance))


def _moved(ratio: Interval, tolerance: float) -> bool:
    return _beyond(ratio, 1 / (1 + tolerance), 1 + tolerance)


def _beyond(interval: Interval, low: float, high: float) -> bool:
    return interval.low > high or interval.high < low


def _percent(ratio: Interval) -> str:
    moved, low, high = ((value - 1) * 100 for value in ratio)
    return f"{moved:+.1f} % ({low:+.1f} to {high:+.1f})"


def counts_lines(given: Comparisons) -> list[str]:
    """What was compared, what moved, and what was refused, with each reason once."""
    cases = len({found.case for found in given.compared})
    lines = [f"{given.after} against {given.before}: {cases} cases in both"]
    for quantity in dict.fromkeys(found.quantity for found in given.compared):
        of_it = [found for found in given.compared if found.quantity == quantity]
        refused = Counter(found.refused for found in of_it if found.refused is not None)
        moved = sum(found.quantity == quantity for found in given.moved)
        if len(of_it) > refused.total():
            lines.append(f"{quantity}: {len(of_it) - refused.total()} compared, {moved} moved beyond noise")
        lines += [f"{quantity}: {count} refused: {reason}" for reason, count in refused.items()]
    for name, only in ((given.before, given.only_before), (given.after, given.only_after)):
        lines += [f"only in {name}: {case}" for case in only]
    return lines


HEAD = ["moved", "before", "after", "change (95 %)", "case"]


def moved_rows(given: Comparisons) -> list[list[str]]:
    """A table of what moved, under `HEAD`; latencies in ms."""
    rows = []
    for found in given.moved:
        assert found.change is not None
        scale, unit = (1000, " ms") if found.quantity == "latency" else (1, "")
        numbers = [f"{value * scale:.4g}{unit}" for value in (found.change.before, found.change.after)]
        rows.append([found.quantity, *numbers, found.change.text, found.case])
    return rows


NOTES = [
    "Of what did not really change, about 1 in 20 scores and exits moves beyond a 95 % interval by chance.",
    "Intervals of latency know the noise inside a session, not that between two: trust the speed-up, which is formed"
    " inside each folder over the same network without exits.",
]


def print_all(console: Console, all_given: list[Comparisons]) -> None:
    """What `markdown` tells, on the console."""
    for given in all_given:
        for line in counts_lines(given):
            console.print(Text(line), soft_wrap=True)  # a path that is broken is no path
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for title in HEAD:
            table.add_column(title, overflow="fold")
        for row in moved_rows(given):
            table.add_row(*map(Text, row))
        if table.row_count:
            console.print(table)
    for note in NOTES:
        console.print(Text(note), soft_wrap=True)


def markdown(all_given: list[Comparisons]) -> str:
    """One section for each pair of folders."""
    lines = ["# Comparison", ""]
    for given in all_given:
        head, *counts = counts_lines(given)
        lines += [f"## {head}", "", *(f"- {line}" for line in counts), ""]
        if rows := moved_rows(given):
            lines += [f"| {' | '.join(HEAD)} |", "| --- | ---: | ---: | --- | --- |"]
            lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in NOTES)]) + "\n"


def json_text(all_given: list[Comparisons]) -> str:
    """Every comparison, moved or not."""
    return json.dumps([asdict(given) for given in all_given], indent=1) + "\n"
