"""The training step in the order of train.lua: G's loss uses the logits that D had before its update."""

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
from p2pzoo.training.gan_step import Objective, Trainable, sum_and_log
from p2pzoo.utils.errors import UserError


class LuaObjective(Objective):
    """The updates of train.lua (phillipi/pix2pix): G's loss uses D's logits from before D's update, but the gradient
    flows back through D's new weights.

    fGx takes D's output from fDx "so save computation". netD:updateGradInput then passes the gradient back through
    weights that D's optimizer step has changed in the meantime (dcgan.torch#21): each layer of D uses its old input and
    its new weights. This is not the gradient of any function, so PyTorch raises an error where it detects the change.
    (It does not detect that of its fused Adam.) The default order never reuses D's logits after D's update.

    Every weight of D must belong to a layer without submodules, such as a convolution or a norm. Raises UserError
    otherwise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers = _layers_with_weights(self.D.network) if self.D else []

    def _update_both(self, out: StepOutputs, D: Trainable, gan: GanLoss, logs: dict[str, Tensor]) -> None:
        self._set_biases_to_zero()
        with frozen(D.network), _backward_with_new_weights(self.layers):
            G_losses = self._G_losses(out.for_generator())  # by the D before its update
        self.backward_and_step(sum_and_log(self._D_losses(out, gan), logs), D.optimizer)
        self._finish_update_of_D(out, logs)

        self._set_biases_to_zero()
        with frozen(D.network):
            self.backward_and_step(sum_and_log(G_losses, logs), self.G.optimizer)


def _layers_with_weights(network: nn.Module) -> list[nn.Module]:
    """The modules that own parameters. Raises UserError if one of them has submodules."""
    layers = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    if mixed := [type(layer).__name__ for layer in layers if any(True for _ in layer.children())]:
        raise UserError(
            f'[train] order = "lua" needs a discriminator whose weights all belong to layers without submodules; '
            f"{mixed[0]} has both weights and submodules: leave train.order out"
        )
    return layers


@contextlib.contextmanager
def _backward_with_new_weights(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The backward of all that these layers compute inside uses the weights that they have when it runs.

    Activation checkpointing does this: it computes each layer again in the backward, from the stored input, and then
    takes the weights from the new computation. It works for any kernel and any precision of a layer.
    """

    def checkpointed(forward: Any, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
        return y

    instance_forwards = [vars(layer).get("forward") for layer in layers]  # None: the layer uses its class's forward
    for layer in layers:
        layer.forward = functools.partial(checkpointed, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, instance_forwards, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
