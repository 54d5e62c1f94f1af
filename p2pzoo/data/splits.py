"""Assigns pairs to splits: by their sub-folder, else by a hash of their name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from p2pzoo.data.pairing import SPLITS, Files
from p2pzoo.plugin.batch import Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.rng import derive_seed

Share = Annotated[float, Field(ge=0, le=1)]
Fractions = tuple[Share, Share, Share]  # shares of train, val and test
Splits = dict[str, dict[str, Files]]  # split -> id -> files

_MAX_SEEDS_TRIED = 1000  # takes milliseconds; with a few pairs one of the first seeds suffices


def assign_splits(
    pairs: Mapping[str, Mapping[str, Files]],
    where: str,
    fractions: Fractions,
    seed: int,
    *,
    unit: str = "",
    remedy: str = "",
) -> Splits:
    """The pairs of `find_pairs` -> splits: those of the sub-folders, else by name.

    Ids of pairs in sub-folders begin with the sub-folder's name. Raises UserError where train, or both val and test,
    have no pairs, and ValueError for fractions that do not add up to 1.

    unit, remedy: of what is few and large, such as "block" and "make `block` smaller": then every split with a share
        above 0 must get one. remedy: for the message.
    """
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions = {list(fractions)}: the shares of train, val and test must add up to 1")
    if "" in pairs:
        if unit:
            _refuse_empty_splits(pairs[""], where, fractions, seed, unit, remedy)
        splits = _split_by_name(pairs[""], fractions, seed)
        if not has_enough_pairs(splits):
            raise UserError(f"{where}: too few pairs: {_suggest_seed(pairs[''], splits, fractions)}")
    else:
        splits = {s: {f"{s}-{stem}": files for stem, files in pairs.get(s, {}).items()} for s in SPLITS}
        if not has_enough_pairs(splits):
            folders = " and ".join(f"{name}/" for name in pairs)
            raise UserError(
                f"{where}: only {folders} found; expected train/ and val/ or test/ (or no sub-folders: then pairs are "
                "assigned to splits by `fractions`)"
            )
    return splits


def _refuse_empty_splits(
    pairs: Mapping[str, Files], where: str, fractions: Fractions, seed: int, unit: str, remedy: str
) -> None:
    wanted = [split for split, share in zip(SPLITS, fractions, strict=True) if share > 0]
    if len(pairs) < len(wanted):
        raise UserError(f"{where}: {format_count(len(pairs), unit)} for {len(wanted)} splits: {remedy}")

    def count(seed: int) -> list[int]:
        splits = _split_by_name(pairs, fractions, seed)
        return [len(splits[split]) for split in wanted]

    if all(counts := count(seed)):
        return
    listing = ", ".join(f"{number} in {split}" for number, split in zip(counts, wanted, strict=True))
    better = next((other for other in range(_MAX_SEEDS_TRIED) if all(count(other))), None)
    advice = remedy if better is None else f"{remedy}, or set split_seed = {better}"
    raise UserError(f"{where}: too few {unit}s: {listing}: {advice}")


def split_of(stem: str, fractions: Fractions, seed: int) -> str:
    """The split of a pair depends only on its name, so that it stays the same when pairs are added or removed.

    >>> split_of("001", (1.0, 0.0, 0.0), seed=0)
    'train'
    """
    position = derive_seed(seed, "part", stem) / 2**63  # in [0, 1)
    if position < fractions[0]:
        return "train"
    return "val" if position < fractions[0] + fractions[1] else "test"


def _split_by_name(pairs: Mapping[str, Files], fractions: Fractions, seed: int) -> Splits:
    splits: Splits = {split: {} for split in SPLITS}
    for stem, files in pairs.items():
        splits[split_of(stem, fractions, seed)][stem] = files
    return splits


def has_enough_pairs(splits: Splits) -> bool:
    """Whether train has pairs, and val or test has."""
    return bool(splits["train"] and (splits["val"] or splits["test"]))


def _suggest_seed(pairs: Mapping[str, Files], splits: Splits, fractions: Fractions) -> str:
    """Advice where a split got no pair by chance: the first seed with which every split gets one."""
    if len(pairs) < 2:
        return "there is 1, and train needs one, and val or test another"
    wanted = [split for split, share in zip(SPLITS, fractions, strict=True) if share > 0][: len(pairs)]
    for seed in range(_MAX_SEEDS_TRIED if "train" in wanted and len(wanted) > 1 else 0):
        other = _split_by_name(pairs, fractions, seed)
        if has_enough_pairs(other) and all(other[split] for split in wanted):
            return f"{_format_counts(splits)}; split_seed = {seed} would give {_format_counts(other)}"
    return f"{_format_counts(splits)}: make sub-folders train/, val/ and test/, or change `fractions`"


def _format_counts(splits: Splits) -> str:
    return ", ".join(f"{len(pairs)} in {split}" for split, pairs in splits.items())


def fallback_split(splits: Splits, split: Split, where: str) -> dict[str, Files]:
    """The pairs of a split. Where val or test has none: the pairs of the other, with a warning."""
    if not splits[split]:
        other = "test" if split == "val" else "val"
        warnings.warn(f"{where}: no pairs in {split}; {other} is used instead", stacklevel=4)
        return splits[other]
    return splits[split]
