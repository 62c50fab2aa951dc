"""Operators and methods of chat templates, each with a bound on what it may make (template_meter.py).

What a bound can be told of beforehand is refused before it is made; the rest is small because its input is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedFormatter
from markupsafe import EscapeFormatter

from surefoot.data.template_meter import BITS, CONTAINERS, FEW, Meter, TooMuch

Guard = Callable[..., Any]
"""(meter, what the method or filter is called with): raises TooMuch, or returns None."""
SLOW = 1 << 16
"""Characters for filters that take long over each."""
ESCAPED = 6
"""A character becomes at most so many when HTML is escaped."""
_DIRECTIVE = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?[hlL]?(.)", re.DOTALL)


def binary(meter: Meter, op: str, left: Any, right: Any) -> Any:
    """`left op right`. Raises TooMuch before it makes what is too large."""
    if op == "+":
        if isinstance(left, str) and isinstance(right, str):
            meter.room((len(left) + len(right)) * (1 if type(left) is type(right) is str else ESCAPED))
            made = left + right
            meter.made(len(made))
            return made
        if isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
            weight = meter.weight(left) + meter.weight(right)
            meter.made(weight)
            made = left + right  # type: ignore[operator]
            meter.know(made, weight)
            return made
    elif op == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, *CONTAINERS)) and isinstance(times, int):
                meter.room(max(meter.weight(many), 1) * times)
        if isinstance(left, int) and isinstance(right, int):
            _bits(left.bit_length() + right.bit_length())
    elif op == "**":
        if isinstance(left, int) and isinstance(right, int):
            _bits(left.bit_length() * abs(right))
    elif op == "%" and isinstance(left, str):
        percent(meter, left, right)
    meter.tick()
    return meter.checked(_OPERATORS[op](left, right))


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


def _bits(bits: int) -> None:
    if bits > BITS:
        raise TooMuch(f"made a number of more than {BITS} bits")


def percent(meter: Meter, text: str, values: Any) -> None:
    """`text % values`."""
    given = values if isinstance(values, tuple) else (values,)
    widest = max((abs(value) for value in given if isinstance(value, int)), default=0)
    total, count = len(text), 0
    for width, precision, kind in _DIRECTIVE.findall(text):
        for number in (width, precision):
            if number:
                total += widest if number == "*" else _number(meter, number)
        count += kind != "%"
    # Each value is written once, but by name, when it is written as often as it is named.
    weight = meter.weight(values)
    total += weight * (count if isinstance(values, Mapping) else 1)
    escaped = hasattr(text, "__html__") or any(hasattr(value, "__html__") for value in given)
    meter.room(total * (ESCAPED if escaped else 1))


def _number(meter: Meter, digits: str) -> int:
    number = int(digits[:18])  # no machine has room for the rest
    meter.argument(number)
    return number


class BoundedFormatter(SandboxedFormatter):
    """`str.format` with a bound on the widths and on the whole."""

    def __init__(self, environment: Any, meter: Meter, **options: Any) -> None:
        super().__init__(environment, **options)
        self._meter = meter
        self._total = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        for digits in re.findall(r"\d+", format_spec):
            _number(self._meter, digits)
        self._meter.room(self._meter.weight(value))
        made = super().format_field(value, format_spec)
        self._meter.made(len(made))
        self._total += len(made)
        self._meter.room(self._total)
        return made


class BoundedEscapeFormatter(BoundedFormatter, EscapeFormatter):
    """The same for `Markup`."""


# Methods ---------------------------------------------------------------------------------------------------


def call_method(meter: Meter, method: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A method of a text, number or container, with its bound. Raises SecurityError for one that is not listed."""
    name = getattr(method, "__name__", "")
    known = next((METHODS[kind] for kind in type(owner).__mro__ if kind in METHODS), {})
    if name not in known:
        kind = type(owner).__name__
        raise SecurityError(f"{kind}.{name} is not to be had in a chat template")
    guard = known[name]
    meter.tick()
    if guard is not None:
        found = guard(meter, owner, *args, **kwargs)
        if found is not None:
            return meter.checked(found())
    return meter.checked(method(*args, **kwargs))


