"""What the metrics of a table's answer measure, a line for each, for readers who know none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo_bench.row_names import group_by_training, join_names, name_together

ONE_SAMPLE_HERE = "Methods with noise are judged by one sample here."
TEXTS = {  # by the name of the component; of others, the summary of `p2pzoo list`
    "l1": "mean difference of a translation from the real image, for values from −1 to 1",
    "psnr": "peak signal-to-noise ratio in dB: the squared difference from the real image, as a logarithm",
    "ssim": "likeness of the structure of a translation and the real image, 1 if they are equal",
    "crps": "distance of the real image from the translations of one input, all together; without noise it is L1",
    "kid": "distance of the translations as a set from the real images, in the features of an image classifier",
    "frechet": "distance of the translations as a set from the real images, in the features of an image classifier",
    "lab_histogram": "how far the colours of a translation and of the real image overlap, 1 if they are equal",
    "fcn_score": "how well a segmentation network, trained on real images, finds the right classes in the translations",
    "label_accuracy": "share of the pixels of a translated label map that have the right class",
}
TEXTS["kid_efficientnet_lite0"] = TEXTS["kid"]
PAIRED = ("l1", "psnr", "ssim", "mae")  # best for the mean or median of all answers, which no sample is


def is_judged_by_one_sample(column: Mapping[str, Any]) -> bool:
    """Whether a column compares one translation of each input with the real image, pixel by pixel.

    >>> is_judged_by_one_sample({"use": "metrics:l1"}), is_judged_by_one_sample({"use": "metrics:crps"})
    (True, False)
    """
    return _name(column) in PAIRED


def explain_metrics(columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each column: what it measures, and which direction is better; one about methods with noise.

    columns  of the document, with "use" and "summary" of their metrics

    >>> column = {"heading": "L1", "use": "metrics:l1", "better": "lower"}
    >>> explain_metrics([column], [])
    ['L1: mean difference of a translation from the real image, for values from −1 to 1. Lower is better.']
    """
    lines = []
    for column in columns:
        text = TEXTS.get(_name(column)) or _without_direction(column.get("summary", "")) or "no description"
        lines.append(f"{column['heading']}: {text}. {column['better'].capitalize()} is better.")
    noisy = [name_together([row["label"] for row in method]) for method in group_by_training(_with_noise(rows))]
    headings = [column["heading"] for column in columns if is_judged_by_one_sample(column)]
    if noisy and headings:
        are, them = ("is that", "it") if len(headings) == 1 else ("are those", "them")
        lines.append(
            f"{join_names(headings)} of methods with noise ({join_names(noisy)}) {are} of one sample. Even a perfect "
            f"sampler is worse in {them} than the median of its samples, which a method without noise can give: so a "
            f"method with noise that is behind in {them} need not be the worse method."
        )
    return lines


def _with_noise(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("noise")]


def _without_direction(summary: str) -> str:
    return summary.removesuffix("; lower is better").removesuffix("; higher is better")


def _name(column: Mapping[str, Any]) -> str:
    return str(column.get("use", "")).rpartition(":")[2]
