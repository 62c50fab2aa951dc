"""The words of the data path: a row comes in, a record is what it says, an example is what a model learns from.

1. `Row`: one record of the user's data and where it stands.
2. `Conversation`, `PlainText` or `TokenSpans`: what the row says, whatever columns it said it with.
3. `Example`: prompt ids and completion ids, as the model sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the user's data."""

    data: Mapping[str, Any]
    where: str
    """`file:line` for files with lines, `file[index]` or `dataset[index]` otherwise."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as messages, in the form that chat templates take."""

    messages: list[dict[str, Any]]
    """Each has `role` (system, developer, user, assistant, tool) and, as the row has them, `content` (str),
    `reasoning_content`, `tool_calls` (arguments as an object, never a JSON string), `name`, `tool_call_id`."""
    supervised: tuple[int, ...]
    """Indices of the assistant messages to learn, ascending."""
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Extra variables for the chat template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """A row without a chat template: the completion follows the prompt as it stands."""

    prompt: str
    """Empty for a row of plain text, which is learned whole."""
    completion: str


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """A row that is already token ids; `supervised[i]` says whether token i is learned."""

    input_ids: list[int]
    supervised: list[bool]


Record: TypeAlias = Conversation | PlainText | TokenSpans


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Example:
    """What the model sees at inference, and what it should have answered."""

    prompt_ids: np.ndarray
    """int32 [P]. May be empty: then the first completion token is input only, as nothing predicts it."""
    completion_ids: np.ndarray
    """int32 [C], ending with the turn-ending token."""
    row: int
    """Index of the row in the data, from 0."""
    where: str
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def targets(self) -> int:
        """How many tokens are supervised: each completion token that has a token before it."""
        return len(self.completion_ids) - (len(self.prompt_ids) == 0)
