"""The check of a plugin's own module, which every command loads."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

from p2pzoo.config.experiment import Component
from p2pzoo.plugin.loader import Plugin
from p2pzoo.plugin.registry import Entry
from p2pzoo.testing.component_case import ComponentCase

PLUGIN = "plugin"  # the kind of the entry that stands for a plugin itself

# Prints the line that imports torch while a plugin is loaded, and ends.
_PROBE = """
import os, sys, traceback

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            frames = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.startswith("<")]
            print(f"{os.sep.join(frames[-1].filename.split(os.sep)[-2:])}:{frames[-1].lineno}", flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
from importlib.metadata import EntryPoint
from p2pzoo.plugin.loader import load_entry_points
load_entry_points([EntryPoint(sys.argv[1], sys.argv[2], "p2pzoo")])
"""


def build_plugin_case(plugin: Plugin) -> tuple[Entry, ComponentCase]:
    """An entry and a case that stand for the plugin itself. Its module may have `known_failures`."""
    entry = Entry(PLUGIN, plugin.name, plugin.module, plugin.name, plugin.distribution)
    module = importlib.import_module(plugin.module.partition(":")[0])
    return entry, ComponentCase(Component(entry, module, {}))  # type: ignore[arg-type]


def check_plugin_imports(case: ComponentCase) -> None:
    """The plugin's own module and its hooks import no torch, so that `p2pzoo --help` and `p2pzoo list` stay fast."""
    entry = case.component.entry
    result = subprocess.run(
        [sys.executable, "-c", _PROBE, entry.name, str(entry.factory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    where = result.stdout.strip()
    assert not where, (
        f"{where} imports torch when the plugin is loaded: import it in the modules of the components, and register "
        'these as "module:attribute"'
    )
    assert result.returncode == 0, f"does not load in a new process: {result.stderr.strip().splitlines()[-1:]}"
