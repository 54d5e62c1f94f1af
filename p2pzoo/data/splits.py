"""Which pair is in which split: by its sub-folder, else by its name alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from p2pzoo.data.pairing import SPLITS, Files
from p2pzoo.plugin.batch import Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.rng import derive_seed

Share = Annotated[float, Field(ge=0, le=1)]
Fractions = tuple[Share, Share, Share]  # of train, val and test
Splits = dict[str, dict[str, Files]]  # split -> id -> files

SEEDS_TRIED = 1000


def assign_splits(found: Mapping[str, Mapping[str, Files]], where: str, fractions: Fractions, seed: int) -> Splits:
    """What `find_pairs` found -> splits: those of the sub-folders, else by name. Ids begin with the sub-folder's name.

    Raises UserError where train, or both val and test, have no pairs; ValueError for fractions that do not add up to 1.
    """
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions = {list(fractions)}: the shares of train, val and test must add up to 1")
    if "" in found:
        dealt = _by_name(found[""], fractions, seed)
        if not enough(dealt):
            raise UserError(f"{where}: too few pairs: {_other_seed(found[''], dealt, fractions)}")
    else:
        dealt = {s: {f"{s}-{stem}": files for stem, files in found.get(s, {}).items()} for s in SPLITS}
        if not enough(dealt):
            there = " and ".join(f"{name}/" for name in found)
            raise UserError(
                f"{where}: found {there} only; expected train/ and val/ or test/ (or no sub-folders: then pairs are "
                "dealt out by `fractions`)"
            )
    return dealt


def split_of(stem: str, fractions: Fractions, seed: int) -> str:
    """The split of a pair: a function of its name, so that it stays where it is whatever is added or removed."""
    place = derive_seed(seed, "part", stem) / 2**63
    if place < fractions[0]:
        return "train"
    return "val" if place < fractions[0] + fractions[1] else "test"


def _by_name(pairs: Mapping[str, Files], fractions: Fractions, seed: int) -> Splits:
    dealt: Splits = {split: {} for split in SPLITS}
    for stem, files in pairs.items():
        dealt[split_of(stem, fractions, seed)][stem] = files
    return dealt


def enough(dealt: Splits) -> bool:
    """Whether there is something to train on, and something else to look at."""
    return bool(dealt["train"] and (dealt["val"] or dealt["test"]))


def _other_seed(pairs: Mapping[str, Files], dealt: Splits, fractions: Fractions) -> str:
    """What to say of so few pairs that chance gave a split none: the first seed that gives each its share."""
    if len(pairs) < 2:
        return "there is one, and train, and val or test, need one each"
    wanted = [split for split, share in zip(SPLITS, fractions, strict=True) if share > 0][: len(pairs)]
    for seed in range(SEEDS_TRIED if "train" in wanted and len(wanted) > 1 else 0):
        other = _by_name(pairs, fractions, seed)
        if enough(other) and all(other[split] for split in wanted):
            return f"{_told(dealt)}; split_seed = {seed} would give {_told(other)}"
    return f"{_told(dealt)}: make sub-folders train/, val/ and test/, or change `fractions`"


def _told(dealt: Splits) -> str:
    return ", ".join(f"{len(pairs)} in {split}" for split, pairs in dealt.items())


def fallback_split(dealt: Splits, split: Split, where: str) -> dict[str, Files]:
    """The pairs of a split; where val or test has none those of the other, with a warning."""
    if not dealt[split]:
        other = "test" if split == "val" else "val"
        warnings.warn(f"{where}: no pairs in {split}; {other} stands in for it", stacklevel=4)
        return dealt[other]
    return dealt[split]
