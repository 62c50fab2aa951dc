"""Who a process takes itself for, and whom it meets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from surefoot.ranks import by_itself, me, rank, ranks


@pytest.fixture
def second_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)


def test_what_a_thread_does_by_itself_is_nothing_to_the_others(second_of_four: None) -> None:
    """One that saves meanwhile, or that watches, is still one of four."""
    with ThreadPoolExecutor(1) as other:

        def found() -> list[tuple[int, int]]:
            return [(rank(), ranks()), other.submit(lambda: (rank(), ranks())).result()]

        assert found() == [(1, 4), (1, 4)]
        with by_itself():
            with by_itself():
                assert found() == [(0, 1), (1, 4)]
            assert found() == [(0, 1), (1, 4)]
            assert other.submit(me).result().startswith("rank 1 ")
        assert found() == [(1, 4), (1, 4)]


def test_an_error_ends_being_by_itself(second_of_four: None) -> None:
    with pytest.raises(ValueError), by_itself():
        raise ValueError
    assert (rank(), ranks()) == (1, 4)


# Meeting -----------------------------------------------------------------------------------------------

MEETS = """
import sys
from surefoot import ranks
print("here", flush=True)
sys.stdin.readline()
ranks.join(20.0, use_cpu=True)
print(ranks.rank(), ranks.ranks(), ranks.texts(sys.argv[1]), flush=True)
sys.stdin.readline()
"""


def attempt(port: int, words: Sequence[str], late: int) -> list[str]:
    """Processes that meet at an agent's store and then end without a word; what each says. One comes late."""
    shared = {"WORLD_SIZE": str(len(words)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | shared | {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEETS, word],
            env=environment | {"RANK": str(own)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own, word in enumerate(words)
    ]
    try:
        pipes = [(one.stdin, one.stdout) for one in started]
        for _, out in pipes:
            assert out is not None and out.readline() == "here\n"
        for own in sorted(range(len(words)), key=lambda own: own == late):
            time.sleep(0.5 * (own == late))
            told = pipes[own][0]
            assert told is not None
            print(file=told, flush=True)
        return [out.readline().strip() for _, out in pipes if out is not None]
    finally:
        for one in started:
            one.kill()
            one.communicate()


def test_processes_that_are_started_again_do_not_look_for_those_that_are_gone() -> None:
    """All that an earlier attempt has left is still in the agent's store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False)
    for late, words in ((1, ["a", "b"]), (0, ["c", "d", "e"])):
        found = attempt(store.port, words, late)
        assert found == [f"{own} {len(words)} {words}" for own in range(len(words))]


def test_whoever_waits_in_vain_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.errors import StoppedError
    from surefoot.ranks import _meeting

    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False)
    for own in (1, 0):
        with pytest.raises(StoppedError, match=f"rank {own} of 3 has waited 0.2 s for the others"):
            _meeting(store, own, 3, timedelta(seconds=0.2))
