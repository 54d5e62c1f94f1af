"""Which sides of pairs are label maps, by the class files that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from p2pzoo.images.label_maps import Classes, Encoding, Labels


@dataclass(frozen=True)
class ClassFiles:
    """x, y: where that side is a label map. labels: the classes of pairs' `labels`, where they have any."""

    x: Labels | None = None
    y: Labels | None = None
    labels: Classes | None = None

    @classmethod
    def read(
        cls,
        input_labels: Path | None,
        input_encoding: Encoding,
        target_labels: Path | None,
        target_encoding: Encoding,
        classes: Path | None,
        *,
        have_labels: bool,
    ) -> Self:
        """The parameters of `Folders`; `have_labels`: pairs have labels of their own.

        Raises UserError with what is wrong with the files, ValueError for parameters that say nothing.
        """
        x, y = (
            _side(name, file, encoding)
            for name, file, encoding in (
                ("input", input_labels, input_encoding),
                ("target", target_labels, target_encoding),
            )
        )
        if classes and not have_labels:
            raise ValueError("classes: is the class file of `labels`, and there are none")
        of_maps = (y or x) and (y or x).classes  # type: ignore[union-attr]
        labels = Classes.read(Path(classes)) if classes else of_maps
        if have_labels and not labels:
            raise ValueError('labels: need a class file: classes = "classes.toml"')
        return cls(x, y, labels)


def _side(name: str, file: Path | None, encoding: Encoding) -> Labels | None:
    if file is None:
        if encoding != "one-hot":
            raise ValueError(
                f'{name}_encoding: is of label maps: name their class file, {name}_labels = "classes.toml"'
            )
        return None
    return Labels(Classes.read(Path(file)), encoding)
