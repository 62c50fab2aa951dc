"""What the pages are sent, as plain values: a whole run, what has come since, runs side by side, a row, a slide.

Everything here reads run folders and may take a while; the server calls it from threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from surefoot.dashboard.index import Index
from surefoot.dashboard.library import Entry, differing, eval_loss, final_loss
from surefoot.dashboard.state import state_of
from surefoot.errors import UserError
from surefoot.microscope.slide import Opened
from surefoot.report.columns import STEP_COLUMNS, Columns, curve, elapsed, means
from surefoot.report.curves import DRAWN, folded, heat, layer_of, layers_of, step_curves, thinning
from surefoot.report.parcel import slide_parcel
from surefoot.report.records import number
from surefoot.runfolder import RunFolder, numbered

BUCKETS = 600
"""Stretches of a run of which a page draws the extremes."""
MOST_BUCKETS = 2_000
MOST_DELTA = 3_000
"""Steps that a page is told one by one; one that slept through more begins anew."""
ALLOWED = "slides_from_ui"
"""The option that allows the page to open the next step."""
UNREADABLE = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading and drawing raise when the records of a run fit together as those of no run do."""
AXES = ("step", "tokens", "time")


def run_page(entry: Entry, index: Index) -> dict[str, Any]:
    """Everything that a run's page draws at first."""
    with index.lock:
        records = len(index.tensors)  # as far as `offset`; others read on meanwhile
        events = index.events()
        found = {
            "id": entry.id,
            "name": entry.name,
            "file": index.identity,
            "offset": index.offset,
            **step_curves(index.steps, BUCKETS),
            **folded((event for event in events), index.steps),
            "config": index.config,
            "problems": [entry.told(problem) for problem in index.all_problems()],
            "may_open": may_open(index),
            "slides": slides(entry),
        }
    return {**found, "heat": heat_page(index, records), "state": state_of(index).to_dict()}


def delta(index: Index, offset: int) -> dict[str, Any] | None:
    """What has come since this byte, in the shapes of `run_page`; None if it is too much to be told."""
    with index.lock:
        since = index.since(offset)
        steps = index.steps
        if steps.count - since.first_step > MOST_DELTA:
            return None
        known = [name for name in STEP_COLUMNS if name in steps.known]
        found = {
            "offset": since.offset,
            "rows": {name: steps[name][since.first_step :].tolist() for name in known},
            "steps": steps.count,
            **folded(since.others, steps),
        }
        every = thinning(len(index.tensors))
    which = [i for i in since.tensors if i % every == 0]
    found["heat"] = heat(index.tensor_records(which), index.config.get("tensors"), every) if which else None
    return found


def may_open(index: Index) -> bool:
    """Whether the run was started with steps to be opened from the page."""
    config = index.config.get("config")
    return isinstance(config, dict) and config.get(ALLOWED) is True


def slides(entry: Entry) -> list[int]:
    """The steps that have a slide."""
    return [step for step, path in numbered(entry.folder / "slides") if (path / "slide.json").is_file()]


def slide(entry: Entry, step: int) -> dict[str, Any]:
    """One slide with the arrays that its page draws. Raises UserError when there is none that can be read."""
    path = next((path for of, path in numbered(entry.folder / "slides") if of == step), None)
    if path is None:
        raise UserError(f"step {step} has no slide")
    return slide_parcel(Opened.load(path))


def window(index: Index, names: Sequence[str], low: float, high: float, buckets: int) -> dict[str, Any]:
    """Some columns between two steps, as fine as so many stretches show them."""
    with index.lock:
        part = _between(index.steps, low, high)
        return step_curves(part, min(buckets, MOST_BUCKETS), [name for name in names if name in DRAWN])


def _between(steps: Columns, low: float, high: float) -> Columns:
    """The rows of these steps and one on either side, so that lines go on to the edge."""
    x = steps["step"]
    first = max(0, int(np.searchsorted(x, low)) - 1)
    last = min(steps.count, int(np.searchsorted(x, high, side="right")) + 1)
    return steps.rows(first, last)


