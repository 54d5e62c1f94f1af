"""How the campaigns of faults and of bad input are run: their tests, at length, and what each of them tells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent / "tests"


class Figures:
    """A plugin of pytest that keeps what the tests of one function tell together, by the function."""

    def __init__(self, marked: str | None) -> None:
        self.marked = marked  # tests without this marker are left out
        self.rows: dict[str, dict[str, Any]] = {}
        self._row_of: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        wanted = [item for item in items if self.marked is None or item.get_closest_marker(self.marked)]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted
        for item in items:
            promise = item.get_closest_marker(self.marked) if self.marked else None
            row = self.rows.setdefault(item.nodeid.partition("[")[0], {
                "kind": item.path.stem.removeprefix("test_"),
                "what": _words(item),
                **({"promised": promise.args[0]} if promise else {}),
                "tests": 0, "passed": 0, "skipped": 0, "told": [], "failures": [],
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
            row["told"].append(dict(report.user_properties))


def _words(item: pytest.Item) -> str:
    name = item.nodeid.partition("[")[0].rpartition("::")[2].removeprefix("test_").replace("_", " ")
    found = re.search(r"::TestOf(\w+)::", item.nodeid)
    group = re.sub(r"(?<!^)(?=[A-Z])", " ", found[1]).lower() if found else ""
    return f"{name} of {group}" if group else name


def figures(paths: Sequence[Path], options: Sequence[str], marked: str | None = None) -> list[dict[str, Any]]:
    """Run the tests under these paths, slow ones too, and tell of each function what its tests told."""
    found = Figures(marked)
    arguments = [*map(str, paths), *options, "-m", "", "-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}"]
    code = pytest.main(arguments, plugins=[found])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(int(code))
    return [row for row in found.rows.values() if row["tests"] or row["skipped"] or row["failures"]]
