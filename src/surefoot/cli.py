"""The command line: choose the command, run it, turn errors into exit statuses.

0 done, 2 the user's input is wrong (one message, no traceback), 129/130/143 interrupted and saved, 1 anything else.
Nothing heavy is imported here, so that `surefoot --help` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import surefoot
from surefoot.errors import StoppedError, UserError, nearest

COMMANDS = {
    "train": "fine-tune a model on rows of what it should answer",
    "preview": "show how rows become tokens: what is prompt, what is learned, what is dropped",
    "evaluate": "loss, perplexity, token accuracy and exact answers on held-out rows",
    "chat": "talk to a model or to a run's result",
    "check": "compare training's fast path with the plain reference, on your model and rows",
    "explain": "one update, opened: prediction, error, backprop, optimizer, and the prediction after",
    "compare": "answers before and after, side by side",
    "ui": "runs as pages in the browser: live, compared, every opened step",
    "report": "a run or an opened step as one HTML file, or as text",
    "plan": "memory and speed of a recipe on so many GPUs, before renting them",
    "checkpoints": "what a run has saved: step, loss, size, why it is kept",
    "verify": "read every checkpoint of a run, compare the hashes, say what can be gone on from",
    "worst": "the rows that cost a run most, rose, or were never learned",
}


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    _open_closed()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"surefoot {surefoot.__version__}")
        return 0
    name, rest = argv[0], list(argv[1:])
    try:
        if name not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UserError(f"unknown command '{name}'.{nearest(name, COMMANDS)} Commands: {known}")
        status = import_module(f"surefoot.commands.{name}").run(rest)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _failed(str(error), 2, error)
    except StoppedError as error:
        return _failed(str(error), 1, error)
    except BrokenPipeError:
        if name == "train":  # which outlives its readers: this is another pipe, and the run is not done
            raise
        # The reader of our output is gone (`| head`); say nothing, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


def _failed(message: str, status: int, error: Exception | None = None) -> int:
    """Say why, unless another process does; the status stays what it is when nobody can hear it."""
    if type(error).__name__ in ("Elsewhere", "StoppedElsewhere"):  # of `ranks`, which would import torch
        return status
    try:
        print(f"surefoot: {message}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return status


def _open_closed() -> None:
    """Nothing that is opened later becomes stdin, stdout or stderr because that was closed (`>&-`)."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: surefoot COMMAND ...",
        "",
        "Supervised fine-tuning of language models: exact, fast, and seen.",
        "",
        *(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()),
        "",
        "surefoot COMMAND --help tells a command's options; every command takes --json.",
    ]
    return "\n".join(lines)
