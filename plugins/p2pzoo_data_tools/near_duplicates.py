"""Find near duplicates among many images, with a perceptual hash of 64 bits. Imports numpy only.

The hash has one bit per coefficient of the 8 × 8 lowest frequencies (cosine transform) of the image at 32 × 32: whether
it is above their median. Compression, scaling and brightening hardly change it. Hashes that differ in a few bits only
suggest a near duplicate; the correlation of the thumbnails decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

HASH_SIDE, THUMBNAIL_SIDE, FREQUENCIES = 32, 16, 8
MIN_CONTRAST = 0.02  # standard deviation, for a value range of 1: a flatter image has no structure to recognise
MAX_DIFFERENT_BITS = 8  # of 64, between the hashes of near duplicates
MIN_CORRELATION = 0.95  # between the thumbnails of near duplicates
# (first bit, number of bits): 6 different bits leave at least one of 7 bands equal, 8 different bits mostly do
BANDS = tuple((start, 9) for start in range(0, 63, 9))
CANDIDATES_PER_CHUNK = 1 << 20  # candidates compared at once, which bounds the memory


@dataclass(frozen=True)
class ImageHash:
    """What is kept of an image to recognise it.

    hash       64 bits; None for an image without structure
    thumbnail  (THUMBNAIL_SIDE, THUMBNAIL_SIDE) uint8
    """

    hash: int | None
    thumbnail: np.ndarray


def hash_image(grey: np.ndarray, limits: tuple[float, float]) -> ImageHash:
    """Hash one channel, (H, W) float, whose values are within `limits`.

    >>> hash_image(np.full((64, 64), 0.5), (0.0, 1.0)).hash is None
    True
    """
    low, high = limits
    rows, columns = (_area_weights(side) for side in grey.shape)
    reduced = (rows @ grey @ columns.T - low) / (high - low)
    thumbnail = reduced.reshape(THUMBNAIL_SIDE, 2, THUMBNAIL_SIDE, 2).mean((1, 3))
    thumbnail = (thumbnail.clip(0, 1) * 255).round().astype(np.uint8)
    if reduced.std() < MIN_CONTRAST:
        return ImageHash(None, thumbnail)
    coefficients = (_cosines() @ reduced @ _cosines().T).ravel()
    bits = coefficients > np.median(coefficients[1:])
    return ImageHash(int.from_bytes(np.packbits(bits).tobytes(), "big"), thumbnail)


def find_similar(first: list[ImageHash], second: list[ImageHash]) -> Iterator[tuple[int, int, float]]:
    """Yield (index in first, index in second, correlation) of similar images. Images without structure are ignored.

    Only images whose hashes agree in one of the bands are compared, not all pairs.
    """
    a, b = ([(at, image) for at, image in enumerate(images) if image.hash is not None] for images in (first, second))
    if not a or not b:
        return
    hashes_a, hashes_b = (np.array([image.hash for _, image in images], np.uint64) for images in (a, b))
    thumbnails_a, thumbnails_b = (_normalise([image for _, image in images]) for images in (a, b))
    compared: set[tuple[int, int]] = set()
    for i, j in _find_candidates(hashes_a, hashes_b):
        for m, n in zip(i.tolist(), j.tolist(), strict=True):
            if (m, n) in compared:
                continue
            compared.add((m, n))
            correlation = float(thumbnails_a[m] @ thumbnails_b[n])
            if correlation >= MIN_CORRELATION:
                yield a[m][0], b[n][0], correlation


def are_similar(first: ImageHash, second: ImageHash) -> bool:
    """Whether two images could be near duplicates. Two images without structure could; one without and one with, not.

    >>> flat = hash_image(np.zeros((64, 64)), (0.0, 1.0))
    >>> are_similar(flat, flat)
    True
    """
    if first.hash is None or second.hash is None:
        return first.hash is second.hash
    if (first.hash ^ second.hash).bit_count() > MAX_DIFFERENT_BITS:
        return False
    return bool(np.dot(*_normalise([first, second])) >= MIN_CORRELATION)


def _find_candidates(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices of hashes that differ in MAX_DIFFERENT_BITS bits at most; some pairs occur more than once."""
    for start, width in BANDS:
        key_a, key_b = ((hashes >> np.uint64(start)) & np.uint64(2**width - 1) for hashes in (a, b))
        order = np.argsort(key_a, kind="stable")
        first, last = (np.searchsorted(key_a[order], key_b, side) for side in ("left", "right"))
        counts = last - first
        ends = np.cumsum(counts)
        at = 0
        while at < len(b):  # each time as many of b as have candidates for a chunk
            before = ends[at - 1] if at else 0
            until = max(at + 1, int(np.searchsorted(ends, before + CANDIDATES_PER_CHUNK, "right")))
            chunk_counts = counts[at:until]
            j = np.repeat(np.arange(at, until), chunk_counts)
            offset = np.arange(len(j)) - np.repeat(ends[at:until] - chunk_counts - before, chunk_counts)
            i = order[np.repeat(first[at:until], chunk_counts) + offset]
            close = _count_different_bits(a[i], b[j]) <= MAX_DIFFERENT_BITS
            yield i[close], j[close]
            at = until


def _count_different_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    counts: np.ndarray = _BIT_COUNTS[bits].sum(1)
    return counts


_BIT_COUNTS = np.array([value.bit_count() for value in range(256)], np.uint8)


def _normalise(images: list[ImageHash]) -> np.ndarray:
    """Return the thumbnails as (N, pixels), each with mean 0 and length 1."""
    flat = np.stack([image.thumbnail for image in images]).reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    normalised: np.ndarray = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return normalised


@lru_cache(maxsize=16)
def _area_weights(side: int) -> np.ndarray:
    """Return (HASH_SIDE, side): weights that reduce `side` pixels to HASH_SIDE area means."""
    edges, pixels = np.arange(HASH_SIDE + 1)[:, None] * (side / HASH_SIDE), np.arange(side)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    weights: np.ndarray = (shared.clip(0) * (HASH_SIDE / side)).astype(np.float32)
    return weights


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """Return (FREQUENCIES, HASH_SIDE): the lowest rows of the cosine transform."""
    angles = np.pi / HASH_SIDE * (np.arange(HASH_SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None]
    cosines: np.ndarray = np.cos(angles).astype(np.float32)
    return cosines
