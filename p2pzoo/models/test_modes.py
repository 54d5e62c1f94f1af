"""x -> ŷ at test time, in one of two recorded test modes. The first thing users of other implementations trip over.

paper  G runs exactly as in training (§3.4): dropout on, norms with the statistics of the image itself. One image at a
       time; dropout is seeded by a hash of the image's pixels, so the same image always gives the same translation
eval   running statistics, no dropout; any batch
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.fuse_batchnorm import fuse_conv_bn
from p2pzoo.utils import rng

HALF_A_LEVEL = 1 / 255  # of the 256 that an image has from -1 to 1


@torch.no_grad()
def translate(G: nn.Module, x: Tensor, test_mode: str, *, seed: int = 0) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> ŷ, float32. Leaves G's buffers and mode and torch's generators untouched."""
    with _mode(G, training=test_mode == "paper"):
        if test_mode == "eval":
            return G(x).float()  # type: ignore[no-any-return]
        translated = []
        for image in x.split(1):
            with rng.torch_seed(rng.derive_seed(seed, "translate", _pixels(image))), _unmoved(G):
                translated.append(G(image).float())
        return torch.cat(translated)


@torch.no_grad()
def prepared(G: nn.Module, example: Tensor, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of G that gives the same in eval mode, up to rounding, and faster; it is to be given channels-last images.

    dtype: of its weights and of what it computes with; bfloat16 keeps 8 bits of each number.

    Both translate `example`, (1, C, H, W), once: what a plugin's forward does with its layers cannot be seen from
    here. Where they differ by half a level of an 8-bit image, G itself is returned, with a warning.
    """
    fast = fuse_conv_bn(G).to(memory_format=torch.channels_last)
    if example.device.type == "cpu":
        fast = convs_as_gemm(fast)
    expected = translate(G, example, "eval")
    y_hat = fast(example.contiguous(memory_format=torch.channels_last)).float()
    if not torch.allclose(y_hat, expected, rtol=0, atol=HALF_A_LEVEL, equal_nan=True):
        why = "this generator gives something else once its batch norms are folded: left as it is"
        warnings.warn(why, stacklevel=2)
        fast = G.eval()
    return fast if dtype == torch.float32 else copy.deepcopy(fast).to(dtype)


@contextlib.contextmanager
def _mode(G: nn.Module, *, training: bool) -> Iterator[None]:
    was = {module: module.training for module in G.modules()}
    G.train(training)
    for part in G.modules():  # weights are what they are: a power iteration would move them with each image
        if isinstance(part, ParametrizationList):
            part.eval()
    try:
        yield
    finally:
        for module, mode in was.items():
            module.training = mode


@contextlib.contextmanager
def _unmoved(G: nn.Module) -> Iterator[None]:
    """What training moves as it goes (running statistics, the vectors of spectral norm) is afterwards as it was."""
    named = [(part, name, buffer) for part in G.modules() for name, buffer in part._buffers.items()]
    kept = [(part, name, buffer, buffer.clone()) for part, name, buffer in named if buffer is not None]
    try:
        yield
    finally:
        for part, name, buffer, was in kept:
            part._buffers[name] = buffer.copy_(was)


def _pixels(image: Tensor) -> str:
    """A hash of the picture to 16 bits a value, so that the order in which it was scaled to [-1, 1] does not show."""
    levels = image.detach().to("cpu", torch.float64).add(1).mul(65535 / 2).round().to(torch.int32).contiguous()
    return hashlib.sha256(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()
