"""Any known row shape → a record.

1. `detect` looks at the first row, and at the user's `columns`, and names the shape.
2. `to_record` turns each row of that shape into a `Conversation`, a `PlainText` or `TokenSpans`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from surefoot.data.messages import as_list, normalise, parsed, problem, tool_schemas, type_name
from surefoot.data.rows import Conversation, PlainText, Record, Row, TokenSpans
from surefoot.data.shapes import CANDIDATES, Format, columns_of, detect
from surefoot.errors import nearest

__all__ = ["Format", "detect", "to_record"]

IGNORED_LABEL = -100
LARGEST_ID = 2**31 - 1
"""What an int32 holds."""
_MEDIA_COLUMNS = ("image", "images", "videos", "audios")


def to_record(row: Row, format: Format) -> Record:
    """What `row` says, read by `format`. Raises UserError when it is of another shape or cannot be right."""
    kind = next(iter(format.columns))
    for column in _MEDIA_COLUMNS if kind not in _WITHOUT_MEDIA else ():
        value = row.data.get(column)
        if value is not None and not (isinstance(value, str | list) and not value):
            raise problem(
                row,
                "images or sound",
                f"column '{column}' is filled, but vision and audio models are not supported yet. Take the "
                f"row "
                f"or the column out.",
            )
    return _READERS[kind](row, format)


def _value(row: Row, format: Format, canonical: str) -> Any:
    """A required field's value."""
    column = format.columns[canonical]
    if column not in row.data:
        raise problem(
            row,
            "another shape",
            f"mixed shapes: this data began as {format.describe()}, and the row has {columns_of(row)}, no "
            f"{column!r}."
            f"{nearest(column, row.data)} Put rows of another shape into a file of their own.",
        )
    return row.data[column]


def _optional(row: Row, format: Format, canonical: str) -> tuple[str, Any]:
    """An optional field's column and value; a row may have one that the first row lacked."""
    if canonical in format.columns:
        column = format.columns[canonical]
        return column, row.data.get(column)
    candidates = CANDIDATES.get(canonical, (canonical,))
    for column in candidates:
        if row.data.get(column) is not None:
            return column, row.data[column]
    return candidates[0], None


