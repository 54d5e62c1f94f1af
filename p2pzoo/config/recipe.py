"""Read recipes: TOML files -> one resolved tree of values, each with the file and line that set it.

This module knows no components. A recipe is merged from layers, and each overrides the ones before it:

    every file of `extends`, the base first:   its tables, then its [profiles.NAME.*] for the chosen profile
    last:                                      the -s overrides

Tables merge deeply and arrays replace. A layer that changes a component's `use`, or the optimizer's, drops the
parameters inherited for the old one; `weight` and the learning rates stay. `drop = ["losses.l1"]` removes what earlier
layers set. A title is not inherited: it names the file that has it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from p2pzoo.config.line_numbers import key_lines
from p2pzoo.plugin import schema
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import MAX_NESTING, parse_toml, refuse_pipe
from p2pzoo.utils.paths import shipped_dir
from p2pzoo.utils.suggest import did_you_mean, find_similar

Key = tuple[str, ...]

COMPONENTS = ("generator", "discriminator", "process", "gan_loss", "dataset")  # tables that name one component
COLLECTIONS = ("losses", "augmentations", "metrics", "callbacks")  # tables of such tables
SETTINGS = ("train", "optimizer", "compute", "init", "evaluate")  # tables of the core, see settings.py
TOP_LEVEL = ("title", "seed", "profile", "continued_from", *COMPONENTS, *COLLECTIONS, *SETTINGS)
FILE_ONLY = ("extends", "drop", "profiles", "search")  # [search]: what a command may try in place of the values here
CLI_ONLY = ("profile", "continued_from")  # set by options of the command line; resolved recipes have them too
IN_PROFILES = (*(key for key in TOP_LEVEL if key not in CLI_ONLY), "drop")
PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]+")  # part of the name of a run folder
MAX_RECIPE_BYTES = 1 << 20  # the shipped ones have a few kilobytes; reading a larger file by mistake takes memory
NO_PROFILE = "plain"  # name for a recipe without profiles, or with none of them chosen
MAX_EXTENDS = 64  # files in a chain of `extends`; people write fewer than ten
LENGTHS = ("images", "epochs")  # of [train]: two ways to say the same, so that a layer replaces both
ZOO_KEYS = ("use", "weight")  # keys of a component's table that are not its parameters
# keys of [optimizer] that are not parameters of the class that `use` names (Adam by default)
OPTIMIZER_KEYS = (
    "use", "lr", "lr_discriminator", "clip_norm", "schedule", "schedule_gamma", "schedule_every", "schedule_power"
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A recipe file, or the command line."""

    name: str
    text: str = ""
    file: Path | None = None

    @cached_property
    def lines(self) -> Mapping[Key, int]:
        return key_lines(self.text)


@dataclass(frozen=True)
class Origin:
    """The place where a value was set: the source and the key as written there."""

    source: Source
    key: Key

    def __str__(self) -> str:
        for end in range(len(self.key), 0, -1):  # a missing key has the line of its table
            if line := self.source.lines.get(self.key[:end]):
                return f"{self.source.name}:{line}"
        return self.source.name


@dataclass
class Recipe:
    """A resolved recipe.

    values   the tables, merged
    origins  the place that set each value or table last
    home     the file that was asked for, the last one of the chain of `extends`
    faults   what is wrong so far; `check_recipe` reports it together with what it finds
    """

    name: str
    profile: str
    values: dict[str, Any]
    origins: dict[Key, Origin]
    home: Source = field(repr=False)
    faults: list[str] = field(default_factory=list, repr=False)

    def file_of(self, key: Key) -> Path | None:
        """The recipe file that set a value; None if it was not set in a file."""
        origin = self.origins.get(key)
        return origin.source.file if origin else None

    def where(self, key: Key) -> str:
        """file:line of a key, else of its table, else the file of the recipe."""
        for end in range(len(key), 0, -1):
            if origin := self.origins.get(key[:end]):
                return str(origin)
        return self.home.name

    def describe_fault(self, key: Key, message: str) -> str:
        """The line of a fault: file:line of the key, its table, and what is wrong."""
        table = ".".join(key[: 2 if key[0] in COLLECTIONS else 1])
        return f"{self.where(key)}  [{table}] {message}"

    def where_table(self, key: Key) -> str:
        """file:line of the table that set a key: of several layers that have the table, the last one with the key."""
        origin = self.origins.get(key)
        return str(Origin(origin.source, origin.key[:-1])) if origin else self.where(key[:-1])


