"""Runs of the command line that a test can watch, signal and kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


class Zygote:
    """Starts children within milliseconds; see `zygote.py`."""

    def __init__(self) -> None:
        answers, theirs = os.pipe()
        self._answers = os.fdopen(answers, "rb", buffering=0)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ZYGOTE_ANSWERS": str(theirs)}
        command = [sys.executable, "-m", "tests.faults.zygote"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, pass_fds=[theirs], bufsize=0
        )
        os.close(theirs)
        self._ended: dict[int, int] = {}
        self._buffer = b""
        assert "ready" in self._read(60.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._answers.close()

    def start(self, argv: list[Any], cwd: Path, **more: Any) -> Child:
        """Run `surefoot ARGV` in `cwd`.

        `more`: `env`, `group` (a process group of its own), `patch` ("module:function", called in the child before
        the command) and `patch_args`; `stdout`, `stderr` (paths).
        """
        return self._start({"argv": [str(word) for word in argv]}, cwd, **more)

    def call(self, function: str, args: list[Any], cwd: Path, **more: Any) -> Child:
        """Call "module:function" with `args` that JSON can hold; what it returns is the exit status (None: 0)."""
        return self._start({"call": function, "args": args}, cwd, **more)

    def _start(self, what: dict[str, Any], cwd: Path, **more: Any) -> Child:
        number = next(_numbers)
        files = {name: str(more.pop(name, cwd / f".{name}-{number}")) for name in ("stdout", "stderr")}
        request = {**what, "cwd": str(cwd), **files, **more}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        while "pid" not in (found := self._read(60.0)):
            pass
        return Child(found["pid"], self, Path(files["stdout"]), Path(files["stderr"]))

    def run(self, argv: list[Any], cwd: Path, timeout: float = 120.0, **more: Any) -> Child:
        """`start`, and wait for the end."""
        child = self.start(argv, cwd, **more)
        child.wait(timeout)
        return child

    def status(self, pid: int, timeout: float) -> int | None:
        """The exit status of a child (−number of the signal that killed it); None while it runs."""
        deadline = time.monotonic() + timeout
        while pid not in self._ended:
            try:
                self._read(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None
        return self._ended[pid]

    def _read(self, timeout: float) -> dict[str, Any]:
        import select

        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the zygote does not answer")
            chunk = os.read(self._answers.fileno(), 1 << 16)
            assert chunk, "the zygote is gone"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        if "ended" in found:
            self._ended[found["ended"]] = found["status"]
        return found


@dataclass
class Child:
    """One running command."""

    pid: int
    zygote: Zygote
    stdout: Path
    stderr: Path

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit status; kills it and fails when it takes longer."""
        status = self.zygote.status(self.pid, timeout)
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.zygote.status(self.pid, 30.0)
            raise AssertionError(f"took longer than {timeout} s:\n{self.err}")
        return status

    @property
    def running(self) -> bool:
        return self.zygote.status(self.pid, 0.0) is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def until(self, holds: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until something holds while the child runs."""
        deadline = time.monotonic() + timeout
        while not holds():
            assert self.running, f"ended before it held: {self.err}"
            assert time.monotonic() < deadline, f"did not hold within {timeout} s: {self.err}"
            time.sleep(0.002)

    @property
    def out(self) -> str:
        return self.stdout.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self.stderr.read_text(encoding="utf-8")


# Runs ------------------------------------------------------------------------------------------------------


def events(run: Path) -> list[dict[str, Any]]:
    """The records of a run's events.jsonl."""
    file = run / "events.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def last_step(run: Path) -> int:
    """The last step that is in the events; what is being written is not looked at."""
    file = run / "events.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def clock_free(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what only the clock or the machine's memory decides: times, speeds, bytes held, what was
    said of them at the start. When a checkpoint was known to be committed is a matter of the clock too, so those
    records come last, by step."""

    def plain(record: dict[str, Any]) -> dict[str, Any]:
        clock = ("time", "mfu", "memory_bytes", "peak_memory_bytes", "predicted_peak_memory_bytes", "notes")
        return {
            key: value
            for key, value in record.items()
            if key not in clock and not key.endswith(("_seconds", "_per_second"))
        }

    late = [record for record in records if record["type"] == "checkpoint"]
    rest = [record for record in records if record["type"] != "checkpoint"]
    return [plain(record) for record in rest] + [plain(r) for r in sorted(late, key=lambda r: r["step"])]


def state_hashes(run: Path, step: int) -> dict[str, str]:
    """sha256 of weights and optimizer state of a run's checkpoint, and of its result."""
    manifest = json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text("utf-8"))
    import hashlib

    found = {
        name: file["sha256"] for name, file in manifest["files"].items() if name.endswith(".safetensors")
    }
    result = run / "model" / "model.safetensors"
    found["model"] = hashlib.sha256(result.read_bytes()).hexdigest()
    return found
