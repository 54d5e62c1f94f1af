"""The dataset `cityscapes`: the pairs that the paper's ablations (Tables 1 to 3) were trained and tested on.

Cordts et al. 2016 (arXiv:1604.01685), in the pairs that Isola et al. 2017 published, or in those that
`p2pzoo data prepare cityscapes` makes of the original archives, which have class maps beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.images.io import read_image
from p2pzoo.plugin import Archive, ProgressBar, Split
from p2pzoo.utils.errors import UserError
from p2pzoo_datasets.cityscapes_classes import CLASSES, PALETTE
from p2pzoo_datasets.published import SERVER, Count, Published

FOLDERS: dict[Split, str] = {"train": "train", "val": "val", "test": "val"}
USUAL = Path("datasets/cityscapes")


class Cityscapes(Published):
    """Pairs of photo and label map from a folder of JPEGs, 512 × 256 px: photo on the left, labels on the right.

    split  "train" reads `root`/train (2975 pairs); "val" and "test" both read `root`/val (500), since the paper
           tests on Cityscapes' validation set. Choose nothing by "val" that you then report on "test".
    root   the folder that holds train/ and val/; where the usual one is not there, what `p2pzoo data fetch` has got
    task   "labels-to-photo" (Tables 1 to 3) or "photo-to-labels" (Table 6)
    size   side of x and y in px

    A Pair's x and y are (size, size, 3) uint8 RGB. Label maps are drawn in colours that went through scaling and JPEG
    (the paper's footnote 2), so the published pairs have no class map: `labels`, `classes` and `palette` are None.
    Where `root`/labels has class maps (`p2pzoo data prepare cityscapes`), `labels` is (1024, 2048) uint8, the size at
    which the paper scores: 0 to 18 for the 19 `classes`, 255 for what is ignored.

    Raises UserError where pairs lack their class maps that others have. All else: see `Published`.
    """

    archive = Archive(
        name="cityscapes",
        url=f"{SERVER}/cityscapes.tar.gz",
        size=103_441_232,
        images={"train": 2975, "val": 500},
        licence="Cityscapes: registration, non-commercial use",
        registration="Cityscapes asks for registration and allows neither redistribution nor commercial use; read and "
        "accept its terms at https://www.cityscapes-dataset.com",
    )

    def __init__(
        self,
        split: Split,
        *,
        root: Path = USUAL,
        task: Literal["labels-to-photo", "photo-to-labels"] = "labels-to-photo",
        size: Count = 256,
    ) -> None:
        if root == USUAL and not root.is_dir() and self.archive.folder.is_dir():
            root = self.archive.folder
        super().__init__(split, root, size, swapped=task == "labels-to-photo")
        self._labels = self._class_maps(Path(root) / "labels" / FOLDERS[split])
        self.classes = CLASSES if self._labels else None
        self.palette = PALETTE if self._labels else None

    @staticmethod
    def prepare(out: Path, track: ProgressBar, *, leftimg8bit: Path, gtfine: Path) -> list[str]:
        """Make the pairs, 256 px, and their class maps, of Cityscapes' own archives.

        leftimg8bit  leftImg8bit_trainvaltest.zip, or the folder it extracts to
        gtfine       gtFine_trainvaltest.zip, or the folder it extracts to
        """
        from p2pzoo_datasets.cityscapes_prepare import prepare

        return prepare(out, track, leftimg8bit, gtfine)

    @property
    def files(self) -> list[Path]:
        labels = [self._labels / f"{path.stem}.png" for path in self._files] if self._labels else []
        return [*self._files, *labels]

    def _folder_of(self, split: Split) -> str:
        return FOLDERS[split]

    def _how(self) -> str:
        return (
            "  the pairs as published, cityscapes.tar.gz (103,441,232 bytes): p2pzoo data fetch cityscapes\n"
            "  or register at https://www.cityscapes-dataset.com and make them, with the labels that scores need: "
            "p2pzoo data prepare cityscapes --leftimg8bit ZIP --gtfine ZIP -o datasets/cityscapes\n"
            "  data elsewhere: -s dataset.root=DIR"
        )

    def _labels_of(self, path: Path) -> np.ndarray | None:
        """(1024, 2048) uint8."""
        if self._labels is None:
            return None
        file = self._labels / f"{path.stem}.png"
        try:
            image = read_image(file)
        except UserError as error:
            raise UserError(f"{error}: remove it, and run `p2pzoo data prepare cityscapes` again") from error
        if image.shape[2] != 1:
            raise UserError(f"{file}: {image.shape[2]} channels; a class map has one")
        return image[..., 0]

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
