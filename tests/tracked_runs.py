"""What a run with a tracker should have logged: read from the files of the run."""

import json

from PIL import Image


def only(runs):
    [folder] = {file.parent for file in runs.glob("*/*/recipe.toml")}
    return folder


def losses_of(folder):
    """{images: losses} of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["images"]: {k: v for k, v in line.items() if k not in ("images", "lr")} for line in lines}


def numbers_of(folder):
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return {f"final/{name}": number["value"] for name, number in metrics.items()}


def grid_of(folder, images):
    return Image.open(folder / f"samples/images-{images:08d}.png").size
