"""Where the processes of one machine meet: a store of torch's that listens on this machine's loopback only.

torch's own meeting places listen on all of the machine's addresses, and the one for machines that come and go
unpickles what it is sent. Here nobody comes and goes.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

ADDRESS = "127.0.0.1"
NAME = "surefoot-loopback"
"""For `LaunchConfig.rdzv_backend`, once `register` has been called."""
INTERFACES = ("lo", "lo0")
"""What systems call the loopback."""
TIMEOUT = timedelta(minutes=15)


class Loopback(RendezvousHandler):
    """A meeting of one agent, which is its own only guest, and whose store its workers share."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store, on a port that is free."""
        listening = socket.create_server((ADDRESS, 0), backlog=socket.SOMAXCONN)
        port = int(listening.getsockname()[1])
        self._store = TCPStore(
            ADDRESS,
            port,
            is_master=True,
            timeout=TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(ADDRESS, port))

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return NAME

    def get_run_id(self) -> str:
        return self._run_id

    def num_nodes_waiting(self) -> int:
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """There is nobody to keep out."""

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Make `NAME` known to torch's launcher, and let gloo and NCCL talk over the loopback where the environment
    names no other interface."""
    rendezvous_handler_registry.register(NAME, Loopback)
    name = next((name for _, name in socket.if_nameindex() if name in INTERFACES), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # that very one; else it is a prefix
