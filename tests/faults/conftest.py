"""A recipe of a tiny run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_recipe

Recipe = Callable[..., Path]


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Recipe:
    """Writes recipe.yaml (or `name`) into the test's folder; keyword arguments change or add options."""

    def write(name: str = "recipe.yaml", **options: Any) -> Path:
        return write_recipe(tmp_path, tiny_folder, name, **options)

    return write
