"""Each pair is decoded, checked and enlarged once, then kept in its stored dtype: in memory, or on disk.

Where there is no room for all of them they are read anew each time. Threads read ahead what is asked for next; which
pairs that are, and what is in them, never depends on those threads. Pillow and NumPy do most of their work without
Python's lock, and threads read any dataset, whether pickle can take it or not.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from p2pzoo.config.settings import Compute
from p2pzoo.data import disk_cache
from p2pzoo.images.resize import _nearest, resize
from p2pzoo.plugin.batch import Pair
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import cache_dir

PAIRS_AHEAD = 64  # being read or waiting to be asked for
BYTES_AHEAD = 64 * 1024**2  # of these together, unless few are more
EVERYTHING = Compute(store="memory")


class Store:
    """The pairs of a dataset, enlarged to `load_size` for the jitter; read as they are asked for.

    enlarge  the jitter's factor, for training: labels too come to `load_size`. None: pairs as they are, for
             evaluation; where labels have more pixels than images they are not kept: large, and read once
    compute  its `store` and what belongs to it say where pairs are kept; default: in memory, all that are asked for
    origin   what the dataset's pairs follow from besides its files (parameters, versions). None: they are not kept on
             disk, as nothing would tell whether they are still the same

    size       (H, W) of the images as the networks see them
    load_size  (H, W) of what `[i]` gives; equal to `size` where `enlarge` is 1 or None
    channels   (C of x, C of y)
    ahead      how many pairs `expect` should be told of besides those that are wanted at once
    place      "memory", "disk" or "stream"
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        enlarge: float | None = None,
        kernel: str = "bicubic",
        compute: Compute = EVERYTHING,
        origin: str | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise UserError("the dataset has no pairs in this split")
        self.dataset = dataset
        self.kernel, self.for_training = kernel, enlarge is not None
        self.kernels = [getattr(dataset, f"{name}_kernel", None) or kernel for name in "xy"]
        first = dataset[0]
        self.size: tuple[int, int] = (first.x.shape[0], first.x.shape[1])
        self.channels: tuple[int, int] = (first.x.shape[2], first.y.shape[2])
        self.load_size = tuple(round(side * (enlarge or 1.0)) for side in self.size)
        self._record = self._record_of(first)
        self.bytes = len(dataset) * self._record.itemsize
        self.read_ahead = max(2, min(PAIRS_AHEAD, BYTES_AHEAD // self._record.itemsize))
        self._origin, self._compute = origin, compute
        self.location = self._place()
        self._kept: dict[int, Pair] = {}
        self._file: disk_cache.StoreFile | None = None
        self._reading: dict[int, Future[Pair]] = {}
        readers = min(compute.readers, max(2, torch.get_num_threads()))
        self._pool = ThreadPoolExecutor(readers, "pairs") if readers else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        if index in self._kept:
            return self._kept[index]
        if self._file:
            return self._file[index]
        begun = self._reading.pop(index, None)
        pair = begun.result() if begun else self._read(index)
        if self.location == "memory" and (self.for_training or pair.labels is None or pair.labels.shape == self.size):
            self._kept[index] = pair
        return pair

    def expect(self, indices: Iterable[int]) -> None:
        """These will be asked for next, in this order: threads begin to read them, and forget what else they read."""
        if self._pool is None or self.fully_cached:
            return
        wanted = [index for index in dict.fromkeys(indices) if index not in self._kept]
        for index in self._reading.keys() - set(wanted):
            self._reading.pop(index).cancel()
        for index in wanted:
            if index not in self._reading:
                self._reading[index] = self._pool.submit(self._read, index)

    @property
    def fully_cached(self) -> bool:
        """Whether all pairs have been read, so that there is nothing to do ahead."""
        return self._file is not None or len(self._kept) == len(self)

    def prepare(self) -> None:
        """Put the pairs on disk, where that is their place and they are not there yet. Raises UserError."""
        if self.location != "disk" or self._file:
            return
        path = self._path()
        if not disk_cache.opened(path, self._record, len(self)):
            try:
                disk_cache.check_room(path, self.bytes)
            except UserError as error:
                if self._compute.store == "disk":
                    raise
                warnings.warn(f"pairs are read anew in every epoch: {error}", stacklevel=2)
                self.location = "stream"
                return
        self._file = disk_cache.open_or_create(path, self._record, len(self), self._in_order())
        self._reading.clear()

    def _place(self) -> str:
        """Where pairs are kept, by what all of them take. Raises UserError where the disk is asked for in vain."""
        asked, limits = self._compute.store, self._compute
        if asked in ("memory", "stream"):
            return asked
        if asked == "disk" and self.for_training:
            if not self._would_show_changes():
                raise UserError(
                    '[compute] store = "disk": this dataset has neither `files` nor `fingerprint`, so nothing would '
                    'tell when its pairs have changed: set store = "stream"'
                )
            return "disk"
        if self.bytes <= limits.store_megabytes * 1e6:
            return "memory"
        fits = self.for_training and self.bytes <= limits.store_disk_megabytes * 1e6
        return "disk" if fits and self._would_show_changes() else "stream"

    def _would_show_changes(self) -> bool:
        return self._origin is not None and _sources(self.dataset) is not None

    def _record_of(self, first: Pair) -> np.dtype:
        """What one pair is on disk."""
        fields = [(name, image.dtype, (*self.load_size, image.shape[2])) for name, image in _images(first)]
        if first.labels is not None:
            fields.append(("labels", first.labels.dtype, self.load_size))
        return np.dtype(fields, align=True)

    def _path(self) -> Path:
        """Where the pairs lie on disk: named after all that their bytes follow from."""
        told = {
            "version": disk_cache.VERSION,
            "origin": self._origin,
            "sources": _sources(self.dataset),
            "pairs": len(self),
            "record": str(self._record),
            "ranges": [self.dataset.x_range, self.dataset.y_range],
            "kernel": self.kernel,
            "decoders": {name: version(name) for name in ("torch", "pillow", "numpy")},
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
        if self.kernels != [self.kernel] * 2:
            told["kernels"] = self.kernels
        if self.kernel == "bilinear-corners":  # torch rounds this one as it deals it out
            told["threads"] = torch.get_num_threads()
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
        return cache_dir() / "stores" / f"{digest[:24]}.pairs"

    def _in_order(self) -> Iterator[Pair]:
        for index in range(len(self)):
            self.expect(range(index, min(len(self), index + 1 + self.read_ahead)))
            try:
                yield self[index]
            except OSError as error:
                raise UserError(f"pair {index} cannot be read: {error}") from error

    def _read(self, index: int) -> Pair:
        pair = self._checked(self.dataset[index])
        return self._enlarged(self._original(index, pair)) if self.for_training else pair

    def _checked(self, pair: Pair) -> Pair:
        for name, image, channels in (("x", pair.x, self.channels[0]), ("y", pair.y, self.channels[1])):
            expected = (*self.size, channels)
            if image.shape != expected:
                raise UserError(
                    f"pair '{pair.id}': {name} is {_shape(image.shape)}, the first pair's is {_shape(expected)} "
                    "(height × width × channels); all pairs of a dataset must be alike"
                )
        if pair.labels is not None and not _cover_images(pair.labels.shape, self.size):
            told = f"labels are {_shape(pair.labels.shape)}, x is {_shape(self.size)}"
            raise UserError(f"pair '{pair.id}': {told}; they may have more pixels, not fewer")
        return pair

    def _original(self, index: int, pair: Pair) -> Pair:
        """What is enlarged: the pair, or where its dataset made it smaller, as it was before."""
        original = getattr(self.dataset, "original", None)
        return original(index) if original and self.load_size != self.size else pair

    def _enlarged(self, pair: Pair) -> Pair:
        labels = pair.labels
        if labels is not None and labels.shape != self.load_size:  # class numbers do not mix
            labels = _nearest(labels, self.load_size)
        if pair.x.shape[:2] == self.load_size:
            return Pair(pair.id, pair.x, pair.y, labels, pair.block)
        x = resize(pair.x, self.load_size, self.kernels[0], self.dataset.x_range)
        y = resize(pair.y, self.load_size, self.kernels[1], self.dataset.y_range)
        return Pair(pair.id, x, y, labels, pair.block)


def _images(pair: Pair) -> list[tuple[str, np.ndarray]]:
    return [("x", pair.x), ("y", pair.y)]


def _sources(dataset: Dataset) -> list[object] | None:
    """What changes with the files that a dataset reads; None where it does not tell."""
    files, fingerprint = getattr(dataset, "files", None), getattr(dataset, "fingerprint", None)
    if files is None and fingerprint is None:
        return None
    return [fingerprint, [_state(path) for paths in files or () for path in paths]]


def _state(path: Path) -> list[object]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _cover_images(labels: tuple[int, ...], size: tuple[int, int]) -> bool:
    return len(labels) == 2 and all(own >= side for own, side in zip(labels, size, strict=True))


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
