"""The map: rivers and national borders of GSHHG, drawn on shaded relief; and a reader of GSHHG's line files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from p2pzoo_earth.geometry import FIRST_ROW, GLOBE, GRID

RIVER, BORDER = (30, 80, 190), (130, 60, 140)  # RGB
# In px of the relief, of which two make one px of the grid. Odd, so that a line is centred on the pixels of its points.
RIVER_WIDTH, BORDER_WIDTH = 1, 3


def draw_map(relief: Image.Image, rivers: Iterable[np.ndarray], borders: Iterable[np.ndarray]) -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB.

    relief           RGB, the complete globe, north first, at the grid's resolution or finer; it is modified
    rivers, borders  (N, 2) degrees east and north, one array per line

    Lines are drawn at the relief's resolution. Then each pixel of the grid is the mean of the area that it covers. This
    gives lines soft edges. Nearest neighbour at 2:1 would shift the relief by a quarter of a pixel.
    """
    scale = relief.width / GLOBE[1]
    pen = ImageDraw.Draw(relief)
    for lines, colour, width in ((rivers, RIVER, RIVER_WIDTH), (borders, BORDER, BORDER_WIDTH)):
        for line in lines:
            pen.line(_to_pixels(line, relief), fill=colour, width=width)
    top, bottom = FIRST_ROW * scale, (FIRST_ROW + GRID[0]) * scale
    window = (0, top, GRID[1] * scale, bottom)
    return np.asarray(relief.resize(GRID[::-1], Image.Resampling.BOX, box=window))


def _to_pixels(line: np.ndarray, globe: Image.Image) -> list[int]:
    """x, y, x, y, …: the pixels of the line's points."""
    east, north = line.astype(np.float64).T
    points = np.stack([(east + 180) * globe.width / 360, (90 - north) * globe.height / 180], axis=1)
    return np.floor(points).astype(int).ravel().tolist()


def parse_lines(index: str, points: bytes) -> tuple[list[np.ndarray], int]:
    """The lines of a pair of files, each (N, 2) degrees east and north; and the number of bytes that the index covers.

    index   text with a row for each line: level, area, number of points, south end, north end, first byte, bytes, id
    points  little-endian float32

    Longitudes are within ±180, and lines are cut there, so that no line goes around the globe. Lines beyond the end of
    `points` are omitted. Raises ValueError or IndexError if the index does not have this form.
    """
    lines, end = [], 0
    for entry in index.splitlines():
        fields = entry.split()
        count, start = int(fields[2]), int(fields[5])
        end = max(end, start + 8 * count)
        if end <= len(points):
            lines.append(np.frombuffer(points, "<f4", 2 * count, start).reshape(-1, 2))
    return lines, end
