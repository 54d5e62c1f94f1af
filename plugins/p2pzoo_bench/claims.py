"""Verdicts on claims: same direction, opposite, no effect above δ, or none of them (protocol 2).

A part of a claim compares two rows over folds (folds.py). Its effect is positive in the direction of the claim. A claim
holds only if all of its parts do: its p-value is the largest of theirs, and 1 if their effects have different signs.
The p-values of all claims that get a verdict are adjusted together (Holm). In this order:

    same direction        all effects are positive, and the adjusted p-value is below 0.05
    opposite              all are negative, and the adjusted p-value is below 0.05
    no effect above δ     the 90% interval of each part is inside ± its margin
    undecided             else; also with too few folds, and where a condition of the claim is not met

A claim with runs that are missing has no verdict, and shows no effects: nobody decides by them when to stop. Nor has a
claim whose metric cannot be measured on this machine. Such a claim counts with a p-value of 1, so that other claims can
only become significant when it is complete: one that is not significant before, and would be afterwards if all of them
were, has no verdict until then. In a table with `pooled_spread`, a claim needs the runs of all rows: its intervals
depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.answer import SIGNIFICANCE
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

    missing      number of its runs that are not finished
    unavailable  whether its finished runs have no number to judge it by: its metric cannot be measured here
    reason       why there is no verdict, or why it is undecided
    adjusted_p   Holm's, of the largest p-value of its parts
    crossing     whether its curves cross; None: nothing is said about it
    trained      what its rows trained on (`describe_training`)
    """

    id: str
    claim: Claim
    effects: Sequence[Effect] = ()
    missing: int = 0
    unavailable: bool = False
    reason: str | None = None
    p: float | None = None
    adjusted_p: float | None = None
    verdict: str | None = None
    crossing: Crossing | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it has no verdict yet."""
        return bool(self.missing) or self.unavailable

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
            "trained": dict(self.trained),
            "curves": self.crossing.describe() if self.crossing else None,
            "parts": [effect.describe() for effect in self.effects],
        }


def check_claims(claims: Claims, benches: Mapping[str, Bench]) -> None:
    """Raises UserError for metrics that give no effect: neither direction is better, or a row lacks them."""
    faults = []
    for id, claim in claims.claims.items():
        bench = benches[claim.table]
        for metric in dict.fromkeys(part.metric for part in claim.parts):
            where = f"{claims.where[id]}  [claims.{id}] {metric}"
            if metric_of(metric) in bench.unavailable:
                continue
            if bench.better_direction(metric) is None:
                faults.append(f"{where}: neither more nor less of it is better: name another column")
            elif unmeasured := _find_unmeasured(claim, metric, bench):
                faults.append(f"{where}: '{unmeasured}' is not measured with it: add it to [metrics] of {claim.table}")
        for condition in claim.valid:
            experiment = next(cell.experiment for cell in bench.cells if cell.row.name == condition.row)
            if (name := metric_of(condition.above)) not in experiment.measurements:
                where = f"{claims.where[id]}  [claims.{id}] valid: '{condition.row}'"
                faults.append(f"{where} is not measured with {name}{did_you_mean(name, experiment.measurements)}")
    if faults:
        raise UserError(*faults)


def _find_unmeasured(claim: Claim, metric: str, bench: Bench) -> str | None:
    """A row that lacks a metric of the claim: one of the rows that the metric compares, or the table's baseline."""
    compared = {name for part in claim.parts if part.metric == metric for name in (part.better, part.worse)}
    for cell in bench.cells:
        suffix = cell.row.suffix if cell.row.name in compared else ""
        is_needed = cell.row.name in {*compared, bench.table.baseline}  # the baseline's metric computes the differences
        if is_needed and f"{metric_of(metric)}{suffix}" not in cell.experiment.measurements:
            return cell.row.name
    return None


def describe_training(claim: Claim, bench: Bench, comparison: Comparison) -> dict[str, Any]:
    """What the runs of a claim are: their table, profile and overrides, and the folds and images of each row.

    "stale" has the rows that other code or data trained (stale_runs.py).
    """
    rows = {}
    for name in claim.rows:
        cells = [cell for cell in bench.cells if cell.row.name == name]
        rows[name] = {"label": cells[0].row.label, "folds": len(cells), "images": cells[0].images}
    stale = [entry for entry in comparison.doc.get("stale", ()) if entry["row"] in rows]
    facts = {"table": claim.table, "profile": bench.profile, "overrides": [*bench.given], "rows": rows}
    return facts | ({"stale": stale} if stale else {})


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
        holm([(p_of_open if each.is_open else 1.0) if each.p is None else each.p for each in family])
        for p_of_open in (1.0, 0.0)
    )
    why_open = "whose runs are missing" if any(each.missing for each in family) else "that cannot be measured here"
    for each, p, least_p in zip(family, adjusted, least, strict=True):
        each.adjusted_p = None if each.p is None else p
        if not each.is_open:
            each.verdict = _decide(each, least_p, why_open)
    for each in judged:
        if each.claim.described and not each.is_open:
            each.verdict = DESCRIBED
        if curves and each.effects:
            each.crossing = find_crossing(each.claim, benches, curves)
    return judged


def _decide(judged: Judged, least_p: float, why_open: str) -> str | None:
    """The verdict.

    least_p   the adjusted p-value if all claims that are open turn out to be significant
    why_open  why they are
    """
    if judged.p is None or judged.adjusted_p is None:
        return UNDECIDED
    effects = [effect.difference.value for effect in judged.effects]
    if judged.adjusted_p < SIGNIFICANCE:
        return SAME if effects[0] > 0 else OPPOSITE
    if least_p < SIGNIFICANCE:
        judged.reason = f"its adjusted p depends on claims {why_open}"
        return None
    if all(effect.is_inside_margin for effect in judged.effects):
        return NO_EFFECT
    different_signs = min(effects) < 0 < max(effects)
    judged.reason = "its parts have different signs" if different_signs else "a 90% interval reaches beyond δ"
    return UNDECIDED


def _measure(id: str, claim: Claim, bench: Bench, comparison: Comparison) -> Judged:
    """The claim with its effects and its p-value, without a verdict."""
    judged = Judged(id, claim, trained=describe_training(claim, bench, comparison))
    rows = {row.name: row for row in comparison.rows}
    needed = [row.name for row in bench.table.trained] if bench.table.pooled_spread else claim.rows
    expected = {name: sum(cell.row.name == name for cell in bench.cells) for name in needed}
    judged.missing = sum(expected[name] - len(rows[name].runs) for name in needed)
    unavailable = [part.metric for part in claim.parts if metric_of(part.metric) in bench.unavailable]
    if unavailable:
        judged.unavailable = True
        judged.reason = f"{unavailable[0]}: {bench.unavailable[metric_of(unavailable[0])]}"
        return judged
    if judged.missing:
        judged.reason = _describe_missing(judged.missing, sum(expected.values()))
        return judged
    if lacking := _find_lacking(claim, rows):
        judged.unavailable, judged.reason = True, lacking
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


def _describe_missing(missing: int, needed: int) -> str:
    if missing == needed:
        return "no run is finished"
    return f"{missing} of its {needed} runs {'is' if missing == 1 else 'are'} missing"


def _find_lacking(claim: Claim, rows: Mapping[str, TableRow]) -> str | None:
    """Which number a finished run lacks, as one does that an earlier version of the metric measured."""
    for part in claim.parts:
        for row in (rows[part.better], rows[part.worse]):
            if not all(run.has(part.metric) for run in row.runs):
                return f"'{row.label}' has no {part.metric}"
    return None


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
