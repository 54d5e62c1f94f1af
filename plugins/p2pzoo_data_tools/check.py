"""The dataset check: what is wrong, or suspicious, with the pairs that a recipe trains on and is evaluated on.

Each pair is read once. What is kept of a pair is small, whatever its size: digests, perceptual hashes and two
thumbnails of 16 × 16. The comparisons of what is kept are in check_splits.py.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.data.findings import Case, Finding, PairLocation, group_findings
from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.validation import Validator, locate_pair, spread_indices
from p2pzoo.models.image_size import find_network_faults
from p2pzoo.plugin import Archive, Dataset, Pair, ProgressBar, Split
from p2pzoo.utils.errors import Advice, SharedFault, UserError
from p2pzoo.utils.file_digests import FileDigest, find_altered, read_digests
from p2pzoo_data_tools.alignment import ShiftEstimator
from p2pzoo_data_tools.check_splits import (
    PairSummary,
    SplitEvidence,
    find_class_gaps,
    find_leaks,
    find_repeats,
    find_shifts_and_constants,
)
from p2pzoo_data_tools.near_duplicates import hash_image

QUICK_PAIRS = 500  # pairs per split that --quick reads; the help of the command names this number
SHIFT_PAIRS = 500  # pairs per split whose alignment is measured: enough to show a shift, and the FFT is slow
MAX_TRIED_PAIRS = 3  # of a split, to learn the size of its images
MIN_PAIRS = {"train": 10, "val": 2, "test": 2}  # fewer are reported; see "few-pairs" in p2pzoo.data.findings


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset whose splits are open.

    faults          why pairs, or whole splits, are not in it
    warnings        what the dataset itself warned about
    parameters      names of its parameters
    network_faults  why the networks of the recipe do not take its images
    archive         that its files were fetched from, if it has one
    """

    name: str
    splits: Mapping[Split, Dataset]
    faults: Sequence[str] = ()
    warnings: Sequence[str] = ()
    parameters: Collection[str] = ()
    network_faults: Sequence[str] = ()
    archive: Archive | None = None


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split. classes: share of the labelled pixels by class; None without labels."""

    pairs: int
    looked_at: int
    classes: Mapping[str, float] | None = None


@dataclass(frozen=True)
class CheckResult:
    """The result of `check_dataset`.

    shapes   of x and y, as most pairs have them
    skipped  what was not checked, one line each
    """

    dataset: str
    splits: Mapping[Split, SplitSummary]
    shapes: tuple[str, str] | None
    findings: Sequence[Finding]
    skipped: Sequence[str] = ()

    def select(self, severity: str) -> list[Finding]:
        """Return the findings of one severity, "error" or "warning"."""
        return [finding for finding in self.findings if finding.about.severity == severity]

    def json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "errors": sum(len(finding.cases) for finding in self.select("error")),
            "warnings": sum(len(finding.cases) for finding in self.select("warning")),
            "runs": not any(finding.about.stops for finding in self.findings),
            "shapes": dict(zip("xy", self.shapes, strict=True)) if self.shapes else None,
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "findings": [finding.json() for finding in self.findings],
            "not_looked_at": list(self.skipped),
        }


def open_splits(experiment: Experiment) -> OpenedDataset:
    """Open every split of the dataset, or its usable part (`usable` in `p2pzoo.plugin.Dataset`)."""
    component = experiment.dataset
    splits: dict[Split, Dataset] = {}
    faults: dict[str, None] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for split in SPLITS:
            try:
                splits[split] = component.build(split=split)
            except UserError as error:
                split_faults, usable_part = _open_usable_part(component, split, error)
                faults |= dict.fromkeys(split_faults)
                if usable_part is not None:
                    splits[split] = usable_part
    advice = [fault for fault in faults if isinstance(fault, Advice)]
    messages = [*advice, *(str(w.message) for w in caught if issubclass(w.category, UserWarning))]
    return OpenedDataset(
        component.entry.full_name, splits, [fault for fault in faults if fault not in advice],
        list(dict.fromkeys(messages)), component.values.keys(), _find_network_faults(experiment, splits),
        getattr(component.factory, "archive", None),
    )  # fmt: skip


def _find_network_faults(experiment: Experiment, splits: Mapping[Split, Dataset]) -> list[str]:
    """Try the networks with the first pair that can be read."""
    for dataset in splits.values():
        for index in range(min(len(dataset), MAX_TRIED_PAIRS)):
            try:
                pair = dataset[index]
            except Exception:  # the check itself says what is wrong with it
                continue
            if pair.x.ndim == pair.y.ndim == 3:
                channels, size = (pair.x.shape[2], pair.y.shape[2]), (pair.x.shape[0], pair.x.shape[1])
                return find_network_faults(experiment, channels, size)
    return []


def _open_usable_part(component: Component, split: Split, error: UserError) -> tuple[Sequence[str], Dataset | None]:
    """Return (faults, the dataset without the pairs that have them; None if there is no such dataset)."""
    usable = getattr(component.factory, "usable", None)
    try:
        if usable is None:
            raise error
        with component.locate_errors():
            dataset, faults = usable(split, **component.values)
    except UserError as raised:
        # The message may begin with the line of the recipe; the cause is the dataset's own error without it.
        own = raised.__cause__ if isinstance(raised.__cause__, UserError) else raised
        return own.faults, None
    return faults, dataset


def check_dataset(data: OpenedDataset, track: ProgressBar, *, quick: bool = False) -> CheckResult:
    """Check every pair of every split; with `quick`, QUICK_PAIRS of each split."""
    validator = Validator()
    cases: dict[str, list[Case]] = defaultdict(list)
    cases["unopened"] = list(dict.fromkeys(case for fault in data.faults for case in _split_fault(fault)))
    cases["networks"] = [Case(fault) for fault in data.network_faults]
    cases["dataset-warning"] = [Case(message) for message in data.warnings]
    evidence: dict[Split, SplitEvidence] = {}
    skipped = []
    for split, dataset in data.splits.items():
        indices = spread_indices(len(dataset), QUICK_PAIRS if quick else None)
        evidence[split] = SplitEvidence(dataset, len(indices))
        if len(indices) < len(dataset):
            skipped.append(f"{split}: {len(dataset) - len(indices)} of {len(dataset)} pairs; leave out --quick")
        shift_positions = set(spread_indices(len(indices), SHIFT_PAIRS))
        for at, index in enumerate(track(indices, len(indices), split)):
            if (pair := validator.read(split, dataset, index)) is not None:
                _summarise_pair(evidence[split], split, index, pair, measure_shift=at in shift_positions)
    cases["no-pairs"] = [Case(split) for split, each in evidence.items() if not len(each.dataset)]
    cases["few-pairs"] = [
        Case(f"{split} has {len(each.dataset)}")
        for split, each in evidence.items()
        if 0 < len(each.dataset) < MIN_PAIRS[split]
    ]
    if quick:
        skipped += ["whether fetched files changed; leave out --quick"] * bool(_list_fetched(data))
    else:
        cases["altered"] = _find_altered(data, track)
    cases["range"] = [Case(line) for line in validator.unused_ranges(data.parameters)]
    find_shifts_and_constants(evidence, cases)
    find_repeats(evidence, cases)
    find_leaks(evidence, cases)
    if not quick:
        find_class_gaps(evidence, cases)
    elif any(each.labels for each in evidence.values()):
        skipped.append("classes that are missing in a split: a sample does not show them")
    findings = group_findings({**cases, **{finding.kind: finding.cases for finding in validator.findings()}})
    summaries = {split: _summarise_split(each) for split, each in evidence.items()}
    return CheckResult(data.name, summaries, validator.usual_shapes, findings, skipped)


def _list_fetched(data: OpenedDataset) -> dict[str, tuple[FileDigest, PairLocation]]:
    """{name: its digest when it was fetched, and its first pair}, of the files in the archive's folder."""
    digests = (read_digests(data.archive.digests_file) or {}) if data.archive else {}
    fetched: dict[str, tuple[FileDigest, PairLocation]] = {}
    for split, dataset in data.splits.items():
        for index, files in enumerate(getattr(dataset, "files", None) or () if digests else ()):
            for file in files:
                if data.archive and file.is_relative_to(data.archive.folder):
                    name = file.relative_to(data.archive.folder).as_posix()
                    if name in digests and name not in fetched:
                        fetched[name] = digests[name], locate_pair(split, dataset, index)
    return fetched


