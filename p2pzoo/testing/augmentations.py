"""What augmentations promise: random changes of images whose random numbers they are given."""

from __future__ import annotations

import itertools
import random
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from p2pzoo.plugin.protocols import Where
from p2pzoo.testing.kit import SIDE, Case, DoesNotApply, images
from p2pzoo.utils.errors import UserError

DRAWS = 16  # images that are changed, each by other numbers
APART = 2  # px between what two images show, at most: as far as resampling moves a blob's peak
SEEN = 0.3  # contrast from which a blob still counts as shown


def check_shapes(case: Case) -> str | None:
    """x, y and labels keep their shapes and ranges, for 3, 1 and 4 channels. It may refuse those that are not RGB."""
    refused = None
    for channels in ((3, 3), (1, 3), (4, 1)):
        try:
            changed = _made(case, channels)
        except UserError as error:
            if channels == (3, 3):
                raise
            refused = error.faults[0]
            continue
        x, y, labels = (images(channels[0], (SIDE, SIDE)), images(channels[1], (SIDE, SIDE), seed=1), _labels())
        given = [x, y, labels if changed.where == "pairs" else None]
        for name, before, after in zip(("x", "y", "labels"), given, changed(*given, _numbers(changed)), strict=True):
            if before is None:
                assert after is None, f"makes {name} of nothing"
                continue
            assert after.shape == before.shape, f"{name} had the shape {tuple(before.shape)}, has {tuple(after.shape)}"
            assert after.dtype == before.dtype, f"{name} was {before.dtype}, is {after.dtype}"
            if changed.where == "pairs":
                assert after.abs().max() <= max(1 + 1e-5, before.abs().max()), f"{name} leaves its range"
    return refused


def check_repeats(case: Case) -> None:
    """The same numbers give the same bits, and no others are drawn."""
    changed = _made(case)
    x, y, u = images(3, (SIDE, SIDE)), images(3, (SIDE, SIDE), seed=1), _numbers(changed)
    before = _random()
    first, second = (changed(x.clone(), y.clone(), None, u.clone()) for _ in range(2))
    assert _random() == before, "draws random numbers that are not its own"
    assert all(torch.equal(one, other) for one, other in zip(first[:2], second[:2], strict=True)), "differs from itself"


def check_batches(case: Case) -> None:
    """What happens to an image does not depend on the rest of its batch."""
    changed = _made(case)
    x, y, u = images(3, (SIDE, SIDE)), images(3, (SIDE, SIDE), seed=1), _numbers(changed)
    together = changed(x, y, None, u)
    for i in range(len(x)):
        alone = changed(x[i : i + 1], y[i : i + 1], None, u[i : i + 1])
        for name, one, other in zip("xy", alone[:2], together[:2], strict=True):
            told = f"{name} of an image is another one where other images stand beside it"
            assert torch.allclose(one[0], other[i], atol=1e-5), told


def check_aligned(case: Case) -> None:
    """What moves pixels moves them alike in x, y and labels: a blob that all show is still at one place."""
    changed = _made(case)
    draw = torch.Generator().manual_seed(0)
    shown = 0
    for _ in range(DRAWS):
        top, left = (int(torch.randint(8, SIDE - 8, (), generator=draw)) for _ in range(2))
        blob = _blob(top, left)
        labels = (blob[:, 0] > 0.5).long() if changed.where == "pairs" else None
        x, y, moved = changed(blob.expand(1, 3, -1, -1), blob.expand(1, 3, -1, -1), labels, _numbers(changed, 1, draw))
        where = [_peak(image) for image in (x, y) if image.mean(1).max() - image.mean(1).min() > SEEN]
        if moved is not None and moved.any():
            where.append(tuple(moved[0].nonzero().float().mean(0).tolist()))
        for one, other in itertools.pairwise(where):
            apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
            assert apart <= APART, f"x, y or labels are {apart:.0f} px apart"
        shown += len(where) > 1
    if not shown:
        raise DoesNotApply("leaves nothing to compare")


def check_gradients(case: Case) -> None:
    """Gradients flow through what D is shown to ŷ, finite and not all 0."""
    changed = _made(case)
    if changed.where != "discriminator":
        raise DoesNotApply("changes pairs, from which nobody learns where they came from")
    y = images(3, (SIDE, SIDE), seed=1).requires_grad_()
    changed(images(3, (SIDE, SIDE)), y, None, _numbers(changed))[1].square().sum().backward()
    assert y.grad is not None, "gives ŷ no gradient"
    assert y.grad.isfinite().all(), "gives ŷ a gradient of nan or inf"
    assert y.grad.any(), "gives ŷ a gradient of 0"


def _made(case: Case, channels: tuple[int, int] = (3, 3)) -> Any:
    made = case.make(in_channels=channels[0], out_channels=channels[1], size=(SIDE, SIDE))
    assert made.where in get_args(Where), f"has where {made.where!r}: it must be one of {get_args(Where)}"
    assert isinstance(made.num_random, int), "does not say how many random numbers it takes (draws)"
    return made


def _numbers(made: Any, count: int = 2, draw: torch.Generator | None = None) -> Tensor:
    """(count, draws) in [0, 1)."""
    return torch.rand(count, made.num_random, generator=draw or torch.Generator().manual_seed(3))


def _labels() -> Tensor:
    return torch.arange(SIDE)[None, :, None].expand(2, SIDE, SIDE) // 8


def _blob(top: int, left: int) -> Tensor:
    """(1, 1, SIDE, SIDE) from -1 to 1, highest at (top, left)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    near = (-((rows - top) ** 2 + (columns - left) ** 2) / 8).exp()
    return (near * 2 - 1)[None, None]


def _peak(image: Tensor) -> tuple[float, ...]:
    row, column = divmod(int(image.mean(1).flatten().argmax()), SIDE)
    return float(row), float(column)


def _random() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state(legacy=False)
    torch_bytes = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], torch_bytes
