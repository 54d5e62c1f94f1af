"""Run the tests of tests/faults and tests/bad_input with many repetitions, and collect what each test records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent / "tests"


class Figures:
    """pytest plugin that collects, per test function, results and recorded properties.

    marker  tests without this marker are deselected; None selects all
    """

    def __init__(self, marker: str | None) -> None:
        self.marker = marker
        self.rows: dict[str, dict[str, Any]] = {}
        self._row_of: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        selected = [item for item in items if self.marker is None or item.get_closest_marker(self.marker)]
        config.hook.pytest_deselected(items=[item for item in items if item not in selected])
        items[:] = selected
        for item in items:
            promise = item.get_closest_marker(self.marker) if self.marker else None
            row = self.rows.setdefault(item.nodeid.partition("[")[0], {
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


def run_tests(paths: Sequence[Path], options: Sequence[str], marker: str | None = None) -> list[dict[str, Any]]:
    """Run the tests under these paths, also slow ones. Return one row per test function."""
    figures = Figures(marker)
    arguments = [*map(str, paths), *options, "-m", "", "-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}"]
    code = pytest.main(arguments, plugins=[figures])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(int(code))
    return [row for row in figures.rows.values() if row["tests"] or row["skipped"] or row["failures"]]
