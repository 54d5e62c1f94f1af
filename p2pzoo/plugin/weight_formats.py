"""How other code stores the weights of the same network: for `p2pzoo import` and `p2pzoo export --to NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InferredConfig:
    """The network that a state dict of other code belongs to, inferred from names and shapes of its tensors.

    params                     parameters of the component
    in_channels, out_channels  arguments of the constructor
    size                       (H, W), argument of the constructor; if the tensors do not determine it, the size at
                               which such weights are commonly trained
    notes                      one line for each value that was guessed: the value, and the parameter that changes it
    """

    params: Mapping[str, Any]
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateDictFormat:
    """How other code names the tensors of the same network.

    name     name of that code, for `--to`
    read     `read(tensors, given) -> InferredConfig | None`: the network of a state dict whose names have no `prefix`.
             `given` are the parameters that the user set; `InferredConfig.params` must contain them. None if the state
             dict is in another format. p2pzoo checks for tensors that are missing, left over or of other shapes
    names    `names(network) -> {module name: its name in that code}`, for all modules with tensors. Raises ValueError,
             with one line, for a network that the other code cannot hold
    written  `written(network) -> ({own tensor name: tensor}, notes)`: the tensors to export; None exports the state
             dict
    prefix   start of this network's tensor names, for files that hold several networks. The tensors are then under the
             key "state_dict"
    """

    name: str
    read: Callable[[Mapping[str, Tensor], Mapping[str, Any]], InferredConfig | None]
    names: Callable[[Any], Mapping[str, str]]
    written: Callable[[Any], tuple[Mapping[str, Tensor], Sequence[str]]] | None = None
    prefix: str = ""
