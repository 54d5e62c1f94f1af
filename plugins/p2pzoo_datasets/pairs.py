"""What datasets of image files share: one size, one channel count, reading, and checks before training."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import (
    Files,
    ImageShape,
    format_size,
    inspect_files,
)
from p2pzoo.data.splits import Splits, fallback_split
from p2pzoo.images.class_files import Colour
from p2pzoo.images.io import ImageHeader, TransparentPixels, inspect_image, read_image, with_channels
from p2pzoo.images.label_maps import Labels, inspect_map
from p2pzoo.images.orientation import DIFFERENT_ORIENTATIONS, describe_differences
from p2pzoo.images.resize import ResizeKernel, ResizeMode, keeps_alignment, median_size, resize_factors, resize_to
from p2pzoo.images.transparency import Background, background_color, put_on_background
from p2pzoo.plugin import FileLayout, Pair, Split
from p2pzoo.plugin.file_layout import Half
from p2pzoo.utils.errors import MAX_NAMED_FILES, UserError, raise_faults, summarize_fault
from p2pzoo.utils.files import fingerprint
from p2pzoo.utils.plurals import format_count
from p2pzoo_datasets.class_files import ClassFiles

Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
_CHANNEL_NAMES = {1: "grey", 2: "grey with opacity", 3: "RGB", 4: "RGB with opacity"}
Direction = Literal["AtoB", "BtoA"]


class FilePairs:
    """A sequence of Pairs that are read from files when they are asked for. A subclass defines the files of a pair.

    size             [H, W] of x and y; default: the size of the first training image of x
    resize           how an image is brought to that size: "stretch" loses proportions; "fit" keeps them and extends the
                     shorter side by reflection; "crop" keeps them and cuts out the centre; "none" allows no other size
    direction        "AtoB", or "BtoA" to swap x and y
    max_pairs        maximum number of pairs in each split: the first by name
    input_channels   channels of x, whatever the direction: 1 grey, 3 RGB, 4 RGB with opacity, or the bands of a TIFF or
                     NumPy file; default: those of the first training pair
    target_channels  channels of y, likewise
    fractions        fractions of train, val and test, where no sub-folders or lines define the splits
    split_seed       seed of the random assignment to splits
    background       "white", "black" or RGB values (0 to 255): images with transparent pixels are put on it. Without it
                     they are refused, or keep their opacity as a channel
    input_range      the stored values of x that become -1 and 1; default: [0, 255] for uint8, [0, 65535] for uint16;
                     float32 has no default
    target_range     the stored values of y that become -1 and 1, likewise
    input_labels     class file of x, if x are label maps (`p2pzoo.images.label_maps`)
    input_encoding   input of the networks if x are label maps: "one-hot", or "palette" for the colours of the classes
    target_labels    class file of y, if y are label maps
    target_encoding  output of the networks if y are label maps: "one-hot" or "palette"
    """

    file_shapes: Sequence[tuple[ImageShape, ImageShape]]
    classes: Sequence[str] | None = None
    palette: Sequence[Colour] | None = None
    _x_half: Half | None = None  # where x is in a file that holds both
    _collected_faults: list[str] | None = None  # `usable` collects faults here instead of raising them

    def __init__(
        self,
        split: Split,
        splits: Splits,
        where: str,
        *,
        size: tuple[int, int] | None,
        resize: ResizeMode,
        max_pairs: int | None,
        channels: tuple[int | None, int | None],
        ranges: tuple[Range | None, Range | None],
        direction: Direction = "AtoB",
        class_files: ClassFiles | None = None,
        blocks: Mapping[str, str | None] | None = None,
        background: Background | None = None,
    ) -> None:
        """
        splits    {split: {id: the files of A and B (one file if it holds both), then of labels}}
        where     name of the data in messages
        channels  of x and y; None: those of the first training pair
        ranges    of x and y; None: the default
        blocks    {id: block}

        background  as above
        """
        maps = class_files or ClassFiles()
        self._maps, self._labels = (maps.x, maps.y), maps.labels
        self.classes = self._labels and self._labels.names
        self.palette = self._labels and self._labels.colours
        # The first training pair sets the defaults of every split, so that all splits have one size and channel count.
        first = next(iter(splits["train"].values()))
        self._pairs = list(fallback_split(splits, split, where).items())[:max_pairs]
        self._blocks = blocks or {}
        self._resize: ResizeMode = resize
        self._background = background_color(background) if background else None
        self._swapped = direction == "BtoA"
        self._refuse_unused(channels, ranges)
        headers = self.read_headers(dict.fromkeys((first, *self.files)))
        if self._collected_faults is not None:
            self._pairs = [pair for pair in self._pairs if pair[1] in headers]
            if not self._pairs:
                raise UserError(*self._collected_faults)
            first = first if first in headers else self._pairs[0][1]
        sides = ((_a_and_b(files), of_pair) for files, of_pair in headers.items())
        self._with_alpha = {path for side in sides for path, header in zip(*side, strict=False) if header.has_alpha}
        first_headers = self._as_x_y(headers[first][0], headers[first][1])
        self._check_dtypes(headers, first_headers)
        self.x_range, self.y_range = self._resolve_ranges(ranges, first, first_headers)
        shapes = {files: self.shapes_of(of_pair) for files, of_pair in headers.items()}
        a, b = shapes[first]
        self._size = size or a[:2]
        self._check_sizes(headers, shapes, "`size`" if size else "the first training pair's size")
        self._check_orientations(headers)
        self._resolve_channels(channels, self._as_x_y(a, b), first_headers)
        self._check_conversions(shapes)
        self.file_shapes = [self._as_x_y(*shapes[files]) for files in self.files]
        self.file_layout = self._find_layout()

    @classmethod
    def usable(cls, split: Split, **parameters: Any) -> tuple[Self, list[str]]:
        """The dataset without the pairs that have faults, and these faults, which the constructor would raise.

        Wrong sizes and channels are reported when a pair is read.
        """
        dataset = cls.__new__(cls)
        dataset._collected_faults = []
        try:
            dataset.__init__(split, **parameters)  # type: ignore[misc]
        except UserError as error:  # what was found before may be its cause
            raise UserError(*dict.fromkeys((*dataset._collected_faults, *error.faults))) from None
        return dataset, dataset._collected_faults

    def read_headers(self, pairs: Iterable[Files]) -> dict[Files, tuple[ImageHeader, ...]]:
        """{files of a pair: the headers of A, B and labels}. Reports files without a readable header."""
        inspectors = [inspect_map if labels else inspect_image for labels in self._as_x_y(*self._maps)]
        to_read = {
            files: [*zip(_a_and_b(files), inspectors, strict=True), *((file, inspect_map) for file in files[2:])]
            for files in pairs
        }
        headers = inspect_files((item for items in to_read.values() for item in items), self._report_faults)
        if self._background:
            headers = {item: _without_alpha(header) for item, header in headers.items()}
        return {
            files: tuple(headers[item] for item in items)
            for files, items in to_read.items()
            if all(item in headers for item in items)
        }

    def shapes_of(self, headers: tuple[ImageHeader, ...]) -> tuple[ImageShape, ImageShape]:
        """Shapes of A and B."""
        return headers[0].shape, headers[1].shape

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """A and B, each (H, W, C) in the size and channels of its file; label maps as class indices, (H, W, 1)."""
        a, b = (
            labels.classes.read_map(file)[..., None] if labels else self.read_image(file)
            for file, labels in zip(_a_and_b(files), self._as_x_y(*self._maps), strict=True)
        )
        return a, b

    def read_image(self, file: Path) -> np.ndarray:
        """(H, W, C) of a file; without opacity if there is a background."""
        image = read_image(file)
        if self._background and image.shape[2] in (2, 4) and inspect_image(file).has_alpha:
            try:
                return put_on_background(image, self._background)
            except ValueError as error:
                raise UserError(f"{file}: {error}") from None
        return image

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, files = self._pairs[operator.index(index)]
        images, classes = [], []
        sides = zip(self._convert(files), (self.x_range, self.y_range), self._is_bands, self._maps, strict=True)
        for image, limits, is_bands, labels in sides:
            if labels:
                classes.append(self._resize_map(image))
                images.append(labels.encode(classes[-1]))
            else:
                is_bands = is_bands and image.shape[2] in (2, 4)  # the two counts that could mean opacity
                images.append(resize_to(image, self._size, self._resize, limits, bands=is_bands))
        if len(files) == 3 and self._labels:
            classes.append(self._resize_map(self._labels.read_map(files[2])[..., None]))
        return Pair(name, *images, classes[-1] if classes else None, self._blocks.get(name))

    def _resize_map(self, classes: np.ndarray) -> np.ndarray:
        """(h, w, 1) -> (H, W)."""
        return resize_to(classes, self._size, self._resize, kernel="nearest")[..., 0]

    @property
    def x_labels(self) -> Labels | None:
        return self._maps[0]

    @property
    def y_labels(self) -> Labels | None:
        return self._maps[1]

    @property
    def x_encoding(self) -> str | None:
        return _one_hot_encoding(self._maps[0])

    @property
    def y_encoding(self) -> str | None:
        return _one_hot_encoding(self._maps[1])

    @property
    def x_kernel(self) -> ResizeKernel | None:
        return "nearest" if self._maps[0] else None

    @property
    def y_kernel(self) -> ResizeKernel | None:
        return "nearest" if self._maps[1] else None

    @property
    def resize_mode(self) -> ResizeMode:
        return self._resize

    @property
    def files(self) -> list[Files]:
        """The files that each pair is read from."""
        return [files for _, files in self._pairs]

    @property
    def blocks(self) -> list[str | None]:
        return [self._blocks.get(name) for name, _ in self._pairs]

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split are added, removed or change in length, and with class files and blocks."""
        of_files = fingerprint([file for files in self.files for file in files])
        sides = [labels and labels.header() for labels in self._maps]
        settings = [*sides, self._labels and self._labels.to_dict(), self._blocks]
        if not any(settings):
            return of_files
        return f"{of_files}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]}"

    def _find_layout(self) -> FileLayout:
        sizes = [x[:2] for x, _ in self.file_shapes]
        has_alpha = self._channels[0] in (2, 4) and not self._is_bands[0]
        return FileLayout(
            median_size(sizes), resize_factors(sizes, self._size, self._resize), self._x_half, alpha=has_alpha,
            background=self._background,
        )  # fmt: skip

    def _report_faults(self, faults: Sequence[str]) -> None:
        """Raise them as a UserError, or collect them for `usable`."""
        if self._collected_faults is None:
            raise_faults(faults)
        else:
            self._collected_faults += faults

    def _refuse_unused(
        self, channels: tuple[int | None, int | None], ranges: tuple[Range | None, Range | None]
    ) -> None:
        for name, labels, *options in zip(("input", "target"), self._maps, channels, ranges, strict=True):
            if labels and any(options):
                raise ValueError(
                    f"{name}_channels and {name}_range: remove both, label maps have those of their classes"
                )

    def _resolve_channels(
        self,
        channels: tuple[int | None, int | None],
        first_shapes: tuple[ImageShape, ImageShape],
        first_headers: tuple[ImageHeader, ImageHeader],
    ) -> None:
        first_channels = [shape[2] for shape in first_shapes]
        self._channels = [option or default for option, default in zip(channels, first_channels, strict=True)]
        self._is_bands = [
            count == default and not header.has_alpha
            for count, default, header in zip(self._channels, first_channels, first_headers, strict=True)
        ]

    def _resolve_ranges(
        self, ranges: tuple[Range | None, Range | None], first: Files, headers: tuple[ImageHeader, ImageHeader]
    ) -> list[Range]:
        """The ranges of x and y: those of their classes for label maps, else set by the recipe or by default."""
        sides = zip(self._maps, ranges, headers, ("input", "target"), self._as_x_y(*_a_and_b(first)), strict=True)
        return [
            labels.range if labels else _resolve_range(option, header.dtype, f"{name}_range", file)
            for labels, option, header, name, file in sides
        ]

    def _as_x_y(self, a: Any, b: Any) -> tuple[Any, Any]:
        return (b, a) if self._swapped else (a, b)

    def _convert(self, files: Files) -> list[np.ndarray]:
        """x and y with the dataset's channel counts, each in the size of its file.

        Raises UserError if a conversion would lose information, or if values are outside the range.
        """
        images, paths = self._as_x_y(*self.read(files)), self._as_x_y(*_a_and_b(files))
        converted, ranges = [], (self.x_range, self.y_range)
        sides = zip((0, 1), images, paths, ("input", "target"), ranges, self._maps, strict=True)
        for side, image, path, name, (low, high), labels in sides:
            if not (labels or (image.min() >= low and image.max() <= high)):
                raise UserError(_describe_bad_values(path, image, low, high, f"{name}_range"))
            converted.append(image if labels else self._with_channels(image, path, side))
        return converted

    def _with_channels(self, image: np.ndarray, path: Path, side: int) -> np.ndarray:
        """An image of x (side 0) or y (side 1) with the dataset's channels. Raises UserError."""
        if self._mixes_bands(path, image.shape[2], side):
            raise UserError(self._describe_bands(path, image.shape[2], side))
        try:
            return with_channels(image, self._channels[side])
        except TransparentPixels as error:
            if path not in self._with_alpha:
                raise UserError(self._describe_bands(path, image.shape[2], side)) from None
            advice = 'set background = "white", or RGB values, to fill them'
            raise UserError(f"{path}: {error}: {advice}") from None
        except ValueError as error:
            raise UserError(f"{path}: {error} ({self._describe_source(side)})") from None

    def _mixes_bands(self, path: Path, channels: int, side: int) -> bool:
        """Whether a band of this file would become opacity, or opacity a band, or a missing band would be invented."""
        if self._maps[side] or self._channels[side] not in (2, 4):  # the two counts that could mean opacity
            return False
        has_alpha = path in self._with_alpha
        if channels == self._channels[side]:
            return has_alpha == self._is_bands[side]
        return self._is_bands[side] or (channels in (2, 4) and not has_alpha)

    def _describe_bands(self, path: Path, channels: int, side: int) -> str:
        opacity = (
            f", {'the last' if path in self._with_alpha else 'none'} of them opacity" if channels in (2, 4) else ""
        )
        wanted = self._channels[side]
        are_colours = wanted in (1, 3) or (wanted in (2, 4) and not self._is_bands[side])
        expected = f"{_CHANNEL_NAMES[wanted]} was" if are_colours else f"{wanted} bands were"
        return (
            f"{path}: has {format_count(channels, 'channel')}{opacity}, and {expected} expected "
            f"({self._describe_source(side)}): give all files the same bands"
        )

    def _describe_source(self, side: int) -> str:
        name = ("input", "target")[side]
        return f"{name}_channels is {self._channels[side]}: set by the recipe, or by the first training pair"

    def _check_dtypes(
        self, headers: Mapping[Files, tuple[ImageHeader, ...]], firsts: tuple[ImageHeader, ImageHeader]
    ) -> None:
        """All x must have one dtype, and all y: values are not converted."""
        if self._collected_faults is not None:
            return
        differing: list[str] = []
        for files in self.files:
            sides = self._as_x_y(headers[files][0], headers[files][1])
            for path, header, first in zip(self._as_x_y(*_a_and_b(files)), sides, firsts, strict=True):
                if header.dtype != first.dtype:
                    differing.append(f"{path} is {header.dtype}, the first training pair's is {first.dtype}")
        what = "all files of x, and all of y, must have one dtype; values are not converted:"
        raise_faults(summarize_fault(what, dict.fromkeys(differing)))

    def _check_sizes(
        self,
        headers: Mapping[Files, tuple[ImageHeader, ...]],
        shapes: Mapping[Files, tuple[ImageShape, ImageShape]],
        wanted: str,
    ) -> None:
        if self._collected_faults is not None and self._resize == "none":
            return
        misaligned, wrong = [], []
        for files in self.files:
            a, *others = [shape[:2] for shape in (*shapes[files], *(header.shape for header in headers[files][2:]))]
            for other, file in zip(others, (_a_and_b(files)[1], *files[2:]), strict=True):
                if not keeps_alignment(a, other, self._resize):
                    misaligned.append(f"{files[0]} is {format_size(*a)}, {file} is {format_size(*other)}")
                    break
            else:
                if self._resize == "none" and a != self._size:
                    wrong.append(f"{files[0]}: {format_size(*a)}")
        measure = "size" if self._resize == "none" else "proportions"
        self._report_faults(
            [
                *summarize_fault(f'images of a pair differ in {measure}, and resize = "{self._resize}":', misaligned),
                *summarize_fault(
                    f'{wanted} is {format_size(*self._size)}, and these differ (resize = "stretch", "fit" or "crop" '
                    "brings all to one size):",
                    wrong,
                ),
            ]
        )

    def _check_orientations(self, headers: Mapping[Files, tuple[ImageHeader, ...]]) -> None:
        pairs = [(files, headers[files]) for files in self.files if len(files) > 1]
        self._report_faults(summarize_fault(DIFFERENT_ORIENTATIONS, describe_differences(pairs)))

    def _check_conversions(self, shapes: Mapping[Files, tuple[ImageShape, ImageShape]]) -> None:
        """Convert the first few pairs that need it: only their pixels show whether a conversion loses information."""
        if self._collected_faults is not None:
            return

        def needs_conversion(files: Files) -> bool:
            counts = [shape[2] for shape in self._as_x_y(*shapes[files])]
            sides = zip(self._as_x_y(*_a_and_b(files)), counts, (0, 1), strict=True)
            return counts != self._channels or any(itertools.starmap(self._mixes_bands, sides))

        to_convert = filter(needs_conversion, self.files)
        faults = []
        for files, _ in zip(to_convert, range(MAX_NAMED_FILES), strict=False):
            try:
                self._convert(files)
            except UserError as error:
                faults.append(str(error))
        raise_faults(faults)


