"""`p2pzoo show`: parameters with descriptions, and the sizes of networks."""

import inspect
import json
import re

import pytest
from click.testing import CliRunner

from p2pzoo.cli import main
from p2pzoo.config.recipe import SETTINGS
from p2pzoo.plugin import loader
from p2pzoo.plugin.descriptions import describe_parameters
from p2pzoo.plugin.registry import KINDS


def show(*arguments):
    result = CliRunner().invoke(main, ["show", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def show_json(*arguments):
    return json.loads(show(*arguments, "--json"))


COUNTS = {  # {arguments: parameters, output size and receptive field}, as in models.lua and networks.py
    ("generator", "unet"): (54_413_955, [256, 256], None),
    ("generator", "encoder-decoder"): (39_075_459, [256, 256], None),
    ("discriminator", "pixel"): (9_024, [256, 256], 1),
    ("discriminator", "patch", "-s", "receptive_field=16"): (139_585, [126, 126], 16),
    ("discriminator", "patch"): (2_768_705, [30, 30], 70),
    ("discriminator", "image"): (11_159_361, [6, 6], 286),
    ("generator", "unet", "-s", "bias=lua"): (54_419_459, [256, 256], None),
    ("discriminator", "patch", "-s", 'bias="lua"'): (2_769_601, [30, 30], 70),
}


@pytest.mark.parametrize(("arguments", "expected"), COUNTS.items(), ids=lambda part: " ".join(map(str, part)))
def test_show_counts_the_parameters_of_networks_and_measures_their_outputs(arguments, expected):
    shown = show_json(*arguments)
    assert (shown["parameter_count"], shown["output_size"], shown.get("receptive_field")) == expected
    assert f"{expected[0]:,}" in show(*arguments)


def test_parameters_have_a_type_a_default_and_a_description():
    parameters = {parameter["name"]: parameter for parameter in show_json("generator", "unet")["parameters"]}
    assert parameters["width"].keys() == {"name", "type", "required", "default", "description"}
    assert (parameters["width"]["type"], parameters["width"]["default"]) == ("int ≥ 1", 64)
    assert "channels of the first layer" in parameters["width"]["description"]
    assert parameters["norm"]["type"] == '"batch" | "instance" | "none" | "group"'


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_component_can_be_shown(kind):
    for row in json.loads(CliRunner().invoke(main, ["list", kind, "--json"]).stdout):
        assert show_json(kind, row["name"])["summary"] == row["summary"]


@pytest.mark.parametrize("table", SETTINGS)
def test_settings_tables_are_shown_with_all_their_keys(table):
    from p2pzoo import config

    keys = config.load("zoo:base.toml", "smoke").resolved()[table].keys()
    names = [parameter["name"] for parameter in show_json(table)["parameters"]]
    assert keys <= set(names)
    assert "options" not in names
    assert f"[{table}]" in show(table)


def test_the_table_can_be_read_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (("compute",), ("optimizer",), ("generator", "unet")):
        lines = show(*arguments).splitlines()
        header = next(number for number, line in enumerate(lines) if line.startswith("parameter "))
        assert all(len(line) <= 80 for line in lines[header:])
        names = [parameter["name"] for parameter in show_json(*arguments)["parameters"]]
        first_words = {line.split()[0] for line in lines[header + 1 :] if line[:1].strip()}
        assert first_words >= set(names), "no name is folded or cut"


def test_the_text_above_the_table_does_not_repeat_the_descriptions():
    text = " ".join(show("compute").split())
    for parameter in show_json("compute")["parameters"]:
        assert text.count(parameter["description"][:40]) == 1


FIRST_PARTY = [
    (entry.kind, entry.name)
    for entry in loader.registry()
    if entry.kind not in ("model", "command") and entry.distribution.startswith("p2pzoo ")
]


@pytest.mark.parametrize(("kind", "name"), FIRST_PARTY)
def test_every_parameter_of_every_component_has_a_description(kind, name):
    descriptions = describe_parameters(loader.registry().get(kind, name).load())
    assert [parameter for parameter, text in descriptions.items() if not text] == []


@pytest.mark.parametrize(("kind", "name"), FIRST_PARTY)
def test_no_text_sends_its_reader_to_a_python_class(kind, name):
    documentation = inspect.getdoc(loader.registry().get(kind, name).load()) or ""
    assert not re.search(r"\bsee (?!`)[A-Z]\w+\b", documentation)


@pytest.mark.parametrize("table", SETTINGS)
def test_every_key_of_every_settings_table_has_a_description(table):
    parameters = show_json(table)["parameters"]
    assert [parameter["name"] for parameter in parameters if not parameter["description"]] == []
