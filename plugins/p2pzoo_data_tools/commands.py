"""`p2pzoo data`: download, prepare, check and preview datasets; convert between layouts of pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.cli.tables import open_console
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo_data_tools.check_command import check_command

if TYPE_CHECKING:
    from p2pzoo.plugin import Archive, Split
    from p2pzoo.plugin.registry import Entry

MAX_LISTED_SHAPES = 5  # of one image of a split: --json has all
folder_type = click.Path(path_type=Path)
force_option = click.option("--force", is_flag=True, help="Overwrite files that exist.")


@click.group("data")
def data_command() -> None:
    """Download, prepare, check and preview datasets; convert between layouts of pairs."""


@data_command.command("stats", short_help="Count and measure the pairs of a dataset.")
@recipe_argument("recipe")
@profile_option
@override_option
@json_option
def stats_command(recipe: str, profile: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count and measure RECIPE's dataset: pairs, sizes in files and after resizing, channels, stored values, shares of
    the classes.

    Every file of every split is read, so files that cannot be decoded are found too.
    """
    from p2pzoo import config
    from p2pzoo.data.pairing import SPLITS
    from p2pzoo_data_tools.preview import compute_stats

    experiment = config.load(recipe, profile, overrides)
    stats = {split: compute_stats(experiment.dataset.build(split=split)) for split in SPLITS}
    if as_json:
        print_json({"dataset": experiment.dataset.entry.full_name, "splits": stats})
    else:
        _print_stats(experiment.dataset.entry.full_name, stats)


@data_command.command("preview", short_help="Draw pairs as the networks get them.")
@recipe_argument("recipe")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG to write."
)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="train", show_default=True,
              help="Split whose pairs are drawn.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="Number of pairs.")
