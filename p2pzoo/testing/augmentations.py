"""Checks of augmentations: random changes of images, with the random numbers as an argument."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import torch
from torch import Tensor, nn

from p2pzoo.plugin.protocols import AugmentationTarget
from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase, DoesNotApply, random_images, random_states
from p2pzoo.utils.errors import UserError

_NUM_TRIALS = 16  # images in the alignment check, each with other random numbers
_MAX_DISTANCE = 2  # px between a blob's peaks in two images: resampling moves a peak by up to this much
_PEAK_OF_LABELS = 0.5  # where a blob is above, labels are 1
_MIN_CONTRAST = 0.3  # of a blob that is still visible; below, its peak may be a rounding error


def check_augmentation_shapes(case: ComponentCase) -> str | None:
    """Keeps the shapes and ranges of x, y and labels, for 3, 1 and 4 channels. May refuse images that are not RGB."""
    refusal = None
    for channels in ((3, 3), (1, 3), (4, 1)):
        try:
            augmentation = _build_augmentation(case, channels)
        except UserError as error:
            if channels == (3, 3):
                raise
            refusal = error.faults[0]
            continue
        for labels in (_stripe_labels(), None) if augmentation.where == "discriminator" else (_stripe_labels(),):
            _check_shapes(augmentation, *_example_pair(channels), labels)
    return refusal


def _check_shapes(augmentation: Any, x: Tensor, y: Tensor, labels: Tensor | None) -> None:
    outputs = augmentation(x, y, labels, _random_numbers(augmentation))
    for name, before, after in zip(("x", "y", "labels"), (x, y, labels), outputs, strict=True):
        if before is None:
            assert after is None, f"returns {name} where the batch has none"
            continue
        assert after is not None, f"returns no {name} where it is given them"
        assert after.shape == before.shape, (
            f"changes the shape of {name} from {tuple(before.shape)} to {tuple(after.shape)}"
        )
        assert after.dtype == before.dtype, f"changes the dtype of {name} from {before.dtype} to {after.dtype}"
        if augmentation.where == "pairs":
            assert after.abs().max() <= max(1 + 1e-5, before.abs().max()), f"{name} leaves its range"


def check_augmentation_repeats(case: ComponentCase) -> None:
    """Gives bit-identical results for the same random numbers, and samples no others."""
    augmentation = _build_augmentation(case)
    (x, y), labels, random = _example_pair(), _needed_labels(case), _random_numbers(augmentation)
    before = random_states()
    first, second = (augmentation(x.clone(), y.clone(), labels, random.clone()) for _ in range(2))
    assert random_states() == before, "draws random numbers itself: use only those of its argument"
    equal = all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    assert equal, "gives two results for the same random numbers"


def check_augmentation_batches(case: ComponentCase) -> None:
    """Changes an image independently of the rest of its batch."""
    augmentation = _build_augmentation(case)
    (x, y), labels, random = _example_pair(), _needed_labels(case), _random_numbers(augmentation)
    batch = augmentation(x.clone(), y.clone(), labels, random)
    for i in range(len(x)):
        label = None if labels is None else labels[i : i + 1]
        single = augmentation(x[i : i + 1].clone(), y[i : i + 1].clone(), label, random[i : i + 1])
        for name, alone, in_batch in zip("xy", single[:2], batch[:2], strict=True):
            message = f"{name} of an image depends on the rest of its batch"
            assert torch.allclose(alone[0], in_batch[i], atol=1e-5), message


def check_augmentation_alignment(case: ComponentCase) -> None:
    """Moves pixels of x, y and labels alike: a blob at one place in all of them stays at one place."""
    augmentation = _build_augmentation(case)
    generator = torch.Generator().manual_seed(0)
    num_compared = 0
    for _ in range(_NUM_TRIALS):
        top, left = (int(torch.randint(8, IMAGE_SIDE - 8, (), generator=generator)) for _ in range(2))
        blob = _blob(top, left)
        labels = (blob[:, 0] > _PEAK_OF_LABELS).long()
        random = _random_numbers(augmentation, 1, generator)
        x, y, moved_labels = augmentation(blob.expand(1, 3, -1, -1), blob.expand(1, 3, -1, -1), labels, random)
        places = [_peak(image) for image in (x, y) if image.mean(1).max() - image.mean(1).min() > _MIN_CONTRAST]
        is_visible = augmentation.where == "pairs" or x.max() > _PEAK_OF_LABELS  # D's images may be hidden, not labels
        if moved_labels is not None and moved_labels.any() and is_visible:
            places.append(tuple(moved_labels[0].nonzero().float().mean(0).tolist()))
        for first, second in itertools.pairwise(places):
            distance = max(abs(a - b) for a, b in zip(first, second, strict=True))
            assert distance <= _MAX_DISTANCE, f"x, y or labels are misaligned by {distance:.0f} px"
        num_compared += len(places) > 1
    if not num_compared:
        raise DoesNotApply("no blob stays visible in two of x, y and labels")


def check_augmentation_gradients(case: ComponentCase) -> None:
    """Passes gradients from D's images to ŷ: finite, and not all 0."""
    augmentation = _build_augmentation(case)
    if augmentation.where != "discriminator":
        raise DoesNotApply("changes pairs before the step: no gradient passes through it")
    x, y = _example_pair()
    y.requires_grad_()
    augmentation(x, y, None, _random_numbers(augmentation))[1].square().sum().backward()
    assert y.grad is not None, "gives ŷ no gradient"
    assert y.grad.isfinite().all(), "gives ŷ a gradient of nan or inf"
    assert y.grad.any(), "gives ŷ a gradient of 0"


