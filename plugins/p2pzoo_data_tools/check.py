"""The dataset doctor: what is wrong, or suspicious, with the pairs that a recipe trains and is measured on.

Each pair is read once. What is kept of it is small, whatever its size: its digests, hashes and two
pictures of 16 × 16.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from p2pzoo.config.experiment import Component
from p2pzoo.data.findings import Case, Finding, Place, findings_of
from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.validation import Validator, place_of, spread
from p2pzoo.plugin import Dataset, Pair, ProgressBar, Split
from p2pzoo.utils.errors import Fault, UserError
from p2pzoo_data_tools.alignment import Registration
from p2pzoo_data_tools.near_duplicates import Looks, agree, hash_image, near

QUICK = 500  # pairs of a split that a quick check looks at
SHIFT_PAIRS = 500  # of a split, so many show whether x and y lie aside of one another
FEWEST = {"train": 10, "val": 2, "test": 2}
ALONE = 0.985  # correlation by which one image convinces, where the other is too flat to
SHOWN = 6  # pairs that are named where a whole split is meant


@dataclass(frozen=True)
class Opened:
    """A recipe's dataset. faults: why pairs, or whole splits, are not in it; remarks: its own warnings."""

    name: str
    splits: Mapping[Split, Dataset]
    faults: Sequence[str] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """What there is in a split. classes: share of the labelled pixels; None without labels."""

    pairs: int
    looked_at: int
    classes: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """The result. shapes: of x and y, as most pairs have them. unlooked: what was left out, a line each."""

    dataset: str
    splits: Mapping[Split, Summary]
    shapes: tuple[str, str] | None
    findings: Sequence[Finding]
    unlooked: Sequence[str] = ()

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.about.severity == severity]

    def json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "errors": sum(len(finding.cases) for finding in self.of("error")),
            "warnings": sum(len(finding.cases) for finding in self.of("warning")),
            "runs": not any(finding.about.stops for finding in self.findings),
            "shapes": dict(zip("xy", self.shapes, strict=True)) if self.shapes else None,
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "findings": [finding.json() for finding in self.findings],
            "not_looked_at": list(self.unlooked),
        }


@dataclass(slots=True)
class Seen:
    """What is kept of a pair. alike: how x and y look; None where a value is no number."""

    split: Split
    index: int
    id: str
    block: str | None
    digests: tuple[bytes, bytes]
    flat: tuple[bool, bool]  # of a single value
    alike: tuple[Looks, Looks] | None


@dataclass
class Evidence:
    """Of one split."""

    dataset: Dataset
    looked_at: int
    seen: list[Seen] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    registrations: dict[tuple[int, ...], Registration] = field(default_factory=dict)


def opened(component: Component) -> Opened:
    """Every split of a dataset, or as much of it as can be used (`contracts.Dataset.usable`)."""
    splits: dict[Split, Dataset] = {}
    faults: dict[str, None] = {}
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        for split in SPLITS:
            try:
                splits[split] = component.build(split=split)
            except UserError as error:
                told, rest = _usable(component, split, error)
                faults |= dict.fromkeys(told)
                if rest is not None:
                    splits[split] = rest
    said = dict.fromkeys(str(w.message) for w in remarks if issubclass(w.category, UserWarning))
    return Opened(component.entry.full_name, splits, list(faults), list(said))


def _cases(fault: str) -> list[Case]:
    return [Case(f"{fault.what} {case}") for case in fault.cases] if isinstance(fault, Fault) else [Case(fault)]


def _usable(component: Component, split: Split, error: UserError) -> tuple[Sequence[str], Dataset | None]:
    usable = getattr(component.factory, "usable", None)
    try:
        if usable is None:
            raise error
        dataset, faults = usable(split, **component.values)
    except UserError as raised:  # by the dataset itself, if a place in the recipe was put before what it said
        own = raised.__cause__ if isinstance(raised.__cause__, UserError) else raised
        return own.faults, None
    return faults, dataset


