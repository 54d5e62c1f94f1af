"""The paper's datasets as published: JPEGs of pairs, A on the left and B on the right.

Isola et al. 2017 (arXiv:1611.07004 v3), §6.2; halves and counts are those of the archives of phillipi/pix2pix.
`p2pzoo data fetch NAME` downloads one; nothing is redistributed here.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import halves
from p2pzoo.images.io import read_header, read_image, with_channels
from p2pzoo.images.resize import resize_to
from p2pzoo.plugin import Archive, FileLayout, Pair, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import find_resized, read_digests
from p2pzoo.utils.files import fingerprint
from p2pzoo.utils.plurals import format_count

Count = Annotated[int, Field(ge=1)]
SERVER = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets"
CHECKED_FILES = 3  # whose headers the constructor reads; all 138,567 of edges2handbags would delay every start


class Published:
    """Pairs of one published archive; a subclass defines the archive and its tasks.

    split    "train", "val" or "test": that folder of `root`. If the archive has no val or test, the other replaces it,
             with a warning: what you select by one is then not new to the other
    root     the folder with train/; default: the folder of `p2pzoo data fetch`
    size     side of x and y in px; halves of another size are scaled, bicubic with antialiasing, as Pillow does
    swapped  whether x is B, the right half, and y is A

    A Pair's x and y are (size, size, 3) uint8 RGB, without labels. The jitter enlarges the published image, not the one
    scaled to `size`: maps are scaled from 600 to 286 px in one step, as in the public codes.

    Raises UserError if the folder is missing or empty, if fetched files are missing or changed in size, or if an image
    cannot be decoded or does not have the published size (the first few are checked in the constructor, each when
    it is read). Warns if the number of pairs is not the published one.
    """

    archive: ClassVar[Archive]
    half: ClassVar[int] = 256  # side in px as published

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None

    def __init__(self, split: Split, root: Path | None, size: int, swapped: bool) -> None:
        self._root = self.archive.folder if root is None else Path(root)
        self._size, self._swapped = size, swapped
        self._refuse_damaged(split)
        folder = self._root / self._choose_folder(split)
        if folder.name != split:
            self._refuse_damaged(folder.name)
        self._files = sorted(folder.glob("*.jpg"))
        if not self._files:
            fault = "has no .jpg files" if folder.is_dir() else "does not exist"
            raise UserError(
                f"{folder}: {fault}; dataset '{self.archive.name}' expects its pairs there\n{self._describe_sources()}"
            )
        if faults := [fault for path in self._files[:CHECKED_FILES] if (fault := self._find_fault(path))]:
            raise UserError(*faults)
        published = self.archive.images.get(folder.name)
        if len(self._files) != published:
            warnings.warn(
                f"{folder} has {format_count(len(self._files), 'pair')}, the paper has {published or 'no such split'}: "
                "is the archive extracted completely?",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Pair:
        original = self.original(index)
        x, y = (resize_to(image, (self._size, self._size), "stretch") for image in (original.x, original.y))
        return replace(original, x=x, y=y)

    def original(self, index: int) -> Pair:
        """The pair in its published size."""
        path = self._files[operator.index(index)]
        a, b = halves(self._read_checked(path))
        x, y = (b, a) if self._swapped else (a, b)
        return Pair(f"{path.parent.name}-{path.stem}", x, y, self._labels_of(path), self._block_of(path))

    @property
    def file_layout(self) -> FileLayout:
        scale = self._size / self.half
        return FileLayout((self.half, self.half), (scale, scale), "right" if self._swapped else "left")

    @property
    def files(self) -> list[tuple[Path, ...]]:
        """The files that each pair of this split is read from."""
        return [(file,) for file in self._files]

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split are added, removed or change in length."""
        return fingerprint(file for files in self.files for file in files)

    def _labels_of(self, path: Path) -> np.ndarray | None:
        return None

    def _block_of(self, path: Path) -> str | None:
        return None

    def _choose_folder(self, split: Split) -> str:
        other = {"val": "test", "test": "val"}.get(split)
        if other and not (self._root / split).is_dir() and (self._root / other).is_dir():
            warnings.warn(f"{self._root}: no pairs in {split}; {other} is used instead", stacklevel=4)
            return other
        return split

    def _refuse_damaged(self, folder: str) -> None:
        """Compare the sizes of a folder's files with those that `p2pzoo data fetch` recorded."""
        if self._root.resolve() != self.archive.folder.resolve():
            return
        digests = read_digests(self.archive.digests_file) or {}
        of_folder = {name: each for name, each in digests.items() if name.startswith(f"{folder}/")}
        damaged = find_resized(self._root, of_folder)
        if damaged:
            raise UserError(
                f"{self._root}: {len(damaged)} of {len(of_folder)} files in {folder}/ are damaged or missing since the "
                f"fetch ({damaged[0]}{', ...' * (len(damaged) > 1)}): `p2pzoo data fetch {self.archive.name}` "
                f"restores them; if you changed them on purpose, remove {self.archive.digests_file.name} beside it"
            )

    def _describe_sources(self) -> str:
        """How to get the pairs: a line for each way, indented, as the list below a fault is."""
        return (
            f"  get them: p2pzoo data fetch {self.archive.name} ({self.archive.length})\n"
            "  or set the folder of your copy: -s dataset.root=DIR"
        )

    def _find_fault(self, path: Path) -> str | None:
        """The fault of an image, if its header shows one; nothing is decoded."""
        try:
            height, width, _ = read_header(path)
        except UserError as error:
            return f"{error}: extract the archive again"
        if (height, width) == (self.half, 2 * self.half):
            return None
        expected = f"{2 * self.half}×{self.half}, A on the left, B on the right"
        return f"{path}: is {width}×{height} px; dataset '{self.archive.name}' expects {expected}"

    def _read_checked(self, path: Path) -> np.ndarray:
        """(half, 2 * half, 3) uint8."""
        if fault := self._find_fault(path):
            raise UserError(fault)
        try:
            return with_channels(read_image(path), 3)
        except UserError as error:  # the header is intact, the rest is not
            raise UserError(f"{error}: extract the archive again") from error
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error


