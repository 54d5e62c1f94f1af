"""results.json as it is read back: whole, or as if it were not there. Imports no torch.

A disk may have damaged it, and a folder may come from someone else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from p2pzoo.utils.files import read_json, write_json


class Number(TypedDict):
    value: float
    protocol: str


class Protocol(TypedDict):
    metric: NotRequired[dict[str, Any]]
    dataset: NotRequired[dict[str, Any]]
    split: str
    size: NotRequired[tuple[int, int]]


class Results(TypedDict):
    """What evaluation writes (`evaluate.evaluate`). measured: {metric: its protocol}; protocols: by their hash."""

    id: str
    recipe: str
    profile: str
    seed: int | None
    images: NotRequired[int]
    metrics: dict[str, Number]
    measured: dict[str, str]
    protocols: dict[str, Protocol]


RESULTS = TypeAdapter(Results)
DIGEST = "digest"  # of all the rest; those of older versions have none


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    write_json(path, {**results, DIGEST: _digest(results)})


def _digest(results: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:12]


def read_results(path: Path) -> dict[str, Any] | None:
    """A run's results, as they were written; None where there are none, or they are not whole."""
    found = read_json(path)
    try:
        RESULTS.validate_python(found)
    except ValidationError:
        return None
    if (digest := found.pop(DIGEST, None)) is not None and digest != _digest(found):
        return None
    named = {number["protocol"] for number in found["metrics"].values()} | {*found["measured"].values()}
    return found if named <= found["protocols"].keys() else None
