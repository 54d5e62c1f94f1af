"""Image files -> translated files: while the network works on some, others are read and written. Memory is bounded.

Reading and writing are threads, as Pillow decodes and encodes without Python's lock; the network stays with the caller.
They share one queue: files that are to be written stand before those to be read after them, so that reading, of which
only so much is begun at a time, waits for writing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from p2pzoo.compute.memory import OutOfMemory
from p2pzoo.images.io import read_header, read_image, write_image
from p2pzoo.images.label_maps import read_map
from p2pzoo.models.model import Model, Samples
from p2pzoo.models.tiling import Tiling
from p2pzoo.utils.errors import UserError

MOST_THREADS = 8
IMAGES_AHEAD = 16  # read or being read
PIXELS_AHEAD = 16 * 1024**2  # of these together, unless one alone has more
MOST_LAG = 64  # inputs that may overtake one that waits for others of its size


SPREAD_LEVELS = 16 * 255 / 2  # grey levels of a spread map for a standard deviation of 1, of values in [-1, 1]
SAMPLES_AHEAD = 4  # being written


@dataclass(frozen=True)
class Outcome:
    """What became of an input: written to `target` (with samples: their spread), or left out for these faults."""

    source: Path
    target: Path
    faults: tuple[str, ...] = ()


def translate_files(
    model: Model,
    targets: Mapping[Path, Path],
    mode: str,
    *,
    seed: int = 0,
    tiling: Tiling | None = None,
    text: Mapping[str, str] | None = None,
    samples: int | None = None,
) -> Generator[Outcome, None, None]:
    """What became of each source, in the order of `targets` (source: the file to write, of a suffix that
    `images.holds` what the model gives), each once its file is whole.

    mode, tiling: as `Model.resolve_options` gives them. seed: of dropout in paper mode. text: goes into each file. samples: how
    many translations of each image to write, beside their mean and their spread: `sample_files`.

    Images of one size are translated together in eval mode, so an image's neighbours may show in the rounding of its
    values; in paper mode they do not. Raises OSError for a file that cannot be written. Close it to stop.
    """
    pool = ThreadPoolExecutor(min(MOST_THREADS, max(2, torch.get_num_threads())), "images")
    settled: dict[Path, Outcome | Future[Outcome]] = {}  # until those before them are, too
    remaining = deque(targets)

    def settle(group: list[tuple[Path, np.ndarray]]) -> None:
        if samples:
            [(source, image)] = group  # in paper mode
            settled[source] = _sampled(model, source, targets[source], image, samples, seed, text, pool)
            return
        sources, images = zip(*group, strict=True)
        try:
            translated = model.translate_arrays(images, mode, seed, tiling)
        except OutOfMemory as error:  # it has tried them one by one, and they are alike
            settled.update({source: _left_out(source, targets[source], error) for source in sources})
            return
        for source, image in zip(sources, translated, strict=True):
            settled[source] = pool.submit(_written, source, targets[source], image, text, model.palette)

    def in_order(*, to_the_end: bool = False) -> Iterator[Outcome]:
        while remaining and remaining[0] in settled:
            first = settled[remaining[0]]
            if isinstance(first, Future):
                if not (to_the_end or first.done()):
                    return
                first = first.result()
            del settled[remaining.popleft()]
            yield first

    def read(source: Path) -> np.ndarray:
        return model.pixels(read_map(source) if model.x_labels else read_image(source))

    try:
        groups = _Groups(model, mode)
        for number, (source, reading) in enumerate(_ahead(pool, read, targets)):
            try:
                image = reading.result()
            except (UserError, ValueError) as error:
                settled[source] = _left_out(source, targets[source], error)
            else:
                for group in groups.add(number, source, image):
                    settle(group)
            yield from in_order()
        for group in groups.rest():
            settle(group)
            yield from in_order()
        yield from in_order(to_the_end=True)
    finally:
        pool.shutdown(cancel_futures=True)  # what is being written is finished: no half file, no temporary one


class _Groups:
    """Images of one padded size, as many as are best translated together."""

    def __init__(self, model: Model, mode: str) -> None:
        self.model, self.mode = model, mode
        self.waiting: dict[tuple[int, int], list[tuple[Path, np.ndarray]]] = {}  # by the age of their oldest image
        self.since: dict[tuple[int, int], int] = {}

    def add(self, number: int, source: Path, image: np.ndarray) -> Iterator[list[tuple[Path, np.ndarray]]]:
        """The groups that are full, or have waited for long, with this image."""
        size = self.model.padded_size(*image.shape[:2])
        self.since.setdefault(size, number)
        self.waiting.setdefault(size, []).append((source, image))
        if len(self.waiting[size]) >= self.model.max_batch_size(*size, self.mode):
            yield self._taken(size)
        oldest = next(iter(self.waiting), None)
        if oldest is not None and number - self.since[oldest] >= MOST_LAG:
            yield self._taken(oldest)

    def rest(self) -> Iterator[list[tuple[Path, np.ndarray]]]:
        while self.waiting:
            yield self._taken(next(iter(self.waiting)))

    def _taken(self, size: tuple[int, int]) -> list[tuple[Path, np.ndarray]]:
        del self.since[size]
        return self.waiting.pop(size)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Path], np.ndarray], sources: Iterable[Path]
) -> Iterator[tuple[Path, Future[np.ndarray]]]:
    """Each source being read, in their order; the next ones are begun before they are asked for."""
    begun: deque[tuple[Path, Future[np.ndarray], int]] = deque()
    for source in sources:
        begun.append((source, pool.submit(read, source), _pixels(source)))
        while len(begun) > IMAGES_AHEAD or (len(begun) > 1 and sum(pixels for *_, pixels in begun) > PIXELS_AHEAD):
            yield begun.popleft()[:2]
    while begun:
        yield begun.popleft()[:2]


def _pixels(source: Path) -> int:
    """By the file's header; 0 where `read_image` will tell what is wrong with it."""
    try:
        height, width, _ = read_header(source)
    except UserError:
        return 0
    return height * width


