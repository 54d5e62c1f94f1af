"""Generators from image restoration and segmentation: NAFNet, Restormer, LaMa and the Attention U-Net.

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "nafnet",
        "p2pzoo_restoration.nafnet:NAFNet",
        summary="A U-Net of blocks without nonlinear activations: gates and channel attention",
        paper="arXiv:2204.04676",
    )
    register(
        "restormer",
        "p2pzoo_restoration.restormer:Restormer",
        summary="A U-Net of transformer blocks whose attention is among channels",
        paper="arXiv:2111.09881",
    )
    register(
        "lama",
        "p2pzoo_restoration.lama:LaMa",
        summary="A residual generator of fast Fourier convolutions, which see the whole image",
        paper="arXiv:2109.07161",
    )
    register(
        "attention-unet",
        "p2pzoo_restoration.attention_unet:AttentionUNet",
        summary="A U-Net whose skip connections pass through attention gates",
        paper="arXiv:1804.03999",
    )
