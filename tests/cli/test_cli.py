"""The command line as a stranger meets it: help, JSON, one-line errors, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pzoo.cli import COMMANDS, main
from p2pzoo.plugin.registry import KINDS


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """zoo(*arguments) -> click's result, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_help_names_every_command_and_every_command_has_help(zoo):
    shown = zoo("--help").output
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} " in shown
        assert summary in shown
        assert zoo(name, "--help").exit_code == 0


def test_list_json_is_an_array_of_components(zoo):
    rows = json.loads(zoo("list", "--json").stdout)
    assert {frozenset(row) for row in rows} == {frozenset({"kind", "name", "plugin", "summary", "paper"})}
    assert {"kind": "generator", "name": "unet", "plugin": "pix2pix"}.items() <= rows[
        [row["name"] for row in rows].index("unet")
    ].items()
    only = json.loads(zoo("list", "discriminator", "--json").stdout)
    assert {row["kind"] for row in only} == {"discriminator"}
    assert {row["name"] for row in only} > {"image", "patch", "pixel"}


def test_list_shows_every_component_to_people_too(zoo):
    shown = zoo("list").stdout
    for row in json.loads(zoo("list", "--json").stdout):
        assert row["name"] in shown


COUNTS = {  # paper_facts: parameters, output and receptive field at width 64, 3 -> 3 channels, 256 px
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
def test_show_counts_and_measures_networks(zoo, arguments, expected):
    shown = json.loads(zoo("show", *arguments, "--json").stdout)
    assert (shown["parameter_count"], shown["output_size"], shown.get("receptive_field")) == expected
    assert f"{expected[0]:,}" in zoo("show", *arguments).stdout


def test_show_lists_parameters_with_types_and_defaults(zoo):
    shown = json.loads(zoo("show", "generator", "unet", "--json").stdout)
    parameters = {parameter["name"]: parameter for parameter in shown["parameters"]}
    assert parameters["width"] == {"name": "width", "type": "int ≥ 1", "required": False, "default": 64}
    assert parameters["norm"]["type"] == '"batch" | "instance" | "none"'


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_can_be_shown(zoo, kind):
    for row in json.loads(zoo("list", kind, "--json").stdout):
        assert json.loads(zoo("show", kind, row["name"], "--json").stdout)["summary"] == row["summary"]


def test_plugins_json_says_what_each_registers(zoo):
    rows = {row["name"]: row for row in json.loads(zoo("plugins", "--json").stdout)}
    assert {"kind": "generator", "name": "unet"} in rows["pix2pix"]["components"]
    assert all(row["error"] is None for row in rows.values())


def test_recipe_prints_a_recipe_that_resolves_to_the_same_run(zoo, tmp_path):
    shown = zoo("recipe", "zoo:ablation_pixel.toml", "--profile", "laptop", "-s", "seed=4")
    (tmp_path / "again.toml").write_text(shown.stdout)
    first = json.loads(zoo("recipe", "zoo:ablation_pixel.toml", "--profile", "laptop", "-s", "seed=4", "--json").stdout)
    again = json.loads(zoo("recipe", "again.toml", "--json").stdout)
    assert (again["id"], again["values"]) == (first["id"], first["values"])
    assert first["origins"]["discriminator.use"].startswith("zoo:ablation_pixel.toml:")
    assert first["origins"]["discriminator.norm"] == "default of pix2pix:pixel"
    assert first["origins"]["seed"] == "-s seed=4"


def test_a_printed_recipe_keeps_strings_and_names_as_they_are(zoo, tmp_path):
    name = "two  spaces, [ and ]"
    (tmp_path / "odd.toml").write_text(f'extends = "zoo:base.toml"\ntitle = "{name}"\n[losses."my loss"]\nuse = "l2"\n')
    (tmp_path / "again.toml").write_text(zoo("recipe", "odd.toml", "--profile", "smoke").stdout)
    values = json.loads(zoo("recipe", "again.toml", "--json").stdout)["values"]
    assert values["title"] == name
    assert set(values["losses"]) == {"l1", "my loss"}


def test_diff_prints_only_what_differs(zoo):
    rows = json.loads(zoo("diff", "zoo:ablation_patch16.toml", "zoo:ablation_patch70.toml", "--json").stdout)
    assert rows == [{"key": "discriminator.receptive_field", "a": 16, "b": 70}]
    assert json.loads(zoo("diff", "zoo:ablation_l1_cgan.toml", "zoo:ablation_patch70.toml", "--json").stdout) == []
    assert "the same experiment" in zoo("diff", "zoo:ablation_l1_cgan.toml", "zoo:ablation_patch70.toml").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "zoo:ablation_patch7.toml"], "zoo:ablation_patch7.toml: no such recipe: did you mean 'ablation_patch"),
        (["run", "zoo:base.toml", "--profile", "huge"], "no profile 'huge'"),
        (["run", "zoo:base.toml", "-s", "generator.widht=3"], "has no parameter 'widht': did you mean 'width'?"),
        (["run", "zoo:base.toml", "--continue-from", "nowhere"], "nowhere: not a run folder"),
        (["show", "generator", "vnet"], "no generator 'vnet': did you mean 'unet'?"),
        (["show", "generator", "unet", "-s", "width"], "-s width: write -s param=value"),
        (["show", "generator", "unet", "-s", "width=0"], "generator 'unet': width = 0: input should be greater than"),
        (["show", "discriminator", "patch", "-s", "receptive_field=64"], "input should be 16, 34, 70 or 142"),
        (["show", "generators", "unet"], "'generators' is not one of"),
        (["rnu", "zoo:base.toml"], "no command 'rnu': did you mean 'run'?"),
        (["recipe", "."], ".: Is a directory"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(zoo, arguments, message):
    result = zoo(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_our_own_failures_are_code_1_and_debug_shows_where(zoo, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("not the user's fault\nat all")

    monkeypatch.setattr("p2pzoo.config.recipe.read_recipe", fail)
    result = zoo("recipe", "zoo:base.toml")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "p2pzoo failed: RuntimeError: not the user's fault (`p2pzoo --debug ...` shows where)"
    ]
    debugged = zoo("--debug", "recipe", "zoo:base.toml")
    assert debugged.exit_code == 1
    assert "Traceback" in debugged.stderr
    assert "in fail" in debugged.stderr


def test_a_missing_device_is_told_before_anything_is_written(zoo, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    result = zoo("run", "zoo:base.toml", "--profile", "smoke", "--device", "cuda")
    assert result.exit_code == 2
    assert 'device = "cuda"' in result.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_quiet_says_nothing_and_the_end_says_what_to_type_next(zoo):
    small = ["-s", "dataset.stride=256", "-s", "train.images=2", "-s", "discriminator.width=4"]
    run = ["run", "zoo:base.toml", "--profile", "smoke", *small]
    quiet = zoo(*run, "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in quiet.stdout.splitlines())
    assert Path(lines["report"]).is_file()
    assert len(list(Path(lines["pictures"]).glob("*.png"))) == 2
    assert lines["next"].startswith("p2pzoo translate runs/base/smoke-seed0-")
    again = zoo(*run)
    assert "already complete" in again.stderr
    assert again.stdout == quiet.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("p2pzoo ru", "run"),
        ("p2pzoo run zoo:ablation_pi", "zoo:ablation_pixel.toml"),
        ("p2pzoo run --prof", "--profile"),
        ("p2pzoo show gene", "generator"),
        ("p2pzoo show discriminator pat", "patch"),
    ],
)
def test_the_shell_completes_commands_recipes_options_and_names(typed, offered):
    complete = {**os.environ, "_P2PZOO_COMPLETE": "bash_complete", "COMP_WORDS": typed}
    complete["COMP_CWORD"] = str(len(typed.split()) - 1)
    code = "from p2pzoo.cli import main; main(prog_name='p2pzoo')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=complete, check=False)
    assert f"plain,{offered}" in shown.stdout.splitlines()


def test_python_dash_m_is_the_same_program():
    shown = subprocess.run(
        [sys.executable, "-m", "p2pzoo", "--version"], capture_output=True, text=True, env=os.environ, check=True
    )
    assert shown.stdout.strip().startswith("python -m p2pzoo, version ")
