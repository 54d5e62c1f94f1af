"""Recipes: TOML text -> one resolved tree of values, each with the file and line that set it. Knows no components.

A recipe is folded together from layers, each overriding the ones before it:

    for every file of `extends`, the base first:   its tables, then its [profiles.NAME.*] for the chosen profile
    last:                                          the -s overrides

Tables merge deeply and arrays replace. Where a layer changes a component's `use`, or the optimizer's, the parameters
inherited for the old one are dropped (`weight` and the rates are the zoo's own and stay). `drop = ["losses.l1"]`
removes what earlier layers set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from p2pzoo.config.line_numbers import key_lines
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import MOST_DEEP, parse_toml
from p2pzoo.utils.paths import shipped
from p2pzoo.utils.suggest import nearest

Key = tuple[str, ...]

COMPONENTS = ("generator", "discriminator", "gan_loss", "dataset")  # tables that name one component
COLLECTIONS = ("losses", "augmentations", "metrics", "callbacks")  # tables of tables that each name one
SETTINGS = ("train", "optimizer", "compute", "init", "evaluate")  # the core's own
TOP = ("title", "seed", "profile", "continued_from", *COMPONENTS, *COLLECTIONS, *SETTINGS)
FILE_ONLY = ("extends", "drop", "profiles")
CLI_ONLY = ("profile", "continued_from")  # only in resolved recipes; options of the command line set them
IN_PROFILES = (*(key for key in TOP if key not in CLI_ONLY), "drop")
PROFILE = re.compile(r"[A-Za-z0-9_-]+")  # it becomes part of a folder's name
MOST_BYTES = 1 << 20  # of a recipe
PLAIN = "plain"  # the profile of a recipe that has none, or of none of them
OWN_KEYS = ("use", "weight")  # of a component's table: the zoo's, not the component's
# of [optimizer]: the zoo's, not those of the class that it names, which is Adam where it names none
OPTIMIZERS_OWN = (
    "use", "lr", "lr_discriminator", "clip_norm", "schedule", "schedule_gamma", "schedule_every", "schedule_power"
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A recipe file, or the command line."""

    name: str
    text: str = ""

    @cached_property
    def lines(self) -> Mapping[Key, int]:
        return key_lines(self.text)


@dataclass(frozen=True)
class Origin:
    """Where a value was set: the source and the key as written there."""

    source: Source
    key: Key

    def __str__(self) -> str:
        for end in range(len(self.key), 0, -1):  # a fault about a missing key points at its table
            if line := self.source.lines.get(self.key[:end]):
                return f"{self.source.name}:{line}"
        return self.source.name


@dataclass
class Recipe:
    """A resolved recipe. `origins` says of every value and table who set it last.

    `faults` is what is wrong so far; `experiment.check` tells it together with what it finds itself.
    """

    name: str
    profile: str
    values: dict[str, Any]
    origins: dict[Key, Origin]
    home: Source = field(repr=False)
    faults: list[str] = field(default_factory=list, repr=False)

    def where(self, key: Key) -> str:
        """file:line of a key, of the table around it, or of the recipe."""
        for end in range(len(key), 0, -1):
            if origin := self.origins.get(key[:end]):
                return str(origin)
        return self.home.name


def read_recipe(
    path: str, profile: str | None = None, overrides: Sequence[str] = (), *, pick: Callable[[], str] | None = None
) -> Recipe:
    """Read and fold a recipe.

    path: a file, or "zoo:NAME" for one that travels with p2pzoo. profile: None lets `pick()` choose among the recipe's.
    Raises UserError naming file and line for what leaves no recipe to look at: a missing or broken file, a cycle, an
    unknown profile. Other faults (unknown tables, a `drop` of nothing) are left in `faults`.
    """
    chain = _chain(path)
    home = chain[-1][0]
    known = sorted({name for _, tree in chain for name in tree.get("profiles", {})})
    label = next((tree["profile"] for _, tree in reversed(chain) if "profile" in tree), None)
    chosen_by = Source(f"--profile {profile}" if profile else "picked by hardware")
    profile = _choose_profile(home, known, label, profile, pick)

    recipe = Recipe(_name(path), profile, {}, {}, home)
    faults = recipe.faults
    for source, tree in chain:
        faults += _unknown(source, tree)
        own = {key: value for key, value in tree.items() if key not in ("extends", "profiles")}
        faults += _merge(recipe, source, own, ())
        faults += _merge(recipe, source, tree.get("profiles", {}).get(profile, {}), ("profiles", profile))
    for text in overrides:
        try:
            faults += _merge(recipe, Source(f"-s {text}"), _parse_override(text), ())
        except UserError as error:
            faults += error.faults
    recipe.values.setdefault("profile", profile)
    recipe.origins.setdefault(("profile",), Origin(chosen_by, ()))
    return recipe


