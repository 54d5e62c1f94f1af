"""The datasets `folders` and `side-by-side`: your own pairs, in the two usual layouts.

Reading and checks of files are in pairs.py, resizing in p2pzoo.images.resize, splits in p2pzoo.data.splits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np

from p2pzoo.data.pairing import Files, ImageShape, find_pairs, halves, odd_widths
from p2pzoo.data.splits import Fractions, assign_splits
from p2pzoo.images.io import ImageHeader
from p2pzoo.images.label_maps import Encoding
from p2pzoo.images.orientation import TURNED_HALVES, describe_turned
from p2pzoo.images.resize import ResizeMode
from p2pzoo.images.transparency import Background
from p2pzoo.plugin import AddedLater, Split
from p2pzoo.utils.errors import summarize_fault
from p2pzoo_datasets.class_files import ClassFiles
from p2pzoo_datasets.pairs import Count, Direction, FilePairs, Range


class Folders(FilePairs):
    """Pairs from two folders of images, matched by file name: inputs/001.jpg with targets/001.png.

    split          "train", "val" or "test": the sub-folders train/, val/, test/ of both folders if they exist, else a
                   part of the files (`fractions`). If val or test has no pairs, the other replaces it, with a warning
    inputs         folder of x (of y if `direction` is "BtoA"), relative to the recipe
    targets        folder of y (of x if `direction` is "BtoA")
    input_suffix   end of the names in `inputs` that is not part of the common name: "_A" for 001_A.jpg. With different
                   suffixes, `inputs` and `targets` may be one folder
    target_suffix  end of the names in `targets`, likewise
    labels         a third folder, of label maps that are neither x nor y: metrics compare ŷ with them
    classes        class file of `labels`; default: that of y, else of x

    All other parameters: see `FilePairs`. The split of a pair depends only on its common name, `fractions` and
    `split_seed`: adding files does not move others.

    A Pair's x and y are (H, W, C) uint8, uint16 or float32, the dtype of the files. The rotation of cameras (EXIF) is
    applied, and palettes are replaced by their colours. `id` is the name without suffix, with the sub-folder's name in
    front if there is one ("val-001"). There are no blocks. Label maps are resized to the nearest pixel, then encoded.
    The pair's `labels` come from the folder `labels`, else from y, else from x: (H, W) uint8, with 255 for values that
    the class file ignores.

    Raises UserError, naming the first few files, for
    - missing or empty folders, one folder for both, files without a partner, sizes or dtypes that differ, float32
      without a range: from names and headers, in the constructor
    - files that do not decode, values outside the range, channels that cannot be converted without loss, label values
      without a class: when a pair is read; conversions of the first few pairs also in the constructor
    - wrong class files: in the constructor

    Nothing in the folders is changed.
    """

    def __init__(
        self,
        split: Split,
        *,
        inputs: Path,
        targets: Path,
        size: tuple[Count, Count] | None = None,
        resize: ResizeMode = "none",
        direction: Direction = "AtoB",
        max_pairs: Count | None = None,
        input_channels: Count | None = None,
        target_channels: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        input_range: Annotated[Range | None, AddedLater] = None,
        target_range: Annotated[Range | None, AddedLater] = None,
        input_labels: Annotated[Path | None, AddedLater] = None,
        input_encoding: Annotated[Encoding, AddedLater] = "one-hot",
        target_labels: Annotated[Path | None, AddedLater] = None,
        target_encoding: Annotated[Encoding, AddedLater] = "one-hot",
        labels: Annotated[Path | None, AddedLater] = None,
        classes: Annotated[Path | None, AddedLater] = None,
        input_suffix: Annotated[str, AddedLater] = "",
        target_suffix: Annotated[str, AddedLater] = "",
        background: Annotated[Background | None, AddedLater] = None,
    ) -> None:
        folders = [Path(folder) for folder in (inputs, targets, labels) if folder is not None]
        where = ", ".join(map(str, folders))
        class_files = ClassFiles.read(
            input_labels, input_encoding, target_labels, target_encoding, classes, have_labels=labels is not None
        )
        stems = find_pairs(*folders, report=self._report_faults, suffixes=(input_suffix, target_suffix))
        super().__init__(
            split, assign_splits(stems, where, fractions, split_seed), where, size=size, resize=resize,
            direction=direction, max_pairs=max_pairs, channels=(input_channels, target_channels),
            ranges=(input_range, target_range), class_files=class_files, background=background,
        )  # fmt: skip


class SideBySide(FilePairs):
    """Pairs A|B from one folder of images: A is the left half, B the right one, as in the paper's archives.

    root       folder of the images, or of the sub-folders train/, val/ and test/ with them; relative to the recipe
    direction  "AtoB": x is the left half; "BtoA": x is the right half

    Sizes are those of a half; widths must be even. All else, errors too, is as in `Folders`.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        size: tuple[Count, Count] | None = None,
        resize: ResizeMode = "none",
        direction: Direction = "AtoB",
        max_pairs: Count | None = None,
        input_channels: Count | None = None,
        target_channels: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        input_range: Annotated[Range | None, AddedLater] = None,
        target_range: Annotated[Range | None, AddedLater] = None,
        background: Annotated[Background | None, AddedLater] = None,
    ) -> None:
        self._x_half = "left" if direction == "AtoB" else "right"
        where, stems = str(root), find_pairs(Path(root), report=self._report_faults)
        super().__init__(
            split, assign_splits(stems, where, fractions, split_seed), where, size=size, resize=resize,
            direction=direction, max_pairs=max_pairs, channels=(input_channels, target_channels),
            ranges=(input_range, target_range), background=background,
        )  # fmt: skip

    def shapes_of(self, headers: tuple[ImageHeader, ...]) -> tuple[ImageShape, ImageShape]:
        height, width, channels = headers[0].shape
        half = (height, width // 2, channels)
        return half, half

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        return halves(self.read_image(files[0]))

    def read_headers(self, pairs: Iterable[Files]) -> dict[Files, tuple[ImageHeader, ...]]:
        headers = super().read_headers(pairs)
        by_file = {files[0]: header for files, (header, *_) in headers.items()}
        self._report_faults(
            [
                *odd_widths({file: header.shape for file, header in by_file.items()}),
                *summarize_fault(TURNED_HALVES, describe_turned(by_file)),
            ]
        )
        return {files: of_pair for files, of_pair in headers.items() if of_pair[0].shape[1] % 2 == 0}
