"""What the datasets of image files share: one size, one channel count, and reading; faults are told before training."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import FEW, Files, Shape, inspected, pixels, raise_any, several
from p2pzoo.data.splits import Splits, fallback_split
from p2pzoo.images.io import Header, inspect, read_image, with_channels
from p2pzoo.images.label_maps import Colour, Labels, inspect_map
from p2pzoo.images.resize import Kernel, Resize, keeps_alignment, resize_to
from p2pzoo.plugin import Pair, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import fingerprint
from p2pzoo_datasets.class_files import ClassFiles

Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
Direction = Literal["AtoB", "BtoA"]


class FilePairs:
    """A sequence of Pairs, read from files each time. A subclass says what the files of a pair hold."""

    classes: Sequence[str] | None = None
    palette: Sequence[Colour] | None = None
    _told: list[str] | None = None  # where faults are gathered instead of raised (`usable`)

    def __init__(
        self,
        split: Split,
        dealt: Splits,
        where: str,
        *,
        size: tuple[int, int] | None,
        resize: Resize,
        max_pairs: int | None,
        channels: tuple[int | None, int | None],
        ranges: tuple[Range | None, Range | None],
        direction: Direction = "AtoB",
        class_files: ClassFiles | None = None,
        blocks: Mapping[str, str | None] | None = None,
    ) -> None:
        """`dealt`: split -> id -> the files of A and of B (one, where it holds both), then of labels.

        `where`: what to name in messages. `channels`, `ranges`: of x and y. `blocks`: by id. The rest: see `Folders`.
        """
        maps = class_files or ClassFiles()
        self._maps, self._labels = (maps.x, maps.y), maps.labels
        self.classes = self._labels and self._labels.names
        self.palette = self._labels and self._labels.colours
        first = next(iter(dealt["train"].values()))  # decides for every split, so that they are alike
        self._pairs = list(fallback_split(dealt, split, where).items())[:max_pairs]
        self._blocks = blocks or {}
        self._resize: Resize = resize
        self._swapped = direction == "BtoA"
        for name, labels, *given in zip(("input", "target"), self._maps, channels, ranges, strict=True):
            if labels and any(given):
                raise ValueError(f"{name}_channels and {name}_range: label maps have those of their classes")

        headers = self.look(dict.fromkeys((first, *self.files)))
        if self._told is not None:
            self._pairs = [pair for pair in self._pairs if pair[1] in headers]
            if not self._pairs:
                raise UserError(*self._told)
            first = first if first in headers else self._pairs[0][1]
        firsts = self._as_x_y(headers[first][0], headers[first][1])
        self._refuse_dtypes(headers, firsts)
        self.x_range, self.y_range = (
            labels.range if labels else _range(given, header.dtype, f"{name}_range", file)
            for labels, given, header, name, file in zip(
                self._maps, ranges, firsts, ("input", "target"), self._as_x_y(*_a_b(first)), strict=True
            )
        )
        shapes = {files: self.shapes_of(found) for files, found in headers.items()}
        a, b = shapes[first]
        self._size = size or a[:2]
        self._refuse_sizes(headers, shapes, "`size`" if size else "the first training pair's size")
        own_channels = [shape[2] for shape in self._as_x_y(a, b)]
        self._channels = [given or own for given, own in zip(channels, own_channels, strict=True)]
        self._bands = [
            channels == own and not header.opacity
            for channels, own, header in zip(self._channels, own_channels, firsts, strict=True)
        ]
        self._refuse_suspects(shapes)

    @classmethod
    def usable(cls, split: Split, **parameters: Any) -> tuple[Self, list[str]]:
        """The pairs that can be used, and what is wrong with the others, which the constructor raises.

        Sizes and channels that do not fit show when a pair is read.
        """
        found = cls.__new__(cls)
        found._told = []
        found.__init__(split, **parameters)  # type: ignore[misc]
        return found, found._told

    def look(self, pairs: Iterable[Files]) -> dict[Files, tuple[Header, ...]]:
        """The headers of A and B in these files, and of their labels. Raises UserError with files that hold none."""
        inspectors = [inspect_map if labels else inspect for labels in self._as_x_y(*self._maps)]
        wanted = {
            files: [*zip(_a_b(files), inspectors, strict=True), *((file, inspect_map) for file in files[2:])]
            for files in pairs
        }
        found = inspected((each for all_of_it in wanted.values() for each in all_of_it), self._tell)
        return {
            files: tuple(found[each] for each in all_of_it)
            for files, all_of_it in wanted.items()
            if all(each in found for each in all_of_it)
        }

    def shapes_of(self, headers: tuple[Header, ...]) -> tuple[Shape, Shape]:
        """Shapes of A and B, by their headers."""
        return headers[0].shape, headers[1].shape

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """A and B, each (H, W, C) in its own size and channels; label maps as classes, (H, W, 1)."""
        a, b = (
            labels.classes.of_file(file)[..., None] if labels else read_image(file)
            for file, labels in zip(_a_b(files), self._as_x_y(*self._maps), strict=True)
        )
        return a, b

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, files = self._pairs[operator.index(index)]
        images, classes = [], []
        sides = zip(self._converted(files), (self.x_range, self.y_range), self._bands, self._maps, strict=True)
        for image, limits, bands, labels in sides:
            if labels:
                classes.append(self._fitted_map(image))
                images.append(labels.encoded(classes[-1]))
            else:
                bands = bands and image.shape[2] in (2, 4)
                images.append(resize_to(image, self._size, self._resize, limits, bands=bands))
        if len(files) == 3 and self._labels:
            classes.append(self._fitted_map(self._labels.of_file(files[2])[..., None]))
        return Pair(name, *images, classes[-1] if classes else None, self._blocks.get(name))

    def _fitted_map(self, classes: np.ndarray) -> np.ndarray:
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
        return _one_hot(self._maps[0])

    @property
    def y_encoding(self) -> str | None:
        return _one_hot(self._maps[1])

    @property
    def x_kernel(self) -> Kernel | None:
        return "nearest" if self._maps[0] else None

    @property
    def y_kernel(self) -> Kernel | None:
        return "nearest" if self._maps[1] else None

    @property
    def files(self) -> list[Files]:
        """Of each pair, what it is read from."""
        return [files for _, files in self._pairs]

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split come, go or change in length, and with what class files and blocks say."""
        own = fingerprint([file for files in self.files for file in files])
        sides = [labels and labels.header() for labels in self._maps]
        said = [*sides, self._labels and self._labels.plain(), self._blocks]
        if not any(said):
            return own
        return f"{own}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]}"

    def _tell(self, faults: Sequence[str]) -> None:
        if self._told is None:
            raise_any(faults)
        else:
            self._told += faults

    def _as_x_y(self, a: Any, b: Any) -> tuple[Any, Any]:
        return (b, a) if self._swapped else (a, b)

    def _converted(self, files: Files) -> list[np.ndarray]:
        """x and y in their channels, each in its own size.

        Raises UserError where that would lose something, and where values are outside of what becomes -1 to 1.
        """
        images, paths = self._as_x_y(*self.read(files)), self._as_x_y(*_a_b(files))
        converted, ranges = [], (self.x_range, self.y_range)
        sides = zip(images, self._channels, paths, ("input", "target"), ranges, self._maps, strict=True)
        for image, channels, path, name, (low, high), labels in sides:
            if not (labels or (image.min() >= low and image.max() <= high)):
                raise UserError(_outside(path, image, low, high, f"{name}_range"))
            try:
                converted.append(image if labels else with_channels(image, channels))
            except ValueError as error:
                origin = f"{name}_channels is {channels}: given, or the first training pair's"
                raise UserError(f"{path}: {error} ({origin})") from None
        return converted

    def _refuse_dtypes(self, headers: Mapping[Files, tuple[Header, ...]], firsts: tuple[Header, Header]) -> None:
        """All x are stored alike, and all y: nothing is converted."""
        if self._told is not None:
            return
        unlike: list[str] = []
        for files in self.files:
            own = self._as_x_y(headers[files][0], headers[files][1])
            for path, header, first in zip(self._as_x_y(*_a_b(files)), own, firsts, strict=True):
                if header.dtype != first.dtype:
                    unlike.append(f"{path} is {header.dtype}, the first training pair's is {first.dtype}")
        raise_any(several("images of one side must be stored alike, and nothing is converted:", dict.fromkeys(unlike)))

    def _refuse_sizes(
        self,
        headers: Mapping[Files, tuple[Header, ...]],
        shapes: Mapping[Files, tuple[Shape, Shape]],
        wanted: str,
    ) -> None:
        if self._told is not None and self._resize == "none":
            return
        unlike, wrong = [], []
        for files in self.files:
            a, *others = [shape[:2] for shape in (*shapes[files], *(header.shape for header in headers[files][2:]))]
            for other, file in zip(others, (_a_b(files)[1], *files[2:]), strict=True):
                if not keeps_alignment(a, other, self._resize):
                    unlike.append(f"{files[0]} is {pixels(*a)}, {file} is {pixels(*other)}")
                    break
            else:
                if self._resize == "none" and a != self._size:
                    wrong.append(f"{files[0]}: {pixels(*a)}")
        what = "size" if self._resize == "none" else "proportions"
        self._tell(
            [
                *several(f'the images of a pair differ in {what}, and resize = "{self._resize}":', unlike),
                *several(
                    f'{wanted} is {pixels(*self._size)}, and these differ (resize = "stretch", "fit" or "crop" '
                    "makes all alike):",
                    wrong,
                ),
            ]
        )

    def _refuse_suspects(self, shapes: Mapping[Files, tuple[Shape, Shape]]) -> None:
        """Whether a conversion loses something is in the pixels: look at the first few pairs that need one."""
        if self._told is not None:
            return
        needing = (
            files for files in self.files if [shape[2] for shape in self._as_x_y(*shapes[files])] != self._channels
        )
        faults = []
        for files, _ in zip(needing, range(FEW), strict=False):
            try:
                self._converted(files)
            except UserError as error:
                faults.append(str(error))
        raise_any(faults)


def _a_b(files: Files) -> tuple[Path, Path]:
    """The files of A and B, of which one may hold both."""
    return files[0], files[min(1, len(files) - 1)]


def _one_hot(labels: Labels | None) -> str | None:
    return "one-hot" if labels and labels.encoding == "one-hot" else None


def _range(given: Range | None, dtype: str, name: str, file: Path) -> Range:
    """The values that become -1 and 1: as given, else all that an integer type has. Raises UserError or ValueError."""
    if given is None:
        if dtype == "float32":
            raise UserError(f"{file}: is float32: declare the values that become -1 and 1, as in {name} = [0.0, 1.0]")
        return (0.0, float(np.iinfo(dtype).max))
    if not given[0] < given[1]:
        raise ValueError(f"{name} = {list(given)}: the first value must be the smaller one")
    return given


def _outside(path: Path, image: np.ndarray, low: float, high: float, name: str) -> str:
    """What is wrong with its values."""
    if not np.isfinite(image).all():
        return f"{path}: holds values that are no numbers (NaN or infinite): replace them"
    return f"{path}: its values reach from {image.min():g} to {image.max():g}, and {name} is [{low:g}, {high:g}]"
