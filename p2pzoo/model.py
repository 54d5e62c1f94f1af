"""A trained generator from its file alone: images in, images out, of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from p2pzoo.compute import pick_device
from p2pzoo.errors import UserError
from p2pzoo.images import pixels_of, with_channels
from p2pzoo.networks import load_model
from p2pzoo.plugins import registry
from p2pzoo.translate import translate

Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)

TEST_MODES = ("paper", "eval")


class Model:
    """G with what its file says of it.

    in_channels, out_channels  of x and ŷ
    size                       (H, W) it was trained at; it takes others
    test_mode                  the mode its recipe named when it was trained; the default of `translate`
    run                        the id of the run that made it
    """

    def __init__(self, G: nn.Module, header: dict[str, Any], device: torch.device) -> None:
        self.G, self.header, self.device = G.to(device), header, device
        self.in_channels: int = header["in_channels"]
        self.out_channels: int = header["out_channels"]
        self.size: tuple[int, int] = tuple(header["size"])
        self.test_mode: str = header["test_mode"]
        self.run: str = header["run"]
        self._divisor: int = header["size_divisor"]

    def __repr__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}"
        return f"<Model {self.header['generator']['use']}, run {self.run}, trained at {size}, on {self.device}>"

    def translate(self, image: Picture, *, test_mode: str | None = None, seed: int = 0) -> Picture:
        """The same kind back: a PIL image for a PIL image, an array for an array, a tensor for a tensor.

        image: PIL of any mode that says the same in the model's channels (grey as three equal channels, for one);
            (H, W) or (H, W, C) uint8 array; (C, H, W) or (B, C, H, W) float tensor in [-1, 1].
        test_mode: "paper" or "eval", see `p2pzoo.translate`; None is the model's own. seed: of dropout in "paper".
        Any H and W: the image is reflected at its right and lower edges up to what G can halve, and cut back.

        Raises ValueError for an image that the model cannot take, saying what it takes.
        """
        mode = self.test_mode if test_mode is None else test_mode
        if mode not in TEST_MODES:
            raise ValueError(f"test_mode must be one of {', '.join(TEST_MODES)}, not {mode!r}")
        if isinstance(image, Tensor):
            return self._tensor(image, mode, seed)
        if isinstance(image, np.ndarray):
            return self._array(image, mode, seed)
        if isinstance(image, Image.Image):
            try:
                pixels = pixels_of(image, "the image")
            except UserError as error:
                raise ValueError(str(error)) from None
            translated = self._array(pixels, mode, seed)
            return Image.fromarray(translated[..., 0] if self.out_channels == 1 else translated)
        raise ValueError(f"an image is a PIL image, a NumPy array or a tensor, not a {type(image).__name__}")

    def _array(self, image: np.ndarray, mode: str, seed: int) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(f"expected (H, W) or (H, W, C) of uint8, not {image.shape} of {image.dtype}")
        pixels = with_channels(image.reshape(*image.shape[:2], -1), self.in_channels)
        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None].mul(2 / 255).sub(1)
        y_hat = self._tensor(x, mode, seed)[0].permute(1, 2, 0).cpu()
        return y_hat.clamp(-1, 1).add(1).mul(255 / 2).round().to(torch.uint8).numpy()

    def _tensor(self, image: Tensor, mode: str, seed: int) -> Tensor:
        if image.ndim not in (3, 4) or image.shape[-3] != self.in_channels or not image.is_floating_point():
            expected = f"(C, H, W) or (B, C, H, W) of floats with C = {self.in_channels}"
            raise ValueError(f"expected {expected}, not {tuple(image.shape)} of {image.dtype}")
        if image.numel() == 0:
            raise ValueError(f"an image without pixels: {tuple(image.shape)}")
        if image.min() < -1.0001 or image.max() > 1.0001:
            raise ValueError(f"expected values in [-1, 1], not {image.min():.3g} to {image.max():.3g}")
        batch = image if image.ndim == 4 else image[None]
        height, width = batch.shape[-2:]
        padded = reflected(batch.to(self.device, torch.float32), self._divisor)
        y_hat = translate(self.G, padded, mode, seed=seed)[..., :height, :width].to(image.device, image.dtype)
        return y_hat if image.ndim == 4 else y_hat[0]


def reflected(images: Tensor, divisor: int) -> Tensor:
    """(B, C, H, W) continued by reflection at the right and below, to the next multiples of `divisor`."""
    for dim in (-2, -1):
        length = images.shape[dim]
        index = torch.arange(-(-length // divisor) * divisor, device=images.device)
        period = max(1, 2 * (length - 1))
        back_and_forth = (index % period - (length - 1)).abs()
        images = images.index_select(dim, (length - 1) - back_and_forth)
    return images


def load(path: str | Path, *, device: str = "auto") -> Model:
    """The model of a run folder or a model.safetensors. Raises UserError if there is none, or it is damaged."""
    file = Path(path)
    if file.is_dir():
        if not (file / "model.safetensors").is_file():
            found = "a run that has not finished training" if (file / "status.json").exists() else "no run folder"
            raise UserError(f"{file}: {found}; give a finished run or a model.safetensors")
        file = file / "model.safetensors"
    G, header = load_model(file, registry())
    return Model(G, header, torch.device(pick_device(device)))
