"""A package torch_fidelity with small networks in place of its own, and weights files of random numbers for them.

Tests do not have the real networks: 95 and 528 MB, which the user downloads.
"""

import hashlib
import sys
import types
from pathlib import Path

import pytest
import torch
from p2pzoo_metrics import standard


class Extractor(torch.nn.Module):
    """Features are mean and deviation of each channel of bytes, in the form of torch-fidelity's extractor."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.Conv2d_1a_3x3 = torch.nn.Identity()
        self.path = feature_extractor_weights_path

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[:2] == (1, 3)
        flat = self.Conv2d_1a_3x3(images.float()).flatten(2)
        return (torch.cat([flat.mean(2), flat.std(2)], 1),)


class Similarity(torch.nn.Module):
    """The distance is the mean difference in levels, in the form of torch-fidelity's LPIPS."""

    def __init__(self, name):
        super().__init__()

    def forward(self, first, second):
        assert first.dtype == second.dtype == torch.uint8
        return (first.float() - second.float()).abs().mean((1, 2, 3))


def install_package(patch: pytest.MonkeyPatch) -> None:
    parts = {
        "torch_fidelity": {"__spec__": types.SimpleNamespace()},
        "torch_fidelity.feature_extractor_inceptionv3": {"FeatureExtractorInceptionV3": Extractor},
        "torch_fidelity.sample_similarity_lpips": {"SampleSimilarityLPIPS": Similarity},
    }
    for name, attributes in parts.items():
        module = types.ModuleType(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        patch.setitem(sys.modules, name, module)


def replace_hub(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Take a folder in place of torch hub's; returns the empty folder of its weights."""
    patch.setattr(torch.hub, "get_dir", lambda: str(folder))
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints"


def write_weights(patch: pytest.MonkeyPatch, hub: Path) -> dict[str, str]:
    """Weights files in torch hub's folder, {constant: digest}; their names contain the digest, as torch hub's do."""
    digests = {}
    for constant in ("INCEPTION", "VGG16", "LPIPS_HEADS"):
        torch.save({"of": torch.zeros(1)}, hub / constant)
        digests[constant] = hashlib.sha256((hub / constant).read_bytes()).hexdigest()
        file = (hub / constant).rename(hub / f"{constant}-{digests[constant][:8]}.pth")
        patch.setattr(standard, constant, f"https://example.org/{file.name}")
    return digests
