"""Validity: what is wrong with a timing is found, and what is not wrong with it is not."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.environment import conditions, moment
from benchmarks.records import Conditions
from benchmarks.validity import Doubt, doubts

RUNS, REPEATS, BATCHES, SESSIONS = 8, 5, 128, 100
QUIET = Conditions(processors=2, wall_seconds=60, other_seconds=1, stolen_seconds=0.1, clock_gap_seconds=0.001)
Trace = Callable[[np.random.Generator, list[np.ndarray]], None]


def session(draw: np.random.Generator) -> list[np.ndarray]:
    """Seconds [R, B] of runs that take turns on a machine whose pace wanders by 3 %; calls by 5 %, some by half."""
    costs = draw.lognormal(0, 0.4, BATCHES) / 200
    wander = np.repeat(draw.normal(0, 0.03, (REPEATS, BATCHES // 16)), 16, axis=1)
    runs = []
    for level in draw.uniform(0.3, 1, RUNS):
        calls = draw.lognormal(0, 0.05, (REPEATS, BATCHES)) * np.where(draw.random((REPEATS, BATCHES)) < 0.01, 1.5, 1)
        runs.append(level * costs * np.exp(wander) * calls)
    return runs


def line(change: float) -> np.ndarray:
    """1 to 1 + change from the first call to the last, [R, B]."""
    return 1 + change * np.linspace(0, 1, REPEATS * BATCHES).reshape(REPEATS, BATCHES)


def bursts(draw: np.random.Generator) -> np.ndarray:
    """Two stretches of ten calls that take ten times as long."""
    held_up = np.ones(REPEATS * BATCHES)
    for first in draw.choice(REPEATS * BATCHES - 10, 2):
        held_up[first : first + 10] = 10
    return held_up.reshape(REPEATS, BATCHES)


def bimodal(draw: np.random.Generator) -> np.ndarray:
    """Some repeats at one pace, the others at half of it."""
    slow = draw.permutation(REPEATS) < draw.integers(1, REPEATS)
    return np.where(slow, 2.0, 1.0)[:, None]


def _one(effect: Callable[[np.random.Generator], np.ndarray]) -> Trace:
    """What happens to the first run alone."""

    def plant(draw: np.random.Generator, runs: list[np.ndarray]) -> None:
        runs[0] *= effect(draw)

    return plant


def _all(effect: Callable[[np.random.Generator], np.ndarray]) -> Trace:
    """What happens to all alike."""

    def plant(draw: np.random.Generator, runs: list[np.ndarray]) -> None:
        shared = effect(draw)
        for run in runs:
            run *= shared

    return plant


def wobble(draw: np.random.Generator, runs: list[np.ndarray]) -> None:
    """A tenth more or less in each block of 64 calls of a run: what disturbed it is over when the next has its turn."""
    for run in runs:
        run *= np.repeat(draw.normal(1, 0.1, (REPEATS, 2)), 64, axis=1)


# What is planted, how the first run may be judged, and how the others.
OK, WARNED, REFUSED = {"valid"}, {"warning"}, {"INVALID"}
TRACES: dict[str, tuple[Trace, set[str], set[str]]] = {
    "clean": (_all(lambda draw: np.ones(1)), OK, OK),
    "clean, on a shared machine": (wobble, OK | WARNED, OK | WARNED),
    "one run drifts by 50 %": (_one(lambda draw: line(0.5)), REFUSED, OK),
    "one run drifts by 20 %": (_one(lambda draw: line(0.2)), WARNED, OK),
    "all drift by 50 %": (_all(lambda draw: line(0.5)), WARNED, WARNED),
    "one run held up": (_one(bursts), REFUSED, OK),
    "all held up": (_all(bursts), WARNED, WARNED),
    "one run bimodal": (_one(bimodal), REFUSED, OK),
    "all bimodal": (_all(bimodal), WARNED, WARNED),
}


def state(found: list[Doubt]) -> str:
    return "INVALID" if any(doubt.invalid for doubt in found) else "warning" if found else "valid"


@pytest.mark.parametrize("trace", TRACES)
def test_false_alarms_and_misses(trace: str):
    """Printed (`pytest -s`): how often what was planted is misjudged, and how often the runs beside it are."""
    plant, of_first, of_others = TRACES[trace]
    draw, wrong = np.random.default_rng(0), np.zeros(2)
    for _ in range(SESSIONS):
        runs = session(draw)
        plant(draw, runs)
        found = doubts(sessions_of(*runs), QUIET)
        first, *others = (state(of_run) for of_run in found.values())
        wrong += [first not in of_first, np.mean([other not in of_others for other in others])]
    missed, alarmed = wrong / SESSIONS
    print(f"{trace}: misses {missed:.1%}, false alarms beside it {alarmed:.1%}, of {SESSIONS} sessions of {RUNS} runs")
    assert missed <= 0.05
    assert alarmed <= 0.02


def sessions_of(*runs: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): run for i, run in enumerate(runs)}


CLEAN = session(np.random.default_rng(1))
MISTIMED: dict[str, tuple[np.ndarray, bool, str]] = {
    "few repeats": (CLEAN[0][:2], False, "too few samples: 2 repeats and 256 calls, where 3 repeats and 20 calls tell"),
    "few calls": (CLEAN[0][:, :3], False, "too few samples: 5 repeats and 15 calls, "),
    "no time at all": (CLEAN[0] * (CLEAN[0] != CLEAN[0][0, 0]), True, "clock: a call took no time, or less than none"),
    "backwards": (CLEAN[0] - CLEAN[0].mean(), True, "clock: a call took no time"),
    "no number": (CLEAN[0] * np.nan, True, "clock: a call took no time"),
    "ticks": (np.ceil(CLEAN[0] * 1000) / 1000, True, "clock: it ticks every 1 ms, and a call takes "),
}


@pytest.mark.parametrize(("seconds", "invalid", "reason"), MISTIMED.values(), ids=MISTIMED)
def test_what_one_run_can_tell(seconds: np.ndarray, invalid: bool, reason: str):
    """And the other runs are judged without it."""
    found = doubts(sessions_of(*CLEAN[1:]) | {"mistimed": seconds}, QUIET)
    ((told, why),) = found.pop("mistimed")
    assert (told, why[: len(reason)]) == (invalid, reason)
    assert not any(found.values())


def test_a_few_long_calls_that_lie_apart_are_no_coarse_clock():
    """One batch and five repeats: the smallest distance is large by chance, and the calls are no multiples of it."""
    draw = np.random.default_rng(2)
    few = [draw.lognormal(0, 0.1, (5, 1)) / 2 for _ in range(1000)]
    said = [reason for calls in few for _, reason in doubts({"few": calls}, QUIET)["few"]]
    assert sum("too few samples" in reason for reason in said) >= 990
    assert sum("clock" in reason for reason in said) <= 10


CONDITIONS: dict[str, tuple[dict[str, float | None], list[tuple[bool, str]]]] = {
    "quiet": ({}, []),
    "unknown": ({"other_seconds": None}, []),
    "load": ({"other_seconds": 60.0}, [(True, "load: other processes took 50 % of the processors' time")]),
    "just no load": ({"other_seconds": 12.0}, []),
    "steal": ({"stolen_seconds": 12.0}, [(True, "steal: the hypervisor kept 10 % of the processors' time")]),
    "set": ({"clock_gap_seconds": -2.0}, [(False, "clock: the day's clock moved -2.0 s against the timer (set, or")]),
}


@pytest.mark.parametrize(("changes", "expected"), CONDITIONS.values(), ids=CONDITIONS)
def test_what_the_machine_did(changes: dict[str, float | None], expected: list[tuple[bool, str]]):
    found = doubts(sessions_of(*CLEAN), QUIET.model_copy(update=changes))
    for of_run in found.values():
        assert [(told, why[: len(line)]) for (told, why), (_, line) in zip(of_run, expected, strict=True)] == expected


def test_the_machine_counts_however_few_the_samples():
    found = doubts(sessions_of(CLEAN[0][:2]), QUIET.model_copy(update={"other_seconds": 60.0}))
    assert [why.split(":")[0] for _, why in found["0"]] == ["too few samples", "load"]


def test_older_records_say_nothing_of_the_machine():
    assert not any(doubts(sessions_of(*CLEAN), None).values())


def test_a_run_alone_is_held_against_nothing():
    """There is no ratio that its drift could spoil; what its seconds are worth is said."""
    ((told, why),) = doubts({"alone": CLEAN[0] * line(0.5)}, QUIET)["alone"]
    assert (told, why.split(":")[0]) == (False, "machine")


def test_of_two_runs_either_may_be_the_one():
    found = doubts(sessions_of(CLEAN[0] * line(0.5), CLEAN[1]), QUIET)
    assert [state(of_run) for of_run in found.values()] == ["INVALID", "INVALID"]


def test_other_processes_are_noticed():
    """A process that works for itself is somebody else's load; work that is told is not."""
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    before = moment(0.0)
    subprocess.run([sys.executable, "-c", burn], check=True)
    seen = conditions(before, moment(0.0))
    assert seen.other_seconds is not None
    assert seen.other_seconds > 0.4
    assert 0.5 <= seen.wall_seconds < 60
    assert seen.stolen_seconds >= 0
    assert abs(seen.clock_gap_seconds) < 0.5
    told = conditions(before, moment(1e6))
    assert told.other_seconds == 0
    assert conditions(before, moment(float("nan"))).other_seconds is None