def _without_alpha(header: ImageHeader) -> ImageHeader:
    height, width, channels = header.shape
    return header._replace(shape=(height, width, channels - 1), has_alpha=False) if header.has_alpha else header


def _a_and_b(files: Files) -> tuple[Path, Path]:
    """The files of A and B; twice the same if one holds both."""
    return files[0], files[min(1, len(files) - 1)]


def _one_hot_encoding(labels: Labels | None) -> str | None:
    return "one-hot" if labels and labels.encoding == "one-hot" else None


def _resolve_range(option: Range | None, dtype: str, name: str, file: Path) -> Range:
    """The stored values that become -1 and 1; default: the full range of an integer type.

    Raises UserError if float32 has no range, ValueError if the two values are in the wrong order.
    """
    if option is None:
        if dtype == "float32":
            raise UserError(f"{file}: is float32: set the values that become -1 and 1, as in {name} = [0.0, 1.0]")
        return (0.0, float(np.iinfo(dtype).max))
    if not option[0] < option[1]:
        raise ValueError(f"{name} = {list(option)}: the first value must be the smaller one")
    return option


def _describe_bad_values(path: Path, image: np.ndarray, low: float, high: float, name: str) -> str:
    if not np.isfinite(image).all():
        return f"{path}: holds values that are NaN or infinite: replace them"
    return f"{path}: has values from {image.min():g} to {image.max():g}, outside {name} = [{low:g}, {high:g}]"
