"""The confusion matrix of predicted classes, and the paper's three numbers of it. Imports torch.

As in the authors' evaluator (scripts/eval_cityscapes of phillipi/pix2pix), there is one matrix of all images: numbers
are not averaged over images.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from p2pzoo.plugin import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.levels import to_float64

Absent = Literal["zero", "skip"]
EPSILON = 1e-12  # the evaluator's: turns 0 / 0 into 0


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: [i, j] counts the pixels of class i that were predicted as class j.

    labels     (H, W) integers; pixels outside 0 … classes - 1 (255 for "ignore", -1) are not counted
    predicted  (H, W) integers in 0 … classes - 1

    >>> confusion_matrix(torch.tensor([[0, 0, 255]]), torch.tensor([[0, 1, 1]]), 2).tolist()
    [[1, 1], [0, 0]]
    """
    counted = (labels >= 0) & (labels < classes)
    pairs = labels[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: Tensor, *, scored: Sequence[int], absent: Absent) -> dict[str, float]:
    """The numbers of one matrix: {"value": pixel accuracy, "class_accuracy", "class_iou"}, all 0 to 1.

    matrix  (C, C) counts; rows are the true classes
    scored  the classes in the two means; pixels of the other classes still count in the matrix
    absent  how a class without a true pixel enters a mean: as 0 ("zero", as in the evaluator) or not at all ("skip")

    The pixel accuracy is NaN if no pixel is counted. The means are NaN then, and if "skip" leaves no class.
    """
    matrix = to_float64(matrix)
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    mean_over = [c for c in scored if absent == "zero" or true[c] > 0]
    return {
        "value": (hits.sum() / matrix.sum()).item(),
        "class_accuracy": (hits / (true + EPSILON))[mean_over].mean().item(),
        "class_iou": (hits / (true + predicted - hits + EPSILON))[mean_over].mean().item(),
    }


def scored_classes(dataset: Dataset, metric: str) -> list[int]:
    """The indices of the classes that enter the means: all except the dataset's `unscored`.

    Raises UserError, which names `metric`, if the dataset has no classes or `unscored` names unknown ones.
    """
    if not dataset.classes:
        raise UserError(f"{metric} needs classes, and this dataset has none")
    unscored = getattr(dataset, "unscored", ())
    if unknown := [name for name in unscored if name not in dataset.classes]:
        raise UserError(f"the dataset's `unscored` names classes that it does not have: {', '.join(unknown)}")
    return [index for index, name in enumerate(dataset.classes) if name not in unscored]
