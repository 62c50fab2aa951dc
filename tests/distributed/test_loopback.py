"""The processes of `--nproc` talk on this machine's loopback: nothing of them listens for others."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from surefoot.commands import loopback
from tests.conftest import write_recipe
from tests.distributed.compared import at_step
from tests.distributed.launched import Launch, start

PROC = Path("/proc")
pytestmark = pytest.mark.skipif(not (PROC / "net/tcp").exists(), reason="needs Linux's /proc")


def listening(pid: int) -> set[tuple[IPv4Address | IPv6Address, int]]:
    """Address and port of each socket on which a process listens."""
    held = set()
    for handle in (PROC / str(pid) / "fd").iterdir():
        with suppress(OSError):
            held.add(str(handle.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in held:  # LISTEN; the ninth column is the inode
                address, port = local.split(":")
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                found.add((ip_address(b"".join(words)), int(port, 16)))
    return found


def processes(launch: Launch) -> list[int]:
    return [launch.process.pid, *launch.ranks().values()]


def test_a_socket_that_listens_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside, socket.create_server(("", 0)) as outside:
        found = listening(os.getpid())
        for one, address in ((inside, "127.0.0.1"), (outside, "0.0.0.0")):
            assert (ip_address(address), one.getsockname()[1]) in found
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as newer:
        assert (ip_address("::1"), newer.getsockname()[1]) in listening(os.getpid())


def test_nothing_listens_for_other_machines(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    write_recipe(tmp_path, tiny_folder, shard="full")
    launch = start(
        tmp_path, "recipe.yaml", "--output_dir", "run", "--nproc", 2,
        env={"SUREFOOT_TEST_PATCH": "tests.distributed.patches:slow_steps"},
    )  # fmt: skip
    launch.until(lambda: at_step(tmp_path / "run", 4))  # a checkpoint has been saved
    found = [listening(pid) for pid in processes(launch)]
    launch.process.send_signal(signal.SIGTERM)
    assert launch.wait() == 143, launch.said
    assert len(found) == 3 and all(found)  # the launcher's store, and each rank's gloo
    assert [str(address) for one in found for address, _ in one if not address.is_loopback] == []


def test_an_interface_that_the_user_names_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")  # so that it is put back
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    loopback.register()
    (own,) = {name for _, name in socket.if_nameindex()} & set(loopback.INTERFACES)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", f"={own}")
