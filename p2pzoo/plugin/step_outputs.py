"""What losses and GAN losses read in a training step: x, y, ŷ and D's outputs. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.networks import Discriminator

if TYPE_CHECKING:
    from torch import Tensor

    RealAndFake = tuple[list[Tensor], list[Tensor]]  # D's logits of real, and of fake images

Side = Literal["generator", "discriminator"]

# The forward passes of D in one training step: on real and on fake images in D's update, on both in G's update.
DiscriminatorPass = Literal["D.real", "D.fake", "G"]


class StepOutputs:
    """x, y, ŷ and D's outputs in one update of a training step. D is called lazily, and each output is computed once.

    In D's update, ŷ is detached from G's graph; it may come from the image pool, with the x that it was made from.
    In G's update, after `for_generator()`, gradients flow through ŷ to G.

    judge_both  computes D's logits of real and fake images in one call, in D's update
                (`p2pzoo.compute.batched_discriminator`); None calls D twice. G's update rarely needs the real logits
    augment     (pass, x, y) -> the augmented x and y that D gets in this pass; None without such augmentations. x, y
                and ŷ of this object are not augmented. G's update uses the same random numbers for real and fake
                images, so that D's features of both can be compared
    step        number of the training step, from 0; None while a CUDA graph is recorded, since the graph is replayed in
                other steps

    >>> import torch
    >>> batch = Batch(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), ("a",))
    >>> out = StepOutputs(batch, y_hat=torch.zeros(1, 3, 8, 8))
    >>> (out.y - out.y_hat).abs().mean()
    tensor(1.)
    """

    def __init__(
        self,
        batch: Batch,
        y_hat: Tensor,
        D: Discriminator | None = None,
        *,
        pooled: tuple[Tensor, Tensor] | None = None,
        judge_both: Callable[[Discriminator, tuple[Tensor, Tensor], tuple[Tensor, Tensor]], RealAndFake] | None = None,
        augment: Callable[[DiscriminatorPass, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        step: int | None = 0,
    ) -> None:
        self.batch = batch
        self._D = D
        self._judge_both = judge_both
        self._augment = augment
        self._step = step
        self.side: Side = "discriminator"
        self._y_hat_with_graph = y_hat
        self._fake_pair = pooled or (batch.x, y_hat.detach())

    def for_generator(self) -> StepOutputs:
        """The same images for G's update. D has been updated in between, so its outputs are computed again."""
        out = StepOutputs(self.batch, self._y_hat_with_graph, self._D, augment=self._augment, step=self._step)
        out.side = "generator"
        out._fake_pair = (self.batch.x, self._y_hat_with_graph)
        return out

    @property
    def x(self) -> Tensor:
        """(B, C, H, W) inputs of the batch, in [-1, 1]."""
        return self.batch.x

    @property
    def y(self) -> Tensor:
        """(B, C, H, W) targets of the batch, in [-1, 1]."""
        return self.batch.y

    @property
    def y_hat(self) -> Tensor:
        """(B, C, H, W) G's translations, in [-1, 1]: detached or from the image pool in D's update."""
        return self._fake_pair[1]

    @property
    def D(self) -> Discriminator | None:
        """The discriminator, or None. It augments its inputs as this update augments real images."""
        return self._D if self._D is None or self._augment is None else _Augmented(self._D, self._augment_as_real)

    @property
    def x_fake(self) -> Tensor:
        """(B, C, H, W) the inputs that `y_hat` was made from: `x`, or those that the image pool kept with it."""
        return self._fake_pair[0]

    @property
    def step(self) -> int:
        """Number of the training step, from 0.

        A loss that acts in some steps only must decide by this number and not count calls, so that a resumed run has
        bit-identical results. It must act in step 0, where compilation is tried out.

        Raises RuntimeError while a CUDA graph is recorded: a step whose losses read this number is not recorded.
        """
        if self._step is None:
            raise RuntimeError("a loss reads StepOutputs.step, so this step cannot be recorded as a CUDA graph")
        return self._step

    @cached_property
    def real(self) -> list[Tensor]:
        """D(x, y): logits, one (B, 1, h, w) map per scale."""
        return self._both_logits[0] if self._judge_both else self._discriminator(*self._real_inputs)

    @cached_property
    def fake(self) -> list[Tensor]:
        """D(x_fake, ŷ): logits, one (B, 1, h, w) map per scale."""
        return self._both_logits[1] if self._judge_both else self._discriminator(*self._fake_inputs)

    @cached_property
    def _both_logits(self) -> RealAndFake:
        assert self._judge_both
        return self._judge_both(self._discriminator, self._real_inputs, self._fake_inputs)

    @cached_property
    def real_features(self) -> list[list[Tensor]]:
        """D's activations at (x, y); see `Discriminator.features`."""
        return self._discriminator.features(*self._real_inputs)

    @cached_property
    def fake_features(self) -> list[list[Tensor]]:
        """D's activations at (x_fake, ŷ); see `Discriminator.features`."""
        return self._discriminator.features(*self._fake_inputs)

    @cached_property
    def _real_inputs(self) -> tuple[Tensor, Tensor]:
        return self._augment_as_real(self.x, self.y)

    @cached_property
    def _fake_inputs(self) -> tuple[Tensor, Tensor]:
        if self._augment is None:
            return self._fake_pair
        return self._augment("G" if self.side == "generator" else "D.fake", *self._fake_pair)

    def _augment_as_real(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._augment is None:
            return x, y
        return self._augment("G" if self.side == "generator" else "D.real", x, y)

    @property
    def _discriminator(self) -> Discriminator:
        if self._D is None:
            raise ValueError("this recipe has no [discriminator], but one of its losses needs its outputs")
        return self._D


class _Augmented:
    """A discriminator that augments its inputs."""

    def __init__(self, D: Discriminator, augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self._D, self._augment = D, augment

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return self._D(*self._augment(x, y))

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        return self._D.features(*self._augment(x, y))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._D, name)
