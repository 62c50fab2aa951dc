"""Real launches of the command line on several processes, and what came of them."""

from __future__ import annotations

import json
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

import yaml

from tests.conftest import QUESTIONS, write_rows
from tests.faults.children import events, last_step

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
ROWS = [{"prompt": asked, "completion": said} for asked, said in QUESTIONS] * 4

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


def write_recipe(place: Path, model: Path, **options: Any) -> Path:
    """Twelve steps of four rows, in fp32 on the CPU."""
    write_rows(place / "rows.jsonl", ROWS)
    plain = {
        "model_name_or_path": str(model),
        "dataset_name": "rows.jsonl",
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "logging_steps": 2,
        "save_steps": 3,
        "tensors_every": 4,
        "precision": "fp32",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain | options), encoding="utf-8")
    return path


DIVIDED = ("slots", "micro_batches", "lost_share")
"""What depends on how a step's examples were divided; the share of updates that rounding ate is a count of weights
that a last bit may tip."""


def alike(one: Path, other: Path, tolerance: float) -> None:
    """The same events, numbers to `tolerance`, but for clocks, memory, and `DIVIDED`."""
    first, second = (_plain(events(run)) for run in (one, other))
    assert [(e["type"], e["step"]) for e in first] == [(e["type"], e["step"]) for e in second]
    for a, b in zip(first, second, strict=True):
        _compare(a, b, tolerance, f"{a['type']} of step {a['step']}")


def _plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clock = ("time", "memory_bytes", "peak_memory_bytes", "predicted_peak_memory_bytes", "notes", "path")
    late = sorted((r for r in records if r["type"] == "checkpoint"), key=lambda r: r["step"])
    rest = [r for r in records if r["type"] != "checkpoint"]
    return [
        {
            key: value
            for key, value in record.items()
            if key not in clock + DIVIDED and not key.endswith(("_seconds", "_per_second", "_bytes"))
        }
        for record in [*rest, *late]
    ]


def _compare(a: Any, b: Any, tolerance: float, where: str) -> None:
    assert type(a) is type(b), (where, a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _compare(a[key], b[key], tolerance, f"{where}: {key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, tolerance, f"{where}[{number}]")
    elif isinstance(a, float):
        assert abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-9), (where, a, b)
    else:
        assert a == b, where


def at_step(folder: Path, step: int) -> bool:
    return last_step(folder) >= step


def resumed(folder: Path) -> list[int]:
    """The steps after which the run went on."""
    return [one["step"] for one in json.loads((folder / "run.json").read_text("utf-8")).get("resumed", [])]