def heat_page(index: Index, records: int | None = None) -> dict[str, Any] | None:
    """Layer × step, one record in 1, 2, 4, ... of the first so many, or of all there are."""
    records = len(index.tensors) if records is None else records
    every = thinning(records)
    which = list(range(0, records, every))
    return heat(index.tensor_records(which), index.config.get("tensors"), every)


def layer_page(index: Index, layer: int) -> dict[str, Any]:
    """The tensors of one layer over time: {layer, step, tensors: name → {grad_norm, update_ratio, ...}}.

    Raises UserError when there is no such layer.
    """
    names = index.config.get("tensors")
    layers = layers_of(names) if isinstance(names, list) else []
    if not 0 <= layer < len(layers) or not isinstance(names, list):
        raise UserError(f"the run has no layer {layer}")
    which = [i for i, name in enumerate(names) if layer_of(str(name)) == layers[layer]]
    every = thinning(len(index.tensors))
    records = index.tensor_records(list(range(0, len(index.tensors), every)))

    def values(key: str, tensor: int) -> list[float | None]:
        return [
            number(told[tensor]) if isinstance(told := record.get(key), list) and len(told) > tensor else None
            for record in records
        ]

    tensors = {}
    for i in which:
        columns = {
            key: values(key, i)
            for key in ("grad_norm", "weight_norm", "update_norm", "lost_share", "zero_share")
        }
        pairs = zip(columns["update_norm"], columns["weight_norm"], strict=True)
        columns["update_ratio"] = [u / w if u is not None and w else None for u, w in pairs]
        tensors[str(names[i])] = columns
    return {"layer": layers[layer], "step": [record["step"] for record in records], "tensors": tensors}


def comparison(runs: Sequence[tuple[Entry, Index]], axis: str) -> dict[str, Any]:
    """Runs side by side: loss and evaluations over `axis`, options that differ, what each came to."""
    told = []
    for entry, index in runs:
        state = state_of(index).to_dict()
        with index.lock:
            x = _axis(index, axis)
            losses = index.steps["loss"]
            evals = _evals(index, x)
            told.append(
                {
                    "id": entry.id,
                    "name": entry.name,
                    "state": state,
                    "loss": curve(x, losses, BUCKETS),
                    "mean": means(x, losses, BUCKETS),
                    "eval": evals,
                    "final": final_loss(losses, index.others),
                    "offset": index.offset,
                }
            )
    return {
        "axis": axis,
        "runs": told,
        "differs": differing({entry.id: index.config for entry, index in runs}),
    }


def _axis(index: Index, axis: str) -> np.ndarray:
    if axis == "tokens":
        return np.maximum.accumulate(np.nan_to_num(index.steps["num_tokens"]))
    return elapsed(index.steps, index.resumed_after()) if axis == "time" else index.steps["step"]


def _evals(index: Index, x: np.ndarray) -> dict[str, list[float]]:
    """The first loss of each evaluation, at the place on the axis of the last step before it."""
    found: dict[str, list[float]] = {"x": [], "y": []}
    for record in index.others:
        if record["type"] == "eval" and (loss := eval_loss(record)) is not None and len(x):
            at = int(np.searchsorted(index.steps["step"], record["step"], side="right")) - 1
            found["x"].append(float(x[at]) if at >= 0 else 0.0)
            found["y"].append(loss)
    return found


def wish(entry: Entry, index: Index) -> str:
    """Ask the run to open its next step; returns what was done. Raises UserError when it may not, or does not
    train."""
    if not may_open(index):
        raise UserError(
            f"this run was not started with steps to be opened from here: start it with {ALLOWED}: true, or touch "
            "open-next-step in its folder yourself"
        )
    if not state_of(index).live:
        raise UserError("this run does not train now, so it has no next step")
    asked = RunFolder(entry.folder).asked_file
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # never through a link
    try:
        os.close(os.open(asked, flags, 0o644))
    except FileExistsError:
        return "The next step has been asked for already."
    except OSError as error:
        raise UserError(f"the run's folder cannot be written: {error.strerror}") from None
    return "The next step will be opened."
