"""The words of a run's rows, read again from its data: the events hold only where each row stood."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.data.badrows import RowError
from surefoot.data.formats import to_record
from surefoot.data.rows import Conversation, PlainText, Record, Row
from surefoot.data.shapes import detect
from surefoot.data.sources import Source, open_source
from surefoot.errors import UserError
from surefoot.runfolder import RunFolder


@dataclass(frozen=True)
class Texts:
    """The rows' own words."""

    name: str = ""
    """What the rows' places begin with."""
    whole: dict[str, str] = field(default_factory=dict)
    """Place → the row's text."""
    short: dict[str, str] = field(default_factory=dict)
    """Place → what was asked last and what was to be answered."""
    note: str | None = None
    """Why there are none."""


def read_texts(folder: RunFolder, wanted: set[str], *, files_only: bool = False) -> Texts:
    """The text of the rows at `wanted`, if the run's data are where they were, and what they were. `files_only`:
    do not go to a hub for them."""
    try:
        about = folder.config()
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
    if files_only and not Path(name).expanduser().exists():
        return Texts(name, note=f"{name} is not here, so its rows' text is not shown")
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
    for row in source.rows():
        if len(texts.whole) == len(wanted):
            break
        if isinstance(row, RowError):
            continue
        if shape is None:
            # As in training, the first row that is right tells what shape all have.
            with suppress(UserError):  # shaped by a function in Python
                found = detect(row, columns, text_field)
                to_record(row, found)
                shape = found
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
