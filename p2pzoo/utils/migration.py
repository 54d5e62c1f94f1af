"""What plugins for 0.1.0 must change: old names and their new places. Nothing here keeps an old name working.

When a plugin does not load because it uses an old name, `explain_import_error` and `find_old_methods` give the line
that names the new one, and this file, which every installation has. The repository's plugins/README.md explains them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

# 0.1.0 -> 0.2, modules and the names in them. A name that is not here keeps its name in its module's new place.
MOVED = {
    "p2pzoo.contracts": "p2pzoo.plugin",
    "p2pzoo.contracts.Later": "p2pzoo.plugin.AddedLater",
    "p2pzoo.contracts.Layout": "p2pzoo.plugin.StateDictFormat",
    "p2pzoo.contracts.Model": "p2pzoo.plugin.PretrainedModel",
    "p2pzoo.contracts.Reading": "p2pzoo.plugin.InferredConfig",
    "p2pzoo.contracts.Scene": "p2pzoo.plugin.StepOutputs",
    "p2pzoo.contracts.Track": "p2pzoo.plugin.ProgressBar",
    "p2pzoo.hookspecs": "p2pzoo.plugin.hookspecs",
    "p2pzoo.errors": "p2pzoo.utils.errors",
    "p2pzoo.errors.Elsewhere": "p2pzoo.utils.errors.PeerProcessError",
    "p2pzoo.errors.Fault": "p2pzoo.utils.errors.SharedFault",
    "p2pzoo.paths": "p2pzoo.utils.paths",
    "p2pzoo.paths.shipped": "p2pzoo.utils.paths.shipped_dir",
    "p2pzoo.files": "p2pzoo.utils.files",
    "p2pzoo.files.replacing": "p2pzoo.utils.files.atomic_write",
    "p2pzoo.images": "p2pzoo.images.io",
    "p2pzoo.images.Header": "p2pzoo.images.io.ImageHeader",
    "p2pzoo.images.holds": "p2pzoo.images.io.can_hold",
    "p2pzoo.images.find_images": "p2pzoo.images.find_images.find_images",
    "p2pzoo.images.inspect": "p2pzoo.images.io.inspect_image",
    "p2pzoo.images.pixels_of": "p2pzoo.images.io.decode_pixels",
    "p2pzoo.images.reason": "p2pzoo.images.io.describe_read_error",
    "p2pzoo.labels": "p2pzoo.images.label_maps",
    "p2pzoo.encodings": "p2pzoo.images.color_spaces",
    "p2pzoo.encodings.lab": "p2pzoo.images.color_spaces.split_lab",
    "p2pzoo.encodings.joined": "p2pzoo.images.color_spaces.join_lab",
    "p2pzoo.encodings.stored": "p2pzoo.images.color_spaces.quantize",
    "p2pzoo.encodings.from_stored": "p2pzoo.images.color_spaces.dequantize",
    "p2pzoo.layouts": "p2pzoo.data.pairing",
    "p2pzoo.layouts.combine": "p2pzoo.data.convert_layout.combine_folders",
    "p2pzoo.layouts.headers": "p2pzoo.data.pairing.read_headers",
    "p2pzoo.layouts.inspected": "p2pzoo.data.pairing.inspect_files",
    "p2pzoo.layouts.pixels": "p2pzoo.data.pairing.format_size",
    "p2pzoo.layouts.raise_any": "p2pzoo.utils.errors.raise_faults",
    "p2pzoo.layouts.several": "p2pzoo.utils.errors.summarize_fault",
    "p2pzoo.layouts.side_by_side": "p2pzoo.data.convert_layout.side_by_side",
    "p2pzoo.layouts.split": "p2pzoo.data.convert_layout.split_folder",
    "p2pzoo.chance": "p2pzoo.utils.rng",
    "p2pzoo.chance.generator": "p2pzoo.utils.rng.numpy_rng",
    "p2pzoo.chance.key": "p2pzoo.utils.rng.derive_seed",
    "p2pzoo.checkpoint": "p2pzoo.models.safetensors_io",
    "p2pzoo.checkpoint.Damaged": "p2pzoo.utils.errors.DamagedFile",
    "p2pzoo.checkpoint.refuse_unfitting": "p2pzoo.models.safetensors_io.check_tensors_fit",
    "p2pzoo.checkpoint.under": "p2pzoo.models.safetensors_io.strip_prefix",
}
_NETWORK = {"first_weights": "init_own_weights", "layouts": "state_dict_formats"}
METHODS = {  # kind: {name in 0.1.0: name in 0.2}, methods and attributes of its classes
    "generator": {**_NETWORK, "grown_from": "load_smaller"},
    "discriminator": _NETWORK,
    "gan_loss": {"judge": "discriminator_loss", "fool": "generator_loss"},
    "augmentation": {"draws": "num_random"},
}
SEE = "(all new names: p2pzoo/utils/migration.py)"


def explain_import_error(error: BaseException) -> str | None:
    """One line that names the new place, if the error comes from an old module or from an old name in it; else None.

    >>> try:
    ...     from p2pzoo.errors import UserError
    ... except ImportError as error:
    ...     print(explain_import_error(error))
    p2pzoo.errors moved in 0.2: import p2pzoo.utils.errors (all new names: p2pzoo/utils/migration.py)
    """
    old_module, names = _missing(error)
    if old_module not in MOVED:
        return None
    file, line = _import_statement(error)
    names = _imported_names(file, line, old_module) or names
    where = f"; see {file}:{line}" if file else ""
    return f"{old_module} moved in 0.2: import {_new_imports(old_module, names)} {SEE}{where}"


def find_old_methods(kind: str, factory: Any) -> str | None:
    """One line with each old method or attribute of a component's class and its new name; None if it has none.

    Any module inside a network may have had `first_weights`, so all classes of the component's module are searched.
    """
    if not inspect.isclass(factory):
        return None
    renamed = [
        f"{owner.__name__}.{old} is now called {new}"
        for old, new in METHODS.get(kind, {}).items()
        for owner in (_classes_beside(factory) if old == "first_weights" else [factory])
        if hasattr(owner, old) and not hasattr(owner, new)
    ]
    return f"{', '.join(renamed)} in 0.2 {SEE}" if renamed else None


def _classes_beside(factory: type) -> list[type]:
    """The classes that the module of this class defines, this one included."""
    values = vars(sys.modules[factory.__module__]).values() if factory.__module__ in sys.modules else []
    return list(
        dict.fromkeys([factory, *(c for c in values if inspect.isclass(c) and c.__module__ == factory.__module__)])
    )


def _missing(error: BaseException) -> tuple[str, list[str]]:
    """The old module that an error is about, and the missing name in it if the error tells it."""
    if isinstance(error, ModuleNotFoundError):
        return error.name or "", []
    if isinstance(error, ImportError):
        match = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        name, module = match.groups() if match else ("", "")
    elif isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        name, module = error.name or "", error.obj.__name__
    else:
        return "", []
    if f"{module}.{name}" in MOVED:  # `from p2pzoo import errors`
        return f"{module}.{name}", []
    if module in MOVED:  # `from p2pzoo.images import read_image`: p2pzoo.images is a package now
        return module, [name]
    old = [each.rpartition(".") for each, new in MOVED.items() if new.rpartition(".")[0] == module]
    return next(((before, [name]) for before, _, last in old if last == name), ("", []))


def _import_statement(error: BaseException) -> tuple[str, int]:
    """File and line of the innermost statement that raised the error; ("", 0) if it is in no file."""
    file, line = "", 0
    trace = error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).is_file():  # frames of importlib have names such as <frozen …>
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return file, line


def _imported_names(file: str, line: int, module: str) -> list[str]:
    """The names that a file imports from this module, in the statement that begins at this line."""
    if not file:
        return []
    for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == module and node.lineno == line:
            return [alias.name for alias in node.names if alias.name != "*"]
    return []


def _new_imports(old_module: str, names: list[str]) -> str:
    """What to import from where: "StepOutputs (was Scene), Pair from p2pzoo.plugin"."""
    by_module: dict[str, list[str]] = {}
    for name in names:
        module, _, new = MOVED.get(f"{old_module}.{name}", f"{MOVED[old_module]}.{name}").rpartition(".")
        by_module.setdefault(module, []).append(new if new == name else f"{new} (was {name})")
    return " and ".join(f"{', '.join(new)} from {module}" for module, new in by_module.items()) or MOVED[old_module]
