"""What losses and GAN losses read in a training step: x, y, ŷ and what D says of them. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.networks import Discriminator

if TYPE_CHECKING:
    from torch import Tensor

    Both = tuple[list[Tensor], list[Tensor]]  # D's maps of real, and of fake images

Side = Literal["generator", "discriminator"]


Moment = Literal["D.real", "D.fake", "G"]  # when D is shown images: in its own move real and fake ones; in G's move


class StepOutputs:
    """One moment of the game: x, y, ŷ, and (lazily, each computed once) what D says of them.

    In the discriminator's move ŷ is cut from G's graph, and may come from the image pool together with the x
    it was made from. In the generator's move, after `for_generator()`, ŷ carries gradients to G.

    both  asks D of real and fake images at once in the discriminator's move (`speed.onepass.BatchedDiscriminator`), where that is
          the same. In the generator's, what is real needs no gradients and is rarely asked for
    seen  how (x, y) looks to D at a moment of the game, where it is augmented; x, y and ŷ here are not. In the
          generator's move all images are changed alike, so that D's features of real and fake can be compared
    step  its number, from 0 on; None while a step is recorded that will be replayed as others (`speed.graphs.CUDAGraphStep`)
    """

    def __init__(
        self,
        batch: Batch,
        y_hat: Tensor,
        D: Discriminator | None = None,
        *,
        pooled: tuple[Tensor, Tensor] | None = None,
        both: Callable[[Discriminator, tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Both] | None = None,
        seen: Callable[[Moment, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        step: int | None = 0,
    ) -> None:
        self.batch = batch
        self._D = D
        self._both = both
        self._seen = seen
        self._step = step
        self.side: Side = "discriminator"
        self._attached = y_hat
        self._shown = pooled or (batch.x, y_hat.detach())

    def for_generator(self) -> StepOutputs:
        """The same images in the generator's move: D has changed, so nothing it said is kept."""
        out = StepOutputs(self.batch, self._attached, self._D, seen=self._seen, step=self._step)
        out.side = "generator"
        out._shown = (self.batch.x, self._attached)
        return out

    @property
    def x(self) -> Tensor:
        return self.batch.x

    @property
    def y(self) -> Tensor:
        return self.batch.y

    @property
    def y_hat(self) -> Tensor:
        """(B, C, H, W) G's translation as this move shows it to D."""
        return self._shown[1]

    @property
    def D(self) -> Discriminator | None:
        """The discriminator. It sees what it is asked of as it sees real images, in this move."""
        return self._D if self._D is None or self._seen is None else _Augmented(self._D, self._as_real)

    @property
    def x_fake(self) -> Tensor:
        """(B, C, H, W) what that was made from: `x`, unless the image pool had both."""
        return self._shown[0]

    @property
    def step(self) -> int:
        """The number of the training step, from 0 on: a loss that acts in some steps only goes by it, never by a count
        of its own, so that a resumed run goes on as it would have. It acts in step 0, where compilers are tried out.

        Whoever reads it keeps the step from being recorded as a CUDA graph: RuntimeError where that is tried.
        """
        if self._step is None:
            raise RuntimeError("a loss goes by the number of the step")
        return self._step

    @cached_property
    def real(self) -> list[Tensor]:
        """D(x, y): logits, one map per scale."""
        return self._judged[0] if self._both else self._player(*self._real)

    @cached_property
    def fake(self) -> list[Tensor]:
        """D(x, ŷ): logits, one map per scale."""
        return self._judged[1] if self._both else self._player(*self._fake)

    @cached_property
    def _judged(self) -> Both:
        assert self._both
        return self._both(self._player, self._real, self._fake)

    @cached_property
    def real_features(self) -> list[list[Tensor]]:
        return self._player.features(*self._real)

    @cached_property
    def fake_features(self) -> list[list[Tensor]]:
        return self._player.features(*self._fake)

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        return self._as_real(self.x, self.y)

    @cached_property
    def _fake(self) -> tuple[Tensor, Tensor]:
        if self._seen is None:
            return self._shown
        return self._seen("G" if self.side == "generator" else "D.fake", *self._shown)

    def _as_real(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is None:
            return x, y
        return self._seen("G" if self.side == "generator" else "D.real", x, y)

    @property
    def _player(self) -> Discriminator:
        if self._D is None:
            raise ValueError("this recipe has no [discriminator], and one of its losses asks for it")
        return self._D


class _Augmented:
    """D, which sees what it is asked of through an augmentation."""

    def __init__(self, D: Discriminator, show: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self._D, self._show = D, show

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return self._D(*self._show(x, y))

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        return self._D.features(*self._show(x, y))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._D, name)
