"""The result of a run, `model/`: there whole, or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from surefoot.durable import sync_file, sync_folder
from surefoot.errors import StoppedError
from surefoot.runfolder import RunFolder
from surefoot.train.saver import WAITS


def save_result(run: RunFolder, write: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Let `write` fill a new folder, and make it the run's `model/`; where that fails, wait and try again.

    Raises StoppedError when it still cannot. The checkpoints, and a `model/` that is there, are intact then.
    """
    partial = run.path / ".model.partial"
    for pause in (*WAITS, None):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            _commit(partial, run.model)
            return
        except Exception as error:
            # The tokenizers library has no type for a full disk: it raises Exception itself.
            if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            reason = f"the model could not be saved in {run.model}: {error}"
        if pause is None:
            raise StoppedError(
                f"{reason}; tried again for {sum(WAITS):.0f} s. The checkpoints are intact: make room, and the "
                "same command saves the model"
            )
        if pause == WAITS[0]:
            say(f"{reason}. Trying again for {sum(WAITS):.0f} s")
        time.sleep(pause)


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
