"""Jinja's immutable sandbox, in which every operation is counted (template_meter.py).

1. The source is parsed by Jinja, and compiled by its own code generator with a few words changed: a loop's body
   begins with a look at the clock; concatenation, slices, comparisons and new lists go through the environment.
   Nothing is computed while compiling.
2. Operators, calls, filters and tests go through the environment anyway, as Jinja's sandbox has it.
3. What is written is counted as it is written.

What templates find there is what transformers gives them: the same options, `tojson`, `raise_exception`,
`strftime_now`, `{% generation %}`, `{% break %}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial, reduce, wraps
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup, escape

from surefoot.data.template_compiler import Generator
from surefoot.data.template_filters import filters, to_json
from surefoot.data.template_meter import CONTAINERS, LONG, MOST, Meter, TooMuch
from surefoot.data.template_operations import (
    ESCAPED,
    OWNERS,
    SHRINKING,
    BoundedEscapeFormatter,
    BoundedFormatter,
    binary,
    call_method,
)

_SLOW_TESTS = ("in", "lower", "upper", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan")
_SLOW_TESTS += ("ge", ">=", "<", "lt", "lessthan", "<=", "le")
_OF_DICT = frozenset(dir(dict))
_TEXT = {str}
_SMALL = 1 << 62


class Environment(ImmutableSandboxedEnvironment):
    """Where one chat template is compiled and rendered; not by two threads at once."""

    intercepted_binops = frozenset(("+", "-", "*", "**", "%", "//"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], optimized=False
        )
        self.code_generator_class = Generator
        self.meter = Meter()
        self.tick = self.meter.tick
        self.filters = filters(self.meter, {**self.filters, "tojson": to_json(self.meter)})
        for name in _SLOW_TESTS:
            self.tests[name] = _ticking(self.meter, self.tests[name])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        self.globals["lipsum"] = _lipsum(self.globals["lipsum"])

    # What the compiled template calls ----------------------------------------------------------------------

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if type(left) is type(right) is int:
            if operator == "%":
                return left % right
            if operator == "-" and -_SMALL < (made := left - right) < _SMALL:
                return made
        return binary(self.meter, operator, left, right)

    def added(self, parts: tuple[Any, ...]) -> Any:
        """`a + b + c`."""
        if {*map(type, parts)} == _TEXT:
            return self.concat(parts) if sum(map(len, parts)) > LONG else "".join(parts)
        return reduce(partial(binary, self.meter, "+"), parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter = __self.meter
        if isinstance(__obj, BuiltinMethodType | MethodType):
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, OWNERS):
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
                if type(owner) is str and len(owner) < LONG and not kwargs and __obj.__name__ in SHRINKING:
                    for argument in args:
                        if type(argument) is not str or len(argument) > LONG:
                            break
                    else:
                        return __obj(*args)
                return call_method(meter, __obj, owner, args, kwargs)
        meter.tick()
        total = 0
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, (str, *CONTAINERS)):
                total += meter.weight(argument)
        meter.room(total)
        return meter.checked(super().call(__context, __obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        # As Jinja, but for what is asked for most often without raising AttributeError first.
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in SHRINKING:
            return getattr(obj, attribute)
        if kind is LoopContext and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in (int, bool):
                return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and type(argument) is str and argument in obj:
            return obj[argument]
        if isinstance(argument, tuple):  # hashed anew each time
            self.meter.tick()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__
        formatter = (
            BoundedEscapeFormatter(self, self.meter, escape=text.escape)
            if isinstance(text, Markup)
            else BoundedFormatter(self, self.meter)
        )
        by_map = value.__name__ == "format_map"

        @wraps(value)
        def bounded(*args: Any, **kwargs: Any) -> str:
            if by_map:
                (kwargs,), args = args, ()
            return type(text)(formatter.vformat(text, args, kwargs))

        return bounded

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What a macro, block or `{% set %}` block has written, as one text."""
        found, total = [], 0
        for part in parts:
            found.append(part)
            total += len(part)
            if total > LONG:
                self.meter.room(total)
                self.meter.tick()
        if total > LONG:
            self.meter.made(total)
        return "".join(found)

    def joined(self, context: Context, parts: tuple[Any, ...]) -> str:
        """`a ~ b`."""
        if context.eval_ctx.autoescape:
            self.meter.room(sum(self.meter.weight(part) for part in parts) * ESCAPED, ESCAPED * MOST)
            return self.meter.checked(markup_join(parts))
        return self.concat(self.text(part) for part in parts)

    def text(self, value: Any) -> str:
        """A value as it is written."""
        if type(value) is str:
            return value
        self.meter.tick()
        return self.meter.checked(str(value))

    def escaped(self, context: Context, value: Any) -> str:
        """A value as it is written where `{% autoescape %}` may be on."""
        self.meter.tick()
        return self.meter.checked(escape(value) if context.eval_ctx.autoescape else str(value))

    def sliced(self, obj: Any, start: Any, stop: Any, step: Any) -> Any:
        """`obj[start:stop:step]`."""
        found = obj[start:stop:step]
        if len(found) > LONG:
            self.meter.made(len(found))
        return found

    def new(self, value: Any) -> Any:
        """A list, tuple or dict that the template has just made."""
        return self.meter.checked(value)


def _ticking(meter: Meter, test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def ticking(*args: Any, **kwargs: Any) -> Any:
        meter.tick()
        return test(*args, **kwargs)

    return ticking


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 1024:
        raise TooMuch("has a date format of more than 1,024 characters")
    return datetime.now().strftime(format)


def _lipsum(lipsum: Callable[..., str]) -> Callable[..., str]:
    def bounded(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
        if n * max > 10_000:
            raise TooMuch("made more than 10,000 words at once")
        return lipsum(n, html, min, max)

    return bounded


class _Dict:
    """`dict(...)`, without the class and what hangs on it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """`namespace(...)`: no name in it begins with an underscore, and it does not write what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _Namespace._check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, as {name!r} does")


class GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, around what the assistant says. Here it only writes it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return caller()
