"""What the columns of a row are called, and which shape of data they make.

`detect` looks at the first row and at the user's `columns`. A row that fits several shapes is of the first in
`SHAPES`; columns that the user names go before that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from surefoot.data.messages import problem
from surefoot.data.rows import Row
from surefoot.errors import UserError, nearest

_MEANINGS = {
    "instruction": "user",
    "input": "user",
    "output": "assistant",
    "history": "earlier turns",
    "text": "completion",
}


@dataclass(frozen=True)
class Format:
    """How the columns of some data are to be read."""

    name: str
    columns: Mapping[str, str]
    """Canonical field → the user's column. The first key says which reader takes the rows."""

    def describe(self) -> str:
        """One line, such as `question/answer (question -> user, answer -> assistant)`."""
        parts = []
        for canonical, column in self.columns.items():
            meaning = _MEANINGS.get(canonical, canonical)
            parts.append(column if column == meaning else f"{column} -> {meaning}")
        return f"{self.name} ({', '.join(parts)})"


@dataclass(frozen=True)
class _Shape:
    required: Mapping[str, str]
    """Canonical field → the column it has unless the user says otherwise."""
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Canonical field → the columns it may have."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other canonical names that the user may give for a field of this shape."""

    @property
    def name(self) -> str:
        return "/".join(self.required.values())


CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "input": ("input", "context"),
}
"""The columns that an optional field may have, where its own name is not the only one."""


def _optional(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: CANDIDATES.get(name, (name,)) for name in names}


_CHAT = _optional("system", "tools", "chat_template_kwargs")
_TURNS = _optional("system", "history")
_INSTRUCTION = _optional("input", "system", "history")


def _pair(user: str, assistant: str) -> _Shape:
    """A question and its answer, under one of the pairs of names in use."""
    aliases: dict[str, str] = dict.fromkeys(("question", "query", "prompt", "input"), "user")
    aliases |= dict.fromkeys(("answer", "response", "completion", "output"), "assistant")
    # prompt and completion together are the plain shape, which stands before and so wins
    return _Shape({"user": user, "assistant": assistant}, _TURNS, aliases)


SHAPES: tuple[_Shape, ...] = (
    _Shape({"messages": "messages"}, _CHAT),
    _Shape({"conversations": "conversations"}, _CHAT),
    _Shape({"prompt": "prompt", "completion": "completion"}, _CHAT),
    _Shape({"instruction": "instruction", "output": "output"}, _INSTRUCTION),
    _Shape({"instruction": "instruction", "output": "response"}, _INSTRUCTION),
    _pair("question", "answer"),
    _pair("query", "response"),
    _pair("prompt", "response"),
    _pair("question", "response"),
    _pair("input", "output"),
    _pair("user", "assistant"),
    _Shape({"text": "text"}),
    _Shape(
        {"input_ids": "input_ids"},
        _optional("labels", "completion_mask", "assistant_masks", "attention_mask"),
    ),
)
"""Every known shape, in the order in which they are tried."""

CANONICAL = tuple(dict.fromkeys(name for s in SHAPES for name in (*s.required, *s.optional, *s.aliases)))
"""The names that the user may map to a column."""


def detect(row: Row, columns: Mapping[str, str] | None = None, text_field: str = "text") -> Format:
    """The shape of `row`, and so of the data that begins with it.

    `columns` maps canonical names to the data's own; `text_field` is the column of plain text. Raises
    UserError for an unknown shape, an unknown canonical name, or a column that the row lacks.
    """
    chosen = dict(columns or {})
    if text_field != "text":
        chosen.setdefault("text", text_field)
    for canonical, column in chosen.items():
        if canonical not in CANONICAL:
            raise UserError(
                f"columns: unknown field {canonical!r}.{nearest(canonical, CANONICAL)} Known fields are "
                f"{', '.join(CANONICAL)}."
            )
        if column not in row.data:
            raise problem(
                row,
                "no such column",
                f"no column {column!r}, which is to be read as {canonical}.{nearest(column, row.data)} The "
                f"row "
                f"has {columns_of(row)}.",
            )
    filled = {column for column, value in row.data.items() if value is not None}
    for present in (filled, set(row.data)):  # Arrow fills the columns of other shapes with null
        found = [match for shape in SHAPES if (match := _match(shape, chosen, present))]
        if found:
            return max(found, key=lambda match: match[0])[1]  # the first of equals
    if chosen:
        raise problem(
            row,
            "unknown shape",
            f"the columns {', '.join(f'{name}={column}' for name, column in chosen.items())} make no known "
            f"shape "
            f"together. Known shapes are {_shapes()}. The row has {columns_of(row)}.",
        )
    raise problem(
        row,
        "unknown shape",
        f"unknown shape: the row has {columns_of(row)}. Known shapes are {_shapes()}. Rename the columns, "
        f"or say "
        f'what they are: --columns \'{{"user": "COLUMN", "assistant": "COLUMN"}}\'.',
    )


def _match(shape: _Shape, chosen: Mapping[str, str], present: set[str]) -> tuple[int, Format] | None:
    """How many required fields the user named, and the format, if the shape takes all that was named."""
    named = {}
    for name, column in chosen.items():
        canonical = name if name in shape.required or name in shape.optional else shape.aliases.get(name)
        if canonical is None or canonical in named:
            return None
        named[canonical] = column
    required = {canonical: named.get(canonical, column) for canonical, column in shape.required.items()}
    if not present.issuperset(required.values()):
        return None
    optional = {}
    for canonical, candidates in shape.optional.items():
        candidates = (named[canonical],) if canonical in named else candidates
        for column in candidates:
            if column in present and column not in required.values():
                optional[canonical] = column
                break
    count = sum(canonical in named for canonical in required)
    name = "/".join(required.values()) if "user" in required else shape.name
    return count, Format(name, {**required, **optional})


def columns_of(row: Row) -> str:
    return f"the columns {', '.join(map(str, row.data))}" if row.data else "no columns"


def _shapes() -> str:
    return "; ".join(" + ".join(shape.required.values()) for shape in SHAPES)
