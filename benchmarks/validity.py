"""Validity of timings: whether a run's seconds, and the ratios formed from them, may be trusted; and if not, why.

Runs of a session take turns within seconds of each other, so what slows all of them alike cancels out of every ratio:
it is worth a warning, for the seconds are then those of these minutes only. What hits one run and not the others does
not cancel, and neither does work that the machine does for somebody else: who needs all its threads at once loses most.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.records import Conditions

# Fewer repeats, or calls in all, say nothing about noise.
FEWEST_REPEATS, FEWEST_CALLS = 3, 20
# Calls that are looked at together: enough that one slow call is not a trend, at most so many groups in a repeat.
GROUP, MOST_GROUPS = 8, 16
# Standard deviation of a run's repeats, and its change from a session's beginning to its end, as shares: beyond the
# first of each is a warning, beyond the second a ratio over this run may be off by 15 or 20 %.
SPREAD, DRIFT = (0.1, 0.2), (0.1, 0.3)
# A trend counts that is so many of its standard errors.
CLEAR = 3.0
# Shares of the processors' time that others may take, and that the hypervisor may keep.
LOAD, STEAL = 0.1, 0.05
# How coarse the clock may be, as a share of a call, and how far the timer and the clock of the day may part.
TICK, CLOCK_GAP_S = 0.02, 1.0


class Doubt(NamedTuple):
    """One reason not to trust a timing. `invalid`: not even its ratios; else it is a warning."""

    invalid: bool
    reason: str

    @property
    def kind(self) -> str:
        """The word a reason begins with, such as `drift`."""
        return self.reason.partition(":")[0]

    @property
    def line(self) -> str:
        """`INVALID: load: ...`, or `warning: ...`."""
        return f"{'INVALID' if self.invalid else 'warning'}: {self.reason}"


def doubts(session: Mapping[str, np.ndarray], conditions: Conditions | None) -> dict[str, list[Doubt]]:
    """What is wrong with each run's seconds.

    Args:
        session: seconds [R, B], repeats of the same batches, of every run of one session, by any name.
        conditions: of that session; None where they were not recorded, so that nothing is said about them.
    """
    found = {name: _clock(seconds) or _few(seconds) for name, seconds in session.items()}
    paces = {name: _pace(session[name]) for name, doubted in found.items() if not doubted}
    for shape in {pace.shape for pace in paces.values()}:
        alike = {name: pace for name, pace in paces.items() if pace.shape == shape}
        common = np.median(list(alike.values()), axis=0)
        for name, pace in alike.items():
            # Of two runs, each is held against the other; of more, all against what most of them did.
            beside = common if len(alike) != 2 else next(alike[other] for other in alike if other != name)
            found[name] = _own(pace / beside) + _machine(common)
    shared = _conditions(conditions)
    return {name: doubted + shared for name, doubted in found.items()}


def _clock(seconds: np.ndarray) -> list[Doubt]:
    """Durations that no clock should give."""
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        return [Doubt(True, "clock: a call took no time, or less than none")]
    apart, typical = np.diff(np.unique(seconds)), float(np.median(seconds))
    tick = min(apart.tolist(), default=np.inf)
    # A few calls lie apart by chance; where the clock ticks, each is a whole number of ticks.
    if TICK * typical < tick < np.inf and np.allclose(seconds / tick, np.round(seconds / tick), rtol=0, atol=0.05):
        return [Doubt(True, f"clock: it ticks every {1000 * tick:.3g} ms, and a call takes {1000 * typical:.3g} ms")]
    return []


def _few(seconds: np.ndarray) -> list[Doubt]:
    repeats, calls = len(seconds), seconds.size
    if repeats >= FEWEST_REPEATS and calls >= FEWEST_CALLS:
        return []
    asked = f"{FEWEST_REPEATS} repeats and {FEWEST_CALLS} calls tell noise"
    return [Doubt(False, f"too few samples: {repeats} repeats and {calls} calls, where {asked}")]


def _pace(seconds: np.ndarray) -> np.ndarray:
    """How long groups of calls took against what they take at the median of the repeats: [R, B] -> [R, G], around 1."""
    groups = np.array_split(np.arange(seconds.shape[1]), min(max(1, seconds.shape[1] // GROUP), MOST_GROUPS))
    typical = np.median(seconds, axis=0)
    return np.stack([seconds[:, group].sum(axis=1) / typical[group].sum() for group in groups], axis=1)


def _own(pace: np.ndarray) -> list[Doubt]:
    """What happened to one run beside the others, in whose pace its own is given."""
    found, spread, drift = [], _spread(pace), _drift(pace)
    if spread > SPREAD[0]:
        reason = f"spread: repeats differ by {_percent(spread)} beside those of the other runs"
        found.append(Doubt(spread > SPREAD[1], reason))
    if abs(drift) > DRIFT[0]:
        reason = f"drift: {_percent(drift, '+')} from first to last beside the other runs"
        found.append(Doubt(abs(drift) > DRIFT[1], reason))
    return found


def _machine(pace: np.ndarray) -> list[Doubt]:
    """What happened to all runs alike."""
    spread, drift = _spread(pace), _drift(pace)
    if spread <= SPREAD[0] and abs(drift) <= DRIFT[0]:
        return []
    moved = f"drifted by {_percent(drift, '+')}" if abs(drift) > DRIFT[0] else f"varied by {_percent(spread)}"
    return [Doubt(False, f"machine: the pace of all runs {moved}: ratios hold, seconds are of these minutes only")]


def _conditions(conditions: Conditions | None) -> list[Doubt]:
    if conditions is None:
        return []
    found, gap = [], conditions.clock_gap_seconds
    if (stolen := conditions.stolen_share) > STEAL:
        found.append(Doubt(True, f"steal: the hypervisor kept {_percent(stolen)} of the processors' time"))
    if (others := conditions.other_share) is not None and others > LOAD:
        found.append(Doubt(True, f"load: other processes took {_percent(others)} of the processors' time"))
    if abs(gap) > CLOCK_GAP_S:
        found.append(Doubt(False, f"clock: the day's clock moved {gap:+.1f} s against the timer (set, or asleep)"))
    return found


def _spread(pace: np.ndarray) -> float:
    """Standard deviation of repeats [R, G] as a share of their mean."""
    repeats = pace.mean(axis=1)
    return float(repeats.std(ddof=1) / repeats.mean())


def _drift(pace: np.ndarray) -> float:
    """What a straight line through [R, G] changes from first to last, as a share; 0 where it is no clear trend."""
    values, when = pace.ravel() / pace.mean(), np.linspace(-0.5, 0.5, pace.size)
    slope = float(when @ values / (when @ when))
    left = values - 1 - slope * when
    error = np.sqrt(left @ left / max(1, pace.size - 2) / (when @ when))
    return slope if abs(slope) > CLEAR * error else 0.0


def _percent(share: float, sign: str = "") -> str:
    return f"{share * 100:{sign}.0f} %"
