"""Format the verdicts on claims: terminal, Markdown, an HTML page, and a picture of all effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.runs.pages import figure_to_svg_file, render_page
from p2pzoo.utils.terminal import escape
from p2pzoo_bench.answer import SIGNIFICANCE
from p2pzoo_bench.claims_file import DESCRIBED, NO_EFFECT, OPPOSITE, SAME, UNDECIDED
from p2pzoo_bench.formats import NONE, decimals, markdown_table
from p2pzoo_bench.stale_runs import format_stale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = (
    "", "claim", "rows", "number", "paper", "here [95% interval, unadjusted]", "90% interval inside ±δ", "adjusted p",
    "verdict",
)  # fmt: skip
PAPER = HEAD.index("paper")
WIDEST_PAIR = 36  # characters of the name of two rows, beyond which the picture has the metric on a line of its own
OPEN = "no verdict yet"
GROUPS = {SAME: "As claimed", OPPOSITE: "The opposite", NO_EFFECT: "No effect above δ", UNDECIDED: "Undecided"}
NOTES = (
    "Effects are positive in the direction of the claim, with their 95% interval over folds, not adjusted for the "
    "number of claims; nor are the 90% intervals that decide 'no effect above δ'. p is adjusted (Holm) over all claims "
    "that get a verdict; a claim of several parts has the largest p of them.",
    "δ: the smallest effect that matters, fixed before the runs. A verdict by p says so where the effect is smaller.",
)
PAPER_NOTE = "The paper's effect is from other data and another size: it stands here for its direction."


def names_paper(claims: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an effect of a paper is shown. Claims about rows of one's own have none."""
    return any(part["paper"] is not None for claim in claims for part in claim["parts"])


