"""What plugin authors are shown: every hook is documented, with an example that works and is checked by the kit."""

import ast
import inspect
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

import p2pzoo
from p2pzoo import plugin
from p2pzoo.cli import main
from p2pzoo.cli.new_plugin import write_plugin
from p2pzoo.plugin import hookspecs
from p2pzoo.plugin.loader import hook_name
from p2pzoo.plugin.model_source import find_model, pin_model
from p2pzoo.plugin.registry import KINDS
from p2pzoo.plugin.schema import InvalidParameters, check_at_use
from p2pzoo.testing import CHECKS, list_component_checks

PLUGINS = Path(__file__).parents[1] / "plugins"
PAGES = "\n".join(page.read_text("utf-8") for page in sorted(PLUGINS.glob("README*.md")))
HOOKS = dict(inspect.getmembers(hookspecs, inspect.isfunction))
SCREEN = 50  # lines

STANDARD_TABLES = ("build-system", "project")  # of any package's pyproject.toml


def checks_table():
    """The table of the kit's checks, from the docstrings: checks of one function for several kinds are one row."""
    kinds = {}
    for kind, checks in CHECKS.items():
        for name, check in checks.items():
            kinds.setdefault((name, check), []).append(kind)
    rows = ["| check | of | what must hold |", "|---|---|---|"]
    for (name, check), names in kinds.items():
        text = " ".join(inspect.getdoc(check).partition("\n\n")[0].split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {', '.join(f'`{each}`' for each in names)} | {text} |")
    return "\n".join(rows)


def with_checks_table(page):
    return re.sub(r"(<!-- checks -->\n).*?(\n?<!-- /checks -->)", lambda m: f"{m[1]}{checks_table()}\n<!-- /checks -->",
                  page, flags=re.DOTALL)  # fmt: skip


def test_the_table_of_checks_is_that_of_the_kit():
    page = (PLUGINS / "README.md").read_text("utf-8")
    assert "<!-- checks -->" in page
    assert with_checks_table(page) == page, "run python tests/test_plugin_docs.py"


def examples():
    """kind -> {file: its text}, of the pieces of code under each kind's heading."""
    found = {}
    for heading, text in re.findall(r"^## (\w+): `register_\w+`\n(.*?)(?=^## |\Z)", PAGES, re.MULTILINE | re.DOTALL):
        found[heading] = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    assert f"`{hook}`" in PAGES


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_used_by_an_example_that_is_tested(hook):
    assert any(f"def {hook}(" in text for files in EXAMPLES.values() for text in files.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_each_kind_fits_a_screen(kind):
    assert sum(len(text.splitlines()) for text in EXAMPLES[kind].values()) <= SCREEN


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_each_kind_works_and_keeps_its_promises(kind, install, tmp_path, run):
    [hook, module] = EXAMPLES[kind].items()
    assert hook[0] == "my_zoo/__init__.py"
    assert f"def {hook_name(kind)}(" in hook[1]
    install("my_zoo", hook[1].replace("my_zoo.", "my_zoo_"))
    (tmp_path / "site" / module[0].replace("/", "_")).write_text(module[1])
    if kind == "model":  # what it says lies beside its module
        carried(run, tmp_path, tmp_path / "site" / "facades")
    findings = {str(trial): trial.run() for trial in list_component_checks("my_zoo")}
    assert {"plugin", kind} == {name.partition(".")[0] for name in findings}
    assert {name: found.message for name, found in findings.items() if found.status == "fail"} == {}
    assert any(found.status == "pass" for name, found in findings.items() if name.startswith(kind))


METHODS = [
    (kind, protocol, method)
    for kind, protocol in {
        "process": plugin.Process,
        "gan_loss": plugin.GanLoss,
        "loss": plugin.Loss,
        "augmentation": plugin.Augmentation,
        "dataset": plugin.Dataset,
        "metric": plugin.Metric,
    }.items()
    for method, function in vars(protocol).items()
    if inspect.isfunction(function) and function.__module__ == protocol.__module__
]


@pytest.mark.parametrize(("kind", "protocol", "method"), METHODS, ids=str)
def test_the_example_of_each_kind_names_arguments_as_its_interface(kind, protocol, method):
    defined = {}
    exec([*EXAMPLES[kind].values()][1], defined)
    [example] = [value for value in defined.values() if inspect.isclass(value) and method in vars(value)][:1]
    assert [*inspect.signature(getattr(example, method)).parameters] == [
        *inspect.signature(getattr(protocol, method)).parameters
    ]


@pytest.mark.parametrize("name", ["Direct", "DirectIteration"])
def test_a_process_of_the_page_and_of_new_plugin_takes_other_steps_at_use(name, tmp_path):
    written = [file for file in write_plugin("my-zoo", tmp_path / "zoo", "process") if file.name == "process.py"]
    defined = {}
    exec(EXAMPLES["process"]["my_zoo/process.py"] if name == "Direct" else written[0].read_text("utf-8"), defined)
    assert check_at_use(defined[name], {"steps": 2}) == {"steps": 2}
    with pytest.raises(InvalidParameters, match="steps = 0: "):
        check_at_use(defined[name], {"steps": 0})


def test_a_plugin_asks_for_this_minor_version_on_the_page_and_by_new_plugin(tmp_path):
    write_plugin("my-zoo", tmp_path / "zoo")
    texts = [PAGES, (tmp_path / "zoo" / "pyproject.toml").read_text("utf-8")]
    pins = [pin for text in texts for pin in re.findall(r'dependencies = \["([^"]+)"\]', text)]
    assert len(pins) == 3
    [pin] = {*pins}
    major, minor, *_ = p2pzoo.__version__.split(".")
    assert Requirement(pin).specifier.contains(p2pzoo.__version__, prereleases=True)
    assert not Requirement(pin).specifier.contains(f"{major}.{int(minor) + 1}.0")


def test_the_package_of_the_example_of_a_model_contains_it():
    section = PAGES[PAGES.index("## model: `register_models`") :]
    [table] = re.findall("```toml\n(.*?)```", section, re.DOTALL)[:1]
    assert tomllib.loads(table)["tool"]["setuptools"]["package-data"] == {"my_zoo": ["facades/*"]}
    assert '/ "facades"' in EXAMPLES["model"]["my_zoo/models.py"]


OPTIONAL_PARTS = {
    name: dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))
    for name, text in re.findall(r"^## `(\w+)` (?:of|for) a \w+\n(.*?)(?=^## |\Z)", PAGES, re.MULTILINE | re.DOTALL)
}


