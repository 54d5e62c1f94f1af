"""What a generator and a discriminator are. Imports no torch at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Generator(Protocol):
    """An nn.Module. `size_divisor`: H and W must be multiples of it (1 if absent).

    What a generator may have besides:

    grown_from  where it holds a smaller generator that is trained before it: `load_smaller(tensors)`, called when the
                file of `[init] generator` has other names than its own, returns the smaller one's tensors as a complete
                set of its own. It raises ValueError, with one line, where names are missing or left over; shapes are
                the zoo's business
    layouts     of the class of a generator or discriminator: the Layouts in which other code stores its weights

    What any module inside a generator or discriminator may have besides:

    first_weights  `first_weights() -> None`, called once when a run begins, after [init] has given weights to the whole
                   network: puts in place what is not [init]'s to draw, such as pretrained weights or fixed projections.
                   Random numbers that it draws follow from the recipe's seed. Not called where weights come from a
                   model file; so read and fetch nothing in the constructor

    Parameters that never learn have requires_grad = False.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> ŷ (B, out_channels, H, W) in [-1, 1]."""


@runtime_checkable
class Discriminator(Protocol):
    """An nn.Module that concatenates x itself where it is conditional.

    `receptive_field`: side in pixels of what one logit sees, or None (absent: unknown). `size_divisor`: as of a
    Generator.
    """

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits (no sigmoid), one (B, 1, h, w) map per scale."""

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """Activations between the layers, outermost list per scale, from the input side on."""
