"""Plugins load one by one. If one of them fails, the others work and its error is kept."""

import inspect
import json
import re
import shutil
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from imports import imported
from PIL import Image
from pydantic import Field

import p2pzoo
from p2pzoo import config
from p2pzoo.config.provenance import UNUSED_BY_RUNS, changed_sources, source_hashes
from p2pzoo.plugin import hookspecs
from p2pzoo.plugin.loader import build_registry, hook_name, load_entry_points, plugins, registry
from p2pzoo.plugin.registry import COMMAND, KINDS, NO_COMPONENTS, Entry
from p2pzoo.utils.errors import UserError

GOOD = """
import p2pzoo

@p2pzoo.hookimpl
def register_generators(register):
    register("tiny", "good.missing:Tiny", summary="A tiny one", paper="arXiv:1505.04597")
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(module=source, ...): a plugin for each of these modules."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(**modules: str):
        for name, source in modules.items():
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / f"{name}.py").write_text(source)
        return load_entry_points(EntryPoint(name, name, "p2pzoo") for name in modules)

    return load


def test_a_plugin_registers_components_without_importing_them(load):
    [plugin] = load(good=GOOD)
    [entry] = plugin.entries
    assert (entry.kind, entry.name, entry.plugin, entry.summary) == ("generator", "tiny", "good", "A tiny one")
    assert plugin.error is None


def test_a_component_that_cannot_be_imported_is_an_error_when_it_is_used(load):
    entry = build_registry(load(good=GOOD)).get("generator", "tiny")
    with pytest.raises(UserError, match=r"'tiny' of plugin 'good' .* does not load from good.missing:Tiny: Module"):
        entry.load()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        (
            GOOD.replace("register_generators", "register_genrators"),
            "ValueError: bad.py:4  there is no hook 'register_genrators': did you mean 'register_generators'?",
        ),
        (
            GOOD.replace("(register)", "(register, more)"),
            "ValueError: bad.py:4  register_generators(register, more): the only argument of a hook is `register`",
        ),
        (
            GOOD.replace("@p2pzoo.hookimpl", ""),
            "ValueError: bad.py:5  the module bad has no hook: write @p2pzoo.hookimpl above register_generators",
        ),
        ("", "ValueError: the module bad has no hook: define register_generators, with @p2pzoo.hookimpl above it"),
        (GOOD.replace('summary="A tiny one"', 'needs=("label",)'), "ValueError: generator 'tiny' has needs=('label',)"),
        (GOOD.replace('summary="A tiny one"', 'needs="labels"'), "ValueError: generator 'tiny' has needs='labels'"),
        (
            GOOD.replace('summary="A tiny one"', 'needs=("labels",)'),
            "ValueError: generator 'tiny' has needs=('labels',): a generator needs nothing: remove it",
        ),
        (
            GOOD.replace('summary="A tiny one"', 'needs=("blocks",)').replace("generators", "discriminators"),
            "ValueError: discriminator 'tiny' has needs=('blocks',): write (\"labels\",), or",
        ),
        (
            GOOD.replace('summary="A tiny one"', 'needs=("features",)').replace("generators", "metrics"),
            "ValueError: metric 'tiny' has needs=('features',): write (\"labels\",) or (\"blocks\",), or",
        ),
        (GOOD.replace('"A tiny one"', "None"), "ValueError: generator 'tiny' has summary=None: write a text"),
        (GOOD.replace("tiny", "Tiny Net"), "ValueError: generator name 'Tiny Net'"),
        (
            GOOD.replace("good.missing:Tiny", "good"),
            "ValueError: generator 'tiny': write a lazy factory as",
        ),
        (GOOD + "    register('tiny', dict)\n", "ValueError: generator 'tiny' is registered twice"),
        (GOOD.replace("summary", "sumary"), "TypeError:"),
    ],
)
def test_a_broken_plugin_is_reported_and_stops_nothing(load, source, error):
    good, bad = load(good=GOOD, bad=source)
    assert good.error is None
    assert bad.error.startswith(error)
    assert bad.entries == ()
    with pytest.raises(UserError, match="plugins that did not load: bad"):
        build_registry([good, bad]).get("generator", "resnet")


def test_a_plugin_that_fails_while_it_registers_gives_nothing_to_those_after_it(load):
    failing = GOOD + "    raise RuntimeError('late')\n"
    plugins = load(first=failing, second=GOOD, third=failing, fourth=GOOD)
    assert [[entry.plugin for entry in plugin.entries] for plugin in plugins] == [[], ["second"], [], ["fourth"]]


def test_two_plugins_of_one_module_both_load(load):
    load(good=GOOD)
    plugins = load_entry_points(EntryPoint(name, "good", "p2pzoo") for name in ("one", "two"))
    assert [(plugin.error, [entry.plugin for entry in plugin.entries]) for plugin in plugins] == [
        (None, ["one"]),
        (None, ["two"]),
    ]


def test_the_description_of_a_distribution_is_read_once_for_all_its_plugins(monkeypatch):
    ours = [point for point in entry_points(group="p2pzoo") if point.dist.name == "p2pzoo"]
    kind, files = type(ours[0].dist), []  # the package importlib_metadata replaces that of Python once it is imported
    read = kind.read_text
    monkeypatch.setattr(kind, "read_text", lambda self, name: (files.append(name), read(self, name))[1])
    assert len({plugin.distribution for plugin in load_entry_points(ours)}) == 1 < len(ours)
    assert files.count("METADATA") == 1


def test_two_plugins_may_register_one_name_until_a_recipe_uses_it_without_the_plugin(load):
    both = build_registry(load(good=GOOD, other=GOOD))
    with pytest.raises(UserError, match=r"registered by several plugins, 'good:tiny' .* and 'other:tiny'"):
        both.get("generator", "tiny")
    assert both.get("generator", "other:tiny").plugin == "other"


def test_a_component_of_another_plugin_and_one_that_may_not_load_are_named(load, monkeypatch):
    both = build_registry(load(good=GOOD, other=GOOD))
    with pytest.raises(UserError, match="plugin 'third' has no tiny; 'good:tiny' and 'other:tiny' is installed"):
        both.get("generator", "third:tiny")
    monkeypatch.setenv("P2PZOO_PLUGINS", "good")
    with pytest.raises(UserError, match="P2PZOO_PLUGINS allows only these plugins: good"):
        both.get("generator", "resnet")


def test_a_second_plugin_of_the_same_name_is_refused_by_name(load):
    point = EntryPoint("good", "good", "p2pzoo")
    load(good=GOOD)
    first, second = load_entry_points([point, point])
    assert first.error is None
    assert "already provides a plugin named 'good'" in second.error


def test_an_unknown_name_is_answered_with_a_similar_one(load):
    known = build_registry(load(good=GOOD))
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        known.get("generator", "tny")
    with pytest.raises(UserError, match="no loss 'tiny': none is installed"):
        known.get("loss", "tiny")


def test_the_environment_variable_restricts_what_loads(monkeypatch):
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
    assert set(hooks) == {hook_name(kind) for kind in (*KINDS, *NO_COMPONENTS)}
    for hook in hooks.values():
        assert inspect.getdoc(hook).splitlines()[0].startswith("Register "), hook


def test_all_first_party_plugins_load_and_describe_every_entry():
    assert [plugin.error for plugin in plugins()] == [None] * len(plugins())
    for entry in registry():
        assert entry.summary, entry
        assert entry.paper or entry.kind in ("metric", *NO_COMPONENTS), entry
        assert callable(entry.load())


def test_a_command_is_no_component(load):
    [plugin] = load(good=GOOD.replace("register_generators", "register_commands"))
    known = build_registry([plugin])
    assert [entry.kind for entry in known] == [COMMAND]
    assert [entry.name for entry in known.of(COMMAND)] == ["tiny"]
    assert COMMAND not in KINDS
    assert not any(known.of(kind) for kind in KINDS)


CORE = Path(p2pzoo.__file__).parent


def test_code_that_computes_runs_imports_no_room_that_its_hash_leaves_out():
    left_out = tuple(f"p2pzoo.{room}." for room in UNUSED_BY_RUNS)
    computes_runs = [
        *(file for file in CORE.rglob("*.py") if file.relative_to(CORE).parts[0] not in (*UNUSED_BY_RUNS, *FRONT_DOOR)),
        *(file for plugin in plugins() if has_components(plugin) for file in component_files(plugin)),
    ]
    assert len(computes_runs) > 100
    for file in computes_runs:
        assert not [name for name in imported(file) if f"{name}.".startswith(left_out)], file


FRONT_DOOR = ("__init__.py", "__main__.py", "api.py")  # they start runs


def has_components(plugin):
    return any(entry.kind not in NO_COMPONENTS for entry in plugin.entries)


def component_files(plugin):
    """Its files, but not those of its commands, which may import p2pzoo.cli.options."""
    files = (CORE.parent / "plugins" / plugin.module).rglob("*.py")
    return [file for file in files if file.stem != "commands" and not file.stem.endswith("_command")]


def test_the_hash_of_the_core_covers_the_code_that_computes_runs_and_no_other(tiny, tmp_path, monkeypatch):
    core = shutil.copytree(CORE, tmp_path / "p2pzoo", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("p2pzoo.config.provenance.PACKAGE", core)
    experiment = config.load(str(tiny), "smoke")

    def changed_by_editing(file):
        before = source_hashes(experiment)
        assert (core / file).is_file()
        with (core / file).open("a") as module:
            module.write("# another\n")
        return changed_sources(before, source_hashes(experiment))

    assert changed_by_editing("cli/run.py") == changed_by_editing("testing/__init__.py") == []
    assert changed_by_editing("compute/conv_as_gemm.py") == changed_by_editing("training/loop.py") == ["core"]


def test_what_an_older_version_called_test_data_may_be_the_validation_split():
    now = {"train data": "a", "val data": "b", "test data": "c"}
    assert changed_sources({**now, "test data": "b"}, now) == []
    assert changed_sources({**now, "test data": "d"}, now) == ["test data"]
    assert changed_sources({"val data": "d", "test data": "d"}, now) == ["val data"]


READY = """
import p2pzoo
from pathlib import Path

