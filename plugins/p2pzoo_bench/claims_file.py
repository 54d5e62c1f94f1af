"""Claims files: what a paper, or you, say about the rows of tables, written down before the runs that judge it.

    title = "pix2pix on trial"
    source = "Isola et al. 2017 (v3)"
    curves = "trial_curves.toml"           # longer trainings of some rows: does a sign change later?

    [claims.P1]
    text = "L1 + cGAN is better than L1"
    source = "Table 1"
    table = "trial_losses.toml"            # a table file with folds, relative to this file, or zoo:NAME.toml
    parts = [                              # all of them must hold
        { better = "l1_cgan", worse = "l1", metric = "fcn_score", margin = 0.02, paper = 0.24 },
    ]
    valid = [                              # else there is no verdict: numbers of these rows mean too little
        { row = "l1", metric = "fcn_score", above = "fcn_score.largest_class" },
    ]

    [claims.S1]
    described = true                       # shown without a verdict, and no part of the family of claims
    …

metric  a column of the table. An effect is positive in the direction of the claim: towards the better row
margin  δ: effects below it are too small to matter. Required for a verdict
paper   the effect in the paper, which is shown and never used. None in a claim about rows of your own

Knows neither components nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError

from p2pzoo.config.recipe import Origin, Source
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.table_file import Table, parse_file, read_table

Name = Annotated[str, Field(min_length=1)]
SAME, OPPOSITE, NO_EFFECT, UNDECIDED = "same direction", "opposite", "no effect above δ", "undecided"
DESCRIBED = "described"  # in place of a verdict


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Part(_Strict):
    """A comparison of two rows in one metric. margin: δ, None in a claim that is only described."""

    better: Name
    worse: Name
    metric: Name
    margin: PositiveFloat | None = None
    paper: FiniteFloat | None = None


class Condition(_Strict):
    """The mean of `metric` over the row's folds must be more than that of `above`, another number of the same row."""

    row: Name
    metric: Name
    above: Name


class Claim(_Strict):
    """What is said about rows of a table: every part holds.

    table  the table's file, relative to the claims file
    valid  conditions without which the numbers of the rows mean too little for a verdict
    """

    text: Name
    source: str = ""
    table: Name
    parts: Annotated[tuple[Part, ...], Field(min_length=1, strict=False)]
    valid: Annotated[tuple[Condition, ...], Field(strict=False)] = ()
    described: bool = False

    @property
    def rows(self) -> list[str]:
        """The names of its rows, each once."""
        named = [name for part in self.parts for name in (part.better, part.worse)]
        return list(dict.fromkeys([*named, *(condition.row for condition in self.valid)]))


class _File(_Strict):
    title: Name | None = None
    source: str = ""
    curves: Name | None = None
    claims: Annotated[dict[Name, Claim], Field(min_length=1)]


@dataclass(frozen=True)
class Claims:
    """The content of a claims file.

    tables        {file as the claims name it: table}
    where         {id: the claim's file:line}
    curves        the table of longer trainings, which are read and not trained; None: none is named
    curves_file   its file, as the claims file names it
    curves_where  file:line of the key
    """

    title: str
    source: str
    claims: Mapping[str, Claim]
    tables: Mapping[str, Table]
    where: Mapping[str, str]
    curves: Table | None = None
    curves_file: str = ""
    curves_where: str = ""


def is_claims_file(path: str) -> bool:
    """Whether a file has claims, and not rows. False for a file that cannot be read: `read_table` says why."""
    try:
        return "claims" in parse_file(path)[2]
    except UserError:
        return False


def read_claims(path: str) -> Claims:
    """Read a claims file and its tables. Raises UserError with every fault."""
    file, source, tree = parse_file(path)
    try:
        content = _File.model_validate(tree)
    except ValidationError as error:
        raise UserError(*_describe_faults(error, source)) from None
    where = {id: str(Origin(source, ("claims", id))) for id in content.claims}
    tables: dict[str, Table] = {}
    faults: list[str] = []
    for id, claim in content.claims.items():
        name = claim.table
        try:
            if name not in tables:
                tables[name] = _read_beside(file, name)
                if tables[name].search:
                    faults.append(f"{where[id]}  [claims.{id}] {name} has [search]: write the settings into its rows")
        except UserError as error:
            faults += [f"{where[id]}  [claims.{id}] {fault}" for fault in error.faults]
            continue
        faults += [f"{where[id]}  [claims.{id}] {fault}" for fault in _find_faults(claim, tables[name])]
    curves, curves_where = None, str(Origin(source, ("curves",)))
    if content.curves is not None:
        try:
            curves = _read_beside(file, content.curves)
            if not curves.folds:
                faults.append(f"{curves_where}  curves: {content.curves} has no folds: set folds = 3 in the table")
            if curves.search:
                name = content.curves
                faults.append(f"{curves_where}  curves: {name} has [search]: write the settings into its rows")
        except UserError as error:
            faults += [f"{curves_where}  curves: {fault}" for fault in error.faults]
    if faults:
        raise UserError(*faults)
    return Claims(
        content.title or file.stem, content.source, content.claims, tables, where, curves, content.curves or "",
        curves_where,
    )  # fmt: skip


def _read_beside(file: Path, name: str) -> Table:
    """The table of this name, relative to the claims file."""
    return read_table(name if name.startswith("zoo:") else str(file.parent / name))


def _describe_faults(error: ValidationError, source: Source) -> Iterator[str]:
    for fault in error.errors():
        key = tuple(str(part) for part in fault["loc"])
        message = {"extra_forbidden": "there is no such key", "missing": "is missing"}.get(fault["type"], fault["msg"])
        yield f"{Origin(source, key)}  {'.'.join(key)}: {message[0].lower()}{message[1:]}"


def _find_faults(claim: Claim, table: Table) -> Iterator[str]:
    """What the claim names and its table does not have."""
    if not table.folds:
        yield f"{claim.table} has no folds: a verdict needs the interval over folds (set folds = 10 in the table)"
    trained = [row.name for row in table.trained]
    for name in claim.rows:
        if name not in trained:
            yield f"{claim.table} has no row '{name}' with a recipe{did_you_mean(name, trained)}"
    for part in claim.parts:
        if part.metric not in table.columns:
            yield f"{claim.table} has no column '{part.metric}'{did_you_mean(part.metric, table.columns)}"
        if part.margin is None and not claim.described:
            yield f"{part.better} against {part.worse} in {part.metric} has no margin: a verdict needs one"
        if part.better == part.worse:
            yield f"a part compares '{part.better}' with itself"
    for condition in claim.valid:
        if condition.metric not in table.columns:
            yield f"{claim.table} has no column '{condition.metric}'{did_you_mean(condition.metric, table.columns)}"
