"""Fault 8: the run folder is on a read-only file system, nobody's to write in, a file, over quota, or on a disk
that is too small. It is said before anything is read that takes long, with the folder and the way out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import UserError
from surefoot.runfolder import RunFolder
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe
from tests.faults.disturbed import refused
from tests.faults.full import PAGE_BYTES, fill, mounted, small_disk, unfill

NO_MODEL = ("--model_name_or_path", "no/such-model-anywhere")
FIX = "Name another folder"
Breaks = Callable[[RunFolder, pytest.MonkeyPatch], None]


def early(zygote: Zygote, recipe: Recipe, run: Path, folder: Path, *words: str, **more: Any) -> None:
    """Refused with these words, although the model does not exist either: the folder comes first."""
    argv = ["train", recipe(output_dir=str(run)), *NO_MODEL]
    refused(zygote.run(argv, folder, **more), f"output_dir: {run}", FIX, *words)


def test_the_missing_model_is_said_when_the_folder_is_good(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """So that the other tests can fail; and what was tried there has left nothing."""
    child = zygote.run(["train", recipe(output_dir=str(tmp_path / "deep" / "run")), *NO_MODEL], tmp_path)
    refused(child, "no/such-model-anywhere")
    assert not (tmp_path / "deep").exists()
    assert not list(tmp_path.glob("**/*probe*"))


@pytest.mark.parametrize("name", ["", "run", "a/b/run"])
def test_read_only(name: str, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        early(zygote, recipe, disk / name if name else disk, tmp_path, "cannot be written", str(disk))


def test_became_read_only_under_a_run(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """A run is there, with its lock file, and the disk was mounted anew."""
    with mounted(tmp_path / "disk", "size=32m") as disk:
        argv = ["train", recipe(output_dir=str(disk / "run"))]
        assert zygote.run([*argv, "--max_steps", "4"], tmp_path).wait() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
        early(zygote, recipe, disk / "run", tmp_path, "Read-only file system")


@pytest.mark.skipif(sys.platform != "linux", reason="how root lays its rights down is Linux's own")
def test_no_right_to_write(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    place, bound = tmp_path / "place", {"patch": "tests.faults.patches_folder:without_roots_rights"}
    place.mkdir()
    place.chmod(0o500)
    early(zygote, recipe, place / "run", tmp_path, f"{place} is read-only, not yours to write in", **bound)
    early(zygote, recipe, place, tmp_path, f"{place} is read-only, not yours to write in", **bound)
    place.chmod(0o000)  # not even to look
    early(zygote, recipe, place / "run", tmp_path, "Permission denied", **bound)
    place.chmod(0o700)
    run = place / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".lock").chmod(0o444)
    run.chmod(0o555)  # of somebody else's run
    early(zygote, recipe, run, tmp_path, "Permission denied", **bound)
    run.chmod(0o700)


def test_a_file_where_the_folder_should_be(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    early(zygote, recipe, file, tmp_path, "no folder")
    early(zygote, recipe, file / "run", tmp_path, "no folder")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("what", ["write", "fsync"])
@pytest.mark.parametrize("there", [False, True])
def test_over_quota(what: str, there: bool, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Whether the first write says so or, as on network disks, the sync; for a new folder and one with a run."""
    run = tmp_path / "run"
    if there:
        assert zygote.run(["train", recipe(), "--max_steps", "2"], tmp_path).wait() == 0
    before = sorted(run.rglob("*"))
    patch = {"patch": "tests.faults.patches_folder:over_quota", "patch_args": {"what": what}}
    early(zygote, recipe, run, tmp_path, "Disk quota exceeded", "make room", **patch)
    assert sorted(run.rglob("*")) == before


def test_full(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with suppress(OSError), (disk / "filler").open("wb") as file:
            file.write(bytes(1 << 17))
        early(zygote, recipe, disk / "run", tmp_path, "No space left on device", "make room")


def test_a_disk_that_a_checkpoint_cannot_fit_on(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """How much a checkpoint takes is known once the model is read: it is said before the first step."""
    with mounted(tmp_path / "disk", "size=128k") as disk:
        child = zygote.run(["train", recipe(output_dir=str(disk / "run"))], tmp_path)
        refused(child, f"output_dir: a checkpoint in {disk / 'run' / 'checkpoints'} takes ", "name another")
        needed, free = (
            int(word.replace(",", ""))
            for word in child.err.partition("checkpoints takes ")[2].split()
            if word.replace(",", "").isdecimal()
        )
        assert free < needed and free < 128 * 1024
        assert (
            not (disk / "run" / "events.jsonl").exists() or not (disk / "run" / "events.jsonl").read_bytes()
        )
    with mounted(tmp_path / "large-disk", "size=16m") as disk:
        child = zygote.run(
            ["train", recipe(output_dir=str(disk / "run")), "--save_total_limit", "2"], tmp_path
        )
        assert child.wait() == 0, child.err
        kept = max((disk / "run" / "checkpoints").glob("step-*"))
        size = sum(file.stat().st_size for file in kept.iterdir())
    assert 0.5 * size < needed < 1.5 * size
    with mounted(tmp_path / "small-disk", f"size={size // 4096 * 4096 + 400_000}") as disk:
        # save_strategy=no needs no room for checkpoints
        child = zygote.run(["train", recipe(output_dir=str(disk / "run")), "--save_strategy", "no"], tmp_path)
        assert child.wait() == 0, child.err


def full_disk(run: RunFolder, broken: pytest.MonkeyPatch) -> None:
    fill(run.path.parent)


def quota_at_the_sync(run: RunFolder, broken: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    broken.setattr("surefoot.runfolder.os.fsync", refuse)


def mended(run: RunFolder, broken: pytest.MonkeyPatch) -> None:
    broken.undo()
    unfill(run.path.parent)


@pytest.mark.parametrize("breaks", [full_disk, quota_at_the_sync])
def test_no_room_for_what_the_run_is(breaks: Breaks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe found room, and then there was none: run.json stays what it was, and nothing half stays."""
    with small_disk(tmp_path / "disk") as disk:
        run = RunFolder(disk / "run")
        run.path.mkdir()
        run.write_config({"name": "first"})
        breaks(run, monkeypatch)
        with pytest.raises(UserError, match=rf"output_dir: {run.path} cannot be written: .* make room"):
            run.write_config({"name": "second" * PAGE_BYTES})
        assert run.config() == {"name": "first"}
        assert [path.name for path in run.path.iterdir()] == ["run.json"]
        mended(run, monkeypatch)
        run.write_config({"name": "second"})
        assert run.config() == {"name": "second"}


@pytest.mark.parametrize("breaks", [full_disk, quota_at_the_sync])
def test_no_room_to_go_back(breaks: Breaks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of steps that are taken again have no place to go: they stay where they are, none twice."""
    with small_disk(tmp_path / "disk") as disk:
        run = RunFolder(disk / "run")
        run.path.mkdir()
        kept, taken_again, earlier = b"1\n" * 7, b"2\n" * (1 << 17), b"0\n"
        run.events_file.write_bytes(kept + taken_again)
        run.discarded_file.write_bytes(earlier)
        breaks(run, monkeypatch)
        for _ in range(2):
            with pytest.raises(UserError, match=rf"output_dir: {run.path} cannot be written: .* make room"):
                run.go_back(3, len(kept))
            assert run.events_file.read_bytes() == kept + taken_again
            assert run.discarded_file.read_bytes() == earlier
        mended(run, monkeypatch)
        run.go_back(3, len(kept))
        assert run.events_file.read_bytes() == kept
        assert run.discarded_file.read_bytes() == earlier + taken_again