@pytest.mark.parametrize("part", OPTIONAL_PARTS)
def test_the_example_of_each_optional_part_works_and_keeps_its_promises(part, install, tmp_path):
    hook, module = OPTIONAL_PARTS[part].items()
    install("my_zoo", hook[1].replace("my_zoo.", f"{part}_"))  # modules are imported once
    (tmp_path / "site" / module[0].replace("my_zoo/", f"{part}_")).write_text(module[1])
    results = {str(check): check.run() for check in list_component_checks("my_zoo")}
    assert {
        name: found.message for name, found in results.items() if found.status not in ("pass", "does not apply")
    } == {}
    wanted = "needs" if part in ("features", "z") else part
    assert any(found.status == "pass" for name, found in results.items() if name.endswith(f"-{wanted}"))


def test_every_optional_part_of_networks_has_an_example():
    assert OPTIONAL_PARTS.keys() == {"features", "z", "labels", "sees_target", "external_weights"}


def test_the_example_of_a_command_works(install, tmp_path):
    [hook, module] = EXAMPLES["command"].items()
    install("my_zoo", hook[1].replace("my_zoo.", "my_zoo_"))
    (tmp_path / "site" / module[0].replace("/", "_")).write_text(module[1])
    listed = CliRunner().invoke(main, ["--help"]).output
    assert "Commands of plugin my_zoo:" in listed
    assert "Count the parameters of a generator." in listed
    answer = CliRunner().invoke(main, ["count", "unet"])
    assert (answer.exit_code, answer.output) == (0, "54413955\n"), answer.output
    function = next(node for node in ast.walk(ast.parse(hook[1])) if isinstance(node, ast.FunctionDef))
    assert len(ast.unparse(function).splitlines()) <= 5


def test_the_example_of_a_model_source_works(install, tmp_path, monkeypatch):
    [hook, module] = EXAMPLES["model_source"].items()
    install("my_zoo", hook[1].replace("my_zoo.", "my_zoo_"))
    (tmp_path / "site" / module[0].replace("/", "_")).write_text(module[1])
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf"))
    for version in ("1", "2"):
        (tmp_path / "shelf" / "facades" / version).mkdir(parents=True)
    assert pin_model(Path("shelf:facades")) == Path("shelf:facades@2")
    assert find_model("shelf:facades@1").folder == tmp_path / "shelf" / "facades" / "1"
    with pytest.raises(p2pzoo.UserError, match="shelf:maps: no such model in"):
        find_model("shelf:maps")


def carried(run, runs, folder):
    """A folder as a model's is, of a run that is trained for it."""
    run(runs)
    [trained] = runs.glob("tiny/*")
    folder.mkdir()
    for name in ("model.safetensors", "recipe.toml"):
        shutil.copy(trained / name, folder / name)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Facades\n", "utf-8")


def test_a_generator_costs_at_most_five_lines_of_pyproject_and_three_of_hook():
    """Beside its own module, on the example of plugins/README.md."""
    page = (PLUGINS / "README.md").read_text("utf-8")
    section = page[page.index("## Write one") :]
    [pyproject] = re.findall("```toml\n(.*?)```", section, re.DOTALL)[:1]
    hook = re.findall("```python\n(.*?)```", section, re.DOTALL)[0]

    table, more = "", []
    for line in filter(None, map(str.strip, pyproject.splitlines())):
        table = line.strip("[]") if line.startswith("[") else table
        if table not in STANDARD_TABLES:
            more.append(line)
    assert tomllib.loads(pyproject)["project"]["entry-points"]["p2pzoo"]
    assert len(more) <= 5

    [function] = [node for node in ast.parse(hook).body if isinstance(node, ast.FunctionDef)]
    lines = range(function.decorator_list[0].lineno, function.end_lineno + 1)
    assert function.name == hook_name("generator")
    assert len(lines) <= 3


if __name__ == "__main__":
    (PLUGINS / "README.md").write_text(with_checks_table((PLUGINS / "README.md").read_text("utf-8")), "utf-8")