@profile_option
@override_option
@force_option
@json_option
def preview_command(
    recipe: str, out: Path, split: Split, count: int, profile: str | None, overrides: tuple[str, ...], force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Draw pairs of RECIPE's dataset as the networks get them, x | y.

    Pairs of train are augmented as in the first steps of a run; pairs of val and test are not augmented.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"-o {out}: the output is a PNG; use a name that ends in .png")
    if out.exists() and not force:
        raise UserError(f"{out}: already exists; --force overwrites it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    from p2pzoo import config
    from p2pzoo.images.grid import save_png
    from p2pzoo_data_tools.preview import draw_preview

    save_png(out, draw_preview(config.load(recipe, profile, overrides), split, count))
    if as_json:
        print_json({"file": str(out), "split": split})
    else:
        click.echo(out)


@data_command.command("combine", short_help="Write two folders as side-by-side images.")
@click.argument("a", type=folder_type)
@click.argument("b", type=folder_type)
@click.option("-o", "--output", "out", type=folder_type, required=True, metavar="AB", help="Folder to write to.")
@force_option
@json_option
def combine_command(a: Path, b: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write the images of folders A and B side by side, matched by file name, as PNGs in AB.

    Subfolders train/, val/ and test/ that both folders have are kept. A and B are only read.
    """
    from p2pzoo.data.convert_layout import combine_folders

    count = combine_folders(a, b, out, force=force)
    if as_json:
        print_json({"folders": [str(out)], "pairs": count})
    else:
        click.echo(f"{format_count(count, 'pair')} in {out}")


@data_command.command("split", short_help="Cut side-by-side images into two folders.")
@click.argument("ab", type=folder_type)
@click.option(
    "-o", "--output", "out", type=folder_type, required=True, metavar="DIR",
    help="Folder that gets the subfolders A/ and B/.",
)  # fmt: skip
@force_option
@json_option
def split_command(ab: Path, out: Path, force: bool, as_json: bool) -> None:
    """Cut each image of folder AB in two: the left half goes to DIR/A, the right half to DIR/B, as PNGs.

    Subfolders train/, val/ and test/ are kept. AB is only read.
    """
    from p2pzoo.data.convert_layout import split_folder

    count = split_folder(ab, out, force=force)
    if as_json:
        print_json({"folders": [str(out / "A"), str(out / "B")], "pairs": count})
    else:
        click.echo(f"{format_count(count, 'pair')} in {out / 'A'} and {out / 'B'}")


class PrepareGroup(click.Group):
    """One command per dataset with a `prepare` (see `p2pzoo.plugin.Dataset`), which makes its files from others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from p2pzoo.plugin.loader import registry

        return sorted({entry.name for entry in registry().of("dataset") if _has_prepare(entry)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from p2pzoo.plugin.loader import registry

        entry = registry().get("dataset", name)
        if not _has_prepare(entry):
            known = ", ".join(self.list_commands(ctx)) or "none"
            raise UserError(f"dataset '{name}' needs no preparation; datasets to prepare: {known}")
        return _make_prepare_command(name, entry.load().prepare)  # type: ignore[attr-defined]


@data_command.group("prepare", cls=PrepareGroup, short_help="Make a dataset from its original archives.")
def prepare_command() -> None:
    """Make the files of a dataset from its published archives. Files that exist are kept."""


data_command.add_command(check_command)


def _has_prepare(entry: Entry) -> bool:
    try:
        return hasattr(entry.load(), "prepare")
    except UserError:  # a broken plugin must not hide the datasets of others
        return False


def _make_prepare_command(name: str, prepare: Any) -> click.Command:
    """Return a command whose options are the keyword-only parameters of `prepare`."""
    from p2pzoo.plugin.schema import Param, get_params

    params = get_params(prepare)

    def make_option(param: Param) -> click.Option:
        default = {} if param.required else {"default": param.default, "show_default": True}
        flag = f"--{param.name.replace('_', '-')}"
        return click.Option([flag, param.name], required=param.required, metavar=param.type_name.upper(), **default)

    def call(out: Path, as_json: bool, **values: Any) -> None:
        from p2pzoo.runs.progress import track

        arguments = {}
        for key, value in values.items():
            try:
                arguments[key] = params[key].check(value)
            except ValueError as error:
                raise UserError(f"--{key.replace('_', '-')} {value}: {error}") from None
        lines = [*map(str, prepare(out, track, **arguments))]
        if as_json:
            print_json({"folder": str(out), "notes": lines})
            return
        for line in lines:
            click.echo(line)

    out = click.Option(["-o", "--output", "out"], type=folder_type, required=True, help="Folder to write to.")
    options = [*map(make_option, params.values()), out]
    return json_option(click.Command(name, params=options, callback=call, help=_format_help(prepare)))


def _format_help(function: Any) -> str:
    """Return the docstring; click must not re-wrap the lines of the parameter table after its first paragraph."""
    import inspect

    first, *rest = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join([first, *(f"\b\n{part}" for part in rest)])


def _print_stats(name: str, stats: Mapping[Split, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    style: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "title_justify": "left"}
    has_file_shapes = any(values["x"]["file_shapes"] for values in stats.values())
    has_blocks = any(values["blocks"] for values in stats.values())
    head = ["split", "pairs", *["blocks"] * has_blocks, "", *["in files"] * has_file_shapes]
    table = Table(*head, "H×W×C (count)", "min / mean / max", title=name, **style)
    for split, values in stats.items():
        for image in ("x", "y"):
            cells = [split, str(values["pairs"]), *[str(values["blocks"] or "")] * has_blocks]
            head = cells if image == "x" else [""] * len(cells)
            sizes = [values[image][key] or {} for key in ("file_shapes", "shapes")][0 if has_file_shapes else 1 :]
            ranges = [f"{c['min']:g} / {c['mean']:.1f} / {c['max']:g}" for c in values[image]["channels"]]
            table.add_row(*head, image, *map(_list_shapes, sizes), "\n".join(ranges))
    Console(soft_wrap=True).print(table, markup=False)
    for split, values in stats.items():
        for image in ("x", "y"):
            if line := _describe_enlargement(values, image):
                click.echo(f"{split}: {line}")
    labelled = {split: values["labels"] for split, values in stats.items() if values["labels"]}
    if labelled:
        share_table = Table("class", *labelled, title="\nshare of labelled pixels", **style)
        for label in dict.fromkeys(label for shares in labelled.values() for label in shares):
            share_table.add_row(label, *(f"{shares.get(label, 0):.1%}" for shares in labelled.values()))
        Console(soft_wrap=True).print(share_table, markup=False)


def _list_shapes(counts: Mapping[str, int]) -> str:
    lines = [f"{shape} ({count})" for shape, count in counts.items()]
    more = len(lines) - MAX_LISTED_SHAPES
    return "\n".join([*lines[:MAX_LISTED_SHAPES], *([f"... and {more} more"] if more > 0 else [])])


def _describe_enlargement(values: Mapping[str, Any], image: str) -> str | None:
    """A line on the files that are smaller than the size that the networks see."""
    enlarged = values[image]["enlarged"]
    if not enlarged or not enlarged["pairs"]:
        return None
    return (
        f"{enlarged['pairs']} of {values['pairs']} files of {image} are smaller and are enlarged, up to "
        f"{enlarged['factor']:.3g} times, which adds no detail: set a smaller size"
    )


@data_command.command("fetch", short_help="Download a published dataset into the cache.")
@click.argument("name", required=False)
@click.option(
    "--mirror",
    metavar="URL",
    envvar="P2PZOO_MIRROR",
    show_envvar=True,
    help="URL of a folder that has the archive, instead of its own server.",
)
@click.option(
    "--from", "local", type=folder_type, metavar="FILE", help="Use your own copy of the archive; download nothing."
)
@click.option(
    "--accept-licence", is_flag=True, help="Confirm that you have agreed to the terms of a dataset that requires it."
)
@json_option
def fetch_command(
    name: str | None, mirror: str | None, local: Path | None, accept_licence: bool, as_json: bool
) -> None:
    """Download the archive of dataset NAME, verify it, and extract it into the cache, where recipes find it.

    A second call resumes an interrupted download, or verifies the SHA-256 of every file of a dataset that is fetched,
    and fetches the archive again if files are damaged or missing. The archive's SHA-256 is recorded at the first fetch
    and compared at later ones. Without NAME, list the datasets that can be fetched, and which of them are.
    """
    from p2pzoo.utils.suggest import did_you_mean
    from p2pzoo_data_tools.download import fetch

    if name is None:
        return _print_archives(_find_archives(), as_json)
    entry = _get_dataset(name)
    archive = _load_archive(entry)
    if archive is None:
        raise UserError(f"dataset '{name}' has no archive to fetch{did_you_mean(name, list(_find_archives()))}")
    if archive.registration and not accept_licence:
        message = f"{name}: {archive.registration}. When you have agreed, add --accept-licence"
        if _has_prepare(entry):
            message += f"; or make the dataset from the original files: p2pzoo data prepare {name}"
        raise UserError(message)
    fetched = fetch(archive, _meter, lambda line: click.echo(line, err=True), mirror=mirror, local=local)
    if as_json:
        print_json(
            {
                "folder": str(fetched.folder), "images": dict(fetched.images), "new": fetched.is_new,
                "restored": fetched.num_restored, "sha256": fetched.sha256, "licence": archive.licence,
            }
        )  # fmt: skip
        return None
    images = ", ".join(f"{folder} {count}" for folder, count in fetched.images.items())
    state = ", verified: unchanged since the fetch"
    if num := fetched.num_restored:
        state = f", verified: {format_count(num, 'file')} restored"
    click.echo(f"{fetched.folder}: {images} images{'' if fetched.is_new else state}")
    if fetched.sha256:
        click.echo(f"SHA-256 of the archive: {fetched.sha256}")
    click.echo(f"licence: {archive.licence}")


def _get_dataset(name: str) -> Entry:
    """The dataset of this name. Raises UserError with the datasets that have an archive if there is none."""
    from p2pzoo.plugin.loader import plugins, registry
    from p2pzoo.plugin.registry import Registry

    datasets = registry().of("dataset")
    if not any(name in (entry.name, entry.full_name) for entry in datasets):
        datasets = [entry for entry in datasets if _load_archive(entry)]
    return Registry(datasets, [plugin.name for plugin in plugins() if plugin.error]).get("dataset", name)


def _load_archive(entry: Entry) -> Archive | None:
    try:
        return getattr(entry.load(), "archive", None)
    except UserError:  # a broken plugin must not hide the datasets of others
        return None


def _find_archives() -> dict[str, Archive]:
    """Return {dataset: archive} for all datasets that have one."""
    from p2pzoo.plugin.loader import registry

    archives = {entry.name: _load_archive(entry) for entry in registry().of("dataset")}
    return {name: archive for name, archive in archives.items() if archive}


def _print_archives(archives: Mapping[str, Archive], as_json: bool) -> None:
    from rich.table import Table

    from p2pzoo.utils.paths import cache_dir
    from p2pzoo_data_tools.download import describe_state

    if as_json:
        print_json(
            [
                {
                    "name": name, "archive": archive.length, "images": dict(archive.images),
                    "state": describe_state(archive), "licence": archive.licence,
                    "registration": bool(archive.registration),
                }
                for name, archive in archives.items()
            ]
        )  # fmt: skip
        return
    table = Table("dataset", "archive", "images", "state", "licence", box=None, padding=(0, 2, 0, 0))
    for name, archive in archives.items():
        terms = " (--accept-licence)" if archive.registration else ""
        count = f"{sum(archive.images.values()):,}"
        table.add_row(name, archive.length, count, describe_state(archive), archive.licence + terms)
    open_console().print(table, markup=False)
    click.echo(f"\np2pzoo data fetch NAME extracts a dataset into {cache_dir() / 'datasets'}")


@contextlib.contextmanager
def _meter(doing: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.advance(task, done)
