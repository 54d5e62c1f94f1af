"""How other code stores the weights of the same network, for `p2pzoo import` and `p2pzoo export --to NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InferredConfig:
    """What tensors in a layout say of the network that they belong to.

    params           of the component
    in_channels, out_channels, size  as the zoo gives them to the constructor; the size is one that such weights are
                     commonly trained at, where they do not tell
    notes            what was assumed, as they do not tell it, and the parameter that says otherwise; one line each
    """

    params: Mapping[str, Any]
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateDictFormat:
    """How other code names the tensors of the same network, for `p2pzoo import` and `p2pzoo export --to NAME`.

    name     of that code: what `--to` takes
    read     `read(tensors, given)`: the Reading of tensors under that code's names, without `prefix`; parameters that
             the user gave stand in `given`, and are to be in what it says. None where nothing looks like it; tensors
             that are missing, left over or of other shapes are the zoo's business
    names    `names(network)`: {name of a module with tensors: its name there}. Raises ValueError, with one line,
             for a network that has no place there
    written  `written(network)`: what export writes, {own tensor's name: tensor}, and notes; None is the state_dict
    prefix   where that code's files hold several networks: what this one's names begin with. They then lie under
             "state_dict"
    """

    name: str
    read: Callable[[Mapping[str, Tensor], Mapping[str, Any]], InferredConfig | None]
    names: Callable[[Any], Mapping[str, str]]
    written: Callable[[Any], tuple[Mapping[str, Tensor], Sequence[str]]] | None = None
    prefix: str = ""
