"""Every component of every first-party plugin satisfies the interface of its kind: the checks of `p2pzoo.testing`.

A new plugin needs no line here. PARAMETERS has the parameters that a component needs for the checks, EXPECTED_FAILURES
the checks that it fails.
"""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from landscapes import write_pair
from phantoms import write_pairs as write_volumes
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from small_networks import SMALL_NETWORKS
from stack_pairs import write_pairs as write_stacks
from vgg_weights import VGG_WEIGHTS, write_vgg_weights

from p2pzoo.plugin.loader import plugins
from p2pzoo.testing import conformance

FEATURES = {"network": "test_resnet", "weights": "weights.safetensors"}  # small; `*_efficientnet_lite0` is not

PARAMETERS = {  # plugin -> component -> parameters
    "augment": {"ada": {"every": 2, "images": 50}},  # so that its probability changes within a check
    "datasets": {
        "folders": {"inputs": "inputs", "targets": "targets"},
        "side-by-side": {"root": "pairs"},
        "manifest": {"file": "pairs.jsonl"},
    },
    "earth": {"earth": {"size": 64, "stride": 256}},
    "losses": {"ms-ssim": {"scales": 2}, "perceptual": FEATURES, "patchnce-network": FEATURES, **VGG_WEIGHTS},
    "metrics": {
        "dists": VGG_WEIGHTS["dists"],
        "kid": FEATURES,
        "diversity": {"samples": 3, **FEATURES},
        "perceptual": FEATURES,
    },
    "hub": {"hub-pairs": {"folder": "tables", "x": "before", "y": "after", "fractions": [0.5, 0.25, 0.25]}},
    "medical": {
        "volumes": {
            "inputs": "volumes/inputs",
            "targets": "volumes/targets",
            "size": 32,
            "mask": {"above": -300},
            "fractions": [0.5, 0.25, 0.25],
        }
    },
    "geo": {"scenes": {"inputs": "scenes/inputs", "targets": "scenes/targets", "size": 32, "block": 32}},
    "microscopy": {"stacks": {"inputs": "stacks/inputs", "targets": "stacks/targets", "size": 32}},
    "photos": {
        **{name: {"root": "targets", "size": [32, 32]} for name in ("colorize", "inpaint", "super-resolve", "denoise")},
        "edges": {"root": "targets", "size": [32, 32]},
        "openmoji": {"size": 32, "max_pairs": 8},
    },
    **SMALL_NETWORKS,
}
EXPECTED_FAILURES = {}  # plugin -> "component.check" -> reason

FIRST_PARTY = [plugin.name for plugin in plugins() if plugin.distribution.startswith("p2pzoo ")]


def write_tables(folder):
    """A Parquet file with the images of inputs/ and targets/ as bytes."""
    (folder / "tables").mkdir()
    images = sorted((folder / "inputs").rglob("*.png"))
    columns = {
        "before": [{"bytes": file.read_bytes()} for file in images],
        "after": [{"bytes": (folder / "targets" / file.parts[-2] / file.name).read_bytes()} for file in images],
    }
    parquet.write_table(pa.table(columns), folder / "tables" / "train.parquet")


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """Small pairs as folders, side by side and as a manifest, and weights of a network, in the working folder."""
    folder, working_folder = tmp_path_factory.mktemp("files"), os.getcwd()
    generator = np.random.default_rng(0)
    for name, width in (("inputs", 32), ("targets", 32), ("pairs", 64)):
        for split, count in (("train", 8), ("val", 4), ("test", 4)):
            (folder / name / split).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / split / f"{number}.png")
    with (folder / "pairs.jsonl").open("w") as lines:
        for path in sorted((folder / "inputs").rglob("*.png")):
            x = path.relative_to(folder)
            line = {"x": str(x), "y": str(Path("targets", *x.parts[1:])), "split": x.parts[1]}
            lines.write(json.dumps(line) + "\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(FEATURES["network"]).state_dict(), folder / FEATURES["weights"])
    write_vgg_weights(folder)
    write_pair(folder / "scenes", height=160, width=192)
    write_tables(folder)
    write_volumes(folder / "volumes")
    write_stacks(folder / "stacks", count=8)
    os.chdir(folder)
    yield
    os.chdir(working_folder)


for _name in FIRST_PARTY:
    globals()[f"test_{_name}"] = conformance(
        _name, parameters=PARAMETERS.get(_name), expected_failures=EXPECTED_FAILURES.get(_name)
    )


def test_parameters_and_expected_failures_are_of_first_party_plugins():
    assert PARAMETERS.keys() | EXPECTED_FAILURES.keys() <= set(FIRST_PARTY)
