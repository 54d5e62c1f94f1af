"""The command line: help, JSON, errors of one line, exit codes, start-up time."""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pzoo.cli import CORE_COMMANDS, main


@pytest.fixture
def run_cli(tmp_path, monkeypatch):
    """run_cli(*arguments) -> click's result, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_help_names_every_command_and_every_command_has_help(run_cli):
    output = run_cli("--help").output
    for name, (_, summary) in CORE_COMMANDS.items():
        assert f"{name} " in output
        assert summary in output
        assert run_cli(name, "--help").exit_code == 0


def test_list_json_is_an_array_of_components(run_cli):
    rows = json.loads(run_cli("list", "--json").stdout)
    assert {frozenset(row) for row in rows} == {frozenset({"kind", "name", "plugin", "summary", "paper"})}
    assert {"kind": "generator", "name": "unet", "plugin": "pix2pix"}.items() <= rows[
        [row["name"] for row in rows].index("unet")
    ].items()
    only = json.loads(run_cli("list", "discriminator", "--json").stdout)
    assert {row["kind"] for row in only} == {"discriminator"}
    assert {row["name"] for row in only} > {"image", "patch", "pixel"}


def test_list_names_every_component_without_json_too(run_cli):
    output = run_cli("list").stdout
    for row in json.loads(run_cli("list", "--json").stdout):
        assert row["name"] in output


def test_plugins_json_has_the_components_of_each_plugin(run_cli):
    rows = {row["name"]: row for row in json.loads(run_cli("plugins", "--json").stdout)}
    assert {"kind": "generator", "name": "unet"} in rows["pix2pix"]["components"]
    assert all(row["error"] is None for row in rows.values())


def test_recipe_prints_a_recipe_with_the_same_run_id(run_cli, tmp_path):
    printed = run_cli("recipe", "zoo:ablation_pixel.toml", "--profile", "laptop", "-s", "seed=4")
    (tmp_path / "again.toml").write_text(printed.stdout)
    first = json.loads(
        run_cli("recipe", "zoo:ablation_pixel.toml", "--profile", "laptop", "-s", "seed=4", "--json").stdout
    )
    again = json.loads(run_cli("recipe", "again.toml", "--json").stdout)
    assert (again["id"], again["values"]) == (first["id"], first["values"])
    assert first["origins"]["discriminator.use"].startswith("zoo:ablation_pixel.toml:")
    assert first["origins"]["discriminator.norm"] == "default of pix2pix:pixel"
    assert first["origins"]["seed"] == "-s seed=4"


def test_a_printed_recipe_keeps_strings_and_names_as_they_are(run_cli, tmp_path):
    name = "two  spaces, [ and ]"
    (tmp_path / "odd.toml").write_text(f'extends = "zoo:base.toml"\ntitle = "{name}"\n[losses."my loss"]\nuse = "l2"\n')
    (tmp_path / "again.toml").write_text(run_cli("recipe", "odd.toml", "--profile", "smoke").stdout)
    values = json.loads(run_cli("recipe", "again.toml", "--json").stdout)["values"]
    assert values["title"] == name
    assert set(values["losses"]) == {"l1", "my loss"}


def test_a_printed_recipe_keeps_tables_inside_of_tables_and_empty_ones(run_cli, tmp_path):
    (tmp_path / "inner.toml").write_text(
        'extends = "zoo:base.toml"\n[process]\nuse = "bridge"\n[generator]\nnorm = "group"\n[evaluate]\nsamples = 3\n'
        "[evaluate.process]\nsteps = 4\n[evaluate.also.avg]\n[metrics.l1.evaluate]\ntest_mode = 'eval'\n"
    )
    printed = run_cli("recipe", "inner.toml", "--profile", "smoke")
    (tmp_path / "again.toml").write_text(printed.stdout)
    values = json.loads(run_cli("recipe", "again.toml", "--json").stdout)["values"]
    assert values == json.loads(run_cli("recipe", "inner.toml", "--profile", "smoke", "--json").stdout)["values"]
    assert (values["evaluate"]["process"], values["evaluate"]["also"]) == ({"steps": 4}, {"avg": {}})
    rows = json.loads(run_cli("diff", "again.toml", "inner.toml", "--json").stdout)
    assert "evaluate.also.avg" not in [row["key"] for row in rows]
    assert '"evaluate.also.avg"' in run_cli("diff", "zoo:base.toml", "inner.toml", "--json").stdout


def test_diff_prints_only_what_differs(run_cli):
    rows = json.loads(run_cli("diff", "zoo:ablation_patch16.toml", "zoo:ablation_patch70.toml", "--json").stdout)
    assert rows == [{"key": "discriminator.receptive_field", "a": 16, "b": 70}]
    assert json.loads(run_cli("diff", "zoo:ablation_l1_cgan.toml", "zoo:ablation_patch70.toml", "--json").stdout) == []
    assert "the same experiment" in run_cli("diff", "zoo:ablation_l1_cgan.toml", "zoo:ablation_patch70.toml").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "zoo:ablation_patch7.toml"],
            "zoo:ablation_patch7.toml: no such recipe: did you mean 'zoo:ablation_pat",
        ),
        (["run", "zoo:base.toml", "--profile", "huge"], "no profile 'huge'"),
        (["run", "zoo:base.toml", "-s", "generator.widht=3"], "has no parameter 'widht': did you mean 'width'?"),
        (["run", "zoo:base.toml", "--continue-from", "nowhere"], "nowhere: not a run folder"),
        (["show", "generator", "vnet"], "no generator 'vnet': did you mean 'unet'?"),
        (["show", "generator", "unet", "-s", "width"], "-s width: write -s param=value"),
        (["show", "generator", "unet", "-s", "width=0"], "generator 'unet': width = 0: input should be greater than"),
        (["show", "discriminator", "patch", "-s", "receptive_field=64"], "input should be 16, 34, 70 or 142"),
        (["show", "generators", "unet"], "'generators' is not one of"),
        (["show", "generator"], "give the NAME of a generator; `p2pzoo list generator` shows them"),
        (["show", "train", "unet"], "[train] is one table: leave out 'unet'"),
        (["show", "train", "-s", "images=3"], "-s images=3: only networks are measured: give it with generator or"),
        (["show", "loss", "l1", "-s", "x=3"], "-s x=3: only networks are measured"),
        (["run", "zoo:base.toml", "-s", "seed=1", "--seed", "0"], "--seed and -s seed set the same value: give one"),
        (
            ["translate", "m", "x.png", "-o", "out", "--steps", "4", "-s", "process.steps=8"],
            "--steps and -s process.steps set the same value: give one of them",
        ),
        (["rnu", "zoo:base.toml"], "no command 'rnu': did you mean 'run'?"),
        (["recipe", "."], ".: is a folder: give a recipe"),
        (
            ["run", "zoo:base.toml", "-s", "generator.use=foo:unet"],
            "plugin 'foo' has no unet; 'pix2pix:unet' is installed",
        ),
        (["run", "zoo:base.toml", "-s", "optimizer.use=Adma"], "did you mean 'Adam'?"),
        (["card", "zoo:earth-small", "-o", "out"], "zoo:earth-small: is a model that is published already"),
        (["export", "zoo:earth-small", "--to", "onnxx", "-o", "m.onnx"], "no format 'onnxx': did you mean 'onnx'?"),
    ],
)
def test_a_wrong_argument_gives_one_line_and_exit_code_2(run_cli, arguments, message):
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_error_in_p2pzoo_is_exit_code_1_and_debug_prints_its_traceback(run_cli, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("not the user's fault\nat all")

    monkeypatch.setattr("p2pzoo.config.recipe.read_recipe", fail)
    result = run_cli("recipe", "zoo:base.toml")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "p2pzoo failed: RuntimeError: not the user's fault (`p2pzoo --debug ...` shows where)"
    ]
    debugged = run_cli("--debug", "recipe", "zoo:base.toml")
    assert debugged.exit_code == 1
    assert "Traceback" in debugged.stderr
    assert "in fail" in debugged.stderr


PLUGIN_THAT_RAISES = """
import p2pzoo
class Odd(Exception): ...
class Net:
    def __init__(self, in_channels: int, out_channels: int):
        raise Odd({text})
