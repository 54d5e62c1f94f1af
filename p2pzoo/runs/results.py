"""Write results.json, and read it back if it is intact. Imports no torch.

The file can be damaged, or come from someone else: then it counts as missing.
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


class _NumberJson(TypedDict):
    value: float
    protocol: str
    minimum_images: NotRequired[int]  # only where it was measured on fewer


class _ProtocolJson(TypedDict):
    metric: NotRequired[dict[str, Any]]
    dataset: NotRequired[dict[str, Any]]
    split: str
    size: NotRequired[tuple[int, int]]


class _TimingJson(TypedDict):
    """The median time of a translation, and what it was measured with."""

    translations: dict[str, Any]  # `Translations.protocol()`
    milliseconds: float
    device: str
    threads: int


class _ResultsJson(TypedDict):
    """What `evaluate.evaluate` writes. measured: {metric: hash of its protocol}; protocols: {hash: protocol}."""

    id: str
    recipe: str
    profile: str
    seed: int | None
    images: NotRequired[int]
    metrics: dict[str, _NumberJson]
    measured: dict[str, str]
    protocols: dict[str, _ProtocolJson]
    timings: NotRequired[list[_TimingJson]]


_RESULTS = TypeAdapter(_ResultsJson)
_DIGEST_KEY = "digest"  # a hash of everything else; files of older versions have none


def describe_too_few(results: Mapping[str, Any], name: str) -> str:
    """What to print beside a number that was measured on too few images; "" for the others.

    >>> number = {"value": 0.1, "protocol": "ab", "minimum_images": 50}
    >>> describe_too_few({"metrics": {"kid": number}, "protocols": {"ab": {"images": 3}}}, "kid")
    'too few images: 3 of at least 50'
    """
    number = results["metrics"][name]
    if "minimum_images" not in number:
        return ""
    images = results["protocols"][number["protocol"]]["images"]
    return f"too few images: {images} of at least {number['minimum_images']}"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, with a hash of its content."""
    write_json(path, {**results, _DIGEST_KEY: _digest(results)})


def _digest(results: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:12]


def read_results(path: Path) -> dict[str, Any] | None:
    """The results that `write_results` wrote; None if there are none, or if they are damaged."""
    results = read_json(path)
    try:
        _RESULTS.validate_python(results)
    except ValidationError:
        return None
    if (digest := results.pop(_DIGEST_KEY, None)) is not None and digest != _digest(results):
        return None
    hashes = {number["protocol"] for number in results["metrics"].values()} | {*results["measured"].values()}
    return results if hashes <= results["protocols"].keys() else None
