"""Writers that are killed with SIGKILL at random moments and started again, until all is written.

    python -m tests.kills 200          kills of a writer without PyTorch
    python -m tests.kills 5 suite      kills of a suite

What is left must equal what an undisturbed writer leaves; of a suite, but for timings.
"""

import multiprocessing as mp
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.disk import writing
from benchmarks.records import RECORDS, RunRecord, append_record, read_columns, read_records, timings_path
from tests.fake_runs import add_timings, record

ROOT = Path(__file__).resolve().parent.parent
RUNS = [f"run-{number}" for number in range(30)]
LONG = "a line long enough to be cut " * 2000
SECONDS = np.random.default_rng(0).lognormal(-6, 0.3, (5, 128))
AXES: dict[str, Any] = {
    "recipes": ["float32", {"kind": "int8_static", "calibration_rows": 8}],
    "policies": ["full_depth", {"kind": "entropy", "threshold": 0.5}],
    "shapes": [{"batch_size": [1, 4, 8], "threads": 1}],
    "timing": {"rows": 40, "repeats": 3},
}


class Tally(NamedTuple):
    """How often a writer was killed, how many lines that cut, and how many folders were written to their end."""

    kills: int
    cut_lines: int
    folders: int


def write_all(folder: Path) -> None:
    """What a suite does as sessions finish; what is there already is left as it is."""
    assert "torch" not in sys.modules
    with writing(folder):
        done = {found.run_id for found in read(folder)}
        for run_id in RUNS:
            if run_id not in done:
                add_timings(folder, run_id, SECONDS * (1 + RUNS.index(run_id)))
                append_record(folder, record(run_id, case=f"{run_id} {LONG}"))


def read(folder: Path) -> list[RunRecord]:
    """The records of a folder that a killed writer left, which may hold none yet."""
    return read_records(folder) if (folder / RECORDS).exists() else []


def kill_writers(folder: Path, kills: int, seed: int = 0) -> Tally:
    """Kill writers so often, and compare every folder that is finished with an undisturbed one.

    Raises:
        AssertionError: something that was written is gone or altered, or a folder ends otherwise than undisturbed.
    """
    context, draw = mp.get_context("fork"), np.random.default_rng(seed)

    def start(output: Path) -> Any:
        writer = context.Process(target=write_all, args=(output,))
        writer.start()
        return writer

    start(folder / "warm up").join()
    started = time.monotonic()
    start(folder / "undisturbed").join()
    took_s, expected = time.monotonic() - started, read(folder / "undisturbed")
    assert [found.run_id for found in expected] == RUNS
    killed = cut = folders = 0
    before: list[RunRecord] = []
    while killed < kills or before:
        output = folder / f"killed-{folders}"
        writer = start(output)
        if killed < kills:
            time.sleep(draw.uniform(0, took_s))
            writer.kill()
        writer.join()
        killed += writer.exitcode == -signal.SIGKILL
        cut += (output / RECORDS).exists() and not (output / RECORDS).read_bytes().endswith(b"\n")
        found = read(output)
        assert len(found) >= len(before), "a record that was there is gone"
        assert found == expected[: len(found)]
        for one in found:
            seconds = read_columns(timings_path(output, one))["seconds"]
            assert np.array_equal(seconds, SECONDS.ravel() * (1 + RUNS.index(one.run_id)))
        before = [] if found == expected else found
        folders += found == expected
    return Tally(killed, cut, folders)


def run_and_kill(arguments: list[str], wait: Callable[[subprocess.Popen], None]) -> bool:
    """Start `python -m benchmarks`, kill it when `wait` returns, and say whether it was still running.

    Raises:
        AssertionError: a worker goes on without its runner.
    """
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait(process)
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=30)[1], "a worker goes on without its runner"
    return killed


def comparable(found: list[RunRecord]) -> dict[str, dict[str, Any]]:
    """Case -> its record without what clocks and chance have put into it.

    A program's size counts the names of its nodes, which OpenVINO numbers as a process makes them.
    """
    names = ["session", "started_at", "timings", "build_seconds", "warmup_seconds", "conditions", "size_bytes"]
    chance: Any = dict.fromkeys(names, True) | {"checkpoint": {"trained_seconds"}}
    return {one.case: one.model_dump(exclude=chance) for one in found}


def kill_suite(folder: Path, kills: int, seed: int = 0) -> int:
    """Kill a suite so often at random moments, resume it, and compare with an undisturbed run.

    Returns:
        How often it was killed before it had finished.

    Raises:
        AssertionError: a session that was finished is measured again, or the end differs from the undisturbed run's.
    """
    from benchmarks.__main__ import main
    from tests import suites

    output, draw, killed = folder / "killed", np.random.default_rng(seed), 0
    asked = ["run", str(suites.write(folder, **AXES)), "--checkpoints", str(folder / "checkpoints"), "--output"]
    started = time.monotonic()
    assert main([*asked, str(folder / "undisturbed")]) == 0
    took_s, expected = time.monotonic() - started, comparable(read(folder / "undisturbed"))
    finished: list[RunRecord] = []

    def at_random(process: subprocess.Popen) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0, took_s))

    for _ in range(kills):
        killed += run_and_kill([*asked, str(output)], at_random)
        found = read(output)
        assert [one for one in finished if one not in found] == []
        sessions = [one.session for one in found]
        finished = [one for one in found if sessions.count(one.session) == len(expected) // 3]
        print(f"killed {killed} times: {len(finished)} of {len(expected)} runs in finished sessions", flush=True)
    assert main([*asked, str(output)]) == 0
    assert [one for one in finished if one not in read(output)] == []
    assert comparable(read(output)) == expected
    return killed


if __name__ == "__main__":
    number, kind = int(sys.argv[1]), kill_suite if sys.argv[2:] == ["suite"] else kill_writers
    with tempfile.TemporaryDirectory() as temporary:
        print(kind(Path(temporary), number))