def _written(
    source: Path, target: Path, image: np.ndarray, text: Mapping[str, str] | None, palette: bytes | None
) -> Outcome:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_image(target, image, text, palette)
    return Outcome(source, target)


def sample_files(target: Path, count: int) -> list[Path]:
    """Where `world_size` samples, their mean and their spread go in place of `target`: photo-0.png, … photo-spread.png."""
    return [target.with_stem(f"{target.stem}-{name}") for name in (*range(count), "mean", "spread")]


def _sampled(
    model: Model,
    source: Path,
    target: Path,
    image: np.ndarray,
    count: int,
    seed: int,
    text: Mapping[str, str] | None,
    pool: ThreadPoolExecutor,
) -> Outcome:
    files = sample_files(target, count)
    samples = Samples(model, image, count, seed)
    writing: deque[Future[Outcome]] = deque()
    try:
        for file, sample in zip(files, samples, strict=False):
            writing.append(pool.submit(_written, source, file, sample, text, model.palette))
            if len(writing) > SAMPLES_AHEAD:
                writing.popleft().result()
    except OutOfMemory as error:
        return _left_out(source, target, error)
    for written in writing:
        written.result()
    _written(source, files[-2], samples.mean, text, model.palette)
    spread = samples.spread[..., None]
    if target.suffix == ".png":
        spread = np.rint(spread * SPREAD_LEVELS).clip(0, 255).astype(np.uint8)
        text = {**(text or {}), "spread": f"grey / {SPREAD_LEVELS:g} = standard deviation of values in [-1, 1]"}
    return _written(source, files[-1], spread, text, None)


def _left_out(source: Path, target: Path, error: Exception) -> Outcome:
    named = error.faults if isinstance(error, UserError) and not isinstance(error, OutOfMemory) else None
    return Outcome(source, target, named or (f"{source}: {error}",))
