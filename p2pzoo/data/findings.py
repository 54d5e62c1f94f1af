"""What can be wrong with a dataset: the kinds of findings, how bad each is and what to do. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from p2pzoo.plugin.batch import Split

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    """stops: whether `p2pzoo run` refuses to train on it."""

    severity: Severity
    stops: bool
    what: str
    do: str


KINDS: dict[str, Kind] = {
    "unopened": Kind(
        "error", True, "What the dataset cannot use",
        "put right what each line names; it is left out of all that follows",
    ),
    "no-pairs": Kind("error", True, "A split has no pairs", "every run needs train, and val or test"),
    "unreadable": Kind(
        "error", True, "Pairs that cannot be read",
        "get these files again from where they came from, or take them and their partners out of the dataset",
    ),
    "mismatch": Kind(
        "error", True, "Pairs of another size, channel count or depth than the rest",
        "bring all to one shape; a dataset may do it as it reads (`p2pzoo show NAME` lists its parameters)",
    ),
    "not-finite": Kind(
        "error", True, "Values that are no numbers",
        "one NaN makes every weight NaN: replace NaN and infinity in these files, or take them out",
    ),
    "out-of-range": Kind(
        "error", True, "Values outside the range that the dataset declares",
        "they would leave [-1, 1], where a translation cannot follow: correct the range or the files",
    ),
    "labels": Kind(
        "error", True, "Labels that are no class",
        "labels count from 0 to the number of classes less one; 255 and -1 mean that a pixel is not counted",
    ),
    "leak": Kind(
        "error", False, "The same pair in two splits",
        "a network is measured on what it has learnt by heart: take each pair out of one of the splits",
    ),
    "shared": Kind(
        "warning", False, "The same input, or the same target, in two splits",
        "where one scene belongs to several pairs, keep all of them in one split",
    ),
    "near": Kind(
        "warning", False, "Pairs that look alike in two splits",
        "neighbouring frames, crops or re-saved copies make numbers too good: keep them in one split",
    ),
    "blocks": Kind(
        "warning", False, "One block in two splits",
        "a region, scene or patient that is in training and in the test makes numbers too good: deal out whole blocks",
    ),
    "stand-in": Kind(
        "warning", False, "val and test are the same pairs",
        "what is chosen by val is then not new to test; report it, or set pairs aside",
    ),
    "shift": Kind(
        "warning", False, "x and y lie aside of one another",
        "L1 then rewards blur: move one of the two by what is told, in all pairs of the split, and crop both",
    ),
    "duplicate": Kind(
        "warning", False, "The same pair twice in one split",
        "it counts twice, in training or in the means; keep one of them",
    ),
    "constant": Kind(
        "warning", False, "Images of a single value",
        "nothing can be learnt from them, unless they are drawings of labels that show one class: look at them",
    ),
    "ids": Kind("warning", False, "Pairs that share an id", "files and tables go by ids: make them differ"),
    "few-pairs": Kind(
        "warning", False, "Very few pairs", "below ten, G learns them by heart; one held-out pair gives no interval",
    ),
    "classes": Kind(
        "warning", False, "Classes that a split lacks",
        "deal the pairs out so that each class is in every split, or leave it out of the means (`unscored`)",
    ),
    "told": Kind("warning", False, "The dataset says", "see its own page for what that means"),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One pair. id: None where it could not be read. files: what it is read from, where the dataset tells."""

    split: Split
    index: int
    id: str | None = None
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = self.id or " + ".join(self.files) or f"pair {self.index}"
        return name if name.startswith(f"{self.split}-") else f"{self.split} {name}"


@dataclass(frozen=True)
class Case:
    """One instance: what there is to say, and the pairs it is about, which may be none."""

    told: str
    places: tuple[Place, ...] = ()

    def __str__(self) -> str:
        if len(self.places) > 2:
            return f"{self.told}, as in {', '.join(map(str, self.places))}"
        if any(file in self.told for place in self.places for file in place.files):
            return self.told
        return ": ".join(filter(None, [" = ".join(map(str, self.places)), self.told]))


@dataclass(frozen=True)
class Finding:
    kind: str
    cases: Sequence[Case]

    @property
    def about(self) -> Kind:
        return KINDS[self.kind]

    @property
    def splits(self) -> list[Split]:
        return list(dict.fromkeys(place.split for case in self.cases for place in case.places))

    def json(self) -> dict[str, Any]:
        cases = [
            {"told": case.told, "pairs": [{**vars(place), "files": list(place.files)} for place in case.places]}
            for case in self.cases
        ]
        about = self.about
        return {
            "kind": self.kind, "severity": about.severity, "stops_run": about.stops, "what": about.what, "do": about.do,
            "splits": self.splits, "count": len(cases), "cases": cases,
        }  # fmt: skip


def findings_of(cases: Mapping[str, Sequence[Case]]) -> list[Finding]:
    """By kind, the worst first."""
    return [Finding(kind, cases[kind]) for kind in KINDS if cases.get(kind)]