def build_notes(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    return [*NOTES, *([PAPER_NOTE] if names_paper(claims) else [])]


def describe_training(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each table with what its runs are, and one about runs that other code or data trained.

    [] for claims that were judged before this was written down.

    >>> rows = {"a": {"label": "A", "folds": 3, "images": 2000}, "b": {"label": "B", "folds": 3, "images": 2000}}
    >>> describe_training([{"trained": {"table": "t.toml", "profile": "gpu", "overrides": ["x.y=1"], "rows": rows}}])
    ['t.toml, profile gpu, -s x.y=1. 3 folds, each trained on 2,000 images.']
    """
    tables: dict[str, dict[str, Any]] = {}
    stale: dict[tuple[str, str], Mapping[str, Any]] = {}
    for trained in filter(None, (claim.get("trained") for claim in claims)):
        known = tables.setdefault(trained["table"], {**trained, "rows": {}})
        known["rows"] |= trained["rows"]
        stale |= {(trained["table"], entry["row"]): entry for entry in trained.get("stale", ())}
    lines = []
    for name, trained in tables.items():
        labels: dict[str, list[str]] = {}
        for row in trained["rows"].values():
            length = f"{row['folds']} folds, each trained on {row['images']:,} images"
            labels.setdefault(length, []).append(row["label"])
        lengths = [f"{', '.join(rows)}: {length}" for length, rows in labels.items()] if len(labels) > 1 else labels
        given = "".join(f", -s {override}" for override in trained["overrides"])
        lines.append(f"{name}, profile {trained['profile']}{given}. {'; '.join(lengths)}.")
    return [*lines, *format_stale([*stale.values()])]


def summarize(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Four sentences: what is as claimed, what is the opposite, what has no effect, and what is undecided.

    Each claim stands there with the part that supports its verdict least: of the largest p, or, without an effect, of
    the 90% interval that comes nearest to δ. An undecided claim has its adjusted p, where only the adjustment makes it
    too large, or the part that contradicts it most. Claims that are only described are left out. A further sentence
    says which claims have no verdict yet; before the first verdict it is the only one.
    """
    sentences = []
    if any(claim["verdict"] in GROUPS for claim in claims):
        for verdict, words in GROUPS.items():
            found = [_in_words(claim) for claim in claims if claim["verdict"] == verdict]
            sentences.append(f"{words}: {'; '.join(found) or 'no claim'}.")
    missing = [claim for claim in claims if claim["verdict"] is None and not claim["described"]]
    if missing:
        reasons = "; ".join(f"{claim['id']}, {claim['reason']}" for claim in missing)
        sentences.append(f"{OPEN[0].upper()}{OPEN[1:]}: {reasons}.")
    return sentences


def _in_words(claim: Mapping[str, Any]) -> str:
    words = f"{claim['id']}, {claim['text']}{format_verdict(claim).removeprefix(claim['verdict'])}"
    if not claim["parts"]:
        return f"{words} ({claim['reason']})"
    if claim["verdict"] == NO_EFFECT:
        part = max(claim["parts"], key=lambda part: max(map(abs, part["interval_90"])) / part["margin"])
        number = format_effect({**part, "interval": part["interval_90"]})
        return f"{words} ({_name(claim, part)} {number}, 90% interval, δ = {part['margin']:g})"
    part = max(claim["parts"], key=lambda part: math.inf if part["p"] is None else part["p"])
    further = describe_small_effect(claim) or (_explain_undecided(claim, part) if claim["verdict"] == UNDECIDED else "")
    return f"{words} ({'; '.join(filter(None, [f'{_name(claim, part)} {format_effect(part)}', further]))})"


def _explain_undecided(claim: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """part: the part of the largest p"""
    against = [each for each in claim["parts"] if each["effect"] < 0 and _is_significant(each)]
    if against:
        most = min(against, key=lambda each: float(each["p"]))
        return f"against the claim: {_name(claim, most)} {format_effect(most)}"
    return f"adjusted p = {format_p(claim['adjusted_p'])}" if _is_significant(part) else ""


def _is_significant(part: Mapping[str, Any]) -> bool:
    return part["p"] is not None and part["p"] < SIGNIFICANCE


def describe_small_effect(claim: Mapping[str, Any]) -> str:
    """Which significant effects are smaller than δ: their 90% intervals are inside. "" if none is.

    >>> part = {"margin": 0.142, "interval_90": [0.043, 0.084]}
    >>> describe_small_effect({"verdict": "same direction", "parts": [part, {**part, "margin": 0.137}]})
    'the effects are smaller than δ (0.142, 0.137)'
    """
    small = [part for part in claim["parts"] if is_inside_margin(part)]
    if claim["verdict"] not in (SAME, OPPOSITE) or not small:
        return ""
    margins = ", ".join(dict.fromkeys(f"{part['margin']:g}" for part in small))
    if len(small) < len(claim["parts"]):
        return f"smaller than δ ({margins}): {', '.join(_name(claim, part) for part in small)}"
    return f"the {'effects are' if len(small) > 1 else 'effect is'} smaller than δ ({margins})"


def is_inside_margin(part: Mapping[str, Any]) -> bool:
    """Whether the 90% interval is inside ± δ."""
    return bool(part["margin"] and part["interval_90"]) and max(map(abs, part["interval_90"])) < part["margin"]


def _name(claim: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    pairs = {tuple(each["labels"]) for each in claim["parts"]}
    return (f"{' against '.join(part['labels'])}, " if len(pairs) > 1 else "") + str(part["heading"])


def build_table(claims: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The heading and a row for each part; what belongs to the claim is in its first row only.

    There is no column of the paper's effects if no claim has one.
    """
    head, rows = [*HEAD], _build_rows(claims)
    if not names_paper(claims):
        for line in (head, *rows):
            del line[PAPER]
    return head, rows


def _build_rows(claims: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for claim in claims:
        verdict = format_verdict(claim)
        reason = f" ({reasons})" if (reasons := format_reasons(claim)) else ""
        adjusted = NONE if claim["adjusted_p"] is None else format_p(claim["adjusted_p"])
        parts = [_format_part(part) for part in claim["parts"]] or [[NONE] * 5]
        for number, part in enumerate(parts):
            first = number == 0
            rows.append([
                claim["id"] if first else "", claim["text"] if first else "", *part,
                adjusted if first else "", f"{verdict}{reason}" if first else "",
            ])  # fmt: skip
    return rows


def _format_part(part: Mapping[str, Any]) -> list[str]:
    margin = NONE
    if part["margin"] and part["interval_90"]:
        margin = f"{'yes' if is_inside_margin(part) else 'no'}, δ = {part['margin']:g}"
    paper = NONE if part["paper"] is None else f"{part['paper']:+.2f}".replace("-", "−")
    return [" against ".join(part["labels"]), part["heading"], paper, format_effect(part), margin]


def format_verdict(claim: Mapping[str, Any]) -> str:
    """The verdict, with the number of images at which it holds if the curves of its rows cross.

    >>> format_verdict({"verdict": "same direction", "curves": {"images": [14000, 50000], "cross": True}})
    'same direction at 14,000 images'
    """
    curves = claim.get("curves")
    if curves and curves["cross"] and claim["verdict"] not in (None, DESCRIBED):
        return f"{claim['verdict']} at {curves['images'][0]:,} images"
    return claim["verdict"] or OPEN


def format_reasons(claim: Mapping[str, Any]) -> str:
    """Why the verdict is what it is, whether a significant effect is below δ, and whether the curves of the rows cross;
    "" if there is nothing to say."""
    reasons = [*filter(None, (claim["reason"], describe_small_effect(claim)))]
    if curves := claim.get("curves"):
        change = "changes" if curves["cross"] else "does not change"
        early, late = curves["images"]
        text = f"on {curves['folds']} folds the sign of the difference {change} between {early:,} and {late:,} images"
        pairs = zip(claim["parts"], curves["differences"], strict=True)
        if any(part["effect"] * first < 0 for part, (first, _) in pairs):
            text += f", but at {early:,} it is not that of all folds"
        reasons.append(text)
    return "; ".join(reasons)


def format_effect(part: Mapping[str, Any]) -> str:
    """The effect with its interval.

    >>> format_effect({"effect": 0.031, "interval": [0.012, 0.05]})
    '+0.031 [+0.012, +0.050]'
    """
    interval = part["interval"]
    places = decimals(part["effect"], (interval[1] - interval[0]) / 2 if interval else None)
    text = f"{part['effect']:+.{places}f}"
    if interval:
        text += f" [{interval[0]:+.{places}f}, {interval[1]:+.{places}f}]"
    return text.replace("-", "−")


def format_p(p: float) -> str:
    """
    >>> format_p(0.0314), format_p(0.00001)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def to_markdown(title: str, claims: Sequence[Mapping[str, Any]]) -> str:
    sentences = "\n".join(f"- {sentence}" for sentence in summarize(claims))
    trained = describe_training(claims)
    return "\n\n".join(
        [f"**{title}**", *trained, sentences, markdown_table(*build_table(claims)), *build_notes(claims)]
    )


def to_rich(title: str, claims: Sequence[Mapping[str, Any]]) -> Any:
    """A renderable for a rich Console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    head, rows = build_table(claims)
    for heading in head:
        table.add_column(Text(heading))
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    notes = [Text(escape(note), style="dim") for note in build_notes(claims)]
    sentences = [Text(escape(sentence)) for sentence in summarize(claims)]
    trained = [Text(escape(line)) for line in describe_training(claims)]
    return Group(Text(escape(title), style="bold"), *trained, *sentences, Text(""), table, Text(""), *notes)


def to_html(title: str, source: str, claims: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained page: each claim with its verdict, and the paper's effects beside ours."""
    scales = {claim["id"]: _scale(claim["parts"]) for claim in claims}
    return render_page(
        Path(__file__).with_name("claims.html"), title=title, source=source, claims=claims, scales=scales,
        trained=describe_training(claims), sentences=summarize(claims), notes=build_notes(claims),
        has_paper=names_paper(claims),
        format_verdict=format_verdict, format_reasons=format_reasons,
        format_effect=format_effect, format_p=format_p, format_part=_format_part,
    )  # fmt: skip


def _scale(parts: Sequence[Mapping[str, Any]]) -> Callable[[float], float]:
    """Maps effects to the x of a claim's drawings, 0 to 200: all that they show, with zero and a border."""
    shown = [0.0, *(part["effect"] for part in parts)]
    for part in parts:
        shown += part["interval"] or ()
        shown += [] if part["paper"] is None else [part["paper"]]
        shown += [-part["margin"], part["margin"]] if part["margin"] else []
    low, high = min(shown), max(shown)
    border = 0.06 * (high - low) or 1.0
    return lambda effect: 200 * (effect - low + border) / (high - low + 2 * border)


def to_svg(claims: Sequence[Mapping[str, Any]]) -> str:
    """One picture of all effects: ours with their intervals, the paper's, and ± δ."""
    return figure_to_svg_file(_draw(claims))


def _draw(claims: Sequence[Mapping[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    lines = [(claim, part) for claim in claims for part in claim["parts"]]
    figure = Figure(figsize=(9, 1 + 0.34 * max(len(lines), 1)), layout="constrained")
    axes = figure.subplots()
    for y, (_, part) in enumerate(lines):
        if part["margin"]:
            axes.fill_betweenx([y - 0.4, y + 0.4], -part["margin"], part["margin"], color="#888888", alpha=0.25, lw=0)
        if part["interval"]:
            axes.plot(part["interval"], [y, y], color="#1f6fd6", lw=2)
        axes.plot(part["effect"], y, "o", color="#1f6fd6", label="here, with its 95% interval" if y == 0 else None)
    papers = [(part["paper"], y) for y, (_, part) in enumerate(lines) if part["paper"] is not None]
    if papers:
        axes.plot(*zip(*papers, strict=True), "D", color="#c94f07", mfc="none", label="paper")
    axes.axvline(0, color="#888888", lw=1)
    pairs = [f"{claim['id']}  {' against '.join(part['labels'])}," for claim, part in lines]
    gaps = ["\n" if len(pair) > WIDEST_PAIR else " " for pair in pairs]
    names = [f"{pair}{gap}{part['heading']}" for (_, part), pair, gap in zip(lines, pairs, gaps, strict=True)]
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("effect, positive in the direction of the claim; grey: ± δ")
    if lines:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure
