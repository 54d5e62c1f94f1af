"""What the tasks share: a folder of photos, dealt into splits, each photo read and brought to one size."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import Files, find_pairs, pixels
from p2pzoo.data.splits import Fractions, assign_splits, fallback_split
from p2pzoo.images.io import read_image, with_channels
from p2pzoo.images.resize import Resize, resize_to
from p2pzoo.plugin import Pair, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import fingerprint

Count = Annotated[int, Field(ge=1)]
Size = tuple[Count, Count]


class Photos:
    """A sequence of Pairs, each made of one photo. A subclass says how (`pair_of`).

    split       "train", "val" or "test": the sub-folders train/, val/, test/ of `root` where there are any, else a
                share of the files (`fractions`). Where val or test has no photos, the other stands in for it, with a
                warning
    root        folder of photos; those in folders inside belong to it. Relative to the folder that p2pzoo is called in
    size        [H, W] of x and y
    resize      how a photo comes to that size: "crop" keeps its proportions and cuts the middle out; "fit" keeps them
                and continues the shorter side by reflection; "stretch"; "none" takes no other size
    max_pairs   of each split only so many, the first by name
    fractions   shares of train, val and test where there are no sub-folders
    split_seed  deals the files out anew

    `id` is the photo's name without suffix, after those of the folders that it lies in ("val-n02006656-017").

    Raises UserError, naming the first few files: no such folder or no photos in it, two that have one name. When it is
    read: a photo that does not decode, with transparent pixels, with more than 8 bits a channel, or of another size
    than resize = "none" takes. Nothing in the folders is changed.
    """

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(
        self,
        split: Split,
        root: Path,
        size: Size,
        resize: Resize,
        max_pairs: int | None,
        fractions: Fractions,
        split_seed: int,
        beside: Files = (),
    ) -> None:
        """`beside`: other folders, that have a file of the same name for each photo."""
        found = find_pairs(Path(root), *beside, nested=True)
        dealt = assign_splits(found, str(root), fractions, split_seed)
        photos = list(fallback_split(dealt, split, str(root)).items())[:max_pairs]
        self._ids = [id for id, _ in photos]
        self.files = [files for _, files in photos]
        self._size, self._resize = size, resize

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """x and y of a photo (H, W, 3) uint8, which is theirs to keep."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Pair:
        id, files = self._ids[operator.index(index)], self.files[index]
        return Pair(id, *self.pair_of(id, self.image(files[0], 3), files))

    def image(self, path: Path, channels: int) -> np.ndarray:
        """(*size, channels) uint8 of a file. Raises UserError where that would lose something."""
        image = read_image(path)
        if image.dtype != np.uint8:
            raise UserError(f"{path}: has {image.dtype} pixels; photos of 8 bits a channel are expected")
        if self._resize == "none" and image.shape[:2] != self._size:
            told = f"{path}: {pixels(*image.shape[:2])}, and size is {pixels(*self._size)}"
            raise UserError(f'{told}: resize = "crop", "fit" or "stretch" brings it there')
        try:
            return resize_to(with_channels(image, channels), self._size, self._resize)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def fingerprint(self) -> str:
        """Changes when files of this split come, go or change in length."""
        return fingerprint([file for files in self.files for file in files])


def luma(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, 1) uint8: Rec. 601, rounded."""
    red, green, blue = np.moveaxis(photo.astype(np.int32), -1, 0)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[..., None]