@p2pzoo.hookimpl
def register_models(register):
    register("ready", where, summary="A trained one", paper="none")

def where() -> Path:
    return Path(__file__).parent / "ready"
"""


def test_a_model_that_a_plugin_ships_is_found_by_its_name(install, run, run_cli, tmp_path):
    install("shipping", READY)
    run(tmp_path / "runs")
    [trained] = (tmp_path / "runs").glob("tiny/*")
    ready = tmp_path / "site" / "ready"
    ready.mkdir()
    shutil.copy(trained / "model.safetensors", ready)
    tile = tmp_path / "tile.png"
    Image.new("RGB", (64, 64), (66, 133, 214)).save(tile)
    run_cli("translate", "zoo:ready", tile, "-o", tmp_path / "named.png")
    run_cli("translate", trained, tile, "-o", tmp_path / "run.png")
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("named", "run")))
    assert p2pzoo.load("zoo:shipping:ready").run == p2pzoo.load(trained).run
    shown = json.loads(run_cli("show", "model", "ready", "--json").output)
    assert shown["folder"] == str(ready)
    assert shown["generator"] == "pix2pix:unet"
    with pytest.raises(UserError, match="no model 'redy': did you mean 'ready'"):
        p2pzoo.load("zoo:redy")


# --- parameters that no recipe could set ---


class Weighted:
    side = "generator"

    def __init__(self, *, weight: float = 1.0): ...


class Used:
    def __init__(self, in_channels: int, out_channels: int, *, use: str = "a"): ...


class WrongDefault:
    def __init__(self, in_channels: int, out_channels: int, *, depth: Annotated[int, Field(ge=1)] = 0): ...


class WrongLiteral:
    def __init__(self, dataset, *, mode: Literal["a", "b"] = "c"): ...


class Fine:
    def __init__(self, dataset, *, weights: float = 1.0, path: Path | None = None, sides: tuple[int, int] = (1, 2)): ...


@pytest.mark.parametrize(
    ("kind", "factory", "message"),
    [
        ("loss", Weighted, "its parameter 'weight' cannot be set"),
        ("metric", Weighted, "its parameter 'weight' cannot be set"),
        ("generator", Used, "its parameter 'use' cannot be set"),
        ("generator", WrongDefault, "the default depth = 0 is none of its own type: input should be greater than"),
        ("metric", WrongLiteral, "the default mode = \"c\" is none of its own type: input should be 'a' or 'b'"),
    ],
)
def test_parameters_that_no_recipe_can_set_are_refused(kind, factory, message):
    with pytest.raises(UserError, match=re.escape(f"plugin 'mine': {kind} 'it': {message}")):
        Entry(kind, "it", factory, "mine", "mine 1.0").load()
    assert Entry("metric", "it", Fine, "mine", "mine 1.0").load() is Fine


def test_every_first_party_component_can_be_written_in_a_recipe():
    for entry in registry():
        if entry.kind != "command":
            entry.load()