def locate(path: str, base: Path | None = None) -> Path:
    """The file a recipe path means: `zoo:NAME`, or relative to `base` (the extending file), else to here."""
    if path.startswith("zoo:"):
        return shipped("recipes") / path.removeprefix("zoo:")
    return (base / path) if base else Path(path)


def _shown(file: Path) -> str:
    """A file as people name it: zoo:NAME for those that travel with p2pzoo, else the path from here."""
    resolved, zoo, here = file.resolve(), shipped("recipes").resolve(), Path.cwd()
    if resolved.is_relative_to(here):
        return str(resolved.relative_to(here))
    return f"zoo:{resolved.relative_to(zoo)}" if resolved.is_relative_to(zoo) else str(file)


def _name(path: str) -> str:
    """ "recipes/tasks/facades.toml" -> "facades"; a run folder's own recipe keeps the name of its run."""
    file = locate(path).resolve()
    of_a_run = file.name == "recipe.toml" and (file.parent / "status.json").exists()
    return file.parent.parent.name if of_a_run else file.stem.lstrip(".") or "recipe"


def _chain(path: str) -> list[tuple[Source, dict[str, Any]]]:
    """The recipe and all it extends, bases first, each file once. Raises UserError."""
    chain: dict[Path, tuple[Source, dict[str, Any]]] = {}

    def visit(path: str, base: Path | None, asked_by: str, above: tuple[Path, ...]) -> None:
        file = locate(path, base)
        resolved = file.resolve()
        shown = _shown(file)
        if resolved in above:
            names = " extends ".join(p.name for p in (*above[above.index(resolved) :], resolved))
            raise UserError(f"{asked_by}  cycle in `extends`: {names}")
        if resolved in chain:
            return
        source, tree = _parse(file, shown, asked_by)
        extends = tree.get("extends", [])
        for parent in [extends] if isinstance(extends, str) else extends:
            visit(parent, file.parent, str(Origin(source, ("extends",))), (*above, resolved))
        chain[resolved] = (source, tree)

    visit(path, None, "", ())
    return list(chain.values())


