"""The result of a run, `model/`: there whole, or not at all. Of several ranks each writes its share, and the first
one commits it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from surefoot.durable import sync_file, sync_folder
from surefoot.errors import StoppedError
from surefoot.ranks import Elsewhere, StoppedElsewhere, rank, texts
from surefoot.runfolder import RunFolder
from surefoot.train.saver import WAITS


def save_result(run: RunFolder, write: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Let `write` fill a new folder, and make it the run's `model/`; where that fails, wait and try again.

    Of several ranks all must call it, and `write` is called on all. Raises StoppedError when it still cannot. The
    checkpoints, and a `model/` that is there, are intact then.
    """
    partial = run.path / ".model.partial"
    for pause in (*WAITS, None):
        failed = _attempt(run, partial, write)
        if failed is None:
            return
        reason = f"the model could not be saved in {run.model}: {failed}"
        if pause is None:
            raise (StoppedError if rank() == 0 else StoppedElsewhere)(
                f"{reason}; tried again for {sum(WAITS):.0f} s. The checkpoints are intact: make room, and the "
                "same command saves the model"
            )
        if pause == WAITS[0] and rank() == 0:
            say(f"{reason}. Trying again for {sum(WAITS):.0f} s")
        time.sleep(pause)


def _attempt(run: RunFolder, partial: Path, write: Callable[[Path], None]) -> str | None:
    """Why it has failed, if room or time may help; the same on all ranks. Raises what is another matter."""
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    failed = _tried(lambda: write(partial)) or _tried(
        lambda: _commit(partial, run.model) if rank() == 0 else None
    )
    if failed is not None and rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    return failed


def _tried(do: Callable[[], None]) -> str | None:
    """`_attempt`'s, of one part of it."""
    failed: Exception | None = None
    try:
        do()
    except Exception as error:
        failed = error
    mine = failed is not None and not isinstance(failed, (Elsewhere, StoppedElsewhere))
    passes = failed is None or not mine or _passes(failed)
    said = [json.loads(text) for text in texts(json.dumps([str(failed) if mine else None, passes]))]
    if failed is not None and not passes:
        raise failed
    reasons = [
        f"rank {number}: {one}" if number else one for number, (one, _) in enumerate(said) if one is not None
    ]
    if not all(passes for _, passes in said):
        raise StoppedElsewhere(reasons[0])
    return reasons[0] if reasons else None


def _passes(error: Exception) -> bool:
    # The tokenizers library has no type for a full disk: it raises Exception itself.
    return isinstance(error, (OSError, SafetensorError)) or type(error) is Exception


def _commit(partial: Path, final: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(partial)
    old = final.with_name(".model.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.is_dir():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        with suppress(OSError):
            old.rename(final)
        raise
    sync_folder(final.parent)
    with suppress(OSError):
        if old.is_dir():
            shutil.rmtree(old)
