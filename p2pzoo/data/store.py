"""The store decodes, checks and enlarges each pair once, then keeps it in its stored dtype: in memory or on disk.

Where not all pairs fit, they are read again each time they are needed. Threads read ahead. Which pairs a batch has, and
their pixels, never depend on those threads. Pillow and NumPy release Python's lock for most of their work, and threads
work with any dataset, whether it can be pickled or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from p2pzoo.config.settings import Compute
from p2pzoo.data import disk_cache
from p2pzoo.images.resize import resize, resize_nearest
from p2pzoo.plugin.batch import Pair
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import cache_dir

_MAX_PAIRS_AHEAD = 64  # more do not help: eight threads, the default of [compute] readers, are busy with fewer
_MAX_BYTES_AHEAD = 64 * 1024**2  # of all pairs read ahead, so that large images do not fill the memory
_KEEP_IN_MEMORY = Compute(store="memory")

Decode = Callable[[], Pair]  # returns the pair as the dataset gives it, or raises what the dataset raised


class _Decoded(NamedTuple):
    """A pair as the dataset gives it, and as the store keeps it. prepared: None where that failed."""

    original: Pair
    prepared: Pair | None


class _PairRejected(Exception):
    """`accept` of `Store.validate` returned False, so the file on disk must not be finished."""


class Store:
    """The pairs of a dataset, enlarged to `load_size` for the jitter. They are read when they are needed.

    enlarge  factor of the jitter, for training: labels are brought to `load_size` too. None: pairs as the dataset
             gives them, for evaluation; labels with more pixels than the images are then not kept: they are large, and
             evaluation reads them once
    compute  its `store` settings say where pairs are kept; default: all pairs that were read stay in memory
    origin   what the pairs depend on besides the dataset's files (parameters, versions). None: they are not kept on
             disk, because nothing would show that they have changed

    size        (H, W) of the images that the networks see
    load_size   (H, W) of the pair `[i]`; equal to `size` where `enlarge` is 1 or None
    channels    (C of x, C of y)
    dtypes      names of the stored dtypes of x and y, as in ("uint8", "float32")
    has_labels  whether pairs have labels; taken from the first pair, like `has_blocks`
    bytes       memory that all pairs take
    read_ahead  how many pairs `expect` should name besides those that are needed at once
    location    "memory", "disk" or "stream"

    The constructor decodes the first pair and keeps it until it is read. Raises UserError where the dataset is empty,
    and for `store = "disk"` where changes of the data would go unnoticed.

    >>> class Black:
    ...     x_range, y_range, classes, palette = (0.0, 255.0), (0.0, 255.0), None, None
    ...     def __len__(self): return 2
    ...     def __getitem__(self, index): return Pair(f"{index}", *np.zeros((2, 8, 8, 1), np.uint8))
    >>> store = Store(Black(), enlarge=1.25)
    >>> store.size, store.load_size, store[0].x.shape
    ((8, 8), (10, 10), (10, 10, 1))
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        enlarge: float | None = None,
        kernel: str = "bicubic",
        compute: Compute = _KEEP_IN_MEMORY,
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
        self.dtypes: tuple[str, str] = (first.x.dtype.name, first.y.dtype.name)
        self.has_labels, self.has_blocks = first.labels is not None, first.block is not None
        self.load_size = tuple(round(side * (enlarge or 1.0)) for side in self.size)
        self._record = self._record_dtype(first)
        self.bytes = len(dataset) * self._record.itemsize
        self.read_ahead = max(2, min(_MAX_PAIRS_AHEAD, _MAX_BYTES_AHEAD // self._record.itemsize))
        self._origin, self._compute = origin, compute
        self.location = self._choose_location()
        self._kept: dict[int, Pair] = {}
        self._decoded: dict[int, Pair] = {0: first}  # not yet read through `[i]`; each leaves when it is read
        self._needed_soon: Counter[int] = Counter()  # pair: reads after `validate` that need it decoded
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
            with contextlib.suppress(disk_cache.DamagedPair):
                return self._file[index]
            return self._prepare_pair(index, self._decode(index))
        future = self._reading.pop(index, None)
        pair = future.result() if future else self._read(index)
        self._keep(index, pair)
        return pair

    def expect(self, indices: Iterable[int]) -> None:
        """Read these pairs next, in this order, in threads; whatever else the threads have read is dropped."""
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
        """Whether all pairs are in memory or on disk, so that nothing is left to read ahead."""
        return self._file is not None or len(self._kept) == len(self)

    def need_soon(self, indices: Iterable[int]) -> None:
        """Name a few pairs that are read right after `validate`: it keeps them in memory until then.

        A pair that is named in several calls is kept for as many reads.
        """
        self._needed_soon.update(indices)

    def validate(self, indices: Sequence[int], accept: Callable[[int, Decode], bool], *, keep: bool = True) -> None:
        """Show these pairs to `accept`, and keep the accepted ones where this store keeps pairs. Each is decoded once.

        accept  gets an index and a function that returns the pair as the dataset gives it, or raises what the dataset
                raised. Once it returned False it must do so for all later pairs. Called in this thread
        keep    False: the pairs are not read afterwards, so none is kept, and no file is written on disk

        Raises UserError, after all pairs were shown, where the disk has no room or a pair that is not among `indices`
        cannot be read.
        """
        left = dict.fromkeys(indices)  # a set that keeps its order

        def all_pairs() -> Iterator[Pair]:
            for index, decode in self._decode_ahead(range(len(self))):
                if index in left:
                    del left[index]
                    if not accept(index, lambda: decode().original):  # noqa: B023 (called before the next turn)
                        raise _PairRejected
                yield self._prepared_or_raise(index, decode)

        failure = None
        if keep:
            try:
                self._open_file(all_pairs())
            except _PairRejected:
                pass
            except UserError as error:  # what is wrong with the pairs that are left is reported first
                failure = error
        for index, decode in self._decode_ahead(list(left)):
            if accept(index, lambda: decode().original) and keep and self._file is None:  # noqa: B023
                self._keep_validated(index, decode())
        if failure:
            raise failure

    def prepare(self) -> None:
        """Open the file of the pairs, and write it first where it is missing, if they are kept on disk.

        Raises UserError.
        """
        self._open_file(
            self._prepared_or_raise(index, decode) for index, decode in self._decode_ahead(range(len(self)))
        )

    def _open_file(self, pairs: Iterable[Pair]) -> None:
        if self.location != "disk" or self._file:
            return
        path = self._path()
        if not disk_cache.open_if_complete(path, self._record, len(self)):
            try:
                disk_cache.check_room(path, self.bytes)
            except UserError as error:
                if self._compute.store == "disk":
                    raise
                warnings.warn(f"pairs are read again in every epoch: {error}", stacklevel=3)
                self.location = "stream"
                return
        self._file = disk_cache.open_or_create(path, self._record, len(self), pairs)
        self._reading.clear()
        self._decoded.clear()

    def _choose_location(self) -> str:
        """Where pairs are kept, by their bytes. Raises UserError where the disk is requested but cannot be used."""
        requested, limits = self._compute.store, self._compute
        if requested in ("memory", "stream"):
            return requested
        if requested == "disk" and self.for_training:
            if not self._detects_changes():
                raise UserError(
                    '[compute] store = "disk": this dataset has neither `files` nor `fingerprint`, so nothing would '
                    'show that its pairs have changed: set store = "stream"'
                )
            return "disk"
        if self.bytes <= limits.store_megabytes * 1e6:
            return "memory"
        fits = self.for_training and self.bytes <= limits.store_disk_megabytes * 1e6
        return "disk" if fits and self._detects_changes() else "stream"

    def _detects_changes(self) -> bool:
        return self._origin is not None and _source_state(self.dataset) is not None

    def _record_dtype(self, first: Pair) -> np.dtype:
        """The NumPy dtype of one pair on disk."""
        fields = [(name, image.dtype, (*self.load_size, image.shape[2])) for name, image in _images(first)]
        if first.labels is not None:
            fields.append(("labels", first.labels.dtype, self.load_size))
        return np.dtype(fields, align=True)

    def _path(self) -> Path:
        """The file of the pairs on disk. Its name is a hash of everything that their bytes depend on."""
        identity = {
            "version": disk_cache.CACHE_FORMAT,
            "origin": self._origin,
            "sources": _source_state(self.dataset),
            "pairs": len(self),
            "record": str(self._record),
            "ranges": [self.dataset.x_range, self.dataset.y_range],
            "kernel": self.kernel,
            "decoders": {name: version(name) for name in ("torch", "pillow", "numpy")},
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
        if self.kernels != [self.kernel] * 2:
            identity["kernels"] = self.kernels
        if self.kernel == "bilinear-corners":  # its rounding in torch depends on the number of threads
            identity["threads"] = torch.get_num_threads()
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
        return cache_dir() / "stores" / f"{digest[:24]}.pairs"

    # --- one pair ------------------------------------------------------------------------------------------------

    def _keep(self, index: int, pair: Pair) -> bool:
        """Keep a prepared pair in memory, where this store does so. Returns whether it did."""
        is_kept = self.location == "memory" and (
            self.for_training or pair.labels is None or pair.labels.shape == self.size
        )
        if is_kept:
            self._kept[index] = pair
        return is_kept

    def _keep_validated(self, index: int, pair: _Decoded) -> None:
        if pair.prepared and not self._keep(index, pair.prepared) and index in self._needed_soon:
            self._decoded[index] = pair.original

    def _decode_ahead(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], _Decoded]]]:
        """Each index with a function that returns the decoded pair, or raises; threads decode the next pairs."""
        if self._pool is None:
            for index in indices:
                yield index, _called_once(self._decode_and_prepare, index)
            return
        waiting, ahead = iter(indices), deque[tuple[int, Future[_Decoded]]]()
        try:
            while True:
                for index in itertools.islice(waiting, self.read_ahead - len(ahead)):
                    ahead.append((index, self._pool.submit(self._decode_and_prepare, index)))
                if not ahead:
                    return
                index, future = ahead.popleft()
                yield index, future.result
        finally:
            for _, future in ahead:
                future.cancel()

    def _prepared_or_raise(self, index: int, decode: Callable[[], _Decoded]) -> Pair:
        """The pair for the file on disk. Raises UserError for an OSError, which there would mean a full disk."""
        try:
            pair = decode()
        except OSError as error:
            raise UserError(f"pair {index} cannot be read: {error}") from error
        return pair.prepared or self._prepare_pair(index, pair.original)

    def _decode_and_prepare(self, index: int) -> _Decoded:
        original = self._decode(index)
        try:
            return _Decoded(original, self._prepare_pair(index, original))
        except (
            Exception
        ):  # validation says what is wrong with it; whoever needs it prepares it again, and gets the error
            return _Decoded(original, None)

    def _decode(self, index: int) -> Pair:
        """The pair as the dataset gives it."""
        pair = self._decoded.pop(index, None)
        return self.dataset[index] if pair is None else pair

    def _read(self, index: int) -> Pair:
        pair = self._decode(index)
        if index in self._needed_soon:
            self._needed_soon[index] -= 1
            if self._needed_soon[index] > 0:
                self._decoded[index] = pair
        return self._prepare_pair(index, pair)

    def _prepare_pair(self, index: int, pair: Pair) -> Pair:
        pair = self._checked(pair)
        return self._enlarged(self._full_size(index, pair)) if self.for_training else pair

    def _checked(self, pair: Pair) -> Pair:
        for name, image, channels in (("x", pair.x, self.channels[0]), ("y", pair.y, self.channels[1])):
            expected = (*self.size, channels)
            if image.shape != expected:
                raise UserError(
                    f"pair '{pair.id}': {name} is {_format_shape(image.shape)}, the first pair's is "
                    f"{_format_shape(expected)} (height × width × channels); all pairs of a dataset must have one shape"
                )
        if pair.labels is not None and not _cover_images(pair.labels.shape, self.size):
            shapes = f"labels are {_format_shape(pair.labels.shape)}, x is {_format_shape(self.size)}"
            raise UserError(f"pair '{pair.id}': {shapes}; labels may have more pixels than x, not fewer")
        return pair

    def _full_size(self, index: int, pair: Pair) -> Pair:
        """The pair to enlarge: where the dataset made it smaller, the pair before that."""
        original = getattr(self.dataset, "original", None)
        return original(index) if original and self.load_size != self.size else pair

    def _enlarged(self, pair: Pair) -> Pair:
        labels = pair.labels
        if labels is not None and labels.shape != self.load_size:  # class numbers must not be interpolated
            labels = resize_nearest(labels, self.load_size)
        if pair.x.shape[:2] == self.load_size:
            return Pair(pair.id, pair.x, pair.y, labels, pair.block)
        x = resize(pair.x, self.load_size, self.kernels[0], self.dataset.x_range)
        y = resize(pair.y, self.load_size, self.kernels[1], self.dataset.y_range)
        return Pair(pair.id, x, y, labels, pair.block)


def _called_once(decode: Callable[[int], _Decoded], index: int) -> Callable[[], _Decoded]:
    """A function that decodes when it is first called, and returns the same, or raises the same, after that."""
    future: Future[_Decoded] = Future()

    def result() -> _Decoded:
        if not future.done():
            try:
                future.set_result(decode(index))
            except Exception as error:
                future.set_exception(error)
        return future.result()

    return result


def _images(pair: Pair) -> list[tuple[str, np.ndarray]]:
    return [("x", pair.x), ("y", pair.y)]


def _source_state(dataset: Dataset) -> list[object] | None:
    """What changes with the files that a dataset reads; None where it declares neither files nor a fingerprint."""
    files, fingerprint = getattr(dataset, "files", None), getattr(dataset, "fingerprint", None)
    if files is None and fingerprint is None:
        return None
    return [fingerprint, [_file_state(path) for paths in files or () for path in paths]]


def _file_state(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _cover_images(labels: tuple[int, ...], size: tuple[int, int]) -> bool:
    return len(labels) == 2 and all(label_side >= side for label_side, side in zip(labels, size, strict=True))


def _format_shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
