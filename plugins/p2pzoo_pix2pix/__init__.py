"""The networks and losses of pix2pix (Isola et al., CVPR 2017, arXiv:1611.07004 v3).

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "unet",
        "p2pzoo_pix2pix.generators:UNet",
        summary="The U-Net of pix2pix: an encoder-decoder with skip connections between mirrored layers",
        paper="arXiv:1611.07004, §6.1.1",
    )
    register(
        "encoder-decoder",
        "p2pzoo_pix2pix.generators:EncoderDecoder",
        summary="The U-Net without its skip connections (Table 2)",
        paper="arXiv:1611.07004, §6.1.1",
    )


@p2pzoo.hookimpl
def register_discriminators(register):
    register(
        "pixel",
        "p2pzoo_pix2pix.discriminators:PixelDiscriminator",
        summary="Classifies each pixel: 1×1 PixelGAN (Table 3)",
        paper="arXiv:1611.07004, §6.1.2",
    )
    register(
        "patch",
        "p2pzoo_pix2pix.discriminators:PatchDiscriminator",
        summary="Classifies overlapping patches: PatchGAN of 16, 34, 70 or 142 px (Table 3)",
        paper="arXiv:1611.07004, §6.1.2",
    )
    register(
        "image",
        "p2pzoo_pix2pix.discriminators:ImageDiscriminator",
        summary="Classifies a whole 256×256 image: 286×286 ImageGAN (Table 3)",
        paper="arXiv:1611.07004, §6.1.2",
    )


@p2pzoo.hookimpl
def register_gan_losses(register):
    register(
        "vanilla",
        "p2pzoo_pix2pix.losses:Vanilla",
        summary="Log loss; G maximises log D(x, G(x, z))",
        paper="arXiv:1611.07004, Eq. 1 and §3.3",
    )
    register(
        "lsgan",
        "p2pzoo_pix2pix.losses:LeastSquares",
        summary="Least squares: real logits to 1, fake ones to 0",
        paper="arXiv:1611.04076, Eq. 9",
    )


@p2pzoo.hookimpl
def register_losses(register):
    register("l1", "p2pzoo_pix2pix.losses:L1", summary="Mean |y − ŷ|", paper="arXiv:1611.07004, Eq. 3")
    register("l2", "p2pzoo_pix2pix.losses:L2", summary="Mean (y − ŷ)²", paper="arXiv:1611.07004, §3.1")
