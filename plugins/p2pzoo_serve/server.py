"""Run the application on a socket until Ctrl-C. Imports uvicorn."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from p2pzoo.utils.errors import UserError
from p2pzoo_serve.guard import Guard
from p2pzoo_serve.interface import MAX_HEADERS
from p2pzoo_serve.worker import Worker

HEADER_SECONDS = 10.0  # in which all headers of a request must be there
MAX_CONNECTIONS = 500  # below the usual limit of 1024 open files


class HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but a connection that sends no whole request for a while is closed."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_timer()
        elif self.header_timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cancel_timer(self) -> None:
        if self.header_timer:
            self.header_timer.cancel()
            self.header_timer = None


class Server(uvicorn.Server):
    """Stops the running translation when it shuts down, so that Ctrl-C waits for nothing."""

    def __init__(self, app: Guard, worker: Worker) -> None:
        config = uvicorn.Config(
            app, http=HeaderTimeoutProtocol, ws="none", loop="asyncio", lifespan="off", log_level="error",
            access_log=False, server_header=False, proxy_headers=False, limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADERS, timeout_graceful_shutdown=1,
        )  # fmt: skip
        super().__init__(config)
        self.worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.worker.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0: any free one. Raises UserError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: no such address: give one of this machine, such as 127.0.0.1") from None
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # here: a second server on this port is refused now, not when it starts
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {reason}: choose another --port, or 0 for a free one") from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches the socket.

    >>> with listen("127.0.0.1", 0) as listener:
    ...     is_loopback(listener)
    True
    """
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
