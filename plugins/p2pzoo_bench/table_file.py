"""Table files: which recipes are compared, with which metrics, and what the paper published.

    title = "Table 3: the receptive field of D"
    source = "Isola et al. 2017 (v3), Table 3, on Cityscapes"     # of the published numbers
    baseline = "patch70"                                          # the row that the others are compared with
    seeds = 3                                                     # 0, 1, 2
    folds = 10                                                    # in place of seeds: seed r trains and tests fold r
                                                                  # of the dataset: its own, if it has a parameter
                                                                  # `fold`; else set = ["dataset.folds=10"] makes them
    profile = "laptop"                                            # of the recipes, unless --profile names another
    answer = true                                                 # begins with what the differences say, in words
    groups = true                                                 # in place of it, for many rows: begins with the rows
                                                                  # that are better, worse, neither; needs folds
    pooled_spread = true                                          # intervals over folds take the spread of all rows
    primary = "fcn_score"                                         # chosen before the runs: the answer begins with it
    set = ["train.images=14000"]                                  # for every row, like -s of `p2pzoo run`

    [search]                                                      # chooses settings for each row and fold (search.py)
    metric = "crps"                                               # of the validation images
    share = 0.25                                                  # length of a trial: of the row's images

    [metrics.fcn_score]                                           # added to the metrics of the recipes
    use = "fcn_score"

    [columns]                                                     # metric: heading of its column
    "fcn_score.class_iou" = "class IoU"

    [rows.patch70]
    recipe = "zoo:ablation_patch70.toml"                          # or a path relative to this file
    label = "70×70"
    set = ["train.batch_size=10"]                                 # for this row
    set_without_data = ["discriminator.receptive_field=34"]       # the same, except with --data: of these images only
    evaluate = { weights = "average" }                            # other translations of the same training as in a row
                                                                  # with equal recipe and set: [metrics.NAME.evaluate]
    trials = [["optimizer.lr=1e-4"], ["optimizer.lr=4e-4"]]       # settings that [search] tries, as many in every row
    folds = 3                                                     # only the first three of the table's folds
    published = { "fcn_score.class_iou" = 0.17 }

    [rows.photos]
    target = true                                                 # measures y itself instead of a translation
    label = "ground truth"

    [rows.blurred]
    target = true
    blur = 1.0                                                    # y blurred by a Gaussian of 1 px
    [rows.flat]
    target = true
    flat = true                                                   # each class of y in its mean colour
    [rows.floor]
    target = true
    other_fold = true                                             # the photos of another fold

A table with `study = true` shows how often people took translations for real: `p2pzoo study-analyze --table`. Its rows
are algorithms of a study, with neither recipe nor target.

Knows neither components nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from p2pzoo.config.recipe import Origin, Source, find_recipe
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_toml, refuse_pipe
from p2pzoo.utils.paths import shipped_dir
from p2pzoo.utils.suggest import did_you_mean

KEYS = (
    "title", "source", "baseline", "seeds", "folds", "profile", "answer", "groups", "pooled_spread", "primary", "set",
    "study", "search", "metrics", "columns", "rows",
)  # fmt: skip
ROW_KEYS = (
    "recipe", "label", "set", "set_without_data", "trials", "evaluate", "published", "folds", "target", "blur", "flat",
    "other_fold",
)  # fmt: skip
SEARCH_KEYS = ("metric", "share")
RECIPE_KEYS = (
    "extends",
    "profiles",
    "generator",
    "discriminator",
    "process",
    "gan_loss",
    "losses",
    "dataset",
    "train",
    "optimizer",
)
At = Callable[..., str]  # at("rows", "l1") -> "losses.toml:12", where the file has this key


@dataclass(frozen=True)
class Row:
    """A row.

    recipe     None for a row of y itself
    overrides  like `-s` of `p2pzoo run`: the table's, then the row's own
    only_here  those of them that --data leaves out
    trials     overrides that [search] tries, a group for each trial
    chosen     of them, the group of each seed
    fixed      overrides that nothing overrides, not even the command line
    evaluate   what its translations differ in from those of its recipe: keys of [metrics.NAME.evaluate]
    folds      number of its folds; None: the table's
    where      the recipe's file:line
    blur       standard deviation in px of the blur of y, in a row of y; 0 for none
    flat       whether a row of y shows each class in its mean colour
    other_fold whether a row of y shows the images of the next fold
    """

    name: str
    label: str
    recipe: str | None
    overrides: tuple[str, ...]
    published: Mapping[str, float]
    where: str = field(default="", compare=False)
    folds: int | None = None
    blur: float = 0.0
    flat: bool = False
    other_fold: bool = False
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[tuple[str, ...], ...] = ()
    chosen: tuple[tuple[str, ...], ...] = ()
    fixed: tuple[str, ...] = ()
    only_here: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[str | None, tuple[str, ...]]:
        """What rows that share a training have in common: [search] and `evaluate` change neither.

        >>> row = Row("flow", "flow, 2 steps", "flow.toml", ("process.steps=2",), {})
        >>> row.training == replace(row, name="flow_1", evaluate={"process": {"steps": 1}}).training
        True
        """
        return self.recipe, self.overrides

    @property
    def suffix(self) -> str:
        """What the names of its metrics have behind them in the results of the run, which other rows share."""
        return f"@{self.name}" if self.evaluate else ""


@dataclass(frozen=True)
class Search:
    """How settings are chosen.

    metric  the name of a metric, measured on validation images
    share   length of a trial, as a share of the images of its row
    """

    metric: str
    share: float


@dataclass(frozen=True)
class Table:
    """The content of a table file.

    metrics  tables as in a recipe
    columns  {metric: heading}
    folds    whether seed r is fold r; then `seeds` is the number of folds
    profile  of the recipes; None: by hardware
    answer   whether the table begins with what its differences say, in words
    groups   whether it begins with the rows that are better or worse beyond chance, and those that are neither
    primary  the metric that was chosen before the runs, which comes first there; None: none
    search   how the settings of rows with `trials` are chosen; None: they are not
    data     what the document says of the data of --data (own_data.py); {}: it is the recipes' own

    pooled_spread  whether intervals over folds take the spread of all rows together (folds.py)
    """

    name: str
    folder: Path
    title: str
    source: str
    baseline: str
    seeds: int
    metrics: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    folds: bool = False
    profile: str | None = None
    study: bool = False
    answer: bool = False
    groups: bool = False
    pooled_spread: bool = False
    primary: str | None = None
    search: Search | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> list[Row]:
        return [row for row in self.rows if row.recipe]

    def overrides(self, without: Mapping[str, str]) -> list[str]:
        """`-s` overrides that add the table's metrics to a recipe, except those in `without`."""
        return [f"metrics.{name}={inline(table)}" for name, table in self.metrics.items() if name not in without]

    def describe_search(self) -> dict[str, Any]:
        """What the document of the table says of its search; {} without one."""
        if not self.search:
            return {}
        trials = max(len(row.trials) for row in self.rows)
        chosen = {row.name: [[*settings] for settings in row.chosen] for row in self.trained}
        facts = {"metric": self.search.metric, "share": self.search.share, "trials": trials, "chosen": chosen}
        return {"search": facts}

    def further_translations(self, row: Row) -> list[str]:
        """`-s` overrides for the translations of all rows that this row shares its training with."""
        return [
            f"evaluate.also.{other.name}={inline(other.evaluate)}"
            for other in self.rows
            if other.evaluate and other.training == row.training
        ]


