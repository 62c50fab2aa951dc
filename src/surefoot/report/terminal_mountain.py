"""The mountain as text: the loss along this update, and across it where that was measured."""

from __future__ import annotations

import math

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from surefoot.microscope.panels import Mountain
from surefoot.microscope.slide import Opened
from surefoot.report.glyphs import fixed, number, plot, signed
from surefoot.report.terminal_parts import BLUE, ORANGE, heading, line

LINES = 7
"""Of the cut."""


def mountain(opened: Opened, width: int) -> list[RenderableType]:
    """Panel 9: the loss along this update, the slope where it began, and where it landed."""
    recorded = opened.slide.mountain
    found = heading(
        "9  The mountain",
        "Loss is the altitude, the weights are where you stand. Walking on along this update: 0 is before it, 1 "
        "is where it landed, and the dotted line is the slope that the gradient saw.",
    )
    if recorded is None:
        return [*found, line("It was not measured.")]
    heights = [value for value in recorded.losses if math.isfinite(value)]
    if len(heights) < 2:
        return [*found, line("The loss is not finite along it.")]
    drawn = min(width - 18, 64)
    points, box = _points(recorded, drawn, min(heights), max(heights))
    lines, box = plot([*box, *points], drawn, LINES)
    for n, row in enumerate(lines):
        label = box[3] if n == 0 else box[2] if n == len(lines) - 1 else None
        text = Text(f"  {'' if label is None else fixed(label, 4):>9} │")
        for character in row:
            text.append(
                character, {"◆": f"bold {ORANGE}", "○": f"bold {BLUE}", "·": "dim"}.get(character, "")
            )
        found.append(text)
    axis = [" "] * drawn
    for x in dict.fromkeys((box[0], 0.0, 1.0, box[1])):
        label = number(x, 3)
        column = round((x - box[0]) / (box[1] - box[0]) * (drawn - 1))
        start = min(max(0, column - len(label) // 2), drawn - len(label))
        axis[start : start + len(label)] = label
    found.append(Text(f"  {'':>9} └{'─' * drawn}"))
    found.append(Text(f"  {'':>9}  {''.join(axis).rstrip()}"))
    found.append(
        line(
            f"○ before{_altitude(recorded, 0)}   ◆ landed{_altitude(recorded, 1)}   ● measured   · slope "
            f"{signed(recorded.slope)}"
        )
    )
    found.append(line(_landing(recorded)))
    if recorded.surface in opened.arrays:
        found += _from_above(recorded, opened.arrays[recorded.surface], width)
    return [*found, line(f"{recorded.caption} (probe: {recorded.probe})", "italic")]


def _points(
    recorded: Mountain, width: int, low: float, high: float
) -> tuple[list[tuple[float, float, str]], list[tuple[float, float, str]]]:
    """What is drawn, later points over earlier ones, and two corners that hold the frame."""
    known = [(x, y) for x, y in zip(recorded.along, recorded.losses, strict=True) if math.isfinite(y)]
    left, right = min(x for x, _ in known), max(x for x, _ in known)
    start = next((y for x, y in known if x == 0), None)
    points: list[tuple[float, float, str]] = []
    if start is not None:
        for n in range(0, width, 2):
            x = left + (right - left) * n / (width - 1)
            y = start + recorded.slope * x
            if low <= y <= high:
                points.append((x, y, "·"))
    points += [
        (x, y, "○" if x == 0 else "◆" if x == 1 else "●")
        for x, y in sorted(known, key=lambda p: p[0] in (0, 1))
    ]
    return points, [(left, low, " "), (right, high, " ")]


def _altitude(recorded: Mountain, at: float) -> str:
    return next(
        (f" {fixed(y, 4)}" for x, y in zip(recorded.along, recorded.losses, strict=True) if x == at), ""
    )


def _landing(recorded: Mountain) -> str:
    bend = f"curvature {signed(recorded.curvature)}"
    lowest = recorded.lowest_at
    if lowest is None:
        return f"The ground curves down ({bend}): on the local parabola there is no lowest point."
    where = "short of" if lowest > 1 else "past"
    if abs(lowest - 1) < 0.05:
        return f"On the local parabola ({bend}) the step landed at the lowest point."
    return f"On the local parabola ({bend}) the lowest point is at {number(lowest, 3)}: the step ended {where} it."


def _from_above(recorded: Mountain, heights: np.ndarray, width: int) -> list[RenderableType]:
    """The surface from above: a digit a point, by tenths of all points."""
    known = np.sort(heights[np.isfinite(heights)], axis=None)
    if not len(known) or heights.shape != (len(recorded.across), len(recorded.along)):
        return []
    lowest, tenth, highest = (fixed(float(known[n]), 4) for n in (0, (len(known) - 1) // 10, -1))
    found: list[RenderableType] = [
        line(
            "From above: further right is further along the update, up and down is across it. A digit is a point: "
            f"0 for the lowest tenth of them ({lowest} to {tenth}), 9 for the highest (up to {highest})."
        )
    ]
    apart = 2 if 12 + 2 * len(recorded.along) <= width else 1
    marks = {(0.0, 0.0): "○", (1.0, 0.0): "◆"}
    for n in reversed(range(len(recorded.across))):
        labelled = n in (0, len(recorded.across) // 2, len(recorded.across) - 1)
        text = Text(f"  {number(recorded.across[n], 3) if labelled else '':>9} │")
        for m, value in enumerate(heights[n].tolist()):
            tenth = int(np.searchsorted(known, value) * 10 // len(known)) if math.isfinite(value) else None
            mark = marks.get((recorded.along[m], recorded.across[n]))
            style = "" if tenth is None else BLUE if tenth < 3 else ORANGE if tenth > 6 else "dim"
            text.append(f"{mark or ('×' if tenth is None else tenth):>{apart}}", "bold" if mark else style)
        found.append(text)
    missing = heights.size - len(known)
    if missing:
        found.append(line(f"× the loss is not finite ({missing} points)"))
    found.append(line(f"Across is {recorded.across_is}."))
    return found
