"""surefoot chat: talk to a model or to a run's result."""

from __future__ import annotations

import json
import sys

from pydantic import BaseModel, ConfigDict, Field

from surefoot.commands.options import parse, plainly_said
from surefoot.errors import UserError
from surefoot.validation import checked


class ChatOptions(BaseModel):
    """Options of `surefoot chat`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    prompt: str | None = None
    """Ask this, print the answer, and leave."""
    system: str | None = None
    """System message."""
    max_new_tokens: int = Field(256, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0)
    """0: the likeliest answer; above: sample."""
    use_cpu: bool = False
    """Use the CPU even when there is a GPU."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you say so; a model cannot turn it on."""


def run(argv: list[str]) -> int:
    """Parse, talk."""
    parsed = parse(
        ChatOptions,
        argv,
        prog="surefoot chat",
        about="Talk to a model. An empty line or Ctrl-D ends it; /new starts over.",
        positional={"model": ("?", "a run folder, or whatever names a model")},
    )
    name = parsed.positional["model"]
    if name is None:
        raise UserError("surefoot chat MODEL: which model?")
    options = checked(ChatOptions, parsed.options)
    if parsed.json and options.prompt is None:
        raise UserError("--json needs --prompt")
    with plainly_said():
        return _talk(name, options, as_json=parsed.json)


def _talk(name: str, options: ChatOptions, *, as_json: bool) -> int:
    from surefoot.commands.answers import Answerer

    answerer = Answerer(name, options.use_cpu, options.trust_remote_code)
    opening = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        messages = [*opening, {"role": "user", "content": options.prompt}]
        if as_json:
            text = answerer.reply(messages, options.max_new_tokens, options.temperature)
            print(json.dumps({"prompt": options.prompt, "answer": text}, ensure_ascii=False))
        else:
            answerer.reply(messages, options.max_new_tokens, options.temperature, aloud=True)
        return 0
    messages = list(opening)
    while (text := _ask()) is not None:
        if text == "/new" or not answerer.tokenizer.chat_template:
            messages = list(opening)
        if text == "/new":
            continue
        messages.append({"role": "user", "content": text})
        said = answerer.reply(messages, options.max_new_tokens, options.temperature, aloud=True)
        messages.append({"role": "assistant", "content": said})
    return 0


def _ask() -> str | None:
    try:
        text = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return text or None
