"""A trained generator, loaded from its file: it translates images of any size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from p2pzoo.compute.engine import best_memory_format
from p2pzoo.compute.memory import is_out_of_memory
from p2pzoo.images.color_spaces import dequantize, join_lab, quantize, split_lab
from p2pzoo.images.io import TransparentPixels, decode_pixels, inspect_image, read_image, with_channels
from p2pzoo.images.label_maps import picture_map, read_map
from p2pzoo.images.resize import resize_to
from p2pzoo.images.rows import Rows
from p2pzoo.images.transparency import Rgb, put_on_background
from p2pzoo.models.intervals import (
    BoundsNetwork,
    Calibration,
    Interval,
    bounds_header,
    find_reason_against,
    make_interval,
)
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.noise_field import NoiseField
from p2pzoo.models.padding import pad_by_reflection, reflected_indices
from p2pzoo.models.scaling import NO_FILE_LAYOUT, Scaling
from p2pzoo.models.test_modes import derive_image_seed, draws_random_numbers, optimize_for_eval, translate
from p2pzoo.models.tiling import Tiling, blend_tiles
from p2pzoo.utils import rng
from p2pzoo.utils.errors import OutOfMemory, UserError
from p2pzoo.utils.memory import check_available
from p2pzoo.utils.plurals import format_count

ImageLike = TypeVar("ImageLike", Image.Image, np.ndarray, Tensor)

TEST_MODES = ("paper", "eval")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Pixels of a batch in eval mode. On a CPU more pixels make no layer faster, and each allocation slower
MAX_BATCH_PIXELS = {"cpu": 4 * 256**2}
MAX_BATCH_PIXELS_ON_GPU = 32 * 256**2
_BYTES_OF_RESIZING = 8  # per value of the new image, at least
_CORNER = 64  # px: the corner of an image whose hash seeds the noise of its tiles
_BAND_ROWS = 64  # of a large image that are made to stored values at once: several float32 copies of them exist
MAX_EXAMPLE_PIXELS = 2048**2  # G is tried on an image of its training size, unless that is larger


class PreparedImage(NamedTuple):
    """What `Model.prepare_input` makes of an image.

    x          (h, w, C) as x is stored, at the size at which G sees it
    size       (H, W) of the image, and of its translation
    lightness  (H, W, 1) as x is stored, at the size of the image, to join with the colours ŷ; else None
    """

    x: np.ndarray
    size: tuple[int, int]
    lightness: np.ndarray | None = None


class Model:
    """A trained generator with what its file says about it. `p2pzoo.load` makes one.

    in_channels, out_channels  channels of x and y as G gets them
    x_dtype, y_dtype           how images are stored: "uint8", "uint16" or "float32"
    x_range, y_range           the stored values that are -1 and 1 to G
    encodings                  the color spaces of x and y. If x is the lightness of a photo and y its colors, the model
                               takes grey or RGB images of uint8 and returns RGB of uint8
    x_labels, y_labels         the classes of a side that is a label map, else None. The model then takes label maps;
                               it returns them if y is one-hot
    output_format              (dtype, channels) of the images that it returns
    palette                    the palette of a label map that it returns, for an indexed PNG; else None
    size                       (H, W) of the training images; the model takes others too
    file_layout                how the training images x were taken from their files; None if the file does not say
    background                 RGB values (0 to 255) behind transparent pixels of x; may be set. None: they are refused
    size_divisor               images are padded to multiples of it
    test_mode                  the recipe's test mode, "paper" or "eval": the default of `translate`
    run                        id of the run that trained it
    checkpoint                 (images, of): how far its training was; None if it was finished
    weights                    "last": G after the last step; "average": the average of its weights over the training
    precision                  "fp32", or "bf16" (eval mode only), which is less exact, and faster on some devices
    calibration                how its intervals were calibrated; None if they were not
    address                    where it was found, with its exact version ("hf:OWNER/NAME@COMMIT"); None for a file or a
                               model that a plugin ships
    header                     the parsed header of its file

    Eval mode uses an optimized copy of G that is made once: to change G's weights, make another Model.
    """

    def __init__(
        self,
        G: nn.Module,
        header: ModelHeader,
        device: torch.device,
        precision: str = "fp32",
        calibration: Calibration | None = None,
        address: str | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if header.run is None or header.test_mode is None or header.size_divisor is None:
            raise ValueError("a Model needs a header with run, test_mode and size_divisor")
        self.G, self.header, self.device, self.precision = G.to(device), header, device, precision
        self.calibration, self.address = calibration, address
        self.run, self.test_mode, self.size_divisor = header.run, header.test_mode, header.size_divisor
        self.in_channels, self.out_channels = header.in_channels, header.out_channels
        self.x_dtype, self.y_dtype = header.x_dtype, header.y_dtype
        self.x_range, self.y_range = header.x_range, header.y_range
        self.encodings, self.x_labels, self.y_labels = header.encodings, header.x_labels, header.y_labels
        self.size, self.file_layout, self.checkpoint = header.size, header.file_layout, header.checkpoint
        self.weights = header.weights
        self.background: Rgb | None = header.file_layout.background if header.file_layout else None
        self._y_classes = self.y_labels.classes if self.y_labels and self.encodings.y == "one-hot" else None
        # Lab images are joined with their lightness before they are returned: before that y has another format
        self._y_format = (self._y_classes.dtype, 1) if self._y_classes else (self.y_dtype, self.out_channels)
        self.output_format = ("uint8", 3) if self.encodings.lab else self._y_format
        self.palette = self._y_classes.palette if self._y_classes else None

    def __repr__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}"
        run = f"{self.run}, {self.checkpoint}" if self.checkpoint else self.run
        return f"<Model {self.header.use}, run {run}, trained at {size}, on {self.device}>"

    # --- translate an image ---

    @overload
    def translate(
        self,
        image: str | Path,
        *,
        test_mode: str | None = None,
        seed: int = 0,
        tile: int | None = None,
        overlap: int | None = None,
        scale: float | Literal["native"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Image.Image: ...

    @overload
    def translate(
        self,
        image: ImageLike,
        *,
        test_mode: str | None = None,
        seed: int = 0,
        tile: int | None = None,
        overlap: int | None = None,
        scale: float | Literal["native"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> ImageLike: ...

    def translate(
        self,
        image: Any,
        *,
        test_mode: str | None = None,
        seed: int = 0,
        tile: int | None = None,
        overlap: int | None = None,
        scale: float | Literal["native"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Any:
        """Translate an image. A PIL image, an array or a tensor gives a result of the same type and size.

        image: the path of an image file: the result is a PIL image;
            a PIL image of any mode that converts to the model's channels without loss (grey to RGB, for one);
            an (H, W) or (H, W, C) array of the model's `x_dtype`, within its `x_range`: the result has its `y_dtype`
            and `y_range` (a label map: (H, W) or (H, W, 1) integers with the values that files have, or (H, W, 3)
            uint8 with the colours of the classes). Where the model takes 1 or 3 channels, the last of 2 or 4 is
            opacity; in a file it is only if the file says so;
            a (C, H, W) or (B, C, H, W) float tensor in [-1, 1], as G gets it, whatever `encodings` and `file_layout`.
        test_mode: "paper" or "eval", see `p2pzoo.models.test_modes`. None: the model's own.
        seed: of dropout in "paper", and of the noise of a process.
        tile, overlap: in "eval", images with a side above `tile` are translated in tiles, see `p2pzoo.models.tiling`;
            G's memory then does not grow with the image. None: in one piece.
        scale, size: G sees the image at this scale ("native": 1), or at this (H, W); the result has the size of the
            image again. None: at the scale of the training images (`file_layout`).
        Any H and W: the image is padded by reflection at its right and lower edges to multiples of `size_divisor`, and
        the result is cropped.

        Raises ValueError for an image that the model cannot take, and for tiles that do not fit G; UserError for a file
        that cannot be read; OutOfMemory.

        >>> import p2pzoo
        >>> model = p2pzoo.load("zoo:earth-small", device="cpu")
        >>> land_cover = np.zeros((40, 64, model.in_channels), np.uint8)
        >>> model.translate(land_cover, test_mode="eval").shape
        (40, 64, 3)
        """
        mode, tiling = self.resolve_options(test_mode, tile, overlap)
        scaling = Scaling.resolve(self.file_layout, scale, size)
        if isinstance(image, Tensor):
            if scale is not None or size is not None:
                raise ValueError("a tensor is translated as it is: resize it first, or pass an array or a PIL image")
            return self._translate_tensor(image, mode, seed, tiling)
        if scale is None and size is None and self.file_layout is None:
            warnings.warn(f"{NO_FILE_LAYOUT}, such as scale=0.5", stacklevel=2)
        if isinstance(image, np.ndarray):
            return self.translate_arrays([self.prepare_input(image, scaling)], mode, seed, tiling)[0]
        if isinstance(image, Image.Image):
            pixels, has_alpha = self._decode_picture(image), True
        elif isinstance(image, str | Path):
            pixels, has_alpha = self.read_input(Path(image))
        else:
            kinds = "a path, a PIL image, a NumPy array or a tensor"
            raise ValueError(f"an image must be {kinds}, not a {type(image).__name__}")
        prepared = self.prepare_input(pixels, scaling, has_alpha=has_alpha)
        return self._make_picture(self.translate_arrays([prepared], mode, seed, tiling)[0])

    def resolve_options(
        self, test_mode: str | None, tile: int | None, overlap: int | None
    ) -> tuple[str, Tiling | None]:
        """The test mode and the tiling for the arguments of `translate`. Raises ValueError as it does."""
        mode = self.test_mode if test_mode is None else test_mode
        if mode not in TEST_MODES:
            raise ValueError(f"test_mode must be one of {', '.join(TEST_MODES)}, not {mode!r}")
        if mode == "paper" and self.precision != "fp32":
            raise ValueError(f"precision {self.precision} needs test mode eval: paper mode computes in fp32")
        if self.precision != "fp32" and self.draws_own_noise:
            raise ValueError(f"precision {self.precision} is not for a model that draws its own random numbers")
        if tile is None:
            if overlap is not None:
                raise ValueError(f"an overlap of {overlap} needs tiles: give the side of a tile, too")
            return mode, None
        if mode == "paper":
            raise ValueError("tiles need test mode eval: in paper mode each tile is normalised by its own statistics")
        if self.draws_own_noise:
            raise ValueError(
                f"{self.noise_source} draws its own noise, which would differ from tile to tile: translate without "
                "tiles"
            )
        if norm := _input_dependent_norm(self.G):
            warnings.warn(
                f"the generator's {norm} normalises by statistics of its input: they differ from tile to tile, less "
                "so in larger tiles",
                stacklevel=2,
            )
        return mode, Tiling.of(tile, overlap, self.size_divisor)

    def read_input(self, path: Path) -> tuple[np.ndarray, bool]:
        """The array (H, W, C) of an image file for `prepare_input`, and its `has_alpha`. Raises UserError."""
        if self.x_labels:
            return np.atleast_3d(read_map(path, self.x_labels.classes)), False
        image = read_image(path)
        return image, image.shape[2] in (2, 4) and inspect_image(path).has_alpha

    def prepare_input(
        self, image: np.ndarray, scaling: Scaling | None = None, *, has_alpha: bool = True
    ) -> PreparedImage:
        """An array as `translate` takes it, at the size at which G sees it.

        scaling: None: as in training. has_alpha: whether the last of 2 or 4 channels is opacity, not a band.

        Raises ValueError as `translate` does, and OutOfMemory for a size that the memory cannot hold.
        """
        scaling = scaling or Scaling.resolve(self.file_layout)
        if not self.x_labels:
            image = self.flatten(image, 3 if self.encodings.lab else self.in_channels, has_alpha=has_alpha)
        pixels = self._check_input(image, has_alpha)
        full_size = (image.shape[0], image.shape[1])
        size = scaling.size_of(*full_size)
        lightness = self._lightness(pixels) if self.encodings.lab else None
        if size != full_size:
            _check_memory(full_size, size, pixels.shape[2])
            is_photo = self.x_labels is None and lightness is None
            pixels = resize_to(
                pixels, size, "stretch", self.x_range if is_photo else (0, 255),
                bands=pixels.shape[2] in (2, 4) and not (self.file_layout and self.file_layout.alpha),
                kernel="nearest" if self.x_labels else "bicubic",
            )  # fmt: skip
        if self.x_labels:
            return PreparedImage(self.x_labels.encode(pixels[..., 0]), full_size)
        if lightness is not None:
            return PreparedImage(lightness if size == full_size else self._lightness(pixels), full_size, lightness)
        return PreparedImage(pixels, full_size)

    def flatten(self, image: np.ndarray, channels: int, *, has_alpha: bool = True) -> np.ndarray:
        """(H, W, C + 1) with opacity -> (H, W, C) on `background`. Unchanged without one, or if opacity is wanted."""
        may_have_alpha = has_alpha and image.ndim == 3 and image.shape[2] in (2, 4)
        if self.background is None or channels in (2, 4) or not may_have_alpha:
            return image
        return put_on_background(image, self.background)

    def _lightness(self, photo: np.ndarray) -> np.ndarray:
        return quantize(split_lab(photo)[0], self.x_range, self.x_dtype)

    def _check_input(self, image: np.ndarray, has_alpha: bool) -> np.ndarray:
        """(H, W, C) of class indices, of a photo that is split into lightness and colour, or as x is stored."""
        if self.x_labels:
            return self.x_labels.classes.from_array(image)[..., None]
        if self.encodings.lab:
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
                raise ValueError(f"expected (H, W) or (H, W, C) of uint8, not {image.shape} of {image.dtype}")
            return convert_channels(image, 3, has_alpha=has_alpha)
        if image.dtype != self.x_dtype or image.ndim not in (2, 3):
            raise ValueError(f"expected (H, W) or (H, W, C) of {self.x_dtype}, not {image.shape} of {image.dtype}")
        if image.size == 0:
            raise ValueError(f"an image without pixels: {image.shape}")
        low, high = self.x_range
        if not (image.min() >= low and image.max() <= high):
            raise ValueError(f"expected values from {low:g} to {high:g}, not {image.min():g} to {image.max():g}")
        bands = self.file_layout is not None and not self.file_layout.alpha
        pixels = convert_channels(image, self.in_channels, has_alpha=has_alpha, alpha_wanted=not bands)
        # torch takes no negative strides, and warns of read-only arrays such as Pillow's
        return np.require(pixels, requirements=["C", "W"])

    def _decode_picture(self, image: Image.Image) -> np.ndarray:
        try:
            return picture_map(image, self.x_labels.classes) if self.x_labels else decode_pixels(image, "the image")
        except UserError as error:
            raise ValueError(str(error)) from None

    def _make_picture(self, translated: np.ndarray) -> Image.Image:
        dtype, channels = self.output_format
        if channels > 1 and (dtype != "uint8" or channels > 4):
            raise ValueError(
                f"a PIL image cannot hold what this model returns, {format_count(channels, 'channel')} of {dtype}: "
                "pass an array"
            )
        picture = Image.fromarray(translated[..., 0] if channels == 1 else translated)
        if self.palette:
            picture.putpalette(self.palette)
        return picture

    def _translate_tensor(self, image: Tensor, mode: str, seed: int, tiling: Tiling | None) -> Tensor:
        if image.ndim not in (3, 4) or image.shape[-3] != self.in_channels or not image.is_floating_point():
            expected = f"(C, H, W) or (B, C, H, W) of floats with C = {self.in_channels}"
            raise ValueError(f"expected {expected}, not {tuple(image.shape)} of {image.dtype}")
        if image.numel() == 0:
            raise ValueError(f"an image without pixels: {tuple(image.shape)}")
        if image.min() < -1.0001 or image.max() > 1.0001:  # scaling to [-1, 1] rounds
            raise ValueError(f"expected values in [-1, 1], not {image.min():.3g} to {image.max():.3g}")
        batch = image if image.ndim == 4 else image[None]
        height, width = batch.shape[-2:]
        try:
            if tiling and max(height, width) > tiling.side:
                y_hat = torch.empty(len(batch), self.out_channels, height, width, device=image.device)
                for x, y in zip(batch, y_hat, strict=True):
                    for top, strip in self._translate_strips(_band_reader(x), (height, width), tiling, seed):
                        y[:, top : top + strip.shape[1]] = strip
            elif mode == "eval":
                padded = pad_by_reflection(batch.to(self.device), self.size_divisor)
                y_hat = self._run_eval(padded, seed)[..., :height, :width]
            else:
                y_hat = self._run_paper(batch, seed)[..., :height, :width]
        except (RuntimeError, MemoryError) as error:
            self._raise_if_out_of_memory(error, (height, width), tiling)
            raise
        y_hat = y_hat.to(image.device, image.dtype)
        return y_hat if image.ndim == 4 else y_hat[0]

    # --- samples ---

    def samples(self, image: np.ndarray, count: int, *, seed: int = 0) -> Samples:
        """Translate one image `count` times in paper mode, with the seeds `seed`, `seed + 1`, …; see `Samples`.

        image: an array as `translate` takes it. Raises ValueError as `translate` does, for a count below 2, and for a
        generator without dropout or noise.

        >>> header = ModelHeader("generator", "mine", {}, 3, 3, (8, 8), run="r", size_divisor=1, test_mode="paper")
        >>> model = Model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()), header, torch.device("cpu"))
        >>> samples = model.samples(np.zeros((8, 8, 3), np.uint8), 2)
        >>> [sample.shape for sample in samples]
        [(8, 8, 3), (8, 8, 3)]
        >>> samples.mean.shape, samples.spread.shape
        ((8, 8, 3), (8, 8))
        """
        self.check_can_sample("paper")
        return Samples(self, self.prepare_input(image), count, seed)

    def check_can_sample(self, mode: str) -> None:
        """Raises ValueError if all translations of one image would be equal."""
        x = torch.zeros_like(self._example)
        if torch.equal(*(self._run_paper(x, seed) for seed in (0, 1))):  # first: no mode would help such a generator
            raise ValueError("this generator uses no random numbers: all samples would be equal")
        if mode != "paper":
            reason = "" if self.draws_in_eval else ": eval mode uses no random numbers"
            raise ValueError(f"samples need test mode paper{reason}")

    # --- intervals ---

    def interval(
        self, image: np.ndarray, *, seed: int = 0, tile: int | None = None, overlap: int | None = None
    ) -> Interval:
        """The interval of each value of the translation, of a model that `p2pzoo calibrate` has calibrated.

        The promise: over calibration and a new exchangeable block, the expected uncovered share is at most 1 - level
        (`calibration.level`); not per pixel, image, class, or on another continent.

        image: an array as `translate` takes it. seed, tile, overlap: as for `translate`.

        Raises ValueError as `translate` does, and for a model that cannot give intervals, see `check_interval`.

        >>> header = ModelHeader("generator", "mine", {}, 3, 3, (8, 8), run="r", size_divisor=1, test_mode="eval")
        >>> G = nn.Conv2d(3, 3, 1)
        >>> G.interval = lambda x: (x / 2, x / 2 + 0.5)
        >>> calibration = Calibration(0.8, 1.5, 1, "eval", 4, (), {}, "")
        >>> model = Model(G, header, torch.device("cpu"), calibration=calibration)
        >>> interval = model.interval(np.zeros((8, 8, 3), np.uint8))
        >>> interval.lower.shape, interval.upper.dtype, interval.width.shape
        ((8, 8, 3), dtype('uint8'), (8, 8))
        """
        mode, tiling = self.resolve_options(None, tile, overlap)
        self.check_interval(mode, tiled=tiling is not None)
        return self.intervals_of([self.prepare_input(image)], seed, tiling)[0]

    def check_interval(self, mode: str, level: float | None = None, *, tiled: bool = False) -> None:
        """Raises ValueError if the model has no calibration for this test mode and this level, or for its precision.

        level: None: that of the calibration. tiled: whether images are translated in tiles.
        """
        if reason := find_reason_against(self.header):
            raise ValueError(reason)
        command = f"`p2pzoo calibrate MODEL --level {level or (self.calibration and self.calibration.level) or 0.8:g}`"
        if self.calibration is None:
            raise ValueError(f"this model has no calibration, so its intervals would promise nothing: {command}")
        if self.calibration.samples == 1 and not hasattr(self.G, "interval"):
            raise ValueError(
                f"its calibration is for a generator with bounds of its own, and this one has none: {command}"
            )
        if tiled and self.calibration.samples > 1:
            raise ValueError(
                f"its bounds are those of {self.calibration.samples} samples, which differ from tile to tile: leave "
                "out the tile"
            )
        if level is not None and level != self.calibration.level:
            raise ValueError(
                f"this model is calibrated for the level {self.calibration.level:g}, not {level:g}: {command}"
            )
        if mode != self.calibration.test_mode:
            raise ValueError(
                f"this model is calibrated in test mode {self.calibration.test_mode}, not {mode}: use that"
            )
        if self.precision != "fp32":
            raise ValueError(f"this model is calibrated in fp32, not in {self.precision}: use that")

    def intervals_of(self, images: Sequence[PreparedImage], seed: int, tiling: Tiling | None) -> list[Interval]:
        """The intervals of images whose x have one padded size, after `check_interval`. Raises OutOfMemory."""
        assert self.calibration is not None
        bounds = self._bounds.translate_arrays(images, self.calibration.test_mode, seed, tiling)
        return [make_interval(each, self.calibration, self.y_dtype, self.y_range) for each in bounds]

    @cached_property
    def _bounds(self) -> Model:
        """A model whose translations are the bounds before the calibration."""
        assert self.calibration is not None
        return Model(BoundsNetwork(self.G, self.calibration.samples), bounds_header(self.header), self.device)

    # --- translate many arrays ---

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) to which an image of this size is padded."""
        divisor = self.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def max_batch_size(self, height: int, width: int, mode: str) -> int:
        """How many images of this padded size are translated together at most."""
        if mode == "paper":
            return 1
        return max(1, MAX_BATCH_PIXELS.get(self.device.type, MAX_BATCH_PIXELS_ON_GPU) // (height * width))

    def translate_arrays(
        self, images: Sequence[PreparedImage], mode: str, seed: int, tiling: Tiling | None
    ) -> list[np.ndarray]:
        """Translate images whose x have one padded size, to (H, W, C). Raises OutOfMemory."""
        y_hats = self._translate_stored([image.x for image in images], mode, seed, tiling)
        return [self._decode(image, y_hat) for image, y_hat in zip(images, y_hats, strict=True)]

    def translate_rows(self, image: Rows, tiling: Tiling, seed: int = 0) -> Iterator[np.ndarray]:
        """Translate a large image in tiles of eval mode at its own size. Yields bands (rows, W, C), top to bottom.

        Memory holds a few rows of tiles. The pixels are those of `translate` with this tile and `scale="native"`.
        Raises ValueError and OutOfMemory as it does.
        """
        band: PreparedImage | None = None
        band_top = 0

        def read(top: int, bottom: int) -> Tensor:
            nonlocal band, band_top
            band_top = top
            band = self.prepare_input(image.read(top, bottom), Scaling(), has_alpha=image.has_alpha)
            return self._to_tensor(band.x)

        size = image.shape[:2]
        try:
            for top, strip in self._translate_strips(read, size, tiling, seed):
                assert band is not None
                first = top - band_top  # above 0 where the padding reflects rows above the last row of tiles
                for at in range(0, strip.shape[1], _BAND_ROWS):
                    part = strip[:, at : at + _BAND_ROWS]
                    rows = slice(first + at, first + at + part.shape[1])
                    lightness = None if band.lightness is None else band.lightness[rows]
                    image_part = PreparedImage(band.x[rows], (part.shape[1], part.shape[2]), lightness)
                    yield self._decode(image_part, self._quantize(part.permute(1, 2, 0)))
        except (RuntimeError, MemoryError) as error:
            self._raise_if_out_of_memory(error, size, tiling)
            raise

    def _decode(self, image: PreparedImage, y_hat: np.ndarray) -> np.ndarray:
        """ŷ as stored -> the image to return, in the size of x's file. Lightness and colors are joined to RGB."""
        if y_hat.shape[:2] != image.size:
            y_hat = resize_to(
                y_hat, image.size, "stretch", self.y_range if not self._y_classes else (-math.inf, math.inf),
                bands=y_hat.shape[2] in (2, 4), kernel="nearest" if self._y_classes else "bicubic",
            )  # fmt: skip
        if image.lightness is None:
            return y_hat
        return join_lab(dequantize(image.lightness, self.x_range), dequantize(y_hat, self.y_range))

    def _translate_stored(
        self, images: Sequence[np.ndarray], mode: str, seed: int, tiling: Tiling | None
    ) -> list[np.ndarray]:
        """As `translate_arrays`, but (H, W, C) as y is stored."""
        sizes = [image.shape[:2] for image in images]
        height, width = self.padded_size(*sizes[0])
        channels_first = [self._to_tensor(image) for image in images]
        try:
            if mode == "eval" and tiling and max(height, width) > tiling.side:
                return [self._translate_in_tiles(image, tiling, seed) for image in channels_first]
            if mode == "eval":
                padded = [pad_by_reflection(x[None], self.size_divisor)[0] for x in channels_first]
                y_hats = self._quantize(self._run_eval(torch.stack(padded), seed).permute(0, 2, 3, 1))
                return [y[:h, :w] for y, (h, w) in zip(y_hats, sizes, strict=True)]
            return [self._quantize(self._translate_random(x, seed)) for x in channels_first]
        except (RuntimeError, MemoryError) as error:
            self._raise_if_out_of_memory(error, max(sizes), tiling)
            raise

    def _translate_random(self, image: Tensor, seed: int) -> Tensor:
        """Paper mode. (C, H, W) of stored integers, or of floats in [-1, 1] -> ŷ (H, W, C) in [-1, 1]."""
        height, width = image.shape[1:]
        return self._run_paper(self._scale(image)[None], seed)[0, :, :height, :width].permute(1, 2, 0)

    def _translate_in_tiles(self, image: Tensor, tiling: Tiling, seed: int) -> np.ndarray:
        """(C, H, W) as `_to_tensor` returns it -> (H, W, C) as y is stored."""
        dtype, channels = self._y_format
        y_hat = np.empty((*image.shape[1:], channels), dtype)
        for top, strip in self._translate_strips(_band_reader(image), image.shape[1:], tiling, seed):
            y_hat[top : top + strip.shape[1]] = self._quantize(strip.permute(1, 2, 0))
        return y_hat

    def _translate_strips(
        self, read: Callable[[int, int], Tensor], size: Sequence[int], tiling: Tiling, seed: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(top, (C, rows, W)) of ŷ for an image of this (H, W), one strip after the other, without padding.

        read(top, bottom): the (C, rows, W) between two rows, as `_to_tensor` returns it.
        seed: of the noise, which is one for the whole image, so that tiles fit together. It depends on the first corner
        of the image, not on all pixels, which need not be in memory.
        """
        height, width = size
        rows, columns = (reflected_indices(length, self.size_divisor) for length in (height, width))

        @lru_cache(maxsize=1)  # all tiles of a strip are cut from one band
        def band_of(down: tuple[int, int]) -> Tensor:
            indices = rows[slice(*down)]
            top, bottom = int(indices.min()), int(indices.max()) + 1
            band = read(top, bottom)
            if down[1] > height:
                band = band[:, indices - top]
            return band if len(columns) == width else torch.cat([band, band[:, :, columns[width:]]], dim=2)

        field: NoiseField | None = None
        if self.takes_noise:
            corner = read(0, min(_CORNER, height))[None, :, :, :_CORNER]
            field = NoiseField(derive_image_seed(self._scale(corner), seed), self.noise_shape)

        def translate_tiles(places: list[tuple[slice, slice]]) -> Tensor:
            band = band_of((places[0][0].start, places[0][0].stop))
            tiles = torch.stack([band[:, :, across] for _, across in places])
            noise = torch.stack([field.crop(*place) for place in places]) if field else None
            return self._run_eval(tiles, noise=noise)

        max_batch_size = self.max_batch_size(tiling.side, tiling.side, "eval")
        for top, strip in blend_tiles(translate_tiles, len(rows), len(columns), tiling, max_batch_size):
            if top < height:
                yield top, strip[:, : height - top, :width]

    # --- run G ---

    def _run_paper(self, x: Tensor, seed: int) -> Tensor:
        """(B, C, H, W) in [-1, 1], any H and W -> ŷ, padded, float32."""
        x = pad_by_reflection(x.to(self.device, torch.float32), self.size_divisor)
        return translate(self.G, x, "paper", seed=seed)

    @torch.no_grad()
    def _run_eval(self, images: Tensor, seed: int = 0, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of stored integers, or of floats in [-1, 1], padded -> ŷ, float32.

        seed: of a G that draws random numbers in eval mode too, which depend on each image besides.
        noise: (B, K, C, H, W) for a sampler that takes it, in place of the seed's.

        A batch that is too large for the memory is translated one image at a time.
        """
        if self.draws_own_noise:
            scaled = self._scale(images.to(self.device))
            return torch.cat([translate(self.G, x, "eval", seed=seed, draws=True) for x in scaled.split(1)])
        if noise is None and self.takes_noise:
            noise = torch.cat([self.draw_noise(self._scale(image), seed) for image in images.split(1)])
        try:
            x = self._scale(images.to(self.device)).contiguous(memory_format=best_memory_format(self.device.type))
            given = () if noise is None else (noise.to(self.device),)
            return self._eval_G(x.to(PRECISIONS[self.precision]), *given).float()  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            if len(images) == 1 or not is_out_of_memory(error):
                raise
        # outside of the except block: in it, the error's traceback would keep the tensors that filled the memory
        parts = zip(images.split(1), [None] * len(images) if noise is None else noise.split(1), strict=True)
        return torch.cat([self._run_eval(image, seed, part) for image, part in parts])

    def draw_noise(self, x: Tensor, seed: int = 0) -> Tensor:
        """(1, K, C, H, W): the noise that a sampler draws for x (1, C, H, W) in [-1, 1], padded, with this seed.

        For models with `takes_noise` only.
        """
        with rng.torch_seed(derive_image_seed(x, seed)):
            return self.G.draw_noise(x)  # type: ignore[no-any-return, operator]

    @cached_property
    def draws_in_eval(self) -> bool:
        """Whether G draws random numbers in eval mode too, seeded by the image, as the sampler of most processes."""
        return draws_random_numbers(self.G, self._example)

    @property
    def draws_own_noise(self) -> bool:
        """Whether a process, or a generator in eval mode, draws noise that it takes from nobody."""
        return self.draws_in_eval and not self.takes_noise

    @property
    def noise_source(self) -> str:
        """What draws noise, for messages."""
        return f"the process '{self.header.process.use}'" if self.header.process else "the generator"

    @property
    def takes_noise(self) -> bool:
        """Whether G is a sampler that draws noise, and takes it as an argument too (see `Process.sampler`)."""
        return self.noise_shape[0] > 0

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(K, C): the draws of noise that G takes for one translation, and their channels; (0, 0) if it takes none."""
        return getattr(self.G, "noise_shape", (0, 0))

    @cached_property
    def _eval_G(self) -> nn.Module:
        noise = self.draw_noise(self._example, 0).to(self.device) if self.takes_noise else None
        return optimize_for_eval(self.G, self._example, PRECISIONS[self.precision], noise)

    @property
    def _example(self) -> Tensor:
        height, width = self.size
        if height * width > MAX_EXAMPLE_PIXELS:  # a file can claim any size
            height, width = self.padded_size(math.isqrt(MAX_EXAMPLE_PIXELS), math.isqrt(MAX_EXAMPLE_PIXELS))
        x = torch.rand(1, self.in_channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return x.to(self.device)

    # --- stored values and [-1, 1] ---

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        """(H, W, C) as x is stored -> (C, H, W) of integers, or of floats in [-1, 1]."""
        if image.dtype == np.float32:
            low, high = self.x_range
            return torch.from_numpy(image).permute(2, 0, 1).sub(low).mul(2 / (high - low)).sub(1)
        supported = image if image.dtype == np.uint8 else image.astype(np.int32)  # torch has few operations on uint16
        return torch.from_numpy(supported).permute(2, 0, 1)

    def _scale(self, x: Tensor) -> Tensor:
        """Stored integers -> float32 in [-1, 1]. Floats are already in this range."""
        if x.is_floating_point():
            return x.float()
        low, high = self.x_range
        return x.float().sub(low).mul(2 / (high - low)).sub(1)

    def _quantize(self, y: Tensor) -> np.ndarray:
        """[-1, 1] -> values as y is stored; one-hot classes -> the values of label maps."""
        if self._y_classes:
            return self._y_classes.to_values(y.argmax(-1).cpu().numpy())
        low, high = self.y_range
        values = y.clamp(-1, 1).add(1).mul((high - low) / 2).add(low)
        if self.y_dtype == "uint8":
            return values.round().to(torch.uint8).cpu().numpy()
        array = values.cpu().numpy()
        return (array if self.y_dtype == "float32" else np.rint(array)).astype(self.y_dtype)

    def _raise_if_out_of_memory(self, error: Exception, size: tuple[int, ...], tiling: Tiling | None) -> None:
        """Raises OutOfMemory, with a tile that may fit, if the error says that memory was short."""
        if not is_out_of_memory(error):
            return
        divisor = self.size_divisor
        side = tiling.side // 2 if tiling else min(512, max(size) // 2)
        side = side // divisor * divisor
        if side:
            advice = f"translate it in {'smaller ' if tiling else ''}tiles (--test-mode eval --tile {side})"
        else:
            advice = f"{divisor}×{divisor} is the smallest image that this generator takes"
        raise OutOfMemory(f"out of memory at {size[0]}×{size[1]}: {advice}") from None


def _check_memory(full_size: tuple[int, int], size: tuple[int, int], channels: int) -> None:
    """Raises OutOfMemory if the memory cannot hold an image of `full_size` that is brought to `size`."""
    needed = _BYTES_OF_RESIZING * size[0] * size[1] * channels
    (height, width), (new_height, new_width) = full_size, size
    pixels = f"G sees its {height:,} × {width:,} px at {new_height:,} × {new_width:,}, which"
    try:
        check_available(needed, pixels, "choose a smaller --scale or --size")
    except UserError as error:
        raise OutOfMemory(str(error)) from None


class Samples:
    """Translations of one image with the seeds `seed`, `seed + 1`, …, each made when the iteration asks for it.

    Iterate over it once: each sample is an array that `Model.translate` returns with its seed. Afterwards it has

    mean    the mean sample: such an array
    spread  (H, W) float32: the standard deviation of each pixel, of values in [-1, 1]; root mean square over channels

    Only one sample is in memory at a time. Raises ValueError for a count below 2.
    """

    def __init__(self, model: Model, image: PreparedImage, count: int, seed: int) -> None:
        if count < 2:
            raise ValueError(f"there must be at least 2 samples, not {count}")
        self.model, self.image, self.seeds = model, image, range(seed, seed + count)

    def __iter__(self) -> Iterator[np.ndarray]:
        model, x = self.model, self.model._to_tensor(self.image.x)
        mean = squares = torch.zeros(())
        for number, seed in enumerate(self.seeds, start=1):
            y_hat = model._translate_random(x, seed)
            yield model._decode(self.image, model._quantize(y_hat))
            values = y_hat.cpu().double()  # in this order: Apple's devices have no float64
            difference = values - mean  # Welford 1962: mean and variance in one pass
            mean = mean + difference / number
            squares = squares + difference * (values - mean)
        self.mean = model._decode(self.image, model._quantize(mean.float()))
        variance = squares / (len(self.seeds) - 1)
        spread = variance.mean(-1, keepdim=True).sqrt().float().cpu().numpy()
        self.spread: np.ndarray = resize_to(spread, self.image.size, "stretch", (0, math.inf))[..., 0]


def _band_reader(image: Tensor) -> Callable[[int, int], Tensor]:
    return lambda top, bottom: image[:, top:bottom]


def convert_channels(
    image: np.ndarray, channels: int, *, has_alpha: bool = True, alpha_wanted: bool = True
) -> np.ndarray:
    """(H, W) or (H, W, C) with this many channels, as `with_channels` makes it, but bands are not taken for opacity.

    has_alpha, alpha_wanted: whether the last of 2 or 4 channels is opacity, of `image` and of the result.

    Raises ValueError as `with_channels` does, and where opacity would become a band, or a band opacity.

    >>> convert_channels(np.zeros((2, 2), np.uint8), 2, alpha_wanted=False)
    Traceback (most recent call last):
    ValueError: it has 1 channel, and 2 were expected: give images with the bands of the training images
    """
    image = image.reshape(*image.shape[:2], -1)
    given = image.shape[2]
    if given != channels:
        is_band_invented = channels in (2, 4) and not alpha_wanted
        are_bands = given in (2, 4) and not has_alpha
        if is_band_invented or (are_bands and (channels in (2, 4) or not _is_opaque(image))):
            which = ", none of which is opacity" * are_bands
            raise ValueError(
                f"it has {format_count(given, 'channel')}{which}, and {channels} were expected: give images with the "
                "bands of the training images"
            )
    try:
        return with_channels(image, channels)
    except TransparentPixels as error:
        raise TransparentPixels(
            f"{error}: put it on a background (`p2pzoo translate --background white`; `Model.background` in Python)"
        ) from None


def _is_opaque(image: np.ndarray) -> bool:
    """Whether the last channel would be opaque everywhere, if it were opacity: then nothing is lost without it."""
    return image.dtype != np.float32 and bool((image[..., -1] == np.iinfo(image.dtype).max).all())


def _input_dependent_norm(G: nn.Module) -> str | None:
    """The class name of a norm that uses its input's statistics in eval mode too. None if G has no such norm."""
    for module in G.modules():
        tracked = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)) and not tracked:
            return type(module).__name__
    return None