def read_recipe(
    path: str, profile: str | None = None, overrides: Sequence[str] = (), *, pick: Callable[[], str] | None = None
) -> Recipe:
    """Read a recipe and all that it extends, and merge them. `p2pzoo.config.load` also checks the result.

    path       a file, or "zoo:NAME.toml" for a recipe that comes with p2pzoo
    profile    name of a profile; None takes the one that `pick()` returns, if the recipe has it
    overrides  "table.key=value", as -s takes them

    Raises UserError with file and line if there is nothing to merge: a missing or broken file, a cycle, an unknown
    profile. Other faults (unknown tables, a `drop` without effect) are kept in `Recipe.faults`.

    >>> read_recipe("zoo:base.toml", "smoke", ["losses.l1.weight=50"]).values["losses"]
    {'l1': {'use': 'l1', 'weight': 50}}
    """
    chain = _read_chain(path)
    home = chain[-1][0]
    known = sorted({name for _, tree in chain for name in tree.get("profiles", {})})
    resolved_for = next((tree["profile"] for _, tree in reversed(chain) if "profile" in tree), None)
    if resolved_for is not None and known and resolved_for not in known:
        where = next(Origin(s, ("profile",)) for s, tree in reversed(chain) if "profile" in tree)
        raise UserError(f"{where}  no profile '{resolved_for}'{did_you_mean(resolved_for, known)}")
    chosen_by = Source(f"--profile {profile}" if profile else "picked by hardware")
    profile = _choose_profile(home, known, resolved_for, profile, pick)

    recipe = Recipe(_recipe_name(path), profile, {}, {}, home)
    faults = recipe.faults
    for source, tree in chain:
        faults += _find_unknown_keys(source, tree, profile)
        tables = {key: value for key, value in tree.items() if key not in ("extends", "profiles", "search")}
        faults += _merge(recipe, source, tables, ())
        faults += _merge(recipe, source, tree.get("profiles", {}).get(profile, {}), ("profiles", profile))
    if ("title",) in recipe.origins and recipe.origins[("title",)].source is not home:
        _remove(recipe, ("title",))  # it names the other recipe
    lengths: set[str] = set()
    for text in overrides:
        try:
            layer = parse_override(text)
            faults += _merge(recipe, source := Source(f"-s {text}"), layer, ())
            lengths |= (given := _lengths(layer))
            if given and len(given) < len(lengths):
                faults.append(_two_lengths(source, ("train",)))
        except UserError as error:
            faults += error.faults
    recipe.values.setdefault("profile", profile)
    recipe.origins.setdefault(("profile",), Origin(chosen_by, ()))
    return recipe


def find_recipe(path: str, base: Path | None = None) -> Path:
    """The file of a recipe path: "zoo:NAME.toml", or relative to `base` (the folder of the extending file) if given."""
    if path.startswith("zoo:"):
        file = shipped_dir("recipes") / path.removeprefix("zoo:")
        return file if file.is_file() else next(iter(_find_shipped(path.removeprefix("zoo:"))), file)
    return (base / path) if base else Path(path)


def _find_shipped(name: str) -> list[Path]:
    """The shipped recipe of this name, without folder and ending, if it is unique: "resnet9" -> modern/resnet9.toml."""
    stem = Path(name).name.removesuffix(".toml")
    files = [file for file in shipped_dir("recipes").rglob("*.toml") if file.stem == stem]
    return files if len(files) == 1 else []


def _display_name(file: Path) -> str:
    """The name of a file in messages: zoo:NAME.toml for shipped recipes, else the path from the current folder."""
    resolved, zoo, here = file.resolve(), shipped_dir("recipes").resolve(), Path.cwd()
    if resolved.is_relative_to(here):
        return str(resolved.relative_to(here))
    return f"zoo:{resolved.relative_to(zoo)}" if resolved.is_relative_to(zoo) else str(file)


def _recipe_name(path: str) -> str:
    """ "recipes/tasks/facades.toml" -> "facades". The recipe.toml of a run folder has the name of that run's recipe."""
    file = find_recipe(path).resolve()
    return file.parent.parent.name if is_of_run(file) else file.stem.lstrip(".") or "recipe"


def is_of_run(file: Path) -> bool:
    """Whether this is the recipe.toml that a run wrote into its folder."""
    return file.name == "recipe.toml" and (file.parent / "status.json").exists()


