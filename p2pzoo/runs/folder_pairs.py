"""Pairs of two folders, read as a trained model takes x and gives ŷ: each pair in the size of its own files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pzoo.data.pairing import SPLITS, Files, find_pairs, format_size, inspect_files
from p2pzoo.images.class_files import Colour
from p2pzoo.images.color_spaces import quantize, split_lab
from p2pzoo.images.io import inspect_image, read_image
from p2pzoo.images.label_maps import inspect_map
from p2pzoo.models.model import Model, PreparedImage, convert_channels
from p2pzoo.models.scaling import Scaling
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import OutOfMemory, UserError, raise_faults, summarize_fault
from p2pzoo.utils.plurals import format_count

_NATIVE = Scaling()


class FolderPair(NamedTuple):
    """pair: x and y as stored, in the size of their files. prepared: x as `Model.prepare_input` returns it."""

    pair: Pair
    prepared: PreparedImage


class FolderPairs:
    """The pairs of a folder of inputs and a folder of targets, matched by file name. Iterate over it once.

    The two folders may have the sub-folders train/, val/ and test/; then `split` says which one is read.

    split        "train", "val", "test", or "all" where there are no such sub-folders
    fingerprint  hash of all names and pixels; only after the iteration
    sizes        (H, W) of the pairs; only after the iteration

    Metrics are built with it, so it has the attributes of a `Dataset` that describe images. All headers are read in
    the constructor. Raises UserError for folders that do not pair up, and for images that the model cannot take.
    """

    def __init__(
        self, model: Model, inputs: Path, targets: Path, split: str | None = None, scaling: Scaling | None = None
    ) -> None:
        same = inputs.resolve() == targets.resolve()
        if same and not model.encodings.lab:
            raise UserError(f"{inputs}: the inputs and the targets are the same folder: give two")
        self._model, self._scaling = model, scaling
        self.x_range, self.y_range = model.x_range, model.y_range
        self.x_encoding, self.y_encoding = model.encodings.x, model.encodings.y
        self.x_labels, self.y_labels = model.x_labels, model.y_labels
        labels = model.y_labels or model.x_labels
        self.classes: Sequence[str] | None = labels.classes.names if labels else None
        self.palette: Sequence[Colour] | None = labels.classes.colours if labels else None
        by_split = find_pairs(inputs) if same else find_pairs(inputs, targets)
        self.split, files = _choose_split(by_split, split, inputs)
        # lightness and colours are both taken from one photo
        self._files = {name: (of_pair[0], of_pair[-1]) for name, of_pair in files.items()}
        self._check_headers()
        self.sizes: set[tuple[int, int]] = set()
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[FolderPair]:
        for name, (x_file, y_file) in self._files.items():
            image, alpha = self._model.read_input(x_file)
            try:
                prepared = self._model.prepare_input(image, self._scaling, has_alpha=alpha)
                size, x = prepared.size, prepared.x
                if x.shape[:2] != size:
                    x = self._model.prepare_input(image, _NATIVE, has_alpha=alpha).x
            except (ValueError, OutOfMemory) as error:
                raise UserError(f"{x_file}: {error}") from None
            y, labels = self._read_target(y_file)
            if y.shape[:2] != size:
                raise UserError(_describe_sizes(x_file, size, y_file, y.shape[:2]))
            if labels is None and self.x_labels:
                labels = self.x_labels.classes.read_map(x_file)
            self.sizes.add(size)
            for part in (name.encode(errors="surrogateescape"), x.tobytes(), y.tobytes()):
                self._digest.update(part)
            yield FolderPair(Pair(name, x, y, labels), prepared)

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()[:16]

    def _read_target(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """y (H, W, C) as stored, and the class indices of its pixels if y is a label map."""
        model = self._model
        if model.y_labels:
            labels = model.y_labels.classes.read_map(file)
            return model.y_labels.encode(labels), labels
        image, has_alpha = read_image(file), file in self._with_alpha
        channels = 3 if model.encodings.lab else model.out_channels
        try:
            y = convert_channels(
                model.flatten(image, channels, has_alpha=has_alpha), channels,
                has_alpha=has_alpha, alpha_wanted=bool(self._with_alpha),
            )  # fmt: skip
            if model.encodings.lab:
                return quantize(split_lab(y)[1], model.y_range, model.y_dtype), None
        except ValueError as error:
            raise UserError(
                f"{file}: {error} (the model gives {format_count(model.out_channels, 'channel')})"
            ) from None
        low, high = model.y_range
        if not (y.min() >= low and y.max() <= high):
            raise UserError(f"{file}: has values from {y.min():g} to {y.max():g}; the model gives {low:g} to {high:g}")
        return y, None

    def _check_headers(self) -> None:
        readers = [inspect_map if labels else inspect_image for labels in (self.x_labels, self.y_labels)]
        pairs = [list(zip(files, readers, strict=True)) for files in self._files.values()]
        headers = inspect_files(item for items in pairs for item in items)
        # a model does not say whether it gives opacity: it does if any of its targets has some
        self._with_alpha = {y[0] for _, y in pairs if headers[y].has_alpha}
        sizes, dtypes = [], []
        expected = ("uint8", "uint8") if self._model.encodings.lab else (self._model.x_dtype, self._model.y_dtype)
        for x, y in pairs:
            x_size, y_size = headers[x].shape[:2], headers[y].shape[:2]
            if x_size != y_size:
                sizes.append(_describe_sizes(x[0], x_size, y[0], y_size))
            for (file, _), header, labels, dtype in zip(
                (x, y), (headers[x], headers[y]), (self.x_labels, self.y_labels), expected, strict=True
            ):
                if not labels and header.dtype != dtype:
                    dtypes.append(f"{file}: is {header.dtype}, the model's is {dtype}")
        raise_faults(
            [
                *summarize_fault("the two images of a pair must have one size:", sizes),
                *summarize_fault("images must have the dtype of the model's training images:", dtypes),
            ]
        )


def _choose_split(
    by_split: dict[str, dict[str, Files]], wanted: str | None, inputs: Path
) -> tuple[str, dict[str, Files]]:
    """(name of the split, its pairs). Raises UserError if the folders do not have it."""
    if "" in by_split:
        if wanted:
            raise UserError(f"--split {wanted}: {inputs} has no {', '.join(f'{name}/' for name in SPLITS)}: remove it")
        return "all", by_split[""]
    split = wanted or "test"
    if split not in by_split:
        found = ", ".join(f"{name}/" for name in by_split)
        raise UserError(f"{inputs}: has no {split}/, only {found}: choose one with --split")
    return split, by_split[split]


def _describe_sizes(x_file: Path, x_size: tuple[int, ...], y_file: Path, y_size: tuple[int, ...]) -> str:
    return f"{x_file} is {format_size(*x_size)}, {y_file} is {format_size(*y_size)}"
