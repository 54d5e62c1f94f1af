"""Copies of networks to rewrite for speed or memory: they share every parameter and buffer with the original, which
keeps its forward and its state_dict. Imports torch only."""

from __future__ import annotations

import copy
import logging

from torch import nn

log = logging.getLogger("p2pzoo")


def copy_sharing_params(module: nn.Module) -> nn.Module | None:
    """Such a copy; None for a module that cannot be copied, logged at debug level."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, dict(shared))
    except Exception as error:  # whatever a third party's module does when it is copied
        log.debug("%s stays as it is: it cannot be copied (%s)", type(module).__name__, error)
        return None
