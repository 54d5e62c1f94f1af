"""The class files of a recipe: they define which sides of a pair are label maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from p2pzoo.images.label_maps import Classes, Encoding, Labels


@dataclass(frozen=True)
class ClassFiles:
    """x, y: classes and encoding of a side that is a label map. labels: classes of the pairs' `labels`, if any."""

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
        """From the parameters of `Folders`; `have_labels`: pairs have separate label maps.

        Raises UserError for faults of the files, ValueError for parameters without effect.
        """
        x, y = (
            _read_labels(name, file, encoding)
            for name, file, encoding in (
                ("input", input_labels, input_encoding),
                ("target", target_labels, target_encoding),
            )
        )
        if classes and not have_labels:
            raise ValueError("classes: is the class file of `labels`, and there are none: remove it")
        map_classes = (y or x) and (y or x).classes  # type: ignore[union-attr]
        labels = Classes.read(Path(classes)) if classes else map_classes
        if have_labels and not labels:
            raise ValueError('labels: they need a class file: set classes = "classes.toml"')
        return cls(x, y, labels)


def _read_labels(name: str, file: Path | None, encoding: Encoding) -> Labels | None:
    if file is None:
        if encoding != "one-hot":
            raise ValueError(f'{name}_encoding: needs label maps: set their class file, {name}_labels = "classes.toml"')
        return None
    return Labels(Classes.read(Path(file)), encoding)
