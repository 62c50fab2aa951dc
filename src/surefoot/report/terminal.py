"""A slide in the terminal: the whole lesson in reading order.

Everything is text that says it all without colour; colour repeats what is said. Lines fit the console.
"""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from surefoot.errors import UserError
from surefoot.microscope.panels import Position
from surefoot.microscope.slide import Opened
from surefoot.report import terminal_forward as forward
from surefoot.report import terminal_head as head
from surefoot.report import terminal_result as result
from surefoot.report import terminal_update as update
from surefoot.report.glyphs import number, printable, visible
from surefoot.report.terminal_mountain import mountain
from surefoot.report.terminal_parts import ORANGE, put

WIDEST = 110
NARROWEST = 60
LESSON = (
    "The loss says what was off; backprop turns it into a direction and a size for every weight, from the last "
    "layer to the first; the optimizer decides how far to go; and after one step the right answer is a little "
    "likelier."
)


def show(opened: Opened, console: Console, position: int | None = None) -> None:
    """Print a slide as the whole lesson.

    `position` is the index in the slide's `positions` that the panels on prediction, error and head look at; if
    none is given, the one that the slide looks at. Raises UserError when the slide has no such position.
    """
    width = min(WIDEST, max(NARROWEST, console.width))
    position = opened.slide.looked_at if position is None else position
    put(lesson(opened, width, position), console, width)


def lesson(opened: Opened, width: int, position: int = 0) -> list[RenderableType]:
    """All panels, top to bottom, for `width` columns."""
    slide = opened.slide
    at = chosen(slide.positions, position)
    return [
        *_headline(opened, at),
        *forward.batch(opened, at, width),
        *([] if at is None else _prediction(opened, at, width)),
        *update.backward(opened, width),
        *update.optimizer(opened, width),
        *result.weights(opened, width),
        *mountain(opened, width),
        *([] if at is None else result.after(opened, at, width)),
        *result.promised(opened, width),
        *result.asked_for(opened, width),
        *_end(opened),
    ]


def chosen(positions: list[Position], index: int) -> Position | None:
    """The position asked for; None when the slide has none at all."""
    if not positions and index == 0:
        return None
    if not 0 <= index < len(positions):
        here = f"it has {len(positions)}, from 0 to {len(positions) - 1}" if positions else "it has none"
        raise UserError(f"position {index}: the slide has no such position; {here}")
    return positions[index]


def _headline(opened: Opened, at: Position | None) -> list[RenderableType]:
    slide = opened.slide
    types = ", ".join(f"{what} {kind}" for what, kind in slide.precision.items())
    found: list[RenderableType] = [
        Text(f"One update, opened: step {slide.step:,} of {printable(slide.model)}", "bold underline"),
        Text(printable(slide.headline), "bold"),
        *(Text(f"! {printable(alert)}", f"bold {ORANGE}") for alert in slide.alerts),
        Text(LESSON + _not_so(opened), "italic"),
    ]
    said = f"Opened because: {slide.opened_because}. Types: {types}."
    if at is None:
        said += " No target was looked at, so prediction, error and head are not shown."
    elif len(slide.positions) > 1:
        others = ", ".join(f"{n} “{visible(p.target, 16)}”" for n, p in enumerate(slide.positions[:12]))
        more = ", …" if len(slide.positions) > 12 else ""
        said += f" Position {slide.positions.index(at)} is looked at, of {others}{more} (--position shows another)."
    return [*found, Text(printable(said))]


def _not_so(opened: Opened) -> str:
    """Where the lesson ends otherwise."""
    obtained = opened.slide.obtained
    if obtained is None:
        return " Not so here: there was no update."
    said = "rose" if obtained > 0 else "stayed" if obtained == 0 else ""
    return f" Not so here: the loss {said}." if said else ""


def _prediction(opened: Opened, at: Position, width: int) -> list[RenderableType]:
    parts = (forward.prediction, forward.loss, forward.error, head.head)
    return [line for part in parts for line in part(opened, at, width)]


def _end(opened: Opened) -> list[RenderableType]:
    slide = opened.slide
    found: list[RenderableType] = [Text()]
    found += [Text(f"Note: {printable(note)}") for note in slide.notes]
    seconds = slide.seconds.get("step", slide.seconds.get("opening"))
    if seconds is not None:
        plain = slide.seconds.get("plain")
        said = "" if plain is None else f"; the step alone takes {number(plain, 3)}"
        found.append(Text(f"Opening this step took {number(seconds, 3)} seconds{said}."))
    return found
