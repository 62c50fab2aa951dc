"""surefoot ui: the pages of runs, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from surefoot.commands.beside import PARENT
from surefoot.commands.options import parse
from surefoot.errors import UserError
from surefoot.validation import checked

PORT = 6116
NEXT_PORTS = 20
"""Tried after it, when it is in use and none was named."""
LOOPBACK = "127.0.0.1"
TOKEN = "SUREFOOT_UI_TOKEN"
RUNS = "runs"
BEHIND = 10
"""Niceness: where a run wants the machine too, the run has it."""


class UiOptions(BaseModel):
    """Options of `surefoot ui`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    port: int | None = Field(None, ge=0, le=65535)
    """Where to listen; 0: any free port. Default: 6116, or the next that is free."""
    browser: bool = True
    """Open the page in a browser; --no-browser: only print the link."""
    host: str = LOOPBACK
    """Address to listen at. Others than 127.0.0.1 can be reached from elsewhere: see --expose."""
    expose: bool = False
    """Allow a --host that others can reach. They still need the token, which must be in SUREFOOT_UI_TOKEN."""
    names: list[str] = Field(default_factory=list)
    """With --expose: names or addresses by which the page is asked for, besides --host."""


def run(argv: list[str]) -> int:
    """Parse, listen, print the link, serve until interrupted."""
    parsed = parse(
        UiOptions,
        ["--browser=false" if word in ("--no-browser", "--no_browser") else word for word in argv],
        prog="surefoot ui",
        about="Runs as pages in the browser: the list of runs, a run live, runs compared, every opened step. Reads "
        "run folders only; nothing leaves this machine.",
        positional={
            "folders": ("*", "runs, or folders that have runs in them (default: runs, or this folder)")
        },
    )
    options = checked(UiOptions, parsed.options)
    folders = _folders(parsed.positional["folders"])
    try:
        import uvicorn

        from surefoot.dashboard.guard import access, kept_token
        from surefoot.dashboard.library import Library
        from surefoot.dashboard.server import make_app
    except ModuleNotFoundError as error:
        raise UserError(f"surefoot ui needs {error.name}. Run: pip install 'surefoot[ui]'") from None
    given = _chosen_token(options)
    listener = _listen(options)
    port = listener.getsockname()[1]
    names = [name for name in (options.host, *options.names) if name not in ("", "0.0.0.0", "::")]
    rights = access(port, given or kept_token(), names)
    app = make_app(Library(folders, rights.secret), rights)
    shown = names[0] if names else LOOPBACK
    link = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/#token={quote(rights.token, safe='')}"
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
        server_header=False,
    )
    server = uvicorn.Server(config)
    _announce(link, as_json=parsed.json)
    if options.browser and not parsed.json and sys.stdout.isatty():
        threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(BEHIND)
    if os.environ.get(PARENT):
        threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


def _folders(named: Sequence[str]) -> list[Path]:
    folders = [Path(name).expanduser() for name in named] or [Path(RUNS) if Path(RUNS).is_dir() else Path()]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder. Name runs, or folders that have runs in them")
    return folders


def _chosen_token(options: UiOptions) -> str | None:
    """The token that the user chose, if so. Raises UserError for what would let others in."""
    from surefoot.dashboard.guard import LEAST_TOKEN, LONGEST_TOKEN

    token = os.environ.get(TOKEN)
    if token is not None and len(token) < LEAST_TOKEN:
        raise UserError(
            f"{TOKEN} is too short to keep anybody out: {len(token)} characters, at least {LEAST_TOKEN}. Make one: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    if token is not None and (len(token) > LONGEST_TOKEN or not token.isascii()):
        raise UserError(f"{TOKEN} cannot be a token: at most {LONGEST_TOKEN} characters, all of them ASCII")
    if options.host in (LOOPBACK, "localhost", "::1"):
        return token
    if not options.expose or token is None:
        raise UserError(
            f"--host {options.host}: others could reach the page, without encryption. An SSH tunnel is safer: "
            f"ssh -L {PORT}:{LOOPBACK}:{PORT} MACHINE. If you mean it, give --expose, and a token in {TOKEN}"
        )
    return token


def _listen(options: UiOptions) -> socket.socket:
    wanted = [options.port] if options.port is not None else list(range(PORT, PORT + NEXT_PORTS))
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    why = ""
    for port in wanted:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            why = error.strerror or str(error)
            continue
        return listener
    raise UserError(
        f"--port {wanted[0]}: cannot listen at {options.host} ({why}). Name another port, or 0 for any"
    )


def _announce(link: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": link, "pid": os.getpid()}), flush=True)
    else:
        print(f"surefoot ui: {link}\n(the link is yours alone: it has the key. Ctrl-C ends it)", flush=True)


def _end_with_parent(server: object) -> None:
    """Wait until the run that started this server is gone: its end of standard input closes with it."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    server.should_exit = True  # pyright: ignore[reportAttributeAccessIssue]
