"""The training step in the order of train.lua: G hears what D said before D moved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.protocols import GanLoss
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, Trainable, _mean
from p2pzoo.utils.errors import UserError


class LuaObjective(Objective):
    """The moves of train.lua (phillipi/pix2pix): G hears what D said before D moved, and learns by D's new weights.

    fGx takes D's output from fDx "so save computation", and netD:updateGradInput then leads the gradient back through
    weights that D's step has changed in the meantime (dcgan.torch#21). So each layer of D turns a gradient back by the
    input that it had and the weights that it has. The gradient is of no function that anybody wrote down, which is why
    PyTorch refuses it where it notices (its fused Adam does not let it) and the other order forgets all that D said.

    D is a network whose weights all lie in layers without parts, convolutions and norms: UserError otherwise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers = _layers(self.D.network) if self.D else []

    def _play(self, out: StepOutputs, D: Trainable, gan: GanLoss, told: dict[str, Tensor]) -> None:
        """D's move, then that of G; what is told of G's is what D said before it moved."""
        self._begin_move()
        with frozen(D.network), _led_back_later(self.layers):
            fooled = self._fooled(gan, out.for_generator())
        self.backward_and_step(self._sum(told, self._judged(gan, out)), D.optimizer)
        told["D.real"], told["D.fake"] = _mean(out.real), _mean(out.fake)

        self._begin_move()
        with frozen(D.network):
            self.backward_and_step(self._sum(told, fooled), self.G.optimizer)


def _layers(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that hold its weights. Raises UserError if one of them has parts itself."""
    layers = [part for part in network.modules() if any(True for _ in part.parameters(recurse=False))]
    if mixed := [type(part).__name__ for part in layers if any(True for _ in part.children())]:
        raise UserError(
            f'[train] order = "lua" takes a discriminator whose weights all lie in its layers; {mixed[0]} has weights '
            "beside parts of its own: leave train.order out"
        )
    return layers


@contextlib.contextmanager
def _led_back_later(layers: Sequence[nn.Module]) -> Iterator[None]:
    """What these layers are asked inside leads gradients back by the weights of the time when it does.

    Each layer is computed again then, from the input that it had: what it needs for its gradient is what it would have
    kept, but for its weights. That holds whatever kernel or precision the layer is computed in.
    """

    def later(forward: Any, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
        return y

    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(later, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
