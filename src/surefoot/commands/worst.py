"""surefoot worst: the rows of a run that cost most, rose, or were never learned, with their text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from surefoot.commands.options import parse
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.report.glyphs import fixed, number, printable, share
from surefoot.report.terminal_parts import heading, put
from surefoot.report.texts import Texts, read_texts
from surefoot.report.worst import RowCost, WorstRows, worst_rows
from surefoot.runfolder import RunFolder
from surefoot.validation import checked

WIDEST = 160


class WorstOptions(BaseModel):
    """Options of `surefoot worst`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    limit: int = Field(20, gt=0)
    """At most so many rows of each kind."""


def run(argv: list[str]) -> int:
    """Parse, read the events, print."""
    parsed = parse(
        WorstOptions,
        argv,
        prog="surefoot worst",
        about="Rows of a run that cost most, whose loss rose between their first and last visit, or that are never "
        "learned: at their last visit they still cost more than half of all rows did at their first.",
        positional={"run": ("?", "a run folder")},
    )
    options = checked(WorstOptions, parsed.options)
    if parsed.positional["run"] is None:
        raise UserError("surefoot worst RUN: which run folder?")
    folder = RunFolder(parsed.positional["run"])
    if not folder.events_file.is_file():
        raise UserError(f"{folder.path} is no run folder (no {folder.events_file.name})")
    try:
        found = worst_rows(folder.events(), options.limit)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder.events_file}: the examples of a step are not [row, sum of -log p, tokens]: {str(error)[:200]}"
        ) from None
    if not found.steps:
        raise UserError(f"{folder.path}: the run has no steps yet; ask again when it has")
    kinds = (found.cost_most, found.rose, found.never_learned)
    # The folder may be anybody's, so it has nothing fetched from a hub.
    texts = read_texts(folder, {row.where for rows in kinds for row in rows}, files_only=True)
    if parsed.json:
        print(json.dumps(_plain(found, texts), ensure_ascii=False))
    else:
        _show(found, texts)
    return 0


def _plain(found: WorstRows, texts: Texts) -> dict[str, Any]:
    result = asdict(found)
    for kind in ("cost_most", "rose", "never_learned"):
        for row in result[kind]:
            row["text"] = texts.whole.get(row["where"])
    return {**result, "note": texts.note}


def _show(found: WorstRows, texts: Texts) -> None:
    console = text_console()
    width = min(WIDEST, console.width)
    once = "" if found.revisited else " Each was visited once, so none can have risen or be called learned."
    of = f" of {printable(texts.name)}" if texts.name else ""
    summary = f"{found.steps:,} steps learned from {found.rows:,} rows{of}.{once}"
    parts: list[RenderableType] = [Text(summary)]
    if found.not_finite:
        parts.append(Text(f"{found.not_finite:,} visits had a loss that is no number; they are left out."))
    if texts.note is not None:
        parts.append(Text(f"Note: {printable(texts.note)}."))
    parts += heading(
        "Cost most",
        "The largest sums of −ln p over all visits; share is the part of the whole run's loss.",
    )
    parts.append(_table(found.cost_most, texts))
    if found.revisited:
        parts += heading(
            f"Rose ({found.rose_count:,})",
            "At the last visit a token cost more than at the first: other rows teach the opposite, or the learning "
            "rate is too high.",
        )
        parts.append(_table(found.rose, texts))
        parts += heading(
            f"Never learned ({found.never_learned_count:,})",
            f"At the last visit a token still cost more than {number(found.high or 0.0, 3)} nats; half of all rows "
            "cost less than that at their first visit. Such a row is hard, rare, or wrong.",
        )
        parts.append(_table(found.never_learned, texts))
    put(parts, console, width)


def _table(rows: Sequence[RowCost], texts: Texts) -> RenderableType:
    """A row a line: its text is cut, its place is not."""
    if not rows:
        return Text("  none")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="", expand=bool(texts.short))
    for name in ("share", "first", "last", "mean", "visits"):
        table.add_column(Text(name, "italic"), justify="right", no_wrap=True)
    table.add_column(Text("row", "italic"), overflow="fold")
    if texts.short:
        table.add_column(Text("text", "italic"), no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        place = Text(printable(row.where.removeprefix(texts.name)))
        words = [Text(printable(" ".join(texts.short.get(row.where, "").split())))] if texts.short else []
        losses = (fixed(loss) for loss in (row.first, row.last, row.mean))
        table.add_row(share(row.share), *losses, f"{row.visits:,}", place, *words)
    return table
