"""The datasets `folders` and `side-by-side`: your own pairs, in the two layouts that people have.

What both do with files is in pairs.py, with pixels in p2pzoo.images.resize, with names in p2pzoo.data.splits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np

from p2pzoo.data.pairing import Files, Shape, find_pairs, halves, odd_widths
from p2pzoo.data.splits import Fractions, assign_splits
from p2pzoo.images.io import Header, read_image
from p2pzoo.images.label_maps import Encoding
from p2pzoo.images.resize import Resize
from p2pzoo.plugin import AddedLater, Split
from p2pzoo_datasets.class_files import ClassFiles
from p2pzoo_datasets.pairs import Count, Direction, FilePairs, Range


class Folders(FilePairs):
    """Pairs from two folders of images, matched by file name: inputs/001.jpg with targets/001.png.

    split            "train", "val" or "test": the sub-folders train/, val/, test/ of both folders where there are any,
                     else a share of the files (`fractions`). Where val or test has no pairs, the other stands in
                     for it, with a warning
    inputs           folder of x; relative to the folder that p2pzoo is called in
    targets          folder of y
    size             [H, W] of x and y; default: that of the first training image in `inputs`
    resize           how an image comes to that size: "stretch"; "fit" keeps its proportions and continues the shorter
                     side by reflection; "crop" keeps them and cuts the middle out; "none" takes no other size
    direction        "BtoA" swaps inputs and targets
    max_pairs        of each split only so many, the first by name
    input_channels   of x, whatever the direction: 1 grey, 3 RGB, 4 RGB with opacity, or the bands of a TIFF or NumPy
                     file; default: the first training pair's
    target_channels  of y, likewise
    fractions        shares of train, val and test where there are no sub-folders
    split_seed       deals the files out anew
    input_range      the stored values of x that become -1 and 1; default: [0, 255] of uint8, [0, 65535] of uint16;
                     float32 has none
    target_range     of y, likewise
    input_labels     the class file of x, where x are label maps (`p2pzoo.images.label_maps`)
    input_encoding   how the networks see those: "one-hot", or "palette", the colours of the classes
    target_labels    of y, likewise
    target_encoding
    labels           a third folder, of label maps: they are no side of the pairs, but what ŷ is scored by
    classes          their class file; default: that of y, else of x

    A file's share depends on its name without suffix, `fractions` and `split_seed` alone: adding files moves no others.

    A Pair's x and y are (H, W, C) uint8, uint16 or float32, as all files of x or of y are, camera rotation (EXIF)
    applied, palettes looked up; `id` is the name without suffix, after its sub-folder's where there are any
    ("val-001"). There are no blocks. Label maps are brought to `size` by the nearest pixel, then encoded; `labels` are
    those of `labels`, else of y, else of x, (H, W) uint8: 255 where the class file says "ignore".

    Raises UserError, naming the first few files: no such folder or no images in it, files without a partner, sizes or
    types of numbers that do not agree, float32 without a range (headers are read here, and only those), files that do
    not decode, whose values are outside the range, or whose channels cannot be converted without loss (when they are
    read; the first few suspects here), a class file that is wrong, label values that no class has (when they are read).
    Nothing in the folders is changed.
    """

    def __init__(
        self,
        split: Split,
        *,
        inputs: Path,
        targets: Path,
        size: tuple[Count, Count] | None = None,
        resize: Resize = "none",
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
    ) -> None:
        folders = [Path(folder) for folder in (inputs, targets, labels) if folder is not None]
        where = ", ".join(map(str, folders))
        class_files = ClassFiles.read(
            input_labels, input_encoding, target_labels, target_encoding, classes, have_labels=labels is not None
        )
        super().__init__(
            split, assign_splits(find_pairs(*folders, tell=self._tell), where, fractions, split_seed), where, size=size,
            resize=resize, direction=direction, max_pairs=max_pairs, channels=(input_channels, target_channels),
            ranges=(input_range, target_range), class_files=class_files,
        )  # fmt: skip


class SideBySide(FilePairs):
    """Pairs A|B from one folder of images whose left half is A and whose right half is B: the paper's archives.

    root       folder of the pairs, or of the sub-folders train/, val/ and test/ that hold them
    direction  "AtoB": x is the left half; "BtoA": the right one

    Sizes are those of a half. All else is as in `folders`, and so are the errors; widths must be even.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        size: tuple[Count, Count] | None = None,
        resize: Resize = "none",
        direction: Direction = "AtoB",
        max_pairs: Count | None = None,
        input_channels: Count | None = None,
        target_channels: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        input_range: Annotated[Range | None, AddedLater] = None,
        target_range: Annotated[Range | None, AddedLater] = None,
    ) -> None:
        where = str(root)
        super().__init__(
            split, assign_splits(find_pairs(Path(root), tell=self._tell), where, fractions, split_seed), where, size=size,
            resize=resize, direction=direction, max_pairs=max_pairs, channels=(input_channels, target_channels),
            ranges=(input_range, target_range),
        )  # fmt: skip

    def shapes_of(self, headers: tuple[Header, ...]) -> tuple[Shape, Shape]:
        height, width, channels = headers[0].shape
        half = (height, width // 2, channels)
        return half, half

    def read(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        return halves(read_image(files[0]))

    def look(self, pairs: Iterable[Files]) -> dict[Files, tuple[Header, ...]]:
        headers = super().look(pairs)
        self._tell(odd_widths({files[0]: found[0].shape for files, found in headers.items()}))
        return {files: found for files, found in headers.items() if found[0].shape[1] % 2 == 0}
