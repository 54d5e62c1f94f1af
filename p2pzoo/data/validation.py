"""Finds what would stop or corrupt training by reading each pair once, and refuses to train on it.

Splits without faults are remembered in the cache, so that the next run on the same data starts at once. Data counts as
the same while the dataset's parameters, source code, number of pairs and `fingerprint` do not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pzoo.config.experiment import Experiment
from p2pzoo.data.findings import Case, Finding, PairLocation, group_findings
from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.store import Decode, Store
from p2pzoo.data.used_values import UsedValues
from p2pzoo.plugin.batch import Pair, Split
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_json, write_json
from p2pzoo.utils.paths import cache_dir

_VALIDATION_VERSION = "2"  # raise it when other faults are looked for: what was remembered is then read again
_IGNORED_LABELS = (255, -1)  # label values by which datasets mark pixels without a class
MAX_PAIRS_BEFORE_RUN = 5000  # per split: a larger one is sampled, so that a run starts within minutes
MAX_NAMED_CASES = 10  # per kind of finding in the error message; `p2pzoo data check` lists all


class Validator:
    """Reads pairs one by one and collects their faults."""

    def __init__(self) -> None:
        self.cases: dict[str, list[Case]] = defaultdict(list)
        self._shapes: dict[tuple[str, str], list[tuple[Split, int, str]]] = defaultdict(list)  # of x, y: which pairs
        self._datasets: dict[Split, Dataset] = {}
        self._used_values: dict[str, UsedValues] = {}
        self._equal: PairLocation | None = None  # a pair whose x and y are equal and not flat
        self._all_equal = True

    def read(self, split: Split, dataset: Dataset, index: int, decode: Decode | None = None) -> Pair | None:
        """The pair, or None if it is of no further use: it cannot be read, or its arrays are no images.

        decode  returns the pair; default: `dataset[index]`
        """
        self._datasets[split] = dataset
        try:
            pair = decode() if decode else dataset[index]
        except Exception as error:  # datasets raise errors of any type at a damaged file
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.cases["unreadable"].append(Case(message, (locate_pair(split, dataset, index),)))
            return None
        faults = pair_faults(pair, dataset)
        for kind, message in faults:
            self.cases[kind].append(Case(message, (locate_pair(split, dataset, index, pair.id),)))
        if any(kind == "mismatch" for kind, _ in faults):
            return None
        self._shapes[_format_shape(pair.x), _format_shape(pair.y)].append((split, index, pair.id))
        for name, image, limits in (("x", pair.x, dataset.x_range), ("y", pair.y, dataset.y_range)):
            if not any(getattr(dataset, f"{name}_{kind}", None) for kind in ("labels", "encoding")):
                self._used_values.setdefault(name, UsedValues(name, limits)).add(image)
        if self._all_equal and not _is_flat(pair.x):
            self._all_equal = np.array_equal(pair.x, pair.y)
            self._equal = self._equal or locate_pair(split, dataset, index, pair.id)
        return pair

    def unused_ranges(self, parameters: Collection[str]) -> list[str]:
        """A line for x, and for y, if all images use little of their range.

        parameters  those of the dataset
        """
        return [fault for used in self._used_values.values() if (fault := used.fault(parameters))]

    @property
    def is_sound(self) -> bool:
        """Whether no pair read so far has a fault. Once False, it stays so."""
        return not any(self.cases.values()) and len(self._shapes) <= 1

    @property
    def usual_shapes(self) -> tuple[str, str] | None:
        """The shapes of x and y that most training pairs have; most pairs of any split where train has none."""

        def rank(shapes: tuple[str, str]) -> tuple[int, int, tuple[int, int]]:
            pairs = self._shapes[shapes]
            first = min((SPLITS.index(split), index) for split, index, _ in pairs)  # decides between equally many
            return -sum(split == "train" for split, *_ in pairs), -len(pairs), first

        return min(self._shapes, key=rank, default=None)

    def findings(self) -> list[Finding]:
        """All findings, the worst first; the cases of each in the order of the splits."""
        usual = self.usual_shapes
        others = [
            Case(
                "; ".join(
                    f"{name} is {shape}, most are {most}"
                    for name, shape, most in zip("xy", shapes, usual, strict=True)
                    if shape != most
                ),
                (locate_pair(split, self._datasets[split], index, id),),
            )
            for shapes, pairs in self._shapes.items()
            if usual and shapes != usual
            for split, index, id in pairs
        ]
        cases = {**self.cases, "mismatch": [*self.cases["mismatch"], *others]}
        if self._equal and self._all_equal:
            cases["equal"] = [Case("x and y are equal in every pair", (self._equal,))]
        return group_findings({kind: sorted(group, key=_split_order) for kind, group in cases.items()})


def _is_flat(image: np.ndarray) -> bool:
    return bool((image == image[:1, :1]).all())


def _split_order(case: Case) -> int:
    return SPLITS.index(case.locations[0].split)


def pair_faults(pair: Pair, dataset: Dataset) -> list[tuple[str, str]]:
    """(kind of finding, message) for each fault that a single pair shows."""
    faults: list[tuple[str, str]] = []
    for name, image, limits in (("x", pair.x, dataset.x_range), ("y", pair.y, dataset.y_range)):
        if image.ndim != 3 or 0 in image.shape:
            return [("mismatch", f"{name} is {_format_shape(image)}; an image is height × width × channels")]
        faults += _value_faults(name, image, limits)
    if pair.x.shape[:2] != pair.y.shape[:2]:
        sizes = f"x is {_format_size(pair.x)}, y is {_format_size(pair.y)} (height × width)"
        return [("mismatch", f"{sizes}: they must show the same pixels")]
    if pair.labels is not None:
        faults += _label_faults(pair.labels, pair.x, len(dataset.classes or ()))
    return faults


def _value_faults(name: str, image: np.ndarray, limits: tuple[float, float]) -> list[tuple[str, str]]:
    if image.dtype.kind in "iu":
        dtype = np.iinfo(image.dtype)
        if limits[0] <= dtype.min and dtype.max <= limits[1]:
            return []
    elif not_finite := image.size - int(np.isfinite(image).sum()):
        return [("not-finite", f"{not_finite} of {image.size} values of {name} are NaN or infinite")]
    low, high = image.min(), image.max()
    if limits[0] <= low and high <= limits[1]:
        return []
    message = f"{name} has values from {low:g} to {high:g}; declared are {limits[0]:g} to {limits[1]:g}"
    return [("out-of-range", message)]


def _label_faults(labels: np.ndarray, x: np.ndarray, num_classes: int) -> list[tuple[str, str]]:
    if labels.ndim != 2 or any(label_side < side for label_side, side in zip(labels.shape, x.shape, strict=False)):
        sizes = f"labels are {_format_size(labels)}, x is {_format_size(x)}"
        return [("mismatch", f"{sizes}; labels may have more pixels than x, not fewer")]
    if labels.dtype.kind not in "iub":
        return [("labels", f"labels are {labels.dtype}: they must be whole numbers")]
    if not num_classes or (labels.min() >= 0 and labels.max() < num_classes):
        return []
    values, counts = np.unique(labels, return_counts=True)
    wrong = [
        (int(value), int(count))
        for value, count in zip(values, counts, strict=True)
        if not 0 <= value < num_classes and int(value) not in _IGNORED_LABELS
    ]
    if not wrong:
        return []
    listing = ", ".join(str(value) for value, _ in wrong[:5]) + ", ..." * (len(wrong) > 5)
    share = sum(count for _, count in wrong) / labels.size
    return [("labels", f"{listing} in {share:.1%} of the pixels; the classes are 0 to {num_classes - 1}")]


def locate_pair(split: Split, dataset: Dataset, index: int, id: str | None = None) -> PairLocation:
    """A pair, with the files that it is read from where the dataset lists them (`protocols.Dataset.files`)."""
    files = getattr(dataset, "files", None)
    return PairLocation(split, index, id, tuple(map(str, files[index])) if files else ())


def spread_indices(count: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `count`, evenly spread; all where `limit` is None. Begins with 0.

    >>> spread_indices(10, 4)
    [0, 2, 5, 7]
    """
    if limit is None or count <= limit:
        return list(range(count))
    return [at * count // limit for at in range(limit)]


def _format_shape(image: np.ndarray) -> str:
    return f"{'×'.join(map(str, image.shape))} {image.dtype}"


def _format_size(image: np.ndarray) -> str:
    return "×".join(map(str, image.shape[:2]))


# --- before a run ----------------------------------------------------------------------------------------------


class _Unchecked(NamedTuple):
    """A split that is not known to be without faults. file: remembers it when none is found."""

    split: Split
    store: Store
    indices: list[int]
    file: Path


def validate_or_raise(
    experiment: Experiment, stores: Mapping[str, Store], note: Callable[[str], None], *, keep_train: bool = True
) -> None:
    """Raise UserError with every fault that would stop or corrupt training on these stores (train, val and test).

    Each pair is decoded once: a store that keeps pairs in memory or on disk keeps those that are read here. Splits that
    were found without faults before are not read again.

    note        prints a line
    keep_train  False: nothing will be trained, so training pairs are only read
    """
    validator, unchecked = Validator(), _unchecked_splits(experiment, stores, note)
    failure: UserError | None = None
    # A store on disk comes last. Its file is only finished without faults, so the others' faults must be known.
    for split, store, indices, _ in sorted(unchecked, key=lambda each: each.store.location == "disk"):
        keep = (keep_train or split != "train") and validator.is_sound
        try:
            store.validate(indices, partial(_read_if_sound, validator, split, store.dataset), keep=keep)
        except UserError as error:  # no room on disk, or a pair that was not sampled: faults are reported first
            failure = failure or error
    if findings := validator.findings():
        raise UserError(
            *(line for finding in findings for line in _lines(finding)),
            "nothing was trained; `p2pzoo data check RECIPE -o faults.html` shows all of this dataset's faults",
        )
    for line in validator.unused_ranges(experiment.dataset.values):
        note(f"warning: {line}")
    for each in unchecked:
        _remember(each.file, len(each.indices))
    if failure:
        raise failure


def _unchecked_splits(
    experiment: Experiment, stores: Mapping[str, Store], note: Callable[[str], None]
) -> list[_Unchecked]:
    unchecked: list[_Unchecked] = []
    for name, store in stores.items():
        split: Split = experiment.evaluate.split if name == "test" else name  # type: ignore[assignment]
        file = _validity_file(experiment, split, store.dataset)
        if read_json(file) is not None or any(store is each.store for each in unchecked):
            continue
        indices = spread_indices(len(store.dataset), MAX_PAIRS_BEFORE_RUN)
        if len(indices) < len(store.dataset):
            note(
                f"{split}: {len(indices)} of {len(store.dataset)} pairs are checked before training, "
                "the others when they are read (`p2pzoo data check` checks all)"
            )
        unchecked.append(_Unchecked(split, store, indices, file))
    return unchecked


def _read_if_sound(validator: Validator, split: Split, dataset: Dataset, index: int, decode: Decode) -> bool:
    validator.read(split, dataset, index, decode)
    return validator.is_sound


def remember_valid(experiment: Experiment, split: Split, dataset: Dataset) -> None:
    """Remember that no pair of this split has a fault that would stop a run."""
    _remember(_validity_file(experiment, split, dataset), len(dataset))


def _lines(finding: Finding) -> list[str]:
    cases = [f"  {case}" for case in finding.cases[:MAX_NAMED_CASES]]
    num_more = len(finding.cases) - len(cases)
    return [f"{finding.about.what} ({len(finding.cases)}):", *cases, *([f"  ... and {num_more} more"] * bool(num_more))]


def _validity_file(experiment: Experiment, split: Split, dataset: Dataset) -> Path:
    component = experiment.dataset
    identity = {
        "looked for": _VALIDATION_VERSION,
        "dataset": component.identity(),
        "source": experiment.sources[f"dataset {component.entry.full_name}"],
        "split": split,
        "pairs": len(dataset),
        "fingerprint": str(getattr(dataset, "fingerprint", "")),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "sound" / f"{digest}.json"


def _remember(file: Path, num_checked: int) -> None:
    with contextlib.suppress(OSError):  # without a cache the split is read before each run
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"looked_at": num_checked})
