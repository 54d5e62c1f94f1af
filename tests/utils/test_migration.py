"""A plugin that was written for 0.1.0 gets one line that names the new place of what it uses."""

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

from p2pzoo.plugin.loader import build_registry, load_entry_points
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.migration import METHODS, MOVED

SEE = "(all new names: p2pzoo/utils/migration.py)"  # a file that every installation has

# The classes and functions of 0.1.0 that a plugin could import.
PUBLIC_IN_0_1_0 = {
    "contracts": "Archive Augmentation Batch Callback Dataset Discriminator GanLoss Generator Later Layout Loss Metric "
    "Model Pair Reading Scene Side Split Track",
    "hookspecs": "hookimpl hookspec",
    "errors": "Elsewhere Fault UserError",
    "paths": "cache_dir shipped",
    "files": "fingerprint parse_json parse_toml read_json read_object replacing write_json write_text",
    "images": "Header find_images holds inspect inspect_array pixels_of read_array read_header read_image reason "
    "with_channels write_image write_png",
    "labels": "Classes Labels inspect_map read_map",
    "encodings": "Encodings from_stored joined lab stored",
    "layouts": "combine find_pairs halves headers inspected odd_widths pixels raise_any several side_by_side split "
    "stem_of",
    "chance": "generator key torch_seed",
    "checkpoint": "Damaged load_into load_tensors module_tensors optimizer_tensors refuse_unfitting restore_optimizer "
    "save_model save_tensors under",
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(module=source, ...): a plugin for each of these modules."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(**modules: str):
        for name, source in modules.items():
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / f"{name}.py").write_text(source)
            importlib.invalidate_caches()
        return load_entry_points(EntryPoint(name, name, "p2pzoo") for name in modules)

    return load


@pytest.mark.parametrize(
    "old", [f"p2pzoo.{module}.{name}" for module, names in PUBLIC_IN_0_1_0.items() for name in names.split()]
)
def test_every_public_name_of_0_1_0_exists_in_its_new_place(old):
    module, _, name = old.rpartition(".")
    new_module, _, new_name = MOVED.get(old, f"{MOVED[module]}.{name}").rpartition(".")
    assert hasattr(importlib.import_module(new_module), new_name), f"add {old} to MOVED in p2pzoo/utils/migration.py"


def test_the_old_modules_are_those_of_0_1_0():
    assert {old for old in MOVED if old.count(".") == 1} == {f"p2pzoo.{module}" for module in PUBLIC_IN_0_1_0}


IMPORTS = [  # what a plugin imports, and the beginning and end of the line that it gets
    ("from p2pzoo.contracts import Pair", "p2pzoo.contracts moved in 0.2: import Pair from p2pzoo.plugin"),
    (
        "from p2pzoo.contracts import (\n    Pair,\n    Scene,\n)",
        "p2pzoo.contracts moved in 0.2: import Pair, StepOutputs (was Scene) from p2pzoo.plugin",
    ),
    ("import p2pzoo.contracts", "p2pzoo.contracts moved in 0.2: import p2pzoo.plugin"),
    ("from p2pzoo.hookspecs import hookimpl", "import hookimpl from p2pzoo.plugin.hookspecs"),
    ("from p2pzoo.errors import UserError", "p2pzoo.errors moved in 0.2: import UserError from p2pzoo.utils.errors"),
    ("from p2pzoo import errors", "p2pzoo.errors moved in 0.2: import p2pzoo.utils.errors"),
    ("import p2pzoo\nraise p2pzoo.errors.UserError", "p2pzoo.errors moved in 0.2: import p2pzoo.utils.errors"),
    ("from p2pzoo.paths import shipped", "import shipped_dir (was shipped) from p2pzoo.utils.paths"),
    ("from p2pzoo.files import replacing", "import atomic_write (was replacing) from p2pzoo.utils.files"),
    ("from p2pzoo.images import read_image", "p2pzoo.images moved in 0.2: import read_image from p2pzoo.images.io"),
    ("from p2pzoo.layouts import find_pairs", "import find_pairs from p2pzoo.data.pairing"),
    ("from p2pzoo.chance import key", "import derive_seed (was key) from p2pzoo.utils.rng"),
    (
        "from p2pzoo.checkpoint import Damaged, load_tensors",
        "import DamagedFile (was Damaged) from p2pzoo.utils.errors and load_tensors from p2pzoo.models.safetensors_io",
    ),
    ("from p2pzoo.plugin import Scene", "import StepOutputs (was Scene) from p2pzoo.plugin"),
    ("from p2pzoo.utils.rng import generator", "import numpy_rng (was generator) from p2pzoo.utils.rng"),
]


