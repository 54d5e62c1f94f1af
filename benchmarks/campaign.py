"""Run the tests of tests/faults and tests/bad_input with many repetitions, and collect what each test records.

Every test function runs in its own process: its memory is returned, and a campaign that was stopped goes on with the
function it was at.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import pytest

TESTS = Path(__file__).parent.parent / "tests"


def run_tests(
    paths: Sequence[Path],
    options: Sequence[str],
    marker: str | None = None,
    *,
    only: str | None = None,
    jobs: int = 1,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Run the tests under these paths, also slow ones. Return one row per test function.

    options  for pytest, such as --cases=10000
    marker   leave out tests without this marker
    only     run only tests with this word in their name, as pytest's -k
    jobs     how many functions run side by side
    output   the file of the result. Rows are kept in a file beside it until all tests have run: if the campaign is
             stopped, the same command goes on after the last row.
    """
    parts = output and output.with_name(f"{output.name}.part")
    kept = {row["test"]: row for row in _read_parts(parts) if row["options"] == list(options)}
    functions = _collect(paths, [*options, *(["-k", only] if only else [])], marker)
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda name: _run_function(name, options, marker), [f for f in functions if f not in kept]):
            kept[row["test"]] = row
            if parts:
                parts.parent.mkdir(parents=True, exist_ok=True)
                with parts.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [kept[name] for name in functions]


def environments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"environments": those in which the rows were measured, each once}: a long campaign may go on elsewhere."""
    return {"environments": list({json.dumps(row["environment"]): row["environment"] for row in rows}.values())}


def remove_parts(output: Path | None) -> None:
    """Remove the rows that `run_tests` kept: the result has been written."""
    if output:
        output.with_name(f"{output.name}.part").unlink(missing_ok=True)


def _read_parts(parts: Path | None) -> list[dict[str, Any]]:
    if not parts or not parts.exists():
        return []
    return [json.loads(line) for line in parts.read_text().splitlines()]


def _collect(paths: Sequence[Path], options: Sequence[str], marker: str | None) -> list[str]:
    """Return the test functions under these paths, such as tests/faults/test_disk.py::test_a_full_disk."""
    figures = Figures(marker)
    listing = io.StringIO()
    with contextlib.redirect_stdout(listing):
        code = pytest.main(["--collect-only", *_arguments([*map(str, paths)], options)], plugins=[figures])
    if code:
        raise SystemExit(listing.getvalue())
    return list(figures.rows)


def _run_function(name: str, options: Sequence[str], marker: str | None) -> dict[str, Any]:
    """Run one test function in a process of its own; return its row."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, __file__, file, marker or "", name, *options]
        code = subprocess.run(command, check=False, cwd=TESTS.parent).returncode
        if not file.exists():
            raise SystemExit(f"{name}: its process ended with code {code}")
        row: dict[str, Any] = json.loads(file.read_text())
    return {
        "test": name, "options": list(options), **row, "minutes": round((time.monotonic() - start) / 60, 2),
        "environment": measure.environment(),
    }  # fmt: skip


def _arguments(tests: Sequence[str], options: Sequence[str]) -> list[str]:
    return [*tests, *options, "-m", "", "-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}"]


class Figures:
    """pytest plugin that collects, per test function, results and recorded properties.

    marker  tests without this marker are deselected; None selects all
    """

    def __init__(self, marker: str | None) -> None:
        self.marker = marker
        self.rows: dict[str, dict[str, Any]] = {}
        self._row_of: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(trylast=True)  # after -k
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        selected = [item for item in items if self.marker is None or item.get_closest_marker(self.marker)]
        config.hook.pytest_deselected(items=[item for item in items if item not in selected])
        items[:] = selected
        for item in items:
            promise = item.get_closest_marker(self.marker) if self.marker else None
            function = item.nodeid.partition("[")[0].partition("::")[2]
            row = self.rows.setdefault(f"{os.path.relpath(item.path, TESTS.parent)}::{function}", {
                "kind": item.path.stem.removeprefix("test_"),
                "what": _words(item),
                **({"promised": promise.args[0]} if promise else {}),
                "tests": 0, "passed": 0, "skipped": 0, "properties": [], "failures": [],
            })  # fmt: skip
            self._row_of[item.nodeid] = row

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self._row_of[report.nodeid]
        if report.skipped:
            row["skipped"] += 1
        elif report.failed:
            row["tests"] += report.when == "call"
            line = str(report.longrepr).strip().splitlines()[-1]
            row["failures"].append(f"{report.nodeid.partition('::')[2]}: {line}")
        elif report.when == "call":
            row["tests"] += 1
            row["passed"] += 1
        if report.when == "call":
            row["properties"].append(dict(report.user_properties))


def _words(item: pytest.Item) -> str:
    name = item.nodeid.partition("[")[0].rpartition("::")[2].removeprefix("test_").replace("_", " ")
    match = re.search(r"::TestOf(\w+)::", item.nodeid)
    group = re.sub(r"(?<!^)(?=[A-Z])", " ", match[1]).lower() if match else ""
    return f"{name} of {group}" if group else name


if __name__ == "__main__":
    destination, only_marked, function, *pytest_options = sys.argv[1:]
    figures_of_one = Figures(only_marked or None)
    exit_code = pytest.main(_arguments([function], pytest_options), plugins=[figures_of_one])
    if exit_code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        Path(destination).write_text(json.dumps(figures_of_one.rows[function]))
    sys.exit(int(exit_code))