def _find_altered(data: OpenedDataset, track: ProgressBar) -> list[Case]:
    """The files whose SHA-256 is not that of the fetch."""
    fetched = _list_fetched(data)
    if not fetched or data.archive is None:
        return []
    folder = data.archive.folder
    return [
        Case(f"{folder / name}: its SHA-256 is not that of the file that was fetched", (location,))
        for name, (digest, location) in track(fetched.items(), len(fetched), "SHA-256")
        if find_altered(folder, {name: digest})
    ]


def _split_fault(fault: str) -> list[Case]:
    """One case per file that the fault is about."""
    return (
        [Case(f"{fault.summary} {case}".lstrip()) for case in fault.cases]
        if isinstance(fault, SharedFault)
        else [Case(fault)]
    )


# --- one pair --------------------------------------------------------------------------------------------------


def _summarise_pair(evidence: SplitEvidence, split: Split, index: int, pair: Pair, *, measure_shift: bool) -> None:
    dataset, images = evidence.dataset, (pair.x, pair.y)
    is_flat_x, is_flat_y = (bool((image == image[:1, :1]).all()) for image in images)
    hashes = None
    if all(image.dtype.kind in "iub" or np.isfinite(image).all() for image in images):
        encodings = (getattr(dataset, name, None) for name in ("x_encoding", "y_encoding"))
        x, y = (_to_grey(image, encoding) for image, encoding in zip(images, encodings, strict=True))
        hashes = hash_image(x, dataset.x_range), hash_image(y, dataset.y_range)
        if measure_shift:
            size = x.shape
            evidence.shift_estimators.setdefault(size, ShiftEstimator((size[0], size[1]))).add(index, x, y)
    has_labels = pair.labels is not None and pair.labels.dtype.kind in "iub"
    has_single_class = has_labels and _count_labels(evidence, pair.labels) == 1
    digest_x, digest_y = (_digest(image) for image in images)
    evidence.pairs.append(
        PairSummary(
            split, index, pair.id, pair.block, (digest_x, digest_y), (is_flat_x, is_flat_y), has_single_class, hashes
        )
    )


