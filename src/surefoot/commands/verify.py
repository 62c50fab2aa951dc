"""surefoot verify: every checkpoint of a run read whole, and what can be gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.progress import track

from surefoot.commands.checkpoints import put_aside, run_folder, size
from surefoot.commands.outlived import outlived
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.report.glyphs import printable
from surefoot.runfolder import RunFolder, numbered
from surefoot.train.manifest import Damaged, verify


class VerifyOptions(BaseModel):
    """Options of `surefoot verify`: none but --json."""


def run(argv: list[str]) -> int:
    """Parse, read, print. Status 1 when a checkpoint is not what was written."""
    about = "Read every checkpoint of a run and compare sizes and hashes."
    folder, as_json = run_folder(VerifyOptions, argv, "verify", about)
    with outlived():
        console, found = text_console(stderr=True), []
        for step, path in track(
            list(numbered(folder.checkpoints)),
            description="reading",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            one = _judged(step, path)
            if one["fault"] is None or path.exists() or path.is_symlink():  # a live run takes old ones away
                found.append(one)
        aside = [path.name for path in put_aside(folder)]
        newest = max((one["step"] for one in found if one["fault"] is None), default=None)
        sound = not aside and all(one["fault"] is None for one in found)
        if as_json:
            said = {"resume_from": newest, "checkpoints": found, "put_aside": aside}
            print(json.dumps(said, ensure_ascii=False))
        else:
            _show(folder, found, aside, newest)
    return 0 if sound else 1


def _show(folder: RunFolder, found: list[dict[str, Any]], aside: list[str], newest: int | None) -> None:
    width = max((len(f"{one['step']:,}") for one in found), default=0)
    for one in found:
        said = f"sound, {size(one['bytes'])}" if one["fault"] is None else f"DAMAGED: {one['fault']}"
        if one["fault"] is not None and not one["damaged"]:
            said = f"NOT USABLE: {one['fault']}"
        print(f"step {one['step']:>{width},}  {printable(said)}")
    for name in aside:
        print(f"put aside earlier, damaged: {printable(name)}")
    print()
    if newest is None:
        print("There is nothing to go on from.")
    elif (reason := folder.ended()) is not None:
        print(f"The run {reason}; its last sound checkpoint is of step {newest:,}.")
    elif any(one["fault"] is not None and not one["damaged"] and one["step"] > newest for one in found):
        print(f"The run does not go on until that is mended; the newest sound one is of step {newest:,}.")
    else:
        print(f"The run goes on from step {newest:,}: give its command again.")


def _judged(step: int, path: Path) -> dict[str, Any]:
    """What became of one checkpoint. `damaged`: it is not what was written, and is put aside on resuming."""
    plain = {"step": step, "path": path.name}
    try:
        manifest = verify(path)
    except UserError as error:
        fault = {"bytes": None, "loss": None, "fault": str(error), "damaged": isinstance(error, Damaged)}
        return {**plain, **fault}
    return {**plain, "bytes": manifest.bytes, "loss": manifest.loss, "fault": None, "damaged": False}
