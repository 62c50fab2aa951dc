"""A tiny model's folder, rows and a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import QUESTIONS, write_rows

Recipe = Callable[..., Path]


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Recipe:
    """Writes recipe.yaml into the test's folder: twelve steps of two rows each, of a tiny model,
    into the run folder `run`; keyword arguments change or add options."""
    rows = [{"prompt": asked, "completion": said} for asked, said in QUESTIONS] * 4

    def write(name: str = "recipe.yaml", **options: Any) -> Path:
        data = tmp_path / "rows.jsonl"
        if not data.exists():
            write_rows(data, rows)
        plain = {
            "model_name_or_path": str(tiny_folder),
            "dataset_name": str(data),
            "output_dir": str(tmp_path / "run"),
            "max_steps": 12,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "save_steps": 3,
            "tensors_every": 0,
            "precision": "fp32",
            "use_cpu": True,
            "seed": 7,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(plain | options), encoding="utf-8")
        return path

    return write
