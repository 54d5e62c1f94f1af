"""A trained generator from its file alone: images in, images out, of any size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from p2pzoo.compute.engine import pick_device
from p2pzoo.compute.memory import OutOfMemory, lacks_memory
from p2pzoo.images.color_spaces import Encodings, from_stored, joined, lab, quantize
from p2pzoo.images.io import pixels_of, with_channels
from p2pzoo.images.label_maps import Labels
from p2pzoo.models.model_file import load_model
from p2pzoo.models.safetensors_io import DamagedFile
from p2pzoo.models.test_modes import prepared, translate
from p2pzoo.models.tiling import Tiling, blend_tiles
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)

TEST_MODES = ("paper", "eval")
BYTES = (0.0, 255.0)  # the range of a file that names none
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PIXELS_AT_ONCE = {"cpu": 4 * 256**2}  # more makes no layer faster there, and each allocation slower
PIXELS_AT_ONCE_ELSEWHERE = 32 * 256**2


class Model:
    """G with what its file says of it.

    in_channels, out_channels  of x and y
    x_dtype, y_dtype           how images are stored that it takes and gives: "uint8", "uint16" or "float32"
    x_range, y_range           the stored values that are -1 and 1 to G
    encodings                  where x is the lightness of a photo and y its colours: images that it takes are then grey
                               or RGB of uint8, and those that it gives RGB of uint8
    x_labels, y_labels         where x or y are label maps: it then takes, or if they are one-hot gives, those
    gives                      (dtype, channels) of images that it gives
    palette                    of the label maps that it gives, as an indexed PNG has it; None of other images
    size                       (H, W) it was trained at; it takes others
    test_mode                  the mode its recipe named when it was trained; the default of `translate`
    run                        the id of the run that made it
    divisor                    sides are continued to multiples of it
    precision                  "fp32", or "bf16" (eval mode only): faster where the machine has it, and less exact

    The eval mode computes with a copy of G that is made once: for other weights, make another Model.
    """

    def __init__(self, G: nn.Module, header: dict[str, Any], device: torch.device, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        self.G, self.header, self.device, self.precision = G.to(device), header, device, precision
        self.in_channels: int = header["in_channels"]
        self.out_channels: int = header["out_channels"]
        self.x_dtype: str = header.get("x_dtype", "uint8")
        self.y_dtype: str = header.get("y_dtype", "uint8")
        self.x_range: tuple[float, float] = tuple(header.get("x_range", BYTES))
        self.y_range: tuple[float, float] = tuple(header.get("y_range", BYTES))
        self.encodings = Encodings.of(header)
        self.x_labels, self.y_labels = (Labels.of_header(header.get(f"{side}_labels")) for side in "xy")
        self._told = self.y_labels.classes if self.y_labels and self.encodings.y == "one-hot" else None
        self._keeps = (self._told.dtype, 1) if self._told else (self.y_dtype, self.out_channels)
        self.gives = ("uint8", 3) if self.encodings.lab else self._keeps
        self.palette = self._told.palette if self._told else None
        self.size: tuple[int, int] = tuple(header["size"])
        self.test_mode: str = header["test_mode"]
        self.run: str = header["run"]
        self.divisor: int = header["size_divisor"]

    def __repr__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}"
        return f"<Model {self.header['generator']['use']}, run {self.run}, trained at {size}, on {self.device}>"

    def translate(
        self,
        image: Picture,
        *,
        test_mode: str | None = None,
        seed: int = 0,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Picture:
        """The same kind back: a PIL image for a PIL image, an array for an array, a tensor for a tensor.

        image: PIL of any mode that says the same in the model's channels (grey as three equal channels, for one);
            (H, W) or (H, W, C) array of the model's `x_dtype`, within its `x_range`; what comes back has its `y_dtype`
            and `y_range` (label maps: (H, W) or (H, W, 1) integers, as files have them);
            (C, H, W) or (B, C, H, W) float tensor in [-1, 1], as G sees it, whatever the `encodings`.
        test_mode: "paper" or "eval", see `p2pzoo.models.test_modes`; None is the model's own. seed: of dropout in "paper".
        tile, overlap: for "eval", images larger than this side are translated in tiles, see `p2pzoo.models.tiling`, in memory
            that does not grow with the image; None is in one piece.
        Any H and W: the image is reflected at its right and lower edges up to what G can halve, and cut back.

        Raises ValueError for an image that the model cannot take, saying what it takes, and for tiles that do not fit;
        UserError where memory does not suffice.
        """
        mode, tiling = self.resolve_options(test_mode, tile, overlap)
        if isinstance(image, Tensor):
            return self._tensor(image, mode, seed, tiling)
        if isinstance(image, np.ndarray):
            return self.translate_arrays([self.pixels(image)], mode, seed, tiling)[0]
        if isinstance(image, Image.Image):
            try:
                indices = self.x_labels and image.mode == "P"
                pixels = np.asarray(image) if indices else pixels_of(image, "the image")
            except UserError as error:
                raise ValueError(str(error)) from None
            [translated] = self.translate_arrays([self.pixels(pixels)], mode, seed, tiling)
            dtype, channels = self.gives
            if channels > 1 and (dtype != "uint8" or channels > 4):
                what = f"{channels} channels of {dtype}"
                raise ValueError(f"no PIL image holds what this model gives, {what}: give an array")
            picture = Image.fromarray(translated[..., 0] if channels == 1 else translated)
            if self.palette:
                picture.putpalette(self.palette)
            return picture
        raise ValueError(f"an image is a PIL image, a NumPy array or a tensor, not a {type(image).__name__}")

    def resolve_options(
        self, test_mode: str | None, tile: int | None, overlap: int | None
    ) -> tuple[str, Tiling | None]:
        """The test mode and the tiling meant by the arguments of `translate`. Raises ValueError as it does."""
        mode = self.test_mode if test_mode is None else test_mode
        if mode not in TEST_MODES:
            raise ValueError(f"test_mode must be one of {', '.join(TEST_MODES)}, not {mode!r}")
        if mode == "paper" and self.precision != "fp32":
            raise ValueError(f"precision {self.precision} is for the test mode eval: paper is as in training, in fp32")
        if tile is None:
            if overlap is not None:
                raise ValueError(f"an overlap of {overlap} needs tiles: give the side of a tile, too")
            return mode, None
        if mode == "paper":
            raise ValueError("tiles need the test mode eval: in paper mode each would have statistics of its own")
        if kind := _own_statistics(self.G):
            warnings.warn(f"the generator's {kind} takes statistics of what it sees: they differ by tile", stacklevel=2)
        return mode, Tiling.of(tile, overlap, self.divisor)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) as the model's x is stored, of an image that it takes. Raises ValueError as `translate` does."""
        if self.x_labels:
            if image.dtype.kind not in "iu" or image.shape[2:] not in ((), (1,)) or image.size == 0 or image.ndim < 2:
                told = f"{image.shape} of {image.dtype}"
                raise ValueError(f"expected a label map, (H, W) or (H, W, 1) of integers, not {told}")
            return self.x_labels.encoded(self.x_labels.classes.of_values(image.reshape(image.shape[:2])))
        if self.encodings.lab:
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
                raise ValueError(f"expected (H, W) or (H, W, C) of uint8, not {image.shape} of {image.dtype}")
            photo = with_channels(image.reshape(*image.shape[:2], -1), 3)
            return quantize(lab(photo)[0], self.x_range, self.x_dtype)
        if image.dtype != self.x_dtype or image.ndim not in (2, 3):
            raise ValueError(f"expected (H, W) or (H, W, C) of {self.x_dtype}, not {image.shape} of {image.dtype}")
        if image.size == 0:
            raise ValueError(f"an image without pixels: {image.shape}")
        low, high = self.x_range
        if not (image.min() >= low and image.max() <= high):
            raise ValueError(f"expected values from {low:g} to {high:g}, not {image.min():g} to {image.max():g}")
        pixels = with_channels(image.reshape(*image.shape[:2], -1), self.in_channels)
        return np.require(pixels, requirements=["C", "W"])  # torch takes no negative strides, and warns of Pillow's

    def check_draws(self, mode: str) -> None:
        """Raises ValueError where translations of one image would all be the same."""
        if mode != "paper":
            raise ValueError("samples need the test mode paper: in eval mode nothing is drawn")
        x = torch.zeros(1, self.in_channels, *self.size)
        if torch.equal(*(self._paper(x, seed) for seed in (0, 1))):
            raise ValueError("this generator draws nothing: samples of it would all be the same")

    def samples(self, image: np.ndarray, count: int, *, seed: int = 0) -> Samples:
        """Translations of one image that differ by what is drawn, in the test mode paper; see `Samples`.

        image: an array as `translate` takes it. Raises ValueError as it does, for fewer than 2, and where nothing is
        drawn.
        """
        self.check_draws("paper")
        return Samples(self, self.pixels(image), count, seed)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The sides with which an image of these meets G."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def max_batch_size(self, height: int, width: int, mode: str) -> int:
        """How many images of these padded sides are best translated together."""
        if mode == "paper":
            return 1
        return max(1, PIXELS_AT_ONCE.get(self.device.type, PIXELS_AT_ONCE_ELSEWHERE) // (height * width))

    def translate_arrays(
        self, images: Sequence[np.ndarray], mode: str, seed: int, tiling: Tiling | None
    ) -> list[np.ndarray]:
        """(H, W, C) of each; images as `pixels` gives them, of one `padded_size` size. Raises OutOfMemory."""
        y_hats = self._translated(images, mode, seed, tiling)
        return [self._joined(x, y_hat) for x, y_hat in zip(images, y_hats, strict=True)]

    def _joined(self, x: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
        """ŷ as it is given, of what is stored."""
        if not self.encodings.lab:
            return y_hat
        return joined(from_stored(x, self.x_range), from_stored(y_hat, self.y_range))

    def _translated(
        self, images: Sequence[np.ndarray], mode: str, seed: int, tiling: Tiling | None
    ) -> list[np.ndarray]:
        """(H, W, C) of each, as y is stored."""
        sizes = [image.shape[:2] for image in images]
        height, width = self.padded_size(*sizes[0])
        channels_first = [self._as_tensor(image) for image in images]
        try:
            if mode == "eval" and tiling and max(height, width) > tiling.side:
                return [self._stored_in_tiles(image, tiling) for image in channels_first]
            if mode == "eval":
                y_hats = self._eval(torch.stack([reflected(x[None], self.divisor)[0] for x in channels_first]))
                together = self._stored(y_hats.permute(0, 2, 3, 1))
                return [y[:h, :w] for y, (h, w) in zip(together, sizes, strict=True)]
            return [self._stored(self._drawn(x, seed)) for x in channels_first]
        except (RuntimeError, MemoryError) as error:
            self._tell_of_memory(error, max(sizes), tiling)
            raise

    def _drawn(self, image: Tensor, seed: int) -> Tensor:
        """(C, H, W) of stored integers, or of floats in [-1, 1] -> ŷ (H, W, C) in [-1, 1], in the test mode paper."""
        height, width = image.shape[1:]
        return self._paper(self._scaled(image)[None], seed)[0, :, :height, :width].permute(1, 2, 0)

    def _tensor(self, image: Tensor, mode: str, seed: int, tiling: Tiling | None) -> Tensor:
        if image.ndim not in (3, 4) or image.shape[-3] != self.in_channels or not image.is_floating_point():
            expected = f"(C, H, W) or (B, C, H, W) of floats with C = {self.in_channels}"
            raise ValueError(f"expected {expected}, not {tuple(image.shape)} of {image.dtype}")
        if image.numel() == 0:
            raise ValueError(f"an image without pixels: {tuple(image.shape)}")
        if image.min() < -1.0001 or image.max() > 1.0001:
            raise ValueError(f"expected values in [-1, 1], not {image.min():.3g} to {image.max():.3g}")
        batch = image if image.ndim == 4 else image[None]
        height, width = batch.shape[-2:]
        try:
            if tiling and max(height, width) > tiling.side:
                y_hat = torch.empty(len(batch), self.out_channels, height, width, device=image.device)
                for x, y in zip(batch, y_hat, strict=True):
                    for top, strip in self._strips(x, tiling):
                        y[:, top : top + strip.shape[1]] = strip
            elif mode == "eval":
                y_hat = self._eval(reflected(batch.to(self.device), self.divisor))[..., :height, :width]
            else:
                y_hat = self._paper(batch, seed)[..., :height, :width]
        except (RuntimeError, MemoryError) as error:
            self._tell_of_memory(error, (height, width), tiling)
            raise
        y_hat = y_hat.to(image.device, image.dtype)
        return y_hat if image.ndim == 4 else y_hat[0]

    def _paper(self, x: Tensor, seed: int) -> Tensor:
        return translate(self.G, reflected(x.to(self.device, torch.float32), self.divisor), "paper", seed=seed)

    @torch.no_grad()
    def _eval(self, images: Tensor) -> Tensor:
        """(B, C, H, W) of stored integers, or of floats in [-1, 1], of sides that G takes -> ŷ, float32."""
        try:
            x = self._scaled(images.to(self.device)).contiguous(memory_format=torch.channels_last)
            return self._fast(x.to(PRECISIONS[self.precision])).float()  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            if len(images) == 1 or not lacks_memory(error):
                raise
        # not inside the except: there the error would keep what filled the memory
        return torch.cat([self._eval(image) for image in images.split(1)])

    @cached_property
    def _fast(self) -> nn.Module:
        example = torch.rand(1, self.in_channels, *self.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return prepared(self.G, example.to(self.device), PRECISIONS[self.precision])

    def _strips(self, image: Tensor, tiling: Tiling) -> Iterator[tuple[int, Tensor]]:
        """(top, (C, rows, W)) of ŷ for (C, H, W), a strip at a time, without what was continued by reflection."""
        height, width = image.shape[1:]
        rows, columns = (reflection(length, self.divisor) for length in (height, width))

        def translated(places: list[tuple[slice, slice]]) -> Tensor:
            return self._eval(torch.stack([image[:, rows[down, None], columns[across]] for down, across in places]))

        at_once = self.max_batch_size(tiling.side, tiling.side, "eval")
        for top, strip in blend_tiles(translated, len(rows), len(columns), tiling, at_once):
            if top < height:
                yield top, strip[:, : height - top, :width]

    def _stored_in_tiles(self, image: Tensor, tiling: Tiling) -> np.ndarray:
        dtype, channels = self._keeps
        whole = np.empty((*image.shape[1:], channels), dtype)
        for top, strip in self._strips(image, tiling):
            whole[top : top + strip.shape[1]] = self._stored(strip.permute(1, 2, 0))
        return whole

    def _as_tensor(self, image: np.ndarray) -> Tensor:
        """(H, W, C) as stored -> (C, H, W) of integers, or of floats in [-1, 1]."""
        if image.dtype == np.float32:
            low, high = self.x_range
            return torch.from_numpy(image).permute(2, 0, 1).sub(low).mul(2 / (high - low)).sub(1)
        wide = image if image.dtype == np.uint8 else image.astype(np.int32)  # torch computes little with uint16
        return torch.from_numpy(wide).permute(2, 0, 1)

    def _scaled(self, x: Tensor) -> Tensor:
        """Stored integers to [-1, 1]; floats are there already. float32."""
        if x.is_floating_point():
            return x.float()
        low, high = self.x_range
        return x.float().sub(low).mul(2 / (high - low)).sub(1)

    def _stored(self, y: Tensor) -> np.ndarray:
        """[-1, 1] to what y is stored as; one-hot classes to the values that label maps have."""
        if self._told:
            return self._told.as_values(y.argmax(-1).cpu().numpy())
        low, high = self.y_range
        values = y.clamp(-1, 1).add(1).mul((high - low) / 2).add(low)
        if self.y_dtype == "uint8":
            return values.round().to(torch.uint8).cpu().numpy()
        array = values.cpu().numpy()
        return (array if self.y_dtype == "float32" else np.rint(array)).astype(self.y_dtype)

    def _tell_of_memory(self, error: Exception, size: tuple[int, ...], tiling: Tiling | None) -> None:
        """Raises OutOfMemory if that is what the error is."""
        if not lacks_memory(error):
            return
        side = tiling.side // 2 if tiling else min(512, max(size) // 2)
        side = side // self.divisor * self.divisor
        if side:
            advice = f"translate it in {'smaller ' if tiling else ''}tiles (--test-mode eval --tile {side})"
        else:
            advice = f"{self.divisor}×{self.divisor} is the least that this generator takes"
        raise OutOfMemory(f"out of memory at {size[0]}×{size[1]}: {advice}") from None


class Samples:
    """Translations of one image with the seeds `seed`, `seed + 1`, …, made one by one as they are asked for.

    Iterate over it once: each is an array as `Model.translate` gives it with that seed. Afterwards

    mean    their mean: such an array
    spread  (H, W) float32: the standard deviation at each pixel, of values in [-1, 1]; root mean square over channels

    Only one of them is held at a time.
    """

    def __init__(self, model: Model, pixels: np.ndarray, count: int, seed: int) -> None:
        if count < 2:
            raise ValueError(f"samples are 2 at least, not {count}")
        self.model, self.pixels, self.seeds = model, pixels, range(seed, seed + count)

    def __iter__(self) -> Iterator[np.ndarray]:
        model, x = self.model, self.model._as_tensor(self.pixels)
        mean = squares = torch.zeros(())
        for number, seed in enumerate(self.seeds, start=1):
            y_hat = model._drawn(x, seed)
            yield model._joined(self.pixels, model._stored(y_hat))
            off = y_hat.double() - mean  # Welford 1962
            mean = mean + off / number
            squares = squares + off * (y_hat.double() - mean)
        self.mean = model._joined(self.pixels, model._stored(mean.float()))
        variance = squares / (len(self.seeds) - 1)
        self.spread: np.ndarray = variance.mean(-1).sqrt().float().cpu().numpy()


def _own_statistics(G: nn.Module) -> str | None:
    """The kind of layer, if there is one, that normalises by its input in eval mode too."""
    for module in G.modules():
        tracked = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)) and not tracked:
            return type(module).__name__
    return None


def reflection(length: int, divisor: int) -> Tensor:
    """Which pixels follow each other along a side continued by reflection to the next multiple of `divisor`."""
    index = torch.arange(-(-length // divisor) * divisor)
    period = max(1, 2 * (length - 1))
    back_and_forth = (index % period - (length - 1)).abs()
    return (length - 1) - back_and_forth


def reflected(images: Tensor, divisor: int) -> Tensor:
    """(B, C, H, W) continued by reflection at the right and below, to the next multiples of `divisor`."""
    for dim in (-2, -1):
        images = images.index_select(dim, reflection(images.shape[dim], divisor).to(images.device))
    return images


def load(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> Model:
    """The model of a run folder, a model.safetensors, or of a plugin: "zoo:NAME". Raises UserError if there is none,
    or it is damaged.

    precision: "fp32" or "bf16", see Model; ValueError for another.
    """
    file = model_file(Path(path))
    G, header = load_model(file, registry())
    if lacking := [name for name in ("run", "test_mode", "size_divisor") if name not in header]:
        raise DamagedFile(f"{file}: its header is damaged: it has no {lacking[0]}")
    return Model(G, header, torch.device(pick_device(device)), precision)


def located(path: Path) -> Path:
    """The folder that `zoo:NAME` means, a model that travels with a plugin; else the path itself. Raises UserError."""
    zoo, name = str(path).partition(":")[::2]
    return Path(registry().get("model", name).load()()) if zoo == "zoo" else path


def model_file(path: Path) -> Path:
    """Of a run folder or `zoo:NAME`, or the path itself. Raises UserError for another folder."""
    path = located(path)
    if not path.is_dir():
        return path
    if not (path / "model.safetensors").is_file():
        found = "a run that has not finished training" if (path / "status.json").exists() else "no run folder"
        raise UserError(f"{path}: {found}; give a finished run or a model.safetensors")
    return path / "model.safetensors"
