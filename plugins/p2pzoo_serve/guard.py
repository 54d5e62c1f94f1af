"""Who may ask: Host, Origin and token of each request, the headers of each answer. Plain ASGI, no library.

A page of another site that the user's browser shows must not reach a server on loopback: its requests have that site's
Origin, and after DNS rebinding its name as Host. Elsewhere each request needs the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from p2pzoo_serve.interface import MAX_HEADERS, ClientGone, Limits, Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

WITHOUT_TOKEN = ("/", "/page.css", "/page.js", "/health", "/openapi.json")  # what they say is in the source
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
DISCARD_SECONDS = 1.0  # a refused client gets its answer only after it has sent its body: a short one is awaited


@dataclass(frozen=True)
class Access:
    """Who may ask.

    hosts    values of Host that are answered; None: all, since the token is needed
    origins  of POST requests besides the one of Host, such as that of a reverse proxy
    token    that each request needs, or None
    """

    hosts: frozenset[str] | None
    origins: frozenset[str] = frozenset()
    token: str | None = None

    def check(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises Refusal.

        >>> access = Access(frozenset({"localhost:8000"}))
        >>> access.check("GET", "/", [(b"host", b"localhost:8000")])
        >>> access.check("GET", "/", [(b"host", b"evil.example")])
        Traceback (most recent call last):
        p2pzoo_serve.interface.Refusal: unknown Host 'evil.example': open the address that `p2pzoo serve` prints
        """
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if self.hosts is not None and (len(hosts) != 1 or hosts[0] not in self.hosts):
            name = f"{hosts[0]!r:.80}" if hosts else "''"
            raise Refusal(421, f"unknown Host {name}: open the address that `p2pzoo serve` prints")
        if method not in ("GET", "HEAD"):
            self._check_origin(headers, hosts[0] if hosts else "")
        if self.token is not None and path not in WITHOUT_TOKEN:
            self._check_token(headers)

    def _check_origin(self, headers: list[tuple[bytes, bytes]], host: str) -> None:
        sites = [value.lower() for name, value in headers if name == b"sec-fetch-site"]
        for origin in [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]:
            if origin not in self.origins and not (host and host_of_origin(origin) == host):
                raise Refusal(403, f"Origin {origin!r:.80} is another site: only the page of this server may ask")
            sites = []  # the browser may see a reverse proxy as another site
        if any(site not in (b"same-origin", b"none") for site in sites):
            raise Refusal(403, "the request comes from another site: only the page of this server may ask")

    def _check_token(self, headers: list[tuple[bytes, bytes]]) -> None:
        assert self.token is not None
        expected = b"bearer " + self.token.encode()
        given = [value for name, value in headers if name == b"authorization"]
        found = given[0][:7].lower() + given[0][7:] if len(given) == 1 else b""
        if not hmac.compare_digest(found, expected):
            raise Refusal(
                401,
                "no valid token: open the address with #token=… that `p2pzoo serve` prints, or send the header "
                "Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )


def host_of_origin(origin: str) -> str:
    """The host and port of an origin, "" if it is none.

    >>> host_of_origin("https://zoo.example:8443"), host_of_origin("null")
    ('zoo.example:8443', '')
    """
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


class Guard:
    """ASGI middleware: checks `Access`, answers refusals as JSON, adds `HEADERS`, ends what nobody takes."""

    def __init__(self, app: App, access: Access, limits: Limits) -> None:
        self.app, self.access, self.limits = app, access, limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.limits)
        try:
            _check_length(scope)
            self.access.check(scope["method"], scope["path"], scope["headers"])
            await self.app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            if not exchange.has_begun:
                await exchange.refuse(refusal)
        except ClientGone:
            if not exchange.has_begun:
                await exchange.refuse(Refusal(499, "the client is gone"))
        except RuntimeError:  # Starlette raises it in place of a ClientGone from `send`, as the answer has begun
            if not exchange.is_client_gone:
                raise
        except asyncio.CancelledError:  # by uvicorn, which stops and waits no longer: for an upload, for example
            if not exchange.has_begun:
                exchange.has_unread_body = False
                await exchange.refuse(Refusal(503, "the server stops; ask again when it runs"))


def _check_length(scope: MutableMapping[str, Any]) -> None:
    """Raises Refusal for long headers: uvicorn refuses only those that do not arrive at once."""
    fields = [
        scope.get("raw_path") or b"",
        scope["query_string"],
        *(part for pair in scope["headers"] for part in pair),
    ]
    if sum(map(len, fields)) > MAX_HEADERS:
        raise Refusal(431, f"the headers and the address have more than {MAX_HEADERS:,} bytes: send fewer")


async def answer_refusal(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": refusal.message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limits: Limits) -> None:
        names = {name for name, _ in scope["headers"]}
        self.has_unread_body = bool(names & {b"content-length", b"transfer-encoding"})
        self._receive, self._send, self.limits = receive, send, limits
        self.received = 0
        self.has_begun = self.is_client_gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self.has_unread_body = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            if self.has_unread_body and not await self._discard_body():
                own.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *own]}
        try:
            await asyncio.wait_for(self._send(message), self.limits.patience)
        except TimeoutError:
            self.is_client_gone = True
            raise ClientGone from None

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal. A client that does not take it either is left alone."""
        with contextlib.suppress(ClientGone):
            await answer_refusal(refusal, self.send)

    async def _discard_body(self) -> bool:
        """Read the rest of a body of allowed size for a moment; whether it ended."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while self.has_unread_body and self.received <= self.limits.bytes:
                    await self.receive()
        except TimeoutError:
            pass
        return not self.has_unread_body
