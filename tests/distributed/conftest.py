"""Two processes that meet by a file, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.multiprocessing as mp

from tests.distributed import ranks


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where they leave the results of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranks.main, (2, folder), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return folder
