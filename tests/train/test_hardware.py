"""How much memory there is: what the machine, the control groups and the process's own limits leave."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from surefoot.train import hardware

CPU = torch.device("cpu")
GB = 10**9
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A /proc and /sys with 64 GB of memory available and these control groups."""
    files = {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 64000000 kB\n",
        "proc/self/cgroup": cgroup,
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: object, used: int, cached: int, version: int = 2) -> dict[str, str]:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return {
        f"{folder}/{names[0]}": f"{limit}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\n{names[2]} {cached}\n",
    }


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    assert hardware.free_bytes(CPU, machine(tmp_path, "", {})) == 64_000_000 * 1024


def test_the_tightest_control_group_decides_version_2(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/pod", 8 * GB, 5 * GB, 1 * GB) | group("sys/fs/cgroup/pod/job", "max", 1, 0)
    assert hardware.free_bytes(CPU, machine(tmp_path, "0::/pod/job\n", files)) == 4 * GB


def test_the_tightest_control_group_decides_version_1(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/memory", 2**63 - 4096, 9 * GB, 0, 1)
    files |= group("sys/fs/cgroup/memory/job", 6 * GB, 4 * GB, GB // 2, 1)
    cgroup = "5:cpu:/job\n4:memory:/job\n0::/\n"
    assert hardware.free_bytes(CPU, machine(tmp_path, cgroup, files)) == 2 * GB + GB // 2


def test_in_a_container_the_groups_path_may_be_the_hosts(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", 3 * GB, 1 * GB, 0)
    assert hardware.free_bytes(CPU, machine(tmp_path, "0::/kubepods/pod1\n", files)) == 2 * GB


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", GB, 2 * GB, 0)
    assert hardware.free_bytes(CPU, machine(tmp_path, "0::/\n", files)) == 0


@linux
def test_ulimit_counts() -> None:
    code = (
        "import resource, torch; from surefoot.train import hardware\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (40 << 30, resource.RLIM_INFINITY))\n"
        "loose = hardware.free_bytes(torch.device('cpu'))\n"
        "now = hardware._status('VmData')\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (now + (50 << 20), resource.RLIM_INFINITY))\n"
        "tight = hardware.free_bytes(torch.device('cpu'))\n"
        "assert loose > 60 << 20 and 40 << 20 < tight <= 50 << 20, (loose, tight)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@linux
def test_the_peak_is_what_was_held_and_given_back() -> None:
    code = (  # in a process of its own: nothing else gives memory back meanwhile
        "import torch; from surefoot.train import hardware; cpu = torch.device('cpu')\n"
        "held, peak = hardware.held_bytes(cpu), hardware.peak_bytes(cpu)\n"
        "assert 0 < held <= peak\n"
        "block = torch.ones(peak - held + (64 << 20), dtype=torch.uint8)\n"
        "risen = hardware.peak_bytes(cpu)\n"
        "assert risen >= peak + (60 << 20), (held, peak, risen)\n"
        "del block\n"
        "assert hardware.peak_bytes(cpu) >= risen - (1 << 20)"  # the kernel counts in batches
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_products_of_many_shapes_do_not_fill_the_memory() -> None:
    """Only what the user has not said is set."""
    code = (
        "import os; os.environ['LRU_CACHE_CAPACITY'] = '7'\n"
        "from surefoot.train import hardware; hardware.keep_heap()\n"
        "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    env = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    said = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    assert said.stdout.split() == ["7", str(hardware.PRODUCT_CACHE)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_kept_heap_can_be_given_back() -> None:
    code = (
        "import torch; from surefoot.train import hardware; hardware.keep_heap(); cpu = torch.device('cpu')\n"
        "before = hardware.held_bytes(cpu)\n"
        "blocks = [torch.ones(1 << 20) for _ in range(100)]; last = torch.ones(9); del blocks\n"
        "kept = hardware.held_bytes(cpu) - before; hardware.give_back_heap()\n"
        "left = hardware.held_bytes(cpu) - before\n"
        "assert kept > 350 << 20 and left < 40 << 20, (kept, left)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
