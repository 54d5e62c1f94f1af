"""Analyse the sessions of a perceptual study: how often people took a fake for real, and whether algorithms differ."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from p2pzoo_bench.intervals import between_groups, paired_over_blocks
from p2pzoo_bench.table_file import Table
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean

Side = Literal["first", "second"]
# A trial does not count if an image was shown this much longer or shorter than the protocol says: a busy machine
# drops a few frames of 17 ms, and more would change how hard the trial is.
TOLERANCE_MS = 100
RESAMPLES = 9999  # resolves p down to 1e-4, which Holm's method multiplies by the number of pairs


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
        """The trials after practice whose images were shown for the right time."""
        display_ms = self.protocol.display_ms
        return [
            trial
            for trial in self.trials
            if not trial.practice
            and not trial.left_page
            and all(abs(milliseconds - display_ms) <= TOLERANCE_MS for milliseconds in trial.shown_ms)
        ]


def read_sessions(files: Sequence[Path]) -> list[Session]:
    """Read the files that the study's page saved.

    Raises UserError with every file that is not a complete session, occurs twice, or has another protocol.
    """
    faults: list[str] = []
    sessions: dict[tuple[str, str], tuple[Path, Session]] = {}
    for file in files:
        refuse_pipe(file)
        try:
            session = Session.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where + ': ' if where else ''}{first['msg']}"
            faults.append(
                f"{file}: not a session of a study ({reason}): give the files that the page of p2pzoo study saved"
            )
            continue
        if fault := _session_fault(session, sessions):
            faults.append(f"{file}: {fault}")
        else:
            sessions[session.study, session.session] = (file, session)
    if faults:
        raise UserError(*faults)
    return [session for _, session in sessions.values()]


def _session_fault(session: Session, others: Mapping[tuple[str, str], tuple[Path, Session]]) -> str | None:
    """Why the session cannot be analysed with the others; None if it can."""
    protocol = session.protocol
    practice, counting = (sum(trial.practice is kind for trial in session.trials) for kind in (True, False))
    if (practice, counting) != (protocol.practice, protocol.trials):
        return (
            f"not a complete session: {format_count(practice, 'practice trial')} and {format_count(counting, 'other')} "
            f"instead of {protocol.practice} and {protocol.trials}"
        )
    if other := others.get((session.study, session.session)):
        return f"session {session.session} is also in {other[0]}: give one of the two"
    if others and protocol != (first := next(iter(others.values())))[1].protocol:
        return f"has another protocol than {first[0]}: analyse them separately"
    return None


def analyse(sessions: Sequence[Session]) -> dict[str, Any]:
    """The fooling rate of each algorithm in percent, and the difference between every two, as plain values.

    Participants are resampled (studentised bootstrap). Each saw one algorithm, so algorithms are compared as groups of
    different people; p is adjusted by Holm's method over all pairs. A participant without a trial that counts is
    ignored.
    """
    rates: dict[str, list[float]] = {}
    rows = {}
    for label in sorted({session.algorithm for session in sessions}):
        of_label = [session for session in sessions if session.algorithm == label]
        rates[label] = [_fooling_rate(session.counted) for session in of_label if session.counted]
        rows[label] = _describe_algorithm(of_label, rates[label])
    pairs = []
    for a, b in itertools.combinations([label for label, values in rates.items() if values], 2):
        interval, p = between_groups(rates[a], rates[b], resamples=RESAMPLES)
        pairs.append({"a": a, "b": b, "difference": interval.value, "low": interval.low, "high": interval.high, "p": p})
    _adjust_p(pairs)
    return {"protocol": sessions[0].protocol.model_dump(), "algorithms": rows, "differences": pairs}


def _fooling_rate(trials: Sequence[Trial]) -> float:
    """How often the participant took the fake for real, in percent."""
    return 100 * float(np.mean([trial.answer != trial.fake_side for trial in trials]))


def _describe_algorithm(sessions: Sequence[Session], rates: Sequence[float]) -> dict[str, Any]:
    """An algorithm's entry of the analysis. rates: of each participant, in percent."""
    counted = sum(len(session.counted) for session in sessions)
    row: dict[str, Any] = {
        "participants": len(rates),
        "trials": counted,
        "left_out": sum(session.protocol.trials for session in sessions) - counted,
    }
    if rates:
        values = np.array(rates)
        interval = paired_over_blocks(lambda i: float(values[i].mean()), range(len(rates)), resamples=RESAMPLES)
        row |= {"fooled": interval.value, "low": interval.low, "high": interval.high}
    return row


def check_table(analysis: dict[str, Any], table: Table) -> None:
    """Raises UserError if the table is not a study's, or lacks a row for an algorithm."""
    if not table.study:
        raise UserError(f"{table.name}: not the table of a study; p2pzoo bench prints it")
    names = [row.name for row in table.rows]
    if unknown := [label for label in analysis["algorithms"] if label not in names]:
        raise UserError(
            f"{table.name}: no row '{unknown[0]}'{did_you_mean(unknown[0], names)} (p2pzoo study LABEL=RUN sets the "
            "label of an algorithm)"
        )


def format_table(analysis: dict[str, Any], table: Table) -> str:
    """The rates of an analysis and the published ones, as Markdown. A row's name is the label of an algorithm."""
    lines = [f"**{table.title}**", "", "|  | labelled real, % | participants | paper |", "| --- | --- | --- | --- |"]
    for row in table.rows:
        ours = analysis["algorithms"].get(row.name, {})
        interval = f" [{ours['low']:.1f}, {ours['high']:.1f}]" if ours.get("low") is not None else ""
        rate = f"{ours['fooled']:.1f}{interval}" if "fooled" in ours else "–"
        published = " ± ".join(f"{number:g}" for number in row.published.values()) or "–"
        lines.append(f"| {row.label} | {rate} | {ours.get('participants', '–')} | {published} |")
    return "\n".join([*lines, "", f"Paper: {table.source}."])


def _adjust_p(pairs: list[dict[str, Any]]) -> None:
    """Adjust p for the number of pairs, in place (Holm 1979)."""
    tested = sorted((pair for pair in pairs if pair["p"] is not None), key=lambda pair: pair["p"])
    smallest = 0.0  # adjusted values never decrease in this order
    for rank, pair in enumerate(tested):
        smallest = max(smallest, min(1.0, pair["p"] * (len(tested) - rank)))
        pair["p"] = smallest
