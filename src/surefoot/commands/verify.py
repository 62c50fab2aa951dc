"""surefoot verify: every checkpoint of a run read whole, and what can be gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import track

from surefoot.commands.checkpoints import run_folder, size
from surefoot.errors import UserError
from surefoot.report.glyphs import printable
from surefoot.runfolder import numbered
from surefoot.train.manifest import QUARANTINE, verify


class VerifyOptions(BaseModel):
    """Options of `surefoot verify`: none but --json."""


def run(argv: list[str]) -> int:
    """Parse, read, print. Status 1 when a checkpoint is not what was written."""
    about = "Read every checkpoint of a run and compare sizes and hashes."
    folder, as_json = run_folder(VerifyOptions, argv, "verify", about)
    console, found = Console(stderr=True), []
    paths = list(numbered(folder.checkpoints))
    for step, path in track(
        paths, description="reading", console=console, transient=True, disable=not console.is_terminal
    ):
        if path.is_dir():  # a run that goes on takes old ones away
            found.append(_judged(step, path))
    aside = sorted(path.name for path in (folder.checkpoints / QUARANTINE).glob("step-*"))
    usable = [one["step"] for one in found if one["fault"] is None]
    newest = max(usable, default=None)
    if as_json:
        print(
            json.dumps({"resume_from": newest, "checkpoints": found, "put_aside": aside}, ensure_ascii=False)
        )
    else:
        for one in found:
            said = f"sound, {size(one['bytes'])}" if one["fault"] is None else one["fault"]
            print(f"step {one['step']:,}: {printable(said)}")
        for name in aside:
            print(f"{name}: put aside earlier, damaged")
        if newest is None:
            print("there is nothing to go on from")
        elif (reason := folder.ended()) is not None:
            print(f"the run {reason}; its last sound checkpoint is of step {newest:,}")
        else:
            print(f"the run goes on from step {newest:,}: give its command again")
    return 0 if len(usable) == len(found) and not aside else 1


def _judged(step: int, path: Path) -> dict[str, Any]:
    try:
        manifest = verify(path)
    except UserError as error:
        return {"step": step, "path": path.name, "bytes": None, "loss": None, "fault": str(error)}
    return {"step": step, "path": path.name, "bytes": manifest.bytes, "loss": manifest.loss, "fault": None}
