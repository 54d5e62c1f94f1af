"""What losses and GAN losses read in a training step: x, y, ŷ and D's outputs. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.networks import Discriminator
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    RealAndFake = tuple[list[Tensor], list[Tensor]]  # D's logits of real, and of fake images
    Inputs = tuple[Tensor, ...]  # of D: x, y and, for a D that needs them, labels

Side = Literal["generator", "discriminator"]

# The forward passes of D in one training step: on real and on fake images in D's update, on both in G's update.
DiscriminatorPass = Literal["D.real", "D.fake", "G"]


class StepOutputs:
    """x, y, ŷ and D's outputs in one update of a training step. D is called lazily, and each output is computed once.

    In D's update, ŷ is detached from G's graph; it may come from the image pool, with the x that it was made from.
    In G's update, after `for_generator()`, gradients flow through ŷ to G.

    G           the generator as losses may call it (see the property); None: they may not
    G_losses    {name: loss}: what a generator with `sees_target` returned besides ŷ; else empty
    pooled      x, ŷ and, with labels_for_D, labels for D's update in place of this batch's, or None
    judge_both  computes D's logits of real and fake images in one call, in D's update
                (`p2pzoo.compute.batched_discriminator`); None calls D twice. G's update rarely needs the real logits
    augment     (pass, x, y) -> the augmented x and y that D gets in this pass, and labels if D needs them; None without
                such augmentations. x, y and ŷ of this object are not augmented. G's update uses the same random numbers
                for real and fake images, so that D's features of both can be compared
    labels_for_D  D is registered with `needs=("labels",)`: it is called as D(x, y, labels)
    sample_weight  (B,) weights of the images in losses of pixels, for G's update; None without any
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
        G: Any = None,
        G_losses: Mapping[str, Tensor] | None = None,
        pooled: Inputs | None = None,
        judge_both: Callable[[Discriminator, Inputs, Inputs], RealAndFake] | None = None,
        augment: Callable[..., Inputs] | None = None,
        labels_for_D: bool = False,
        sample_weight: Tensor | None = None,
        step: int | None = 0,
    ) -> None:
        self.batch = batch
        self.G_losses = G_losses or {}
        self._D, self._G = D, G
        self._sample_weight = sample_weight
        self._judge_both = judge_both
        self.augment = augment
        self._step = step
        self.side: Side = "discriminator"
        self._y_hat_with_graph = y_hat
        self._labels: tuple[Any, ...] = (batch.labels,) if labels_for_D else ()
        self._fake = pooled or (batch.x, y_hat.detach(), *self._labels)

    def for_generator(self) -> StepOutputs:
        """The same images for G's update. D has been updated in between, so its outputs are computed again."""
        out = StepOutputs(
            self.batch, self._y_hat_with_graph, self._D, G=self._G, G_losses=self.G_losses, augment=self.augment,
            labels_for_D=bool(self._labels), sample_weight=self._sample_weight, step=self._step,
        )  # fmt: skip
        out.side = "generator"
        out._fake = (self.batch.x, self._y_hat_with_graph, *self._labels)
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
        return self._fake[1]

    @property
    def D(self) -> Discriminator | None:
        """The discriminator, or None. It augments its inputs as this update augments real images.

        For a D that needs labels, D(x, y) gets those of the batch, and for `x_fake` those that belong to it. Others are
        given as D(x, y, labels).
        """
        if self._D is None or (self.augment is None and not self._labels):
            return self._D
        view: Any = NetworkView(self._D, self._inputs_of_losses)
        return view  # type: ignore[no-any-return]

    @property
    def G(self) -> Any:
        """The generator: G(x) -> ŷ. For a loss that is registered with `needs=("features",)` also `G.features(x)`, and
        with `needs=("z",)` G(x, z=z) and `G.draw_z(x)`.

        x has `in_channels`, with a process too: G then sees what the process makes of x with the y, the times and the
        noise of this step, and gets the times too if it takes them. Gradients reach G's weights, so a loss of the
        discriminator cannot use it.

        Raises ValueError in D's update.
        """
        if self.side == "discriminator":
            raise ValueError('out.G is for losses with side = "generator": in D\'s update it would give G gradients')
        if self._G is None:
            raise ValueError("these StepOutputs were made without a generator: give G=")
        return self._G

    @property
    def x_fake(self) -> Tensor:
        """(B, C, H, W) the inputs that `y_hat` was made from: `x`, or those that the image pool kept with it."""
        return self._fake[0]

    @property
    def real_labels(self) -> Tensor | None:
        """(B, H, W) the labels of y as D gets (x, y): augmented as these are for a D that needs labels.

        None without labels, and if augmentations change what D gets, and D needs no labels: they may not fit then.
        """
        return self._real_inputs[2] if self._labels else None if self.augment else self.batch.labels

    @property
    def sample_weight(self) -> Tensor | None:
        """(B,) weights of the images, which losses of pixels apply in G's update; None without any, and in D's update.

        They are those of a process that has `loss_weight` (see `Process`). A loss that applies them, by `weighted_mean`
        for one, has the attribute `uses_sample_weight = True`.
        """
        return self._sample_weight if self.side == "generator" else None

    def weighted_mean(self, values: Tensor) -> Tensor:
        """The mean of the (B, …) values of a loss, with each image weighted by `sample_weight` if there is one.

        >>> import torch
        >>> batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), ("a", "b"))
        >>> y_hat = torch.stack([torch.full((3, 8, 8), 0.5), torch.ones(3, 8, 8)])
        >>> out = StepOutputs(batch, y_hat, sample_weight=torch.tensor([2.0, 0.0])).for_generator()
        >>> out.weighted_mean((out.y - out.y_hat).abs())
        tensor(0.5000)
        """
        if self.sample_weight is None:
            return values.mean()
        return (values.flatten(1).mean(1) * self.sample_weight).mean()

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
    def _real_inputs(self) -> Inputs:
        return self._augment_as_real(self.x, self.y, *self._labels)

    @cached_property
    def _fake_inputs(self) -> Inputs:
        if self.augment is None:
            return self._fake
        return self.augment("G" if self.side == "generator" else "D.fake", *self._fake)

    def _inputs_of_losses(self, x: Tensor, y: Tensor, *labels: Tensor) -> Inputs:
        own_labels = self._fake[2:] if x is self._fake[0] else self._labels
        return self._augment_as_real(x, y, *(labels or own_labels))

    def _augment_as_real(self, *inputs: Tensor) -> Inputs:
        if self.augment is None:
            return inputs
        return self.augment("G" if self.side == "generator" else "D.real", *inputs)

    @property
    def _discriminator(self) -> Discriminator:
        if self._D is None:
            raise UserError("a loss of this recipe needs a discriminator: add [discriminator] and [gan_loss]")
        return self._D


class NetworkView:
    """A network that is called with other inputs: NetworkView(D, prepare)(x, y) is D(*prepare(x, y))."""

    def __init__(self, network: Any, prepare: Callable[..., Inputs]) -> None:
        self._network, self._prepare = network, prepare

    def __call__(self, *inputs: Tensor) -> Any:
        return self._network(*self._prepare(*inputs))

    def features(self, *inputs: Tensor) -> Any:
        return self._network.features(*self._prepare(*inputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
