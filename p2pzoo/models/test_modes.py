"""Run a generator on test images, x -> ŷ, in one of two test modes. Other implementations differ in this choice.

paper  G runs exactly as in training (§3.3): dropout is on, and norms use the statistics of the image itself. Images run
       one at a time. Dropout is seeded by a hash of the image's pixels: the same image always gives the same ŷ
eval   running statistics, no dropout, batches of any size. A generator that draws random numbers all the same is seeded
       by the image, as in paper
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
from p2pzoo.compute.engine import best_memory_format
from p2pzoo.compute.fuse_batchnorm import fuse_conv_bn
from p2pzoo.utils import rng

_HALF_LEVEL = 1 / 255  # 8-bit images have 256 levels from -1 to 1, 2/255 apart


@torch.no_grad()
def translate(
    G: nn.Module, x: Tensor, test_mode: str, *, seed: int = 0, together: int = 1, draws: bool | None = None
) -> Tensor:
    """Translate (B, C, H, W) in [-1, 1] to ŷ, float32, in the test mode "paper" or "eval".

    seed: of dropout in "paper", and of what G draws in "eval" all the same. G's buffers and training mode and torch's
    random state are the same afterwards.
    together: images that run at a time in "paper", so that norms use the statistics of all of them.
    draws: whether G draws random numbers in "eval". None: found out, which takes a pass more for a G that does.

    >>> G = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(), nn.Tanh())
    >>> x = torch.zeros(2, 3, 8, 8)
    >>> torch.equal(translate(G, x, "paper"), translate(G, x, "paper"))
    True
    """
    return translate_watched(G, x, test_mode, seed=seed, together=together, draws=draws)[0]


@torch.no_grad()
def translate_watched(
    G: nn.Module, x: Tensor, test_mode: str, *, seed: int = 0, together: int = 1, draws: bool | None = None
) -> tuple[Tensor, bool]:
    """`translate`, and whether G drew random numbers: if it drew none, every seed gives this translation.

    >>> G, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()), torch.zeros(2, 3, 8, 8)
    >>> [translate_watched(G, x, mode)[1] for mode in ("paper", "eval")]
    [True, False]
    """
    with in_training_mode(G, training=test_mode == "paper"):
        if test_mode == "eval" and not draws:
            y_hat, is_random = _watch_random_numbers(G, x)
            if not is_random:
                return y_hat.float(), False
        y_hats, is_random = [], False
        for images in x.split(together if test_mode == "paper" else 1):
            with rng.torch_seed(derive_image_seed(images, seed)), buffers_restored(G):
                before = _random_states(x.device)
                y_hats.append(G(images).float())
                is_random = is_random or _differ(_random_states(x.device), before)
        return torch.cat(y_hats), is_random


def derive_image_seed(images: Tensor, seed: int) -> int:
    """The seed of what G draws for these images (B, C, H, W) in [-1, 1]."""
    return rng.derive_seed(seed, "translate", _hash_pixels(images))


def _watch_random_numbers(G: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """G(x), and whether G drew random numbers for it; torch's random state is the same afterwards."""
    before = _random_states(x.device)
    y_hat = G(x)
    is_random = _differ(_random_states(x.device), before)
    torch.set_rng_state(before[0])
    if x.is_cuda:
        torch.cuda.set_rng_state(before[1], x.device)
    elif len(before) > 1:
        torch.mps.set_rng_state(before[1])
    return y_hat, is_random


def _random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a network on this device may draw from: the CPU's, then the device's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps" and torch.backends.mps.is_available():
        states.append(torch.mps.get_rng_state())
    return states


def _differ(states: list[Tensor], others: list[Tensor]) -> bool:
    return not all(torch.equal(state, other) for state, other in zip(states, others, strict=True))


@torch.no_grad()
def draws_random_numbers(G: nn.Module, x: Tensor) -> bool:
    """Whether G draws random numbers in eval mode, so that each image needs its seed."""
    with in_training_mode(G, training=False):
        return _watch_random_numbers(G, x)[1]


@torch.no_grad()
def optimize_for_eval(
    G: nn.Module, example: Tensor, dtype: torch.dtype = torch.float32, noise: Tensor | None = None
) -> nn.Module:
    """A faster copy of G for eval mode, equal to G up to rounding. Give it images in `engine.best_memory_format`.

    example: (1, C, H, W) in [-1, 1].
    dtype: of the weights and the computation. bfloat16 keeps 8 bits of each number.
    noise: for a sampler that takes it, that of the example.

    Batch norms are folded into convolutions. A network's forward may use its layers in ways that forbid this, so both
    networks translate the example once. If a value differs by half a level of an 8-bit image, G itself is returned, in
    eval mode, with a warning.
    """
    memory_format = best_memory_format(example.device.type)
    fast = fuse_conv_bn(G).to(memory_format=memory_format)
    if example.device.type == "cpu":
        fast = convs_as_gemm(fast)
    given = () if noise is None else (noise,)
    seed = derive_image_seed(example, 0)  # a G that draws must draw the same twice
    with in_training_mode(G, training=False), rng.torch_seed(seed):
        expected = G(example, *given).float()
    with rng.torch_seed(seed):
        y_hat = fast(example.contiguous(memory_format=memory_format), *given).float()
    if not torch.allclose(y_hat, expected, rtol=0, atol=_HALF_LEVEL, equal_nan=True):
        warnings.warn(
            "folding the batch norms into convolutions changes the output of this generator: it runs without folding",
            stacklevel=2,
        )
        fast = G.eval()
    return fast if dtype == torch.float32 else copy.deepcopy(fast).to(dtype)


@contextlib.contextmanager
def in_training_mode(G: nn.Module, *, training: bool) -> Iterator[None]:
    """G in training or eval mode; afterwards each module is in the mode that it had."""
    modes = {module: module.training for module in G.modules()}
    G.train(training)
    for module in G.modules():
        if isinstance(module, ParametrizationList):  # no power iteration of a spectral norm: weights must not change
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def buffers_restored(G: nn.Module) -> Iterator[None]:
    """Restore the buffers afterwards, such as running statistics and the vectors of spectral norm."""
    buffers = [(module, name, buffer) for module in G.modules() for name, buffer in module._buffers.items()]
    saved = [(module, name, buffer, buffer.clone()) for module, name, buffer in buffers if buffer is not None]
    try:
        yield
    finally:
        for module, name, buffer, value in saved:
            module._buffers[name] = buffer.copy_(value)  # the same tensor object, even if forward replaced it


def _hash_pixels(image: Tensor) -> str:
    """A hash of the image at 16 bits per value: how the image was scaled to [-1, 1] changes only lower bits."""
    levels = image.detach().cpu().double().add(1).mul(65535 / 2).round().to(torch.int32).contiguous()
    return hashlib.sha256(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()
