"""What the datasets of image files share: one size, one channel count, and reading; faults are told before training."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from p2pzoo.contracts import Pair, Split
from p2pzoo.errors import UserError
from p2pzoo.files import fingerprint
from p2pzoo.fitting import Resize, alike, fitted
from p2pzoo.images import Header, with_channels
from p2pzoo.layouts import FEW, Files, Shape, find_pairs, headers, pixels, raise_any, several
from p2pzoo.splits import Fractions, deal, or_stand_in

Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
Direction = Literal["AtoB", "BtoA"]


class FilePairs:
    """A sequence of Pairs, read from files each time. A subclass says what the files of a pair hold."""

    classes = None
    palette = None
    _told: list[str] | None = None  # where faults are gathered instead of raised (`usable`)

    def __init__(
        self,
        split: Split,
        folders: Files,
        *,
        size: tuple[int, int] | None,
        resize: Resize,
        direction: Direction,
        max_pairs: int | None,
        channels: tuple[int | None, int | None],
        ranges: tuple[Range | None, Range | None],
        fractions: Fractions,
        split_seed: int,
    ) -> None:
        """`channels`, `ranges`: of x and y. `folders`: as `layouts.find_pairs` takes them. The rest: see `Folders`."""
        where = ", ".join(map(str, folders))
        dealt = deal(find_pairs(*folders, tell=self._tell), where, fractions, split_seed)
        first = next(iter(dealt["train"].values()))  # decides for every split, so that they are alike
        self._pairs = list(or_stand_in(dealt, split, where).items())[:max_pairs]
        self._resize: Resize = resize
        self._swapped = direction == "BtoA"

        headers = self.look(dict.fromkeys(file for files in (first, *self.files) for file in files))
        if self._told is not None:
            self._pairs = [pair for pair in self._pairs if headers.keys() >= set(pair[1])]
            if not self._pairs:
                raise UserError(*self._told)
            first = first if headers.keys() >= set(first) else self._pairs[0][1]
        shapes = {file: header.shape for file, header in headers.items()}
        firsts = self._as_x_y(headers[first[0]], headers[first[-1]])
        self._refuse_dtypes(headers, firsts)
        self.x_range, self.y_range = (
            _range(given, header.dtype, f"{name}_range", file)
            for given, header, name, file in zip(
                ranges, firsts, ("input", "target"), self._as_x_y(first[0], first[-1]), strict=True
            )
        )
        a, b = self.shapes_of(first, shapes)
        self._size = size or a[:2]
        self._refuse_sizes(shapes, "`size`" if size else "the first training pair's size")
        self._channels = [given or own[2] for given, own in zip(channels, self._as_x_y(a, b), strict=True)]
        own_channels = [shape[2] for shape in self._as_x_y(a, b)]
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

    def look(self, files: Iterable[Path]) -> dict[Path, Header]:
        """The headers of the files. Raises UserError with those that cannot hold a pair."""
        return headers(files, self._tell)

    def shapes_of(self, files: Files, shapes: Mapping[Path, Shape]) -> tuple[Shape, Shape]:
        """Shapes of A and B in these files, by the headers of the files."""
        raise NotImplementedError

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """A and B, each (H, W, C) in its own size and channels."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, files = self._pairs[operator.index(index)]
        ranges = (self.x_range, self.y_range)
        x, y = (
            fitted(image, self._size, self._resize, limits, bands=bands and image.shape[2] in (2, 4))
            for image, limits, bands in zip(self._converted(files), ranges, self._bands, strict=True)
        )
        return Pair(name, x, y)

    @property
    def files(self) -> list[Files]:
        """Of each pair, what it is read from."""
        return [files for _, files in self._pairs]

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split come, go or change in length."""
        return fingerprint([file for files in self.files for file in files])

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
        images, paths = self._as_x_y(*self.read(files)), self._as_x_y(files[0], files[-1])
        converted, ranges = [], (self.x_range, self.y_range)
        sides = zip(images, self._channels, paths, ("input", "target"), ranges, strict=True)
        for image, channels, path, name, (low, high) in sides:
            if not (image.min() >= low and image.max() <= high):
                raise UserError(_outside(path, image, low, high, f"{name}_range"))
            try:
                converted.append(with_channels(image, channels))
            except ValueError as error:
                origin = f"{name}_channels is {channels}: given, or the first training pair's"
                raise UserError(f"{path}: {error} ({origin})") from None
        return converted

    def _refuse_dtypes(self, headers: Mapping[Path, Header], firsts: tuple[Header, Header]) -> None:
        """All x are stored alike, and all y: nothing is converted."""
        if self._told is not None:
            return
        unlike: list[str] = []
        for files in self.files:
            for path, first in zip(self._as_x_y(files[0], files[-1]), firsts, strict=True):
                if headers[path].dtype != first.dtype:
                    unlike.append(f"{path} is {headers[path].dtype}, the first training pair's is {first.dtype}")
        raise_any(several("images of one side must be stored alike, and nothing is converted:", dict.fromkeys(unlike)))

    def _refuse_sizes(self, shapes: Mapping[Path, Shape], wanted: str) -> None:
        if self._told is not None and self._resize == "none":
            return
        unlike, wrong = [], []
        for files in self.files:
            a, b = (shape[:2] for shape in self.shapes_of(files, shapes))
            if not alike(a, b, self._resize):
                unlike.append(f"{files[0]} is {pixels(*a)}, {files[-1]} is {pixels(*b)}")
            elif self._resize == "none" and a != self._size:
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

    def _refuse_suspects(self, shapes: Mapping[Path, Shape]) -> None:
        """Whether a conversion loses something is in the pixels: look at the first few pairs that need one."""
        if self._told is not None:
            return
        needing = (
            files
            for files in self.files
            if [shape[2] for shape in self._as_x_y(*self.shapes_of(files, shapes))] != self._channels
        )
        faults = []
        for files, _ in zip(needing, range(FEW), strict=False):
            try:
                self._converted(files)
            except UserError as error:
                faults.append(str(error))
        raise_any(faults)


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
