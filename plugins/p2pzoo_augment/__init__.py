"""Augmentation of training pairs through kornia, and of what D sees (DiffAugment).

Imports p2pzoo only: torch and kornia are loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_augmentations(register):
    register(
        "flip-rotate",
        "p2pzoo_augment.pairs:FlipRotate",
        summary="Pairs mirrored and turned by quarter turns: no pixel is resampled",
        paper="the symmetries of a square",
    )
    register(
        "affine",
        "p2pzoo_augment.pairs:Affine",
        summary="Pairs turned, scaled and shifted a little, reflected at their edges",
        paper="kornia.geometry.transform (arXiv:1910.02190)",
    )
    register(
        "photometric",
        "p2pzoo_augment.pairs:Photometric",
        summary="Brightness, contrast, saturation and hue of x, of y or of both",
        paper="kornia.enhance (arXiv:1910.02190)",
    )
    register(
        "diffaugment",
        "p2pzoo_augment.diffaugment:DiffAugment",
        summary="What D sees of real and fake, in color, place and part; gradients reach G",
        paper="arXiv:2006.10738, §3",
    )
