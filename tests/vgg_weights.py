"""Random weights in the formats of torchvision's VGG-16 and of the packages lpips and DISTS_pytorch."""

from pathlib import Path

import torch

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # of VGG-16's convolutions
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of their layers
STAGES = (64, 128, 256, 512, 512)


VGG_WEIGHTS = {  # component: its parameters that name the files
    "lpips": {"weights": "lpips.pth", "vgg16": "vgg16.pth"},
    "dists": {"weights": "dists.pt", "vgg16": "vgg16.pth"},
}


def write_vgg_weights(folder: Path) -> dict[str, dict[str, str]]:
    """Write the files into a folder, and return VGG_WEIGHTS with their paths."""
    draw = torch.Generator().manual_seed(0)
    vgg16, before = {}, 3
    for number, width in zip(NUMBERS, WIDTHS, strict=True):
        weight = torch.empty(width, before, 3, 3).normal_(std=(2 / (9 * before)) ** 0.5, generator=draw)
        vgg16[f"features.{number}.weight"] = weight.half()  # half the bytes
        vgg16[f"features.{number}.bias"] = torch.empty(width).normal_(std=0.1, generator=draw)
        before = width
    torch.save({**vgg16, "classifier.6.bias": torch.zeros(1000)}, folder / "vgg16.pth")
    lpips = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=draw) for i, width in enumerate(STAGES)}
    torch.save(lpips, folder / "lpips.pth")
    dists = {name: torch.rand(1, 3 + sum(STAGES), 1, 1, generator=draw) for name in ("alpha", "beta")}
    torch.save(dists, folder / "dists.pt")
    return {name: {key: str(folder / file) for key, file in each.items()} for name, each in VGG_WEIGHTS.items()}
