"""The dataset `cityscapes`: the paper's ablations (Tables 1 to 3) were trained and tested on it.

Cordts et al. 2016 (arXiv:1604.01685). The pairs are those that Isola et al. 2017 published, or those that
`p2pzoo data prepare cityscapes` makes from the original archives; only the latter have class maps.
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
DEFAULT_ROOT = Path("datasets/cityscapes")


class Cityscapes(Published):
    """Pairs of photo and label map from a folder of JPEGs, 512 × 256 px: photo on the left, labels on the right.

    split  "train" reads `root`/train (2975 pairs); "val" and "test" both read `root`/val (500), because the paper
           tests on Cityscapes' validation set. So do not select by "val" what you then report on "test"
    root   the folder with train/ and val/; if the default does not exist, the folder of `p2pzoo data fetch`
    task   "labels-to-photo" (Tables 1 to 3) or "photo-to-labels" (Table 6)
    size   side of x and y in px

    A Pair's x and y are (size, size, 3) uint8 RGB. The published label maps are colours after scaling and JPEG (the
    paper's footnote 2), so they have no class map: `labels`, `classes` and `palette` are None. If `root`/labels has
    class maps (`p2pzoo data prepare cityscapes`), `labels` is (1024, 2048) uint8, the size at which the paper scores:
    0 to 18 for the 19 `classes`, 255 for ignored pixels.

    Raises UserError if some pairs have class maps and others have not. All else: see `Published`.
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
        root: Path = DEFAULT_ROOT,
        task: Literal["labels-to-photo", "photo-to-labels"] = "labels-to-photo",
        size: Count = 256,
    ) -> None:
        if root == DEFAULT_ROOT and not root.is_dir() and self.archive.folder.is_dir():
            root = self.archive.folder
        super().__init__(split, root, size, swapped=task == "labels-to-photo")
        self._labels = self._find_class_maps(Path(root) / "labels" / FOLDERS[split])
        self.classes = CLASSES if self._labels else None
        self.palette = PALETTE if self._labels else None

    @staticmethod
    def prepare(out: Path, track: ProgressBar, *, leftimg8bit: Path, gtfine: Path) -> list[str]:
        """Make the pairs, 256 px, and their class maps from the original archives of Cityscapes.

        leftimg8bit  leftImg8bit_trainvaltest.zip, or its extracted folder
        gtfine       gtFine_trainvaltest.zip, or its extracted folder
        """
        from p2pzoo_datasets.cityscapes_prepare import prepare

        return prepare(out, track, leftimg8bit, gtfine)

    @property
    def files(self) -> list[tuple[Path, ...]]:
        """The files that each pair of this split is read from: its JPEG, and its class map."""
        if self._labels is None:
            return super().files
        return [(path, self._labels / f"{path.stem}.png") for path in self._files]

    def _choose_folder(self, split: Split) -> str:
        return FOLDERS[split]

    def _describe_sources(self) -> str:
        return (
            "  get the published pairs, cityscapes.tar.gz (103,441,232 bytes): p2pzoo data fetch cityscapes\n"
            "  or register at https://www.cityscapes-dataset.com and make pairs with the labels that fcn_score needs: "
            "p2pzoo data prepare cityscapes --leftimg8bit ZIP --gtfine ZIP -o datasets/cityscapes\n"
            "  or set the folder of your copy: -s dataset.root=DIR"
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
            raise UserError(
                f"{file}: has {image.shape[2]} channels, a class map has one: remove it, and run "
                "`p2pzoo data prepare cityscapes` again"
            )
        return image[..., 0]

    def _find_class_maps(self, folder: Path) -> Path | None:
        """The folder; None if it does not exist. Raises UserError if a pair has no class map in it."""
        if not folder.is_dir():
            return None
        stems = {path.stem for path in folder.glob("*.png")}
        missing = [path.name for path in self._files if path.stem not in stems]
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(self._files)} class maps are missing, for example that of "
                f"{missing[0]}: run `p2pzoo data prepare cityscapes` again, or remove the folder"
            )
        return folder
