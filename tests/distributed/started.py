"""Ranks without a launcher: children of the process that has all imported, started within milliseconds."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Zygote

LONGEST_SECONDS = 180.0


def start(
    zygote: Zygote, argv: list[Any], cwd: Path, count: int, patches: dict[int, dict[str, Any]] | None = None
) -> list[Child]:
    """`surefoot ARGV` on so many ranks, by rank; `patches`: what `Zygote.start` takes besides, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(count):
        env: dict[str, Any] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
        }
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        told = {name: str(value) for name, value in env.items()} if count > 1 else {}
        found.append(zygote.start(argv, cwd, env=told, **(patches or {}).get(rank, {})))
    return found


def ended(children: list[Child]) -> list[int]:
    """The exit statuses, by rank."""
    return [child.wait(LONGEST_SECONDS) for child in children]


def said(children: list[Child]) -> str:
    """What all ranks have said to the user."""
    return "\n".join(child.err for child in children)


def run(zygote: Zygote, argv: list[Any], cwd: Path, count: int) -> list[Child]:
    """`start`, and wait for the end, which must be good."""
    children = start(zygote, argv, cwd, count)
    assert ended(children) == [0] * count, said(children)
    return children


def end_the_others(children: list[Child], patience: float = 30.0) -> None:
    """What a launcher does when one has died: the others may end by themselves, and are killed then."""
    deadline = time.monotonic() + patience
    for child in children:
        while child.running and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.running:
            child.kill()


# A function on several ranks --------------------------------------------------------------------------------


def spawn(zygote: Zygote, function: str, count: int, folder: Path) -> None:
    """Call "module:function" with `folder` on ranks that have met; where one fails, all end, and it is said."""
    members = [
        zygote.call("tests.distributed.started:member", [function, index, count, str(folder)], folder)
        for index in range(count)
    ]
    deadline = time.monotonic() + LONGEST_SECONDS
    while any(child.running for child in members) and time.monotonic() < deadline:
        if any(zygote.status(child.pid, 0.0) for child in members):
            break
        time.sleep(0.02)
    failed = [(index, zygote.status(child.pid, 0.0)) for index, child in enumerate(members)]
    for child in members:
        if child.running:
            child.kill()
        zygote.status(child.pid, 30.0)
    assert not any(status != 0 for _, status in failed), f"rank, status: {failed}\n{said(members)}"


def member(function: str, index: int, count: int, folder: str) -> None:
    """In a child: meet the others by a file, do it, and part."""
    import torch.distributed as dist

    from surefoot import ranks

    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{Path(folder) / f'store-{count}'}"
    dist.init_process_group("gloo", meeting, rank=index, world_size=count, timeout=timedelta(seconds=60))
    module, _, name = function.partition(":")
    getattr(import_module(module), name)(Path(folder))
    dist.barrier()
    ranks.leave()
