"""The long runs of tests/faults and tests/bad_input: one process per test function; a stopped campaign goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TESTS = """
import pathlib, pytest

@pytest.mark.parametrize("n", range(3))
def test_first(n, record_property):
    record_property("tried", n)

@pytest.mark.slow
def test_second():
    assert not pathlib.Path({stop!r}).exists(), "stopped"
    pathlib.Path({ran!r}).open("a").write("second ")

def test_third():
    pathlib.Path({ran!r}).open("a").write("third ")
    assert 1 == 2
"""
CAMPAIGN = """
import json, pathlib, sys
import campaign
tests, output, only = sys.argv[1:]
rows = campaign.run_tests([pathlib.Path(tests)], [], only=only or None, output=pathlib.Path(output))
pathlib.Path(output).write_text(json.dumps(rows))
campaign.remove_parts(pathlib.Path(output))
"""


@pytest.mark.slow
def test_every_function_runs_in_its_own_process_and_a_stopped_campaign_goes_on(tmp_path):
    tests, output, ran = tmp_path / "test_it.py", tmp_path / "rows.json", tmp_path / "ran"
    tests.write_text(TESTS.format(stop=str(tmp_path / "stop"), ran=str(ran)))

    def run(only=""):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}){CAMPAIGN}"]
        return subprocess.run([*command, tests, output, only], capture_output=True, text=True, timeout=300)

    done = run("first or third")
    assert done.returncode == 0, done.stderr
    [first, third] = json.loads(output.read_text())
    assert [test["tried"] for test in first["properties"]] == [0, 1, 2]
    assert (first["tests"], first["passed"], third["tests"], third["passed"]) == (3, 3, 1, 0)
    assert "AssertionError" in third["failures"][0]
    assert not list(tmp_path.glob("*.part"))

    output.with_name("rows.json.part").write_text(json.dumps(third) + "\n")  # as if it had been stopped then
    ran.unlink()
    assert run().returncode == 0
    assert ran.read_text() == "second ", "the third was not run again"
    assert json.loads(output.read_text())[2] == third
