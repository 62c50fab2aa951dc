"""Numbers and shapes as characters: what the terminal has instead of a canvas.

Texts of tokens, rows and models are not to be trusted: `visible` and `printable` leave nothing in them that a
terminal would obey.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from rich.cells import cell_len, set_cell_size

BLOCKS = "▁▂▃▄▅▆▇█"
"""Heights, in eighths of a line."""
PARTS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
"""Widths, in eighths of a character."""
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
"""Unicode categories of characters that draw nothing themselves, or do something else instead."""
MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}


def visible(token: str, most: int | None = None) -> str:
    """A token's text in one line where everything is seen: "·Sac", "⏎", "\\x1b[2J".

    At most `most` cells wide, with "…" for what is cut off.
    """
    text = "".join(MARKS.get(character) or _seen(character) for character in token) or "(empty)"
    if unicodedata.combining(text[0]):
        text = f"◌{text}"
    return text if most is None else clipped(text, most)


def printable(text: str) -> str:
    """Prose as it is but for what a terminal would obey; spaces stay, other white space becomes one."""
    return "".join(c if c == " " else " " if c in "\n\t" else _seen(c) for c in text)


def _seen(character: str) -> str:
    if unicodedata.category(character) not in UNSEEN or character == " ":
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def clipped(text: str, most: int) -> str:
    """`text` in at most `most` cells."""
    return text if cell_len(text) <= most else set_cell_size(text, most - 1).rstrip() + "…"


def number(value: float, digits: int = 4) -> str:
    """With so many significant digits and a true minus: 0.001234, −1.2e−07, 49,152."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    large = 10**digits <= round(abs(value)) < 1e9
    text = f"{value:,.0f}" if large else f"{value:.{digits}g}"
    return text.replace("-", "−").replace("e+", "e")


def fixed(value: float, digits: int = 3) -> str:
    """As `number`, zeros at the end kept, so that columns line up: 1.50, 0.300."""
    if not math.isfinite(value) or round(abs(value)) >= 10**digits or 0 < abs(value) < 1e-4 or value == 0:
        return number(value, digits)
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """As `fixed`, with a plus for what is positive."""
    return f"+{fixed(value, digits)}" if value > 0 else fixed(value, digits)


def probability(p: float) -> str:
    """Three digits of p, or of 1 − p where p is nearly 1: 0.0188, 0.99307, 1.66e−05."""
    if 0.99 <= p < 1:
        return f"{p:.{min(9, 2 - math.floor(math.log10(1 - p)))}f}"
    return f"{p:.2e}".replace("-", "−") if 0 < p < 1e-3 else fixed(p)


def share(part: float) -> str:
    """A part of a whole in percent: 41 %, 0.30 %, < 0.01 %."""
    percent = 100 * part
    if not math.isfinite(percent):
        return "NaN"
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99 <= percent < 100:
        return "> 99.99 %" if percent > 99.99 else f"{percent:.2f} %"
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:#.2g} %"


def bar(value: float, whole: float, width: int) -> str:
    """A bar of value/whole of `width` characters; something is seen of every value above 0."""
    if not (whole > 0 and value > 0) or not math.isfinite(value / whole):
        return ""
    eighths = max(1, round(min(1.0, value / whole) * width * 8))
    return "█" * (eighths // 8) + PARTS[eighths % 8]


def height(value: float, whole: float) -> str:
    """One block, as high as value/whole."""
    if not math.isfinite(value):
        return "?"
    return BLOCKS[min(7, max(0, math.floor(value / whole * 8)))] if whole > 0 else BLOCKS[0]


def strip(values: Sequence[float], largest: float, width: int) -> str:
    """Signed values as a line: of every stretch the entry largest in size; 0 stands at half height, ▄.

    Heights go by the square root, so that one large entry does not flatten all others.
    """
    stretches = min(width, len(values))
    cuts = [round(n * len(values) / stretches) for n in range(stretches + 1)] if stretches else []
    chosen = [max(values[a:b], key=abs) for a, b in pairwise(cuts)]
    return "".join(_around(value / largest if largest > 0 else 0.0) for value in chosen)


def _around(value: float) -> str:
    """One of seven heights for −1 to 1."""
    if not math.isfinite(value):
        return "?"
    return BLOCKS[round(3 + 3 * math.copysign(math.sqrt(min(1.0, abs(value))), value))]


def rebinned(counts: Sequence[int], most: int) -> list[int]:
    """Counts added up by neighbours, into at most `most` bins."""
    group = math.ceil(len(counts) / most)
    return [sum(counts[start : start + group]) for start in range(0, len(counts), group)]


def plot(
    points: Sequence[tuple[float, float, str]], width: int, lines: int
) -> tuple[list[str], tuple[float, float, float, float]]:
    """(x, y, character) → lines of text, and the least x, most x, least y, most y. Later points cover earlier."""
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    box = (min(xs), max(xs), min(ys), max(ys))
    grid = [[" "] * width for _ in range(lines)]
    for x, y, character in points:
        column = round((x - box[0]) / ((box[1] - box[0]) or 1) * (width - 1))
        line = round((box[3] - y) / ((box[3] - box[2]) or 1) * (lines - 1))
        grid[line][column] = character
    return ["".join(row).rstrip() for row in grid], box
