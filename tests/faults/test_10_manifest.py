"""Fault 10: a checkpoint without a manifest, or with one of a newer version. Neither is damage: something was not
copied, or this surefoot is old. It is said, with the way out, and nothing is moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot.train.manifest import VERSION, digest
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe
from tests.faults.disturbed import refused, same, steps_left, train

STOP: dict[str, Any] = {"patch": "tests.faults.patches_signals:killed_after", "patch_args": {"step": 10}}


def killed(zygote: Zygote, recipe: Recipe, folder: Path) -> list[Any]:
    """A run that was killed after ten steps, with the checkpoints of steps 3, 6 and 9; returns its command."""
    argv = ["train", recipe()]
    child = zygote.run(argv, folder, **STOP)
    assert child.wait() == -9, child.err
    assert steps_left(folder / "run") == [3, 6, 9]
    return argv


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every name under a folder, with its bytes; but for who last tried to train there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def missing(path: Path) -> None:
    path.unlink()


def newer(path: Path) -> None:
    content = json.loads(path.read_text()) | {"version": VERSION + 1, "something": ["new"]}
    content["digest"] = digest(content)
    path.write_text(json.dumps(content))


def newer_and_other(path: Path) -> None:
    """One that has even given up what all have had so far."""
    path.write_text(json.dumps({"version": VERSION + 7}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing, ["there is no manifest.json", "Put it back, or delete this folder to use the checkpoint"]),
        (newer, [f"of version {VERSION + 1}, which a newer surefoot has written", "pip install --upgrade"]),
        (newer_and_other, [f"of version {VERSION + 7}, which a newer", "pip install --upgrade surefoot"]),
    ],
)
def test_it_is_said_and_nothing_is_moved(
    change: Callable[[Path], None], words: list[str], zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    newest = run / "checkpoints" / "step-00000009"
    manifest = (newest / "manifest.json").read_bytes()
    change(newest / "manifest.json")
    # Damage in the others is of no interest while this one is not understood.
    before = content_of(run)
    refused(zygote.run(argv, tmp_path), f"surefoot: {newest}", *words)
    assert content_of(run) == before
    refused(zygote.run([*argv, "--resume_from_checkpoint", newest], tmp_path), *words)
    assert content_of(run) == before
    (newest / "manifest.json").write_bytes(manifest)  # the fix that it names
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_one_that_is_deleted_makes_way_for_the_one_before(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """The other fix that it names."""
    import shutil

    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_behind_a_damaged_one_nothing_is_moved_either(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """The newest is damaged, the one before it has no manifest: the damaged one is put aside once it is known what
    comes instead."""
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    (run / "checkpoints" / "step-00000009" / "state.json").write_bytes(b"{}")
    (run / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    before = content_of(run)
    refused(zygote.run(argv, tmp_path), "step-00000006: there is no manifest.json")
    assert content_of(run) == before
