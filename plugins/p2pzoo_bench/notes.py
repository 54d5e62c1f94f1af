"""Sentences about a table as a whole: the data and the time of `--data`, and the settings that [search] chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo.utils.plurals import format_count
from p2pzoo_bench.row_names import group_by_training, join_names, name_together
from p2pzoo_bench.table_columns import count_images


def describe_data(doc: Mapping[str, Any]) -> list[str]:
    """A line about the pairs, the training time and the images of a table of `--data`; [] of others.

    >>> data = {"summary": "20 pairs of mine.toml, one run for each row, tested on 4 of them", "budget": 60.0}
    >>> describe_data({"data": data, "rows": [{"images": 900}]})[0].partition(". ")[2]
    'Training time of each row: 1 minute. Each row trains on 900 images.'
    """
    data = doc.get("data")
    if not data:
        return []
    folds = doc.get("folds", 1)
    over = f", over {folds} folds" if folds > 1 else ""
    parts = [f"{data['summary']}."]
    if data["budget"] is None:
        parts.append("Each row trains for the length of its recipe, not for equal times.")
    else:
        parts.append(f"Training time of each row: {_format_time(data['budget'])}{over}.")
    images = count_images(doc)
    if len(images) == 1:
        parts.append(f"Each row trains on {images.pop():,} images{' in each fold' if folds > 1 else ''}.")
    elif images:
        each = " in each fold" if folds > 1 else ""
        parts.append(f"Rows train on {min(images):,} to {max(images):,} images{each}: see the column.")
    return [" ".join(parts)]


def _format_time(seconds: float) -> str:
    """
    >>> _format_time(1200), _format_time(90)
    ('20 minutes', '1 minute 30 seconds')
    """
    minutes, rest = divmod(round(seconds), 60)
    return " ".join(format_count(n, word) for n, word in ((minutes, "minute"), (rest, "second")) if n)


def describe_chosen(doc: Mapping[str, Any]) -> list[str]:
    """A note for each training with the settings that [search] chose in each fold; folds that agree, together."""
    chosen = doc["search"].get("chosen", {})
    notes = []
    for rows in group_by_training([row for row in doc["rows"] if chosen.get(row["name"])]):
        by_settings: dict[tuple[str, ...], list[int]] = {}
        for fold, settings in enumerate(chosen[rows[0]["name"]]):
            by_settings.setdefault(tuple(settings), []).append(fold)
        parts = (
            f"{_name_folds(folds, doc, len(by_settings))}: {', '.join(settings) or 'those of the recipe'}"
            for settings, folds in by_settings.items()
        )
        notes.append(f"Settings of {name_together([row['label'] for row in rows])}: {'; '.join(parts)}.")
    return notes


def _name_folds(folds: Sequence[int], doc: Mapping[str, Any], groups: int) -> str:
    word = "fold" if "folds" in doc else "seed"
    if groups == 1 and len(folds) > 1:
        return f"all {word}s"
    return f"{word}{'s' * (len(folds) > 1)} {join_names([*map(str, folds)])}"
