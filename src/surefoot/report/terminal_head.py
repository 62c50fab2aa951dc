"""Panel 5 as text: the head's rows, and what flows back from it."""

from __future__ import annotations

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from surefoot.microscope.panels import Position
from surefoot.microscope.slide import Opened
from surefoot.report.glyphs import fixed, number, signed, strip, visible
from surefoot.report.terminal_parts import BLUE, ORANGE, TOKEN, grid, heading, indented, line


def head(opened: Opened, position: Position, width: int) -> list[RenderableType]:
    """Panel 5: rows of the head are error × hidden state; checked against autograd."""
    recorded = opened.slide.head
    hidden = opened.arrays.get(position.hidden or "")
    numbers = "" if hidden is None else f", {hidden.size:,} numbers"
    found = heading(
        "5  The head: error × hidden state",
        f"Logits are the head's rows times the hidden state h{numbers}; so a row's gradient is error × h. "
        + (
            "The step goes against it: a mirrored strip pulls its token up, an upright one pushes it down."
            if recorded.trained
            else "The head is frozen: its rows stay, and the error only passes through it."
        ),
    )
    if recorded.unknown is not None:
        return [*found, line(f"Not shown: {recorded.unknown}.")]
    room = max(16, min(48, width - TOKEN - 40))
    if not recorded.trained:
        return found + _passing(opened, position, hidden, room)
    table = grid("  row", ">error", "error × h (√ scale)", ">norm", ">off by")
    errors = {c.id: c.error_product for c in position.candidates}
    if hidden is not None:
        values = [float(v) for v in hidden]
        largest = max(map(abs, values), default=0.0)
        table.add_row("  h", "", strip(values, largest, room), fixed(position.hidden_norm or 0.0), "")
        most = max((abs(errors.get(row.id, 0.0)) for row in position.head_rows), default=0.0) or 1.0
        for row in position.head_rows:
            scale = errors.get(row.id, 0.0)
            drawn = strip([v * scale / most for v in values], largest, room)
            table.add_row(
                Text("  " + visible(row.token, TOKEN)),
                signed(scale),
                Text(drawn, ORANGE if scale < 0 else BLUE),
                fixed(row.norm),
                _off(row.max_abs_difference_from_autograd, row.largest),
            )
        found.append(indented(table))
    return [*found, *_whole_step(opened), *_passing(opened, position, None, min(room, width - 56))]


def _passing(
    opened: Opened, position: Position, hidden: np.ndarray | None, room: int
) -> list[RenderableType]:
    """`hidden`, which came up, and what goes down in its place."""
    down = opened.arrays.get(position.flows_back or "")
    shown = [("h", hidden, position.hidden_norm), ("Wᵀ × error", down, position.flows_back_norm)]
    found: list[RenderableType] = []
    for name, array, norm in shown:
        if array is None:
            continue
        values = [float(v) for v in array]
        drawn = strip(values, max(map(abs, values), default=0.0), room)
        if hidden is not None:
            name = f"{name:<10} "
        elif array is down:
            name = "Down into the model goes Wᵀ × error: "
        found.append(line(f"{name}{drawn}  norm {fixed(norm or 0.0)}"))
    return found


def _off(difference: float | None, largest: float) -> str:
    if difference is None:
        return "–"
    return "0" if difference == 0 else f"{difference / largest:.0e}".replace("-", "−") if largest else "?"


def _rough(products: str) -> str:
    return "; bfloat16 keeps two to three digits" if products == "bfloat16" else ""


def _whole_step(opened: Opened) -> list[RenderableType]:
    """The same rows for all targets of the step, as the optimizer gets them."""
    slide, rows = opened.slide, opened.slide.head.rows
    compared = [row for row in rows if row.max_abs_difference_from_autograd is not None and row.largest]
    found: list[RenderableType] = []
    if slide.head.tied:
        found.append(line("Head and input embeddings are one weight, so both sides add to its gradient:"))
        table = grid("  row, all targets", ">head's part", ">input's part", ">whole", ">off by")
        for row in rows[:4]:
            parts = (row.norm, row.input_norm, row.total_norm)
            table.add_row(
                Text("  " + visible(row.token, TOKEN)),
                *("–" if part is None else fixed(part) for part in parts),
                _off(row.max_abs_difference_from_autograd, row.largest),
            )
        found.append(indented(table))
    if compared:
        worst = max(row.max_abs_difference_from_autograd or 0.0 for row in compared)
        largest = max(row.largest for row in compared)
        found.append(
            line(
                "Checked over all targets of the step against autograd, PyTorch's own gradient (off by: of a "
                f"row's largest entry): max |formula − autograd| is {number(worst, 2)}, where the largest entry is "
                f"{fixed(largest)}{_rough(slide.precision.get('products', ''))}."
            )
        )
    names = ", ".join(
        f"“{visible(row.token, TOKEN)}” {fixed(row.norm, 3)}" for row in slide.head.top_rows[:5]
    )
    return [*found, *([line(f"Largest rows of all: {names}")] if names else [])]
