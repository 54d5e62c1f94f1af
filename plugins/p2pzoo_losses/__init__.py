"""Losses that came after pix2pix: other games, penalties on D's gradients, and what G is held to besides L1.

Imports p2pzoo only: torch and timm are loaded when a recipe uses a component that needs them.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_gan_losses(register):
    register(
        "hinge",
        "p2pzoo_losses.gan:Hinge",
        summary="D is pushed to real logits above 1 and fake ones below -1, no further",
        paper="arXiv:1705.02894, §3; arXiv:1802.05957, Eq. 16 and 17",
    )
    register(
        "wgan-gp",
        "p2pzoo_losses.gan:WassersteinGP",
        summary="Wasserstein distance by a critic whose gradient is held to length 1",
        paper="arXiv:1704.00028, Algorithm 1",
    )
    register(
        "relativistic",
        "p2pzoo_losses.gan:Relativistic",
        summary="Is the real image more real than the fake one (or than fake ones on average)?",
        paper="arXiv:1807.00734, §4",
    )


@p2pzoo.hookimpl
def register_losses(register):
    register(
        "r1",
        "p2pzoo_losses.penalties:R1",
        summary="On D: half the squared gradient at real images; the weight is γ",
        paper="arXiv:1801.04406, §4.1",
    )
    register(
        "r2",
        "p2pzoo_losses.penalties:R2",
        summary="On D: half the squared gradient at fake images; the weight is γ",
        paper="arXiv:1801.04406, §4.1",
    )
    register(
        "feature-matching",
        "p2pzoo_losses.feature_matching:FeatureMatching",
        summary="Mean |difference| of D's activations at y and at ŷ",
        paper="arXiv:1711.11585, §3.2",
    )
    register(
        "perceptual",
        "p2pzoo_losses.perceptual:Perceptual",
        summary="Difference of y and ŷ in the features of a pretrained network of timm",
        paper="arXiv:1603.08155, Eq. 2",
    )
    register(
        "ssim",
        "p2pzoo_losses.structure:SSIM",
        summary="1 − structural similarity, Gaussian window of 11 px",
        paper="doi:10.1109/TIP.2003.819861",
    )
    register(
        "ms-ssim",
        "p2pzoo_losses.structure:MultiScaleSSIM",
        summary="1 − structural similarity over up to five scales",
        paper="doi:10.1109/ACSSC.2003.1292216",
    )
    register(
        "charbonnier",
        "p2pzoo_losses.pixels:Charbonnier",
        summary="Mean √((y − ŷ)² + ε²): L1 with a smooth bottom",
        paper="arXiv:1704.03915",
    )
    register(
        "edge",
        "p2pzoo_losses.pixels:Edge",
        summary="Mean |difference| of the Sobel gradients of y and ŷ",
        paper="arXiv:1511.05440, Eq. 6",
    )
    register(
        "focal-frequency",
        "p2pzoo_losses.pixels:FocalFrequency",
        summary="Squared difference of spectra, most weight where they differ most",
        paper="arXiv:2012.12821, §3",
    )
    register(
        "lab-color",
        "p2pzoo_losses.pixels:LabColor",
        summary="Mean |difference| of a and b in CIELAB: colour without lightness",
        paper="ISO/CIE 11664-4:2019",
    )
    register(
        "total-variation",
        "p2pzoo_losses.pixels:TotalVariation",
        summary="Mean |difference| of ŷ's neighbouring pixels; wants ŷ flat, whatever y is",
        paper="doi:10.1016/0167-2789(92)90242-F",
    )
