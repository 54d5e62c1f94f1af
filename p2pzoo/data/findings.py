"""What can be wrong with a dataset: the kinds of findings, how bad each is and how to fix it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from p2pzoo.plugin.batch import Split

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding.

    stops  whether `p2pzoo run` refuses to train on it
    what   title: what is wrong
    do     advice: how to fix it
    """

    severity: Severity
    stops: bool
    what: str
    do: str


FINDING_KINDS: dict[str, FindingKind] = {
    "unopened": FindingKind(
        "error", True, "Files that the dataset cannot use",
        "fix the files listed; they were skipped in the other checks",
    ),
    "no-pairs": FindingKind("error", True, "A split has no pairs", "every run needs train, and val or test"),
    "networks": FindingKind(
        "error", True, "Images that the networks do not take",
        'change the line named; for another size, set resize = "stretch", "fit" or "crop", too',
    ),
    "unreadable": FindingKind(
        "error", True, "Pairs that cannot be read",
        "get damaged files again; else do what the line says, or remove the files and their partners",
    ),
    "altered": FindingKind(
        "error", False, "Files that are not as they were fetched",
        "`p2pzoo data fetch NAME` fetches damaged files again",
    ),
    "mismatch": FindingKind(
        "error", True, "Pairs whose size, channels or dtype differ from the rest",
        "bring all to one shape; some datasets do it when they read (`p2pzoo show dataset NAME` lists the parameters)",
    ),
    "equal": FindingKind(
        "error", True, "Targets that are the inputs",
        "the network would learn to copy its input: give the folder, or the half, of the other images",
    ),
    "not-finite": FindingKind(
        "error", True, "Values that are NaN or infinite",
        "one NaN makes every weight NaN: replace NaN and infinity in these files, or remove the files",
    ),
    "out-of-range": FindingKind(
        "error", True, "Values outside the range that the dataset declares",
        "they are scaled to values outside [-1, 1], which no generator can produce: correct the range or the files",
    ),
    "labels": FindingKind(
        "error", True, "Label values that are no class",
        "labels are 0 to the number of classes minus 1; 255 and -1 mark pixels that are not counted",
    ),
    "leak": FindingKind(
        "error", False, "The same pair in two splits",
        "the network is evaluated on pairs that it memorises in training: remove each pair from one of the splits",
    ),
    "shared": FindingKind(
        "warning", False, "The same input, or the same target, in two splits",
        "where several pairs show one scene, keep all of them in one split",
    ),
    "near": FindingKind(
        "warning", False, "Pairs that look alike in two splits",
        "neighbouring frames, crops or re-saved copies make scores too good: keep them in one split",
    ),
    "blocks": FindingKind(
        "warning", False, "One block in two splits",
        "a region, scene or patient in both train and test makes scores too good: assign whole blocks to a split",
    ),
    "stand-in": FindingKind(
        "warning", False, "val and test are the same pairs",
        "a model that is selected on val is then not tested on new pairs; report it, or reserve other pairs for test",
    ),
    "misaligned": FindingKind(
        "warning", False, "Targets that are moved against the input, differently from pair to pair",
        "L1 then rewards blur: align the pairs, or train with a loss that does",
    ),
    "shift": FindingKind(
        "warning", False, "x and y are misaligned",
        "L1 then rewards blur: shift x or y by the distance given, in all pairs of the split, and crop both",
    ),
    "duplicate": FindingKind(
        "warning", False, "The same pair twice in one split",
        "it counts twice in training or in the means: keep one of them",
    ),
    "constant": FindingKind(
        "warning", False, "Images of a single value",
        "a network learns nothing from them, unless they are label maps of a single class: look at them",
    ),
    "range": FindingKind(
        "warning", False, "Values that use little of their range",
        "the range becomes -1 to 1, so such images are nearly constant: set the range; for label maps, a class file",
    ),
    "ids": FindingKind(
        "warning", False, "Pairs that share an id", "files and tables are named by ids: make the ids unique",
    ),
    "few-pairs": FindingKind(
        "warning", False, "Very few pairs",
        "with fewer than ten, G memorises them; a single held-out pair gives no confidence interval",
    ),
    "classes": FindingKind(
        "warning", False, "Classes that are missing in a split",
        "split the pairs so that each class is in every split, or exclude the class from the means (`unscored`)",
    ),
    "dataset-warning": FindingKind(
        "warning", False, "Warnings of the dataset", "`p2pzoo show dataset NAME` describes the dataset",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PairLocation:
    """Which pair a case is about. id: None where the pair could not be read. files: those of the pair, if known."""

    split: Split
    index: int
    id: str | None = None
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = self.id or " + ".join(self.files) or f"pair {self.index}"
        return name if name.startswith(f"{self.split}-") else f"{self.split} {name}"


@dataclass(frozen=True)
class Case:
    """One instance of a finding: a message, and the pairs it is about (there may be none)."""

    message: str
    locations: tuple[PairLocation, ...] = ()

    def __str__(self) -> str:
        if len(self.locations) > 2:
            return f"{self.message}, as in {', '.join(map(str, self.locations))}"
        if any(file in self.message for location in self.locations for file in location.files):
            return self.message
        return ": ".join(filter(None, [" = ".join(map(str, self.locations)), self.message]))


@dataclass(frozen=True)
class Finding:
    """All cases of one kind."""

    kind: str
    cases: Sequence[Case]

    @property
    def about(self) -> FindingKind:
        return FINDING_KINDS[self.kind]

    @property
    def splits(self) -> list[Split]:
        return list(dict.fromkeys(location.split for case in self.cases for location in case.locations))

    def json(self) -> dict[str, Any]:
        cases = [
            {
                "message": case.message,
                "pairs": [{**vars(location), "files": list(location.files)} for location in case.locations],
            }
            for case in self.cases
        ]
        about = self.about
        return {
            "kind": self.kind, "severity": about.severity, "stops_run": about.stops, "what": about.what, "do": about.do,
            "splits": self.splits, "count": len(cases), "cases": cases,
        }  # fmt: skip


def group_findings(cases: Mapping[str, Sequence[Case]]) -> list[Finding]:
    """Cases by kind -> findings, the worst kind first; kinds without cases are left out."""
    return [Finding(kind, cases[kind]) for kind in FINDING_KINDS if cases.get(kind)]
