"""What the READMEs say is what the code does."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pzoo import config
from p2pzoo.cli import COMMANDS, main
from p2pzoo.config.recipe import read_recipe
from p2pzoo.plugin.loader import plugins
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.paths import shipped

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_two_commands_are_the_whole_set_up():
    assert "pip install -e . && p2pzoo run recipes/ablation_patch70.toml" in README.splitlines()
    assert "pip install -e '.[dev]' && pytest -n auto" in README.splitlines()


@pytest.mark.parametrize("command", re.findall(r"^\| `p2pzoo ([^`]*)` \|", README, re.MULTILINE))
def test_every_command_in_the_readmes_tables_works(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)
    assert name in COMMANDS
    if name == "run":
        arguments += ["--profile", "smoke", "--runs", str(tmp_path)]
    if name == "new-plugin":
        arguments += ["-o", str(tmp_path / "plugin")]
    result = CliRunner().invoke(main, [name, *arguments])
    assert result.exit_code == 0, result.output


def test_the_readme_says_which_commands_take_json():
    named = {command.split()[0] for command in re.findall(r"^\| `p2pzoo ([^`]*)` \|", README, re.MULTILINE)}
    assert "All take `--json` but `new-plugin` and `bench`, which has `--format json`." in README
    commands = {name: main.get_command(None, name) for name in named - {"data"}}
    without = {name for name, command in commands.items() if not any("--json" in p.opts for p in command.params)}
    assert without == {"new-plugin", "bench"}


def test_the_cores_readme_names_each_of_its_modules_once():
    core = ROOT / "p2pzoo"
    rows = [
        line.split("|")[2] for line in (core / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")
    ]
    named = [name for row in rows[1:] for name in re.findall(r"`(\w+/?)`|\[(\w+/)\]", row)]
    there = [file.stem for file in core.glob("*.py") if not file.stem.startswith("__")]
    folders = [f"{file.parent.name}/" for file in core.glob("*/*") if file.name == "__init__.py"]
    assert sorted(map("".join, named)) == sorted([*there, *folders, "scaffold/"])


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_recipes_table_lists_every_row_with_its_title():
    page = (shipped("recipes") / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\(\1\.toml\) \| (.*) \|$", page, re.MULTILINE))
    files = sorted(path.stem for path in shipped("recipes").glob("ablation_*.toml"))
    assert listed == {name: read_recipe(f"zoo:{name}.toml", "smoke").values["title"] for name in files}


@pytest.mark.parametrize("folder", ["modern", "tasks", "reference"])
def test_the_other_tables_list_every_recipe_of_a_folder_with_its_title(folder):
    page = (shipped("recipes") / "README.md").read_text("utf-8")
    listed = dict(re.findall(rf"^\| \[`{folder}/(\w+)`\]\({folder}/\1\.toml\) \| (.*) \|$", page, re.MULTILINE))
    files = sorted(path.stem for path in shipped("recipes").glob(f"{folder}/*.toml"))
    assert listed == {name: read_recipe(f"zoo:{folder}/{name}.toml", "smoke").values["title"] for name in files}


def test_the_profiles_table_says_what_the_profiles_do():
    page = (shipped("recipes") / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+), (\d+) px \| (\d+) \| ([\d,]+):", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["smoke", "laptop", "gpu", "paper"]
    for profile, data, size, width, images in rows:
        experiment = config.load("zoo:base.toml", profile)
        assert experiment.dataset.entry.name == data.lower()
        assert experiment.dataset.values["size"] == int(size)
        assert experiment.generator.values["width"] == int(width)
        assert experiment.train.images == int(images.replace(",", ""))


def test_the_plugins_table_lists_every_component():
    page = (ROOT / "plugins" / "README.md").read_text("utf-8")
    for plugin in plugins():
        [row] = [line for line in page.splitlines() if line.startswith(f"| [{plugin.module}]")]
        assert set(re.findall("`([^`]+)`", row)) == {entry.name for entry in plugin.entries}


def test_the_readmes_example_plugin_works(tmp_path, install, monkeypatch):
    page = (ROOT / "plugins" / "README.md").read_text("utf-8")
    hook, model, *_ = re.findall("```python\n(.*?)```", page, re.DOTALL)
    install("my_zoo", hook.replace("my_zoo.model", "my_zoo_model"))
    (tmp_path / "site" / "my_zoo_model.py").write_text(model)
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"\n[generator]\nuse = "shallow"\nwidth = 4\n')
    monkeypatch.chdir(tmp_path)
    small = ["-s", "dataset.stride=256", "-s", "train.images=2", "-s", "discriminator.width=4"]
    result = CliRunner().invoke(main, ["run", "mine.toml", "--profile", "smoke", "--json", *small])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"] == "mine"


def test_every_kind_of_component_is_documented_for_plugin_authors():
    contracts = (ROOT / "p2pzoo" / "contracts.py").read_text("utf-8")
    for kind in KINDS:
        assert re.search(rf"^class {kind.title().replace('_', '')}\b", contracts, re.MULTILINE), kind


def results_in_the_readme():
    return [ROOT / folder for folder in re.findall(r"benchmarks/results/[\w.-]+", README)]


def test_the_numbers_in_the_readme_come_from_a_committed_run():
    [folder] = set(results_in_the_readme())
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert (folder / "env.json").exists()
    shown = dict(re.findall(r"^\| ([\w.]+) \| ([-\d.]+) \|$", README, re.MULTILINE))
    experiment = config.load("zoo:ablation_patch70.toml", "laptop")
    own = {n: number for n, number in results["metrics"].items() if n.partition(".")[0] in experiment.metrics}
    assert shown == {name: f"{number['value']:.4f}" for name, number in own.items()}
    assert results["id"] == experiment.id, "the recipe has changed since: run it again"