def check(data: Opened, track: ProgressBar, *, quick: bool = False) -> Check:
    """Look at every pair of every split, or at QUICK of each."""
    sound = Validator()
    found: dict[str, list[Case]] = defaultdict(list)
    found["unopened"] = [case for fault in data.faults for case in _cases(fault)]
    found["told"] = [Case(remark) for remark in data.remarks]
    evidence: dict[Split, Evidence] = {}
    unlooked = []
    for split, dataset in data.splits.items():
        indices = spread(len(dataset), QUICK if quick else None)
        evidence[split] = Evidence(dataset, len(indices))
        if len(indices) < len(dataset):
            unlooked.append(f"{split}: {len(dataset) - len(indices)} of {len(dataset)} pairs; leave out --quick")
        for_shift = set(spread(len(indices), SHIFT_PAIRS))
        for at, index in enumerate(track(indices, len(indices), split)):
            if (pair := sound.read(split, dataset, index)) is not None:
                _look(evidence[split], split, index, pair, shift=at in for_shift)
    found["no-pairs"] = [Case(split) for split, each in evidence.items() if not len(each.dataset)]
    found["few-pairs"] = [
        Case(f"{split} has {len(each.dataset)}")
        for split, each in evidence.items()
        if 0 < len(each.dataset) < FEWEST[split]
    ]
    _alone(evidence, found)
    _within(evidence, found)
    _across(evidence, found)
    if not quick:
        _classes(evidence, found)
    if any(each.labels for each in evidence.values()) and quick:
        unlooked.append("classes that a split lacks: a sample does not show them")
    findings = findings_of({**found, **{finding.kind: finding.cases for finding in sound.findings()}})
    summaries = {split: _summary(each) for split, each in evidence.items()}
    return Check(data.name, summaries, sound.usual, findings, unlooked)


# --- one pair --------------------------------------------------------------------------------------------------


