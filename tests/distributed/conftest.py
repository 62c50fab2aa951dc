"""Two or four processes that meet by a file, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.multiprocessing as mp

from tests.distributed import ranks


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where they leave the results of all cases."""
    return _results(2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of four of them and fewer cases."""
    return _results(4, tmp_path_factory.mktemp("four"))


def _results(count: int, folder: Path) -> Path:
    mp.spawn(ranks.main, (count, folder), nprocs=count)  # pyright: ignore[reportPrivateImportUsage]
    return folder
