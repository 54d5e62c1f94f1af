"""What finished runs store: their numbers, statistics per image, pictures, and facts about the evaluated images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.data import Store
from p2pzoo.models import safetensors_io
from p2pzoo.runs.results import read_results
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.files import read_object


def final_name(name: str) -> str:
    """The name that a number or a statistic has after the last step, in the recipe's own test mode.

    >>> final_name("lab_histogram@3500.y_a")
    'lab_histogram.y_a'
    """
    metric, dot, key = name.partition(".")
    return metric.partition("@")[0] + dot + key


@dataclass(frozen=True)
class FinishedRun:
    """A folder with results: a run's, or a committed copy.

    suffix  "" for the translations of the recipe; "@NAME" for those of [evaluate.also.NAME], whose numbers are then
            named as the others are
    """

    folder: Path
    suffix: str = ""

    @cached_property
    def results(self) -> dict[str, Any]:
        results = read_results(self.folder / "results.json") or {}
        return results | {key: self._named(results[key]) for key in ("metrics", "measured") if key in results}

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of {metric, or metric.key: value} those of these translations, named METRIC and METRIC.KEY."""
        if not self.suffix:
            return dict(values)
        split = {name: name.partition(".") for name in values}
        return {
            f"{metric.removesuffix(self.suffix)}{dot}{key}": values[name]
            for name, (metric, dot, key) in split.items()
            if metric.endswith(self.suffix)
        }

    def has(self, name: str) -> bool:
        return name in self.results["metrics"]

    def number(self, name: str) -> float:
        """A number of these translations: "fcn_score.class_iou". Raises UserError if it was not measured."""
        try:
            return float(self.results["metrics"][name]["value"])
        except KeyError:
            raise UserError(f"{self.folder}: its results have no '{name}': measure the run again") from None

    @cached_property
    def env(self) -> dict[str, Any]:
        return read_object(self.folder / "env.json") or {}

    @cached_property
    def stats(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The statistics of each image, {metric.statistic: (N, ...)}, and a header with the images' ids and blocks.

        A committed copy may lack those of some metrics (`keep_runs.py`). Raises DamagedFile if the two do not fit.
        """
        file = self.folder / "stats.safetensors"
        tensors, header = safetensors_io.load_tensors(file)
        tensors = {name: tensor.to(_dtype(header, name, tensor)) for name, tensor in tensors.items()}
        for name, folder in header.get("same_as", {}).items():
            photos = FinishedRun(self.folder.parent / folder).stats[0]
            tensors[name] = photos[name if name in photos else final_name(name)]
        ids, blocks = header.get("ids"), header.get("blocks")
        if not (isinstance(ids, list) and isinstance(blocks, list) and len(ids) == len(blocks)):
            raise DamagedFile(f"{file}: its header has no list of image ids with one block for each")
        if any(tensor.shape[:1] != (len(ids),) for tensor in tensors.values()):
            raise DamagedFile(f"{file}: a tensor does not have one row for each of the {len(ids)} images")
        return self._named(tensors), header

    @property
    def picture(self) -> Path | None:
        """The grid of test images, x | ŷ | y in each row."""
        split = self.results["protocols"][next(iter(self.results["measured"].values()))]["split"]
        files = [self.folder / "samples" / f"{split}{self.suffix}.png", self.folder / f"samples{self.suffix}.webp"]
        return next((file for file in files if file.exists()), None)


def compact(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors in the smallest integer type that holds them exactly, and {name: its type} of those that changed.

    >>> small, types = compact({"counts": torch.tensor([[0.0, 300.0]]), "distance": torch.tensor([0.5])})
    >>> small["counts"].dtype, small["distance"].dtype, types
    (torch.int16, torch.float32, {'counts': 'float32'})
    """
    small = {name: _smallest(tensor) for name, tensor in tensors.items()}
    changed = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return small, {name: dtype for name, dtype in changed.items() if small[name].dtype != tensors[name].dtype}


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if dtype.itemsize < tensor.dtype.itemsize and tensor.isfinite().all():
            limits = torch.iinfo(dtype)
            within = bool(((tensor >= limits.min) & (tensor <= limits.max)).all())
            if within and torch.equal((small := tensor.to(dtype)).to(tensor.dtype), tensor):
                return small
    return tensor


def _dtype(header: Mapping[str, Any], name: str, tensor: torch.Tensor) -> torch.dtype:
    """The type that a statistic was measured in: `compact` may have stored it in another."""
    dtype = getattr(torch, str(header.get("dtypes", {}).get(name, "")), tensor.dtype)
    return dtype if isinstance(dtype, torch.dtype) else tensor.dtype


@dataclass(frozen=True)
class EvaluatedImages:
    """What a table needs to know about the images that its numbers were measured on.

    dataset     metrics are built with it; a `MissingDataset` if the data cannot be opened
    size        (H, W)
    channels    (C of x, C of y); None if no run stores them
    has_blocks  whether the images belong to blocks
    """

    dataset: Any
    size: tuple[int, int]
    channels: tuple[int, int] | None
    has_blocks: bool

    @classmethod
    def of_store(cls, store: Store) -> EvaluatedImages:
        return cls(store.dataset, store.size, store.channels, store[0].block is not None)


class MissingDataset:
    """Replaces data that cannot be opened: a metric that needs classes refuses it, any other accepts it."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None


def open_evaluated_images(experiment: Experiment, runs: Sequence[FinishedRun]) -> EvaluatedImages:
    """The evaluated split of the experiment; if it cannot be opened, what the runs store about it, with a warning."""
    try:
        return EvaluatedImages.of_store(
            Store(experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute)
        )
    except UserError as error:
        reason = error.faults[0].splitlines()[0]
        warnings.warn(f"the data cannot be opened ({reason}): comparing the stored numbers", stacklevel=2)
    sizes = [protocol.get("size") for run in runs for protocol in run.results["protocols"].values()]
    size = next((tuple(size) for size in sizes if size), (0, 0))
    has_blocks = any(block is not None for block in runs[0].stats[1]["blocks"])
    return EvaluatedImages(MissingDataset(), size, _stored_channels(runs), has_blocks)


def build_metrics(components: Mapping[str, Component], data: EvaluatedImages) -> dict[str, Any]:
    """Build the metrics, {name: metric}. Without the data, those that need it are skipped with a warning."""
    metrics = {}
    for name, component in components.items():
        try:
            metrics[name] = component.build(dataset=data.dataset)
        except UserError:
            if not isinstance(data.dataset, MissingDataset):
                raise
            warnings.warn(f"metric '{name}' needs the data: no differences in its columns", stacklevel=2)
    return metrics


def _stored_channels(runs: Sequence[FinishedRun]) -> tuple[int, int] | None:
    """From the first model file; a committed copy has none."""
    for run in runs:
        if (file := run.folder / "model.safetensors").is_file():
            _, header = safetensors_io.load_tensors(file)
            return int(header["in_channels"]), int(header["out_channels"])
    return None
