"""Fault 9: a checkpoint is not what was written: a bit is flipped, a file is cut, is longer, is gone, or is
something else. It is put aside, the one before is used, that is said, and the run ends with the bits it would have
had."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from surefoot.train.manifest import MANIFEST, OPTIMIZER, STATE, WEIGHTS, digest
from tests.conftest import write_recipe
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.disturbed import LAST, same, steps_left, train
from tests.faults.test_10_manifest import STOP, killed

Damage = Callable[[Path], None]


def flip(path: Path, at: float, bit: int = 0) -> None:
    """One bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[min(len(content) - 1, int(at * len(content)))] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def link(path: Path) -> None:
    """To the very bytes, outside the run: they may be another's tomorrow."""
    path.rename(path.parents[3] / "elsewhere")
    path.symlink_to(path.parents[3] / "elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    """/dev/zero, which has no end."""
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        path.open("rb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")


def anothers(path: Path) -> None:
    shutil.copyfile(path.parents[1] / "step-00000006" / path.name, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


EVERYWHERE: dict[str, Damage] = {"cut": cut, "empty": empty, "grown": grow, "link": link, "fifo": fifo}
EVERYWHERE |= {"folder": folder, "device": device, "another's": anothers}
EVERYWHERE |= {f"flip {at}": lambda path, at=at: flip(path, at) for at in (0.0, 0.3, 1.0)}
CASES = [
    *[(name, what) for name in (WEIGHTS, OPTIMIZER, STATE, MANIFEST) for what in EVERYWHERE],
    *[(name, "gone") for name in (WEIGHTS, OPTIMIZER, STATE)],  # a manifest that is gone is fault 10
]


@pytest.fixture(scope="module")
def begun(zygote: Zygote, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was killed, and where the same run is that was not."""
    place = tmp_path_factory.mktemp("begun")
    write_recipe(place, tiny_folder, max_steps=LAST)
    whole = zygote.run(["train", "recipe.yaml", "--output_dir", "whole"], place)
    assert whole.wait() == 0, whole.err
    killed_run = zygote.run(["train", "recipe.yaml", "--output_dir", "run"], place, **STOP)
    assert killed_run.wait() == -9, killed_run.err
    return place / "run", place / "whole"


@pytest.mark.parametrize(("name", "what"), CASES)
def test_put_aside_and_the_one_before_used(
    name: str, what: str, begun: tuple[Path, Path], zygote: Zygote, tmp_path: Path
) -> None:
    run, (start, whole) = tmp_path / "run", begun
    shutil.copytree(start, run)
    newest = run / "checkpoints" / "step-00000009"
    damage = EVERYWHERE.get(what, Path.unlink)
    damage(newest / name)
    argv = ["train", start.parent / "recipe.yaml", "--output_dir", run]
    child = zygote.run(argv, tmp_path)
    assert child.wait() == 0, child.err
    aside = run / "checkpoints" / "quarantine" / "step-00000009"
    assert f"the checkpoint step-00000009 is damaged, and is now in {aside}: {newest}" in child.err
    assert what == "another's" or f"{aside}: {newest / name}" in child.err
    assert steps_left(run)[-2:] == [9, LAST]  # taken again
    assert (aside / MANIFEST).exists() and (aside / WEIGHTS).exists() == (name != WEIGHTS or what != "gone")
    alerts = [event for event in events(run) if event["type"] == "alert"]
    said = "step-00000009 was damaged: put aside, and the checkpoint of step 6 used"
    assert [(alert["step"], alert["kind"], alert["message"]) for alert in alerts] == [(6, "checkpoint", said)]
    assert aside.name in json.dumps(json.loads((run / "run.json").read_text())["resumed"])
    same(run, whole, "alert")


def test_several_in_a_row(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Two are damaged, in different ways; and another folder of that name is in quarantine already."""
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    flip(run / "checkpoints" / "step-00000009" / STATE, 0.5)
    cut(run / "checkpoints" / "step-00000006" / OPTIMIZER)
    (run / "checkpoints" / "quarantine" / "step-00000006").mkdir(parents=True)
    child = zygote.run(argv, tmp_path)
    assert child.wait() == 0, child.err
    assert child.err.count("is damaged, and is now in") == 2
    aside = sorted(path.name for path in (run / "checkpoints" / "quarantine").iterdir())
    assert aside == ["step-00000006", "step-00000006-0", "step-00000009"]
    alerts = [event["message"] for event in events(run) if event["type"] == "alert"]
    assert len(alerts) == 2 and all("the checkpoint of step 3 used" in said for said in alerts)
    same(run, tmp_path / "whole", "alert")


def test_a_whole_checkpoint_under_anothers_name(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Sound in itself, and of another step."""
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    newest = run / "checkpoints" / "step-00000009"
    shutil.rmtree(newest)
    shutil.copytree(run / "checkpoints" / "step-00000003", newest)
    child = zygote.run(argv, tmp_path)
    assert child.wait() == 0, child.err
    assert f"{newest}: is the checkpoint of step 3 under another name" in child.err
    same(run, tmp_path / "whole", "alert")


def test_names_that_lead_out_are_never_followed(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """A manifest that agrees with its digest, and names a file elsewhere."""
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    manifest = run / "checkpoints" / "step-00000009" / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"]["../step-00000006/weights.safetensors"] = content["files"].pop(WEIGHTS)
    content["digest"] = digest(content)
    manifest.write_text(json.dumps(content))
    child = zygote.run(argv, tmp_path)
    assert child.wait() == 0, child.err
    assert "names other files than a checkpoint has" in child.err
    same(run, tmp_path / "whole", "alert")


def test_no_quarantine_can_be_made(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """A file has its name: said, with the way out, and nothing moved."""
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    flip(run / "checkpoints" / "step-00000009" / STATE, 0.5)
    (run / "checkpoints" / "quarantine").write_text("")
    child = zygote.run(argv, tmp_path)
    assert child.wait() == 2 and "Traceback" not in child.err, child.err
    assert "step-00000009: is damaged, and could not be put aside" in child.err
    assert "Move it away to use the checkpoint before it" in child.err
    assert steps_left(run) == [3, 6, 9]


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_what_cannot_be_read_just_now_is_not_damaged(
    name: str, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """Rights that are missing, or a network disk that is away: no sound checkpoint is put aside for that."""
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    path = run / "checkpoints" / "step-00000009" / name
    path.chmod(0o000)
    child = zygote.run(argv, tmp_path, patch="tests.faults.patches_folder:without_roots_rights")
    assert child.wait() == 2 and "Traceback" not in child.err, child.err
    assert f"{path}: cannot be read: Permission denied. Mend that, or move" in child.err
    assert steps_left(run) == [3, 6, 9] and not (run / "checkpoints" / "quarantine").exists()
    path.chmod(0o600)
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")