@pytest.mark.parametrize(("source", "line"), IMPORTS)
def test_a_plugin_that_imports_an_old_name_gets_the_new_place(load, tmp_path, source, line):
    [plugin] = load(old=f'"""A plugin."""\n{source}\n')
    assert plugin.error.startswith("plugin 'old': p2pzoo.")
    assert f"{line} {SEE}; see {tmp_path / 'old.py'}:" in plugin.error
    assert "\n" not in plugin.error


LAZY = """
import p2pzoo

@p2pzoo.hookimpl
def register_{kind}s(register):
    register("mine", "old_parts:Mine")
"""


@pytest.mark.parametrize(("source", "line"), IMPORTS)
def test_a_component_whose_module_imports_an_old_name_gets_the_new_place(load, tmp_path, source, line):
    plugins = load(old=LAZY.format(kind="generator"), old_parts=source)
    entry = build_registry(plugins).get("generator", "mine")
    sys.modules.pop("old_parts", None)
    with pytest.raises(UserError) as caught:
        entry.load()
    [message] = caught.value.faults
    assert message.startswith("plugin 'old': p2pzoo.")
    assert f"{line} {SEE}; see {tmp_path / 'old_parts.py'}:1" in message.replace(":2", ":1")


@pytest.mark.parametrize(
    "source",
    [
        "import p2pzoo.nonsense",
        "from p2pzoo import nonsense",
        "from p2pzoo.plugin import Nonsense",
        "import contracts",
        "None.contracts",
        "raise ImportError('p2pzoo.contracts')",
    ],
)
def test_another_error_is_reported_as_it_is(load, source):
    [plugin] = load(old=source)
    assert "moved in 0.2" not in plugin.error
    assert plugin.error.split(":")[0] in ("ModuleNotFoundError", "ImportError", "AttributeError")


@pytest.mark.parametrize(
    ("kind", "old", "new"), [(kind, old, new) for kind, names in METHODS.items() for old, new in names.items()]
)
def test_a_class_with_an_old_method_gets_the_new_name(load, kind, old, new):
    hook = LAZY.format(kind=kind).replace("losss", "losses")
    source = f"class Mine:\n    def {old}(self): ...\n"
    entry = build_registry(load(old=hook, old_parts=source)[:1]).get(kind, "mine")
    with pytest.raises(UserError) as caught:
        entry.load()
    assert caught.value.faults == (f"plugin 'old': {kind} 'mine': Mine.{old} is now called {new} in 0.2 {SEE}",)
    load(old_parts=f"{source}    def {new}(self): ...\n")
    assert entry.load().__name__ == "Mine", "with the new name, it may have the old one too"


def test_all_old_methods_of_a_class_are_named_in_one_line(load):
    source = "class Mine:\n    def judge(self, scene): ...\n    def fool(self, scene): ...\n"
    plugins = load(old=LAZY.format(kind="gan_loss").replace("losss", "losses"), old_parts=source)
    with pytest.raises(
        UserError, match=r"judge is now called discriminator_loss, Mine.fool is now called generator_loss"
    ):
        build_registry(plugins[:1]).get("gan_loss", "mine").load()


def test_a_module_inside_a_network_with_an_old_method_is_found(load):
    source = "class Part:\n    def first_weights(self): ...\nclass Mine:\n    def __init__(self): self.part = Part()\n"
    entry = build_registry(load(old=LAZY.format(kind="generator"), old_parts=source)[:1]).get("generator", "mine")
    with pytest.raises(UserError, match=r"Part\.first_weights is now called init_own_weights"):
        entry.load()


def test_a_class_of_another_kind_may_use_an_old_name(load):
    source = "class Mine:\n    layouts = ()\n    def judge(self): ...\n"
    entry = build_registry(load(old=LAZY.format(kind="dataset"), old_parts=source)[:1]).get("dataset", "mine")
    assert entry.load().layouts == ()


def test_a_class_that_is_registered_without_a_module_name_is_checked_too(load):
    source = LAZY.format(kind="augmentation").replace('"old_parts:Mine"', "Mine") + "class Mine:\n    draws = 2\n"
    [plugin] = load(old=source)
    with pytest.raises(UserError, match=r"Mine\.draws is now called num_random"):
        build_registry([plugin]).get("augmentation", "mine").load()