def _count_labels(evidence: SplitEvidence, labels: np.ndarray) -> int:
    """Add the labels to the counts of the split; return the number of different values."""
    labels = labels.ravel()
    if labels.dtype == np.uint8:  # bincount is much faster than unique
        counts = np.bincount(labels, minlength=256)
        evidence.labels.update({int(v): int(counts[v]) for v in np.flatnonzero(counts)})
        return int((counts > 0).sum())
    values, counts = np.unique(labels, return_counts=True)
    evidence.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return len(values)


def _to_grey(image: np.ndarray, encoding: str | None) -> np.ndarray:
    """Return one channel, (H, W) float32, within the range of the values, that shows what the channels show.

    The mean would be one value for all classes of a one-hot map, and for colours such as pure red, green and blue.
    """
    channels = image.shape[2]
    if encoding == "one-hot":
        weights = np.arange(1, channels + 1) / channels
    elif channels == 3:
        weights = np.array([0.299, 0.587, 0.114])  # luma of Rec. 601
    else:
        weights = np.full(channels, 1 / channels)
    grey: np.ndarray = image.astype(np.float32) @ weights.astype(np.float32)
    return grey


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(f"{image.shape} {image.dtype}".encode(), digest_size=12)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _summarise_split(evidence: SplitEvidence) -> SplitSummary:
    total = evidence.labels.total()
    names = list(evidence.dataset.classes or ())
    shares = {name: evidence.labels[value] / total for value, name in enumerate(names)} if total else None
    if shares and (other := 1 - sum(shares.values())) > 1e-9:
        shares["none of them"] = other
    return SplitSummary(len(evidence.dataset), evidence.looked_at, shares)
