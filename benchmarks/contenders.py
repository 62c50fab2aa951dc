"""Who is compared, and how each is started: a process of its own, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import KEEP_HEAP, available_bytes
from benchmarks.work import Tokens
from benchmarks.workloads import Prepared, recipe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Settings = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison."""

    name: str
    environment: str | None = None
    """Name of the peer's environment; None for surefoot."""
    settings: Settings = field(default_factory=dict)
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Settings that a search may change, with the values it may try."""
    keeps_heap: bool = True
    """Runs with the allocator tuned as surefoot's is."""
    lora: bool = True
    """Can train an adapter on all linear layers."""

    @property
    def worker(self) -> str:
        """The module that runs it."""
        return f"benchmarks.peer_{self.environment}"


SIZES = (1, 2, 4, 8, 16)
TRL = {"micro_batch": 2, "attention": "eager", "gradient_checkpointing": False, "padding_free": False}
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("surefoot"),
        Contender("trl-defaults", "trl", {"micro_batch": 8}),
        Contender("trl-untuned", "trl", {"micro_batch": 8}, keeps_heap=False),
        Contender(
            "trl-best",
            "trl",
            TRL,
            {
                "attention": ("eager", "sdpa"),
                "micro_batch": SIZES,
                "padding_free": (False, True),
                "gradient_checkpointing": (False, True),
            },
        ),
        Contender(
            "llamafactory",
            "llamafactory",
            {"micro_batch": 2, "attention": "eager", "gradient_checkpointing": False},
            {
                "attention": ("eager", "sdpa"),
                "micro_batch": SIZES,
                "gradient_checkpointing": (False, True),
            },
        ),
        Contender("litgpt", "litgpt", {"micro_batch": 2}, {"micro_batch": SIZES}, lora=False),
    )
}
"""trl-defaults: as its user gets it (activation checkpointing, padded batches of 8), with the allocator tuned;
trl-untuned: without that. The others at the best settings found (`--search`), or these."""


@dataclass(frozen=True)
class Outcome:
    """What one run did."""

    contender: str
    settings: Settings
    started: float
    """When its process was started, in seconds since 1970."""
    ended: list[float]
    """When each step ended."""
    loss: list[float]
    grad_norm: list[float]
    learning_rate: list[float]
    peak_bytes: int
    """Highest resident memory of the process; on a GPU its highest reserved memory."""
    versions: dict[str, str]
    remarks: list[str]
    """What makes this run not the same work."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FailedError(Exception):
    """A run that came to nothing; says why."""


def interpreter(environments: Path, contender: Contender) -> Path:
    """Of the contender's environment, there or not."""
    if contender.environment is None:
        return Path(sys.executable)
    return environments / contender.environment / "bin" / "python"


def missing(environments: Path, contender: Contender, lora: bool) -> str | None:
    """Why a contender cannot run, or None."""
    if lora and not contender.lora:
        return "does not train this adapter"
    if interpreter(environments, contender).exists():
        return None
    return f"not installed: python -m benchmarks.environments {contender.environment} --environments {environments}"


