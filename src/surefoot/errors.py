"""What goes wrong by the user's hand, said so that it can be mended."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong. The message names where, what, and the fix; no traceback is shown."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar of `known`, as a half sentence to append to an error; empty when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


class StoppedError(RuntimeError):
    """A run cannot go on, by no fault of what the user gave. The message says why, and what is left."""
