"""Jinja's filters for chat templates, each with a bound on what it may make (template_meter.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from surefoot.data.template_meter import CONTAINERS, FEW, LONG, MOST, Meter
from surefoot.data.template_operations import (
    ESCAPED,
    SLOW,
    Guard,
    bound_replace,
    bound_strip,
    bound_width,
    few,
    percent,
)


def filters(meter: Meter, known: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters, each with its bound."""
    return {
        name: filter_ if name in FREE else _bounded(meter, filter_, FILTERS.get(name))
        for name, filter_ in known.items()
    }


def _bounded(meter: Meter, filter_: Callable[..., Any], guard: Guard | None) -> Callable[..., Any]:
    first = int(getattr(filter_, "jinja_pass_arg", None) is not None)  # Jinja's own first argument
    each, shrinking = guard is _portions, filter_.__name__ in _SHRINKING

    @wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if shrinking and len(args) == first + 1 and type(args[first]) is str and len(args[first]) < LONG:
            return filter_(*args, **kwargs)
        meter.tick()
        if guard is not None:
            changed = guard(meter, *args[first:], **kwargs)
            if changed is not None:
                args = (*args[:first], changed, *args[first + 1 :])
        found = filter_(*args, **kwargs)
        return _checked_each(meter, found) if each else meter.checked(found)

    return bounded


def _checked_each(meter: Meter, values: Any) -> Any:
    for value in values:
        meter.tick()
        yield meter.checked(value)


def _at_most(most: int) -> Guard:
    """The filter takes so many characters."""

    def guard(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
        meter.room(meter.weight(value), most)
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, (str, *CONTAINERS)):
                meter.room(meter.weight(argument), 1024)
            elif isinstance(argument, int):
                meter.argument(abs(argument), SLOW)

    return guard


def _iterated(meter: Meter, value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str):
        meter.room(len(value), FEW)


def _listed(meter: Meter, value: Any, *_: Any, **__: Any) -> list[Any] | None:
    """The whole is needed at once: a generator's values are counted before that is done."""
    _iterated(meter, value)
    if isinstance(value, (str, *CONTAINERS)) or not hasattr(value, "__iter__") or hasattr(value, "__len__"):
        return None
    found = few(meter, value)
    meter.made(meter.weight(found))
    return found


def _join(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> list[Any] | None:
    parts = few(meter, value)
    meter.room((meter.weight(d) * len(parts) + meter.weight(parts)) * ESCAPED, ESCAPED * MOST)
    return parts


def _indent(meter: Meter, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> None:
    meter.room(meter.weight(s), FEW)
    lines = str(s).count("\n") + 1
    meter.room(lines * (len(width) if isinstance(width, str) else abs(int(width))))


def _portions(meter: Meter, value: Any, count: Any, fill_with: Any = None) -> None:
    _iterated(meter, value)
    if isinstance(count, int):
        meter.argument(abs(count), 100_000)
        meter.room(abs(count) * meter.weight(fill_with))


def _precision(meter: Meter, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int):
        meter.argument(abs(precision), 300)


def _sum(meter: Meter, iterable: Any, attribute: Any = None, start: Any = 0) -> list[Any]:
    found = few(meter, iterable)
    if not isinstance(start, int | float):
        meter.room(len(found), 1_000)
        meter.room((meter.weight(found) + meter.weight(start)) * max(len(found), 1))
    return found


def _percent_filter(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
    percent(meter, str(value), kwargs or args)


FILTERS: dict[str, Guard] = {
    **dict.fromkeys(("wordwrap", "urlize", "striptags", "pprint", "xmlattr", "truncate"), _at_most(SLOW)),
    **dict.fromkeys(("title", "wordcount", "urlencode"), _at_most(FEW)),
    **dict.fromkeys(("map", "select", "reject", "selectattr", "rejectattr", "reverse"), _iterated),
    **dict.fromkeys(("list", "sort", "unique", "groupby", "min", "max", "dictsort"), _listed),
    **dict.fromkeys(("batch", "slice"), _portions),
    "trim": bound_strip,
    "center": bound_width,
    "replace": bound_replace,
    "join": _join,
    "indent": _indent,
    "round": _precision,
    "sum": _sum,
    "format": _percent_filter,
}
"""Filters that could make more than they are given, or take long over it."""
FREE = frozenset(
    ("length", "count", "default", "d", "first", "last", "random", "items", "attr", "abs", "safe")
)
"""Filters that make nothing and look at one thing only."""
_SHRINKING = ("do_trim", "do_upper", "do_lower", "do_capitalize", "soft_str")
"""Filters that make no more of a text than there is: of a short one, they need not be counted."""


def to_json(meter: Meter) -> Callable[..., str]:
    """The `tojson` of chat templates: as `json.dumps`, without escaping HTML."""

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        meter.tick()
        if isinstance(indent, str | int):
            meter.argument(len(indent) if isinstance(indent, str) else indent, 64)
        for separator in separators or ():
            meter.argument(len(separator), 64)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None and separators is None:
            return meter.checked(encoder.encode(x))
        total, parts = 0, []
        for part in encoder.iterencode(x):
            parts.append(part)
            total += len(part)
            meter.room(total)
            meter.tick()
        meter.made(total)
        return "".join(parts)

    return tojson
