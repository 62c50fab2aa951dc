"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def draw(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart; the first to the left, the others to the right. Raises ValueError for a row of
    another length."""
    lines = [list(head), *map(list, rows)]
    if any(len(line) != len(head) for line in lines):
        raise ValueError("every row of a table has as many cells as its head")
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def span(values: Sequence[float], digits: int = 0) -> str:
    """The median, and in brackets the lowest and highest if there are several: `310 (290-322)`."""
    middle = f"{median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def median(values: Sequence[float]) -> float:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no median")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
