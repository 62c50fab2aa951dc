"""What `surefoot ui` costs: long runs listed, opened, compared; a step on its way to the page; training beside it.

    python -m benchmarks.dashboard [--runs 50 --steps 100000]     # Linux, chromium; 5 GB for temporary files

1. `load`: many long runs are made, served and looked at. Files were written just before: they are read from memory.
2. `live`: steps are appended to a short and to a long run, 0.5 s apart on average, while a page shows it: the time
   until the step's number stands in the page.
3. `training`: a small model trains; in turns alone, beside a server that nobody asks, and beside one with five
   pages of the run, all drawn all the time. Once on the same cores, once with training on one of its own.

Prints tables and writes `results/dashboard.json`, each part anew when it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import gpu_models, machine
from benchmarks.browsing import (
    DRAWN,
    WATCH,
    browsing,
    cards,
    cpu_seconds,
    heap,
    opened,
    run_ids,
    server_bytes,
    serving,
    share,
)
from benchmarks.long_runs import line, make, step
from benchmarks.tables import draw, span

from surefoot.runfolder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RESULTS = Path(__file__).resolve().parent / "results" / "dashboard.json"
VARIANTS = 5
"""Runs made step by step; others are copies with another learning rate."""
LIVE_STEPS = 40
MODEL = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
FIRST = 20
"""Steps that are over before any is measured."""
TURN_SECONDS = 12.0
CONDITIONS = ("alone", "server", "pages")


# What is measured ------------------------------------------------------------------------------------------


def load(browser: Browser, link: str, pid: int, runs: int) -> dict[str, Any]:
    """Lists and pages of the runs in the folder that is served."""
    found: dict[str, Any] = {}
    page, before = None, cpu_seconds(pid)
    for name in ("list", "list_again"):
        if page is not None:
            page.context.close()
        started = time.perf_counter()
        page = opened(browser, link)
        cards(page, 1)
        found[f"{name}_first_seconds"] = time.perf_counter() - started
        cards(page, runs)
        found[f"{name}_all_seconds"] = time.perf_counter() - started
        found.setdefault("list_all_server_cpu_seconds", cpu_seconds(pid) - before)
        time.sleep(3)
    assert page is not None
    found["list_open_server_cpu"] = share(pid, 10)
    found["list_heap_bytes"], found["list_server_bytes"] = heap(page), server_bytes(pid)
    ids = run_ids(page)
    page.context.close()
    for name in ("run", "run_again"):
        started = time.perf_counter()
        page = opened(browser, link, f"/run/{ids[0]}")
        page.wait_for_function(DRAWN)
        found[f"{name}_curve_seconds"] = time.perf_counter() - started
        if name == "run":
            page.context.close()
    for name, path in (("answer", ""), ("worst", "/worst")):
        origin = link.partition("/#")[0]
        started = time.perf_counter()
        answer = page.context.request.get(f"{origin}/api/runs/{ids[0]}{path}", timeout=180_000).body()
        found[f"{name}_seconds"], found[f"{name}_bytes"] = time.perf_counter() - started, len(answer)
    found["zoom_seconds"] = [zoomed(page, 0.2 + 0.1 * turn) for turn in range(3)]
    found["run_heap_bytes"] = heap(page)
    page.context.close()
    started = time.perf_counter()
    page = opened(browser, link, f"/compare?runs={','.join(ids[:10])}")
    page.wait_for_function(DRAWN)
    found["compare_curve_seconds"] = time.perf_counter() - started
    found["compare_heap_bytes"], found["server_bytes"] = heap(page), server_bytes(pid)
    page.context.close()
    return found


def zoomed(page: Page, at: float) -> float:
    """Seconds from the end of a drag over a tenth of the loss curve until the finer curve is drawn."""
    over = page.locator("#curves .u-over").first
    over.scroll_into_view_if_needed()
    over.dblclick()
    box = over.bounding_box()
    assert box is not None
    x, y = box["x"] + at * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.1 * box["width"], y, steps=5)
    started = time.perf_counter()
    with page.expect_response(lambda answer: "/curves?" in answer.url) as answer:
        page.mouse.up()
    answer.value.finished()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.perf_counter() - started


def live(browser: Browser, steps: int) -> dict[str, Any]:
    """Seconds from the append of a step until the page of a run of so many steps shows it."""
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = make(top / "live", steps, 1, ended=False)
        stack.enter_context(run.locked())
        link, pid = stack.enter_context(serving(top))
        page = opened(browser, link)
        cards(page, 1)
        page.goto(f"{link.partition('/#')[0]}/run/{run_ids(page)[0]}")
        page.wait_for_function(DRAWN)
        page.evaluate(WATCH)
        time.sleep(2)
        noise, written = random.Random(2), dict[int, float]()
        before, began = cpu_seconds(pid), time.perf_counter()
        for number in range(steps + 1, steps + LIVE_STEPS + 1):
            written[number] = time.time()
            run.append(step(number, noise))
            time.sleep(noise.uniform(0.4, 0.6))  # not in step with the server's looks
        cpu = (cpu_seconds(pid) - before) / (time.perf_counter() - began)
        time.sleep(2)
        seen = {int("".join(filter(str.isdigit, text))): at for text, at in page.evaluate("seen").items()}
        page.context.close()
    # A step that the page passed over stands there with the next one.
    first = {number: min(at for shown, at in seen.items() if shown >= number) for number in written}
    waits = [first[number] - at for number, at in written.items()]
    return {"seconds": waits, "median": median(waits), "max": max(waits), "server_cpu": cpu}


@contextmanager
def on(cores: set[int] | None) -> Iterator[None]:
    """What is started meanwhile stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def recipe(folder: Path) -> dict[str, Any]:
    """A small model, its rows and its options."""
    gpu_models.CONFIGS["dashboard"] = {**gpu_models.CONFIGS["toy"], **MODEL}
    gpu_models.make("dashboard", folder / "model")
    noise, mask = random.Random(0), [0] * 16 + [1] * 32
    rows = [
        {"input_ids": [noise.randrange(3, 512) for _ in mask], "completion_mask": mask} for _ in range(400)
    ]
    (folder / "rows.jsonl").write_text("".join(map(line, rows)))
    return {
        "model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "rows.jsonl"),
        "max_steps": 1_000_000, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "precision": "fp32",
        "save_strategy": "no", "slide_mountain": "none", "use_cpu": True, "seed": 7,
    }  # fmt: skip


