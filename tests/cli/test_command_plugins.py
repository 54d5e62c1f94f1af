"""Commands that plugins register: they are listed, imported when they are called, and two of one name are refused."""

import sys

import click
import pytest
from click.testing import CliRunner

from p2pzoo.cli import main
from p2pzoo.plugin import loader

HELLO = """
import click
import p2pzoo

@p2pzoo.hookimpl
def register_commands(register):
    register("{name}", {factory}, summary="Greet {plugin}.")

@click.command()
@click.argument("who", default="you")
def hello(who):
    "Greet someone."
    click.echo(f"hello {{who}} from {plugin}")
"""


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli(*arguments) -> click's result, in an empty folder."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.fixture
def install_command(install):
    """install_command("plugin", name="hello"): install a plugin with one command."""

    def install_command(plugin, *, name="hello", factory=None):
        install(plugin, HELLO.format(plugin=plugin, name=name, factory=factory or f'"{plugin}:hello"'))

    return install_command


@pytest.mark.parametrize("factory", ['"greeter:hello"', "hello"], ids=["lazy", "click command"])
def test_a_command_of_a_plugin_is_called_and_has_help(cli, install_command, factory):
    install_command("greeter", factory=factory)
    assert cli("hello", "world").output == "hello world from greeter\n"
    assert "Greet someone." in cli("hello", "--help").output
    listed = cli("--help").output
    assert "Commands of plugin greeter" in listed
    assert "Greet greeter." in listed


def test_the_module_of_a_lazy_command_is_imported_when_it_is_called(cli, install, tmp_path, monkeypatch):
    install("greeter", HELLO.format(plugin="greeter", name="hello", factory='"greeter_command:hello"'))
    source = HELLO.format(plugin="greeter", name="hello", factory="None")
    (tmp_path / "site" / "greeter_command.py").write_text(source)
    monkeypatch.delitem(sys.modules, "greeter_command", raising=False)
    assert "Greet greeter." in cli("--help").output
    assert "greeter_command" not in sys.modules
    assert cli("hello").output == "hello you from greeter\n"
    assert sys.modules.pop("greeter_command")


def test_two_plugins_with_one_command_are_an_error_when_it_is_called(cli, install_command):
    install_command("first")
    install_command("second")
    install_command("third", name="bye")
    result = cli("hello")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "command 'hello'" in line
    assert "plugin 'first' (first 1.0)" in line
    assert "plugin 'second' (second 1.0)" in line
    assert "P2PZOO_PLUGINS" in line
    assert cli("bye").output == "hello you from third\n"
    assert cli("list", "loss").exit_code == 0
    assert cli("--help").exit_code == 0


def test_a_plugin_that_registers_a_core_command_is_an_error_when_it_is_called(cli, install_command):
    install_command("greeter", name="list")
    result = cli("list")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "command 'list'" in line
    assert "p2pzoo itself" in line
    assert "plugin 'greeter' (greeter 1.0)" in line
    assert cli("plugins").exit_code == 0
    assert cli("--help").exit_code == 0


def test_the_environment_variable_restricts_commands_too(cli, install_command, monkeypatch):
    install_command("first")
    install_command("second")
    monkeypatch.setenv("P2PZOO_PLUGINS", "pix2pix,second")
    loader.plugins.cache_clear()
    loader.registry.cache_clear()
    assert cli("hello").output == "hello you from second\n"
    assert "Commands of plugin first" not in cli("--help").output
    result = cli("bench")
    assert result.exit_code == 2
    assert "no command 'bench'" in result.stderr


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ('"greeter:register_commands"', "greeter:register_commands is not a click command"),
        ("print", "is not a click command"),
        ('"greeter:__name__"', "command 'greeter:hello': greeter:__name__ is not callable"),
        ('"greeter:none"', "command 'hello' of plugin 'greeter' (greeter 1.0) does not load from greeter:none"),
        ('"greeter_missing:hello"', "ModuleNotFoundError: No module named 'greeter_missing'"),
    ],
)
def test_a_factory_that_is_no_click_command_is_one_line_and_other_commands_work(cli, install_command, factory, message):
    install_command("greeter", factory=factory)
    result = cli("hello")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert message in line
    assert "greeter" in line
    assert cli("list", "loss").exit_code == 0
    assert "Greet greeter." in cli("--help").output


def test_a_command_that_imports_an_old_module_gets_its_new_place(cli, install, tmp_path):
    install("greeter", HELLO.format(plugin="greeter", name="hello", factory='"greeter_old:hello"'))
    (tmp_path / "site" / "greeter_old.py").write_text("from p2pzoo.errors import UserError\n")
    result = cli("hello")
    assert result.exit_code == 2
    assert "plugin 'greeter': p2pzoo.errors moved in 0.2: import UserError from p2pzoo.utils.errors" in result.stderr


def test_each_command_that_takes_a_model_says_what_names_one():
    commands = {name: main.get_command(None, name) for name in main.list_commands(None)}
    of_models = {name: each for name, each in commands.items() if "model" in {param.name for param in each.params}}
    assert {"translate", "translate-volume", "serve"} <= of_models.keys()
    named = "a run folder, a model.safetensors, zoo:NAME or hf:OWNER/NAME"
    assert [name for name, each in of_models.items() if named not in " ".join(each.help.split())] == []


def test_a_command_of_a_plugin_that_did_not_load_is_missing_with_a_reason(cli, install, monkeypatch):
    install("broken", "raise ImportError('no numpy')")
    result = cli("measure-it")
    assert result.exit_code == 2
    assert "no command 'measure-it'" in result.output
    assert "(plugins that did not load: broken; see `p2pzoo plugins`)" in " ".join(result.output.split())
    assert "plugins that did not load: broken" in " ".join(cli("--help").output.split())
    for selected, names in (("pix2pix", "pix2pix"), ("", "none")):
        monkeypatch.setenv("P2PZOO_PLUGINS", selected)
        loader.plugins.cache_clear()
        loader.registry.cache_clear()
        line = f"P2PZOO_PLUGINS allows only these plugins: {names}"
        assert line in " ".join(cli("compare", "runs").output.split())
        assert "did you mean 'bench'" not in cli("benchmark").output


@pytest.mark.parametrize("arguments", [["--help"], [], ["list"]])
def test_a_plugin_that_is_not_installed_is_one_line(arguments, cli, install, monkeypatch):
    install("greeter", "")
    monkeypatch.setenv("P2PZOO_PLUGINS", "nope")
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("P2PZOO_PLUGINS names plugin 'nope'")
    assert len(result.stderr.splitlines()) == 1


def test_no_option_with_a_range_takes_nan():
    """A server whose limit is nan has none: nothing is larger than nan."""
    context = main.make_context("p2pzoo", ["plugins"])
    ranges = []

    def collect(command):
        ranges.extend(param.type for param in command.params if isinstance(param.type, click.FloatRange))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                collect(command.get_command(context, name))

    collect(main)
    assert len(ranges) > 5
    for each in ranges:
        for text in ("nan", "inf"):
            with pytest.raises(click.BadParameter):
                each.convert(text, None, None)