def _read_chain(path: str) -> list[tuple[Source, dict[str, Any]]]:
    """The recipe and all that it extends, bases first, each file once. Raises UserError."""
    chain: dict[Path, tuple[Source, dict[str, Any]]] = {}

    def visit(path: str, base: Path | None, extended_at: str, above: tuple[Path, ...]) -> None:
        file = find_recipe(path, base)
        resolved = _resolve(file, extended_at)
        name = _display_name(file)
        if len(above) > MAX_EXTENDS:
            raise UserError(f"{extended_at}  `extends` is more than {MAX_EXTENDS} files deep")
        if resolved in above:
            names = " extends ".join(p.name for p in (*above[above.index(resolved) :], resolved))
            raise UserError(f"{extended_at}  cycle in `extends`: {names}")
        if resolved in chain:
            return
        source, tree = _parse(file, name, extended_at, above)
        extends = tree.get("extends", [])
        for parent in [extends] if isinstance(extends, str) else extends:
            visit(parent, file.parent, str(Origin(source, ("extends",))), (*above, resolved))
        chain[resolved] = (source, tree)

    visit(path, None, "", ())
    return list(chain.values())


def _resolve(file: Path, extended_at: str) -> Path:
    """The path without links. Raises UserError."""
    try:
        return file.resolve()
    except (RuntimeError, OSError):  # RuntimeError until Python 3.12
        place = f"{extended_at}  extends " if extended_at else ""
        raise UserError(f"{place}{file}: a symbolic link that leads back to itself") from None


def _parse(file: Path, name: str, extended_at: str, above: Sequence[Path]) -> tuple[Source, dict[str, Any]]:
    """The text and the content of a recipe file. above: the files that extend it. Raises UserError."""
    place = f"{extended_at}  extends " if extended_at else ""
    try:
        if extended_at and file.exists() and not file.is_file() and not file.is_dir():
            raise UserError(f"{place}{name}: a device or pipe, not a file")  # reading it may never end
        refuse_pipe(file)
        with file.open("rb") as content:
            text = content.read(MAX_RECIPE_BYTES + 1).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{place}{name}: no such recipe{_suggest_recipe(file, above)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}{name}: not UTF-8 text: give a recipe, a .toml file") from None
    except IsADirectoryError:
        raise UserError(f"{place}{name}: is a folder: give a recipe, a .toml file (of a run: recipe.toml)") from None
    except OSError as error:
        raise UserError(f"{place}{name}: {error.strerror}") from None
    if len(text) > MAX_RECIPE_BYTES:
        raise UserError(f"{place}{name}: larger than {MAX_RECIPE_BYTES:,} bytes, the limit for a recipe")
    try:
        tree = parse_toml(text)
    except ValueError as error:
        message, _, position = str(error).partition(" (at ")
        line = position.split(",")[0].removeprefix("line ")
        line = line if line.isdigit() else str(text.count("\n") + 1)
        raise UserError(f"{name}:{line}  broken TOML: {message}") from None
    source = Source(name, text, file)
    if faults := list(_find_malformed(source, tree)):
        raise UserError(*faults)
    return source, tree


def _suggest_recipe(file: Path, above: Sequence[Path]) -> str:
    """A shipped recipe of this name, or a similar file in the same folder, but none of those above."""
    if shipped := _find_shipped(file.name):
        return f": did you mean '{_display_name(shipped[0])}'?"
    if file.resolve().is_relative_to(shipped_dir("recipes").resolve()):
        files, prefix, ending = shipped_dir("recipes").rglob("*.toml"), "zoo:", ""
    else:
        files, prefix, ending = file.parent.glob("*.toml"), "", ".toml"
    if similar := find_similar(file.stem, (each.stem for each in files if Path(os.path.realpath(each)) not in above)):
        return f": did you mean '{prefix}{similar}{ending}'?"
    return " (`p2pzoo list recipes` shows those that ship with p2pzoo)"