def run(
    contender: Contender,
    prepared: Prepared,
    environments: Path,
    folder: Path,
    *,
    precision: str = "bf16",
    stop_after: int | None = None,
    device: str = "cpu",
    rows: list[dict[str, Any]] | None = None,
) -> Outcome:
    """Train with one contender in a fresh process, in the new folder `folder`.

    `stop_after` ends a peer before its schedule does; `rows` are given to it instead of our token ids. Raises
    FailedError when it does not come to its end.
    """
    folder.mkdir(parents=True)
    if contender.environment is None:
        return _surefoot(contender, prepared, folder, precision, device)
    workload, settings = prepared.workload, dict(contender.settings)
    if contender.environment == "litgpt":
        settings["checkpoint"] = str(_checkpoint(environments, contender, prepared.model))
    given = rows if rows is not None else [asdict(row) for row in prepared.rows]
    spec = {
        "model": str(prepared.model),
        "rows": given,
        "precision": precision,
        "steps": prepared.steps,
        "stop_after": stop_after or prepared.steps,
        "rows_per_step": workload.rows_per_step,
        "learning_rate": workload.learning_rate,
        "seed": 42,
        "lora_r": workload.lora_r,
        "device": device,
        "output_dir": str(folder),
        "settings": settings,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    program = str(interpreter(environments, contender))
    command = [program, "-m", contender.worker, str(folder / "spec.json"), str(folder / "out.json")]
    done = launch(command, folder / "log.txt", KEEP_HEAP if contender.keeps_heap else {}, device)
    if done.problem:
        raise FailedError(f"{contender.name}: {done.problem}")
    found = json.loads((folder / "out.json").read_text())
    remarks = []
    if rows is None and found["rows"] != [{**row} for row in given]:
        remarks.append("trained on other tokens than it was given")
    (folder / "spec.json").unlink()
    return Outcome(
        contender=contender.name,
        settings=contender.settings,
        started=done.started,
        peak_bytes=found.get("gpu_peak_bytes", done.peak_bytes),
        remarks=remarks,
        **{name: found[name] for name in ("ended", "loss", "grad_norm", "learning_rate", "versions")},
    )


def trained_on(folder: Path) -> list[Tokens]:
    """The rows that a peer's run trained on, as it tokenised them."""
    return [Tokens(**row) for row in json.loads((folder / "out.json").read_text())["rows"]]


def _surefoot(contender: Contender, prepared: Prepared, folder: Path, precision: str, device: str) -> Outcome:
    options = recipe(
        prepared.workload, prepared.model, folder / "run", prepared.steps, precision, device=device
    )
    options |= {"dataset_name": str(prepared.rows_file), **contender.settings}
    (folder / "recipe.yaml").write_text(json.dumps(options, indent=1))  # JSON is YAML
    start = ["-m", "surefoot"] if device == "cpu" else ["-m", "benchmarks.ours", str(folder / "gpu.json")]
    command = [sys.executable, *start, "train", str(folder / "recipe.yaml")]
    done = launch(command, folder / "log.txt", {}, device)
    if done.problem:
        raise FailedError(f"surefoot: {done.problem}")
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["type"] == "step"]
    learned = [sum(row.learned for row in prepared.of_step(step)) for step in range(prepared.steps)]
    same = [step["supervised"] for step in steps] == learned
    peak = json.loads((folder / "gpu.json").read_text())["gpu_peak_bytes"] if device == "cuda" else 0
    return Outcome(
        contender="surefoot",
        settings=contender.settings,
        started=done.started,
        ended=[step["time"] for step in steps],
        loss=[step["loss"] for step in steps],
        grad_norm=[step["grad_norm"] for step in steps],
        learning_rate=[step["learning_rate"] for step in steps],
        peak_bytes=peak or done.peak_bytes,
        versions=json.loads((folder / "run" / "run.json").read_text()).get("versions", {}),
        remarks=[] if same else ["trained on other tokens than peers were given"],
    )


def _checkpoint(environments: Path, contender: Contender, model: Path) -> Path:
    """LitGPT's checkpoint of the model, made once."""
    place = environments / "litgpt-checkpoints" / model.name
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        program = str(interpreter(environments, contender))
        names = [name for name in ("SmolLM2-135M-Instruct",) if model.name.startswith("smollm2-135m")]
        command = [program, "-m", contender.worker, "convert", str(model), str(place), *names]
        if not names:
            raise FailedError(f"litgpt: {model.name} has no name in LitGPT that is known here")
        done = launch(command, place.with_suffix(".log"), {}, "cpu")
        if done.problem:
            raise FailedError(f"litgpt: the checkpoint could not be made: {done.problem}")
    return place


@dataclass(frozen=True)
class Finished:
    """A process that ended."""

    started: float
    peak_bytes: int
    problem: str | None


def launch(command: Sequence[str], log: Path, extra: Mapping[str, str], device: str) -> Finished:
    """Run a command from the repository's root, its output in `log`, and measure its highest memory.

    It is ended when less than a tenth of the free memory is left to others. The measure is the kernel's; it
    counts the memory of the process that starts it too, so that one has to be small (no torch).
    """
    environment = {**os.environ, **extra, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    limit = available_bytes()
    too_much = False
    with log.open("w") as out:
        started = time.time()
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        except OSError as error:
            return Finished(started, 0, f"{command[0]}: {error.strerror}")
        try:
            while True:
                pid, status, used = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if limit is not None and _resident(process.pid) > 0.9 * limit:
                    too_much = True
                    process.kill()
                time.sleep(0.05)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    problem = None
    if too_much:
        problem = f"needs more than {0.9 * (limit or 0) / 1e9:.1f} GB"
    elif process.returncode:
        problem = f"ended with status {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}"
    return Finished(started, used.ru_maxrss * 1024, problem)


def end_on_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does: the run it has started ends too, and its files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
