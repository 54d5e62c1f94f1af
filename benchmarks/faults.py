"""Run every fault of tests/faults many times, each time at another moment.

    python benchmarks/faults.py -o benchmarks/results/faults.json
    python benchmarks/faults.py --kind kills,disk --times 20

A fault is survived if the promise of its test holds. Lost bytes are bytes of files that were complete at the fault and,
after the run was resumed, were neither unchanged nor replaced by newer files.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import campaign
import click
import measure

FOLDER = campaign.TESTS / "faults"
KINDS = sorted(file.stem.removeprefix("test_") for file in FOLDER.glob("test_*.py"))


@click.command()
@click.option("--kind", "kinds", metavar="KIND,…", help=f"Kinds of faults: {', '.join(KINDS)} [default: all].")
@click.option("--times", default=30, show_default=True, help="Repetitions of each fault that can vary.")
@click.option("--kills", default=100, show_default=True, help="Number of processes killed at random moments.")
@click.option("--seed", default=0, show_default=True, help="Seed of the places and moments of the faults.")
@click.option("--jobs", default=1, show_default=True, help="Test functions that run side by side.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write the result to this file; a stopped campaign goes on.",
)
def main(kinds: str | None, times: int, kills: int, seed: int, jobs: int, output: Path | None) -> None:
    """Inflict faults on runs and print how many each promise survived."""
    selected = [
        name for kind in (kinds or ",".join(KINDS)).lower().split(",") for name in KINDS if name.startswith(kind)
    ]
    if not selected:
        raise click.UsageError(f"--kind {kinds}: unknown kind; choose from {', '.join(KINDS)}")
    files = [FOLDER / f"test_{name}.py" for name in selected]
    options = [f"--times={times}", f"--kills={kills}", f"--seed={seed}"]
    tests = campaign.run_tests(files, options, "promise", jobs=jobs, output=output)
    rows = [row(figures) for figures in tests]
    result = {
        "benchmark": "faults", "times": times, "kills": kills, "seed": seed, "faults": rows,
        **{name: sum(each[name] for each in rows) for name in ("tried", "survived", "bytes_lost")},
        "minutes": round(sum(test["minutes"] for test in tests), 1), **campaign.environments(tests),
    }  # fmt: skip
    measure.keep(result, output)
    campaign.remove_parts(output)
    click.echo(table(result))
    sys.exit(result["survived"] < result["tried"])


def row(figures: dict[str, Any]) -> dict[str, Any]:
    """Sum up the tests of one fault. A test counts as one fault unless it records how many it tried."""
    properties = figures["properties"]
    failed = figures["tests"] - figures["passed"]
    tried = sum(test.get("tried", 1) for test in properties)
    observed = Counter(test["observed"] for test in properties if "observed" in test)
    return {
        "kind": figures["kind"], "fault": figures["what"], "promised": figures["promised"], "observed": dict(observed),
        "tried": tried, "survived": sum(test.get("survived", 1) for test in properties) - failed,
        "bytes_lost": sum(test.get("bytes_lost", 0) for test in properties),
        "skipped": figures["skipped"], "failures": figures["failures"],
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
