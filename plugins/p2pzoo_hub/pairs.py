"""The dataset `hub-pairs`: pairs of image columns of a dataset on the hub, or of a local folder of tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from p2pzoo_datasets.pairs import Count, FilePairs, Range

from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.splits import Fractions, Splits, assign_splits
from p2pzoo.images.resize import ResizeMode
from p2pzoo.images.transparency import Background
from p2pzoo.plugin import Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_hub.names import RepoName
from p2pzoo_hub.tables import Row, Table, find_commit

USUAL_NAMES = {  # of splits on the hub
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


class HubPairs(FilePairs):
    """Pairs from two image columns. Other columns, such as prompts, are not read.

    The images are written to p2pzoo's cache once, as the bytes that they are in the tables, and read from there. A
    recipe that names no commit uses the newest one; `fingerprint` has it, so that a run is not resumed on other data.

    x            column of the inputs, such as "input_image"
    y            column of the targets, such as "edited_image"
    repo         dataset on the hub, "OWNER/NAME"
    folder       folder with the tables in place of `repo`: Parquet files, or what else the library `datasets` reads
    subset       name of the configuration, for a repository with several
    revision     branch, tag or commit of `repo`; default: the newest commit
    train_split  its split for training; default: "train"
    val_split    its split for validation; default: "validation" or "val". If it has none, pairs of train are taken
    test_split   its split for tests; default: "test". If it has none, pairs of train are taken
    block        column with the name of a pair's block: one place, scene or person. A block is in one split only where
                 pairs of train are taken, and in one fold only
    rows         number of rows that are read of each of its splits: the first ones; default: all

    `fractions` and `split_seed` say which pairs of train are validated or tested on where it has no such split. All
    other parameters: see `FilePairs`.

    Raises UserError for a dataset, a column or a split that does not exist, and for rows without images.
    """

    def __init__(
        self,
        split: Split,
        *,
        x: str,
        y: str,
        repo: str | None = None,
        folder: Path | None = None,
        subset: str | None = None,
        revision: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        block: str | None = None,
        rows: Count | None = None,
        size: tuple[Count, Count] | None = None,
        resize: ResizeMode = "none",
        max_pairs: Count | None = None,
        input_channels: Count | None = None,
        target_channels: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        input_range: Range | None = None,
        target_range: Range | None = None,
        background: Background | None = None,
    ) -> None:
        table = _make_table(repo, folder, revision, subset, x, y, block, rows)
        self.commit = table.commit
        extracted = table.extract()
        self._report_faults(extracted.faults)
        wanted = {"train": train_split, "val": val_split, "test": test_split}
        names = _choose_splits(extracted.splits, wanted, table.where)
        pairs = {part: extracted.splits[name] for part, name in names.items()}
        super().__init__(
            split, _assign(pairs, table.where, fractions, split_seed), table.where, size=size, resize=resize,
            max_pairs=max_pairs, channels=(input_channels, target_channels), ranges=(input_range, target_range),
            blocks={row.id: row.block for part in pairs.values() for row in part if row.block is not None},
            background=background,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Changes with the images of this split, and with the commit of the repository."""
        own = super().fingerprint
        return f"{own}-{self.commit[:12]}" if self.commit else own


def _make_table(
    repo: str | None,
    folder: Path | None,
    revision: str | None,
    subset: str | None,
    x: str,
    y: str,
    block: str | None,
    rows: int | None,
) -> Table:
    """Raises UserError for a repository that does not exist, ValueError for parameters that do not fit together."""
    if (repo is None) == (folder is None):
        raise ValueError('set either repo = "OWNER/NAME" or folder = "DIR"')
    if x == y:
        raise ValueError(f'x and y are one column, "{x}": name two')
    if folder is not None:
        if revision is not None:
            raise ValueError("revision: is for repo, and a folder has none: remove it")
        return Table(str(folder), None, None, Path(folder), subset, x, y, block, rows)
    where = f"dataset {repo}"
    name = RepoName.parse(repo if revision is None else f"{repo}@{revision}", where)
    return Table(where, name.repo, find_commit(name, where), None, subset, x, y, block, rows)


def _choose_splits(names: Collection[str], wanted: Mapping[str, str | None], where: str) -> dict[str, str]:
    """{"train", "val" or "test": its name on the hub}, without those that the dataset does not have.

    Raises UserError for a name that it does not have, without train, and for a name that stands twice.

    >>> _choose_splits(["train", "dev"], {"train": None, "val": None, "test": None}, "here")
    {'train': 'train', 'val': 'dev'}
    """
    chosen = {}
    for part in SPLITS:
        name = wanted[part]
        if name is not None and name not in names:
            hint = did_you_mean(name, names, names_to_list=list(names))
            raise UserError(f'{where}: {part}_split = "{name}": has no such split{hint}')
        if name is None:
            name = next((usual for usual in USUAL_NAMES[part] if usual in names), None)
        if name is not None:
            chosen[part] = name
    if "train" not in chosen:
        raise UserError(f"{where}: has no split 'train' (it has {', '.join(names) or 'none'}): set train_split")
    if len({*chosen.values()}) < len(chosen):
        raise UserError(f"{where}: one split would be used for two purposes ({chosen}): name others")
    return chosen


def _assign(pairs: Mapping[str, tuple[Row, ...]], where: str, fractions: Fractions, seed: int) -> Splits:
    """The pairs of each split. Where the dataset has no val or test, pairs or blocks of train are taken for it.

    Raises UserError where a split is left without pairs, ValueError for fractions that do not add up to 1.
    """
    if not pairs["train"]:
        raise UserError(f"{where}: its split for training has no pairs: set train_split")
    splits: Splits = {part: {row.id: (row.x, row.y) for row in pairs.get(part, ())} for part in SPLITS}
    # shares of train, and of the splits that the dataset does not have
    shares = [
        0.0 if part in pairs and part != "train" else share for part, share in zip(SPLITS, fractions, strict=True)
    ]
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions = {list(fractions)}: the shares of train, val and test must add up to 1")
    if len(pairs) == len(SPLITS) or (len(pairs) > 1 and not any(shares[1:])):
        return splits
    if not shares[0]:
        raise ValueError(f"fractions = {list(fractions)}: leaves no pair to train on")
    total = sum(shares)
    groups = {row.id: f"block {row.block}" if row.block is not None else row.id for row in pairs["train"]}
    of_groups = {group: splits["train"][id] for id, group in groups.items()}
    shares_left = (shares[0] / total, shares[1] / total, shares[2] / total)
    assigned = assign_splits({"": of_groups}, where, shares_left, seed)
    all_of_train = splits["train"]
    for part in SPLITS:
        if part == "train" or part not in pairs:
            splits[part] = {id: files for id, files in all_of_train.items() if groups[id] in assigned[part]}
    return splits
