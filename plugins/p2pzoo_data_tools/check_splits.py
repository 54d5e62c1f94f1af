"""Compare the pairs of a dataset within a split and across splits, from what the dataset check keeps of each pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from p2pzoo.data.findings import Case, PairLocation
from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.validation import locate_pair
from p2pzoo.plugin import Dataset, Split
from p2pzoo.utils.plurals import format_count
from p2pzoo_data_tools.alignment import Drift, Shift, ShiftEstimator
from p2pzoo_data_tools.near_duplicates import ImageHash, are_similar, find_similar

MIN_CORRELATION_ALONE = 0.985  # of one image, if the other one is too flat to be compared
MAX_NAMED_PAIRS = 6  # pairs that are named as examples where a whole split is meant

Cases = dict[str, list[Case]]  # by kind of finding


@dataclass(slots=True)
class PairSummary:
    """What is kept of a pair.

    digests           of x and of y
    is_flat           whether x, and y, have a single value: two such images are equal by chance
    has_single_class  whether its labels have a single value: then it is right that images are flat
    hashes            of x and of y; None if the pair has a value that is NaN or infinite
    """

    split: Split
    index: int
    id: str
    block: str | None
    digests: tuple[bytes, bytes]
    is_flat: tuple[bool, bool]
    has_single_class: bool
    hashes: tuple[ImageHash, ImageHash] | None


@dataclass
class SplitEvidence:
    """What is kept of a split.

    labels            number of pixels by label value
    shift_estimators  by (H, W)
    """

    dataset: Dataset
    looked_at: int
    pairs: list[PairSummary] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    shift_estimators: dict[tuple[int, ...], ShiftEstimator] = field(default_factory=dict)


Evidence = Mapping[Split, SplitEvidence]


def find_shifts_and_constants(evidence: Evidence, cases: Cases) -> None:
    """Add images of a single value, and y that are moved against x, all by one shift or each by another."""
    for split, each in evidence.items():
        for pair in each.pairs:
            if any(pair.is_flat) and not pair.has_single_class:
                names = " and ".join(name for name, is_flat in zip("xy", pair.is_flat, strict=True) if is_flat)
                cases["constant"].append(Case(f"{names}: a single value", (_locate(evidence, pair),)))
        by_index = {pair.index: pair for pair in each.pairs}
        for estimator in each.shift_estimators.values():
            if shift := estimator.estimate():
                examples = tuple(_locate(evidence, by_index[index]) for index in shift.supporting[:MAX_NAMED_PAIRS])
                cases["shift"].append(Case(_describe_shift(split, shift), examples))
            elif drift := estimator.estimate_drift():
                examples = tuple(_locate(evidence, by_index[index]) for index in drift.moving[:MAX_NAMED_PAIRS])
                cases["misaligned"].append(Case(_describe_drift(split, drift), examples))


def _describe_drift(split: Split, drift: Drift) -> str:
    return (
        f"{split}: y is moved by 2 px or more in {drift.moved:.0%} of the {drift.clear} pairs (of {drift.pairs}) where "
        f"it can be seen; the median distance is {drift.median:.1f} px. A loss that aligns: [losses.registration] in "
        "place of L1, zoo:modern/registration.toml"
    )


def _describe_shift(split: Split, shift: Shift) -> str:
    directions = ((shift.down, "below", "above"), (shift.right, "right of", "left of"))
    where = " and ".join(
        f"{abs(distance)} px {positive if distance > 0 else negative}"
        for distance, positive, negative in directions
        if distance
    )
    return f"{split}: y is {where} x in {shift.support:.0%} of {shift.pairs} pairs ({shift.sigmas:.0f} σ above noise)"


def find_repeats(evidence: Evidence, cases: Cases) -> None:
    """Add pairs of one split that have the same pixels, or the same id."""
    for each in evidence.values():
        pixels: dict[tuple[bytes, bytes], PairSummary] = {}
        ids: dict[str, PairSummary] = {}
        for pair in each.pairs:
            if (first := pixels.setdefault(pair.digests, pair)) is not pair and not all(pair.is_flat):
                cases["duplicate"].append(_match(evidence, first, pair))
            if (first := ids.setdefault(pair.id, pair)) is not pair:
                cases["ids"].append(_match(evidence, first, pair))


def find_leaks(evidence: Evidence, cases: Cases) -> None:
    """Add pairs that are in two splits: exactly, in part, or nearly; and blocks that are in two splits."""
    compared = dict(evidence)
    val, test = (
        {pair.digests for pair in evidence[split].pairs} if split in evidence else set() for split in SPLITS[1:]
    )
    if val and val == test:
        cases["stand-in"].append(Case(format_count(len(val), "pair")))
        del compared["test"]  # its findings would repeat those of val
    for first, second in combinations(compared.values(), 2):
        reported = set(_find_exact(evidence, first, second, cases))
        _find_near(evidence, first, second, reported, cases)
        _find_shared_blocks(evidence, first, second, cases)


def _find_exact(evidence: Evidence, first: SplitEvidence, second: SplitEvidence, cases: Cases) -> Iterator[int]:
    """Add pairs with the same pixels in x, y or both; yield the indices in `second` of those that were added."""
    by_pair = {pair.digests: pair for pair in first.pairs}
    by_side = [{pair.digests[side]: pair for pair in first.pairs} for side in (0, 1)]
    for pair in second.pairs:
        if twin := by_pair.get(pair.digests):
            if not all(pair.is_flat):
                cases["leak"].append(_match(evidence, twin, pair))
            yield pair.index
            continue
        for side, name in enumerate("xy"):
            twin = by_side[side].get(pair.digests[side])
            if twin and not pair.is_flat[side]:
                cases["shared"].append(_match(evidence, twin, pair, f"same {name}"))
                yield pair.index


def _find_near(
    evidence: Evidence, first: SplitEvidence, second: SplitEvidence, reported: set[int], cases: Cases
) -> None:
    """Add pairs that are similar in x and in y. Where one side is flat, the other side decides alone."""
    ours, theirs = ([pair for pair in each.pairs if pair.hashes] for each in (first, second))
    best: dict[int, tuple[float, int]] = {}  # index in theirs -> (correlation, index in ours)
    for side in (1, 0):
        hashes = [[pair.hashes[side] for pair in pairs if pair.hashes] for pairs in (ours, theirs)]
        for i, j, correlation in find_similar(*hashes):
            our_hashes, their_hashes = ours[i].hashes, theirs[j].hashes
            if not our_hashes or not their_hashes or not are_similar(our_hashes[1 - side], their_hashes[1 - side]):
                continue
            if our_hashes[1 - side].hash is not None or correlation >= MIN_CORRELATION_ALONE:
                best[j] = max(best.get(j, (0.0, 0)), (correlation, i))
    for j, (correlation, i) in sorted(best.items()):
        if theirs[j].index not in reported:
            cases["near"].append(_match(evidence, ours[i], theirs[j], f"{correlation:.1%} alike"))


def _find_shared_blocks(evidence: Evidence, first: SplitEvidence, second: SplitEvidence, cases: Cases) -> None:
    blocks = {pair.block: pair for pair in first.pairs if pair.block is not None}
    shared: dict[str, PairSummary] = {}
    for pair in second.pairs:
        if pair.block in blocks and pair.block is not None:
            shared.setdefault(pair.block, pair)
    for block, pair in shared.items():
        cases["blocks"].append(_match(evidence, blocks[block], pair, f"block {block}"))


def find_class_gaps(evidence: Evidence, cases: Cases) -> None:
    """Add classes that one split has and another has not, except those that means leave out (`unscored`)."""
    labelled = {split: each for split, each in evidence.items() if each.labels}
    for split, each in labelled.items():
        names = list(each.dataset.classes or ())
        unscored = getattr(each.dataset, "unscored", ())
        for value, name in enumerate(names):
            splits_with_it = [other for other, its in labelled.items() if its.labels[value]]
            if split not in splits_with_it and splits_with_it and name not in unscored:
                verb = "has" if len(splits_with_it) == 1 else "have"
                message = f"{split} has no pixel of '{name}', {' and '.join(splits_with_it)} {verb}"
                cases["classes"].append(Case(message))


def _match(evidence: Evidence, first: PairSummary, second: PairSummary, message: str = "") -> Case:
    return Case(message, (_locate(evidence, first), _locate(evidence, second)))


def _locate(evidence: Evidence, pair: PairSummary) -> PairLocation:
    return locate_pair(pair.split, evidence[pair.split].dataset, pair.index, pair.id)
