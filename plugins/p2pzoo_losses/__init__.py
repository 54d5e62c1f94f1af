"""Losses that came after pix2pix: other GAN losses, penalties on D's gradient, and losses of G besides L1.

Imports only p2pzoo: torch and timm are loaded when a recipe uses a component that needs them.
"""

import p2pzoo

GAN_LOSSES = (  # name, class, summary, paper
    (
        "hinge", "gan:Hinge", "D is trained to real logits above 1 and fake ones below -1, no further",
        "arXiv:1705.02894, §3; arXiv:1802.05957, Eq. 16 and 17",
    ),
    (
        "non-saturating", "gan:NonSaturating", "The log loss as in StyleGAN2, which adds `r1`; neither side is halved",
        "arXiv:1912.04958, appendix B",
    ),
    (
        "wgan-gp", "gan:WassersteinGP", "Wasserstein distance; a penalty brings the gradient of the critic to length 1",
        "arXiv:1704.00028, Algorithm 1",
    ),
    (
        "relativistic", "gan:Relativistic", "Is the real image more real than the fake one (or than their mean)?",
        "arXiv:1807.00734, §4",
    ),
)  # fmt: skip

LOSSES = (  # name, class, summary, paper, needs
    (
        "r1", "penalties:R1", "On D: half the squared gradient at real images; the weight is γ",
        "arXiv:1801.04406, §4.1",
    ),
    (
        "r2", "penalties:R2", "On D: half the squared gradient at fake images; the weight is γ",
        "arXiv:1801.04406, §4.1",
    ),
    (
        "lecam", "lecam:LeCam", "On D: real logits stay near the average fake one, and the other way round",
        "arXiv:2104.03310, §3",
    ),
    (
        "feature-matching", "feature_matching:FeatureMatching", "Mean |difference| of D's activations at y and at ŷ",
        "arXiv:1711.11585, §3.2",
    ),
    (
        "patchnce", "patchnce:PatchNCE",
        "Each place of ŷ must be nearer to the same place of y than to others, in features of G's encoder",
        "arXiv:2007.15651, §3", "features",
    ),
    (
        "patchnce-network", "patchnce:NetworkPatchNCE",
        "Each place of ŷ must be nearer to the same place of y than to others, in features of a timm network",
        "arXiv:2007.15651, §3",
    ),
    (
        "perceptual", "perceptual:Perceptual", "Difference of y and ŷ in the features of a pretrained network of timm",
        "arXiv:1603.08155, Eq. 2",
    ),
    (
        "lpips", "vgg_distances:LPIPS", "Learned perceptual distance by VGG-16 (LPIPS v0.1)",
        "arXiv:1801.03924, Eq. 1",
    ),
    (
        "dists", "vgg_distances:DISTS", "Deep image structure and texture similarity, by VGG-16",
        "arXiv:2004.07728, §3",
    ),
    (
        "ssim", "structure:SSIM", "1 − structural similarity, Gaussian window of 11 px",
        "doi:10.1109/TIP.2003.819861",
    ),
    (
        "ms-ssim", "structure:MultiScaleSSIM", "1 − structural similarity over up to five scales",
        "doi:10.1109/ACSSC.2003.1292216",
    ),
    (
        "charbonnier", "pixels:Charbonnier", "Mean √((y − ŷ)² + ε²): L1 with a smooth minimum",
        "arXiv:1704.03915",
    ),
    (
        "edge", "pixels:Edge", "Mean |difference| of the Sobel gradients of y and ŷ",
        "arXiv:1511.05440, Eq. 6",
    ),
    (
        "gradient-difference", "pixels:GradientDifference",
        "||∇y| − |∇ŷ||^α over neighbouring pixels: edges of the same strength",
        "arXiv:1511.05440, Eq. 6",
    ),
    (
        "registration", "misalignment:Registration",
        "L1 after a deformation of ŷ that a network learns: for targets that are not aligned",
        "arXiv:2110.06465",
    ),
    (
        "shift-tolerant-l1", "misalignment:ShiftTolerantL1",
        "Local mean of L1, at the best of the shifts by a few pixels",
        "none",
    ),
    (
        "focal-frequency", "pixels:FocalFrequency", "Squared difference of spectra, most weight where they differ most",
        "arXiv:2012.12821, §3",
    ),
    (
        "lab-color", "pixels:LabColor", "Mean |difference| of a and b in CIELAB: colour without lightness",
        "ISO/CIE 11664-4:2019",
    ),
    (
        "diversity-sensitive", "diversity:DiversitySensitive",
        "−min(τ, |ŷ(z₁) − ŷ(z₂)| / |z₁ − z₂|): another z gives another translation",
        "arXiv:1901.09024, §3", "z",
    ),
    (
        "total-variation", "pixels:TotalVariation", "Mean |difference| of ŷ's neighbouring pixels: smooths ŷ",
        "doi:10.1016/0167-2789(92)90242-F",
    ),
)  # fmt: skip


@p2pzoo.hookimpl
def register_gan_losses(register):
    for name, path, summary, paper in GAN_LOSSES:
        register(name, f"p2pzoo_losses.{path}", summary=summary, paper=paper)


@p2pzoo.hookimpl
def register_losses(register):
    for name, path, summary, paper, *needs in LOSSES:
        register(name, f"p2pzoo_losses.{path}", summary=summary, paper=paper, needs=needs)
