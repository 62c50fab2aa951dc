"""A conversation → the text that a model's chat template makes of it, without trusting the template.

The text is that of `tokenizer.apply_chat_template(..., tokenize=False)`; a template that takes too long, makes too
much or asks for what it must not have is refused (template_environment.py, template_meter.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from surefoot.data.strictjson import printable
from surefoot.data.template_environment import Environment
from surefoot.data.template_meter import LONG, TooMuch
from surefoot.errors import UserError

LONGEST = 1 << 17
"""Characters of a template."""
LONGEST_FILE = 1 << 20
"""Bytes of a template's file."""
SAID = 300
"""Characters of a template's own message that are repeated."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, the standard one first; templates read the first or the second."""
OWN = ("messages", "tools", "add_generation_prompt")
"""Variables that are the conversation itself, and no row's to set."""


class TemplateFault(UserError):  # noqa: N818
    """No conversation can be rendered with the template: it is no row's error, and there is no row to skip."""


class ChatTemplate:
    """One template, compiled."""

    def __init__(self, source: str) -> None:
        """Raises TooMuch, TemplateSyntaxError, RecursionError and what else the compiler raises."""
        if len(source) > LONGEST:
            raise TooMuch(f"is longer than {LONGEST:,} characters")
        self._environment = Environment()
        self._template = self._environment.from_string(source)
        self._lock = Lock()

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises TooMuch, and whatever the template raises."""
        meter = self._environment.meter
        with self._lock:
            meter.start()
            parts, total = [], 0
            for part in self._template.root_render_func(self._template.new_context(variables)):
                parts.append(part)
                total += len(part)
                if len(part) > LONG:
                    meter.made(len(part))
                    meter.tick()
            meter.room(total)
            return "".join(parts)


@lru_cache(maxsize=16)
def compiled(source: str) -> ChatTemplate:
    """The template; compiled once."""
    return ChatTemplate(source)


def usable(source: str, path: str) -> str:
    """`source`, which `chat_template_path` has named. Raises TemplateFault when no conversation can be rendered."""
    _compiled(source, f"chat_template_path: {path}: the template", "mend it, or name another")
    return source


def _compiled(source: str, told: str, fix: str) -> ChatTemplate:
    try:
        return compiled(source)
    except TooMuch as error:
        said = f"{error}, so it is refused"
    except TemplateSyntaxError as error:
        said = f"is not valid Jinja: line {error.lineno}: {_short(error)}"
    except RecursionError:
        said = "is nested too deeply"
    except MemoryError:
        said = "takes more memory than there is"
    except Exception as error:
        said = f"cannot be compiled: {_short(error)}"
    raise TemplateFault(f"{told} {said}; {fix}")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    where: str,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text that the tokenizer's chat template makes of `messages`.

    `variables`: what else the template is told, such as `enable_thinking`. Raises UserError, beginning with
    `where`, when the template refuses the conversation or costs too much; TemplateFault when no conversation can be
    rendered with it.
    """
    variables = variables or {}
    for name in OWN:
        if name in variables:
            raise UserError(
                f"{where}: chat_template_kwargs: '{name}' is the row's own column, not a variable"
            )
    place = f"{tokenizer.name_or_path}: " if tokenizer.name_or_path else ""
    try:
        source = tokenizer.get_chat_template(tools=tools)  # type: ignore[arg-type]
        template = _compiled(source, f"{place}the model's chat template", "chat_template_path takes another")
        return template.render(
            {
                "documents": None,
                **tokenizer.special_tokens_map,
                **(_plain(variables) if variables else {}),
                "messages": [_message(message) for message in messages],
                "tools": None if tools is None else _plain(tools),
                "add_generation_prompt": add_generation_prompt,
            }
        )
    except TemplateFault:
        raise
    except TooMuch as error:
        said = f"{error}, so it is refused; chat_template_path takes another"
    except RecursionError:
        said = "calls itself without end; chat_template_path takes another"
    except MemoryError:
        said = "took more memory than there is; chat_template_path takes another"
    except Exception as error:
        said = f"refuses this conversation: {_short(error)}"
    raise UserError(f"{where}: the model's chat template {said}")


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return printable(text if len(text) <= SAID else f"{text[:SAID]}…")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what the message says, its reasoning under the names that templates know."""
    found = {
        key if type(key) is str else _plain(key): value if type(value) is str else _plain(value)
        for key, value in message.items()
        if value is not None
    }
    for name in REASONING:
        if name in found:
            return {"thinking": found[name], **found, "reasoning_content": found[name]}
    return found


def _plain(value: Any) -> Any:
    """A copy of plain values only: an object could have methods that do something."""
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain.__str__(value) if plain is str else plain.__pos__(value)  # type: ignore[union-attr]
    return f"<{kind.__name__}>"