@contextmanager
def beside(how: str, runs: Path) -> Iterator[Callable[[], float]]:
    """A server of these runs, or a server and a list and four pages of its one run, or nothing; what there is has
    been drawn. Gives the server's processor seconds so far."""
    with ExitStack() as stack:
        if how == "alone":
            yield lambda: 0.0
            return
        link, pid = stack.enter_context(serving(runs))
        if how == "pages":
            browser = stack.enter_context(browsing())
            first = opened(browser, link)
            cards(first, 1)
            for page in [opened(browser, link, f"/run/{run_ids(first)[0]}") for _ in range(4)]:
                page.wait_for_function(DRAWN)
        yield lambda: cpu_seconds(pid)


def trained(folder: Path, options: dict[str, Any], rounds: int, apart: bool) -> dict[str, Any]:
    """Seconds a step of a run, in turns with nothing, a server, and a server and five pages beside it."""
    runs = folder / ("apart" if apart else "shared")
    runs.mkdir()
    path, events = runs / "recipe.yaml", runs / "run" / "events.jsonl"
    path.write_text(json.dumps({**options, "output_dir": str(runs / "run")}))  # JSON is YAML
    spans: dict[str, list[tuple[float, float]]] = {how: [] for how in CONDITIONS}
    cpu: dict[str, list[float]] = {how: [] for how in CONDITIONS}
    with on({0} if apart else None):
        command = [sys.executable, "-m", "surefoot", "train", str(path)]
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while training.poll() is None and (not events.is_file() or len(_steps(events)) < FIRST):
            time.sleep(0.5)
        for turn in range(rounds):
            for how in CONDITIONS[:: 1 if turn % 2 else -1]:
                with on({1} if apart else None), beside(how, runs) as spent:
                    time.sleep(1)
                    began, before = time.time(), spent()
                    time.sleep(TURN_SECONDS)
                    spans[how].append((began, time.time()))
                    cpu[how].append((spent() - before) / TURN_SECONDS)
        if training.poll() is not None:
            raise RuntimeError(f"{path}: training is over already")
    finally:
        training.kill()
        training.wait()
    steps = _steps(events)
    seconds = {how: [median(_between(steps, *span)) for span in each] for how, each in spans.items()}
    ratio = {
        how: [a / b for a, b in zip(seconds[how], seconds["alone"], strict=True)] for how in CONDITIONS[1:]
    }
    return {"step_seconds": seconds, "ratio": ratio, "server_cpu": cpu, "steps": len(steps)}


def _steps(events: Path) -> list[dict[str, Any]]:
    whole = events.read_text().rpartition("\n")[0].splitlines()
    return [json.loads(record) for record in whole if record.startswith('{"type": "step"')]


def _between(steps: list[dict[str, Any]], began: float, ended: float) -> list[float]:
    return [event["step_seconds"] for event in steps if began + event["step_seconds"] < event["time"] < ended]


def training(rounds: int) -> dict[str, Any]:
    """Each way, and what it comes to."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        options = recipe(Path(temporary))
        for variant in ("shared", "apart"):
            told = found[variant] = trained(Path(temporary), options, rounds, variant == "apart")
            rows = [
                [how, span(told["ratio"][how], 3), span(told["server_cpu"][how], 3)] for how in CONDITIONS[1:]
            ]
            print(draw([f"cores {variant}", "step, of one alone", "cores of the server"], rows))
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=4, help="of the training")
    parser.add_argument("--only", nargs="+", choices=("load", "live", "training"))
    args = parser.parse_args()
    only: Sequence[str] = args.only or ("load", "live", "training")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}

    def keep(name: str, found: dict[str, Any]) -> None:
        known[name] = {"machine": machine.describe(), "load_average": os.getloadavg()[1], **found}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    if "load" in only:
        with tempfile.TemporaryDirectory() as temporary:
            made: list[RunFolder] = []
            for seed in range(args.runs):
                copy = made[seed % VARIANTS].path if seed >= VARIANTS else None
                made.append(make(Path(temporary) / f"run-{seed:03}", args.steps, seed, copy=copy))
            size = sum(run.events_file.stat().st_size for run in made)
            with serving(Path(temporary)) as (link, pid), browsing() as browser:
                found = load(browser, link, pid, args.runs)
        keep("load", {"runs": args.runs, "steps": args.steps, "events_bytes": size, **found})
        rows = [[k, span(v if isinstance(v, list) else [v], 3)] for k, v in found.items()]
        print(draw(["load", "is"], rows))
    if "live" in only:
        with browsing() as browser:
            told = {str(steps): live(browser, steps) for steps in (200, args.steps)}
        keep("live", told)
        rows = [[k, *(f"{v[name]:.3f}" for name in ("median", "max", "server_cpu"))] for k, v in told.items()]
        print(draw(["steps before", "median s", "max s", "cores of the server"], rows))
    if "training" in only:
        keep("training", training(args.rounds))


if __name__ == "__main__":
    main()
