"""`fcn_score` (Tables 1 to 3) and `label_accuracy` (Table 6): does ŷ show what its label map says?

Both count pixels in one confusion matrix of all images, as the authors' evaluator does (`confusion`). Label maps are
never resized: ŷ is brought to theirs. Imports torch, and timm with the scorer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.confusion import Absent, class_scores, confusion, scored_classes
from p2pzoo_metrics.levels import levels
from p2pzoo_metrics.scorer import Scorer, command, measured

RGB = 3


class _PerClass:
    """What the two share: the matrix of each image, and the numbers of their sum."""

    version = "1"
    better = "higher"
    name: str  # for messages

    def __init__(self, dataset: Dataset, absent: Absent) -> None:
        self._scored = scored_classes(dataset, self.name)
        self._classes: Sequence[str] = dataset.classes or ()
        self._absent = absent
        unscored = [name for index, name in enumerate(self._classes) if index not in self._scored]
        self.protocol: dict[str, Any] = {"classes": list(self._classes), "unscored": unscored}

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"confusion": (B, C, C) int64}, rows are the truth, for ŷ (B, channels, H, W) in [-1, 1]."""
        assert batch.labels is not None  # needs = ("labels",)
        if not y_hat.isfinite().all():  # counts cannot show it, and a class would be found all the same
            raise UserError(f"{self.name}: a translation holds values that are nan or inf")
        images = zip(batch.labels, levels(y_hat), strict=True)
        told = [confusion(labels, self._told(image, labels.shape), len(self._classes)) for labels, image in images]
        return {"confusion": torch.stack(told)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the pixel accuracy; `class_accuracy` and `class_iou`: means over the classes. All 0 to 1."""
        return class_scores(statistics["confusion"].sum(0), scored=self._scored, absent=self._absent)

    def _told(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """The class of each pixel, (*size) int64, in an image (C, H, W) of whole numbers 0 … 255."""
        raise NotImplementedError


class FCNScore(_PerClass):
    """How well a segmentation network recognises in ŷ what its label map says (§4.1): higher is better, 0 to 1.

    weights  the scorer's file. Default: the one that the dataset brings along (`scorer`)
    absent   what a class that no pixel of the evaluated labels has is to the two means: 0, as in the authors'
             evaluator ("zero"), or nothing ("skip")

    ŷ is rounded to 8 bit, and enlarged bilinearly where the labels have more pixels. `trust`, or the first image that
    is measured, starts the scorer's self-check: where real photos y of the evaluated split do not reach what the
    scorer's file asks for, there is no number (UserError): one that misreads photos cannot judge a generator.

    Raises UserError where there is no scorer, or one of other classes.
    """

    name = "fcn_score"

    def __init__(self, dataset: Dataset, *, weights: Path | None = None, absent: Absent = "zero") -> None:
        super().__init__(dataset, absent)
        path = weights or getattr(dataset, "scorer", None)
        if path is None:
            raise UserError(
                "no scorer for the y of this dataset: if y are photos, make one of them with "
                f'{command()} and set weights = "FILE"'
            )
        self._dataset = dataset
        self._scorer = Scorer(Path(path))
        self._trusted = False
        if self._scorer.classes != list(self._classes):
            raise UserError(
                f"{path}: a scorer of the classes {', '.join(self._scorer.classes)}; "
                f"the dataset's are {', '.join(self._classes)}"
            )
        self.protocol["weights"] = self._scorer.digest  # in place of the path, which says nothing

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        self.trust(y_hat.device)
        return super().measure(batch, y_hat)

    def trust(self, device: torch.device) -> None:
        """The scorer's self-check, once. Raises UserError."""
        if not self._trusted:
            self._self_check(device)
            self._trusted = True

    def _told(self, image: Tensor, size: Sequence[int]) -> Tensor:
        return self._scorer.classify(image, size)

    def _self_check(self, device: torch.device) -> None:
        asked = self._scorer.header["self_check"]
        reached = measured(self._scorer, self._dataset, device)
        if not all(reached[name] >= least for name, least in asked.items()):  # NaN fails, too
            told = ", ".join(f"{name} {reached[name]:.3f} (at least {least})" for name, least in asked.items())
            raise UserError(
                f"fcn_score: {self._scorer.path} misreads the real photos of this split: {told}. "
                f"No score by it: make a scorer of this data with {command()}"
            )


class LabelAccuracy(_PerClass):
    """How many pixels of a translated label map are right, for photo→labels (Table 6): higher is better, 0 to 1.

    absent  as in `FCNScore`

    A pixel of ŷ, rounded to 8 bit, is of the class whose colour in the dataset's palette is nearest (L2 in RGB; the
    first of two equally near). Where the labels have more pixels, each takes the class of the nearest pixel of ŷ. The
    authors published no script for this table.

    Raises UserError where the dataset has no palette, or ŷ is not RGB.
    """

    name = "label_accuracy"

    def __init__(self, dataset: Dataset, *, absent: Absent = "zero") -> None:
        super().__init__(dataset, absent)
        if not dataset.palette or len(dataset.palette) != len(self._classes):
            raise UserError("label_accuracy needs a palette of one RGB colour per class, and this dataset has none")
        self._palette = torch.tensor(dataset.palette, dtype=torch.float32)
        self.protocol["palette"] = [list(colour) for colour in dataset.palette]

    def _told(self, image: Tensor, size: Sequence[int]) -> Tensor:
        if image.shape[0] != RGB:
            raise UserError(f"label_accuracy compares RGB with the palette, and ŷ has {image.shape[0]} channels")
        colours = self._palette.to(image.device)
        # whole numbers below 2¹⁸: float32 has them exactly, so that ties are ties
        distances = (image[None] - colours[:, :, None, None]).square().sum(1)
        nearest = distances.argmin(0)
        if nearest.shape == tuple(size):
            return nearest
        return F.interpolate(nearest[None, None].float(), size=tuple(size), mode="nearest-exact")[0, 0].long()