def _find_malformed(source: Source, tree: Mapping[str, Any]) -> Iterator[str]:
    """Faults that prevent merging."""

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
        if not PROFILE_NAME.fullmatch(name):
            yield f"{at('profiles', name)}  profile {json.dumps(name)}: use letters, digits, - and _"
    profile = tree.get("profile", NO_PROFILE)
    if isinstance(profile, str) and not PROFILE_NAME.fullmatch(profile):
        yield f"{at('profile')}  profile {json.dumps(profile)}: use letters, digits, - and _"
    for where, layer in [((), tree), *((("profiles", n), t) for n, t in profiles.items() if isinstance(t, dict))]:
        drop = layer.get("drop", [])
        if not isinstance(drop, list) or not all(isinstance(item, str) for item in drop):
            yield f'{at(*where, "drop")}  drop takes an array of table names, as in drop = ["losses.l1"]'


def _find_unknown_keys(source: Source, tree: Mapping[str, Any], profile: str) -> Iterator[str]:
    """Faults about tables and keys that do not exist, also in profiles that are not chosen."""
    for key in tree:
        if key not in (*TOP_LEVEL, *FILE_ONLY):
            yield f"{Origin(source, (key,))}  no table or key '{key}'{did_you_mean(key, (*TOP_LEVEL, *FILE_ONLY))}"
    for name, layer in tree.get("profiles", {}).items():
        for key in layer:
            if key not in IN_PROFILES:
                where = Origin(source, ("profiles", name, key))
                yield f"{where}  no table or key '{key}'{did_you_mean(key, IN_PROFILES)}"
            elif name != profile:  # the checks of the merged recipe do not see it
                yield from _find_unknown_settings(source, ("profiles", name, key), layer[key])


def _find_unknown_settings(source: Source, key: Key, table: Any) -> Iterator[str]:
    """Faults about keys that a table of the core does not have. [optimizer] has those of any class, too."""
    from p2pzoo.config.settings import Compute, Evaluate, Init, Train

    settings = {"train": Train, "compute": Compute, "init": Init, "evaluate": Evaluate}.get(key[-1])
    if settings is None or not isinstance(table, dict):
        return
    known = schema.get_params(settings)
    for name in table:
        if name not in known:
            where = Origin(source, (*key, name))
            yield f"{where}  [{'.'.join(key)}] has no parameter '{name}'{did_you_mean(name, list(known))}"


def _choose_profile(
    home: Source, known: list[str], resolved_for: str | None, profile: str | None, pick: Callable[[], str] | None
) -> str:
    if resolved_for is not None:  # a resolved recipe: the values of its profile are merged already
        if profile not in (None, resolved_for):
            raise UserError(
                f"{home.name}: its profile is '{resolved_for}', so --profile can choose no other: remove the key "
                "`profile`, or use the recipe that a run's recipe.toml was resolved from"
            )
        return resolved_for
    if profile is not None and not known:
        raise UserError(
            f"{home.name}: no profile '{profile}': this recipe has none; leave it out, add [profiles.{profile}.train], "
            'or extend "zoo:base.toml", which has smoke, laptop, gpu and paper'
        )
    if profile is not None and profile not in known:
        raise UserError(f"{home.name}: no profile '{profile}'{did_you_mean(profile, known)}")
    if profile is not None:
        return profile
    chosen = pick() if pick else NO_PROFILE
    return chosen if chosen in known else NO_PROFILE


def parse_override(text: str) -> dict[str, Any]:
    """ "losses.l1.weight=50" -> {"losses": {"l1": {"weight": 50}}}.

    A value that is not TOML is a string. Spaces around the key and the value do not count.
    Raises UserError for a text of another form, and for a table or key that no recipe has.
    """
    name, equals, value = text.partition("=")
    key = [part.strip() for part in name.split(".")]
    if not equals or not all(key) or len(key) > MAX_NESTING:
        raise UserError(f"-s {text}: write -s table.key=value, as in -s losses.l1.weight=50")
    if key[0] in CLI_ONLY:
        option = {"profile": "--profile", "continued_from": "--continue-from"}[key[0]]
        raise UserError(f"-s {text}: use {option} instead")
    if key[0] not in IN_PROFILES:
        raise UserError(f"-s {text}: no table or key '{key[0]}'{_suggest_table(key[0])}")
    try:
        parsed = parse_toml(f"value = {value}")
    except ValueError:
        parsed = {}
    tree: Any = parsed["value"] if parsed.keys() == {"value"} else value.strip()
    for part in reversed(key):
        tree = {part: tree}
    return tree  # type: ignore[no-any-return]


