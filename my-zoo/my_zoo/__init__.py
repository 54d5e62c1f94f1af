"""What this plugin has. Imports no torch, so that `p2pzoo list` stays fast."""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register("my-zoo", "my_zoo.generator:Residual", summary="Residual blocks at full size", paper="arXiv:1512.03385")


@p2pzoo.hookimpl
def register_losses(register):
    register("my-zoo-edges", "my_zoo.loss:Edges", summary="Mean difference of gradients", paper="arXiv:1511.05440")
