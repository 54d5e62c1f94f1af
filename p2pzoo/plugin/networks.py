"""What a generator and a discriminator must be. Imports no torch at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Generator(Protocol):
    """An nn.Module G(x) -> ŷ.

    Parameters that are never trained have requires_grad = False. The network changes no argument in place, makes new
    tensors on the device of x, and samples only with torch's global generator, and only in training mode.

    Optional attributes of a generator:

    features            `features(x)`: a list of tensors (B, C, h, w), such as the outputs of the encoder's layers, in
                        training mode and in eval mode. Losses that are registered with `needs=("features",)` call it
                        as `out.G.features(x)`. With `takes_time` it is `features(x, t)`, and without t that of t = 1
    takes_z             True: it has a method `draw_z(x)`, the z that it would draw for x with torch's global generator,
                        a tensor (B, …), and a keyword argument `forward(x, z=None)`. Given a z it draws none, in
                        training mode and in eval mode, and ŷ depends on it. Losses that are registered with
                        `needs=("z",)` call it so, as out.G(x, z=z); such a recipe has no process. It cannot have
                        `takes_time`
    sees_target         True: in training it is called as G(x, y) with the targets y, and returns (ŷ, {name: loss}) with
                        scalar losses of its own; everywhere else as G(x), which returns ŷ. For encoders of y, such as
                        BicycleGAN's. It may also sample at use, in eval mode. It cannot be trained with a process, and
                        cannot have `takes_time`
    loss_weights        of a generator with `sees_target`: {name: weight} for exactly the losses that it returns. They
                        are added to the recipe's with these weights, and logged as "G.NAME" without them. Names of
                        the recipe's losses are refused, and "gan" if it has a GAN loss
    interval            `interval(x)`: a lower and an upper bound of each value of y, (B, out_channels, H, W) each;
                        they never cross. `p2pzoo calibrate` chooses the factor by which they are widened
    size_divisor        H and W must be multiples of it (default 1). For any other size the network raises a ValueError
                        that names the size
    load_smaller        `load_smaller(tensors)`, for a generator that contains a smaller one which is trained first. It
                        is called if the tensor names in the file of `[init] generator` are not its own; it returns the
                        tensors of the smaller generator as a complete state dict of this one. It raises ValueError,
                        with one line, if names are missing or left over; p2pzoo checks shapes
    state_dict_formats  a class attribute: the `StateDictFormat`s in which other code stores its weights. A
                        discriminator may have it too
    takes_time          True, a class attribute: it has the time of a process as a second argument, `forward(x, t=None)`
                        with t (B,) in [0, 1], and ŷ depends on it. Without t it does as for t = 1, so that it can be
                        trained without a process too. A process may add the time as one more channel of x all the same
    at_use              a class attribute: names of the parameters that training does not depend on. They may differ
                        where a trained G is used: `p2pzoo translate -s generator.PARAM=VALUE`, `[evaluate.generator]`,
                        `p2pzoo.load(…, generator={…})`

    An optional attribute of every module inside a generator or a discriminator:

    external_weights  a tuple with names of its parameters, buffers or submodules whose weights come from elsewhere and
                      never learn, such as a large pretrained network below low-rank matrices. The constructor or
                      `init_own_weights` puts them in place, with the same values in each build. They are frozen, [init]
                      does not change them, and no model file, checkpoint, average or optimizer has them: files hold
                      their SHA-256, and p2pzoo refuses a file if other weights are brought when it is loaded. Norms
                      with external statistics must stay in eval mode, so override `train`. A parameter of the
                      constructor cannot be a path to them, because model files hold no paths

    An optional method of every module inside a generator or a discriminator:

    init_own_weights  `init_own_weights() -> None`, called once at the start of a run, after [init] has initialised the
                      whole network. It sets weights that [init] must not sample, such as pretrained weights or fixed
                      projections. Its random numbers follow from the recipe's seed. It is not called if weights come
                      from a model file, unless the network has external weights; so read and download nothing in the
                      constructor

    >>> import p2pzoo
    >>> G = p2pzoo.create("generator", "unet", in_channels=3, out_channels=1, size=(64, 64), width=1)
    >>> isinstance(G, Generator), G.size_divisor
    (True, 64)
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> ŷ (B, out_channels, H, W) in [-1, 1]."""


@runtime_checkable
class Discriminator(Protocol):
    """An nn.Module D(x, y) -> logits. A conditional one concatenates x itself.

    The rules of `Generator` on arguments, devices, random numbers and external weights hold here too.

    A discriminator that is registered with `needs=("labels",)` is called as D(x, y, labels) everywhere, `features` too,
    with the labels that belong to x, (B, H, W) int64; the number of classes is a parameter of its own. Recipes whose
    dataset has no labels are refused.

    Optional attributes:

    receptive_field  side in pixels of the image area that one logit depends on; None or absent if unknown
    size_divisor     H and W must be multiples of it (default 1). For any other size the network raises a ValueError
                     that names the size
    """

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits (no sigmoid), one (B, 1, h, w) map per scale."""

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """Activations between the layers, from the first layer to the last; one list per scale."""
