"""Translate image files. While the network works on some images, threads read others and write results.

Pillow decodes and encodes without Python's lock, so threads suffice; the network runs in the caller's thread. Reading
and writing share one queue of tasks. Results to be written are queued before images to be read later, and only a few
images are read ahead: so reading waits for writing, and memory is bounded. An image of more than MAX_PIXELS_AHEAD that
is translated in tiles is read, translated and written band by band, in the caller's thread.
"""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pzoo.images.georeference import TIFF_SUFFIXES, read_georeference
from p2pzoo.images.io import TiffTag, read_header, write_image
from p2pzoo.images.lossy import DEFAULT_QUALITY, LOSSY_SUFFIXES, write_lossy
from p2pzoo.images.rows import Rows, gather_rows, open_rows, write_rows
from p2pzoo.models.at_use import AtUse
from p2pzoo.models.intervals import Interval
from p2pzoo.models.model import Model, PreparedImage, Samples
from p2pzoo.models.scaling import Scaling
from p2pzoo.models.tiling import Tiling
from p2pzoo.plugin.file_layout import Half
from p2pzoo.utils.errors import OutOfMemory, UserError
from p2pzoo.utils.version import __version__

MAX_THREADS = 8  # more compete with the network for cores
MAX_IMAGES_AHEAD = 16  # images that are read or being read; enough to keep the network busy with small ones
MAX_PIXELS_AHEAD = 16 * 1024**2  # pixels of these images together; a single image may have more
MAX_SAMPLES_AHEAD = 4  # samples of one image that are being written
MAX_WAIT = 64  # how many later inputs an image waits for to fill a batch of its size

SPREAD_LEVELS = 16 * 255 / 2  # grey levels of a spread map per unit of [-1, 1]: 16 per level of an 8-bit image
WIDTH_LEVELS = 255 / 2  # of a width map: 1 per level of an 8-bit image


@dataclass(frozen=True)
class FileOutcome:
    """An input was written to `target` (with samples: `target` is their spread), or was skipped for these faults."""

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
    scaling: Scaling | None = None,
    half: Half | None = None,
    quality: int = DEFAULT_QUALITY,
    interval: bool = False,
) -> Generator[FileOutcome, None, None]:
    """Translate each source to its target. Yields the outcomes in the order of `targets`, each when its file is whole.

    targets: {source: file to write, whose suffix can hold the model's output (`images.io.can_hold`, `images.lossy`)}.
    mode, tiling: as `Model.resolve_options` returns them. seed: of dropout in paper mode.
    scaling: the size at which G sees the images; None: as in training. half: this half of each image is x.
    text: written into each file; TIFFs also keep the georeference of their source. With samples the entry "p2pzoo",
    what `describe_translation` returns, says the seed of each, or their number.
    quality: of JPEG and WebP, 1 to 100.
    samples: number of translations of each image, which are written with their mean and their spread, see
    `sample_paths`.

    In eval mode images of one size are translated together, which can change the rounding of their values; in paper
    mode each is translated by itself. Raises OSError for a file that cannot be written. Close the generator to stop.

    >>> import tempfile, p2pzoo
    >>> from p2pzoo.images.io import read_image
    >>> model = p2pzoo.load("zoo:earth-small", device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = Path(folder) / "a.png", Path(folder) / "out" / "a.png"
    ...     write_image(source, np.zeros((64, 64, model.in_channels), np.uint8))
    ...     [outcome] = translate_files(model, {source: target}, "eval")
    ...     read_image(target).shape
    (64, 64, 3)
    """
    translator = _FileTranslator(model, targets, mode, seed, tiling, text, samples, scaling, half, quality, interval)
    try:
        yield from translator.run()
    finally:
        # files that are being written are finished, so that no half file and no temporary file stays
        translator.pool.shutdown(cancel_futures=True)


