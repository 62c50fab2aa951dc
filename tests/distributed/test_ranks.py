"""Who a process takes itself for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

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
