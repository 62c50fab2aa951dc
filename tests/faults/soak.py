"""python -m tests.faults.soak --kills 1000 [--seed N] [--minutes M] [--json FILE]

Runs of one recipe (an adapter with dropout, accumulation, evaluations, saves in the background, the last three
checkpoints kept) are killed with SIGKILL again and again: half of the times anywhere, half of them in a save. After
each kill every checkpoint is read whole. Each run that has come to its end must be the one that nobody disturbed:
same bits, same events.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from benchmarks import machine
from rich.console import Console
from rich.progress import Progress

from surefoot.errors import UserError
from surefoot.runfolder import numbered
from surefoot.train.manifest import manifest_of, verify
from tests.faults.children import ROOT, Child, Zygote, clock_free, events, last_step

STEPS, SAVE_EVERY = 300, 5
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
LONGEST_WAIT_SECONDS = 120.0


@dataclass
class Count:
    """What has happened."""

    kills: int = 0
    aimed_at_saves: int = 0
    kills_in_a_save: int = 0
    """Half a save, or half a removal, was there afterwards."""
    kills_before_the_first_checkpoint: int = 0
    recoveries: int = 0
    """The command, given again after a kill, went on, and was not killed before that."""
    checkpoints_verified: int = 0
    lost_checkpoints: int = 0
    steps_taken_again: int = 0
    most_steps_taken_again: int = 0
    runs: int = 0
    """Those that came to their end."""
    runs_that_differ: int = 0


class Soak:
    """Kills runs of one recipe, and looks at what is left."""

    def __init__(self, zygote: Zygote, place: Path, seed: int, *, steps: int = STEPS) -> None:
        self.zygote, self.place, self.steps = zygote, place, steps
        self.chance, self.count = random.Random(seed), Count()
        self.recipe = prepare(place, steps)
        whole = place / "whole"
        started = time.monotonic()
        done = zygote.run(self.argv(whole), place, timeout=10 * LONGEST_WAIT_SECONDS)
        assert done.wait() == 0, done.err
        self.seconds_of_a_run = time.monotonic() - started
        self.hashes, self.events = hashes(whole, steps), clock_free(events(whole))
        assert all(event["type"] != "alert" for event in self.events)

    def argv(self, run: Path) -> list[Any]:
        return ["train", self.recipe, "--output_dir", run]

    def one_run(self, kills: int, until: float) -> bool:
        """A run, killed at most so many times (fewer after `until`); true if it is the undisturbed one."""
        run, newest = self.place / f"run-{self.count.runs}", 0
        while True:
            before, left, earlier = times_gone_on(run), half_done(run), begun(run)
            child = self.zygote.start(self.argv(run), self.place)
            if self.count.kills < kills and time.monotonic() < until:
                ended = self.kill(child, run, earlier)
            else:
                child.wait(10 * LONGEST_WAIT_SECONDS)
                ended = True
            if ended:
                assert child.wait() == 0, child.err
            self.count.recoveries += times_gone_on(run) - before
            if ended:
                break
            self.count.kills_in_a_save += bool(half_done(run) - left)
            newest = self.look(run, newest)
        self.count.runs += 1
        same = hashes(run, self.steps) == self.hashes and clock_free(events(run)) == self.events
        self.count.runs_that_differ += not same
        if same:
            shutil.rmtree(run)
        return same

    def kill(self, child: Child, run: Path, earlier: tuple[int, int]) -> bool:
        """Kill at a time drawn at random; true if the command ended before."""
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        aimed = self.chance.random() < 0.5
        if aimed:
            while child.running and time.monotonic() < deadline and begun(run) == earlier:
                time.sleep(0.001)
            sooner = last_step(run) + self.chance.choice((0, 1, 2, 4))  # so many steps further on
            while child.running and time.monotonic() < deadline and last_step(run) < sooner:
                time.sleep(0.001)
            while child.running and time.monotonic() < deadline and not half_done(run):
                pass
            time.sleep(self.chance.choice((0.0, self.chance.uniform(0.0, 0.002))))
        else:
            until = time.monotonic() + self.chance.uniform(0.0, min(2.0, 0.2 * self.seconds_of_a_run))
            while child.running and time.monotonic() < until:
                time.sleep(0.001)
        if not child.running:
            return True
        child.kill()
        if child.wait() != -9:
            return True  # it was quicker
        self.count.kills += 1
        self.count.aimed_at_saves += aimed
        return False

    def look(self, run: Path, newest: int) -> int:
        """Read what is left; returns the newest step that is to be gone on from at least."""
        found = 0
        for step, path in numbered(run / "checkpoints"):
            try:
                verify(path)
            except UserError:
                self.count.lost_checkpoints += 1
                continue
            self.count.checkpoints_verified += 1
            found = max(found, step)
        told = [event["step"] for event in whole_events(run) if event["type"] == "checkpoint"]
        if found < max(newest, *told, 0):
            self.count.lost_checkpoints += 1
        again = max(0, last_step(run) - found)
        self.count.steps_taken_again += again
        self.count.most_steps_taken_again = max(self.count.most_steps_taken_again, again)
        self.count.kills_before_the_first_checkpoint += found == 0
        return found


def times_gone_on(run: Path) -> int:
    """As run.json tells."""
    file = run / "run.json"
    return len(json.loads(file.read_text("utf-8"))["resumed"]) if file.is_file() else 0


def whole_events(run: Path) -> list[dict[str, Any]]:
    """The records whose lines are whole."""
    file = run / "events.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def half_done(run: Path) -> set[tuple[str, int, int]]:
    """Saves and removals that are on their way, or were when a run was killed."""
    found = set()
    for path in [*(run / "checkpoints").glob(".step-*"), run / ".model.partial"]:
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
    return found


def begun(run: Path) -> tuple[int, int]:
    """Another one each time that training begins or goes on, what was left having been taken away."""
    file = run / "run.json"
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.is_file() else (0, 0)


def hashes(run: Path, step: int) -> dict[str, str]:
    """sha256 of weights and optimizer state of the last checkpoint, and of the result's files."""
    files = manifest_of(run / "checkpoints" / f"step-{step:08d}").files
    found = {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}
    for path in sorted((run / "model").rglob("*")):
        if path.is_file():
            found[f"model/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def prepare(place: Path, steps: int) -> Path:
    """A tiny model, rows and a recipe; returns the recipe's path."""
    from tests import templates, toys
    from tests.conftest import QUESTIONS, tiny_llama, write_rows

    tokenizer = toys.byte_level(template=templates.CHATML)
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(place / "tiny")
    tokenizer.save_pretrained(place / "tiny")
    rows = [{"prompt": f"{n}: {asked}", "completion": said} for n in range(10) for asked, said in QUESTIONS]
    write_rows(place / "rows.jsonl", rows)
    write_rows(place / "held-out.jsonl", rows[:6])
    options = {
        "model_name_or_path": str(place / "tiny"),
        "dataset_name": str(place / "rows.jsonl"),
        "eval_dataset_name": str(place / "held-out.jsonl"),
        "use_peft": True,
        "lora_r": 8,
        "lora_dropout": 0.2,
        "learning_rate": 1e-2,
        "seed": 7,
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "micro_batch_tokens": 64,
        "precision": "fp32",
        "use_cpu": True,
        "tensors_every": 0,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "logging_steps": 10,
        "eval_samples": 1,
        "max_new_tokens": 4,
        "save_steps": SAVE_EVERY,
        "save_total_limit": 3,
    }
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def soak(
    zygote: Zygote, place: Path, kills: int, seed: int, *, minutes: float = float("inf"), steps: int = STEPS
) -> dict[str, Any]:
    """Kill runs so many times, or for so long; what was counted. Raises AssertionError when the command fails."""
    started = time.monotonic()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("killing", total=kills)
        found = Soak(zygote, place, seed, steps=steps)
        count = found.count
        while count.kills < kills and time.monotonic() < started + 60 * minutes:
            in_this_run = min(kills, count.kills + max(5, steps // 12))
            found.one_run(in_this_run, started + 60 * minutes)
            said = (
                f"killed; {count.runs} runs, {count.runs_that_differ} differ, {count.lost_checkpoints} lost"
            )
            progress.update(task, completed=count.kills, description=said)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "seed": seed,
        "steps_of_a_run": steps,
        "steps_between_saves": SAVE_EVERY,
        **asdict(count),
        "seconds": round(time.monotonic() - started, 1),
    }


def main(argv: Sequence[str]) -> int:
    """Status 1 when something was lost, or a run differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak", description="Kill runs, and look at them."
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the run in hand then")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which is left as it is")
    options = parser.parse_args(argv)
    with Zygote() as zygote, tempfile.TemporaryDirectory(prefix="soak-") as place:
        found = soak(
            zygote, options.keep or Path(place), options.kills, options.seed, minutes=options.minutes
        )
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 1 if found["lost_checkpoints"] or found["runs_that_differ"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
