"""`band-error`: errors of each band in its own units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo_geo.bands import SceneLayout


class BandError:
    """Errors of ŷ − y of each band in the band's units, over all valid pixels. Lower is better.

    `value`: the MAE, averaged over the bands; read it only if they share a unit. `mae_NAME`, `rmse_NAME` and
    `bias_NAME` (mean of ŷ − y): of the band with this description, or number. All valid pixels have equal weight,
    whichever image they are in. y beyond a band's scale counts as its limit, as the networks saw it.

    With the dataset `scenes`, pixels of the class "valid" count, and each band has its scale; with another dataset, the
    class of that name if there is one, else all pixels, and the dataset's `y_range`, or 0 to 255 where y is stored as
    colours of Lab or as one-hot classes: metrics are given RGB. NaN if no pixel counts.
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset) -> None:
        layout = getattr(dataset, "file_layout", None)
        bands = getattr(dataset, "y_bands", None) if isinstance(layout, SceneLayout) else None
        self._names = bands.labels() if bands else None
        alone = (0.0, 255.0) if getattr(dataset, "y_encoding", None) else dataset.y_range
        scales = bands.scales if bands else (alone,)
        self._units = torch.tensor([(high - low) / 2 for low, high in scales], dtype=torch.float64)
        self.protocol = {"scales": [[float(low), float(high)] for low, high in scales]}
        classes = list(dataset.classes or ())
        self._valid = classes.index("valid") if "valid" in classes else None

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"absolute", "square", "signed": (B, C) sums over valid pixels, "pixels": (B,) their number}, float64."""
        # float64 on the CPU: Apple's GPUs have none
        difference = (y_hat.cpu().double() - batch.y.cpu().double()) * self._units[:, None, None]
        counted = torch.ones_like(difference[:, :1])
        if self._valid is not None and batch.labels is not None:
            counted = (batch.labels.cpu() == self._valid)[:, None].double()
        sums = {"absolute": difference.abs(), "square": difference.square(), "signed": difference}
        return {
            **{name: (values * counted).sum((2, 3)) for name, values in sums.items()},
            "pixels": counted.sum((1, 2, 3)),
        }

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        pixels = statistics["pixels"].double().sum()
        mae, square, bias = (statistics[name].double().sum(0) / pixels for name in ("absolute", "square", "signed"))
        numbers = {"value": mae.mean().item()}
        for i, name in enumerate(self._names or [str(number) for number in range(1, len(mae) + 1)]):
            numbers |= {
                f"mae_{name}": mae[i].item(),
                f"rmse_{name}": square[i].sqrt().item(),
                f"bias_{name}": bias[i].item(),
            }
        return numbers
