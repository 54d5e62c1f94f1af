"""Networks on backbones of timm: a U-Net with a backbone as its encoder, and a discriminator on frozen features.

Imports p2pzoo only: torch and timm are loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "timm-unet",
        "p2pzoo_timm.unet:TimmUNet",
        summary="A U-Net whose encoder is any backbone of timm, pretrained or not",
        paper="arXiv:1505.04597",
    )


@p2pzoo.hookimpl
def register_discriminators(register):
    register(
        "timm-projected",
        "p2pzoo_timm.projected:ProjectedDiscriminator",
        summary="Classifies randomly mixed features of a frozen backbone of timm, at several scales",
        paper="arXiv:2111.01007, §3",
    )
