"""Where a run was measured: machine, instruction sets, versions, revision, and time stolen from the machine."""

import math
import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.records import Conditions
from models.cpu import KERNEL_FLAGS, isa_flags, processors

TOOLCHAIN = (
    "torch",
    "transformers",
    "neural_compressor_pt",
    "torchao",
    "openvino",
    "nncf",
    "onnxruntime",
    "onnx",
    "numpy",
    "tokenizers",
)


@cache
def toolchain() -> dict[str, str]:
    """Versions of the libraries that decide what a run computes."""
    found = {}
    for name in TOOLCHAIN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def decisive() -> dict[str, Any]:
    """What decides, beside what is asked for, what a run computes: library versions and the CPU's kernels."""
    return toolchain() | {"kernel_flags": kernel_flags()}


def kernel_flags() -> list[str]:
    """Those of this CPU's flags that decide which kernels run."""
    return [flag for flag in KERNEL_FLAGS if flag in isa_flags()]


@cache
def environment() -> dict[str, Any]:
    """The machine and software, json-able. Without VNNI or AMX in `kernel_flags`, INT8 gains less and errs more."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel_flags": kernel_flags(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": toolchain(),
        "revision": _revision(),
    }


class Moment(NamedTuple):
    """What clocks and counters say at one moment, in seconds; NaN where the system does not tell.

    `clock_s` is the day's clock; `busy_s` and `stolen_s` count all processors that this process may run on, `work_s`
    what the work itself has used of them.
    """

    timer_s: float
    clock_s: float
    busy_s: float
    stolen_s: float
    work_s: float


def moment(work_s: float) -> Moment:
    """Now; `work_s` as in `Moment`."""
    busy_s, stolen_s, stat = float("nan"), 0.0, Path("/proc/stat")
    if stat.exists():
        ours = {f"cpu{number}" for number in processors()}
        lines = [line.split() for line in stat.read_text().splitlines()]
        ticks = np.array([line[1:9] for line in lines if line[0] in ours], dtype=np.int64).sum(axis=0)
        user, nice, system, _, _, irq, softirq, stolen = (ticks / os.sysconf("SC_CLK_TCK")).tolist()
        busy_s, stolen_s = user + nice + system + irq + softirq, stolen
    return Moment(time.perf_counter(), time.time(), busy_s, stolen_s, work_s)


def conditions(before: Moment, after: Moment) -> Conditions:
    """What the machine did between two moments."""
    wall_s, clock_s, busy_s, stolen_s, work_s = (now - then for then, now in zip(before, after, strict=True))
    return Conditions(
        processors=len(processors()),
        wall_seconds=wall_s,
        other_seconds=None if math.isnan(busy_s - work_s) else max(0.0, busy_s - work_s),
        stolen_seconds=stolen_s,
        clock_gap_seconds=clock_s - wall_s,
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
