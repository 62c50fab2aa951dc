"""Real launches of the command line on several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"

Words = tuple[str, ...]
Environment = Mapping[str, str]
NOTHING: Environment = {}


@dataclass
class Launch:
    """A command on its way, in a session of its own so that all of it can be signalled."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait(self, timeout: float = 180.0) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"took longer than {timeout} s:\n{self.said}") from None

    def until(self, holds: Callable[[], bool], timeout: float = 120.0) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert self.process.poll() is None, f"ended before it held:\n{self.said}"
            assert time.monotonic() < deadline, f"did not hold within {timeout} s:\n{self.said}"
            time.sleep(0.01)

    def ranks(self) -> dict[int, int]:
        """Rank → process id of the workers."""
        found = {}
        for place in Path("/proc").iterdir():
            with suppress(OSError, ValueError, KeyError):
                entries = (place / "environ").read_text().split("\0")
                environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
                ours = environment["SUREFOOT_TEST"] == str(self.log) and "RANK" in environment
                words = (place / "cmdline").read_text().split("\0")
                if ours and "train" in words and "torch.distributed.run" not in words:
                    found[int(environment["RANK"])] = int(place.name)
        return found


def start(place: Path, *argv: Any, launcher: Words = (), env: Environment = NOTHING) -> Launch:
    """Start `surefoot train ARGV`, or torchrun with the words of `launcher`, in `place`."""
    by = ("-m", "torch.distributed.run", *launcher) if launcher else ()
    return _start(place, [*by, "-m", "surefoot", "train", *map(str, argv)], env)


def script(place: Path, path: Path, count: int) -> Launch:
    """Run a script of the user's by torchrun, in so many processes, to its end."""
    by = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    launch = _start(place, [*by, str(path)], NOTHING)
    assert launch.wait() == 0, launch.said
    return launch


def _start(place: Path, words: list[str], env: Environment) -> Launch:
    log = place / f"log-{time.monotonic_ns()}"
    command = [sys.executable, *words]
    told = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SUREFOOT_TEST": str(log)}
    path = os.pathsep.join([str(SITE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **told, **env, "PYTHONPATH": path}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=file, stderr=file, start_new_session=True, text=True
        )
    return Launch(process, log)


def run(place: Path, *argv: Any, status: int = 0, launcher: Words = (), env: Environment = NOTHING) -> Launch:
    """`start`, and wait for the end."""
    launch = start(place, *argv, launcher=launcher, env=env)
    assert launch.wait() == status, launch.said
    return launch
