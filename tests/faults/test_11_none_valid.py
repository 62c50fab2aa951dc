"""Fault 11: there are checkpoints, and none is what was written. The run is refused, nothing is moved, and it is
never begun anew as if they had not been there."""

from __future__ import annotations

from pathlib import Path

from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.disturbed import refused, same, train
from tests.faults.test_10_manifest import content_of, killed


def damage(folder: Path) -> bytes:
    """Flip a bit of a checkpoint's weights; returns what they were."""
    path = folder / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    return whole


def test_all_are_damaged(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    whole = {path: damage(path) for path in sorted((run / "checkpoints").glob("step-*"))}
    before = content_of(run)
    for flags in ([], ["--resume_from_checkpoint", "true"]):
        child = zygote.run([*argv, *flags], tmp_path)
        listed = [f"{path / 'weights.safetensors'}: is damaged: its sha256 is" for path in whole]
        refused(child, f"output_dir: {run} has checkpoints, and none is what was written", *listed)
        refused(child, "Put a whole copy back, or give the run up", "overwrite_output_dir=true")
        assert content_of(run) == before
    refused(zygote.run([*argv, "--resume_from_checkpoint", "false"], tmp_path), "holds a run that stopped")
    assert content_of(run) == before
    # The first fix that it names.
    path = sorted(whole)[0]
    (path / "weights.safetensors").write_bytes(whole[path])
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole", "alert")


def test_all_were_put_aside_earlier(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """The quarantine is not forgotten; nor by a command that was to begin a run, or to overwrite none."""
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    place = run / "checkpoints" / "quarantine"
    place.mkdir()
    for path in sorted((run / "checkpoints").glob("step-*")):
        damage(path)
        path.rename(place / path.name)
    before = content_of(run)
    refused(zygote.run(argv, tmp_path), f"{place / 'step-00000003'}: put aside earlier", "none is what was")
    assert content_of(run) == before
    (run / "events.jsonl").unlink()
    before = content_of(run)
    refused(zygote.run(argv, tmp_path), f"{place / 'step-00000009'}: put aside earlier", "none is what was")
    assert content_of(run) == before


def test_some_put_aside_and_the_rest_damaged(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """First one after the other is put aside, with the run going on; then there is none left."""
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    damage(run / "checkpoints" / "step-00000009")
    stop = {"patch": "tests.faults.patches_signals:killed_after", "patch_args": {"step": 7}}
    assert zygote.run(argv, tmp_path, **stop).wait() == -9
    assert (run / "checkpoints" / "quarantine" / "step-00000009").is_dir()
    for step in (3, 6):
        damage(run / "checkpoints" / f"step-{step:08d}")
    before = content_of(run)
    child = zygote.run(argv, tmp_path)
    refused(child, "step-00000003", "step-00000006", "quarantine/step-00000009: put aside earlier")
    assert content_of(run) == before


def test_giving_up_is_the_users_to_say(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """The other fix that it names."""
    train(zygote, recipe, tmp_path, "whole")
    argv, run = killed(zygote, recipe, tmp_path), tmp_path / "run"
    for path in (run / "checkpoints").glob("step-*"):
        damage(path)
    again = zygote.run([*argv, "--overwrite_output_dir"], tmp_path)
    assert again.wait() == 0, again.err
    assert events(run)[0]["type"] == "start" and not events(run)[0]["resumed"]
    same(run, tmp_path / "whole")
