"""Two or four processes that meet by a file, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.started import spawn
from tests.faults.children import Zygote


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """The folder where they leave the results of all cases."""
    return _results(zygote, 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """The same of four of them and fewer cases."""
    return _results(zygote, 4, tmp_path_factory.mktemp("four"))


def _results(zygote: Zygote, count: int, folder: Path) -> Path:
    spawn(zygote, "tests.distributed.ranks:main", count, folder)
    return folder
