"""A run's records as what its page draws: columns thinned to what can be seen, tensors added up to layers.

The page of a whole run (`columns`) and what has come since (`folded`, `step_curves`) have the same shapes: a live
page adds the second to the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from surefoot.report.columns import STEP_COLUMNS, Columns, curve, means
from surefoot.report.records import number
from surefoot.report.runs import Run

BUCKETS = 1_500
"""Stretches of a run of which a report keeps the extremes."""
MOST_COLUMNS = 400
"""Columns of the heat-maps."""
DRAWN = tuple(name for name in STEP_COLUMNS if name not in ("step", "time", "epoch"))
BLOCK = re.compile(r"^(.*?\.\d+)\.")
LISTED = ("start", "eval", "checkpoint", "alert", "slide", "sample", "end")

Records = Iterable[Mapping[str, Any]]


def columns(run: Run) -> dict[str, Any]:
    """Everything of a run that its page plots, as plain values."""
    steps = Columns()
    for event in run.of("step"):
        steps.append(event)
    tensors = run.of("tensors")
    every = thinning(len(tensors))
    return {
        "name": run.name,
        **step_curves(steps, BUCKETS),
        **folded((event for event in run.events if event["type"] not in ("step", "tensors")), steps),
        "heat": heat(tensors[::every], run.config.get("tensors"), every),
        "config": run.config,
        "problems": run.problems,
    }


# Steps -----------------------------------------------------------------------------------------------------


def step_curves(steps: Columns, buckets: int, names: Sequence[str] = DRAWN) -> dict[str, Any]:
    """{steps: how many, first and last: a step's numbers, curves: name → {x, y}, means: name → {x, y, n}}; x is the
    step's number, and columns without a number are left out."""
    x = steps["step"]
    known = [name for name in names if name in steps.known]
    return {
        "steps": steps.count,
        "first": _row(steps, 0),
        "last": _row(steps, -1),
        "curves": {name: curve(x, steps[name], buckets) for name in known},
        "means": {"loss": means(x, steps["loss"], buckets)} if "loss" in known else {},
    }


def _row(steps: Columns, index: int) -> dict[str, float]:
    return {name: float(steps[name][index]) for name in STEP_COLUMNS if steps.count and name in steps.known}


# Everything else -------------------------------------------------------------------------------------------


def folded(events: Records, steps: Columns) -> dict[str, Any]:
    """{evals, watches: columns of each; samples, events: lists} of these records, which are no steps."""
    evals: dict[str, dict[str, Any]] = {}
    watches: dict[str, dict[str, Any]] = {}
    samples, listed = [], []
    for event in events:
        match event["type"]:
            case "eval":
                series = evals.setdefault(
                    name := str(event.get("name", "eval")), {"name": name, "step": [], "metrics": {}}
                )
                _add(series, "metrics", event["step"], event.get("metrics"))
            case "watch":
                prompt = str(event.get("prompt", ""))
                series = watches.setdefault(prompt, {"prompt": prompt, "step": [], "p": {}})
                _add(series, "p", event["step"], event.get("p"))
            case "sample":
                samples.append(
                    {
                        "step": event["step"],
                        **{key: str(event.get(key, "")) for key in ("where", "prompt", "answer", "want")},
                    }
                )
        if event["type"] in LISTED:
            listed.append(_listed(event, steps))
    return {
        "evals": list(evals.values()),
        "watches": list(watches.values()),
        "samples": samples,
        "events": listed,
    }


def _add(series: dict[str, Any], part: str, step: int, values: Any) -> None:
    """A value more for each of the series' columns, old and new; None where there is none."""
    columns, before = series[part], len(series["step"])
    found = values if isinstance(values, dict) else {}
    for key in [*columns, *(str(key) for key in found if str(key) not in columns)]:
        columns.setdefault(key, [None] * before).append(number(found.get(key)))
    series["step"].append(step)


def _listed(event: Mapping[str, Any], steps: Columns) -> dict[str, Any]:
    """A record as a line of the log; that of a slide or an alert has the step's loss, to mark it on the curve."""
    line = {
        "type": event["type"],
        "step": event["step"],
        "time": number(event.get("time")),
        "text": _told(event),
    }
    if event["type"] in ("slide", "alert"):
        at = int(np.searchsorted(steps["step"], event["step"]))
        there = at < steps.count and steps["step"][at] == event["step"]
        line["loss"] = float(steps["loss"][at]) if there else None
    return line


def _told(event: Mapping[str, Any]) -> str:
    """A record in words."""
    match event["type"]:
        case "alert":
            return str(event.get("message", ""))
        case "slide":
            told = [str(event[key]) for key in ("headline", "because") if event.get(key)]
            return "\nOpened because: ".join(told)
        case "eval":
            metrics = event.get("metrics")
            known = metrics if isinstance(metrics, dict) else {}
            return ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in known.items())
        case "checkpoint":
            return ": ".join(str(event[key]) for key in ("path", "because") if event.get(key))
        case "sample":
            return f"{event.get('where', '')}: “{event.get('answer', '')}” (wanted “{event.get('want', '')}”)"
        case "start":
            notes = event.get("notes")
            told = [str(note) for note in notes] if isinstance(notes, list) else []
            return "\n".join([*(["resumed"] if event.get("resumed") else []), *told])
        case _:
            return str(event.get("reason", ""))