def _string(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise problem(row, "wrong type", f"column '{column}' is {type_name(value)}. Write a string.")
    return value


def _conversation(row: Row, format: Format) -> Conversation:
    canonical = next(iter(format.columns))
    value = _value(row, format, canonical)
    messages, supervised = normalise(row, format.columns[canonical], value)
    return _with_context(row, format, messages, supervised)


def _with_context(
    row: Row, format: Format, messages: list[dict[str, Any]], supervised: tuple[int, ...]
) -> Conversation:
    """The conversation with the row's own system prompt, tools and template variables."""
    system = _system(row, format)
    if system and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise problem(
                row,
                "two system prompts",
                "column 'system' and the first message are two different system prompts. Keep one of them.",
            )
    elif system:
        messages = [{"role": "system", "content": system}, *messages]
        supervised = tuple(index + 1 for index in supervised)
    column, tools = _optional(row, format, "tools")
    tools = tool_schemas(row, column, tools)
    column, kwargs = _optional(row, format, "chat_template_kwargs")
    kwargs = parsed(row, f"column '{column}'", kwargs) if kwargs else {}
    if not isinstance(kwargs, Mapping):
        raise problem(
            row,
            "wrong type",
            f"column '{column}' is {type_name(kwargs)}. Write {{\"enable_thinking\": false}}.",
        )
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return Conversation(messages, supervised, tools, kwargs)


def _system(row: Row, format: Format) -> str:
    column, system = _optional(row, format, "system")
    return _string(row, column, system) if system is not None else ""


def _prompt_completion(row: Row, format: Format) -> PlainText | Conversation:
    prompt, completion = _value(row, format, "prompt"), _value(row, format, "completion")
    names = format.columns["prompt"], format.columns["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt and not completion:
            raise problem(
                row, "empty", f"columns '{names[0]}' and '{names[1]}' are both empty. Take the row out."
            )
        for canonical in ("system", "tools"):
            column, value = _optional(row, format, canonical)
            if value is not None and value != "" and value != "[]" and value != []:
                raise problem(
                    row,
                    "wrong columns",
                    f"column '{column}' needs a chat template, and rows of prompt and completion strings are "
                    f"learned without one. Take the column out, or make each row a chat: "
                    f'--columns \'{{"user": "{names[0]}", "assistant": "{names[1]}"}}\'.',
                )
        return PlainText(prompt, completion)
    if isinstance(prompt, str) or isinstance(completion, str) or prompt is None or completion is None:
        raise problem(
            row,
            "wrong type",
            f"column '{names[0]}' is {type_name(prompt)} and column '{names[1]}' is {type_name(completion)}. "
            f"Write both as strings, or both as lists of messages.",
        )
    before, _ = normalise(row, names[0], prompt)
    after, learned = normalise(row, names[1], completion)
    return _with_context(row, format, before + after, tuple(len(before) + index for index in learned))


def _turns(row: Row, format: Format) -> Conversation:
    """Instruction and output, or question and answer, with what may stand before them."""
    if "instruction" in format.columns:
        asked, answered = "instruction", "output"
    else:
        asked, answered = "user", "assistant"
    user = _string(row, format.columns[asked], _value(row, format, asked))
    answer = _string(row, format.columns[answered], _value(row, format, answered))
    column, more = _optional(row, format, "input") if asked == "instruction" else ("", None)
    if more is not None and _string(row, column, more):
        user = f"{user}\n\n{more}" if user else more
    system = _system(row, format)
    messages = [{"role": "system", "content": system}] if system else []
    column, history = _optional(row, format, "history")
    for index, turn in enumerate(as_list(row, f"column '{column}'", history)):
        what = f"{column}[{index}]"
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise problem(
                row, "wrong type", f'{what} is {type_name(turn)}. Write a pair: ["question", "answer"].'
            )
        messages.append({"role": "user", "content": _string(row, what, turn[0])})
        messages.append({"role": "assistant", "content": _string(row, what, turn[1])})
    messages.append({"role": "user", "content": user})
    messages.append({"role": "assistant", "content": answer})
    supervised = tuple(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return Conversation(messages, supervised)


def _text(row: Row, format: Format) -> PlainText:
    return PlainText("", _string(row, format.columns["text"], _value(row, format, "text")))


def _token_spans(row: Row, format: Format) -> TokenSpans:
    name = format.columns["input_ids"]
    ids = _integers(row, name, _value(row, format, "input_ids"))
    if not ids:
        raise problem(row, "no tokens", f"column '{name}' has no tokens. Take the row out.")
    wrong = next((token for token in (min(ids), max(ids)) if not 0 <= token <= LARGEST_ID), None)
    if wrong is not None:
        raise problem(
            row,
            "wrong token id",
            f"column '{name}' has the token id {wrong}. Ids are from 0 to what the model has embeddings for.",
        )
    supervised = [True] * len(ids)
    column, labels = _optional(row, format, "labels")
    if labels is not None:
        labels = _integers(row, column, labels, len(ids), name)
        for index, (label, token) in enumerate(zip(labels, ids, strict=True)):
            if label not in (token, IGNORED_LABEL):
                raise problem(
                    row,
                    "wrong labels",
                    f"{column}[{index}] is {label}, but {name}[{index}] is {token}. Write each label as its "
                    f"own "
                    f"token's id (not shifted by one), or {IGNORED_LABEL} where nothing is to be learned.",
                )
        supervised = [label != IGNORED_LABEL for label in labels]
    for canonical in ("completion_mask", "assistant_masks"):
        column, mask = _optional(row, format, canonical)
        if mask is not None:
            bits = _mask(row, column, mask, len(ids), name)
            supervised = [old and bool(bit) for old, bit in zip(supervised, bits, strict=True)]
    column, attended = _optional(row, format, "attention_mask")
    if attended is not None:  # padding is no part of the row
        bits = _mask(row, column, attended, len(ids), name)
        supervised = [value for value, bit in zip(supervised, bits, strict=True) if bit]
        ids = [token for token, bit in zip(ids, bits, strict=True) if bit]
    return TokenSpans(ids, supervised)


def _integers(row: Row, column: str, value: Any, length: int | None = None, of: str = "") -> list[int]:
    items = as_list(row, f"column '{column}'", value)
    if set(map(type, items)) - {int}:
        index = next(n for n, item in enumerate(items) if type(item) is not int)
        raise problem(row, "wrong type", f"{column}[{index}] is {items[index]!r}. Write whole numbers only.")
    if length is not None and len(items) != length:
        raise problem(
            row,
            "wrong lengths",
            f"column '{column}' has {len(items)} values, and '{of}' has {length}. Write one for each token.",
        )
    return items


def _mask(row: Row, column: str, value: Any, length: int, of: str) -> list[int]:
    items = as_list(row, f"column '{column}'", value)
    bits = _integers(row, column, [int(item) if type(item) is bool else item for item in items], length, of)
    if set(bits) - {0, 1}:
        raise problem(
            row,
            "wrong mask",
            f"column '{column}' holds {max(bits, key=abs)}. Write 1 for a token that counts, 0 else.",
        )
    return bits


_READERS: Mapping[str, Callable[[Row, Format], Record]] = {
    "messages": _conversation,
    "conversations": _conversation,
    "prompt": _prompt_completion,
    "instruction": _turns,
    "user": _turns,
    "text": _text,
    "input_ids": _token_spans,
}
_WITHOUT_MEDIA = ("text", "input_ids")
