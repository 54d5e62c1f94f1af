"""The dataset `cityscapes`: the pairs that the paper's ablations (Tables 1 to 3) were trained and tested on.

Cordts et al. 2016 (arXiv:1604.01685), in the pairs that Isola et al. 2017 published, or in those that
`p2pzoo data prepare cityscapes` makes of the original archives, which have class maps beside them.
"""

from __future__ import annotations

import operator
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.contracts import Pair, Split, Track
from p2pzoo.errors import UserError
from p2pzoo.images import read_header, read_image, with_channels
from p2pzoo.layouts import halves
from p2pzoo_datasets.cityscapes_classes import CLASSES, PALETTE

SIDE = 256
FOLDERS: dict[Split, str] = {"train": "train", "val": "val", "test": "val"}
PAPER_COUNTS = {"train": 2975, "val": 500}  # by folder

HOW_TO_GET_IT = (
    "  the pairs: http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/cityscapes.tar.gz (103,441,232 bytes), "
    "extracted into datasets/\n"
    "  or register at https://www.cityscapes-dataset.com and make them, with the labels that scores need: "
    "p2pzoo data prepare cityscapes --leftimg8bit ZIP --gtfine ZIP -o datasets/cityscapes\n"
    "  data elsewhere: -s dataset.root=DIR"
)


class Cityscapes:
    """Pairs of photo and label map from a folder of JPEGs, 512 × 256 px: photo on the left, labels on the right.

    split  "train" reads `root`/train (2975 pairs); "val" and "test" both read `root`/val (500), since the paper
           tests on Cityscapes' validation set. Choose nothing by "val" that you then report on "test".
    root   the folder that the archive extracts to
    task   "labels-to-photo" (Tables 1 to 3) or "photo-to-labels" (Table 6)
    size   side of x and y in px; the pairs come in 256 only

    A Pair's x and y are (256, 256, 3) uint8 RGB. Label maps are drawn in colours that went through scaling and JPEG
    (the paper's footnote 2), so the published pairs have no class map: `labels`, `classes` and `palette` are None.
    Where `root`/labels has class maps (`p2pzoo data prepare cityscapes`), `labels` is (1024, 2048) uint8, the size at
    which the paper scores: 0 to 18 for the 19 `classes`, 255 for what is ignored.

    Raises UserError where the folder is missing or empty, where pairs lack their class maps that others have, and where
    an image has another size or cannot be decoded (the first few are looked at here, each one when it is read). Warns
    where there are not as many pairs as in the paper.
    """

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)

    def __init__(
        self,
        split: Split,
        *,
        root: Path = Path("datasets/cityscapes"),
        task: Literal["labels-to-photo", "photo-to-labels"] = "labels-to-photo",
        size: Literal[256] = SIDE,
    ) -> None:
        folder = Path(root) / FOLDERS[split]
        self._files = sorted(folder.glob("*.jpg"))
        self._task = task
        if not self._files:
            what = "holds no .jpg files" if folder.is_dir() else "does not exist"
            raise UserError(f"{folder}: {what}; dataset 'cityscapes' expects its pairs there\n{HOW_TO_GET_IT}")
        if faults := [fault for path in self._files[:3] if (fault := _fault(path))]:
            raise UserError(*faults)
        if len(self._files) != PAPER_COUNTS[folder.name]:
            warnings.warn(
                f"{folder} holds {len(self._files)} pairs where the paper has {PAPER_COUNTS[folder.name]}: "
                "was the archive extracted in full?",
                stacklevel=2,
            )

        self._labels = self._class_maps(Path(root) / "labels" / folder.name)
        self.classes = CLASSES if self._labels else None
        self.palette = PALETTE if self._labels else None

    @staticmethod
    def prepare(out: Path, track: Track, *, leftimg8bit: Path, gtfine: Path) -> list[str]:
        """Make the pairs, 256 px, and their class maps, of Cityscapes' own archives.

        leftimg8bit  leftImg8bit_trainvaltest.zip, or the folder it extracts to
        gtfine       gtFine_trainvaltest.zip, or the folder it extracts to
        """
        from p2pzoo_datasets.cityscapes_prepare import prepare

        return prepare(out, track, leftimg8bit, gtfine)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Pair:
        path = self._files[operator.index(index)]
        photo, labels = halves(_decode(path))
        x, y = (labels, photo) if self._task == "labels-to-photo" else (photo, labels)
        class_map = self._labels and _class_map(self._labels / f"{path.stem}.png")
        return Pair(id=f"{path.parent.name}-{path.stem}", x=x, y=y, labels=class_map)

    def _class_maps(self, folder: Path) -> Path | None:
        """The folder, if it has a class map for each pair; None if there is no such folder."""
        if not folder.is_dir():
            return None
        there = {path.stem for path in folder.glob("*.png")}
        lacking = [path.name for path in self._files if path.stem not in there]
        if lacking:
            told = f"lacks {len(lacking)} of {len(self._files)} class maps, as that of {lacking[0]}"
            raise UserError(f"{folder}: {told}: run `p2pzoo data prepare cityscapes` again, or remove the folder")
        return folder


def _class_map(path: Path) -> np.ndarray:
    """(1024, 2048) uint8."""
    try:
        image = read_image(path)
    except UserError as error:
        raise UserError(f"{error}: remove it, and run `p2pzoo data prepare cityscapes` again") from error
    if image.shape[2] != 1:
        raise UserError(f"{path}: {image.shape[2]} channels; a class map has one")
    return image[..., 0]


def _fault(path: Path) -> str | None:
    """What is wrong with an image as far as its header tells; nothing is decoded."""
    try:
        height, width, _ = read_header(path)
    except UserError as error:
        return f"{error}: extract the archive again"
    if (height, width) == (SIDE, 2 * SIDE):
        return None
    return f"{path}: {width}×{height} px; dataset 'cityscapes' reads 512×256, photo on the left, labels on the right"


def _decode(path: Path) -> np.ndarray:
    """(256, 512, 3) uint8."""
    if fault := _fault(path):
        raise UserError(fault)
    try:
        return with_channels(read_image(path), 3)
    except UserError as error:  # the header was whole, the rest is not
        raise UserError(f"{error}: extract the archive again") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
