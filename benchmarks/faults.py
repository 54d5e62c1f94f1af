"""The fault campaign at length: every fault of tests/faults, many times, each time elsewhere.

    python benchmarks/faults.py -o benchmarks/results/faults.json
    python benchmarks/faults.py --kind kills,disk --times 20

A fault is survived where what was promised held. Bytes lost are those of files that were whole when it struck, and
after the run had gone on were neither as they had been nor superseded.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import campaign
import click
import measure

FOLDER = campaign.TESTS / "faults"
KINDS = sorted(file.stem.removeprefix("test_") for file in FOLDER.glob("test_*.py"))


@click.command()
@click.option("--kind", "kinds", metavar="KIND,…", help=f"Of {', '.join(KINDS)} [default: all].")
@click.option("--times", default=30, show_default=True, help="How often each, but for those that are one of a kind.")
@click.option("--kills", default=100, show_default=True, help="How many processes are killed at random moments.")
@click.option("--seed", default=0, show_default=True, help="Of where and when they strike.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
def main(kinds: str | None, times: int, kills: int, seed: int, output: Path | None) -> None:
    """Inflict faults on runs, and say what came of it."""
    asked = [name for kind in (kinds or ",".join(KINDS)).lower().split(",") for name in KINDS if name.startswith(kind)]
    if not asked:
        raise click.UsageError(f"--kind {kinds}: there are {', '.join(KINDS)}")
    began = time.monotonic()
    files = [FOLDER / f"test_{name}.py" for name in asked]
    options = [f"--times={times}", f"--kills={kills}", f"--seed={seed}"]
    rows = [row(told) for told in campaign.figures(files, options, "promise")]
    result = {
        "benchmark": "faults", "times": times, "kills": kills, "seed": seed, "faults": rows,
        **{name: sum(each[name] for each in rows) for name in ("tried", "survived", "bytes_lost")},
        "minutes": round((time.monotonic() - began) / 60, 1), "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(table(result))
    sys.exit(result["survived"] < result["tried"])


def row(told: dict[str, Any]) -> dict[str, Any]:
    """A fault's figures. A test is one fault, but one that tells how many it tried."""
    failed = told["tests"] - told["passed"]
    tried = sum(each.get("tried", 1) for each in told["told"])
    observed = Counter(each["observed"] for each in told["told"] if "observed" in each)
    return {
        "kind": told["kind"], "fault": told["what"], "promised": told["promised"], "observed": dict(observed),
        "tried": tried, "survived": sum(each.get("survived", 1) for each in told["told"]) - failed,
        "bytes_lost": sum(each.get("bytes_lost", 0) for each in told["told"]),
        "skipped": told["skipped"], "failures": told["failures"],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = ["| fault | promised | tried | as promised | bytes lost |", "|---|---|---|---|---|"]
    for each in result["faults"]:
        counts = f"{each['tried']} | {each['survived']} | {each['bytes_lost'] or 'none'} |"
        lines.append(f"| {each['kind']}: {each['fault']} | {each['promised']} | {counts}")
    lines.append(f"| **all** | | {result['tried']} | {result['survived']} | {result['bytes_lost'] or 'none'} |")
    skipped = [each["fault"] for each in result["faults"] if each["skipped"]]
    return "\n".join([*lines, *(["", f"Not tried here: {', '.join(skipped)}."] if skipped else [])])


if __name__ == "__main__":
    main()
