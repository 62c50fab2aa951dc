"""The middle panels as text: the gradient of every layer, and what the optimizer made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.cells import cell_len
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
    ORANGE,
    grid,
    heading,
    indented,
    line,
)

FORMULA = "= θ + Δ, as stored"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
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
    if width >= 96:
        half = math.ceil(len(kept) / 2)
        both = Table.grid(padding=(0, 3, 0, 0))
        room = (width - 5) // 2
        both.add_row(*(_layers(part, kept, room) for part in (kept[:half], kept[half:])))
        found.append(indented(both))
    else:
        found.append(indented(_layers(kept, kept, width - 2)))
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
        said = ", ".join(f"{_without_prefix(t.name)} {share(t.share)}" for t in heavy)
        found.append(line(f"Largest tensors, by their part of ‖g‖²: {said}."))
    return found


def _layers(layers: Sequence[Layer], of: Sequence[Layer], width: int) -> Table:
    """Some layers `of` all that are shown, with bars of the same scale."""
    names = max((len(_short(layer.name)) for layer in of), default=5)
    largest = max((layer.grad_norm for layer in of), default=0.0)
    table = grid("layer", ">‖g‖", "", ">‖g‖²", ">RMS")
    room = max(4, width - names - 28)
    for layer in layers:
        rms = "" if layer.hidden_grad_rms is None else fixed(layer.hidden_grad_rms, 2)
        drawn = Text(f"{bar(layer.grad_norm, largest, room):<{room}}", BLUE)
        trains = layer.weight_norm or layer.grad_norm
        own = (fixed(layer.grad_norm), drawn, share(layer.share)) if trains else ("–", "", "")
        table.add_row(Text(_short(layer.name)), *own, rms)
    return table


def _short(name: str) -> str:
    return clipped(_without_prefix(name), 20)


def _without_prefix(name: str) -> str:
    return printable(name.removeprefix("base_model.model.").removeprefix("model."))


# 7: the optimizer ----------------------------------------------------------------------------------------------


def optimizer(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 7: the optimizer's arithmetic for the chosen weights, line by line."""
    slide, recorded = opened.slide, opened.slide.optimizer
    if slide.loss_after is None:
        refused = "It decides how far each weight goes. Here it was not asked: the update was refused."
        return heading("7  The optimizer", refused)
    settings = ", ".join(
        f"{name} {_setting(value)}"
        for name, value in recorded.settings.items()
        if value and value is not True
    )
    found = heading(
        "7  The optimizer",
        f"It decides how far each weight goes. Here: {recorded.name}, learning rate "
        f"{number(recorded.learning_rate)}{', ' + settings if settings else ''}; {recorded.updates_before:,} "
        "updates before this one.",
    )
    if recorded.refused is not None:
        found.append(line(f"Its arithmetic is not shown: {recorded.refused}."))
    shown = 0
    for _, alike in groupby(slide.chosen, key=lambda c: [(s.name, s.formula) for s in c.stages]):
        weights = list(alike)
        names = max(map(cell_len, ["θ before", *(stage.name for stage in weights[0].stages)]))
        formulas = max(map(cell_len, [FORMULA, *(f"= {stage.formula}" for stage in weights[0].stages)]))
        most = max(1, (width - 4 - names - formulas) // 12)
        for start in range(0, len(weights), most):
            across = weights[start : start + most]
            found += _derivation(across, LETTERS[shown:], {t.name: t.rms for t in slide.tensors})
            shown += len(across)
    return found


def _setting(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _derivation(
    weights: Sequence[ChosenWeight], letters: str, rms: dict[str, dict[str, float]]
) -> list[RenderableType]:
    """Stages down, weights across: all of them have the same stages. `rms`: of whole tensors, by stage."""
    found: list[RenderableType] = []
    for letter, weight in zip(letters, weights, strict=False):
        index = ", ".join(map(str, weight.index))
        found.append(line(f"{letter} = {_without_prefix(weight.tensor)}[{index}]: {weight.why}"))
    table = grid("", "", *(f">{letter}" for letter, _ in zip(letters, weights, strict=False)))
    table.add_row("θ before", "", *(fixed(w.before, 6) for w in weights))
    for n, stage in enumerate(weights[0].stages):
        formula = Text(f"= {printable(stage.formula)}" if stage.formula else "")
        table.add_row(Text(printable(stage.name)), formula, *(signed(w.stages[n].value) for w in weights))
    after = Text("θ after", "bold")
    table.add_row(after, FORMULA, *(Text(fixed(w.after, 6), "bold") for w in weights))
    for name in weights[0].would:
        said = f"Δ by {visible(name)} instead"
        table.add_row("", Text(said, "italic"), *(signed(w.would.get(name, math.nan)) for w in weights))
    for stage in dict.fromkeys(stage.name for stage in weights[0].stages):
        sizes = [rms.get(weight.tensor, {}).get(stage) for weight in weights]
        if stage in ("g", "Δ") and None not in sizes:
            name = Text(f"RMS of {stage}, whole tensor", "italic")
            table.add_row("", name, *("" if size is None else fixed(size) for size in sizes))
    found.append(indented(table))
    lost = [letter for letter, w in zip(letters, weights, strict=False) if w.after == w.before and _moves(w)]
    if lost:
        whose = "its Δ is" if len(lost) == 1 else "their Δ are"
        found.append(
            line(f"{', '.join(lost)}: stored as before: {whose} too small for the type, and lost.", ORANGE)
        )
    states = dict.fromkeys(w.would_state for w in weights if w.would)
    replays = [abs(w.replay_error) for w in weights if w.replay_error is not None]
    said = f"Instead: at the same learning rate; state given: {'; '.join(states)}. " if states else ""
    said += f"Replayed here and as stored: at most {number(max(replays), 2)} apart." if replays else ""
    return [*found, line(said)] if said else found


def _moves(weight: ChosenWeight) -> bool:
    return any(stage.name == "Δ" and stage.value != 0 for stage in weight.stages)