def _look(evidence: Evidence, split: Split, index: int, pair: Pair, *, shift: bool) -> None:
    dataset, images = evidence.dataset, (pair.x, pair.y)
    flat_x, flat_y = (bool((image == image[:1, :1]).all()) for image in images)
    alike = None
    if all(image.dtype.kind in "iub" or np.isfinite(image).all() for image in images):
        x, y = (_grey(image) for image in images)
        alike = hash_image(x, dataset.x_range), hash_image(y, dataset.y_range)
        if shift:
            size = x.shape
            evidence.registrations.setdefault(size, Registration((size[0], size[1]))).add(index, x, y)
    if pair.labels is not None and pair.labels.dtype.kind in "iub":
        labels = pair.labels.ravel()
        if labels.dtype == np.uint8:
            counts = np.bincount(labels, minlength=256)
            one_class = int((counts > 0).sum()) == 1
            evidence.labels.update({int(v): int(counts[v]) for v in np.flatnonzero(counts)})
        else:
            values, counts = np.unique(labels, return_counts=True)
            one_class = len(values) == 1
            evidence.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if one_class:  # a drawing of it is flat, and nothing is wrong with that
            flat_x = flat_y = False
    digest_x, digest_y = (_digest(image) for image in images)
    evidence.seen.append(Seen(split, index, pair.id, pair.block, (digest_x, digest_y), (flat_x, flat_y), alike))


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) float32, the mean of the channels."""
    channels = image.shape[2]
    grey: np.ndarray = image.astype(np.float32) @ np.full(channels, 1 / channels, np.float32)
    return grey


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(f"{image.shape} {image.dtype}".encode(), digest_size=12)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


# --- findings --------------------------------------------------------------------------------------------------


def _alone(evidence: Mapping[Split, Evidence], found: dict[str, list[Case]]) -> None:
    """What pairs show by themselves, and all of a split together."""
    for split, each in evidence.items():
        for seen in each.seen:
            if any(seen.flat):
                names = " and ".join(name for name, flat in zip("xy", seen.flat, strict=True) if flat)
                found["constant"].append(Case(f"{names} of one value", (_place(evidence, seen),)))
        by_index = {seen.index: seen for seen in each.seen}
        for registration in each.registrations.values():
            if shift := registration.shift():
                where = " and ".join(
                    f"{abs(by)} px {forth if by > 0 else back}"
                    for by, forth, back in ((shift.down, "below", "above"), (shift.right, "right of", "left of"))
                    if by
                )
                told = (
                    f"{split}: y lies {where} x in {shift.support:.0%} of {shift.pairs} pairs "
                    f"({shift.sigmas:.0f} σ over chance)"
                )
                shown = tuple(_place(evidence, by_index[index]) for index in shift.by[:SHOWN])
                found["shift"].append(Case(told, shown))


def _within(evidence: Mapping[Split, Evidence], found: dict[str, list[Case]]) -> None:
    """Pairs that are in one split twice, by their pixels or by their ids."""
    for each in evidence.values():
        pixels: dict[Any, Seen] = {}
        ids: dict[str, Seen] = {}
        for seen in each.seen:
            if (first := pixels.setdefault(seen.digests, seen)) is not seen and not _blank(seen):
                found["duplicate"].append(Case("", (_place(evidence, first), _place(evidence, seen))))
            if (first := ids.setdefault(seen.id, seen)) is not seen:
                found["ids"].append(Case("", (_place(evidence, first), _place(evidence, seen))))


def _across(evidence: Mapping[Split, Evidence], found: dict[str, list[Case]]) -> None:
    """Pairs that are in two splits, as they are, in part, or nearly."""
    compared = dict(evidence)
    val, test = ({seen.digests for seen in evidence[s].seen} if s in evidence else set() for s in SPLITS[1:])
    if val and val == test:
        found["stand-in"].append(Case(f"{len(val)} pairs"))
        del compared["test"]  # what can be said of it is said of val
    for one, other in combinations(compared.values(), 2):
        told = set(_exact(evidence, one, other, found))
        _near(evidence, one, other, told, found)
        _blocks(evidence, one, other, found)


def _exact(
    evidence: Mapping[Split, Evidence], one: Evidence, other: Evidence, found: dict[str, list[Case]]
) -> Iterator[int]:
    """Tells of pairs with the same pixels; yields the indices in `other` of those that are spoken of."""
    both = {seen.digests: seen for seen in one.seen}
    halves = [{seen.digests[side]: seen for seen in one.seen} for side in (0, 1)]
    for seen in other.seen:
        if twin := both.get(seen.digests):
            if not _blank(seen):
                found["leak"].append(Case("", (_place(evidence, twin), _place(evidence, seen))))
            yield seen.index
            continue
        for side, name in enumerate("xy"):
            twin = halves[side].get(seen.digests[side])
            if twin and seen.alike and seen.alike[side].hash is not None:  # flat ones are the same by chance
                found["shared"].append(Case(f"same {name}", (_place(evidence, twin), _place(evidence, seen))))
                yield seen.index


def _near(
    evidence: Mapping[Split, Evidence], one: Evidence, other: Evidence, told: set[int], found: dict[str, list[Case]]
) -> None:
    """Tells of pairs of which both x and y look alike; flat images, which look like nothing, leave it to the other."""
    ours, theirs = ([seen for seen in each.seen if seen.alike] for each in (one, other))
    best: dict[int, tuple[float, int]] = {}
    for side in (1, 0):
        looked = [[seen.alike[side] for seen in each if seen.alike] for each in (ours, theirs)]
        for i, j, correlation in near(*looked):
            mine, its = ours[i].alike, theirs[j].alike
            if not mine or not its or not agree(mine[1 - side], its[1 - side]):
                continue
            if mine[1 - side].hash is not None or correlation >= ALONE:
                best[j] = max(best.get(j, (0.0, 0)), (correlation, i))
    for j, (correlation, i) in sorted(best.items()):
        if theirs[j].index not in told:
            places = _place(evidence, ours[i]), _place(evidence, theirs[j])
            found["near"].append(Case(f"{correlation:.1%} alike", places))


def _blocks(evidence: Mapping[Split, Evidence], one: Evidence, other: Evidence, found: dict[str, list[Case]]) -> None:
    blocks = {seen.block: seen for seen in one.seen if seen.block is not None}
    shared: dict[str, Seen] = {}
    for seen in other.seen:
        if seen.block in blocks and seen.block is not None:
            shared.setdefault(seen.block, seen)
    for block, seen in shared.items():
        found["blocks"].append(Case(f"block {block}", (_place(evidence, blocks[block]), _place(evidence, seen))))


def _classes(evidence: Mapping[Split, Evidence], found: dict[str, list[Case]]) -> None:
    """Classes that some split has and another has not; those that the means leave out do not count."""
    labelled = {split: each for split, each in evidence.items() if each.labels}
    for split, each in labelled.items():
        names = list(each.dataset.classes or ())
        unscored = getattr(each.dataset, "unscored", ())
        for value, name in enumerate(names):
            having = [s for s, other in labelled.items() if other.labels[value]]
            if split not in having and having and name not in unscored:
                found["classes"].append(Case(f"{split} has no pixel of '{name}', {' and '.join(having)} have"))


def _blank(seen: Seen) -> bool:
    """Whether both images are so flat that two such pairs are the same by chance."""
    return seen.alike is not None and all(look.hash is None for look in seen.alike)


def _place(evidence: Mapping[Split, Evidence], seen: Seen) -> Place:
    return place_of(seen.split, evidence[seen.split].dataset, seen.index, seen.id)


def _summary(each: Evidence) -> Summary:
    total = each.labels.total()
    names = list(each.dataset.classes or ())
    shares = {name: each.labels[value] / total for value, name in enumerate(names)} if total else None
    if shares and (other := 1 - sum(shares.values())) > 1e-9:
        shares["none of them"] = other
    return Summary(len(each.dataset), each.looked_at, shares)
