"""A run's records as columns to plot: long runs thinned, tensors added up to layers."""

from __future__ import annotations

import math
import re
from typing import Any

from surefoot.report.runs import Run

MOST_STEPS = 8_000
"""Steps that a page holds; of longer runs, the extremes of the loss in every stretch."""
SMOOTHED = 200
"""From this many steps on, the loss also has its mean over a hundredth of the run around each step."""
MOST_COLUMNS = 400
"""Columns of the heat-maps."""
STEP_COLUMNS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "clip_factor",
    "token_accuracy",
    "entropy",
    "tokens_per_second",
    "supervised",
    "step_seconds",
)
BLOCK = re.compile(r"^(.*?\.\d+)\.")
LISTED = ("start", "eval", "checkpoint", "alert", "slide", "sample", "end")


def columns(run: Run) -> dict[str, Any]:
    """Everything of a run that its page plots, as plain values."""
    return {
        "name": run.name,
        "steps": _steps(run),
        "evals": _evals(run),
        "watches": _watches(run),
        "heat": _heat(run),
        "events": _listed(run),
        "config": run.config,
        "problems": run.problems,
    }


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to: its name up to the first number, else without its last part."""
    block = BLOCK.match(tensor)
    return block[1] if block else tensor.rpartition(".")[0] or tensor


def number(value: Any) -> float | None:
    """A number of a record, None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _steps(run: Run) -> dict[str, Any]:
    steps = run.of("step")
    kept = _thinned(steps, {event["step"] for event in run.of("slide", "alert")})
    out: dict[str, Any] = {"step": [event["step"] for event in kept], "of": len(steps)}
    for name in STEP_COLUMNS:
        values = [number(event.get(name)) for event in kept]
        if any(value is not None for value in values):
            out[name] = values
    if len(steps) >= SMOOTHED and "loss" in out:
        reach = max(2, len(steps) // 200)
        means = dict(zip((event["step"] for event in steps), _means_around(steps, reach), strict=True))
        out |= {"loss_mean": [means[step] for step in out["step"]], "mean_of": 2 * reach + 1}
    return out


def _means_around(steps: list[dict[str, Any]], reach: int) -> list[float | None]:
    """Mean of the finite losses from `reach` steps before to `reach` steps after; fewer at the ends."""
    losses = [number(event.get("loss")) for event in steps]
    total, count = [0.0], [0]
    for loss in losses:
        fine = loss is not None and math.isfinite(loss)
        total.append(total[-1] + (loss if fine and loss is not None else 0.0))
        count.append(count[-1] + fine)
    ends = [(max(0, i - reach), min(len(losses), i + reach + 1)) for i in range(len(losses))]
    return [(total[b] - total[a]) / (count[b] - count[a]) if count[b] > count[a] else None for a, b in ends]


def _thinned(steps: list[dict[str, Any]], marked: set[int]) -> list[dict[str, Any]]:
    """Steps with the highest and the lowest loss of every stretch, those marked, and the run's two ends."""
    if len(steps) <= MOST_STEPS:
        return steps
    stretch = math.ceil(len(steps) / (MOST_STEPS // 2))
    kept = []
    for start in range(0, len(steps), stretch):
        part = range(start, min(start + stretch, len(steps)))
        losses = {i: number(steps[i].get("loss")) for i in part}
        # Not a number is worth seeing more than any spike.
        size = {i: math.inf if x is None or not math.isfinite(x) else x for i, x in losses.items()}
        ends = {min(part, key=size.__getitem__), max(part, key=size.__getitem__), 0, len(steps) - 1}
        kept += [steps[i] for i in part if i in ends or steps[i]["step"] in marked]
    return kept


def _evals(run: Run) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for event in run.of("eval"):
        name, metrics = str(event.get("name", "eval")), event.get("metrics")
        series = found.setdefault(name, {"name": name, "step": [], "metrics": {}})
        for key, value in (metrics if isinstance(metrics, dict) else {}).items():
            series["metrics"].setdefault(key, [None] * len(series["step"])).append(number(value))
        series["step"].append(event["step"])
        for values in series["metrics"].values():
            values += [None] * (len(series["step"]) - len(values))
    return list(found.values())


def _watches(run: Run) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for event in run.of("watch"):
        prompt, p = str(event.get("prompt", "")), event.get("p")
        watch = found.setdefault(prompt, {"prompt": prompt, "step": [], "p": {}})
        for text, value in (p if isinstance(p, dict) else {}).items():
            watch["p"].setdefault(text, [None] * len(watch["step"])).append(number(value))
        watch["step"].append(event["step"])
        for values in watch["p"].values():
            values += [None] * (len(watch["step"]) - len(values))
    return list(found.values())


def _heat(run: Run) -> dict[str, Any] | None:
    """Layer × step: gradient norm, ‖Δ‖/‖θ‖, share of updates lost. None where no tensors were recorded."""
    names, records = run.config.get("tensors"), run.of("tensors")
    if not isinstance(names, list) or not records:
        return None
    of = [layer_of(str(name)) for name in names]
    layers = list(dict.fromkeys(of))
    every = math.ceil(len(records) / MOST_COLUMNS)
    records = records[::every]
    out: dict[str, Any] = {
        "step": [record["step"] for record in records],
        "layers": layers,
        "every": every,
        "grad_norm": [],
        "update_ratio": [],
        "lost_share": [],
    }
    columns = [_column(record, of, layers) for record in records]
    for name in ("grad_norm", "update_ratio", "lost_share"):
        out[name] = [[column[name][layer] for column in columns] for layer in range(len(layers))]
    return out


def _column(record: dict[str, Any], of: list[str], layers: list[str]) -> dict[str, list[float | None]]:
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


def _listed(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "type": event["type"],
            "step": event["step"],
            "time": number(event.get("time")),
            "text": _told(event),
        }
        for event in run.of(*LISTED)
    ]


def _told(event: dict[str, Any]) -> str:
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
