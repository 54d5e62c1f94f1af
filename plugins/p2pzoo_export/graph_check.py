"""Compare an exported graph with torch: on test images of the run if they are available, else on smooth noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.data.loader import single_batches
from p2pzoo.images.grid import grid_indices
from p2pzoo.models.model import Model
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin import Batch
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count

RunGraph = Callable[..., Tensor]  # of x, and of noise if the model takes it

MAX_DIFFERENCE = 1e-3  # of values in [-1, 1], in float32: 1/8 of a level of an 8-bit image
MIN_PSNR = {"fp16": 40.0, "int8": 30.0}  # dB of each image to torch's: a file below it is not usable
VALUE_SPAN = 2.0  # of values in [-1, 1]; for the PSNR
MIN_COARSEST_SIDE = 4  # of the coarsest feature maps: norms over fewer values magnify rounding


@dataclass(frozen=True)
class ExportResult:
    """Outcome of the comparison of an exported file with torch.

    difference  largest difference of any value in [-1, 1]
    psnr        of the file's images to torch's, dB; infinite if they are equal
    psnr_loss   PSNR to the real images that the file loses against torch, dB; None without real images
    checked_on  images, sizes and batches of the comparison, as text
    sides       sizes and batches that the graph accepts, as text
    notes       differences to `p2pzoo translate`, one line each
    """

    difference: float
    psnr: float
    psnr_loss: float | None
    checked_on: str
    sides: str
    notes: Sequence[str]


@dataclass(frozen=True)
class EvaluationData:
    """The pairs that a run was evaluated on."""

    store: Store
    split: str

    def batches(self) -> list[Batch]:
        """Return the pairs of the run's sample grid, one per batch."""
        return list(single_batches(self.store, grid_indices(len(self.store))))

    def fits(self, model: Model) -> bool:
        """Whether channels and size are those of the model."""
        channels = (model.in_channels, model.out_channels)
        return (self.store.channels, self.store.size) == (channels, model.size)


def load_run_data(folder: Path, model: Model) -> tuple[EvaluationData | None, str]:
    """Load the evaluation data of the model's run folder. Return (data, "") or (None, why there is none)."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        return None, "the model's folder has no recipe.toml"
    try:
        experiment = config.load(str(recipe))
        split = experiment.evaluate.split
        data = EvaluationData(Store(experiment.dataset.build(split=split), compute=experiment.compute), split)
        return (data, "") if data.fits(model) else (None, "recipe.toml next to the model has images of another shape")
    except UserError as error:
        return None, f"the data of recipe.toml is not available ({error.faults[0]})"


def make_examples(model: Model, data: EvaluationData | None) -> list[Tensor]:
    """Return images (1, C, H, W) in [-1, 1], of the size that the model was trained on."""
    if data:
        return [batch.x.contiguous() for batch in data.batches()]
    generator = torch.Generator().manual_seed(0)
    coarse_size = (max(1, side // 8) for side in model.size)
    noise = torch.rand(1, model.in_channels, *coarse_size, generator=generator) * 2 - 1
    return [nn.functional.interpolate(noise, model.size, mode="bilinear")]


def with_noise(model: Model, x: Tensor) -> tuple[Tensor, ...]:
    """The inputs of a graph for x: itself, and the noise that `Model.translate` draws for each image, if any."""
    if not model.takes_noise:
        return (x,)
    return x, torch.cat([model.draw_noise(image) for image in x.split(1)])


def make_other_sizes(model: Model, images: Sequence[Tensor], free: str) -> list[Tensor]:
    """Return images of other sizes and batches, as far as these are free in the graph (see `graphs.FreeDimensions`)."""
    x, other = images[0], images[-1]
    examples = []
    if "sides" in free:
        examples += [torch.cat([x, other], dim=3), torch.cat([x, other[:, :, : model.size_divisor]], dim=2)]
        height, width = (side // 2 // model.size_divisor * model.size_divisor for side in x.shape[2:])
        if min(height, width) >= MIN_COARSEST_SIDE * model.size_divisor:
            examples.append(x[:, :, :height, :width].contiguous())
    if "batch" in free:
        examples.append(torch.cat([x, other, x]))
    return examples


def compare_with_torch(
    model: Model,
    network: nn.Module,
    mode: str,
    run: RunGraph,
    free: str,
    images: Sequence[Tensor],
    data: EvaluationData | None,
    precision: str,
    notes: Sequence[str],
) -> ExportResult:
    """Compare a graph with `network`. Raises UserError if they differ by more than the precision allows.

    run   runs the graph
    free  what is free in the graph
    """
    other_sizes = make_other_sizes(model, images, free)
    inputs = [*images, *other_sizes]
    from_file = [run(*with_noise(model, x)) for x in inputs]
    from_torch = [translate(network, x, mode) for x in inputs]
    pairs = list(zip(from_file, from_torch, strict=True))
    difference = torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()  # NaN if any value is
    psnr = compute_psnr(from_file[: len(images)], from_torch[: len(images)])
    _check_difference(difference, pairs[: len(images)], precision, mode)
    psnr_loss = None
    if data:
        real = [batch.y for batch in data.batches()]
        psnr_loss = compute_psnr(from_torch[: len(real)], real) - compute_psnr(from_file[: len(real)], real)
    source = f"{format_count(len(images), 'image')} of the {data.split} split" if data else "smooth noise"
    sizes = ", ".join([format_size(images[0]), *map(format_size, other_sizes)])
    return ExportResult(difference, psnr, psnr_loss, f"{source}, {sizes}", _describe_sides(model, free), notes)


def _check_difference(difference: float, pairs: list[tuple[Tensor, Tensor]], precision: str, mode: str) -> None:
    if precision == "fp32":
        if not difference <= MAX_DIFFERENCE:
            hint = "; --test-mode eval draws no random numbers" if mode == "paper" else ""
            limit = f"the limit is {MAX_DIFFERENCE:g}"
            raise UserError(f"the file's output differs from torch's by up to {difference:.2g}, {limit}{hint}")
        return
    for psnr in (compute_psnr([a], [b]) for a, b in pairs):
        if not psnr >= MIN_PSNR[precision]:
            message = f"has a PSNR of {psnr:.1f} dB to torch's, the minimum is {MIN_PSNR[precision]:g} dB"
            raise UserError(f"in {precision} an image of the file {message}; leave --{precision} out")


def format_size(x: Tensor) -> str:
    batch, _, height, width = x.shape
    return f"{height}×{width}" if batch == 1 else f"{batch} of {height}×{width}"


def _describe_sides(model: Model, free: str) -> str:
    sides = f"{model.size[0]}×{model.size[1]}"
    if "sides" in free:
        sides = f"any sides that are multiples of {model.size_divisor}" if model.size_divisor > 1 else "any sides"
    return f"{sides}, {'any batch' if 'batch' in free else 'one image at a time'}"


def compute_psnr(images: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the PSNR over the pixels of all images together, dB; infinite if they are equal."""
    error = torch.cat([(a - b).flatten() for a, b in zip(images, others, strict=True)]).double().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(VALUE_SPAN**2 / error)
