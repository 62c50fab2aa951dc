"""What the terminal's panels are made of: headings, sentences, tables, and how a token is shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from surefoot.microscope.panels import Candidate, Position
from surefoot.report.glyphs import printable, visible

BLUE, ORANGE, BROWN, BOTH = "color(32)", "color(166)", "color(136)", "color(97)"
"""Apart for colour-blind people, and readable on black and on white."""
TOKEN = 16
"""Widest that a token gets in a table."""


def put(parts: Iterable[RenderableType], console: Console, width: int) -> None:
    """Print `parts`, `width` columns wide, without the blanks that fill up their lines."""
    options = console.options.update(width=width, highlight=False, markup=False)
    for part in parts:
        for segments in console.render_lines(part, options, pad=False):
            text = Text.assemble(*((s.text, s.style or "") for s in segments if not s.control))
            text.rstrip()
            console.print(text, soft_wrap=True, highlight=False)


def heading(title: str, sentence: str) -> list[RenderableType]:
    """How every panel begins: its name, and what is seen, for somebody who is learning this."""
    return [Text(), Text(title, "bold"), Text(printable(sentence))]


def grid(*columns: str) -> Table:
    """A table without lines; a column whose name begins with ">" is right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="", collapse_padding=True)
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            Text(name.removeprefix(">"), "italic"), justify="right" if right else "left", overflow="fold"
        )
    return table


def indented(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2), expand=False)


def line(text: str, style: str = "") -> RenderableType:
    """A sentence of a panel; where it breaks it stays indented."""
    return indented(Text(printable(text), style))


def notable(position: Position, likeliest: int) -> list[Candidate]:
    """The likeliest candidates, the target and the watched ones, by probability."""
    ordered = sorted(position.candidates, key=lambda c: c.rank_before)
    return [c for n, c in enumerate(ordered) if n < likeliest or c.is_target or c.is_watched]


def marked(candidate: Candidate) -> Text:
    """A token as tables show it: ▶ the target, ○ a watched one."""
    mark = "▶ " if candidate.is_target else "○ " if candidate.is_watched else "  "
    style = "bold" if candidate.is_target else ""
    return Text(mark + visible(candidate.token, TOKEN), style)
