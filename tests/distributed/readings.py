"""Two processes that read rows together, and what each of them gets."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from surefoot import SFTConfig, ranks
from surefoot.data import dataset, sharing
from surefoot.data import store as store_module
from surefoot.data.render import BATCH, Renderer
from surefoot.data.sources import open_source
from surefoot.ranks import rank
from surefoot.train import setup
from tests import templates, toys

TIMEOUT_SECONDS = 3
"""After which a collective fails."""
SLOW_SECONDS = TIMEOUT_SECONDS + 1
ROWS = [{"prompt": f"Question {i}", "completion": f"Answer {i}" * (i % 5 + 1)} for i in range(40)]
BAD = [*ROWS[:7], {"prompt": "no answer"}, *ROWS[7:]]
TOKENIZER = toys.byte_level(template=templates.CHATML)


class Recorder:
    """Reads, and keeps what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.found: dict[str, Any] = {}

    def renderer(self) -> Renderer:
        return Renderer(TOKENIZER, max_length=512)

    def read(self, name: str, rows: Any, **options: Any) -> None:
        """Leaves under `name` what this rank gets, and what is left in the folders once all have it."""
        options = {"columns": {}, "worth_seconds": 0.0, "cache": self.cache, **options}
        self.take(name, lambda: dataset.read(open_source(rows), self.renderer(), **options))

    def take(self, name: str, get: Callable[[], dataset.Dataset]) -> None:
        read: list[int] = []
        began = time.monotonic()
        with patch.object(dataset, "records", counted(read)):
            try:
                data = get()
            except (ValueError, RuntimeError) as error:
                said = {"error": [type(error).__name__, str(error)]}
            else:
                said = {
                    "examples": [
                        [e.prompt_ids.tolist(), e.completion_ids.tolist(), e.row, e.where, e.weight]
                        for e in data.examples
                    ],
                    "ledger": data.ledger.to_dict(),
                    "notes": data.notes,
                    "from_cache": data.from_cache,
                    "dict": data.to_dict(),
                    "digest": replace(data.stored, known_digest=None).digest(),
                }
        seconds = time.monotonic() - began
        dist.barrier()
        left = [path.name for path in (*self.cache.glob("*"), *(self.folder / "tmp").iterdir())]
        self.found[name] = {**said, "rows_read": len(read), "left": left, "seconds": seconds}


def counted(read: list[int], records: Any = dataset.records) -> Callable[..., Iterator[Any]]:
    def counting(*args: Any) -> Iterator[Any]:
        for record in records(*args):
            read.append(1)
            yield record

    return counting


@contextmanager
def machines(*, apart: bool) -> Iterator[None]:
    """Each process on a machine of its own, as a launcher says it."""
    own = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(rank())}
    with patch.dict(os.environ, own if apart else {}):
        yield


def slowly(row: dict[str, Any]) -> dict[str, Any]:
    time.sleep(SLOW_SECONDS / len(ROWS))
    return row


def broken(row: dict[str, Any]) -> dict[str, Any]:
    """On the rank that reads for both."""
    if rank() == 0:
        raise RuntimeError("a fault of the code")
    return row


def full(column: Any, part: bytes, write: Any = store_module._Column.write) -> None:
    """A disk that takes nothing."""
    if column._file is not None:
        raise OSError(28, "No space left on device")
    write(column, part)


def read_all(folder: Path) -> dict[str, Any]:
    """All cases, one after the other, on this rank."""
    recorder = Recorder(folder)
    read, first = recorder.read, rank() == 0
    everyone, own = folder / "rows.jsonl", folder / f"own-{rank()}.jsonl"
    bad = folder / "bad.jsonl"
    read("kept", everyone)
    read("again", everyone)
    read("quick", everyone, worth_seconds=60, on_bad_row="skip")
    read("nowhere", everyone, cache=None)
    read("formatted", ROWS, formatting=lambda row: f"{row['prompt']} {row['completion']}")
    read("bad", bad)
    read("skipped", bad, on_bad_row="skip")
    read("fault", ROWS, formatting=broken)
    read("split", ROWS[rank() :: 2])
    taken = dataset._taken
    with patch.object(dataset, "_taken", lambda about: taken({**about, "folder": str(folder / "not here")})):
        read("unreadable", everyone)

    with patch.object(tempfile, "tempdir", str(everyone)):
        read("no folder", everyone, cache=bad)
    with patch.object(store_module._Column, "write", full):
        read("full", everyone, cache=folder / "other")

    _set_pg_timeout(timedelta(seconds=TIMEOUT_SECONDS), dist.group.WORLD)
    read("slow", ROWS, formatting=slowly)
    lines = StringIO()
    args = SFTConfig(output_dir=str(folder / "run"))
    prepared: Any = SimpleNamespace(model=None, tokenizer=None, notes=[])
    with (
        patch.object(setup, "make_renderer", lambda *_: recorder.renderer()),
        patch.object(sharing, "FIRST_SECONDS", 0.3),
        patch.object(sharing, "PAUSE_SECONDS", 0.5),
        patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "xdg"), "LOCAL_RANK": str(rank())}),
        redirect_stderr(lines),
    ):
        recorder.take(
            "lines", lambda: setup.read_data(open_source(ROWS * (BATCH // 8)), prepared, args, slow_start())
        )
    recorder.found["lines"]["said"] = lines.getvalue()

    waits: list[str] = []
    with machines(apart=True):
        read("machines", everyone)
        read("differ", own)
        with patch.object(sharing, "FIRST_SECONDS", 0.5), patch.object(sharing, "PAUSE_SECONDS", 1.0):
            read("wait", ROWS, formatting=dict if first else slowly, waits=waits.append)
        recorder.found["wait"]["waits"] = waits
        read("far", BAD if not first else ROWS, formatting=slowly if first else dict)
    return recorder.found


def slow_start() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Formats the rows of one batch after the other, each after a while."""
    seen: list[int] = []

    def formatting(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        if len(seen) % BATCH == 0:
            time.sleep(0.4)
        return row

    return formatting


def main(folder: Path) -> None:
    """One of two processes; leaves its results in `folder`."""
    tempfile.tempdir = str(folder / "tmp")
    found = read_all(folder)
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(found))