@p2pzoo.hookimpl
def register_generators(register):
    register("net", Net)
"""


@pytest.mark.parametrize(("text", "error"), [("'no\\nluck'", "Odd: no"), ("", "Odd")])
def test_an_error_in_a_plugin_names_the_plugin(text, error, run_cli, install):
    install("odd_zoo", PLUGIN_THAT_RAISES.replace("{text}", text))
    result = run_cli("show", "generator", "net")
    assert result.exit_code == 1
    assert result.output == f"plugin 'odd_zoo' (odd_zoo 1.0) failed: {error} (`p2pzoo --debug ...` shows where)\n"


def test_a_missing_device_is_reported_before_anything_is_written(run_cli, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    result = run_cli("run", "zoo:base.toml", "--profile", "smoke", "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        '-s compute.device=cuda  [compute] device = "cuda": no CUDA device'
    )
    assert not list(tmp_path.rglob("status.json"))
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"\n[compute]\ndevice = "cuda"\n')
    of_recipe = run_cli("run", "mine.toml", "--profile", "smoke").stderr.splitlines()[-1]
    assert of_recipe.startswith('mine.toml:3  [compute] device = "cuda": no CUDA device found (torch ')
    wrong = run_cli("run", "zoo:base.toml", "-s", "compute.device=cuda:7")
    assert "input should be 'auto', 'cpu', 'cuda' or 'mps'" in wrong.stderr


def test_quiet_prints_the_results_only_and_the_command_to_run_next(run_cli, with_reports):
    small = ["-s", "dataset.stride=256", "-s", "train.images=2", "-s", "discriminator.width=4"]
    run = ["run", "zoo:base.toml", "--profile", "smoke", *small]
    quiet = run_cli(*run, "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in quiet.stdout.splitlines())
    assert Path(lines["report"]).is_file()
    assert len(list(Path(lines["pictures"]).glob("*.png"))) == 2
    assert lines["next"].startswith("p2pzoo translate runs/base/smoke-seed0-")
    again = run_cli(*run)
    assert "already complete" in again.stderr
    assert again.stdout == quiet.stdout


@pytest.mark.parametrize(
    ("typed", "completion"),
    [
        ("p2pzoo ru", "run"),
        ("p2pzoo run zoo:ablation_pi", "zoo:ablation_pixel.toml"),
        ("p2pzoo run --prof", "--profile"),
        ("p2pzoo show gene", "generator"),
        ("p2pzoo show opt", "optimizer"),
        ("p2pzoo show discriminator pat", "patch"),
    ],
)
def test_the_shell_completes_commands_recipes_options_and_names(typed, completion):
    complete = {**os.environ, "_P2PZOO_COMPLETE": "bash_complete", "COMP_WORDS": typed}
    complete["COMP_CWORD"] = str(len(typed.split()) - 1)
    code = "from p2pzoo.cli import main; main(prog_name='p2pzoo')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=complete, check=False)
    assert f"plain,{completion}" in result.stdout.splitlines()


def test_python_m_p2pzoo_is_the_same_program():
    result = subprocess.run(
        [sys.executable, "-m", "p2pzoo", "--version"], capture_output=True, text=True, env=os.environ, check=True
    )
    assert result.stdout.strip().startswith("python -m p2pzoo, version ")


def test_the_front_door_and_help_import_no_torch_and_nothing_slow():
    script = "import p2pzoo, sys; from p2pzoo.cli import main; main(['--help'], standalone_mode=False); "
    script += "print([m for m in ('torch', 'numpy', 'PIL', 'pydantic', 'rich', 'jinja2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_takes_at_most_four_times_the_import_of_click_and_rich():
    """In CPU seconds; medians of interleaved rounds; again on a machine that is busy with other work."""

    def cpu_seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def seconds(*arguments):
        start = cpu_seconds()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return cpu_seconds() - start

    for _ in range(3):
        rounds = [(seconds("-m", "p2pzoo", "--help"), seconds("-c", "import click, rich")) for _ in range(5)]
        show_help, imports = map(statistics.median, zip(*rounds, strict=True))
        if show_help <= 4 * imports:
            return
    pytest.fail(f"p2pzoo --help takes {show_help:.2f} CPU s, import click, rich {imports:.2f} s")


@pytest.mark.parametrize(
    ("name", "meant"), [("fit", "run"), ("infer", "translate"), ("eval", "evaluate"), ("recipes", "list recipes")]
)
def test_names_of_commands_in_other_tools_are_understood(name, meant, run_cli):
    result = run_cli(name, "x")
    assert (result.exit_code, f"no command '{name}': did you mean '{meant}'?" in result.output) == (2, True)


@pytest.mark.parametrize(("name", "meant"), [("train", "run"), ("test", "evaluate"), ("predict", "translate")])
def test_usual_names_of_commands_are_aliases_that_help_does_not_list(name, meant, run_cli, install):
    assert run_cli(name, "--help").output.replace(f"main {meant} ", "main ") == run_cli(meant, "--help").output.replace(
        f"main {meant} ", "main "
    )
    assert f"\n  {name} " not in run_cli("--help").output
    command = f"import click, p2pzoo\n@p2pzoo.hookimpl\ndef register_commands(register): register('{name}', own)\n"
    install("greeter", command + "@click.command()\ndef own(): click.echo('my own')\n")
    assert run_cli(name).output == "my own\n"  # a plugin's command of this name comes first


def test_recipes_are_listed(run_cli):
    result = run_cli("list", "recipes")
    assert result.exit_code == 0
    assert "zoo:modern/resnet9.toml" in result.output
    rows = json.loads(run_cli("list", "recipes", "--json").output)
    assert {"recipe": "zoo:ablation_l1.toml", "title": "L1 alone (Table 1)"} in rows


def test_a_recipe_is_not_a_model(run_cli, tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"')
    (tmp_path / "a.png").touch()
    result = run_cli("translate", "mine.toml", "a.png", "-o", "out")
    assert result.exit_code == 2
    assert "mine.toml: is a recipe, not a model: `p2pzoo run " in result.output


def test_a_list_of_files_is_printed_in_lines(run_cli, tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = f'dataset={{use="folders", inputs="{tmp_path}/a", targets="{tmp_path}/b"}}'
    result = run_cli("run", "zoo:base.toml", "--profile", "smoke", "-s", data)
    assert result.exit_code == 2
    assert "\\n" not in result.output
    assert len(result.output.splitlines()) > 2


def test_a_signal_that_a_library_turns_into_another_error_stops_the_command(install, run_cli):
    install("swallowing", """
import signal
import click
import p2pzoo

@click.command()
def command():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise ImportError("half imported")

@p2pzoo.hookimpl
def register_commands(register):
    register("swallow", command, summary="Turn an interrupt into another error.")
""")  # fmt: skip
    result = run_cli("swallow")
    assert result.exit_code == 143, result.output
    assert result.output.splitlines() == ["stopped; the same command resumes from what was saved"]
