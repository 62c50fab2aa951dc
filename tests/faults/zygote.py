"""The command line, or a function, in processes of their own, as often as a test likes: forked from one that has
all imported.

`python -m tests.faults.zygote` reads a JSON request a line from stdin and answers each with the child's pid; when a
child has ended, with its pid and status. It computes nothing itself and has one thread, so that it can be forked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from importlib import import_module
from typing import Any

IMPORTED = (
    *("surefoot.train.trainer", "surefoot.commands.train", "surefoot.data.sources", "peft"),
    *("transformers.models.llama.modeling_llama", "numpy.ma", "numpy.ctypeslib", "tests.tiny"),
)


def serve() -> None:
    """Fork a child for every request, and report its end."""
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        import_module(name)
    # Hundreds of regular expressions, which each child would compile for itself to load a model.
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    wake, asleep = os.pipe()
    os.set_blocking(asleep, False)
    signal.set_wakeup_fd(asleep)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer({"ready": os.getpid()})
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
            report_ended()
        if 0 in ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                answer({"pid": fork(json.loads(line))})


def report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        answer({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if request.get("group"):
            os.setpgid(0, 0)
        os.chdir(request["cwd"])
        os.environ.update(request.get("env", {}))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        for fd, name in ((1, request["stdout"]), (2, request["stderr"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
        if request.get("patch"):
            module, _, function = request["patch"].partition(":")
            getattr(import_module(module), function)(**request.get("patch_args", {}))
        if request.get("call"):
            module, _, function = request["call"].partition(":")
            status = getattr(import_module(module), function)(*request["args"]) or 0
        else:
            from surefoot.cli import main

            status = main(request["argv"])
    except SystemExit as done:  # argparse's --help
        status = int(done.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def answer(content: dict[str, Any]) -> None:
    os.write(int(os.environ["ZYGOTE_ANSWERS"]), json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    serve()
