"""Where a run goes on: the newest checkpoint that is what was written, if it is of this run.

1. What the folder holds decides, with `resume_from_checkpoint`: begin, go on, or refuse.
2. Newest first, each checkpoint is read whole; damaged ones are put aside, and that is said.
3. The run that the checkpoint is of is compared with the one that is asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.ranks import by_first, most, rank, ranks, told
from surefoot.runfolder import RunFolder, numbered
from surefoot.train.checkpoint import quarantine
from surefoot.train.identity import compare, identity, rows_then
from surefoot.train.manifest import QUARANTINE, Damaged, manifest_of, state_of, verify
from surefoot.train.saver import Saver


@dataclass(frozen=True)
class Start:
    """How a run begins."""

    checkpoint: Path | None
    """To go on from; None: from the first step."""
    own: bool
    """The checkpoint is of this folder, whose events and slides are cut to match."""
    notes: tuple[str, ...] = ()
    """What the user should know, in words."""
    warnings: tuple[str, ...] = ()
    """What of that nobody may miss, also where no notes are shown."""
    damaged: tuple[Path, ...] = ()
    """Checkpoints that were put aside."""
    history: tuple[dict[str, Any], ...] = ()
    """When the run went on before, and what was said then; for run.json."""


def refuse_early(run: RunFolder, args: SFTConfig) -> None:
    """Raises UserError for what of the run folder can be told before model and rows are read."""
    run.refuse_unwritable()
    if args.resume_from_checkpoint in (True, False, "auto"):
        _refuse(run, args)


def _refuse(run: RunFolder, args: SFTConfig) -> None:
    if args.overwrite_output_dir or not run.begun():
        if args.resume_from_checkpoint is True:
            raise UserError(_nothing(run) if not run.begun() else _both(run))
        return
    run.refuse_finished()
    if args.resume_from_checkpoint is False:
        raise UserError(
            f"output_dir: {run.path} holds a run that stopped after step {run.last_step()}. Leave out "
            "resume_from_checkpoint=false to go on with it, name another folder, or start over in this one with "
            "overwrite_output_dir=true"
        )


def find(run: RunFolder, args: SFTConfig, resume: bool | str, now: Mapping[str, Any], saver: Saver) -> Start:
    """How the run begins. `now`: what run.json will say of it.

    Raises UserError when the folder's run is over, is another one, or has checkpoints of which none can be used.
    """
    args = args.model_copy(update={"resume_from_checkpoint": resume})
    if isinstance(resume, str) and resume != "auto":
        return _from(Path(resume), run, args, now, saver)
    _refuse(run, args)
    if args.overwrite_output_dir or not run.begun():
        run.clear()
        return Start(None, own=False)
    there, aside = list(numbered(run.checkpoints)), list((run.checkpoints / QUARANTINE).glob("step-*"))
    if not there and not aside:
        try:
            then = identity(run.config())
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{run.config_file}: does not tell which run this is ({type(error).__name__}: {error}); start over "
                "with overwrite_output_dir=true"
            ) from None
        _compare(str(run.path), then, now)
        again = "the run here was stopped before its first checkpoint: it begins again"
        return Start(None, own=True, notes=(again,), history=_history(run, 0, [again]))
    damaged: list[tuple[Path, str]] = []
    for step, path in reversed(there):
        try:
            verify(path)
        except Damaged as error:
            damaged.append((path, str(error)))
            continue
        notes = _compare(str(path), state_of(path).get("identity") or {}, now)
        saver.sound.add(step)
        for bad, why in damaged:
            where = _put_aside(saver, bad)
            notes.append(f"the checkpoint {bad.name} is damaged, and is now in {where}: {why}")
        return Start(
            path,
            own=True,
            notes=(_goes_on(step, path), *notes),
            warnings=tuple(notes),
            damaged=tuple(bad for bad, _ in damaged),
            history=_history(run, step, notes),
        )
    listed = "\n  ".join([*(why for _, why in damaged), *(f"{path}: put aside earlier" for path in aside)])
    raise UserError(
        f"output_dir: {run.path} has checkpoints, and none is what was written:\n  {listed}\nPut a whole copy "
        "back, or give the run up and start over with overwrite_output_dir=true"
    )


def find_together(
    run: RunFolder, args: SFTConfig, resume: bool | str, now: Mapping[str, Any], saver: Saver
) -> Start:
    """`find`, by rank 0; what it finds, all ranks know."""
    found = by_first(lambda: find(run, args, resume, now, saver))
    if ranks() == 1 and found is not None:
        return found
    said = json.loads(told(json.dumps(asdict(found), default=str) if found is not None else ""))
    checkpoint = Path(said["checkpoint"]) if said["checkpoint"] is not None else None
    if checkpoint is not None and said["own"]:
        saver.sound.add(manifest_of(checkpoint).step)
    return Start(
        checkpoint,
        own=said["own"],
        notes=tuple(said["notes"]),
        warnings=tuple(said["warnings"]),
        damaged=tuple(map(Path, said["damaged"])),
        history=tuple(said["history"]),
    )


def rows_of_step(run: RunFolder, args: SFTConfig, resume: bool | str) -> int:
    """Rows of a step. A run that goes on with another number of processes keeps those that it began with."""
    own = args.step_rows * ranks()
    if rank() > 0:
        return int(most([0])[0])
    then: Mapping[str, Any] = {}
    with suppress(UserError):  # `find` says what is wrong
        if isinstance(resume, str) and resume != "auto":
            then = state_of(Path(resume)).get("identity") or {}
        elif resume is not False and not args.overwrite_output_dir and run.begun():
            then = run.config()
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    with suppress(KeyError, TypeError, AttributeError):
        rows = rows_then(then)
        if all(then["config"].get(name) == getattr(args, name) for name in names) and rows > 0:
            own = rows
    return int(most([own])[0])


def _put_aside(saver: Saver, bad: Path) -> Path:
    try:
        return quarantine(saver.storage, bad)
    except OSError as error:
        raise UserError(
            f"{bad}: is damaged, and could not be put aside in {bad.parent / QUARANTINE}: {error.strerror}. "
            "Move it away to use the checkpoint before it"
        ) from None


def _from(path: Path, run: RunFolder, args: SFTConfig, now: Mapping[str, Any], saver: Saver) -> Start:
    """From a checkpoint that the user names."""
    if not path.is_dir():
        raise UserError(f"resume_from_checkpoint: {path}: no such folder")
    step = verify(path).step
    notes = _compare(str(path), state_of(path).get("identity") or {}, now)
    own = path.resolve().parent == run.checkpoints.resolve()
    if own:
        saver.sound.add(step)
    elif args.overwrite_output_dir or not run.begun():
        run.clear()
    elif next(numbered(run.checkpoints), None) is not None:  # this command was given before, and came further
        return find(run, args, "auto", now, saver)
    else:
        run.refuse_finished()
        run.go_back(0, 0)
    return Start(
        path,
        own=own,
        notes=(_goes_on(step, path), *notes),
        warnings=tuple(notes),
        history=_history(run, step, notes),
    )


def _goes_on(step: int, path: Path) -> str:
    return f"goes on after step {step:,}, from {path}"


def _history(run: RunFolder, step: int, notes: list[str]) -> tuple[dict[str, Any], ...]:
    """For run.json: each time that the run went on."""
    try:
        before = run.config().get("resumed", [])
    except UserError:  # the checkpoint says what is needed
        before = []
    return (
        *(before if isinstance(before, list) else []),
        {"step": step, "time": time.time(), "notes": list(notes)},
    )


def _compare(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Words on what may round otherwise. Raises UserError when it is another run."""
    try:
        found = compare(then, identity(now))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if found.refused:
        listed = "\n  ".join(found.refused)
        raise UserError(
            f"{where} is of another run than the one asked for:\n  {listed}\nChange that back, name another "
            "output_dir, or start over in this one with overwrite_output_dir=true"
        )
    if not found.rounding:
        return []
    return [f"not bitwise the run that was begun: {'; '.join(found.rounding)}"]


def _nothing(run: RunFolder) -> str:
    return (
        f"resume_from_checkpoint: {run.path} has no run to go on with. Check output_dir, or leave the option out: "
        "a run that was stopped goes on by itself"
    )


def _both(run: RunFolder) -> str:
    return (
        f"overwrite_output_dir starts over in {run.path}, and resume_from_checkpoint goes on there: leave one "
        "of them out"
    )
