"""Folds of any dataset: `[dataset] folds = 3, fold = 0` splits its pairs by blocks: each is tested once.

The pairs of the dataset's own splits are put together. A block (a scene, a patient; a pair without one is its own) is
in one split only. Blocks are ordered by a hash of their names and dealt out to the folds, each to the smallest. Fold f
is the test split; of the other blocks every tenth, at least one, is the validation split, the rest is trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SPLITS = ("train", "val", "test")
_VAL_SHARE = 10  # of the blocks that are not tested, one in so many


@dataclass(frozen=True)
class Fold:
    """Which fold is tested, of how many."""

    fold: int
    folds: int

    @property
    def table(self) -> dict[str, int]:
        """As a recipe writes it."""
        return {"folds": self.folds, "fold": self.fold}

    def open(self, build: Callable[[str], Any], split: str) -> FoldedDataset:
        """The pairs of this split of the fold.

        build  returns one of the dataset's own splits, by name

        Raises ValueError if there are fewer blocks than folds need.
        """
        parts = [build(name) for name in _SPLITS]
        places = _pool(parts)
        blocks = {place: _block(parts, place) for place in places}
        split_of = assign(blocks.values(), self)
        return FoldedDataset(parts, [place for place in places if split_of[blocks[place]] == split])


class FoldedDataset:
    """Some pairs of several datasets that agree in all but their pairs. Other attributes are those of the first.

    places  (dataset, index in it) of each pair
    """

    def __init__(self, parts: Sequence[Any], places: Sequence[tuple[int, int]]) -> None:
        self._parts, self._places = parts, places
        for name in ("files", "file_shapes"):
            if all(hasattr(part, name) for part in parts):
                setattr(self, name, [getattr(parts[part], name)[index] for part, index in places])
        if all(hasattr(part, "original") for part in parts):
            self.original = lambda index: parts[places[index][0]].original(places[index][1])
        if all(hasattr(part, "fingerprint") for part in parts):
            text = repr([[part.fingerprint for part in parts], list(places)])
            self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        part, own = self._places[index]
        return self._parts[part][own]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("files", "file_shapes", "original", "fingerprint", "blocks"):
            raise AttributeError(name)
        return getattr(self._parts[0], name)


def assign(blocks: Any, fold: Fold) -> Mapping[str, str]:
    """{block: its split}. blocks: one for each pair.

    Raises ValueError if a split would be empty.

    >>> sorted(assign(["a", "a", "b", "c", "d"], Fold(0, 2)).values())
    ['test', 'test', 'train', 'val']
    """
    sizes: dict[str, int] = {}
    for block in blocks:
        sizes[block] = sizes.get(block, 0) + 1
    if len(sizes) < fold.folds + 1:
        raise ValueError(f"{fold.folds} folds need {fold.folds + 1} blocks or more, and the data has {len(sizes)}")
    counts = [0] * fold.folds
    fold_of = {}
    for block in sorted(sizes, key=lambda block: hashlib.sha256(block.encode()).digest()):
        fold_of[block] = counts.index(min(counts))
        counts[fold_of[block]] += sizes[block]
    rest = [block for block in fold_of if fold_of[block] != fold.fold]
    if len(rest) < 2:
        raise ValueError(
            f"fold {fold.fold} of {fold.folds} tests all blocks but '{rest[0]}', so that none is left to train on: use "
            "more folds"
        )
    val = {*rest[::_VAL_SHARE]}
    return {block: "test" if fold_of[block] == fold.fold else "val" if block in val else "train" for block in fold_of}


def _pool(parts: Sequence[Any]) -> list[tuple[int, int]]:
    """The places of all pairs. A pair that two splits share, as where val is test, is there once."""
    places: dict[Any, tuple[int, int]] = {}
    repeated = () if hasattr(parts[1], "files") or not _are_equal(*parts[1:]) else (2,)
    for part, dataset in enumerate(parts):
        files = getattr(dataset, "files", None)
        seen: Counter[Any] = Counter()  # the windows of a stack share its files: they differ in their number
        for index in range(0 if part in repeated else len(dataset)):
            key = tuple(files[index]) if files is not None else (part, index)
            seen[key] += 1
            places.setdefault((key, seen[key]), (part, index))
    return list(places.values())


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two splits are one: their lengths and blocks, and the names and pixels of about 16 pairs."""
    if len(a) != len(b) or [*getattr(a, "blocks", ())] != [*getattr(b, "blocks", ())]:
        return False
    pairs = ((a[index], b[index]) for index in range(0, len(a), max(1, len(a) // 16)))
    return all(p.id == q.id and p.x.tobytes() == q.x.tobytes() and p.y.tobytes() == q.y.tobytes() for p, q in pairs)


def _block(parts: Sequence[Any], place: tuple[int, int]) -> str:
    """The block of a pair, else a name of the pair itself that does not depend on the folder that the data is in."""
    part, index = place
    dataset = parts[part]
    known = dataset.blocks[index] if hasattr(dataset, "blocks") else dataset[index].block
    if known is not None:
        return f"block {known}"
    if hasattr(dataset, "files"):
        return "pair " + " ".join(f"{file.parent.name}/{file.name}" for file in dataset.files[index])
    return f"pair {_SPLITS[part]} {index}"
