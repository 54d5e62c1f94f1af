"""Copies of networks that share all parameters and buffers with the original. Imports torch only.

convs_as_gemm and with_activation_checkpointing replace forward methods of the copy; the original keeps its forward and
its state dict.
"""

from __future__ import annotations

import copy
import logging

from torch import nn

_log = logging.getLogger("p2pzoo")


def copy_sharing_params(module: nn.Module) -> nn.Module | None:
    """Return a copy of the module tree with the same parameters and buffers; None if the module cannot be copied.

    The reason is logged at debug level.

    >>> layer = nn.Linear(2, 1)
    >>> copy_sharing_params(layer).weight is layer.weight
    True
    """
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, dict(shared))
    except Exception as error:  # a module of a plugin can raise anything
        _log.debug("%s is not rewritten: it cannot be copied (%s)", type(module).__name__, error)
        return None
