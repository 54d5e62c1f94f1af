"""What the HTTP side and the model side of the server exchange. Imports the standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000
MAX_SEED = 2**63 - 1
MAX_HEADERS = 16 * 1024  # bytes of the address and the headers of a request


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


@dataclass(frozen=True)
class Options:
    """What the query of a request asks for; the options of `p2pzoo translate` of the same names.

    >>> Options.parse([("seed", "7"), ("samples", "2")], max_samples=8)
    Options(samples=2, seed=7, interval=None)
    """

    samples: int | None = None
    seed: int = 0
    interval: float | None = None

    @classmethod
    def parse(cls, query: Sequence[tuple[str, str]], max_samples: int) -> Options:
        """Raises Refusal for unknown, repeated and impossible values."""
        given = dict(query)
        if unknown := given.keys() - {"samples", "seed", "interval"}:
            raise Refusal(400, f"unknown option {min(unknown)!r:.60} in the query: use samples, seed or interval")
        if len(given) < len(query):
            raise Refusal(400, "an option is twice in the query: give it once")
        samples = _parse_integer("samples", given["samples"], 2, max_samples) if "samples" in given else None
        seed = _parse_integer("seed", given.get("seed", "0"), 0, MAX_SEED)
        interval = _parse_level(given["interval"]) if "interval" in given else None
        if samples and interval is not None:
            raise Refusal(400, "samples and interval give different files: ask for one of them")
        return cls(samples, seed, interval)


def _parse_integer(name: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise Refusal(400, f"{name} is a whole number from {low} to {high}, not {text!r:.60}")
    return int(text)


def _parse_level(text: str) -> float:
    if not re.fullmatch(r"0?\.[0-9]{1,15}", text) or not float(text):
        raise Refusal(400, f"interval is a level between 0 and 1, such as 0.8, not {text!r:.60}")
    return float(text)


@dataclass(frozen=True)
class Answer:
    """A file to send, and the name that a client may give it."""

    path: Path
    media_type: str
    name: str
    skipped: int = 0
