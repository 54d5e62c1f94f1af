"""Metrics that compare ŷ with y pixel by pixel or window by window.

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
