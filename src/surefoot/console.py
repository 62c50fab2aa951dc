"""The terminal that everything is printed on: a text stands there as it is.

Paths, rows, answers and messages of libraries are the user's words, and `[bold]` or `:cat:` in them are no markup.
Style is given by `Text`.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def text_console(*, stderr: bool = False, width: int | None = None, **more: Any) -> Console:
    """On stdout or stderr, `width` columns wide or as wide as the terminal; `more` of rich's own options.

    A column of text in a bar needs `markup=False` besides: it does not ask its console.
    """
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, **more)
