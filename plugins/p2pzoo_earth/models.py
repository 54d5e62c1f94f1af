"""The trained generators that come with this plugin. Imports neither numpy nor torch."""

from pathlib import Path


def earth_small() -> Path:
    """The folder of a generator from land cover in the colours of `labels-to-photo` to photos of the earth, both RGB.

    Trained with recipes/modern/earth_small.toml, profile laptop, seed 0. `example.png` is an x of the test split.
    """
    return Path(__file__).parent / "earth_small"
