"""--json: every command that produces something has it; one document on standard output, errors too."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2pzoo.cli import main

WITHOUT_JSON: dict[str, str] = {}  # command: why it has no --json


def commands():
    """{"data check": the click command}: every command of the core and of all plugins, subcommands too."""
    found = {}

    def collect(name, command):
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                collect(f"{name} {sub}", command.get_command(context, sub))
        else:
            found[name] = command

    for name in main.list_commands(None):
        collect(name, main.get_command(None, name))
    return found


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli(*arguments) -> click's result, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [*map(str, arguments)])


def test_every_command_has_json_or_a_reason():
    found = commands()
    assert {"run", "evaluate", "translate", "bench", "data fetch", "data prepare cityscapes", "tune"} <= found.keys()
    lacking = {
        name
        for name, command in found.items()
        if not any(parameter.name == "as_json" and "--json" in parameter.opts for parameter in command.params)
    }
    assert lacking == set(WITHOUT_JSON)


def test_an_output_has_one_name():
    names = {
        name: [option for option in parameter.opts if option != "-o"]
        for name, command in commands().items()
        for parameter in command.params
        if "-o" in parameter.opts
    }
    assert {name: opts for name, opts in names.items() if opts != ["--output"]} == {}


@pytest.mark.parametrize("name", sorted(commands()))
def test_an_error_of_any_command_is_a_document(name, cli):
    result = cli(*name.split(), "--no-such-option", "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert "--no-such-option" in document["error"]
    assert (document["exit_code"], document["faults"]) == (2, [document["error"]])
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (["run", "zoo:nothing.toml"], ["zoo:nothing.toml: no such recipe"]),
        (["recipe", "zoo:base.toml", "-s", "train.imagse=1", "-s", "generator.widht=3"], ["imagse", "widht"]),
        (["rnu"], ["no command 'rnu': did you mean 'run'?"]),
        (["translate", "nowhere.safetensors", "a.png", "-o", "out"], ["a.png: no such file"]),
        (["compare", "nowhere"], ["nowhere"]),
        (["export", "nowhere.safetensors", "--to", "onnx", "-o", "x.onnx"], ["nowhere.safetensors: no such model: "]),
    ],
)
def test_each_fault_is_an_entry_of_the_error(arguments, faults, cli):
    result = cli(*arguments, "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert len(document["faults"]) == len(faults)
    for part in faults:
        assert any(part in fault for fault in document["faults"])


def test_an_error_of_p2pzoo_itself_is_a_document_with_exit_code_1(cli, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr("p2pzoo.config.recipe.read_recipe", fail)
    result = cli("recipe", "zoo:base.toml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"].startswith("p2pzoo failed: RuntimeError: broken")


def test_without_json_errors_are_lines_on_standard_error(cli):
    result = cli("run", "zoo:nothing.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("zoo:nothing.toml: no such recipe")


def test_json_after_two_dashes_is_an_argument(cli):
    assert cli("translate", "nowhere", "-o", "out", "--", "--json").stdout == ""


HELLO = """
import click
import p2pzoo
from p2pzoo.cli.options import json_option, print_json, stop
from p2pzoo.utils.errors import UserError

@p2pzoo.hookimpl
def register_commands(register):
    register("hello", hello, summary="Greet.")

@click.command()
@click.argument("what")
@json_option
def hello(what, as_json):
    if what == "fault":
        raise UserError("one", "two")
    if what == "stop":
        stop("stopped early", 143)
    if as_json:
        print_json({"hello": float("nan"), "nested": [float("inf"), 1.5]})
    if what == "late":
        raise UserError("too late")
"""


def test_a_third_partys_command_gets_all_of_this_with_one_decorator(install, cli):
    install("greeter", HELLO)
    assert json.loads(cli("hello", "you", "--json").stdout) == {"hello": None, "nested": [None, 1.5]}
    fault = cli("hello", "fault", "--json")
    assert json.loads(fault.stdout) == {"error": "one\ntwo", "faults": ["one", "two"], "exit_code": 2}
    stopped = cli("hello", "stop", "--json")
    assert (stopped.exit_code, json.loads(stopped.stdout)["error"]) == (143, "stopped early")
    assert cli("hello", "stop").stderr == "stopped early\n"
    late = cli("hello", "late", "--json")  # there is one document
    assert (late.exit_code, json.loads(late.stdout)["nested"], late.stderr) == (2, [None, 1.5], "too late\n")


def test_a_run_that_is_stopped_prints_a_document(run, tmp_path):
    from fault_injection import STEP, after

    def interrupt(*_):
        raise KeyboardInterrupt(15)

    with after(STEP, interrupt, call=3):
        result = run(tmp_path, flags=("--json", "--quiet"))
    assert result.exit_code == 143
    document = json.loads(result.output)
    assert document["exit_code"] == 143
    assert "stopped" in document["error"]


def test_translations_and_skipped_images_are_in_one_document(cli, tmp_path):
    import numpy as np

    from p2pzoo.images.io import write_png

    write_png(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"nothing")
    arguments = ["translate", "zoo:earth-small", "--device", "cpu", "-o", "out", "--force", "--json"]
    assert json.loads(cli(*arguments, "a.png").stdout) == {"files": [{"input": "a.png", "outputs": ["out/a.png"]}]}
    result = cli(*arguments, "a.png", "b.png")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert [file["input"] for file in document["files"]] == ["a.png"]
    assert document["error"].startswith("b.png: ")
    page = (Path(__file__).parents[2] / "plugins" / "README.md").read_text("utf-8")
    [row] = [line for line in page.splitlines() if line.startswith("| `translate` | ")]
    assert [key for key in document if f"`{key}`" not in row] == []


def test_files_that_commands_write_are_in_their_documents(cli, tmp_path):
    plugin = json.loads(cli("new-plugin", "my-zoo", "--json").stdout)
    assert all((tmp_path / file).is_file() for file in plugin["files"])
    archives = json.loads(cli("data", "fetch", "--json").stdout)
    assert "facades" in {archive["name"] for archive in archives}
