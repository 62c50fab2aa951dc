"""JSON as the tokenizer can bear it: standard `json`, with every fault placed at a line and column."""

from __future__ import annotations

import json
import re
from typing import Any

# An escaped backslash or a proper pair is stepped over, so that group 1 is a surrogate standing alone.
_LONE_SURROGATE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


class JsonError(ValueError):
    """`text` is not JSON that can be used: `reason`, at `line` and `column` (both from 1)."""

    def __init__(self, reason: str, line: int = 1, column: int = 1, surrogate_at: int | None = None) -> None:
        """`surrogate_at`: where a lone surrogate stands, in characters from 0; None for any other fault."""
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.column = column
        self.surrogate_at = surrogate_at

    @property
    def kind(self) -> str:
        """The fault in a few words."""
        return "not usable JSON" if self.surrogate_at is None else "lone surrogate"


def parse(text: str) -> Any:
    """The value that `text` writes. Raises JsonError, also for lone surrogates and for too deep a nesting."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno, error.colno) from None
    except RecursionError:
        raise JsonError("brackets are nested too deeply") from None
    except ValueError as error:  # an integer of more than 4300 digits
        raise JsonError(str(error)) from None
    if "\\ud" in text or "\\uD" in text:
        for match in _LONE_SURROGATE.finditer(text):
            if match.group(1):
                at = match.start()
                line = text.count("\n", 0, at) + 1
                column = at - text.rfind("\n", 0, at)
                reason = (
                    f"{match.group(1)} is half of a character (a lone surrogate), which UTF-8 cannot hold"
                )
                raise JsonError(reason, line, column, at)
    return value


def beginning(value: Any, limit: int = 120) -> str:
    """The first `limit` characters of a value as JSON, or of a string as it stands, for an error message."""
    if isinstance(value, str):
        text = value
    else:
        text = ""
        try:
            for piece in _ENCODER.iterencode(value):  # no further than is shown: a row may be huge, or deep
                text += piece
                if len(text) > limit:
                    break
        except (TypeError, ValueError, RecursionError):
            text = text or object.__repr__(value)
    return printable(text[:limit]) + ("…" if len(text) > limit else "")


def printable(text: str) -> str:
    """`text` with escapes for all that a terminal would not show as a character, line ends too."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
