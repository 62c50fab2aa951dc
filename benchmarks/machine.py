"""What the numbers were measured on. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

KEEP_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
"""For glibc's allocator: keep freed memory. surefoot asks for it itself at run time, peers get it from here."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system: named in every stored result."""
    processor = _fields(Path("/proc/cpuinfo"))
    features = processor.get("flags", "").split()
    kilobytes = _fields(Path("/proc/meminfo")).get("MemTotal", "0 kB").split()[0]
    return {
        "cpu": processor.get("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(int(kilobytes) / 2**20, 1),
        "bf16_products_in_hardware": bool({"avx512_bf16", "amx_bf16"} & set(features)),
        "system": platform.platform(),
    }


def available_bytes() -> int | None:
    """Memory a new process could have, or None where the system does not say."""
    kilobytes = _fields(Path("/proc/meminfo")).get("MemAvailable")
    return int(kilobytes.split()[0]) * 1024 if kilobytes else None


def _fields(path: Path) -> dict[str, str]:
    """`name: value` lines; of a name that comes again, the first."""
    found: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found
