"""p2pzoo: a zoo of architectures for paired image-to-image translation (pix2pix, Isola et al. 2017).

This module stays light: importing it imports no torch, so that plugins can register in milliseconds.
"""

from importlib.metadata import version

from p2pzoo.hookspecs import hookimpl

__version__ = version("p2pzoo")

__all__ = ["__version__", "hookimpl"]
