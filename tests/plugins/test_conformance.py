"""Every component of every first-party plugin keeps the promises of its kind: `p2pzoo.testing`, over what is installed.

A plugin that is new is checked without a line here. What a component needs to be checked at all, or does not keep, is
said in PARAMETERS and EXPECTED_FAILURES.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from p2pzoo_export.graphs import missing_packages
from PIL import Image

from p2pzoo.plugin.loader import plugins
from p2pzoo.testing import conformance

PARAMETERS = {  # plugin -> component -> what it is checked with
    "datasets": {
        "folders": {"inputs": "inputs", "targets": "targets"},
        "side-by-side": {"root": "pairs"},
        "manifest": {"file": "pairs.jsonl"},
    },
    "earth": {"earth": {"size": 64, "stride": 256}},
    "losses": {"ms-ssim": {"scales": 2}},
    "photos": {
        **{name: {"root": "targets", "size": [32, 32]} for name in ("colorize", "inpaint", "super-resolve", "denoise")},
        "edges": {"root": "targets", "size": [32, 32]},
        "openmoji": {"size": 32, "max_pairs": 8},
    },
}
EXPECTED_FAILURES = {}  # plugin -> "component.check" -> reason

FIRST_PARTY = [plugin.name for plugin in plugins() if plugin.distribution.startswith("p2pzoo ")]


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """Small pairs in both layouts, in the working folder."""
    folder, before = tmp_path_factory.mktemp("files"), os.getcwd()
    draw = np.random.default_rng(0)
    for name, width in (("inputs", 32), ("targets", 32), ("pairs", 64)):
        for split, count in (("train", 8), ("val", 4), ("test", 4)):
            (folder / name / split).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (32, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / split / f"{number}.png")
    with (folder / "pairs.jsonl").open("w") as lines:
        for path in sorted((folder / "inputs").rglob("*.png")):
            x = path.relative_to(folder)
            line = {"x": str(x), "y": str(Path("targets", *x.parts[1:])), "split": x.parts[1]}
            lines.write(json.dumps(line) + "\n")
    os.chdir(folder)
    yield
    os.chdir(before)


for _name in FIRST_PARTY:
    globals()[f"test_{_name}"] = conformance(
        _name, parameters=PARAMETERS.get(_name), expected_failures=EXPECTED_FAILURES.get(_name)
    )


def test_networks_are_exported_to_onnx_here():
    """What the check of the export falls back to where they are missing is no ONNX file."""
    assert not missing_packages()


def test_all_that_is_said_of_plugins_here_is_said_of_some():
    assert PARAMETERS.keys() | EXPECTED_FAILURES.keys() <= set(FIRST_PARTY)
