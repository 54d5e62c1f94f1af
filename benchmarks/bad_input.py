"""The bad-input campaign at length: inputs that a stranger may hand us, drawn by hypothesis.

    python benchmarks/bad_input.py --cases 10000 -o benchmarks/results/bad_input.json

Each input is taken, or refused as the user's mistake in lines that a terminal can show. A traceback, a hang (20 s), or
2 GiB of memory more fail it; the smallest input that does so is printed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import campaign
import click
import measure


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="Inputs of each kind; a tenth of whole pages.")
@click.option("--seed", default=0, show_default=True, help="Of what they are.")
@click.option("--only", metavar="WORD", help="Of kinds with this word in their name, as pytest's -k.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
def main(cases: int, seed: int, only: str | None, output: Path | None) -> None:
    """Try bad input of every kind."""
    began = time.monotonic()
    options = [f"--cases={cases}", f"--seed={seed}", *(["-k", only] if only else [])]
    rows = [row(told) for told in campaign.figures([campaign.TESTS / "bad_input"], options)]
    result = {
        "benchmark": "bad_input", "cases": cases, "seed": seed, "inputs": rows,
        **{name: sum(each[name] for each in rows) for name in ("tried", "taken", "refused", "failed")},
        "minutes": round((time.monotonic() - began) / 60, 1), "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(table(result))
    sys.exit(result["failed"] > 0)


def row(told: dict[str, Any]) -> dict[str, Any]:
    taken, refused = (sum(each.get(name, 0) for each in told["told"]) for name in ("taken", "refused"))
    return {
        "input": told["what"], "tried": taken + refused + len(told["failures"]), "taken": taken, "refused": refused,
        "failed": len(told["failures"]), "failures": told["failures"],
        "slowest_seconds": max((each.get("slowest", 0) for each in told["told"]), default=0),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = [
        "| input | tried | taken | refused in a line | tracebacks, hangs | slowest, s |",
        "|---|---|---|---|---|---|",
    ]
    for each in [*result["inputs"], {**result, "input": "**all**"}]:
        slowest = f"{each['slowest_seconds']:.2f}" if "slowest_seconds" in each else ""
        counts = " | ".join(f"{each[name]:,}" for name in ("tried", "taken", "refused"))
        lines.append(f"| {each['input']} | {counts} | {each['failed'] or 'none'} | {slowest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