class _FileTranslator:
    """The work of one call of `translate_files`."""

    def __init__(
        self,
        model: Model,
        targets: Mapping[Path, Path],
        mode: str,
        seed: int,
        tiling: Tiling | None,
        text: Mapping[str, str] | None,
        samples: int | None,
        scaling: Scaling | None,
        half: Half | None,
        quality: int,
        interval: bool,
    ) -> None:
        self.model, self.targets, self.mode, self.seed, self.tiling = model, targets, mode, seed, tiling
        self.text, self.samples, self.scaling, self.half = text, samples, scaling, half
        self.quality, self.interval = quality, interval
        self.pool = ThreadPoolExecutor(min(MAX_THREADS, max(2, torch.get_num_threads())), "images")
        self.outcomes: dict[Path, FileOutcome | Future[FileOutcome]] = {}  # known, but not yet yielded
        self.pending = deque(targets)  # sources whose outcome is not yet yielded

    def run(self) -> Iterator[FileOutcome]:
        groups = _Groups(self.model, self.mode)
        for number, (source, future) in enumerate(_read_ahead(self.pool, self.read, self.targets)):
            try:
                image = future.result()
            except (UserError, ValueError) as error:
                self.outcomes[source] = _skipped(source, self.targets[source], error)
            else:
                if image is None:
                    self.outcomes[source] = self.translate_by_rows(source)
                    continue
                for group in groups.add(number, source, image):
                    self.translate(group)
            yield from self.take_finished()
        for group in groups.rest():
            self.translate(group)
            yield from self.take_finished()
        yield from self.take_finished(wait=True)

    def read(self, source: Path) -> PreparedImage | None:
        """None if the image is to be translated by rows."""
        if self.goes_by_rows(source):
            return None
        if self.interval and _count_pixels(source) > MAX_PIXELS_AHEAD:
            raise UserError(f"{source}: intervals take up to {MAX_PIXELS_AHEAD:,} pixels at a time: cut the image")
        image, has_alpha = self.model.read_input(source)
        if self.half:
            half = _take_half(Rows.of(image), self.half)
            image = half.read(0, half.shape[0])
        return self.model.prepare_input(image, self.scaling, has_alpha=has_alpha)

    def goes_by_rows(self, source: Path) -> bool:
        """Whether the image is so large that it is read and written band by band."""
        if self.tiling is None or self.samples or self.interval or self.model.x_labels:
            return False
        if _count_pixels(source) <= MAX_PIXELS_AHEAD:
            return False
        height, width, _ = read_header(source)
        width = width // 2 if self.half else width
        scaling = self.scaling or Scaling.resolve(self.model.file_layout)
        return max(height, width) > self.tiling.side and scaling.size_of(height, width) == (height, width)

    def translate_by_rows(self, source: Path) -> FileOutcome | Future[FileOutcome]:
        assert self.tiling is not None
        target = self.targets[source]
        dtype, channels = self.model.output_format
        try:
            with open_rows(source) as image:
                half = _take_half(image, self.half) if self.half else image
                shape = (half.shape[0], half.shape[1], channels)
                target.parent.mkdir(parents=True, exist_ok=True)
                bands = self.model.translate_rows(half, self.tiling, self.seed)
                if target.suffix.lower() in LOSSY_SUFFIXES:
                    return self.write(source, target, gather_rows(bands, shape, dtype), self.text, None)
                write_rows(target, bands, shape, dtype, self.text, self.model.palette, self.tags(source))
        except (UserError, ValueError) as error:
            return _skipped(source, target, error)
        return FileOutcome(source, target)

    def translate(self, group: list[tuple[Path, PreparedImage]]) -> None:
        """Translate images of one padded size, and start to write the results."""
        if self.samples:
            [(source, image)] = group  # samples need paper mode, whose groups have one image
            try:
                self.outcomes[source] = self.translate_samples(source, image, self.samples)
            except UserError as error:  # too little memory, or a file that cannot be written
                self.outcomes[source] = _skipped(source, self.targets[source], error)
            return
        sources, images = zip(*group, strict=True)
        intervals: Sequence[Interval | None] = [None] * len(images)
        try:
            y_hats = self.model.translate_arrays(images, self.mode, self.seed, self.tiling)
            if self.interval:
                intervals = self.model.intervals_of(images, self.seed, self.tiling)
        except OutOfMemory as error:  # the model has tried them one by one, and they have one size
            self.outcomes.update({source: _skipped(source, self.targets[source], error) for source in sources})
            return
        for source, y_hat, interval in zip(sources, y_hats, intervals, strict=True):
            self.outcomes[source] = self.pool.submit(self.write_translation, source, y_hat, interval)

    def write_translation(self, source: Path, y_hat: np.ndarray, interval: Interval | None) -> FileOutcome:
        target = self.targets[source]
        if interval:
            lower, upper, width = interval_paths(target)
            self.write(source, lower, interval.lower, self.text, None)
            self.write(source, upper, interval.upper, self.text, None)
            self.write_map(source, width, interval.width, "width", WIDTH_LEVELS, "upper - lower bound", self.text)
        return self.write(source, target, y_hat, self.text, self.model.palette)

    def translate_samples(self, source: Path, image: PreparedImage, count: int) -> FileOutcome:
        target = self.targets[source]
        paths = sample_paths(target, count)
        samples = Samples(self.model, image, count, self.seed)
        writing: deque[Future[FileOutcome]] = deque()
        for path, sample, seed in zip(paths, samples, samples.seeds, strict=False):
            text = _change_description(self.text, seed=seed)
            writing.append(self.pool.submit(self.write, source, path, sample, text, self.model.palette))
            if len(writing) > MAX_SAMPLES_AHEAD:
                writing.popleft().result()
        for future in writing:
            future.result()
        text = _change_description(self.text, samples=count)
        self.write(source, paths[-2], samples.mean, text, self.model.palette)
        return self.write_map(source, paths[-1], samples.spread, "spread", SPREAD_LEVELS, "standard deviation", text)

    def write_map(
        self, source: Path, path: Path, values: np.ndarray, name: str, levels: float, meaning: str,
        text: Mapping[str, str] | None,
    ) -> FileOutcome:  # fmt: skip
        """Write a map (H, W) float32: as it is, or with so many grey levels per unit where a file has 8 bits."""
        values = values[..., None]
        if path.suffix.lower() in (".png", *LOSSY_SUFFIXES):
            values = np.rint(values * levels).clip(0, 255).astype(np.uint8)
            text = {**(text or {}), name: f"grey / {levels:g} = {meaning} of values in [-1, 1]"}
        return self.write(source, path, values, text, None)

    def tags(self, source: Path) -> tuple[TiffTag, ...]:
        """Where the translation lies on the map; none where its file cannot hold it."""
        is_tiff = self.targets[source].suffix.lower() in TIFF_SUFFIXES
        return read_georeference(source) if is_tiff and not self.half else ()

    def write(
        self, source: Path, target: Path, image: np.ndarray, text: Mapping[str, str] | None, palette: bytes | None
    ) -> FileOutcome:
        """Raises UserError for a target that cannot be written, but OSError where no file can."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix.lower() in LOSSY_SUFFIXES:
                write_lossy(target, image, text, self.quality)
            else:
                write_image(target, image, text, palette, self.tags(source))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise UserError(f"{target}: this name is too long for the file system: rename {source}") from None
        return FileOutcome(source, target)

    def take_finished(self, *, wait: bool = False) -> Iterator[FileOutcome]:
        """Yield the next outcomes in the order of the sources, as far as they are known. wait: all of them."""
        while self.pending and self.pending[0] in self.outcomes:
            outcome = self.outcomes[self.pending[0]]
            if isinstance(outcome, Future):
                if not (wait or outcome.done()):
                    return
                try:
                    outcome = outcome.result()
                except UserError as error:  # this file cannot be written; others may
                    outcome = _skipped(self.pending[0], self.targets[self.pending[0]], error)
            del self.outcomes[self.pending.popleft()]
            yield outcome


class _Groups:
    """Collects images of one padded size into batches of the best size."""

    def __init__(self, model: Model, mode: str) -> None:
        self.model, self.mode = model, mode
        self.waiting: dict[tuple[int, int], list[tuple[Path, PreparedImage]]] = {}  # the longest waiting size first
        self.first_number: dict[tuple[int, int], int] = {}  # number of the first image that waits

    def add(self, number: int, source: Path, image: PreparedImage) -> Iterator[list[tuple[Path, PreparedImage]]]:
        """Add an image. Yields the groups that are now full, or have waited for `MAX_WAIT` images."""
        size = self.model.padded_size(*image.x.shape[:2])
        self.first_number.setdefault(size, number)
        self.waiting.setdefault(size, []).append((source, image))
        if len(self.waiting[size]) >= self.model.max_batch_size(*size, self.mode):
            yield self._take(size)
        oldest = next(iter(self.waiting), None)
        if oldest is not None and number - self.first_number[oldest] >= MAX_WAIT:
            yield self._take(oldest)

    def rest(self) -> Iterator[list[tuple[Path, PreparedImage]]]:
        """Yield the groups that are not full."""
        while self.waiting:
            yield self._take(next(iter(self.waiting)))

    def _take(self, size: tuple[int, int]) -> list[tuple[Path, PreparedImage]]:
        del self.first_number[size]
        return self.waiting.pop(size)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Path], PreparedImage | None], sources: Iterable[Path]
) -> Iterator[tuple[Path, Future[PreparedImage | None]]]:
    """Yield each source with the future of its image, in order, while the next ones are being read."""
    started: deque[tuple[Path, Future[PreparedImage | None], int]] = deque()
    for source in sources:
        started.append((source, pool.submit(read, source), _count_pixels(source)))
        while len(started) > MAX_IMAGES_AHEAD or (
            len(started) > 1 and sum(pixels for *_, pixels in started) > MAX_PIXELS_AHEAD
        ):
            yield started.popleft()[:2]
    while started:
        yield started.popleft()[:2]


def _take_half(image: Rows, half: Half) -> Rows:
    """Raises ValueError for an odd width."""
    width = image.shape[1]
    if width % 2:
        raise ValueError(f"it is {width} px wide, and has no two halves: give images A|B of an even width")
    return image.columns(0, width // 2) if half == "left" else image.columns(width // 2, width)


def _count_pixels(source: Path) -> int:
    """Pixels of an image by its file's header. 0 for a damaged file: `read_image` reports what is wrong with it."""
    try:
        height, width, _ = read_header(source)
    except UserError:
        return 0
    return height * width