class Facades(Published):
    """Building facades and their parts as coloured labels: A photo, B labels. 400, 100 and 106 pairs.

    task  "labels-to-photo" (the paper's) or "photo-to-labels"

    All else: see `Published`.
    """

    archive = Archive(
        name="facades",
        url=f"{SERVER}/facades.tar.gz",
        size=30_168_306,
        images={"train": 400, "val": 100, "test": 106},
        licence="CMP Facade Database, of several sources: none is stated",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path | None = None,
        task: Literal["labels-to-photo", "photo-to-labels"] = "labels-to-photo",
        size: Count = 256,
    ) -> None:
        super().__init__(split, root, size, swapped=task == "labels-to-photo")


class Maps(Published):
    """New York in aerial photos and on Google Maps: A aerial photo, B map, 600 px. 1096 and 1098 pairs, no test.

    task  "map-to-aerial" or "aerial-to-map", both in the paper

    All else: see `Published`.
    """

    half = 600
    archive = Archive(
        name="maps",
        url=f"{SERVER}/maps.tar.gz",
        size=250_242_400,
        images={"train": 1096, "val": 1098},
        licence="Google Maps imagery: Google's terms of service",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path | None = None,
        task: Literal["map-to-aerial", "aerial-to-map"] = "map-to-aerial",
        size: Count = 256,
    ) -> None:
        super().__init__(split, root, size, swapped=task == "map-to-aerial")


class EdgesToShoes(Published):
    """Shoes and their edges (HED): A edges, B photo. 49,825 and 200 pairs, no test.

    task  "edges-to-photo" (the paper's) or "photo-to-edges"

    All else: see `Published`.
    """

    archive = Archive(
        name="edges2shoes",
        url=f"{SERVER}/edges2shoes.tar.gz",
        about="2.0 GB",
        images={"train": 49_825, "val": 200},
        licence="UT Zappos50K: academic, non-commercial use",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path | None = None,
        task: Literal["edges-to-photo", "photo-to-edges"] = "edges-to-photo",
        size: Count = 256,
    ) -> None:
        super().__init__(split, root, size, swapped=task == "photo-to-edges")


class EdgesToHandbags(Published):
    """Handbags and their edges (HED): A edges, B photo. 138,567 and 200 pairs, no test.

    task  "edges-to-photo" (the paper's) or "photo-to-edges"

    All else: see `Published`.
    """

    archive = Archive(
        name="edges2handbags",
        url=f"{SERVER}/edges2handbags.tar.gz",
        about="8.0 GB",
        images={"train": 138_567, "val": 200},
        licence="Amazon's photos, collected for iGAN: none is stated",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path | None = None,
        task: Literal["edges-to-photo", "photo-to-edges"] = "edges-to-photo",
        size: Count = 256,
    ) -> None:
        super().__init__(split, root, size, swapped=task == "photo-to-edges")


class NightToDay(Published):
    """Webcams by night and by day: A night, B day. 17,823 pairs of 91 cameras, 10, and 2,287 of 10 other cameras.

    task  "day-to-night" (the paper's) or "night-to-day"

    A Pair's block is its camera: the first number in its file name. All else: see `Published`.
    """

    archive = Archive(
        name="night2day",
        url=f"{SERVER}/night2day.tar.gz",
        about="1.9 GB",
        images={"train": 17_823, "val": 10, "test": 2_287},
        licence="Transient Attributes, of webcams: none is stated",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path | None = None,
        task: Literal["day-to-night", "night-to-day"] = "day-to-night",
        size: Count = 256,
    ) -> None:
        super().__init__(split, root, size, swapped=task == "day-to-night")

    def _block_of(self, path: Path) -> str:
        return path.stem.partition("_")[0]