def _parse(file: Path, shown: str, asked_by: str) -> tuple[Source, dict[str, Any]]:
    at = f"{asked_by}  extends " if asked_by else ""
    try:
        if asked_by and file.exists() and not file.is_file() and not file.is_dir():
            raise UserError(f"{at}{shown}: a device or pipe, not a file")  # it might have no end
        with file.open("rb") as content:
            text = content.read(MOST_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        raise UserError(f"{at}{shown}: no such recipe{nearest(file.name, near) if near else ''}") from None
    except UnicodeDecodeError:
        raise UserError(f"{at}{shown}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{at}{shown}: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise UserError(f"{at}{shown}: more than {MOST_BYTES:,} bytes, which no recipe has")
    try:
        tree = parse_toml(text)
    except ValueError as error:
        message, _, place = str(error).partition(" (at ")
        line = place.split(",")[0].removeprefix("line ")
        line = line if line.isdigit() else str(text.count("\n") + 1)
        raise UserError(f"{shown}:{line}  broken TOML: {message}") from None
    source = Source(shown, text)
    if faults := list(_malformed(source, tree)):
        raise UserError(*faults)
    return source, tree


def _malformed(source: Source, tree: Mapping[str, Any]) -> Iterator[str]:
    """Faults that leave nothing to fold."""

    def at(*key: str) -> str:
        return str(Origin(source, key))

    extends = tree.get("extends", [])
    if not isinstance(extends, (str, list)) or not all(isinstance(item, str) for item in extends):
        yield f"{at('extends')}  extends = {json.dumps(extends, default=str)}: give a path or an array of paths"
    for key in ("title", "profile", "continued_from"):
        if not isinstance(tree.get(key, ""), str):
            yield f"{at(key)}  {key} must be text"
    profiles = tree.get("profiles", {})
    if not isinstance(profiles, dict):
        yield f"{at('profiles')}  write profiles as tables: [profiles.laptop.train]"
        profiles = {}
    for name, layer in profiles.items():
        if not isinstance(layer, dict):
            yield f"{at('profiles', name)}  profiles.{name} must be a table, as in [profiles.{name}.train]"
        if not PROFILE.fullmatch(name):
            yield f"{at('profiles', name)}  profile {json.dumps(name)}: use letters, digits, - and _"
    label = tree.get("profile", PLAIN)
    if isinstance(label, str) and not PROFILE.fullmatch(label):
        yield f"{at('profile')}  profile {json.dumps(label)}: use letters, digits, - and _"
    for where, layer in [((), tree), *((("profiles", n), t) for n, t in profiles.items() if isinstance(t, dict))]:
        drop = layer.get("drop", [])
        if not isinstance(drop, list) or not all(isinstance(item, str) for item in drop):
            yield f'{at(*where, "drop")}  drop takes an array of table names, as in drop = ["losses.l1"]'


def _unknown(source: Source, tree: Mapping[str, Any]) -> Iterator[str]:
    """Tables and keys that no recipe has."""
    for key in tree:
        if key not in (*TOP, *FILE_ONLY):
            yield f"{Origin(source, (key,))}  no table or key '{key}'{nearest(key, (*TOP, *FILE_ONLY))}"
    for name, layer in tree.get("profiles", {}).items():
        for key in layer:
            if key not in IN_PROFILES:
                where = Origin(source, ("profiles", name, key))
                yield f"{where}  no table or key '{key}'{nearest(key, IN_PROFILES)}"


def _choose_profile(
    home: Source, known: list[str], label: str | None, asked: str | None, pick: Callable[[], str] | None
) -> str:
    if label is not None:  # a resolved recipe: its profile has been folded in
        if asked not in (None, label):
            raise UserError(f"{home.name}: already resolved for profile '{label}'; take the recipe it was made from")
        return label
    if asked is not None and asked not in known:
        raise UserError(f"{home.name}: no profile '{asked}'{nearest(asked, known)}")
    if asked is not None:
        return asked
    chosen = pick() if pick else PLAIN
    return chosen if chosen in known else PLAIN


def _parse_override(text: str) -> dict[str, Any]:
    """`losses.l1.weight=50` as a tree; the value as TOML, else as a string."""
    name, equals, value = text.partition("=")
    key = [part.strip() for part in name.split(".")]
    if not equals or not all(key) or len(key) > MOST_DEEP:
        raise UserError(f"-s {text}: write -s table.key=value, as in -s losses.l1.weight=50")
    if key[0] in CLI_ONLY:
        option = {"profile": "--profile", "continued_from": "--continue-from"}[key[0]]
        raise UserError(f"-s {text}: use {option} instead")
    if key[0] not in IN_PROFILES:
        raise UserError(f"-s {text}: no table or key '{key[0]}'{nearest(key[0], TOP)}")
    try:
        parsed = parse_toml(f"value = {value}")
    except ValueError:
        parsed = {}
    tree: Any = parsed["value"] if parsed.keys() == {"value"} else value
    for part in reversed(key):
        tree = {part: tree}
    return tree  # type: ignore[no-any-return]


def _merge(recipe: Recipe, source: Source, layer: Mapping[str, Any], prefix: Key) -> list[str]:
    """Fold one layer in; returns faults."""
    faults = []
    drop = layer.get("drop", [])
    for name in drop if isinstance(drop, list) else [drop]:
        if not _remove(recipe, tuple(str(name).split("."))):
            tables = sorted({".".join(k[: 2 if k[0] in COLLECTIONS else 1]) for k in recipe.origins})
            where = Origin(source, (*prefix, "drop"))
            faults.append(f"{where}  drop: there is no '{name}'{nearest(str(name), tables)}")
    for key, value in layer.items():
        if key != "drop":
            _fold(recipe, source, (key,), value, prefix)
    return faults


def _fold(recipe: Recipe, source: Source, key: Key, value: Any, prefix: Key) -> None:
    if not isinstance(value, dict):
        _remove(recipe, key)
        _table(recipe.values, key[:-1])[key[-1]] = value
        recipe.origins[key] = Origin(source, (*prefix, *key))
        return
    present = _get(recipe.values, key)
    if not isinstance(present, dict):
        _remove(recipe, key)
    elif _is_component(key) and "use" in value and not _same(value["use"], present.get("use")):
        for name in [name for name in present if name not in OWN_KEYS]:
            _remove(recipe, (*key, name))
    elif key == ("optimizer",) and value.get("use", before := present.get("use", "Adam")) != before:
        for name in [name for name in present if name not in OPTIMIZERS_OWN]:
            _remove(recipe, (*key, name))
    _table(recipe.values, key)
    recipe.origins[key] = Origin(source, (*prefix, *key))
    for name, item in value.items():
        _fold(recipe, source, (*key, name), item, prefix)


def _is_component(key: Key) -> bool:
    return (len(key) == 1 and key[0] in COMPONENTS) or (len(key) == 2 and key[0] in COLLECTIONS)


def _same(use: Any, before: Any) -> bool:
    """Whether two `use` name one component as far as a recipe can tell: "unet" may be "pix2pix:unet"."""
    (plugin, _, name), (old_plugin, _, old_name) = str(use).rpartition(":"), str(before).rpartition(":")
    return name == old_name and (not plugin or not old_plugin or plugin == old_plugin)


def _table(tree: dict[str, Any], key: Key) -> dict[str, Any]:
    for part in key:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    return tree


def _get(tree: Any, key: Key) -> Any:
    for part in key:
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _remove(recipe: Recipe, key: Key) -> bool:
    """Remove a key with all below it; whether it was there."""
    above = _get(recipe.values, key[:-1])
    if not isinstance(above, dict) or key[-1] not in above:
        return False
    del above[key[-1]]
    for path in [path for path in recipe.origins if path[: len(key)] == key]:
        del recipe.origins[path]
    return True


def leaves(tree: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """(key, value) of everything in a tree of tables that is not itself a table."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value
