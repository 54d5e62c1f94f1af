"""Plugins load one by one; whatever one of them does, the others work and its error is kept."""

import inspect
import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from imports import imported
from PIL import Image

import p2pzoo
from p2pzoo import config
from p2pzoo.config.provenance import NOT_OF_RUNS, changed_sources, sources
from p2pzoo.plugin import hookspecs
from p2pzoo.plugin.loader import collect, hook_name, plugins, registry, registry_of
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError

GOOD = """
import p2pzoo

@p2pzoo.hookimpl
def register_generators(register):
    register("tiny", "good.missing:Tiny", summary="A tiny one", paper="arXiv:1505.04597")
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(name=source, …): the plugins of these modules."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(**modules: str):
        for name, source in modules.items():
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / f"{name}.py").write_text(source)
        return collect(EntryPoint(name, name, "p2pzoo") for name in modules)

    return load


def test_a_plugin_registers_components_without_importing_them(load):
    [plugin] = load(good=GOOD)
    [entry] = plugin.entries
    assert (entry.kind, entry.name, entry.plugin, entry.summary) == ("generator", "tiny", "good", "A tiny one")
    assert plugin.error is None


def test_a_component_that_does_not_import_is_told_when_a_recipe_needs_it(load):
    entry = registry_of(load(good=GOOD)).get("generator", "tiny")
    with pytest.raises(UserError, match=r"'tiny' of plugin 'good' .* does not load from good.missing:Tiny: Module"):
        entry.load()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        (GOOD.replace("register_generators", "register_genrators"), "PluginValidationError: unknown hook"),
        (GOOD.replace("(register)", "(register, more)"), "PluginValidationError: Plugin 'bad' for hook"),
        (GOOD.replace("tiny", "Tiny Net"), "ValueError: generator name 'Tiny Net'"),
        (GOOD.replace("good.missing:Tiny", "good"), "ValueError: generator 'tiny': a lazy factory is written"),
        (GOOD + "    register('tiny', dict)\n", "ValueError: generator 'tiny' is registered twice"),
        (GOOD.replace("summary", "sumary"), "TypeError:"),
    ],
)
def test_a_broken_plugin_is_reported_and_stops_nothing(load, source, error):
    good, bad = load(good=GOOD, bad=source)
    assert good.error is None
    assert bad.error.startswith(error)
    assert bad.entries == ()
    with pytest.raises(UserError, match="Plugins that did not load: bad"):
        registry_of([good, bad]).get("generator", "resnet")


def test_two_plugins_may_claim_one_name_until_a_recipe_uses_it_bare(load):
    both = registry_of(load(good=GOOD, other=GOOD))
    with pytest.raises(UserError, match=r"claimed by 'good:tiny' .* and 'other:tiny'"):
        both.get("generator", "tiny")
    assert both.get("generator", "other:tiny").plugin == "other"


def test_a_second_plugin_of_the_same_name_is_refused_by_name(load):
    point = EntryPoint("good", "good", "p2pzoo")
    load(good=GOOD)
    first, second = collect([point, point])
    assert first.error is None
    assert "already provides a plugin named 'good'" in second.error


def test_unknown_names_answer_with_the_nearest(load):
    known = registry_of(load(good=GOOD))
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        known.get("generator", "tny")
    with pytest.raises(UserError, match="no loss 'tiny': none is installed"):
        known.get("loss", "tiny")


def test_the_environment_restricts_what_loads(monkeypatch):
    monkeypatch.setenv("P2PZOO_PLUGINS", "pix2pix, metrics")
    plugins.cache_clear()
    try:
        assert [plugin.name for plugin in plugins()] == ["metrics", "pix2pix"]
        monkeypatch.setenv("P2PZOO_PLUGINS", "pix2pics")
        plugins.cache_clear()
        with pytest.raises(UserError, match="names plugin 'pix2pics': did you mean 'pix2pix'"):
            plugins()
    finally:
        plugins.cache_clear()


def test_every_kind_has_a_documented_hook_and_every_hook_a_kind():
    hooks = dict(inspect.getmembers(hookspecs, inspect.isfunction))
    assert set(hooks) == {hook_name(kind) for kind in KINDS}
    assert all(hook.__doc__ for hook in hooks.values())


def test_all_first_party_plugins_load_and_describe_every_component():
    assert [plugin.error for plugin in plugins()] == [None] * len(plugins())
    for entry in registry():
        assert entry.summary, entry
        assert entry.paper or entry.kind == "metric", entry
        assert callable(entry.load())


CORE = Path(p2pzoo.__file__).parent


def test_the_core_imports_no_plugin():
    for file in CORE.rglob("*.py"):
        assert not [name for name in imported(file) if name.startswith("p2pzoo_")], file


def test_what_a_run_computes_needs_no_room_that_its_sources_leave_out():
    left_out = tuple(f"p2pzoo.{room}." for room in NOT_OF_RUNS)
    for file in (CORE.parent / "plugins").rglob("*.py"):
        assert not [name for name in imported(file) if f"{name}.".startswith(left_out)], file
    for file in CORE.rglob("*.py"):
        if file.relative_to(CORE).parts[0] not in (*NOT_OF_RUNS, "__main__.py", "api.py"):  # these two begin runs
            assert not [name for name in imported(file) if f"{name}.".startswith(left_out)], file


def test_a_run_is_held_to_the_code_that_computes_it_and_no_other(tiny, tmp_path, monkeypatch):
    core = shutil.copytree(CORE, tmp_path / "p2pzoo", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("p2pzoo.runs.run_folder.PACKAGE", core)
    experiment = config.load(str(tiny), "smoke")

    def changed(file):
        before = sources(experiment)
        with (core / file).open("a") as module:
            module.write("# another\n")
        return changed_sources(before, sources(experiment))

    assert changed("tables/stats.py") == changed("cli/run.py") == []
    assert changed("speed/lowering.py") == changed("training.py") == ["core"]


READY = """
import p2pzoo
from pathlib import Path

@p2pzoo.hookimpl
def register_models(register):
    register("ready", where, summary="One that is trained", paper="none")

def where() -> Path:
    return Path(__file__).parent / "ready"
"""


def test_a_model_of_a_plugin_is_found_by_its_name_wherever_a_model_is_asked_for(install, run, zoo, tmp_path):
    install("carrier", READY)
    run(tmp_path / "runs")
    [trained] = (tmp_path / "runs").glob("tiny/*")
    ready = tmp_path / "site" / "ready"
    ready.mkdir()
    shutil.copy(trained / "model.safetensors", ready)
    tile = tmp_path / "tile.png"
    Image.new("RGB", (64, 64), (66, 133, 214)).save(tile)
    zoo("translate", "zoo:ready", tile, "-o", tmp_path / "named.png")
    zoo("translate", trained, tile, "-o", tmp_path / "run.png")
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("named", "run")))
    assert p2pzoo.load("zoo:carrier:ready").run == p2pzoo.load(trained).run
    shown = json.loads(zoo("show", "model", "ready", "--json").output)
    assert shown["folder"] == str(ready)
    assert shown["generator"] == "pix2pix:unet"
    with pytest.raises(UserError, match="no model 'redy': did you mean 'ready'"):
        p2pzoo.load("zoo:redy")
