"""Measure which convolution kernels are fastest on this machine: `tune`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register("tune", "p2pzoo_tune.commands:tune_command", summary="Find faster kernels for a recipe's convolutions.")
