"""Fault 23: ranks that have been told different things, or read different rows, are named before step 1."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.distributed.started import ended, said, start
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe


def refused(zygote: Zygote, argv: list[object], place: Path, **other: object) -> str:
    """What is said when rank 1 is another one."""
    children = start(zygote, argv, place, 2, {1: other})
    statuses = ended(children)
    assert 0 not in statuses and 2 in statuses, (statuses, said(children))
    assert not events(place / "run")
    return said(children)


def test_on_the_options(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    text = refused(zygote, ["train", recipe()], tmp_path, patch="tests.distributed.patches:other_seed")
    assert text.count("the ranks do not agree") == 1 and "Traceback" not in text
    assert "config.seed: 7 on rank 0" in text and "8 on rank 1" in text


def test_on_the_weights(zygote: Zygote, recipe: Recipe, tmp_path: Path, tiny_folder: Path) -> None:
    """Two machines whose disks hold other models under the same name."""
    argv = ["train", recipe(model_name_or_path="model")]
    shutil.copytree(tiny_folder, tmp_path / "model")
    other = shutil.copytree(tiny_folder, tmp_path / "other" / "model") / "model.safetensors"
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    patch = {"patch": "tests.distributed.patches:elsewhere", "patch_args": {"place": str(tmp_path / "other")}}
    text = refused(zygote, argv, tmp_path, **patch)
    assert text.count("the ranks do not agree") == 1 and "Traceback" not in text
    assert "on rank 0" in text and "on rank 1" in text