def _short(value: Any) -> str:
    found = number(value)
    return str(value) if found is None else f"{found:.4g}"


# Tensors ---------------------------------------------------------------------------------------------------


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to: its name up to the first number, else without its last part."""
    block = BLOCK.match(tensor)
    return block[1] if block else tensor.rpartition(".")[0] or tensor


def thinning(records: int) -> int:
    """One in how many records of the tensors is drawn: a power of two, so that a growing run keeps its columns."""
    return 1 << max(0, math.ceil(records / MOST_COLUMNS) - 1).bit_length()


def heat(records: Records, names: Any, every: int) -> dict[str, Any] | None:
    """Layer × step: gradient norm, ‖Δ‖/‖θ‖, share of updates lost. None where no tensors were recorded."""
    columns = (
        [(record["step"], _column(record, names)) for record in records] if isinstance(names, list) else []
    )
    if not columns:
        return None
    layers = layers_of(names)
    found = {
        key: [[column[key][layer] for _, column in columns] for layer in range(len(layers))]
        for key in ("grad_norm", "update_ratio", "lost_share")
    }
    return {"step": [step for step, _ in columns], "layers": layers, "every": every, **found}


def layers_of(names: Sequence[Any]) -> list[str]:
    """The layers of a run's tensors, in the order of the model."""
    return list(dict.fromkeys(layer_of(str(name)) for name in names))


def _column(record: Mapping[str, Any], names: Sequence[Any]) -> dict[str, list[float | None]]:
    of = [layer_of(str(name)) for name in names]
    layers = list(dict.fromkeys(of))
    grad, weight, update = (
        _norms(record.get(name), of, layers) for name in ("grad_norm", "weight_norm", "update_norm")
    )
    ratio = [u / w if u is not None and w else None for u, w in zip(update, weight, strict=True)]
    return {
        "grad_norm": grad,
        "update_ratio": ratio,
        "lost_share": _means(record.get("lost_share"), of, layers),
    }


def _by_layer(values: Any, of: list[str], layers: list[str]) -> list[list[float]]:
    if not isinstance(values, list) or len(values) != len(of):
        return [[] for _ in layers]
    found: dict[str, list[float]] = {layer: [] for layer in layers}
    for value, layer in zip(values, of, strict=True):
        if (x := number(value)) is not None:
            found[layer].append(x)
    return list(found.values())


def _norms(values: Any, of: list[str], layers: list[str]) -> list[float | None]:
    return [math.hypot(*part) if part else None for part in _by_layer(values, of, layers)]


def _means(values: Any, of: list[str], layers: list[str]) -> list[float | None]:
    return [math.fsum(part) / len(part) if part else None for part in _by_layer(values, of, layers)]
