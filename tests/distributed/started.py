"""Ranks without a launcher: children of the process that has all imported, started within milliseconds."""

from __future__ import annotations

import socket
import time
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
