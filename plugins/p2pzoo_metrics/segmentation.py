"""`fcn_score` (Tables 1 to 3) and `label_accuracy` (Table 6): does ŷ show what its label map says?

Both count pixels in one confusion matrix of all images, as the authors' evaluator does (`confusion.py`). Label maps are
never resized: ŷ is resized to them. Imports torch; timm when a scorer is loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from p2pzoo.plugin import AddedLater, Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_metrics.confusion import Absent, class_scores, confusion_matrix, scored_classes
from p2pzoo_metrics.levels import to_levels
from p2pzoo_metrics.scorer import TRAIN_COMMAND, Scorer, measure_scorer_once

RGB_CHANNELS = 3


class _ClassMetric:
    """What the two share: a confusion matrix per image, and the numbers of their sum.

    absent  how a class without a true pixel enters the two means: as 0, as in the authors' evaluator ("zero"), or not
            at all ("skip")
    """

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
        """{"confusion": (B, C, C) int64}, rows are the true classes, for ŷ (B, channels, H, W) in [-1, 1]."""
        assert batch.labels is not None  # needs = ("labels",)
        if not y_hat.isfinite().all():  # counts cannot hold NaN: some class would be predicted anyway
            raise UserError(f"{self.name}: a translation holds values that are nan or inf")
        images = zip(batch.labels, to_levels(y_hat), strict=True)
        count = len(self._classes)
        matrices = [confusion_matrix(labels, self._predict(image, labels.shape), count) for labels, image in images]
        return {"confusion": torch.stack(matrices)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers from 0 to 1. `value`: the pixel accuracy; `class_accuracy`, `class_iou`: means over the classes.

        `largest_class`: what the same answer for every pixel reaches in pixel accuracy, the share of the largest class.
        """
        matrix = statistics["confusion"].sum(0)
        largest = (matrix.sum(1).max() / matrix.sum()).item()
        return {**class_scores(matrix, scored=self._scored, absent=self._absent), "largest_class": largest}

    def _predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """The class of each pixel, (*size) int64, of an image (C, H, W) of whole numbers 0 … 255."""
        raise NotImplementedError


class FCNScore(_ClassMetric):
    """How well a segmentation network finds in ŷ what the label map says (§4.1): 0 to 1, higher is better.

    weights  the scorer's file. Default: the dataset's own (`scorer`)
    scorer   name of another scorer of the dataset (one of its `scorers`), instead of `weights`: earth has "robust"
    absent   how a class without a true pixel enters the two means: as 0, as in the authors' evaluator ("zero"), or not
             at all ("skip")

    ŷ is rounded to 8 bit, and enlarged bilinearly if the labels have more pixels. `trust`, or the first measured image,
    starts the scorer's self-check on the real photos y of the evaluated split. If it does not reach the minimum in the
    scorer's file, there is no number (UserError): a scorer that misreads photos cannot judge a generator.

    Raises UserError if there is no scorer, or if its classes are not the dataset's.
    """

    name = "fcn_score"

    def __init__(
        self,
        dataset: Dataset,
        *,
        weights: Path | None = None,
        absent: Absent = "zero",
        scorer: Annotated[str | None, AddedLater] = None,
    ) -> None:
        super().__init__(dataset, absent)
        path = _find_scorer(dataset, weights, scorer)
        self._dataset = dataset
        self._scorer = Scorer(path)
        self._is_trusted = False
        if self._scorer.classes != list(self._classes):
            raise UserError(
                f"{path}: the scorer's classes are {', '.join(self._scorer.classes)}, "
                f"the dataset's are {', '.join(self._classes)}: train one with {TRAIN_COMMAND}"
            )
        self.protocol["weights"] = self._scorer.digest  # replaces the path, which does not identify a file

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        self.trust(y_hat.device)
        return super().measure(batch, y_hat)

    def trust(self, device: torch.device) -> None:
        """Run the scorer's self-check, once. Raises UserError if it fails."""
        if not self._is_trusted:
            self._self_check(device)
            self._is_trusted = True

    def _predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        return self._scorer.classify(image, size)

    def _self_check(self, device: torch.device) -> None:
        minima = self._scorer.header["self_check"]
        reached = measure_scorer_once(self._scorer, self._dataset, device)
        if not all(reached[name] >= minimum for name, minimum in minima.items()):  # NaN fails, too
            numbers = ", ".join(f"{name} {reached[name]:.3f} (at least {least})" for name, least in minima.items())
            raise UserError(
                f"fcn_score: {self._scorer.path} misreads the real photos of this split: {numbers}. "
                f"Its scores would mean nothing: train a scorer on this data with {TRAIN_COMMAND}"
            )


def _find_scorer(dataset: Dataset, weights: Path | None, name: str | None) -> Path:
    """The file of the scorer that a recipe asks for. Raises UserError if there is none."""
    if weights and name:
        raise UserError(f'weights = "{weights}" and scorer = "{name}": each names a scorer; remove one')
    if name:
        scorers: Mapping[str, Path] = getattr(dataset, "scorers", {})
        if name not in scorers:
            known = did_you_mean(name, scorers) if scorers else "; none of its scorers has a name: use weights"
            raise UserError(f"the dataset has no scorer '{name}'{known}")
        return scorers[name]
    path = weights or getattr(dataset, "scorer", None)
    if path is None:
        raise UserError(
            "this dataset has no scorer for its y: if y are photos, train one with "
            f'{TRAIN_COMMAND} and set weights = "FILE"'
        )
    return Path(path)


class LabelAccuracy(_ClassMetric):
    """How many pixels of a translated label map are right, for photo→labels (Table 6): 0 to 1, higher is better.

    absent  how a class without a true pixel enters the two means: as 0, as in the authors' evaluator ("zero"), or not
            at all ("skip")

    Each pixel of ŷ, rounded to 8 bit, gets the class with the nearest colour in the dataset's palette (L2 in RGB; the
    first of two equally near). If the labels have more pixels, each gets the class of the nearest pixel of ŷ. The
    authors published no script for this table.

    Raises UserError if the dataset has no palette, or ŷ is not RGB.
    """

    name = "label_accuracy"

    def __init__(self, dataset: Dataset, *, absent: Absent = "zero") -> None:
        super().__init__(dataset, absent)
        if not dataset.palette or len(dataset.palette) != len(self._classes):
            raise UserError("label_accuracy needs a palette of one RGB colour per class, and this dataset has none")
        self._palette = torch.tensor(dataset.palette, dtype=torch.float32)
        self.protocol["palette"] = [list(colour) for colour in dataset.palette]

    def _predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        if image.shape[0] != RGB_CHANNELS:
            count = format_count(image.shape[0], "channel")
            raise UserError(f"label_accuracy compares RGB with the palette, and ŷ has {count}")
        colours = self._palette.to(image.device)
        # Whole numbers below 2¹⁸: exact in float32, so equal distances compare as equal.
        distances = (image[None] - colours[:, :, None, None]).square().sum(1)
        nearest = distances.argmin(0)
        if nearest.shape == tuple(size):
            return nearest
        return F.interpolate(nearest[None, None].float(), size=tuple(size), mode="nearest-exact")[0, 0].long()
