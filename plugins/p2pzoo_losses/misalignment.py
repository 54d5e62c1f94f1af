"""Losses for pairs whose y is not aligned with x to the pixel: ŷ is moved towards y before they are compared."""

import itertools
import tomllib
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.models import safetensors_io
from p2pzoo.plugin import StepOutputs
from p2pzoo.utils.errors import UserError

EXACT = 2**24  # float32 has all whole numbers up to this one


class Registration(nn.Module):
    """|y − ŷ∘T| with a deformation T that a network R(ŷ, y) predicts, plus `smoothness` times ‖∇T‖²: 0 or more.

    RegGAN (Kong et al. 2021, arXiv:2110.06465: its correction and smoothness losses), for pairs with misaligned
    targets. R learns together with G, by the same optimizer, and is saved in checkpoints. At the start T is the
    identity, and the loss is L1. ŷ∘T takes the value at each pixel from the place that is `displacement` pixels away,
    with bilinear interpolation; places outside of ŷ get its nearest pixel.

    R is a U-Net of 3×3 convolutions with LeakyReLU(0.2) and without norms. Images keep their size, in fp32 even if the
    networks do not. `displacement` asks R for the deformation, and `load_registration` reads the R of a run.

    The authors' code (Kid-Liet/Reg-GAN) has the same two terms with a smoothness of 0.5 (weights of 20 and 10), and its
    D does not see x: one that does can ask G for the misalignment.

    smoothness        weight of the smoothness: the mean square of the differences between the displacements of
                      neighbouring pixels, in px per px, vertically plus horizontally
    width             channels of R at full resolution; half the resolution has twice as many, and all below four times
    levels            how often R halves the resolution. With k levels R sees 2 · 2ᵏ px to each side of a pixel
    max_displacement  largest displacement in px along each side, the limit of a tanh

    Raises ValueError for sides below 2ᵏ px with k levels.

    >>> R = Registration(3, (64, 64), width=4)
    >>> images = torch.zeros(2, 3, 64, 64)
    >>> R.displacement(images, images).shape, R.displacement(images, images).any()
    (torch.Size([2, 2, 64, 64]), tensor(False))
    """

    side = "generator"
    minimum = 0.0

    def __init__(
        self,
        out_channels: int,
        size: tuple[int, int],
        *,
        smoothness: Annotated[float, Field(ge=0)] = 1.0,
        width: Annotated[int, Field(ge=1)] = 16,
        levels: Annotated[int, Field(ge=1, le=8)] = 4,
        max_displacement: Annotated[float, Field(gt=0)] = 16.0,
    ) -> None:
        super().__init__()
        if min(size) < 2**levels:
            raise ValueError(
                f"registration with levels = {levels} needs sides of at least {2**levels} px, not {size[0]}×{size[1]}: "
                "set fewer levels"
            )
        self.smoothness, self.max_displacement = smoothness, max_displacement
        widths = [width * min(2**level, 4) for level in range(levels + 1)]
        self.first = nn.Conv2d(2 * out_channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(coarse + fine, fine, 3, padding=1) for fine, coarse in itertools.pairwise(widths)
        )
        self.to_displacement = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.to_displacement.weight)  # the identity
        nn.init.zeros_(self.to_displacement.bias)

    def forward(self, out: StepOutputs) -> Tensor:
        y, y_hat = out.y.float(), out.y_hat.float()
        with torch.autocast(y.device.type, enabled=False):  # pixels of a large image have no exact place in bf16
            displacement = self.displacement(y_hat, y)
            roughness = sum(displacement.diff(dim=dim).square().mean() for dim in (2, 3))
            return F.l1_loss(warp(y_hat, displacement), y) + self.smoothness * roughness

    def displacement(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """R(ŷ, y): where each pixel of ŷ∘T comes from, (B, 2, H, W) in px down and to the right.

        y_hat, y  (B, C, H, W) in [-1, 1]
        """
        h = F.leaky_relu(self.first(torch.cat([y_hat, y], dim=1)), 0.2)
        finer = []
        for conv in self.down:
            finer.append(h)
            h = F.leaky_relu(conv(h), 0.2)
        for conv, skip in zip(reversed(self.up), reversed(finer), strict=True):
            h = F.interpolate(h, skip.shape[2:])  # nearest: its gradient has a deterministic kernel on CUDA
            h = F.leaky_relu(conv(torch.cat([h, skip], dim=1)), 0.2)
        return self.max_displacement * self.to_displacement(h).tanh()


class ShiftTolerantL1:
    """The mean over places of the smallest local mean |ŷ(· + s) − y| over shifts s: 0 or more, and 0 if ŷ = y.

    Shifts are by whole pixels, up to `radius` along each side; pixels at the edge of ŷ are repeated outside of it. The
    local mean is over the channels and a square of `window` px around the place, without what is outside of the image.
    So each neighbourhood of ŷ may be shifted as a whole. With a window of one pixel, any similar pixel nearby would do,
    and ŷ could be any rearrangement; with one as large as the image, all of it has one shift. With a radius of 0 the
    loss is the local mean of L1. Weights that a process may give the images are applied.

    radius  largest shift in px
    window  side of the square in px, odd: clearly larger than the shifts

    Raises ValueError for an even window.
    """

    side = "generator"
    minimum = 0.0
    uses_sample_weight = True

    def __init__(
        self, *, radius: Annotated[int, Field(ge=0, le=16)] = 2, window: Annotated[int, Field(ge=1)] = 11
    ) -> None:
        if window % 2 == 0:
            raise ValueError(f"window = {window}: a window around a pixel has an odd side, such as {window + 1}")
        self.radius, self.window = radius, window

    def __call__(self, out: StepOutputs) -> Tensor:
        y = out.y.float()
        wide, (height, width) = _repeat_edges(out.y_hat.float(), self.radius), y.shape[2:]
        shifts = itertools.product(range(2 * self.radius + 1), repeat=2)
        distances = [
            (wide[:, :, down : down + height, right : right + width] - y).abs().mean(1, keepdim=True)
            for down, right in shifts
        ]
        return out.weighted_mean(self._local_means(torch.cat(distances, dim=1)).amin(1))

    def _local_means(self, values: Tensor) -> Tensor:
        """Over rows, then over columns: 2 · window operations for each value in place of window²."""
        values = values.contiguous(memory_format=torch.channels_last)  # a CPU computes several shifts at a time
        for sides in ((self.window, 1), (1, self.window)):
            padding = (sides[0] // 2, sides[1] // 2)
            values = F.avg_pool2d(values, sides, stride=1, padding=padding, count_include_pad=False)
        return values


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """The value at each pixel is that of `images` at the place `displacement` pixels away, bilinearly interpolated.

    Both get gradients. Places outside of the image get its nearest pixel. grid_sample computes the same, but its
    gradient has no deterministic kernel on CUDA.

    images        (B, C, H, W), with sides of 2 to 2²⁴ px
    displacement  (B, 2, H, W) in px, down and to the right

    Raises ValueError for other sides: positions are computed in float32, which has no larger odd numbers.

    >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> right = torch.tensor([0.0, 0.25]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    >>> warp(image, right)
    tensor([[[[0.2500, 1.0000],
              [2.2500, 3.0000]]]])
    """
    batch, channels, height, width = images.shape
    _check_sides(height, width)
    displacement = displacement.to(torch.promote_types(displacement.dtype, torch.float32))  # bf16 counts to 256
    rows = torch.arange(height, device=images.device)[:, None] + displacement[:, 0]
    columns = torch.arange(width, device=images.device) + displacement[:, 1]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    top, left = rows.detach().floor().clamp(max=height - 2), columns.detach().floor().clamp(max=width - 2)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    upper_left = (top.long() * width + left.long()).view(batch, 1, -1).expand(-1, channels, -1)
    pixels = images.flatten(2)

    def at(offset: int) -> Tensor:
        return pixels.gather(2, upper_left + offset).view(images.shape)

    upper = at(0) * (1 - right) + at(1) * right
    lower = at(width) * (1 - right) + at(width + 1) * right
    return upper * (1 - down) + lower * down


def _check_sides(height: int, width: int) -> None:
    if min(height, width) < 2:
        raise ValueError(f"warp needs sides of at least 2 px, not {height}×{width}: repeat the row or column")
    if max(height, width) > EXACT:
        raise ValueError(f"warp needs sides of at most {EXACT} px, not {height}×{width}: cut the image into parts")


def load_registration(run: Path | str, name: str = "") -> Registration:
    """The trained R of a run, from its newest checkpoint: `load_registration(run).displacement(y_hat, y)`.

    run   folder of a run, as `p2pzoo run` prints it
    name  of the loss in the recipe, [losses.NAME]; can be left out if only one is a `registration`

    Raises UserError if the run has no checkpoint, or no such loss.
    """
    run = Path(run)
    recipe, checkpoints = run / "recipe.toml", sorted((run / "checkpoints").glob("*.safetensors"))
    if not recipe.is_file() or not checkpoints:
        raise UserError(f"{run}: no run with a checkpoint: give the folder that p2pzoo run printed")
    losses = tomllib.loads(recipe.read_text("utf-8")).get("losses", {})
    found = {key: table for key, table in losses.items() if table["use"].rpartition(":")[2] == "registration"}
    if (name and name not in found) or (not name and len(found) != 1):
        names = ", ".join(found) or "none"
        raise UserError(f'{recipe}: give the name of a loss with use = "registration" (it has: {names})')
    [name] = [name] if name else found
    parameters = {key: value for key, value in found[name].items() if key not in ("use", "weight")}
    tensors, _ = safetensors_io.load_tensors(checkpoints[-1])
    own = safetensors_io.strip_prefix(f"losses[{name}]", tensors)
    if "first.weight" not in own:
        raise UserError(f"{checkpoints[-1]}: it has no weights of [losses.{name}]")
    side = 2 ** parameters.get("levels", 8)  # R takes images of any larger size
    registration = Registration(own["first.weight"].shape[1] // 2, (side, side), **parameters)
    safetensors_io.load_into(registration, own, str(checkpoints[-1]))
    return registration.eval()


def _repeat_edges(images: Tensor, count: int) -> Tensor:
    """With `count` more rows and columns on each side. F.pad's gradient has no deterministic kernel on CUDA."""
    if not count:
        return images
    for dim in (2, 3):
        length = images.shape[dim]
        first, last = images.narrow(dim, 0, 1), images.narrow(dim, length - 1, 1)
        images = torch.cat([*[first] * count, images, *[last] * count], dim)
    return images
