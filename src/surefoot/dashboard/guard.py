"""Who may ask: before anything else is done with a request, and on every route.

1. The Host header is one of ours (else 421): a name that somebody else's DNS points here opens nothing.
2. The Origin, where a browser names one, is ours (else 403), and so is the page that asks.
3. Everything under /api but the exchange of the token needs the session's cookie (else 401).

The token stands in the fragment of the link that is printed, which browsers send to nobody; the page exchanges it
for a cookie that scripts cannot read and other sites' requests do not carry. The cookie is made of the token: a
page lives on when the server starts anew.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from surefoot.errors import UserError
from surefoot.regular import text_of

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
SESSION = "/api/session"
TOKEN_BYTES = 32
LEAST_TOKEN = 43
"""Characters of a token that somebody chose: as many as 256 random bits have in base64."""
LONGEST_TOKEN = 1024


@dataclass(frozen=True)
class Access:
    """Who may ask what of this server."""

    hosts: frozenset[str]
    """Values of the Host header, with the port."""
    token: str
    cookie: str
    """The cookie's name. It has the port: cookies are shared by all ports of a host."""

    @property
    def session(self) -> str:
        """The cookie's value."""
        return hmac.new(self.token.encode(), b"surefoot ui session", hashlib.sha256).hexdigest()

    @property
    def secret(self) -> bytes:
        """What the ids of runs are made with."""
        return hmac.new(self.token.encode(), b"surefoot ui runs", hashlib.sha256).digest()

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes the same time whatever it is."""
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self.token.encode())

    def is_session(self, given: str) -> bool:
        """Whether this is the cookie's value."""
        return hmac.compare_digest(given.encode(), self.session.encode())


def access(port: int, token: str, names: Iterable[str] = ()) -> Access:
    """For a server at this port that is reached under the loopback names, and these besides."""
    own = (f"[{name}]" if ":" in name else name for name in names)
    known = ("127.0.0.1", "localhost", "[::1]", *(name.lower() for name in own))
    hosts = {f"{name}:{port}" for name in known} | ({*known} if port == 80 else set())
    return Access(frozenset(hosts), token, f"surefoot-ui-{port}")


def kept_token() -> str:
    """The user's own token, made at first use and kept where nobody else can read it, so that links and open pages
    outlive the server. Where it cannot be kept, one for this time."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = home / "surefoot" / "ui-token"
    with suppress(OSError, UserError):
        about = path.lstat()
        mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
        if stat.S_ISREG(about.st_mode) and not about.st_mode & 0o077 and mine:
            token = text_of(path, LONGEST_TOKEN, follow=False).strip()
            if len(token) >= LEAST_TOKEN:
                return token
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # no token, or not ours alone to read
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(token)
    return token


class Guard:
    """ASGI middleware that lets through what `Access` allows, and puts the same headers on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self.refused(scope)
        if refused is not None:
            status, why = refused
            await JSONResponse({"error": why}, status)(scope, receive, answer)
            return
        try:
            await self.app(scope, receive, answer)
        except Exception:
            if not begun:
                await JSONResponse({"error": "this should not have happened"}, 500)(scope, receive, answer)
            raise

    def refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, if this request is not let through."""
        headers, path = Headers(scope=scope), scope["path"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.access.hosts:
            return 421, "this server is not asked under that name"
        origins = headers.getlist("origin")
        if any(origin.lower() not in {f"http://{host}" for host in self.access.hosts} for origin in origins):
            return 403, "another site's page asks"
        site = headers.get("sec-fetch-site", "none")
        if path.startswith("/api") and site not in ("same-origin", "none"):
            return 403, "another site's page asks"
        if scope["method"] not in ("GET", "HEAD") and not origins:
            return 403, "it is not said which page asks"
        if path.startswith("/api") and path != SESSION and not self._known(headers):
            return 401, "no session: open the link that surefoot ui prints"
        return None

    def _known(self, headers: Headers) -> bool:
        # Not http.cookies: it gives up on all when another program of this machine has set an odd one.
        pairs = (pair.partition("=") for header in headers.getlist("cookie") for pair in header.split(";"))
        return any(
            name.strip() == self.access.cookie and self.access.is_session(value.strip())
            for name, _, value in pairs
        )
