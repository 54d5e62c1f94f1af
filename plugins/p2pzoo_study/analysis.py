"""Analyse the sessions of a perceptual study: how often people took a fake for real, and whether algorithms differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from p2pzoo_bench.intervals import CONFIDENCE, MIN_BLOCKS, Interval, between_groups
from p2pzoo_bench.table_file import Table
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean

Side = Literal["first", "second"]
# A trial does not count if an image was shown this much longer or shorter than the protocol says: a busy machine
# drops a few frames of 17 ms, and more would change how hard the trial is.
TOLERANCE_MS = 100
MIN_DESIGN_EFFECT = 0.35  # below it, a handful of equal answers would give an interval that is far too short
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
    if twice := others.get((session.study, session.session)):
        return f"session {session.session} is also in {twice[0]}: give one of the two"
    for file, other in others.values():
        if other.algorithm == session.algorithm and other.study != session.study:
            return (
                f"'{session.algorithm}' is another study's algorithm in {file}, of other images or another model: "
                "analyse them separately, or give the pages different labels (p2pzoo study LABEL=RUN)"
            )
    if others and protocol != (first := next(iter(others.values())))[1].protocol:
        return f"has another protocol than {first[0]}: analyse them separately"
    return None


def analyse(sessions: Sequence[Session]) -> dict[str, Any]:
    """The fooling rate of each algorithm in percent, and the difference between every two, as plain values.

    Participants are independent, their trials are not: see `rate_interval`. Each saw one algorithm, so algorithms are
    compared as groups of different people: the interval of a difference is that of Newcombe (1998,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10) from the intervals of both rates,
    and p is by bootstrap, adjusted by Holm's method over all pairs. Both are None if one session id is in both groups,
    as `index.html?session=anna-1` of two pages makes it. A participant without a trial that counts is ignored.
    """
    rates: dict[str, list[float]] = {}
    people: dict[str, set[str]] = {}
    rows = {}
    for label in sorted({session.algorithm for session in sessions}):
        of_label = [session for session in sessions if session.algorithm == label]
        rates[label] = [_fooling_rate(session.counted) for session in of_label if session.counted]
        people[label] = {session.session for session in of_label if session.counted}
        rows[label] = _describe_algorithm(of_label, rates[label])
    pairs = []
    for a, b in itertools.combinations([label for label, values in rates.items() if values], 2):
        same_people = len(people[a] & people[b])
        interval, p = _compare(rows[a], rows[b]), between_groups(rates[a], rates[b], resamples=RESAMPLES)[1]
        if same_people:
            interval, p = Interval(interval.value), None
        pairs.append(
            {"a": a, "b": b, "difference": interval.value, "low": interval.low, "high": interval.high, "p": p,
             "same_people": same_people}
        )  # fmt: skip
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
        interval = rate_interval(rates, [len(session.counted) for session in sessions if session.counted])
        row |= {"fooled": interval.value, "low": interval.low, "high": interval.high}
    return row


def rate_interval(rates: Sequence[float], trials: Sequence[int]) -> Interval:
    """The mean rate of participants in percent, with its 95% interval: within 0 to 100, and never without a width.

    rates   of each participant, in percent
    trials  of each participant

    Wilson's score interval (1927, doi:10.1080/01621459.1927.10502953) with Student's t in place of the normal quantile.
    The trials of a participant resemble each other, so the number of trials is divided by the design effect: the
    variance between participants over that of independent trials (Kish 1965, §5.4). A few participants estimate it
    badly, and may agree by chance: it is at least MIN_DESIGN_EFFECT, and 1 if all answers are equal. There is no
    interval with fewer than MIN_BLOCKS participants.

    >>> interval = rate_interval([0.0] * 9 + [2.5], [40] * 10)
    >>> interval.value, round(interval.low, 2), round(interval.high, 2)
    (0.25, 0.04, 1.72)
    """
    p, n = float(np.mean(rates)) / 100, len(rates)
    if n < MIN_BLOCKS:
        return Interval(100 * p)
    count = n / float(np.mean(1 / np.asarray(trials)))  # the variance of the mean of rates is p (1 - p) over it
    independent = p * (1 - p) / count
    effect = float(np.var(np.asarray(rates) / 100, ddof=1)) / n / independent if independent > 0 else 1.0
    count /= max(effect, MIN_DESIGN_EFFECT)
    z = float(student.ppf((1 + CONFIDENCE) / 2, n - 1))
    middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    # at 0% and 100% the ends are exact: rounding must not put the rate outside
    return Interval(100 * p, 100 * max(0.0, min(p, middle - half)), 100 * min(1.0, max(p, middle + half)))


def _compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Interval:
    """The rate of an algorithm minus that of another one, from their entries of the analysis."""
    difference = a["fooled"] - b["fooled"]
    if a["low"] is None or b["low"] is None:
        return Interval(difference)
    below = math.hypot(a["fooled"] - a["low"], b["high"] - b["fooled"])
    above = math.hypot(a["high"] - a["fooled"], b["fooled"] - b["low"])
    return Interval(difference, difference - below, difference + above)


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
