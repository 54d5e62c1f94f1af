"""What the datasets of photos share: a folder of photos, their splits, reading and resizing."""

from __future__ import annotations

import operator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import Files, ImageShape, find_pairs, format_size, read_headers
from p2pzoo.data.splits import Fractions, assign_splits, fallback_split
from p2pzoo.images.io import TransparentPixels, read_header, read_image, with_channels
from p2pzoo.images.resize import ResizeMode, median_size, resize_factors, resize_to
from p2pzoo.plugin import FileLayout, Pair, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import fingerprint

Count = Annotated[int, Field(ge=1)]
Size = tuple[Count, Count]
MAX_HEADERS = 1000  # headers that are read for the median size of the files of x


class Photos:
    """A sequence of Pairs, each made from one photo. A subclass defines how (`make_pair`).

    split       "train", "val" or "test": the sub-folders train/, val/, test/ of `root` if they exist, else a part of
                the files (`fractions`). If val or test has no photos, the other is used instead, with a warning
    root        folder of photos, with all folders below it; relative to the recipe
    size        [H, W] of x and y
    resize      how a photo is brought to that size: "crop" keeps its proportions and cuts out the centre; "fit" keeps
                them and extends the shorter side by reflection; "stretch" loses them; "none" allows no other size
    max_pairs   maximum number of pairs in each split: the first by name
    fractions   fractions of train, val and test, if there are no sub-folders
    split_seed  seed of the random assignment to splits

    `id` is the photo's name without suffix, with the names of its folders in front ("val-n02006656-017").

    Raises UserError, naming the first few files, for a missing folder, a folder without photos, and photos with the
    same id; when a photo is read, also if it does not decode, has transparent pixels, more than 8 bits a channel, or a
    size that resize = "none" does not allow. Nothing in the folders is changed.
    """

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(
        self,
        split: Split,
        root: Path,
        size: Size,
        resize: ResizeMode,
        max_pairs: int | None,
        fractions: Fractions,
        split_seed: int,
        partner_folders: Files = (),
    ) -> None:
        """`partner_folders`: other folders with a file of the same name for each photo."""
        stems = find_pairs(Path(root), *partner_folders, nested=True)
        splits = assign_splits(stems, str(root), fractions, split_seed)
        photos = list(fallback_split(splits, split, str(root)).items())[:max_pairs]
        self._ids = [id for id, _ in photos]
        self.files = [files for _, files in photos]
        self._size, self._resize = size, resize

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """x and y of a photo (H, W, 3) uint8; they may share its memory."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Pair:
        id, files = self._ids[operator.index(index)], self.files[index]
        return Pair(id, *self.make_pair(id, self.read_photo(files[0], 3), files))

    def read_photo(self, path: Path, channels: int) -> np.ndarray:
        """A file as (*size, channels) uint8. Raises UserError if the conversion would lose information."""
        image = read_image(path)
        if image.dtype != np.uint8:
            raise UserError(f"{path}: has {image.dtype} pixels; photos must have 8 bits a channel")
        if self._resize == "none" and image.shape[:2] != self._size:
            sizes = f"{format_size(*image.shape[:2])}, and size is {format_size(*self._size)}"
            raise UserError(f'{path}: is {sizes}: set resize = "crop", "fit" or "stretch"')
        try:
            return resize_to(with_channels(image, channels), self._size, self._resize)
        except TransparentPixels as error:
            raise UserError(f"{path}: {error}: save it without transparency") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def resize_mode(self) -> ResizeMode:
        return self._resize

    @cached_property
    def file_shapes(self) -> list[tuple[ImageShape, ImageShape]]:
        """(H, W, C) of the files of x and of y. Raises UserError that names files without a readable header."""
        shapes = {file: header.shape for file, header in read_headers(chain.from_iterable(self.files)).items()}
        return [(shapes[files[-1]], shapes[files[0]]) for files in self.files]  # one photo, or photo and partner

    @property
    def file_layout(self) -> FileLayout:
        """Scale 1: noise, blur, lines and holes are made in the resized photo, so `size` does not change their scale.

        A subclass whose x is itself resized from files has their layout instead (`find_layout`).
        """
        return FileLayout()

    def find_layout(self) -> FileLayout:
        """The layout where x is resized from files. From the headers of at most MAX_HEADERS files, spread over all."""
        step = -(-len(self.files) // MAX_HEADERS)
        sizes = [read_header(files[-1])[:2] for files in self.files[::step]]
        return FileLayout(median_size(sizes), resize_factors(sizes, self._size, self._resize))

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split are added, removed or change in length."""
        return fingerprint([file for files in self.files for file in files])


def to_luma(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, 1) uint8: luma of Rec. 601, rounded.

    >>> to_luma(np.full((1, 1, 3), [255, 0, 0], np.uint8)).tolist()
    [[[76]]]
    """
    red, green, blue = np.moveaxis(photo.astype(np.int32), -1, 0)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[..., None]
