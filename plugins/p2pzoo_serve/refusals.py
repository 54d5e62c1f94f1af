"""What a request is refused for, and the limits of requests. Imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000


class Refusal(Exception):
    """A request that is not answered as it asks: the status of the answer, and one line for the client.

    >>> Refusal(503, "busy", {"Retry-After": "5"}).status
    503
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class ClientGone(Exception):
    """The client closed its connection: nobody reads an answer."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how slow it may be.

    megabytes   of the body
    megapixels  of one image. The images of a request, each times its draws, have at most `WORK` times as many
    files       of a batch
    samples     draws of one image
    uploads     bodies that are received at the same time
    patience    seconds in which a client may send or take nothing
    rate        bytes per second that a body has at least, after `patience`
    """

    megabytes: float = 20
    megapixels: float = 16
    files: int = 100
    samples: int = 8
    uploads: int = 32
    patience: float = 15
    rate: float = 16 * 1024

    WORK = 4

    @property
    def bytes(self) -> int:
        return int(self.megabytes * MEGABYTE)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * MEGAPIXEL)
