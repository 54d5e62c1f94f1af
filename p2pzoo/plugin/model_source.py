"""Addresses of models that are no paths, SCHEME:NAME: "zoo:NAME" of a plugin, and those of model sources ("hf:…")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pzoo.plugin.registry import MODEL_SOURCE

SHIPPED = "zoo"  # scheme of the models that plugins ship


@dataclass(frozen=True)
class FoundModel:
    """Where a model is on this machine: what a model source returns (`register_model_sources`).

    folder   holds model.safetensors, and recipe.toml if it is known; nothing is written into it
    address  SCHEME:NAME of exactly this version, such as "hf:OWNER/NAME@COMMIT", which results and recipes record; None
             if a model has one version only. Looking it up again must give the same files, without a network
    """

    folder: Path
    address: str | None = None


def is_address(path: str | Path) -> bool:
    """Whether this is an address, and no path: its scheme is "zoo", or one that a plugin has registered.

    >>> is_address("zoo:earth-small"), is_address("runs/zoo")
    (True, False)
    """
    scheme, colon, _ = Path(path).as_posix().partition(":")
    return bool(colon) and scheme in (SHIPPED, *list_schemes())


def list_schemes() -> list[str]:
    """The schemes that plugins have registered."""
    from p2pzoo.plugin.loader import registry

    return [entry.name for entry in registry().of(MODEL_SOURCE)]


def find_model(path: str | Path) -> FoundModel | None:
    """The model of an address; None if `path` is no address. Raises UserError if there is no such model."""
    from p2pzoo.plugin.loader import registry

    if not is_address(path):
        return None
    scheme, _, name = Path(path).as_posix().partition(":")
    if scheme == SHIPPED:
        return FoundModel(Path(registry().get("model", name).load()()))
    found: FoundModel = registry().get(MODEL_SOURCE, scheme).load()(name)
    return found


def pin_model(path: Path) -> Path:
    """The address of exactly the version that `path` means now; a path as it is. Raises UserError as `find_model`."""
    return Path(found.address) if (found := find_model(path)) and found.address else path


def locate_weights(path: Path) -> Path:
    """The model.safetensors of an address; a path as it is. Raises UserError as `find_model`."""
    return found.folder / "model.safetensors" if (found := find_model(path)) else path
