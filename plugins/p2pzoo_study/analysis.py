"""What the sessions of a perceptual study say: how often people took a fake for real, and whether algorithms differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from p2pzoo_bench.intervals import between_groups, paired_over_blocks
from p2pzoo_bench.table_file import Table
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

Side = Literal["first", "second"]
TOLERANCE_MS = 100  # an image that was shown for longer or shorter than this beside its time says nothing
RESAMPLES = 9999


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Protocol(_Strict):
    display_ms: float
    practice: int
    trials: int
    side: int
    pairing: str


class Trial(_Strict):
    practice: bool
    real: str
    fake: str
    fake_side: Side
    answer: Side
    shown_ms: Annotated[list[float], Field(min_length=2, max_length=2)]
    answer_ms: float
    left_page: bool


class Session(_Strict):
    """One participant with one algorithm, as the page saved it."""

    format: Literal["p2pzoo-study-1"]
    study: str
    session: str
    algorithm: str
    protocol: Protocol
    pixel_ratio: float
    trials: list[Trial]

    @property
    def counted(self) -> list[Trial]:
        """Those after practice that were shown as long as they should have been."""
        asked = self.protocol.display_ms
        return [
            trial
            for trial in self.trials
            if not trial.practice
            and not trial.left_page
            and all(abs(shown - asked) <= TOLERANCE_MS for shown in trial.shown_ms)
        ]


def read_sessions(files: Sequence[Path]) -> list[Session]:
    """Raises UserError with every file that is no whole session, that comes twice, or was made in another way."""
    faults: list[str] = []
    found: dict[tuple[str, str], tuple[Path, Session]] = {}
    for file in files:
        try:
            session = Session.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            faults.append(f"{file}: no session of a study ({where + ': ' if where else ''}{first['msg']})")
            continue
        counts = [sum(trial.practice is practice for trial in session.trials) for practice in (True, False)]
        if counts != [session.protocol.practice, session.protocol.trials]:
            faults.append(f"{file}: {counts[0]} practice trials and {counts[1]} others, which is no whole session")
        elif (key := (session.study, session.session)) in found:
            faults.append(f"{file}: session {session.session} is also in {found[key][0]}")
        elif found and session.protocol != (first_one := next(iter(found.values())))[1].protocol:
            faults.append(f"{file}: another protocol than in {first_one[0]}: analyse them apart")
        else:
            found[key] = (file, session)
    if faults:
        raise UserError(*faults)
    return [session for _, session in found.values()]


def analysed(sessions: Sequence[Session]) -> dict[str, Any]:
    """The fooling rate of each algorithm in percent, and every two algorithms' difference, as plain values.

    What is resampled are participants (studentised bootstrap). Each saw one algorithm, so algorithms are compared as
    groups that share nobody; p is Holm's, over all pairs. A participant of whom no trial counts is left out.
    """
    rates: dict[str, list[float]] = {}
    rows = {}
    for label in sorted({session.algorithm for session in sessions}):
        mine = [session for session in sessions if session.algorithm == label]
        counted = [session.counted for session in mine]
        rates[label] = each = [
            100 * float(np.mean([trial.answer != trial.fake_side for trial in trials])) for trials in counted if trials
        ]
        row: dict[str, Any] = {
            "participants": len(each),
            "trials": sum(map(len, counted)),
            "left_out": sum(session.protocol.trials for session in mine) - sum(map(len, counted)),
        }
        if each:
            values = np.array(each)
            interval = paired_over_blocks(lambda i, v=values: float(v[i].mean()), range(len(each)), resamples=RESAMPLES)  # type: ignore[misc]
            row |= {"fooled": interval.value, "low": interval.low, "high": interval.high}
        rows[label] = row
    pairs = []
    for a, b in itertools.combinations([label for label, each in rates.items() if each], 2):
        interval, p = between_groups(rates[a], rates[b], resamples=RESAMPLES)
        pairs.append({"a": a, "b": b, "difference": interval.value, "low": interval.low, "high": interval.high, "p": p})
    _holm(pairs)
    return {"protocol": sessions[0].protocol.model_dump(), "algorithms": rows, "differences": pairs}


def beside(found: dict[str, Any], table: Table) -> str:
    """The rates of an analysis beside the published ones, as Markdown; algorithms are rows by their labels.

    Raises UserError where the table is of something else, or the analysis has an algorithm that it lacks.
    """
    if not table.study:
        raise UserError(f"{table.name}: no table of a study; p2pzoo bench makes it")
    names = [row.name for row in table.rows]
    if strange := [label for label in found["algorithms"] if label not in names]:
        told = f"no row '{strange[0]}'{nearest(strange[0], names)}"
        raise UserError(f"{table.name}: {told} (p2pzoo study LABEL=RUN says what an algorithm is called)")
    lines = [f"**{table.title}**", "", "|  | labelled real, % | participants | paper |", "| --- | --- | --- | --- |"]
    for row in table.rows:
        ours = found["algorithms"].get(row.name, {})
        ends = f" [{ours['low']:.1f}, {ours['high']:.1f}]" if ours.get("low") is not None else ""
        rate = f"{ours['fooled']:.1f}{ends}" if "fooled" in ours else "–"
        published = " ± ".join(f"{number:g}" for number in row.published.values()) or "–"
        lines.append(f"| {row.label} | {rate} | {ours.get('participants', '–')} | {published} |")
    return "\n".join([*lines, "", f"Paper: {table.source}."])


def _holm(pairs: list[dict[str, Any]]) -> None:
    """Adjust p for there being several (Holm 1979)."""
    known = sorted((pair for pair in pairs if pair["p"] is not None), key=lambda pair: pair["p"])
    least = 0.0
    for rank, pair in enumerate(known):
        least = max(least, min(1.0, pair["p"] * (len(known) - rank)))
        pair["p"] = least
