"""Discriminators that are U-Nets, with a decision for each pixel: U-Net GAN, and OASIS with its GAN loss.

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_discriminators(register):
    register(
        "unet-d",
        "p2pzoo_unet_d.discriminators:UNetDiscriminator",
        summary="A U-Net: its encoder classifies the image, its decoder each pixel",
        paper="arXiv:2002.12655, §3.1",
    )
    register(
        "oasis",
        "p2pzoo_unet_d.discriminators:OasisDiscriminator",
        summary="A U-Net that segments: each pixel is of one of N classes, or fake",
        paper="arXiv:2012.04781, §3.2 and appendix",
        needs=("labels",),
    )


@p2pzoo.hookimpl
def register_gan_losses(register):
    register(
        "oasis",
        "p2pzoo_unet_d.gan:Oasis",
        summary="Class-balanced cross-entropy of classes and fake, with LabelMix",
        paper="arXiv:2012.04781, §3.2",
        needs=("labels",),
    )