def list_trainings(table: Table) -> dict[Any, Row]:
    """{training: its first row, with as many folds as any of its rows}"""
    rows: dict[Any, Row] = {}
    for row in table.trained:
        first = rows.setdefault(row.training, row)
        folds = None if None in (first.folds, row.folds) else max(first.folds or 0, row.folds or 0)
        rows[row.training] = replace(first, folds=folds)
    return rows


def parse_file(path: str) -> tuple[Path, Source, dict[str, Any]]:
    """The place, the text and the content of a TOML file, or of "zoo:NAME", one that p2pzoo ships.

    Raises UserError if it is missing, cannot be read, or is no TOML.
    """
    zoo = path.startswith("zoo:")
    file = shipped_dir("benchmarks") / path.removeprefix("zoo:") if zoo else Path(path)
    try:
        refuse_pipe(file)
        text = file.read_text("utf-8")
        tree = parse_toml(text)
    except FileNotFoundError:
        names = sorted(p.name for p in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        raise UserError(f"{path}: no such table{did_you_mean(file.name, names) if names else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): give a TOML file in UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: broken TOML: {error}") from None
    return file, Source(path, text), tree


def read_table(path: str) -> Table:
    """Read a table file, or "zoo:NAME" for one that p2pzoo ships. Raises UserError with every fault."""
    file, source, tree = parse_file(path)
    if "rows" not in tree and (found := [key for key in tree if key in RECIPE_KEYS]):
        raise UserError(
            f"{path}: is a recipe, not a table (it has {found[0]}): `p2pzoo run {path}` trains it; a table has "
            '[columns], and [rows.NAME] with recipe = "..."'
        )
    if faults := list(_faults(source, tree)):
        raise UserError(*faults)
    rows = _share_trials(
        _row(name, table, file.parent, str(Origin(source, ("rows", name, "recipe"))), tree.get("set", ()))
        for name, table in tree["rows"].items()
    )
    return Table(
        name=file.stem,
        folder=file.parent,
        title=tree.get("title", file.stem),
        source=tree.get("source", ""),
        baseline=tree.get("baseline", next((row.name for row in rows if row.recipe), rows[0].name)),
        seeds=tree.get("folds", tree.get("seeds", 1)),
        folds="folds" in tree,
        profile=tree.get("profile"),
        metrics=tree.get("metrics", {}),
        columns=tree["columns"],
        rows=rows,
        study=tree.get("study", False),
        answer=tree.get("answer", False),
        groups=tree.get("groups", False),
        pooled_spread=tree.get("pooled_spread", False),
        primary=tree.get("primary"),
        search=Search(**tree["search"]) if "search" in tree else None,
    )


def inline(value: Any) -> str:
    """A value in TOML, on one line.

    >>> inline({"use": "psnr", "sizes": [1, 2]})
    '{use = "psnr", sizes = [1, 2]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def key_of(override: str) -> str:
    """
    >>> key_of(" optimizer . lr = 1e-4")
    'optimizer.lr'
    """
    return ".".join(part.strip() for part in override.partition("=")[0].split("."))


def overlaps(key: str, other: str) -> bool:
    """Whether overrides of two keys can set the same value: they are equal, or one is a table that holds the other.

    >>> overlaps("process", "process.sigma"), overlaps("process.sigma", "process.sigma_max")
    (True, False)
    """
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _is_fixed_in_trials(key: str) -> bool:
    return any(overlaps(key, fixed) for fixed in ("train.images", "train.epochs", "evaluate"))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def is_seed(override: str) -> bool:
    """Whether a `-s` override sets the seed.

    >>> is_seed(" seed = 3")
    True
    """
    return key_of(override) == "seed"


def is_fold(override: str) -> bool:
    """Whether a `-s` override sets the fold of the dataset.

    >>> is_fold("dataset.fold=3"), is_fold("dataset.folder=photos")
    (True, False)
    """
    return key_of(override) == "dataset.fold"


def _key(name: str) -> str:
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def _row(name: str, table: Mapping[str, Any], folder: Path, where: str, shared: Sequence[str]) -> Row:
    recipe = table.get("recipe")
    if recipe and not recipe.startswith("zoo:"):
        recipe = str(find_recipe(recipe, folder))
    published = {metric: float(number) for metric, number in table.get("published", {}).items()}
    only_here = tuple(table.get("set_without_data", ()))
    return Row(
        name, table.get("label", name), recipe, (*shared, *table.get("set", ()), *only_here), published, where,
        folds=table.get("folds"), blur=float(table.get("blur", 0)), flat=table.get("flat", False),
        other_fold=table.get("other_fold", False), evaluate=table.get("evaluate", {}),
        trials=tuple(map(tuple, table.get("trials", ()))), only_here=only_here,
    )  # fmt: skip


def _share_trials(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows, with the trials of the first row that has some on all rows of its training."""
    rows = [*rows]
    trials = {row.training: row.trials for row in reversed(rows) if row.trials}
    return tuple(replace(row, trials=trials.get(row.training, ())) for row in rows)


def _faults(source: Source, tree: Mapping[str, Any]) -> Iterator[str]:
    """Every fault of a table file, as `file:line  message`."""

    def at(*key: str) -> str:
        return str(Origin(source, key))

    columns, rows = tree.get("columns", {}), tree.get("rows", {})
    columns_ok = _is_table_of(columns, str) and bool(columns)
    rows_ok = _is_table_of(rows, dict) and bool(rows)
    yield from _setting_faults(at, tree)
    if not columns_ok:
        yield f'{at("columns")}  [columns] needs a heading for each metric to show, "fcn_score.class_iou" = "class IoU"'
    if not rows_ok:
        yield f'{at("rows")}  a table needs rows: [rows.NAME] with recipe = "zoo:ablation_l1.toml"'
    yield from _metric_faults(at, tree.get("metrics", {}))
    study = tree.get("study", False)
    if not isinstance(study, bool):
        yield f"{at('study')}  study = {study!r}: write study = true, or remove it"
    if rows_ok:
        for name, row in rows.items():
            known = columns if columns_ok else {}
            yield from _row_faults(at, name, row, known, study=study is True, folds=tree.get("folds"))
        if study is not True:
            yield from _baseline_faults(at, tree, rows)
            yield from _search_faults(at, tree, rows)


def _setting_faults(at: At, tree: Mapping[str, Any]) -> Iterator[str]:
    for key in tree:
        if key not in KEYS:
            yield f"{at(key)}  a table file has no '{key}'{did_you_mean(key, KEYS)}"
    yield from _answer_faults(at, tree)
    yield from _primary_faults(at, tree)
    for key in ("title", "source", "baseline", "profile"):
        if not isinstance(tree.get(key, ""), str):
            yield f"{at(key)}  {key} must be a string"
    for key in ("seeds", "folds"):
        if not _is_count(number := tree.get(key, 1)):
            yield f"{at(key)}  {key} = {number!r}: must be a number, 1 or more"
    if "seeds" in tree and "folds" in tree:
        yield f"{at('folds')}  folds: each fold has its own seed; remove seeds"
    yield from _override_faults(at("set"), "this table", tree.get("set", []), tree.get("folds"))


def _primary_faults(at: At, tree: Mapping[str, Any]) -> Iterator[str]:
    columns, primary = tree.get("columns", {}), tree.get("primary", "")
    if not isinstance(primary, str):
        yield f"{at('primary')}  primary must be a string, the name of a column"
    elif "primary" in tree and isinstance(columns, dict) and primary not in columns:
        yield f"{at('primary')}  primary = {primary!r}: no such column{did_you_mean(primary, [*columns])}"


def _answer_faults(at: At, tree: Mapping[str, Any]) -> Iterator[str]:
    for key in ("answer", "groups", "pooled_spread"):
        if not isinstance(value := tree.get(key, False), bool):
            yield f"{at(key)}  {key} = {value!r}: write {key} = true, or remove it"
    if tree.get("groups") is True and "folds" not in tree:
        yield f"{at('groups')}  groups: the table has no folds: set folds = 3, or answer = true instead of groups"
    elif tree.get("groups") is True and tree.get("answer") is True:
        yield f"{at('groups')}  groups: answer = true has the same groups in words: remove one of the two"
    if tree.get("pooled_spread") is True and "folds" not in tree:
        yield f"{at('pooled_spread')}  pooled_spread: the table has no folds: set folds = 3, or remove it"


def _metric_faults(at: At, metrics: Any) -> Iterator[str]:
    if not _is_table_of(metrics, dict):
        yield f'{at("metrics")}  [metrics] must contain tables, as in [metrics.fcn_score] with use = "fcn_score"'
    elif dotted := [name for name in metrics if "." in name]:
        yield f"{at('metrics')}  metric '{dotted[0]}': the name must not contain a dot; rename it"


def _baseline_faults(at: At, tree: Mapping[str, Any], rows: Mapping[str, Any]) -> Iterator[str]:
    trained = [name for name, row in rows.items() if "recipe" in row]
    if not trained:
        yield f"{at('rows')}  no row has a recipe: add one to compare with"
    elif (baseline := tree.get("baseline", trained[0])) not in trained:
        suggestion = did_you_mean(str(baseline), trained)
        yield f"{at('baseline')}  baseline = {baseline!r}: no row with a recipe has this name{suggestion}"


def _search_faults(at: At, tree: Mapping[str, Any], rows: Mapping[str, Any]) -> Iterator[str]:
    trained = {name: row for name, row in rows.items() if "recipe" in row}
    if faults := [*_trial_faults(at, tree.get("folds"), trained)]:
        yield from faults
        return
    if "search" not in tree:
        if tried := [name for name, row in trained.items() if "trials" in row]:
            yield f"{at('rows', tried[0], 'trials')}  [rows.{tried[0]}] has trials: add [search] with metric and share"
        return
    search = tree["search"]
    if not isinstance(search, dict) or search.keys() != {*SEARCH_KEYS}:
        yield f"{at('search')}  [search] needs metric = the name of a metric, and share = that of a row's images"
        return
    tables = [table for key in ("columns", "metrics") if isinstance(table := tree.get(key), dict)]  # else a fault
    metrics = [name for table in tables for name in table]
    if search["metric"] not in metrics:
        suggestion = did_you_mean(str(search["metric"]), metrics)
        yield f"{at('search', 'metric')}  metric = {search['metric']!r}: the table has no such metric{suggestion}"
    if type(share := search["share"]) not in (int, float) or not 0 < share <= 1:
        yield f"{at('search', 'share')}  share = {share!r}: must be a number above 0, at most 1"
    yield from _number_faults(at, trained)


def _trial_faults(at: At, folds: Any, trained: Mapping[str, Any]) -> Iterator[str]:
    for name, row in trained.items():
        where, trials = at("rows", name, "trials"), row.get("trials", [])
        if not isinstance(trials, list) or not all(isinstance(trial, list) for trial in trials):
            example = 'trials = [["optimizer.lr=1e-4"], ["optimizer.lr=4e-4"]]'
            yield f"{where}  [rows.{name}] trials must be arrays of strings, as in {example}"
        else:
            for trial in trials:
                yield from _override_faults(where, f"[rows.{name}]", trial, folds)
                for key in filter(_is_fixed_in_trials, map(key_of, filter(_is_string, trial))):
                    yield f"{where}  [rows.{name}] a trial must not set {key}: [search] sets it; remove it"


def _number_faults(at: At, trained: Mapping[str, Any]) -> Iterator[str]:
    """Trainings with another number of trials, and rows of one training with different ones."""
    by_training: dict[str, list[str]] = {}
    for name, row in trained.items():
        lists = [row.get(key, []) for key in ("set", "set_without_data")]
        overrides = [each for given in lists if isinstance(given, list) for each in given]  # else a fault
        by_training.setdefault(f"{row['recipe']} {overrides}", []).append(name)
    expected: int | None = None
    for names in by_training.values():
        tried = [name for name in names if "trials" in trained[name]]
        first = tried[0] if tried else names[0]
        number = len(trained[first].get("trials", []))
        expected = expected or number
        if number < 2 or number != expected:
            yield (
                f"{at('rows', first, 'trials')}  [rows.{first}] has {number} trials: with [search] each row needs the "
                "same number, 2 or more"
            )
        for name in tried:
            if trained[name]["trials"] != trained[first]["trials"]:
                where = at("rows", name, "trials")
                yield f"{where}  [rows.{name}] shares the training of [rows.{first}]: remove its trials"


def _row_faults(
    at: At, name: str, row: Mapping[str, Any], columns: Mapping[str, str], *, study: bool, folds: Any
) -> Iterator[str]:
    for key in row:
        if key not in ROW_KEYS:
            yield f"{at('rows', name, key)}  [rows.{name}] has no '{key}'{did_you_mean(key, ROW_KEYS)}"
    if not isinstance(row.get("label", ""), str):
        yield f"{at('rows', name, 'label')}  label must be a string"
    if study and ("recipe" in row or "target" in row):
        yield f"{at('rows', name)}  [rows.{name}] is an algorithm of a study: remove its recipe or target"
    elif not study and (row.get("target", True) is not True or ("recipe" in row) == ("target" in row)):
        yield f"{at('rows', name)}  [rows.{name}] needs either a recipe or target = true (the ground truth)"
    yield from _changed_target_faults(at, name, row, folds)
    yield from _evaluate_faults(at, name, row)
    if not (isinstance(recipe := row.get("recipe", "zoo:"), str) and recipe):
        yield f"{at('rows', name, 'recipe')}  recipe must be a path or zoo:NAME"
    for key in ("set", "set_without_data"):
        yield from _override_faults(at("rows", name, key), f"[rows.{name}]", row.get(key, []), folds, key)
    yield from _row_fold_faults(at("rows", name, "folds"), name, row, folds)
    yield from _published_faults(at("rows", name, "published"), row.get("published", {}), columns)


def _changed_target_faults(at: At, name: str, row: Mapping[str, Any], folds: Any) -> Iterator[str]:
    changes = [key for key in ("blur", "flat", "other_fold") if key in row]
    if changes and "target" not in row:
        yield f"{at('rows', name, changes[0])}  [rows.{name}] {changes[0]} is for the ground truth: add target = true"
    elif len(changes) > 1:
        yield f"{at('rows', name, changes[1])}  [rows.{name}] has {' and '.join(changes)}: write a row for each"
    blur = row.get("blur", 1)
    if type(blur) not in (int, float) or not 0 < blur < float("inf"):
        yield f"{at('rows', name, 'blur')}  blur = {blur!r}: must be a standard deviation in px, more than 0"
    for key in ("flat", "other_fold"):
        if row.get(key, True) is not True:
            yield f"{at('rows', name, key)}  {key} = {row[key]!r}: write {key} = true, or remove it"
    if "other_fold" in row and (not _is_count(folds) or folds < 2):
        yield f"{at('rows', name, 'other_fold')}  [rows.{name}] other_fold needs a table with two folds or more"


def _evaluate_faults(at: At, name: str, row: Mapping[str, Any]) -> Iterator[str]:
    if "evaluate" not in row:
        return
    where = at("rows", name, "evaluate")
    if not (isinstance(row["evaluate"], dict) and row["evaluate"]):
        yield f'{where}  [rows.{name}] evaluate must be a table, as in evaluate = {{ weights = "average" }}'
    elif "recipe" not in row:
        yield f"{where}  [rows.{name}] evaluate is for rows with a recipe: the ground truth has no translations"
    elif not re.fullmatch(r"[A-Za-z][\w-]*", name):
        yield f"{where}  [rows.{name}] evaluate: the row needs a name of letters, digits, - and _, a letter first"


def _row_fold_faults(where: str, name: str, row: Mapping[str, Any], folds: Any) -> Iterator[str]:
    if "folds" not in row:
        return
    number = row["folds"]
    if not _is_count(number):
        yield f"{where}  folds = {number!r}: must be a number, 1 or more"
    elif not _is_count(folds):
        yield f"{where}  [rows.{name}] has folds, and the table has none: set folds = 10 at its top"
    elif number > folds:
        yield f"{where}  folds = {number}: the table has only {folds}"
    elif "recipe" not in row:
        yield f"{where}  [rows.{name}] folds is for rows with a recipe: the ground truth is measured on every fold"


def _override_faults(where: str, name: str, overrides: Any, folds: Any, key: str = "set") -> Iterator[str]:
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        yield f'{where}  {key} must be an array of strings, as in set = ["train.batch_size=10"]'
    elif any(is_seed(item) for item in overrides):
        yield (
            f"{where}  {name} must not set the seed: all rows are trained with seeds 0, 1, … "
            "(set how many with seeds = 3, or --seeds)"
        )
    elif folds is not None and any(is_fold(item) for item in overrides):
        yield f"{where}  {name} must not set dataset.fold: the table trains each row on every fold; remove it"


def _published_faults(where: str, published: Any, columns: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(published, dict) or not all(type(value) in (int, float) for value in published.values()):
        yield f"{where}  published must contain numbers, as in {{ fcn_score = 0.66 }}"
        return
    for metric in published:
        if metric not in columns:
            yield f"{where}  published: no column '{metric}'{did_you_mean(metric, columns)}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_table_of(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())
