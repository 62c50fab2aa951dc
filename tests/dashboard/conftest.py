"""Runs to be shown: one with everything in it, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.dashboard import stream
from tests.dashboard.asking import Client, client
from tests.report import samples


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run that has two slides; nobody writes here."""
    top = tmp_path_factory.mktemp("shown")
    run = samples.run_folder(top / "capitals", steps=60)
    samples.with_slides(run, samples.full(20), samples.full(40))
    return top


@pytest.fixture
def browser(shown: Path) -> Client:
    """Who may look at it."""
    return client(shown)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another more quickly than they need to."""
    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(stream, "STATE_SECONDS", 0.05)
    monkeypatch.setattr(stream, "LIST_SECONDS", 0.02)
    monkeypatch.setattr(stream, "SEARCH_SECONDS", 0.05)
