"""p2pzoo: a zoo of architectures for paired image-to-image translation (pix2pix, Isola et al. 2017).

This module stays light: importing it imports no torch, so that plugins can register in milliseconds.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from p2pzoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from p2pzoo.model import Model

__version__ = version("p2pzoo")

__all__ = ["__version__", "hookimpl", "load"]


def load(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> "Model":
    """A trained model from a run folder or a model.safetensors; see `p2pzoo.model.Model.translate`.

    precision: "fp32" or "bf16" (eval mode only).
    """
    from p2pzoo.model import load

    return load(path, device=device, precision=precision)
