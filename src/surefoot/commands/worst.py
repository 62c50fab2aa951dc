"""surefoot worst: the rows of a run that cost most, rose, or were never learned, with their text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from surefoot.commands.options import parse
from surefoot.data.formats import to_record
from surefoot.data.rows import Conversation, PlainText, Record, Row
from surefoot.data.shapes import detect
from surefoot.data.sources import Source, open_source
from surefoot.errors import UserError
from surefoot.events import RunFolder
from surefoot.report.glyphs import fixed, number, printable, share
from surefoot.report.terminal_parts import heading, put
from surefoot.report.worst import RowCost, WorstRows, worst_rows
from surefoot.validation import checked

WIDEST = 160


class WorstOptions(BaseModel):
    """Options of `surefoot worst`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    limit: int = Field(20, gt=0)
    """At most so many rows of each kind."""


@dataclass(frozen=True)
class Texts:
    """The rows' own words, read again from the data."""

    name: str = ""
    """What the rows' places begin with."""
    whole: dict[str, str] = field(default_factory=dict)
    """Place → the row's text."""
    short: dict[str, str] = field(default_factory=dict)
    """Place → what was asked last and what was to be answered."""
    note: str | None = None
    """Why there are none."""


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
    found = worst_rows(folder.events(), options.limit)
    if not found.steps:
        raise UserError(f"{folder.path}: the run has no steps yet; ask again when it has")
    kinds = (found.cost_most, found.rose, found.never_learned)
    texts = read_texts(folder, {row.where for rows in kinds for row in rows})
    if parsed.json:
        print(json.dumps(_plain(found, texts), ensure_ascii=False))
    else:
        _show(found, texts)
    return 0


def read_texts(folder: RunFolder, wanted: set[str]) -> Texts:
    """The text of the rows at `wanted`, if the run's data are where they were, and what they were."""
    try:
        about = json.loads(folder.config_file.read_text(encoding="utf-8"))
        config, fingerprint = about["config"], about["data"]["train"]["fingerprint"]
        name = config["dataset_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return Texts(
            note=f"{folder.config_file} does not tell which data the run had, so no row's text is known"
        )
    if name is None:
        return Texts(note="the run's rows were passed from Python, so their text is not known here")
    if not fingerprint or config.get("dataset_streaming"):
        return Texts(name, note=f"{name} was read as a stream, so rows cannot be found in it again")
    try:
        source = _open(name, config)
        if source.fingerprint != fingerprint:
            return Texts(name, note=f"{name} has changed since the run, so its rows' text is not shown")
        return _read(source, config, wanted)
    except UserError as error:
        return Texts(name, note=f"no row's text is known: {str(error).rstrip('.')}")


def _open(name: str, config: dict[str, Any]) -> Source:
    if Path(name).expanduser().is_file():
        return open_source(name)
    return open_source(name, split=config.get("dataset_train_split"), config=config.get("dataset_config"))


def _read(source: Source, config: dict[str, Any], wanted: set[str]) -> Texts:
    texts, shape = Texts(source.name), None
    columns, text_field = config.get("columns") or {}, config.get("dataset_text_field") or "text"
    for row in source:
        if len(texts.whole) == len(wanted):
            break
        try:
            # As in training, the first row tells what shape all have.
            shape = shape or detect(row, columns, text_field)
        except UserError:  # shaped by a function in Python
            shape = None
        if row.where in wanted:
            record = None if shape is None else to_record(row, shape)
            texts.whole[row.where], texts.short[row.where] = _words(record, row)
    return texts


def _words(record: Record | None, row: Row) -> tuple[str, str]:
    """All that a row says, and the last question with its answer."""
    if isinstance(record, PlainText):
        return record.prompt + record.completion, " → ".join(filter(None, (record.prompt, record.completion)))
    if isinstance(record, Conversation):
        said = [_content(message) for message in record.messages]
        whole = "\n".join(f"{m['role']}: {text}" for m, text in zip(record.messages, said, strict=True))
        last = record.supervised[-1] if record.supervised else len(said) - 1
        return whole, " → ".join(said[max(0, last - 1) : last + 1])
    text = json.dumps(dict(row.data), ensure_ascii=False, default=str)
    return text, text


def _content(message: dict[str, Any]) -> str:
    if isinstance(content := message.get("content"), str) and content:
        return content
    return json.dumps({k: v for k, v in message.items() if k != "role"}, ensure_ascii=False, default=str)


def _plain(found: WorstRows, texts: Texts) -> dict[str, Any]:
    result = asdict(found)
    for kind in ("cost_most", "rose", "never_learned"):
        for row in result[kind]:
            row["text"] = texts.whole.get(row["where"])
    return {**result, "note": texts.note}


def _show(found: WorstRows, texts: Texts) -> None:
    console = Console(highlight=False)
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
