"""What this machine is good at: device, matrix product type, its memory and its memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameter numbers of mallopt(3)."""
PRODUCT_CACHE = 256
"""Matrix products that oneDNN keeps code for, in each of its two caches; a micro-batch needs about 60."""


def device(use_cpu: bool) -> torch.device:
    """The GPU if there is one and it is wanted, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")


def fast_in_bf16(place: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices faster than fp32: CUDA from sm80, CPUs with AVX-512-BF16
    or AMX."""
    if place.type == "cuda":
        return torch.cuda.get_device_capability(place) >= (8, 0)
    if place.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def micro_batch_tokens(place: torch.device) -> int:
    """Slots of a micro-batch when nothing else is said: on a CPU, larger ones leave its caches."""
    return 16384 if place.type == "cuda" else 2048


@cache
def keep_heap() -> bool:
    """Ask glibc to keep freed memory for the next step instead of giving it back and faulting it in again.

    Costs nothing but that memory stays with the process; on a CPU a step is 18-38 % shorter. Returns
    whether it took effect (glibc only). Call it before the first matrix product: it also bounds what oneDNN
    keeps (`forget_shapes`).
    """
    forget_shapes()
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wishes = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in wishes)


def give_back_heap() -> None:
    """Give what the process has freed back to the machine, once, so that `held_bytes` is what it needs."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def forget_shapes() -> None:
    """Let oneDNN keep the code of `PRODUCT_CACHE` bf16 products instead of 1,024 in each of two caches.

    Micro-batches differ in length, so each brings new shapes, 0.6 MB a product, strewn over the heap: 1,800
    products of new shapes took 1.2 GB of resident memory, and with bounded caches 0.1 GB in less time. Read
    by oneDNN at its first product; what the user's environment says stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRODUCT_CACHE))


def name(place: torch.device) -> str:
    """The device in words."""
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "cpu")


# Memory ----------------------------------------------------------------------------------------------------


def peak_bytes(place: torch.device) -> int:
    """The most memory held so far: by the process on a CPU (VmHWM), by tensors on CUDA."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    if (peak := _status("VmHWM")) is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def held_bytes(place: torch.device) -> int:
    """Memory held now: by the process on a CPU (VmRSS, or the peak where there is no /proc), by tensors on
    CUDA."""
    if place.type == "cuda":
        return torch.cuda.memory_allocated(place)
    held = _status("VmRSS")
    return peak_bytes(place) if held is None else held


def free_bytes(place: torch.device, root: Path = Path("/")) -> int:
    """How much more the process could take: of the GPU; of the machine's memory, of the control groups' limits
    and of the process's own.

    `root` is where /proc and /sys are found.
    """
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    return max(0, min([_machine_free(root), *_groups_free(root), *_limits_free()]))


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def _machine_free(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups_free(root: Path) -> Iterator[int]:
    """What each control group of the process, and each one above it, has left; version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # Inside a container the path may name what only the host can see: then only the top is there.
        for depth in range(len(parts) + 1):
            group = root.joinpath(top, *parts[:depth])
            try:
                most, now = (group / limit).read_text().strip(), int((group / used).read_text())
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":  # pages of files that nobody uses are counted, and given up when it gets tight
                yield int(most) - now + int(stat.get(cached, 0))


def _limits_free() -> Iterator[int]:
    """What ulimit leaves of address space and of data."""
    for limit, key in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, now = resource.getrlimit(limit)[0], _status(key)
        if most != resource.RLIM_INFINITY and now is not None:
            yield most - now
