"""The last panels as text: where the update led."""

from __future__ import annotations

import math

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from surefoot.microscope.panels import (
    Position,
    Weights,
)
from surefoot.microscope.slide import Opened
from surefoot.report.glyphs import (
    bar,
    fixed,
    height,
    number,
    probability,
    rebinned,
    share,
    signed,
    strip,
    visible,
)
from surefoot.report.terminal_parts import (
    BLUE,
    BOTH,
    ORANGE,
    TOKEN,
    grid,
    heading,
    indented,
    line,
    marked,
    notable,
)

LINES = 5
"""Of a histogram."""
FLAT = strip([0.0], 1.0, 1)


# 8: weights ----------------------------------------------------------------------------------------------------


def weights(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 8: all weights before and after, what changed, and what rounding would lose."""
    recorded = opened.slide.weights
    found = heading(
        "8  The weights before and after",
        "How many weights have which value, old in blue and new in orange. One step moves them so little that "
        "the two mostly coincide; so below, the difference of the counts, and how far weights moved.",
    )
    if recorded is None:
        return [found[0], found[1], line("They were not recorded.")]
    found += _overlay(recorded, min(width - 6, 72))
    moved = rebinned(recorded.change.counts, min(width - 30, 48))
    drawn = "".join(" " if not count else height(count, max(moved)) for count in moved)
    edges = recorded.change.edges
    if any(moved):
        found.append(line(f"how far, |Δ|: 10^{number(edges[0], 3)} {drawn} 10^{number(edges[-1], 3)}"))
    moves = (
        f"{recorded.asked:,}"
        if recorded.asked == recorded.count
        else f"{recorded.asked:,} of the {recorded.count:,}"
    )
    norms = f"‖Δ‖ / ‖θ‖ = {number(recorded.update_norm)} / {number(recorded.weight_norm)}"
    found.append(line(f"{norms} = {number(recorded.update_ratio, 3)}, over {recorded.count:,} weights."))
    found.append(
        line(
            f"Rounding: the update moves {moves} weights; {share(recorded.lost_share)} of them are the "
            f"same in bf16 as before ({recorded.lost_means})."
        )
    )
    return found


def _overlay(recorded: Weights, width: int) -> list[RenderableType]:
    """Two histograms over each other, on a logarithmic scale, and the difference of their counts."""
    old, new = rebinned(recorded.before.counts, width), rebinned(recorded.after.counts, width)
    times = max(1, width // len(old))
    top = math.log1p(max([*old, *new])) or 1.0
    found: list[RenderableType] = []
    for level in range(LINES - 1, -1, -1):
        row = Text("    ")
        for a, b in zip(old, new, strict=True):
            # Eighths of this cell that each histogram fills.
            fill = [min(8, max(0, round((math.log1p(n) / top * LINES - level) * 8))) for n in (a, b)]
            both = abs(fill[0] - fill[1]) <= 1
            style = BOTH if both else BLUE if fill[0] > fill[1] else ORANGE
            block = " " if not max(fill) else height(max(fill) - 1, 8)
            if max(fill) and not both:
                block = "o" if fill[0] > fill[1] else "n"
            row.append(block * times, style)
        found.append(row)
    low, high = number(recorded.before.edges[0], 3), number(recorded.before.edges[-1], 3)
    middle = f"{'log count':^{max(0, len(old) * times - len(low) - len(high))}}"
    found.append(Text(f"    {low}{middle}{high}"))
    change = [float(b - a) for a, b in zip(old, new, strict=True)]
    largest = max(map(abs, change), default=0.0)
    if largest:
        drawn = Text("    ")
        for value in change:
            block = strip([value], largest, 1)
            drawn.append(block * times, "" if block == FLAT else ORANGE if value > 0 else BLUE)
        found.append(drawn)
    key = Text.assemble(
        ("blue, o", BLUE), ": only old   ", ("orange, n", ORANGE), ": only new   ", ("█", BOTH)
    )
    change_is = f"{min(change):+,.0f} to {max(change):+,.0f}".replace("-", "−")
    key.append(f": both   line above: new − old, {change_is}")
    return [*found, Padding(key, (0, 0, 0, 4), expand=False)]


# 10, 11: after -------------------------------------------------------------------------------------------------


def after(opened: Opened, position: Position, width: int) -> list[RenderableType]:
    """Panel 10: the same prediction after the update, and whose doing it is."""
    both = opened.slide.head.trained
    found = heading(
        "10  The prediction after",
        "The same question to the new weights. "
        + (
            "The last two columns say whose part it is: p with only the head new, and with only the rest, the "
            "body, new."
            if both
            else "The head is frozen, so what changed is the body's doing."
        ),
    )
    if position.loss_after is None:
        return [*found, line("It was not measured.")]
    columns = (">head only", ">body only") if both else ()
    table = grid("  token", ">p before", ">p after", "", ">rank", *columns)
    for one in notable(position, 5):
        if one.p_after is None:
            continue
        rank = (
            f"{one.rank_before:,}"
            if one.rank_after == one.rank_before
            else f"{one.rank_before:,} → {one.rank_after:,}"
        )
        rose, fell = one.p_after > one.p_before, one.p_after < one.p_before
        arrow = Text("▲", ORANGE) if rose else Text("▼", BLUE) if fell else Text("")
        parts = ["–" if p is None else probability(p) for p in (one.p_head, one.p_body)] if both else []
        table.add_row(marked(one), probability(one.p_before), probability(one.p_after), arrow, rank, *parts)
    found.append(indented(table))
    losses = f"{fixed(position.loss_before, 4)} → {fixed(position.loss_after, 4)}"
    loss = f"−ln p of {visible(position.target, TOKEN)}: {losses}"
    entropy = (
        ""
        if position.entropy_after is None
        else (f"; entropy {fixed(position.entropy_before)} → {fixed(position.entropy_after)}")
    )
    moved = "" if position.kl is None else f"; the whole prediction moved by KL {number(position.kl, 3)} nats"
    found.append(line(f"{loss}{entropy}{moved}"))
    whole = "The whole answer" if opened.slide.looked_at == 0 else "All from this token on,"
    for one in opened.slide.watched:
        later = "" if one.p_after is None else f" → {probability(one.p_after)}"
        found.append(line(f"{whole} “{one.text}”: p {probability(one.p_before)}{later}"))
    return found


def promised(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 11: what the slope promised, and what the step gave."""
    slide = opened.slide
    found = heading(
        "11  Promised and obtained",
        "The gradient is a slope, good for small steps. Slope times step, g·Δ, is what it promised; the loss "
        "measured again is what the step gave. They part where the ground curves.",
    )
    if slide.loss_after is None or slide.obtained is None:
        return [
            *found,
            line(f"Loss before: {fixed(slide.loss_before, 4)}. After the step it was not measured."),
        ]
    loss = f"loss {fixed(slide.loss_before, 4)} → {fixed(slide.loss_after, 4)}"
    if slide.promised is not None:
        part = slide.obtained / slide.promised if slide.promised else math.nan
        kept = f" ({share(part)} of it)" if part >= 0 else " (the other way)" if part < 0 else ""
        loss += f": promised {signed(slide.promised)}, obtained {signed(slide.obtained)}{kept}"
    return [*found, line(loss, "bold")]


def asked_for(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 12, if it was asked for: gradient noise scale, and which examples pushed a target which way."""
    slide = opened.slide
    found: list[RenderableType] = []
    if slide.noise:
        found += heading(
            "12  The gradient's noise",
            "Micro-batches disagree about the direction; the noise scale says how many targets a step needs until "
            "the signal outweighs that noise.",
        )
        for one in slide.noise:
            scale = (
                "too few targets to tell" if one.noise_scale is None else f"{number(one.noise_scale)} targets"
            )
            found.append(
                line(
                    f"from parts of {number(one.part)} in a step of {number(one.batch)}: {scale}   "
                    f"(|G|² {number(one.grad_norm_squared, 3)}, S {number(one.trace, 3)})"
                )
            )
    for influence in slide.influence:
        target = slide.positions[influence.position]
        found += heading(
            f"Who pushed {visible(target.target, TOKEN)}?",
            "By the head's gradient alone: below 0, the example made this target likelier.",
        )
        ordered = sorted(influence.examples, key=lambda e: e[1])
        shown = ordered if len(ordered) <= 8 else [*ordered[:4], *ordered[-4:]]
        largest = max((abs(push) for _, push in shown), default=0.0)
        for where, push in shown:
            style = ORANGE if push < 0 else BLUE
            found.append(line(f"{signed(push):>12}  {bar(abs(push), largest, 16):<16}  {where}", style))
    return found
