"""The middle panels as text: the gradient of every layer, and what the optimizer made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from surefoot.microscope.panels import (
    ChosenWeight,
    Layer,
)
from surefoot.microscope.slide import Opened
from surefoot.report.glyphs import (
    bar,
    clipped,
    fixed,
    number,
    printable,
    share,
    signed,
    visible,
)
from surefoot.report.terminal_parts import (
    BLUE,
    grid,
    heading,
    indented,
    line,
)

LAYERS = 42
"""Most layers that are shown each; of a deeper model every second, third, ..."""


# 6: backwards ------------------------------------------------------------------------------------------------


def backward(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 6: the gradient of each layer from the last to the first, and the clip factor."""
    slide = opened.slide
    found = heading(
        "6  Backwards through the layers",
        "From the head the error flows down, and gives each weight of each layer a direction and a size. ‖g‖: norm "
        "of a layer's gradient; ‖g‖²: its part of the whole; RMS: of the gradient at the layer's output.",
    )
    layers = slide.layers
    every = math.ceil(len(layers) / LAYERS)
    kept = [layer for n, layer in enumerate(layers) if n % every == 0 or n == len(layers) - 1]
    if every > 1:
        found.append(line(f"Of {len(layers)} layers, one in {every} is shown."))
    largest = max((layer.grad_norm for layer in layers), default=0.0)
    if width >= 96:
        half = math.ceil(len(kept) / 2)
        both = Table.grid(padding=(0, 3, 0, 0))
        room = (width - 5) // 2
        both.add_row(*(_layers(part, largest, room) for part in (kept[:half], kept[half:])))
        found.append(indented(both))
    else:
        found.append(indented(_layers(kept, largest, width - 2)))
    total, limit, factor = (
        slide.backward.grad_norm,
        slide.backward.max_grad_norm,
        slide.backward.clip_factor,
    )
    if factor < 1:
        said = (
            f"more than max_grad_norm {number(limit)}: the whole gradient is multiplied by {number(factor)}"
        )
    else:
        said = f"no more than max_grad_norm {number(limit)}, so it is not clipped" if limit else "not clipped"
    found.append(line(f"All layers together: ‖g‖ = {number(total)}, {said}."))
    heavy = sorted(slide.tensors, key=lambda t: -t.share)[:3]
    if heavy:
        said = ", ".join(f"{t.name} {share(t.share)}" for t in heavy)
        found.append(line(f"Largest tensors, by their part of ‖g‖²: {said}."))
    return found


def _layers(layers: Sequence[Layer], largest: float, width: int) -> Table:
    names = max((len(_short(layer.name)) for layer in layers), default=5)
    table = grid("layer", ">‖g‖", "", ">‖g‖²", ">RMS")
    room = max(4, width - names - 28)
    for layer in layers:
        rms = "" if layer.hidden_grad_rms is None else fixed(layer.hidden_grad_rms, 2)
        drawn = Text(f"{bar(layer.grad_norm, largest, room):<{room}}", BLUE)
        table.add_row(Text(_short(layer.name)), fixed(layer.grad_norm), drawn, share(layer.share), rms)
    return table


def _short(name: str) -> str:
    return clipped(visible(name.removeprefix("base_model.model.").removeprefix("model.")), 20)


# 7: the optimizer ----------------------------------------------------------------------------------------------


def optimizer(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 7: the optimizer's arithmetic for the chosen weights, line by line."""
    slide, recorded = opened.slide, opened.slide.optimizer
    if recorded is None:
        refused = "It decides how far each weight goes. Here it was not asked: the update was refused."
        return heading("7  The optimizer", refused)
    settings = ", ".join(f"{name} {_setting(value)}" for name, value in recorded.settings.items() if value)
    found = heading(
        "7  The optimizer",
        f"It decides how far each weight goes. Here: {recorded.name}, learning rate "
        f"{number(recorded.learning_rate)}{', ' + settings if settings else ''}; {recorded.updates_before:,} "
        "updates before this one.",
    )
    if recorded.refused is not None:
        found.append(line(f"Its arithmetic is not shown: {recorded.refused}."))
    most = max(1, (width - 48) // 14)
    for _, alike in groupby(slide.chosen, key=lambda c: [(s.name, s.formula) for s in c.stages]):
        weights = list(alike)
        for start in range(0, len(weights), most):
            found += _derivation(weights[start : start + most])
    for tensor in [t for t in slide.tensors if t.name in {c.tensor for c in slide.chosen} and len(t.rms) > 1]:
        stages = " → ".join(f"{name} {number(value, 3)}" for name, value in tensor.rms.items())
        found.append(line(f"RMS over all of {tensor.name}: {stages}"))
    return found


def _setting(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _derivation(weights: Sequence[ChosenWeight]) -> list[RenderableType]:
    """Stages down, weights across: all of them have the same stages."""
    found: list[RenderableType] = []
    letters = "ABCDEFGHIJ"
    for letter, weight in zip(letters, weights, strict=False):
        index = ", ".join(map(str, weight.index))
        found.append(line(f"{letter} = {weight.tensor}[{index}]: {weight.why}"))
    table = grid("", "", *(f">{letter}" for letter, _ in zip(letters, weights, strict=False)))
    table.add_row("θ before", "", *(fixed(w.before, 6) for w in weights))
    for n, stage in enumerate(weights[0].stages):
        formula = Text(f"= {printable(stage.formula)}" if stage.formula else "")
        table.add_row(Text(printable(stage.name)), formula, *(signed(w.stages[n].value) for w in weights))
    after = Text("θ after", "bold")
    table.add_row(after, "= θ + Δ, as stored", *(Text(fixed(w.after, 6), "bold") for w in weights))
    for name in weights[0].would:
        said = f"Δ by {visible(name)} instead"
        table.add_row("", Text(said, "italic"), *(signed(w.would.get(name, math.nan)) for w in weights))
    found.append(indented(table))
    states = dict.fromkeys(w.would_state for w in weights if w.would)
    replays = [abs(w.replay_error) for w in weights if w.replay_error is not None]
    said = f"State given to those instead: {'; '.join(states)}. " if states else ""
    said += f"Computed here and stored differ by at most {number(max(replays), 2)}." if replays else ""
    return [*found, line(said)] if said else found
