"""`mae` and `pearson`: for images whose values are measurements, such as heights, counts or Hounsfield units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_metrics.levels import find_range, to_float64


class MAE:
    """Mean |y − ŷ| in the units of the dataset's values, over all pixels or those of some classes.

    The dataset's `y_range` says which stored values became -1 and 1: with 0 to 255 the unit is a level of 8 bit, with
    -1000 to 2000 a Hounsfield unit. Where y is stored as colours of Lab or as one-hot classes, metrics are given RGB,
    and the unit is one of its levels of 8 bit. All counted pixels have equal weight, whichever image they are in; with
    `classes` this differs from the mean over images. NaN if none is counted.

    classes  names of the classes whose pixels count, of a dataset with labels. Default: all pixels, labelled or not

    Raises UserError for a class that the dataset does not have.
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset, *, classes: tuple[str, ...] | None = None) -> None:
        low, high = find_range(dataset)
        self.protocol = {"range": [low, high]}
        self._unit = (high - low) / 2
        known = list(dataset.classes or ())
        if unknown := [name for name in classes or () if name not in known]:
            hint = did_you_mean(unknown[0], known) if known else ": it has no classes; remove the key"
            raise UserError(f"mae: classes: the dataset has no class '{unknown[0]}'{hint}")
        self._counted = None if classes is None else torch.tensor([known.index(name) for name in classes])

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"error": (B,) sum over the counted values, "values": (B,) their number}, float64."""
        errors = to_float64((batch.y - y_hat).abs()) * self._unit
        counted = torch.ones_like(errors[:, :1])
        if self._counted is not None:
            if batch.labels is None:
                raise UserError("mae: classes: an image has no labels; remove the key")
            if batch.labels.shape[-2:] != errors.shape[-2:]:
                raise UserError("mae: classes: labels and y have different sizes; remove the key")
            counted = torch.isin(batch.labels.cpu(), self._counted)[:, None].double()
        return {"error": (errors * counted).sum((1, 2, 3)), "values": counted.sum((1, 2, 3)) * errors.shape[1]}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": (statistics["error"].double().sum() / statistics["values"].double().sum()).item()}


class Pearson:
    """Pearson's correlation of ŷ and y over the pixels and channels of an image: -1 to 1, higher is better.

    It ignores how bright and how rich in contrast ŷ is. A constant ŷ counts as 0; an image with a constant y has no
    correlation and is left out; one with a NaN makes both numbers NaN.
    """

    version = "1"
    better = "higher"

    def __init__(self, dataset: Dataset) -> None:
        pass

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"moments": (B, 6)} float64: number, Σy, Σŷ, Σy², Σŷ², Σyŷ."""
        y, y_hat = to_float64(batch.y).flatten(1), to_float64(y_hat).flatten(1)
        number = torch.full_like(y[:, 0], y.shape[1])
        moments = (number, y.sum(1), y_hat.sum(1), (y * y).sum(1), (y_hat * y_hat).sum(1), (y * y_hat).sum(1))
        return {"moments": torch.stack(moments, dim=1)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over the images that have a correlation; `pooled`: over the pixels of all images."""
        moments = statistics["moments"].double()
        if not moments.isfinite().all():
            return {"value": float("nan"), "pooled": float("nan")}
        each, pooled = _correlation(moments), _correlation(moments.sum(0, keepdim=True))
        return {"value": each.nanmean().item(), "pooled": pooled.item()}


def _correlation(moments: Tensor) -> Tensor:
    """(B, 6) -> (B,); NaN without variance in y, 0 without variance in ŷ."""
    number, y, y_hat, yy, y_hat_y_hat, both = moments.unbind(1)
    variances = torch.stack([yy - y * y / number, y_hat_y_hat - y_hat * y_hat / number])
    y_is_flat, y_hat_is_flat = variances <= 1e-9 * number  # of values in [-1, 1]: rounding errors of a constant image
    correlation = (both - y * y_hat / number) / variances.clamp_min(1e-30).prod(0).sqrt()
    return correlation.masked_fill(y_hat_is_flat, 0.0).masked_fill(y_is_flat, float("nan"))
