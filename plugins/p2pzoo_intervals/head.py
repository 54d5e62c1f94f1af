"""`quantile-head`: a generator with two outputs for each value, its lower and its upper quantile. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.config.frozen_table import FrozenTable
from p2pzoo.plugin import schema
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError


def find_inner(table: Mapping[str, Any]) -> Component:
    """The generator that a table names, with its parameters checked. Raises UserError with everything that is wrong.

    >>> find_inner({"use": "unet", "width": 8}).values["width"]
    8
    """
    use = table.get("use")
    if not isinstance(use, str):
        raise UserError('names no generator: write of = { use = "unet" } (`p2pzoo list generator` shows them)')
    entry = registry().get("generator", use)
    factory = entry.load()
    if factory is QuantileHead:
        raise UserError(f"use = {use}: a head is around another generator, not around a head")
    try:
        params = {name: value for name, value in schema.to_jsonable(table).items() if name != "use"}
        values = schema.check_params(factory, params, ["use"])
    except (schema.InvalidParameters, TypeError) as error:
        raise UserError(f"generator '{use}' {error}") from None
    return Component(entry, factory, values)


def _check_inner(table: FrozenTable) -> FrozenTable:
    """The table, with its files as paths, which are then found and counted as those of [generator].

    `schema` calls it with the recipe, which names file and line.
    """
    try:
        values = find_inner(table).values
    except UserError as error:
        raise PydanticCustomError("inner", "{faults}", {"faults": "; ".join(error.faults)}) from None
    return FrozenTable({name: p if isinstance(p := values.get(name), Path) else item for name, item in table.items()})


def _check_levels(levels: tuple[float, float]) -> tuple[float, float]:
    if levels[0] >= levels[1]:
        raise PydanticCustomError("levels", "write the lower level first, as in [0.1, 0.9]")
    return levels


_Level = Annotated[float, Field(gt=0, lt=1)]


class QuantileHead(nn.Module):
    """x (B, in_channels, H, W) in [-1, 1] -> ŷ (B, out_channels, H, W) in [-1, 1], the middle of an interval.

    The generator inside has 2 × out_channels outputs. The smaller of the two for a value is the lower bound, the larger
    one the upper: they never cross, both stay in the range of that generator, and sorting two estimated quantiles
    never increases their pinball loss (Chernozhukov et al. 2010, doi:10.3982/ECTA7880, proposition 1).

    levels   the two quantiles that the pinball loss fits
    pinball  weight of that loss, which no table [losses.NAME] has. ŷ gets the recipe's other losses besides
    of       table of the generator inside: `use` and its parameters

    Raises ValueError for a generator inside that sees the target itself.

    >>> G = QuantileHead(3, 1, (64, 64), of=FrozenTable(use="unet", width=4)).eval()
    >>> x = torch.zeros(2, 3, 64, 64)
    >>> lower, upper = G.interval(x)
    >>> lower.shape, bool((lower <= upper).all()), torch.equal(G(x), (lower + upper) / 2)
    (torch.Size([2, 1, 64, 64]), True, True)
    """

    sees_target = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        levels: Annotated[tuple[_Level, _Level], AfterValidator(_check_levels)] = (0.1, 0.9),
        pinball: Annotated[float, Field(gt=0)] = 100.0,  # as lambda of L1 in base.toml
        of: Annotated[FrozenTable, AfterValidator(_check_inner)],
    ) -> None:
        super().__init__()
        self.inner = find_inner(of).build(in_channels=in_channels, out_channels=2 * out_channels, size=size)
        if getattr(self.inner, "sees_target", False):
            raise ValueError(f"of: generator '{of['use']}' sees the target in training, as the head does: use another")
        self.levels, self.loss_weights = levels, {"pinball": pinball}
        self.size_divisor = getattr(self.inner, "size_divisor", 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """ŷ; in training, with the targets y, (ŷ, {"pinball": loss})."""
        lower, upper = self.interval(x)
        y_hat = (lower + upper) / 2
        if y is None:
            return y_hat
        losses = [pinball_loss(y, bound, level) for bound, level in zip((lower, upper), self.levels, strict=True)]
        return y_hat, {"pinball": sum(losses) / 2}

    def interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound of each value, (B, out_channels, H, W) each."""
        first, second = self.inner(x).chunk(2, dim=1)
        return torch.minimum(first, second), torch.maximum(first, second)


def pinball_loss(y: Tensor, bound: Tensor, level: float) -> Tensor:
    """The mean loss whose minimum is the quantile of this level (Koenker & Bassett 1978, doi:10.2307/1913643).

    >>> pinball_loss(torch.tensor([1.0, -1.0]), torch.zeros(2), 0.9)  # above the bound 0.9, below it 0.1
    tensor(0.5000)
    """
    error = y - bound
    return torch.maximum(level * error, (level - 1) * error).mean()
