"""Which classes were taken for which: the matrix, and the three numbers that the paper reads off it. Imports torch.

As in the authors' evaluator (scripts/eval_cityscapes of phillipi/pix2pix): one matrix of all images, not a mean of
images' numbers.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from p2pzoo.plugin import Dataset
from p2pzoo.utils.errors import UserError

Absent = Literal["zero", "skip"]
LEAST = 1e-12  # the evaluator's: keeps 0 / 0 from being NaN, and so makes it 0


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: [i, j] counts the pixels of class i that were taken for class j.

    labels     (H, W) integers; pixels outside 0 … classes - 1 (255 for "ignore", -1) do not count
    predicted  (H, W) integers in 0 … classes - 1
    """
    counted = (labels >= 0) & (labels < classes)
    pairs = labels[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: Tensor, *, scored: Sequence[int], absent: Absent) -> dict[str, float]:
    """The numbers of one matrix: {"value": pixel accuracy, "class_accuracy", "class_iou"}, all 0 to 1.

    matrix  (C, C) counts, rows are the truth
    scored  the classes that the two means are taken over; pixels of the others count in the matrix like all
    absent  what a class without a pixel of truth is to a mean: 0 ("zero", the evaluator's), or left out ("skip")

    The pixel accuracy is NaN where no pixel counts; the means are, too, where "skip" leaves no class.
    """
    matrix = matrix.double()
    hits, truth, told = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    mean_over = [c for c in scored if absent == "zero" or truth[c] > 0]
    return {
        "value": (hits.sum() / matrix.sum()).item(),
        "class_accuracy": (hits / (truth + LEAST))[mean_over].mean().item(),
        "class_iou": (hits / (truth + told - hits + LEAST))[mean_over].mean().item(),
    }


def scored_classes(dataset: Dataset, metric: str) -> list[int]:
    """The indices of the classes that count in means: all but the dataset's `unscored`. Raises UserError."""
    if not dataset.classes:
        raise UserError(f"{metric} needs classes, and this dataset names none")
    unscored = getattr(dataset, "unscored", ())
    if unknown := [name for name in unscored if name not in dataset.classes]:
        raise UserError(f"the dataset's `unscored` names classes that it does not have: {', '.join(unknown)}")
    return [index for index, name in enumerate(dataset.classes) if name not in unscored]
