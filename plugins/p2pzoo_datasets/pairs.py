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
from p2pzoo.images import with_channels
from p2pzoo.layouts import FEW, Files, Shape, find_pairs, headers, pixels, raise_any, several
from p2pzoo_datasets.fitting import Resize, alike, fitted
from p2pzoo_datasets.splits import Fractions, deal, or_stand_in

Channels = Literal[1, 3, 4]
Count = Annotated[int, Field(ge=1)]
Direction = Literal["AtoB", "BtoA"]


class FilePairs:
    """A sequence of Pairs, uint8, read from files each time. A subclass says what the files of a pair hold."""

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
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
        fractions: Fractions,
        split_seed: int,
    ) -> None:
        """`channels`: of x and of y. `folders`: as `layouts.find_pairs` takes them. The rest: see `Folders`."""
        where = ", ".join(map(str, folders))
        dealt = deal(find_pairs(*folders, tell=self._tell), where, fractions, split_seed)
        first = next(iter(dealt["train"].values()))  # decides for every split, so that they are alike
        self._pairs = list(or_stand_in(dealt, split, where).items())[:max_pairs]
        self._resize: Resize = resize
        self._swapped = direction == "BtoA"

        shapes = self.look(dict.fromkeys(file for files in (first, *self.files) for file in files))
        if self._told is not None:
            self._pairs = [pair for pair in self._pairs if shapes.keys() >= set(pair[1])]
            if not self._pairs:
                raise UserError(*self._told)
            first = first if shapes.keys() >= set(first) else self._pairs[0][1]
        a, b = self.shapes_of(first, shapes)
        self._size = size or a[:2]
        self._refuse_sizes(shapes, "`size`" if size else "the first training pair's size")
        self._channels = [given or own[2] for given, own in zip(channels, self._as_x_y(a, b), strict=True)]
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

    def look(self, files: Iterable[Path]) -> dict[Path, Shape]:
        """The shapes of the files, by their headers. Raises UserError with those that cannot hold a pair."""
        return headers(files, self._tell)

    def shapes_of(self, files: Files, shapes: Mapping[Path, Shape]) -> tuple[Shape, Shape]:
        """Shapes of A and B in these files, by the headers of the files."""
        raise NotImplementedError

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """A and B, each (H, W, C) uint8 in its own size and channels."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, files = self._pairs[operator.index(index)]
        x, y = (fitted(image, self._size, self._resize) for image in self._converted(files))
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
        """x and y in their channels, each in its own size. Raises UserError where that would lose something."""
        images, paths = self._as_x_y(*self.read(files)), self._as_x_y(files[0], files[-1])
        converted = []
        for image, channels, path, name in zip(images, self._channels, paths, ("input", "target"), strict=True):
            try:
                converted.append(with_channels(image, channels))
            except ValueError as error:
                origin = f"{name}_channels is {channels}: given, or the first training pair's"
                raise UserError(f"{path}: {error} ({origin})") from None
        return converted

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
