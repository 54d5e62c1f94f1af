"""How rows are named in sentences: those of one training together, such as "flow (2 steps; 10 steps)"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LABEL = re.compile(r"(?P<stem>.+?)(?: \((?P<inside>[^()]+)\)|, (?P<behind>[^()]+))")


def group_by_training(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows of a document by their training: those that show the same runs are in one list, in their order.

    >>> runs = [{"runs": [{"id": "a"}]}, {"runs": [{"id": "b"}]}, {"runs": [{"id": "a"}]}, {"runs": []}]
    >>> [len(group) for group in group_by_training(runs)]
    [2, 1, 1]
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        ids = tuple(run.get("id") for run in row.get("runs", ()))
        groups.setdefault(ids if ids and None not in ids else number, []).append(row)
    return [*groups.values()]


def name_together(labels: Sequence[str], details: Sequence[str] = ()) -> str:
    """One name for the rows of one training.

    details  of each row, behind its label

    >>> name_together(["flow (2 steps)", "flow (10 steps)"]), name_together(["flow"], ["−0.1"])
    ('flow (2 steps; 10 steps)', 'flow (−0.1)')
    >>> name_together(["flow, last", "flow, average"], ["−0.1", "−0.2"])
    'flow (last −0.1; average −0.2)'
    >>> name_together(["flow", "flow, 1 step"])
    'flow & flow, 1 step'
    """
    details = details or [""] * len(labels)
    matches = [_LABEL.fullmatch(label) for label in labels]
    if len(labels) > 1 and len({match and match["stem"] for match in matches}) == 1 and matches[0]:
        parts = [match["inside"] or match["behind"] for match in matches if match]
        both = (f"{part} {detail}".strip() for part, detail in zip(parts, details, strict=True))
        return f"{matches[0]['stem']} ({'; '.join(both)})"
    both = (f"{label} ({detail})" if detail else label for label, detail in zip(labels, details, strict=True))
    return " & ".join(both)


def join_names(names: Sequence[str]) -> str:
    """
    >>> join_names(["a"]), join_names(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])
