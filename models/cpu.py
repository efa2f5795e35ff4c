"""What this CPU can do, from /proc/cpuinfo, and which of its processors are ours."""

import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

# Flags that decide which INT8 and bfloat16 kernels run.
KERNEL_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@cache
def isa_flags() -> frozenset[str]:
    """The CPU flags the kernel reports; empty where /proc/cpuinfo does not exist or is not x86."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return frozenset(next((value.split() for key, _, value in lines if key.strip() == "flags"), []))


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16"} & isa_flags())


def has_int8_dot_products(flags: Collection[str] | None = None) -> bool:
    """Whether this CPU, or the one of these flags, adds products of INT8 in 32 bits: VNNI or AMX.

    Others add pairs of them in 16 bits, which overflow (oneDNN's developer guide, "Nuances of int8 computations"), so
    weights take 7 bits there.
    """
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(isa_flags() if flags is None else flags)


def processors() -> list[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