def check_augmentation_observe(case: ComponentCase) -> None:
    """`observe`, if it has it, keeps what it learns in buffers, and neither samples numbers nor changes the logits."""
    augmentation = _build_augmentation(case)
    if not hasattr(augmentation, "observe"):
        raise DoesNotApply("has no `observe`")
    assert augmentation.where == "discriminator", 'has `observe`, which is called with where = "discriminator" only'
    is_module = isinstance(augmentation, nn.Module)
    assert is_module, "has `observe` and is no nn.Module: no checkpoint keeps what it learns"
    logits = [torch.ones(2, 1, 4, 4), torch.full((2, 1, 2, 2), 2.0)]
    before = random_states()
    for _ in range(_NUM_TRIALS):
        augmentation.observe([each.clone() for each in logits])
    given = [each.clone() for each in logits]
    augmentation.observe(given)
    assert random_states() == before, "`observe` draws random numbers"
    assert all(map(torch.equal, given, logits)), "`observe` changes the logits in place"
    rebuilt = _build_augmentation(case)
    rebuilt.load_state_dict(augmentation.state_dict())
    for _ in range(2):
        _check_same(augmentation, rebuilt)
        for each in (augmentation, rebuilt):
            each.observe([-2 * map_ for map_ in logits])


def _check_same(augmentation: Any, rebuilt: Any) -> None:
    (x, y), random = _example_pair(), _random_numbers(augmentation)
    one, other = (each(x.clone(), y.clone(), None, random.clone())[:2] for each in (augmentation, rebuilt))
    states = [tuple(each.state_dict().values()) for each in (augmentation, rebuilt)]
    same = all(map(torch.equal, one, other)) and all(map(torch.equal, *states))
    assert same, "`observe` keeps state that is in no buffer: a resumed run would change images differently"


def example_call(case: ComponentCase, *, with_labels: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """The augmentation, and arguments for it: x, y, random, and labels if it changes pairs and they are wanted."""
    augmentation = _build_augmentation(case)
    x, y = _example_pair()
    labels = {"labels": _stripe_labels()} if with_labels and augmentation.where == "pairs" else {}
    return augmentation, {"x": x, "y": y, **labels, "random": _random_numbers(augmentation)}


def _build_augmentation(case: ComponentCase, channels: tuple[int, int] = (3, 3)) -> Any:
    augmentation = case.build(in_channels=channels[0], out_channels=channels[1], size=(IMAGE_SIDE, IMAGE_SIDE))
    where = getattr(augmentation, "where", None)
    assert where in get_args(AugmentationTarget), (
        f"`where` is {where!r}: it must be one of {get_args(AugmentationTarget)}"
    )
    num_random = getattr(augmentation, "num_random", None)
    assert isinstance(num_random, int), f"`num_random`, the random numbers per image, is {num_random!r}, not an int"
    return augmentation


def _example_pair(channels: tuple[int, int] = (3, 3)) -> tuple[Tensor, Tensor]:
    x, y = (random_images(count, (IMAGE_SIDE, IMAGE_SIDE), seed=seed) for seed, count in enumerate(channels))
    return x, y


def _random_numbers(augmentation: Any, count: int = 2, generator: torch.Generator | None = None) -> Tensor:
    """(count, num_random) in [0, 1)."""
    generator = generator or torch.Generator().manual_seed(3)
    return torch.rand(count, augmentation.num_random, generator=generator)


def _needed_labels(case: ComponentCase) -> Tensor | None:
    return _stripe_labels() if "labels" in case.component.entry.needs else None


def _stripe_labels() -> Tensor:
    return torch.arange(IMAGE_SIDE)[None, :, None].expand(2, IMAGE_SIDE, IMAGE_SIDE) // 8


def _blob(top: int, left: int) -> Tensor:
    """(1, 1, IMAGE_SIDE, IMAGE_SIDE) from -1 to 1, with its peak at (top, left)."""
    rows, columns = torch.meshgrid(torch.arange(IMAGE_SIDE), torch.arange(IMAGE_SIDE), indexing="ij")
    near = (-((rows - top) ** 2 + (columns - left) ** 2) / 8).exp()
    return (near * 2 - 1)[None, None]


def _peak(image: Tensor) -> tuple[float, ...]:
    row, column = divmod(int(image.mean(1).flatten().argmax()), IMAGE_SIDE)
    return float(row), float(column)
