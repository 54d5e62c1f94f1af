"""Verdicts on claims: same direction, opposite, no effect above δ, or none of them (protocol 2).

A part of a claim compares two rows over folds (folds.py). Its effect is positive in the direction of the claim. A claim
holds only if all of its parts do: its p-value is the largest of theirs, and 1 if their effects have different signs.
The p-values of all claims that get a verdict are adjusted together (Holm). In this order:

    same direction        all effects are positive, and the adjusted p-value is below 0.05
    opposite              all are negative, and the adjusted p-value is below 0.05
    no effect above δ     the 90% interval of each part is inside ± its margin
    undecided             else; also with too few folds, and where a condition of the claim is not met

A claim with runs that are missing has no verdict, and shows no effects: nobody decides by them when to stop. It is
adjusted for with a p-value of 1, so that other claims can only become significant when it is complete: one that is not
significant before, and would be afterwards if all missing ones were, has no verdict until then. In a
table with `pooled_spread`, a claim needs the runs of all rows: its intervals depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.claims_file import (
    DESCRIBED,
    NO_EFFECT,
    OPPOSITE,
    SAME,
    UNDECIDED,
    Claim,
    Claims,
    Condition,
    Part,
)
from p2pzoo_bench.comparison import (
    CachedReduce,
    Comparison,
    TableRow,
    check_same_images,
    difference_over_folds,
    metric_of,
    pair_runs,
)
from p2pzoo_bench.crossing_curves import Crossing, find_crossing
from p2pzoo_bench.folds import MIN_FOLDS, FoldDifference, holm
from p2pzoo_bench.intervals import Interval

SIGNIFICANCE = 0.05
EQUIVALENCE = 0.9  # confidence of the interval that must lie inside ± δ: two one-sided tests at 5%


@dataclass(frozen=True)
class Effect:
    """A part of a claim, measured. Positive values: in the direction of the claim.

    heading         of the metric's column
    labels          of the better and of the worse row
    difference      over folds
    blocks          interval of a bootstrap over blocks, a diagnostic
    test_per_train  test tiles / training tiles of a fold, for the wider interval of Nadeau & Bengio
    """

    part: Part
    heading: str
    labels: tuple[str, str]
    difference: FoldDifference
    blocks: Interval
    test_per_train: float

    @property
    def is_inside_margin(self) -> bool:
        ends = _ends(self.difference.interval(EQUIVALENCE))
        return bool(ends and self.part.margin and max(map(abs, ends)) < self.part.margin)

    def describe(self) -> dict[str, Any]:
        """The part as plain values."""
        plain, wider = (self.difference.interval(test_per_train=ratio) for ratio in (0.0, self.test_per_train))
        return {
            "metric": self.part.metric,
            "better": self.part.better,
            "worse": self.part.worse,
            "heading": self.heading,
            "labels": list(self.labels),
            "effect": self.difference.value,
            "interval": _ends(plain),
            "p": self.difference.p,
            "paper": self.part.paper,
            "margin": self.part.margin,
            "interval_90": _ends(self.difference.interval(EQUIVALENCE)),
            "interval_nadeau_bengio": _ends(wider),
            "interval_over_blocks": _ends(self.blocks),
            "folds": list(self.difference.of),
        }


@dataclass
class Judged:
    """A claim with what was measured of it.

    missing     number of its runs that are not finished
    reason      why there is no verdict, or why it is undecided
    adjusted_p  Holm's, of the largest p-value of its parts
    crossing    whether its curves cross; None: nothing is said about it
    """

    id: str
    claim: Claim
    effects: Sequence[Effect] = ()
    missing: int = 0
    reason: str | None = None
    p: float | None = None
    adjusted_p: float | None = None
    verdict: str | None = None
    crossing: Crossing | None = None

    def describe(self) -> dict[str, Any]:
        """The claim as plain values."""
        return {
            "id": self.id,
            "text": self.claim.text,
            "source": self.claim.source,
            "described": self.claim.described,
            "verdict": self.verdict,
            "reason": self.reason,
            "p": self.p,
            "adjusted_p": self.adjusted_p,
            "missing_runs": self.missing,
            "curves": self.crossing.describe() if self.crossing else None,
            "parts": [effect.describe() for effect in self.effects],
        }


def check_claims(claims: Claims, benches: Mapping[str, Bench]) -> None:
    """Raises UserError for metrics of which neither direction is better: no effect of them can be in a direction."""
    faults = []
    for id, claim in claims.claims.items():
        bench = benches[claim.table]
        for metric in dict.fromkeys(part.metric for part in claim.parts):
            if metric_of(metric) not in bench.unavailable and bench.better_direction(metric) is None:
                where = f"{claims.where[id]}  [claims.{id}]"
                faults.append(f"{where} {metric}: neither more nor less of it is better: name another column")
        for condition in claim.valid:
            experiment = next(cell.experiment for cell in bench.cells if cell.row.name == condition.row)
            if (name := metric_of(condition.above)) not in experiment.measurements:
                where = f"{claims.where[id]}  [claims.{id}] valid: '{condition.row}'"
                faults.append(f"{where} is not measured with {name}{did_you_mean(name, experiment.measurements)}")
    if faults:
        raise UserError(*faults)


def judge(
    claims: Claims,
    benches: Mapping[str, Bench],
    comparisons: Mapping[str, Comparison],
    curves: Bench | None = None,
) -> list[Judged]:
    """The claims with their verdicts, in the order of the file.

    benches, comparisons  {file of a table as the claims name it: it}
    curves                the table of longer trainings
    """
    judged = [
        _measure(id, claim, benches[claim.table], comparisons[claim.table]) for id, claim in claims.claims.items()
    ]
    family = [each for each in judged if not each.claim.described]
    adjusted, least = (
        holm([(p_of_missing if each.missing else 1.0) if each.p is None else each.p for each in family])
        for p_of_missing in (1.0, 0.0)
    )
    for each, p, least_p in zip(family, adjusted, least, strict=True):
        each.adjusted_p = None if each.p is None else p
        if not each.missing:
            each.verdict = _decide(each, least_p)
    for each in judged:
        if each.claim.described and not each.missing:
            each.verdict = DESCRIBED
        if curves and each.effects:
            each.crossing = find_crossing(each.claim, benches, curves)
    return judged


def _decide(judged: Judged, least_p: float) -> str | None:
    """The verdict. least_p: the adjusted p-value if all claims that miss runs turn out to be significant."""
    if judged.p is None or judged.adjusted_p is None:
        return UNDECIDED
    effects = [effect.difference.value for effect in judged.effects]
    if judged.adjusted_p < SIGNIFICANCE:
        return SAME if effects[0] > 0 else OPPOSITE
    if least_p < SIGNIFICANCE:
        judged.reason = "its adjusted p depends on claims whose runs are missing"
        return None
    if all(effect.is_inside_margin for effect in judged.effects):
        return NO_EFFECT
    different_signs = min(effects) < 0 < max(effects)
    judged.reason = "its parts have different signs" if different_signs else "a 90% interval reaches beyond δ"
    return UNDECIDED


def _measure(id: str, claim: Claim, bench: Bench, comparison: Comparison) -> Judged:
    """The claim with its effects and its p-value, without a verdict."""
    judged = Judged(id, claim)
    rows = {row.name: row for row in comparison.rows}
    needed = [row.name for row in bench.table.trained] if bench.table.pooled_spread else claim.rows
    expected = {name: sum(cell.row.name == name for cell in bench.cells) for name in needed}
    judged.missing = sum(expected[name] - len(rows[name].runs) for name in needed)
    unavailable = [part.metric for part in claim.parts if metric_of(part.metric) in bench.unavailable]
    if unavailable:
        judged.reason = f"{unavailable[0]}: {bench.unavailable[metric_of(unavailable[0])]}"
        return judged
    if judged.missing:
        judged.reason = f"{judged.missing} of its {sum(expected.values())} runs are missing"
        return judged
    judged.effects = [_measure_part(part, rows, bench, comparison) for part in claim.parts]
    if min(effect.difference.folds for effect in judged.effects) < MIN_FOLDS:
        judged.reason = f"fewer than {MIN_FOLDS} folds give no interval"
    elif infinite := [effect.heading for effect in judged.effects if not math.isfinite(effect.difference.value)]:
        judged.reason = f"{infinite[0]} is not a finite number in every fold"
    elif unmet := [reason for condition in claim.valid if (reason := _is_unmet(condition, rows[condition.row]))]:
        judged.reason = unmet[0]
    elif any(effect.difference.p is None for effect in judged.effects):
        judged.reason = "all folds have the same difference: there is no interval"
    else:
        signs = {effect.difference.value > 0 for effect in judged.effects}
        judged.p = max(effect.difference.p or 0.0 for effect in judged.effects) if len(signs) == 1 else 1.0
    return judged


def _measure_part(part: Part, rows: Mapping[str, TableRow], bench: Bench, comparison: Comparison) -> Effect:
    better, worse = rows[part.better], rows[part.worse]
    pairs = pair_runs(better, worse, folds=True)
    name, _, key = part.metric.partition(".")
    check_same_images(part.metric, better, worse, pairs, folds=True)
    reduce = CachedReduce(comparison.metrics[name], name)
    sign = 1 if bench.better_direction(part.metric) == "higher" else -1
    difference, blocks = difference_over_folds(pairs, reduce, key or "value", comparison.spreads.get(part.metric))
    if sign < 0:
        difference = replace(difference, value=-difference.value, of=tuple(-value for value in difference.of))
        blocks = Interval(-blocks.value, *(None if end is None else -end for end in (blocks.high, blocks.low)))
    return Effect(
        part,
        bench.table.columns[part.metric],
        (better.label, worse.label),
        difference,
        blocks,
        bench.test_per_train(better.experiment),
    )


def _is_unmet(condition: Condition, row: TableRow) -> str | None:
    """Why a condition is not met by a row's runs; None if it is met."""
    if lacking := [name for name in (condition.metric, condition.above) if not row.runs[0].has(name)]:
        return f"'{row.label}' has no {lacking[0]}"
    value, above = (np.mean([run.number(name) for run in row.runs]) for name in (condition.metric, condition.above))
    if value > above:
        return None
    return f"'{row.label}' has {condition.metric} {value:.3f}, not above {condition.above} {above:.3f}"


def _ends(interval: Interval) -> list[float] | None:
    return None if interval.low is None or interval.high is None else [interval.low, interval.high]
