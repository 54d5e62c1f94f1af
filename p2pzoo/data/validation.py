"""What would stop or corrupt training, found by reading each pair once; and the refusal to train on it.

A result without faults is kept in the cache, so that the next run on the same data starts at once. Data is the same
where the dataset's parameters, source code, number of pairs and `fingerprint` are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import sources
from p2pzoo.data.findings import Case, Finding, Place, findings_of
from p2pzoo.plugin.batch import Pair, Split
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_json, write_json
from p2pzoo.utils.paths import cache_dir

VERSION = "1"  # of what is looked for: raise it when that changes
NOT_COUNTED = (255, -1)  # label values that are no class, and mean so
MOST_BEFORE_A_RUN = 5000  # pairs of a split; a larger one is sampled, and the rest is checked when it is read
NAMED = 10  # of one kind, so many cases are named where a run is refused


class Validator:
    """The faults of pairs, which are read through it, one after the other."""

    def __init__(self) -> None:
        self.cases: dict[str, list[Case]] = defaultdict(list)
        self._shapes: dict[tuple[str, str], list[tuple[Split, int, str]]] = defaultdict(list)  # of x and y: which pairs
        self._datasets: dict[Split, Dataset] = {}

    def read(self, split: Split, dataset: Dataset, index: int) -> Pair | None:
        """The pair, or None if it is of no further use: not read, or with arrays that are no images."""
        self._datasets[split] = dataset
        try:
            pair = dataset[index]
        except Exception as error:  # a dataset may raise anything at a broken file
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.cases["unreadable"].append(Case(told, (place_of(split, dataset, index),)))
            return None
        faults = pair_faults(pair, dataset)
        for kind, told in faults:
            self.cases[kind].append(Case(told, (place_of(split, dataset, index, pair.id),)))
        if any(kind == "mismatch" for kind, _ in faults):
            return None
        self._shapes[_shape(pair.x), _shape(pair.y)].append((split, index, pair.id))
        return pair

    @property
    def usual(self) -> tuple[str, str] | None:
        """The shapes of x and y that most pairs have: of train, where there are any."""
        of_train = {shapes: sum(split == "train" for split, *_ in pairs) for shapes, pairs in self._shapes.items()}
        return max(self._shapes, key=lambda shapes: (of_train[shapes], len(self._shapes[shapes])), default=None)

    def findings(self) -> list[Finding]:
        usual = self.usual
        others = [
            Case(
                "; ".join(
                    f"{n} is {own}, most are {most}"
                    for n, own, most in zip("xy", shapes, usual, strict=True)
                    if own != most
                ),
                (place_of(split, self._datasets[split], index, id),),
            )
            for shapes, pairs in self._shapes.items()
            if usual and shapes != usual
            for split, index, id in pairs
        ]
        return findings_of({**self.cases, "mismatch": [*self.cases["mismatch"], *others]})


def pair_faults(pair: Pair, dataset: Dataset) -> list[tuple[str, str]]:
    """(kind of finding, what there is to say) of a pair by itself."""
    faults: list[tuple[str, str]] = []
    for name, image, limits in (("x", pair.x, dataset.x_range), ("y", pair.y, dataset.y_range)):
        if image.ndim != 3 or 0 in image.shape:
            return [("mismatch", f"{name} is {_shape(image)}; an image is height × width × channels")]
        faults += _values(name, image, limits)
    if pair.x.shape[:2] != pair.y.shape[:2]:
        told = f"x is {_sides(pair.x)}, y is {_sides(pair.y)} (height × width)"
        return [("mismatch", f"{told}: they must show the same pixels")]
    if pair.labels is not None:
        faults += _label_faults(pair.labels, pair.x, len(dataset.classes or ()))
    return faults


def _values(name: str, image: np.ndarray, limits: tuple[float, float]) -> list[tuple[str, str]]:
    if image.dtype.kind in "iu":
        held = np.iinfo(image.dtype)
        if limits[0] <= held.min and held.max <= limits[1]:
            return []
    elif broken := image.size - int(np.isfinite(image).sum()):
        return [("not-finite", f"{broken} of {image.size} values of {name} are NaN or infinite")]
    low, high = image.min(), image.max()
    if limits[0] <= low and high <= limits[1]:
        return []
    told = f"{name} has values from {low:g} to {high:g}; declared are {limits[0]:g} to {limits[1]:g}"
    return [("out-of-range", told)]


def _label_faults(labels: np.ndarray, x: np.ndarray, classes: int) -> list[tuple[str, str]]:
    if labels.ndim != 2 or any(own < side for own, side in zip(labels.shape, x.shape, strict=False)):
        return [("mismatch", f"labels are {_sides(labels)}, x is {_sides(x)}; they may have more pixels, not fewer")]
    if labels.dtype.kind not in "iub":
        return [("labels", f"labels are {labels.dtype}: they must be whole numbers")]
    if not classes or (labels.min() >= 0 and labels.max() < classes):
        return []
    values, counts = np.unique(labels, return_counts=True)
    wrong = [
        (int(v), int(n))
        for v, n in zip(values, counts, strict=True)
        if not 0 <= v < classes and int(v) not in NOT_COUNTED
    ]
    if not wrong:
        return []
    told = ", ".join(str(value) for value, _ in wrong[:5]) + ", ..." * (len(wrong) > 5)
    share = sum(count for _, count in wrong) / labels.size
    return [("labels", f"{told} in {share:.1%} of the pixels; the classes are 0 to {classes - 1}")]


def place_of(split: Split, dataset: Dataset, index: int, id: str | None = None) -> Place:
    """A pair, with the files that it is read from where the dataset tells (`contracts.Dataset.files`)."""
    files = getattr(dataset, "files", None)
    return Place(split, index, id, tuple(map(str, files[index])) if files else ())


def spread(count: int, most: int | None) -> list[int]:
    """At most so many numbers below `world_size`, evenly spread."""
    if most is None or count <= most:
        return list(range(count))
    return [at * count // most for at in range(most)]


def _shape(image: np.ndarray) -> str:
    return f"{'×'.join(map(str, image.shape))} {image.dtype}"


def _sides(image: np.ndarray) -> str:
    return "×".join(map(str, image.shape[:2]))


# --- before a run ----------------------------------------------------------------------------------------------


def validate_or_raise(experiment: Experiment, data: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Raise UserError with every fault that would stop or corrupt training on these stores (`store.dataset`).

    Splits that were found to have none before are not read again.
    """
    sound, clean = Validator(), []
    for name, store in data.items():
        split: Split = experiment.evaluate.split if name == "test" else name  # type: ignore[assignment]
        dataset = store.dataset
        file = _known(experiment, split, dataset)
        if read_json(file) is not None:
            continue
        indices = spread(len(dataset), MOST_BEFORE_A_RUN)
        if len(indices) < len(dataset):
            note(
                f"{split}: {len(indices)} of {len(dataset)} pairs are looked at before training, "
                "the others as they are read (`p2pzoo data check` looks at all)"
            )
        for index in indices:
            sound.read(split, dataset, index)
        clean.append((file, len(indices)))
    if findings := sound.findings():
        raise UserError(
            *(fault for finding in findings for fault in _told(finding)),
            "nothing was trained; `p2pzoo data check RECIPE -o faults.html` shows all of this dataset's faults",
        )
    for file, looked_at in clean:
        _remember(file, looked_at)


def remember_sound(experiment: Experiment, split: Split, dataset: Dataset) -> None:
    """Keep that a whole split has no fault that would stop a run."""
    _remember(_known(experiment, split, dataset), len(dataset))


def _told(finding: Finding) -> list[str]:
    named = [f"  {case}" for case in finding.cases[:NAMED]]
    more = len(finding.cases) - len(named)
    return [f"{finding.about.what} ({len(finding.cases)}):", *named, *([f"  ... and {more} more"] if more else [])]


def _known(experiment: Experiment, split: Split, dataset: Dataset) -> Path:
    component = experiment.dataset
    identity = {
        "looked for": VERSION,
        "dataset": component.identity(),
        "source": sources(experiment)[f"dataset {component.entry.full_name}"],
        "split": split,
        "pairs": len(dataset),
        "fingerprint": str(getattr(dataset, "fingerprint", "")),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "sound" / f"{digest}.json"


def _remember(file: Path, looked_at: int) -> None:
    with contextlib.suppress(OSError):  # without a cache it is looked at each time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"looked_at": looked_at})
