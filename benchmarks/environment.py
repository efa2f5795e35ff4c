"""Where a run was measured: machine, instruction sets, versions, revision, and time stolen from the machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models.cpu import KERNEL_FLAGS, isa_flags

TOOLCHAIN = ("torch", "transformers", "neural_compressor_pt", "torchao", "openvino", "numpy", "tokenizers")


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


@cache
def environment() -> dict[str, Any]:
    """The machine and software, json-able. `kernel_flags` empty of VNNI and AMX means INT8 will hardly be faster."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel_flags": [flag for flag in KERNEL_FLAGS if flag in isa_flags()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": toolchain(),
        "revision": _revision(),
    }


def stolen_seconds() -> float:
    """CPU seconds the hypervisor has kept from this machine since boot (0 where it does not say)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


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
