"""What `surefoot ui` costs: long runs listed, opened, compared; a step on its way to the page; training beside it.

    python -m benchmarks.dashboard [--runs 50 --steps 100000]     # Linux, chromium; 5 GB for temporary files

1. `load`: many long runs are made, served and looked at. Files were written just before: they are read from memory.
2. `live`: steps are appended to a short and to a long run, 0.5 s apart on average, while a page shows it: the time
   until the step's number stands in the page.
3. `training`: a small model is trained in turns alone, beside a server that nobody asks, and beside one with five
   pages of that run, all drawn all the time; once all on the same cores, once with training on a core of its own.

Prints tables and writes `results/dashboard.json`, each part anew when it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
MODEL = {"num_hidden_layers": 4, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3,
         "num_key_value_heads": 3, "head_dim": 64}  # fmt: skip
TRAINED_STEPS, LEFT_OUT = 400, 200
"""Pages are open before step `LEFT_OUT`; only the steps after it count."""
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
    waits = [
        min(at for shown, at in seen.items() if shown >= number) - at0 for number, at0 in written.items()
    ]
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
        "max_steps": TRAINED_STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "precision": "fp32",
        "save_strategy": "no", "slide_mountain": "none", "use_cpu": True, "seed": 7,
    }  # fmt: skip


def trained(folder: Path, options: dict[str, Any], how: str, apart: bool) -> float:
    """Median seconds a step of a training run with nothing, a server, or a server and five pages beside it."""
    runs = folder / secrets.token_hex(4)
    runs.mkdir()
    path, events = runs / "recipe.yaml", runs / "run" / "events.jsonl"
    path.write_text(json.dumps({**options, "output_dir": str(runs / "run")}))  # JSON is YAML
    with ExitStack() as stack, on({1} if apart else None):
        link = stack.enter_context(serving(runs))[0] if how != "alone" else ""
        browser = stack.enter_context(browsing()) if how == "pages" else None
        with on({0} if apart else None):
            command = [sys.executable, "-m", "surefoot", "train", str(path)]
            training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(training.kill)
        if browser is not None:
            while training.poll() is None and not (events.is_file() and '"step"' in events.read_text()):
                time.sleep(0.2)
            first = opened(browser, link)
            cards(first, 1)
            pages = [opened(browser, link, f"/run/{run_ids(first)[0]}") for _ in range(4)]
            for page in pages:
                page.wait_for_function(DRAWN)
            if _steps(events)[-1]["step"] > LEFT_OUT:
                raise RuntimeError("training was faster than five pages could be opened: raise LEFT_OUT")
        if training.wait(600):
            raise RuntimeError(f"{path}: training failed")
    return median(event["step_seconds"] for event in _steps(events)[LEFT_OUT:])


def _steps(events: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in events.read_text().splitlines() if line.startswith('{"type": "step"')
    ]


def training(rounds: int) -> dict[str, Any]:
    """Seconds a step, in turns; and ratios to training alone, round by round."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        options = recipe(Path(temporary))
        for variant in ("shared", "apart"):
            seconds: dict[str, list[float]] = {how: [] for how in CONDITIONS}
            for _ in range(rounds):
                for how in CONDITIONS:
                    seconds[how].append(trained(Path(temporary), options, how, variant == "apart"))
            ratios = {
                how: [a / b for a, b in zip(seconds[how], seconds["alone"], strict=True)]
                for how in CONDITIONS[1:]
            }
            found[variant] = {"step_seconds": seconds, "ratio": ratios}
            print(
                draw(
                    [f"{variant}: of a step alone", "median (range)"],
                    [[k, span(v, 3)] for k, v in ratios.items()],
                )
            )
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the training")
    parser.add_argument("--only", nargs="+", choices=("load", "live", "training"))
    args = parser.parse_args()
    only: Sequence[str] = args.only or ("load", "live", "training")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}

    def keep(name: str, found: dict[str, Any]) -> None:
        known[name] = {"machine": machine.describe(), **found}
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
        print(
            draw(
                ["load", "is"],
                [[k, str(v) if isinstance(v, list) else f"{v:,.3f}"] for k, v in found.items()],
            )
        )
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
