"""The examples in docstrings (`>>> `) run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import p2pzoo

CORE = Path(p2pzoo.__file__).parent
PLUGINS = Path(__file__).parents[1] / "plugins"


def module_name(file, root):
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(
    module_name(file, root)
    for folder, root in ((CORE, CORE.parent), (PLUGINS, PLUGINS))
    for file in folder.rglob("*.py")
    if ">>> " in file.read_text("utf-8")
)


def run_examples(module):
    """(number of examples that ran, the report of those that failed)."""
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    return runner.summarize(verbose=False).attempted, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempted, report = run_examples(importlib.import_module(name))
    assert not report, report
    assert attempted
    assert not list(tmp_path.iterdir()), "an example writes into the current folder"


def test_the_functions_of_the_front_door_have_examples():
    assert {"p2pzoo", "p2pzoo_serve.guard"} <= {*MODULES}
    for function in (p2pzoo.list_components, p2pzoo.create, p2pzoo.load, p2pzoo.train):
        assert ">>> " in function.__doc__, function


def test_an_example_that_prints_something_else_is_reported(tmp_path, monkeypatch):
    (tmp_path / "wrong_example.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    attempted, report = run_examples(importlib.import_module("wrong_example"))
    assert attempted == 1
    assert "Expected:\n    3\nGot:\n    2" in report
