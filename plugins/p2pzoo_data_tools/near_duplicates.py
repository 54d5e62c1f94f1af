"""Pictures that look alike: a perceptual hash of 64 bits, and the near duplicates among many. Imports numpy only.

The hash: the signs, about their median, of the 8 × 8 lowest frequencies (cosine transform) of a picture brought to
32 × 32. It hardly changes when a picture is compressed, scaled or brightened. Two hashes that differ in a few bits are
a suspicion; whether the small pictures themselves correlate decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIDE, SMALL, LOW = 32, 16, 8
FLAT = 0.02  # standard deviation, of a range of 1, below which a picture has too little in it to be recognised by
BITS = 8  # of 64 that the hashes of near duplicates differ in at most
ALIKE = 0.95  # correlation of their small pictures
BANDS = tuple((start, 9) for start in range(0, 63, 9))  # bits: 6 that differ leave one of 7 bands untouched, 8 mostly
CHUNK = 1 << 20  # candidates looked at together


@dataclass(frozen=True)
class Looks:
    """How a picture looks. hash: None of a flat one. small: (SMALL, SMALL) uint8."""

    hash: int | None
    small: np.ndarray


def hash_image(grey: np.ndarray, limits: tuple[float, float]) -> Looks:
    """Of one channel, (H, W) float, whose values are within `limits`."""
    low, high = limits
    rows, columns = (_cover(side) for side in grey.shape)
    thumb = (rows @ grey @ columns.T - low) / (high - low)
    small = thumb.reshape(SMALL, 2, SMALL, 2).mean((1, 3))
    small = (small.clip(0, 1) * 255).round().astype(np.uint8)
    if thumb.std() < FLAT:
        return Looks(None, small)
    low_frequencies = (_cosines() @ thumb @ _cosines().T).ravel()
    bits = low_frequencies > np.median(low_frequencies[1:])
    return Looks(int.from_bytes(np.packbits(bits).tobytes(), "big"), small)


def near(ours: list[Looks], theirs: list[Looks]) -> Iterator[tuple[int, int, float]]:
    """(index, index, correlation) of the pictures of the two lists that look alike; flat ones look like nothing.

    Only pictures whose hashes agree in one of the bands are compared, not each with each.
    """
    a, b = ([(at, look) for at, look in enumerate(each) if look.hash is not None] for each in (ours, theirs))
    if not a or not b:
        return
    hashes_a, hashes_b = (np.array([look.hash for _, look in each], np.uint64) for each in (a, b))
    small_a, small_b = (_normalised([look for _, look in each]) for each in (a, b))
    seen: set[tuple[int, int]] = set()
    for i, j in _candidates(hashes_a, hashes_b):
        for m, n in zip(i.tolist(), j.tolist(), strict=True):
            if (m, n) in seen:
                continue
            seen.add((m, n))
            correlation = float(small_a[m] @ small_b[n])
            if correlation >= ALIKE:
                yield a[m][0], b[n][0], correlation


def agree(one: Looks, other: Looks) -> bool:
    """Whether two pictures could be the same one; flat ones, of which hashes say nothing, could where both are."""
    if one.hash is None or other.hash is None:
        return one.hash is other.hash
    return (one.hash ^ other.hash).bit_count() <= BITS and bool(np.dot(*_normalised([one, other])) >= ALIKE)


def _candidates(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices whose hashes differ in BITS bits at most, some of them more than once."""
    for start, width in BANDS:
        key_a, key_b = ((each >> np.uint64(start)) & np.uint64(2**width - 1) for each in (a, b))
        order = np.argsort(key_a, kind="stable")
        first, last = (np.searchsorted(key_a[order], key_b, side) for side in ("left", "right"))
        counts = last - first
        ends = np.cumsum(counts)
        at = 0
        while at < len(b):  # so many of b that their candidates fill a chunk
            before = ends[at - 1] if at else 0
            until = max(at + 1, int(np.searchsorted(ends, before + CHUNK, "right")))
            many = counts[at:until]
            j = np.repeat(np.arange(at, until), many)
            place = np.arange(len(j)) - np.repeat(ends[at:until] - many - before, many)
            i = order[np.repeat(first[at:until], many) + place]
            close = _differing(a[i], b[j]) <= BITS
            yield i[close], j[close]
            at = until


def _differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ."""
    bits = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    differing: np.ndarray = _POPULATION[bits].sum(1)
    return differing


_POPULATION = np.array([value.bit_count() for value in range(256)], np.uint8)


def _normalised(each: list[Looks]) -> np.ndarray:
    """(N, pixels), of mean 0 and length 1."""
    flat = np.stack([look.small for look in each]).reshape(len(each), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    normalised: np.ndarray = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return normalised


@lru_cache(maxsize=16)
def _cover(side: int) -> np.ndarray:
    """(SIDE, side): the mean over what each of SIDE pixels covers."""
    edges, pixels = np.arange(SIDE + 1)[:, None] * (side / SIDE), np.arange(side)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    cover: np.ndarray = (shared.clip(0) * (SIDE / side)).astype(np.float32)
    return cover


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(LOW, SIDE): the lowest rows of the cosine transform."""
    cosines: np.ndarray = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None]).astype(np.float32)
    return cosines