def sample_paths(target: Path, count: int) -> list[Path]:
    """The files of `count` samples, their mean and their spread, in place of `target`.

    >>> [path.name for path in sample_paths(Path("photo.png"), 2)]
    ['photo-0.png', 'photo-1.png', 'photo-mean.png', 'photo-spread.png']
    """
    return [target.with_stem(f"{target.stem}-{name}") for name in (*range(count), "mean", "spread")]


def interval_paths(target: Path) -> list[Path]:
    """The files of the lower bound, the upper bound and the width, besides `target`.

    >>> [path.name for path in interval_paths(Path("photo.png"))]
    ['photo-lower.png', 'photo-upper.png', 'photo-width.png']
    """
    return [target.with_stem(f"{target.stem}-{name}") for name in ("lower", "upper", "width")]


def describe_translation(
    model: Model,
    mode: str,
    seed: int,
    precision: str,
    tiling: Tiling | None,
    scaling: Scaling,
    at_use: AtUse,
    level: float | None,
) -> str:
    """JSON that is stored in each output file: how it was made.

    level: of the interval; None: without one. The other arguments are those of `translate_files` and `load_model`.
    """
    values: dict[str, Any] = {"model": model.run, "test_mode": mode, "seed": seed, "p2pzoo": __version__}
    if model.address:
        values["address"] = model.address
    if model.checkpoint:
        values["checkpoint"] = model.checkpoint._asdict()
    if not scaling.is_native:
        values |= scaling.as_json()
    if model.weights != "last":
        values["weights"] = model.weights
    if model.background:
        values["background"] = model.background
    if precision != "fp32":
        values["precision"] = precision
    if level is not None:
        values["interval"] = level
    values |= {kind: table for kind, table in at_use.items() if table}
    if tiling:
        values |= {"tile": tiling.side, "overlap": tiling.overlap}
    return json.dumps(values, sort_keys=True)


def _change_description(text: Mapping[str, str] | None, **values: Any) -> Mapping[str, str] | None:
    """The text of a file, with other values in what `describe_translation` returned."""
    if text is None or "p2pzoo" not in text:
        return text
    return {**text, "p2pzoo": json.dumps(json.loads(text["p2pzoo"]) | values, sort_keys=True)}


def _skipped(source: Path, target: Path, error: Exception) -> FileOutcome:
    faults: tuple[str, ...] = ()
    if isinstance(error, UserError) and not isinstance(error, OutOfMemory):
        faults = error.faults  # these name the file
    return FileOutcome(source, target, faults or (f"{source}: {error}",))
