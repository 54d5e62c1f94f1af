"""Augmentation of training pairs with kornia, and of the images for D (DiffAugment).

Imports p2pzoo only: torch and kornia are loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_augmentations(register):
    register(
        "flip-rotate",
        "p2pzoo_augment.pairs:FlipRotate",
        summary="Mirror pairs and rotate them by multiples of 90 degrees, without resampling",
        paper="the symmetries of a square",
    )
    register(
        "affine",
        "p2pzoo_augment.pairs:Affine",
        summary="Rotate, scale and shift pairs a little, with reflection at the edges",
        paper="kornia.geometry.transform (arXiv:1910.02190)",
    )
    register(
        "photometric",
        "p2pzoo_augment.pairs:Photometric",
        summary="Change brightness, contrast, saturation and hue of x, of y or of both",
        paper="kornia.enhance (arXiv:1910.02190)",
    )
    register(
        "diffaugment",
        "p2pzoo_augment.diffaugment:DiffAugment",
        summary="Change color, position and visible part of D's real and fake images; gradients reach G",
        paper="arXiv:2006.10738, §3",
    )
    register(
        "ada",
        "p2pzoo_augment.ada:ADA",
        summary="The changes of diffaugment, with a probability that rises while D overfits",
        paper="arXiv:2006.06676, §3",
    )
