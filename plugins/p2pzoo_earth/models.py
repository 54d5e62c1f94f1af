"""The trained generators that travel with this plugin. Imports nothing heavy."""

from pathlib import Path


def earth_small() -> Path:
    """Land cover in the colours of `labels-to-photo` -> photos of the earth, both RGB.

    Trained by recipes/modern/earth_small.toml, profile laptop, seed 0. `example.png` is an x of the test split.
    """
    return Path(__file__).parent / "earth_small"
