"""A class of options → flags, help and values, by pydantic-settings."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from pydantic import BaseModel
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from surefoot.errors import UserError, nearest
from surefoot.names import SHORT

ANSWERS = ("true", "false", "yes", "no", "on", "off", "1", "0")
"""What may follow a flag that is a switch."""


@dataclass(frozen=True)
class Parsed:
    """What the user typed."""

    options: dict[str, Any]
    """Only those given; text still, to be validated by the class."""
    positional: dict[str, Any]
    json: bool


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def parse(
    options: type[BaseModel],
    argv: Sequence[str],
    *,
    prog: str,
    about: str,
    positional: dict[str, tuple[str, str]] | None = None,
    also_known: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Parsed:
    """Read `argv` by the fields of `options`.

    Args:
        options: a pydantic model; its fields are the flags, their docstrings the help.
        positional: name → (nargs, help) of arguments without a flag.
        also_known: flags that are no fields but that the class knows how to answer.
        whole: lists of texts that may hold commas: each use of the flag adds one.

    Raises UserError for what cannot be parsed, with the nearest name for an unknown flag.
    """
    parser = _Parser(prog=prog, description=about, allow_abbrev=False, formatter_class=_Help)
    for name, (nargs, text) in (positional or {}).items():
        parser.add_argument(name, nargs=nargs, help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    bases: Any = (options, BaseSettings)
    settings: Any = type(
        "Flags",
        bases,
        {
            "model_config": SettingsConfigDict(
                extra="forbid",
                cli_avoid_json=True,
                cli_hide_none_type=True,
                use_attribute_docstrings=False,  # the fields have theirs, and looking for more is slow
            )
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = CliSettingsSource(settings, root_parser=parser, cli_prog_name=prog)
    argv, answered = _normalised(argv, options, also_known, whole)
    found = vars(parser.parse_args(argv))
    own = {name: found.pop(name) for name in (positional or {})}
    as_json = found.pop("json")
    try:
        values = source(parsed_args={k: v for k, v in found.items() if v is not None})()
    except SettingsError as error:
        name = str(error).partition(":")[0].rpartition(" ")[2]
        form = "a=b,c=d" if "dict" in str(options.model_fields[name].annotation) else "a,b"
        raise UserError(f"--{name}: this cannot be read; write it as {form}, or as JSON") from None
    return Parsed({**values, **answered}, own, as_json)


class _Help(argparse.HelpFormatter):
    """Names of values are short: --learning_rate FLOAT."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r" \(default(: None| factory: \w+)\)$", "", super()._expand_help(action))

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        own = [a for a in actions if not a.option_strings]
        words = " ".join(f"[{a.dest.upper()}]" if a.nargs in ("?", "*") else a.dest.upper() for a in own)
        super().add_usage(f"{self._prog} {words} [--option value ...]", actions, groups, prefix)


def _normalised(
    argv: Sequence[str], options: type[BaseModel], also_known: Sequence[str], whole: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """--learning-rate as --learning_rate, a bare --flag as --flag true, unknown names refused."""
    fields = options.model_fields
    out: list[str] = []
    answered: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word in ("--help", "--json"):
            out.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = SHORT.get(name, name) if name not in fields else name
        if name not in fields and name not in also_known:
            raise UserError(f"unknown option '--{name}'.{nearest(name, fields)}")
        if not equals:
            kind = fields[name].annotation if name in fields else None
            switch = kind is bool or bool in get_args(kind)
            bare = not words or words[0].startswith("--")
            if bare and kind is not None and not switch:
                raise UserError(f"--{name} needs a value")
            # What follows a switch and is no answer to it is the recipe or the model.
            other = str not in get_args(kind) or words[0].lower().endswith((".yaml", ".yml"))
            bare = bare or (switch and other and words[0].lower() not in ANSWERS)
            value = "true" if bare else words.pop(0)
        if name in fields:
            out += [f"--{name}={json.dumps([value]) if name in whole else value}"]
        else:
            answered[name] = value
    return out, answered


def _note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, FutureWarning | DeprecationWarning | PendingDeprecationWarning):
        print(f"note: {message}", file=sys.stderr)


@contextmanager
def plainly_said() -> Iterator[None]:
    """While open: warnings in a line each, and no bars or chatter of the model library.

    What one library has to say to another about names that go away is no concern of the user's.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    show = warnings.showwarning
    warnings.showwarning = _note
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
