"""Bodies for tests of the server, and what its ZIP files hold."""

import io
import zipfile

import numpy as np
from PIL import Image


def make_image(height=64, width=64, seed=0, **options):
    """The bytes of a PNG of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), **options)


def encode(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def unzip(content):
    """{name: bytes} of the members, in their order."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}