def bound_width(meter: Meter, text: Any, width: Any = 80, *_: Any) -> None:
    if isinstance(width, int):
        meter.argument(width)


def _tabs(meter: Meter, text: Any, tabsize: Any = 8) -> None:
    if isinstance(tabsize, int):
        meter.room(len(text) + text.count("\t") * tabsize)


def bound_replace(meter: Meter, text: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old, new = (str(part) if not isinstance(part, str) else part for part in (text, old, new))
    found = text.count(old)
    if isinstance(count, int) and count >= 0:
        found = min(found, count)
    meter.room((len(text) + found * len(new)) * (ESCAPED if hasattr(text, "__html__") else 1))


def _split(meter: Meter, text: Any, sep: Any = None, maxsplit: Any = -1) -> Callable[[], Any] | None:
    """Split further than it may be, the text is refused."""
    if len(text) > FEW and (not isinstance(maxsplit, int) or not 0 <= maxsplit <= FEW):
        meter.room(len(text.split(sep, FEW + 1)), FEW)
    return None


def bound_strip(meter: Meter, text: Any, chars: Any = None) -> None:
    """Each character at the ends is looked for among `chars`."""
    if isinstance(chars, str):
        meter.room(meter.weight(text) * len(chars), 1 << 28)


def _lines(meter: Meter, text: Any, keepends: Any = False) -> None:
    if len(text) > FEW:
        meter.room(sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")), FEW)


def _joined(meter: Meter, text: Any, parts: Any) -> Callable[[], Any]:
    """What is joined is counted first, and a generator only run once."""
    parts = few(meter, parts)
    meter.room(len(text) * len(parts) + meter.weight(parts))
    return lambda: text.join(parts)


def few(meter: Meter, values: Any) -> list[Any]:
    """The values of an iterable as a list."""
    if isinstance(values, str):
        meter.room(len(values), FEW)
    found = list(islice(values, FEW + 1))
    meter.room(len(found), FEW)
    return found


_TEXT = """capitalize casefold count encode endswith find index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix
    rfind rindex rpartition startswith swapcase upper"""
_PADDED = dict.fromkeys(("center", "ljust", "rjust", "zfill"), bound_width)
_NUMBER = "as_integer_ratio bit_length conjugate hex is_integer"
METHODS: dict[type, dict[str, Guard | None]] = {
    str: {
        **dict.fromkeys(_TEXT.split()),
        **_PADDED,
        **dict.fromkeys(("strip", "lstrip", "rstrip"), bound_strip),
        "expandtabs": _tabs,
        "replace": bound_replace,
        "split": _split,
        "rsplit": _split,
        "splitlines": _lines,
        "join": _joined,
        "striptags": lambda meter, text: meter.room(len(text), SLOW),
        "unescape": lambda meter, text: meter.room(len(text), SLOW),
        "title": lambda meter, text: meter.room(len(text), FEW),
    },
    bytes: {"decode": None},
    int: dict.fromkeys(_NUMBER.split()),
    float: dict.fromkeys(_NUMBER.split()),
    list: dict.fromkeys(("count", "index", "copy")),
    tuple: dict.fromkeys(("count", "index")),
    dict: dict.fromkeys(("get", "items", "keys", "values", "copy")),
    **{kind: {} for kind in CONTAINERS if kind not in (list, tuple, dict)},
}
"""What may be called on a value, and its bound; None needs none, for it makes no more than there was."""
OWNERS = tuple(METHODS)
SHRINKING = frozenset(
    (*_TEXT.split(), "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "title")
) - {"encode"}
"""Methods of a text that make no more of it than there is: of a short one, they need not be counted."""