def _suggest_table(name: str) -> str:
    """For a key without its table, the keys with this name: "batch_size" -> train.batch_size."""
    from p2pzoo.config.settings import Compute, Evaluate, Init, Optimizer, Train

    tables = {"train": Train, "optimizer": Optimizer, "compute": Compute, "init": Init, "evaluate": Evaluate}
    found = [f"{table}.{name}" for table, settings in tables.items() if name in schema.get_params(settings)]
    return f": did you mean '{found[0]}'?" if found else did_you_mean(name, TOP_LEVEL)


def _merge(recipe: Recipe, source: Source, layer: Mapping[str, Any], prefix: Key) -> list[str]:
    """Merge one layer into the recipe. Returns faults."""
    faults = []
    drop = layer.get("drop", [])
    for name in drop if isinstance(drop, list) else [drop]:
        if not _remove(recipe, tuple(str(name).split("."))):
            tables = sorted({".".join(k[: 2 if k[0] in COLLECTIONS else 1]) for k in recipe.origins})
            where = Origin(source, (*prefix, "drop"))
            meant = did_you_mean(str(name), tables) if tables else ": no file before this one sets a table"
            faults.append(f"{where}  drop: there is no '{name}'{meant}")
    given = _lengths(layer)
    if len(given) == 2:
        faults.append(_two_lengths(source, (*prefix, "train", "epochs")))
    for name in LENGTHS if given else ():
        _remove(recipe, ("train", name))  # the other one, of an earlier layer
    for key, value in layer.items():
        if key != "drop":
            _set(recipe, source, (key,), value, prefix)
    return faults


def _lengths(layer: Mapping[str, Any]) -> set[str]:
    """The keys of LENGTHS that a layer sets."""
    train = layer.get("train")
    return {name for name in LENGTHS if isinstance(train, dict) and name in train}


def _two_lengths(source: Source, key: Key) -> str:
    return f"{Origin(source, key)}  [train] epochs and images are given together: remove one of them"


def _set(recipe: Recipe, source: Source, key: Key, value: Any, prefix: Key) -> None:
    if not isinstance(value, dict):
        _remove(recipe, key)
        _ensure_table(recipe.values, key[:-1])[key[-1]] = value
        recipe.origins[key] = Origin(source, (*prefix, *key))
        return
    before = _get(recipe.values, key)
    if not isinstance(before, dict):
        _remove(recipe, key)
    elif _is_component(key) and "use" in value and not is_same_component(value["use"], before.get("use")):
        for name in [name for name in before if name not in ZOO_KEYS]:
            _remove(recipe, (*key, name))
    elif key == ("optimizer",) and value.get("use", used := before.get("use", "Adam")) != used:
        for name in [name for name in before if name not in OPTIMIZER_KEYS]:
            _remove(recipe, (*key, name))
    _ensure_table(recipe.values, key)
    recipe.origins[key] = Origin(source, (*prefix, *key))
    for name, item in value.items():
        _set(recipe, source, (*key, name), item, prefix)


def _is_component(key: Key) -> bool:
    """Whether a table can name a component: one of these, or one inside, such as `of` of "quantile-head"."""
    return key[0] in (*COMPONENTS, *COLLECTIONS) and len(key) > (key[0] in COLLECTIONS)


def is_same_component(use: Any, before: Any) -> bool:
    """Whether two values of `use` can name the same component: "unet" may be "pix2pix:unet"."""
    (plugin, _, name), (old_plugin, _, old_name) = str(use).rpartition(":"), str(before).rpartition(":")
    return name == old_name and (not plugin or not old_plugin or plugin == old_plugin)


def _ensure_table(tree: dict[str, Any], key: Key) -> dict[str, Any]:
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
    """Remove a key and all keys below it. Returns whether it existed."""
    table = _get(recipe.values, key[:-1])
    if not isinstance(table, dict) or key[-1] not in table:
        return False
    removed = table.pop(key[-1])
    for path in (key, *(path for path, _ in _iter_below(removed, key))):
        recipe.origins.pop(path, None)
    return True


def _iter_below(value: Any, prefix: Key) -> Iterator[tuple[Key, Any]]:
    """(key, value) of everything below a value: tables and what they hold."""
    for name, item in value.items() if isinstance(value, dict) else ():
        yield (*prefix, name), item
        yield from _iter_below(item, (*prefix, name))


def iter_leaves(tree: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """(key, value) of each value in a tree of tables; an empty table is a value.

    >>> list(iter_leaves({"losses": {"l1": {"weight": 100}}}))
    [(('losses', 'l1', 'weight'), 100)]
    """
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from iter_leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value
