"""Folders of pairs for tests that need other data than the earth."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_pairs(folder: Path, count: int, side: int) -> None:
    """Write `count` pairs of noise and its negative to `folder`/a and `folder`/b, side × side px."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
    for number in range(count):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{number:03}.png")
        Image.fromarray(255 - pixels).save(folder / "b" / f"{number:03}.png")
