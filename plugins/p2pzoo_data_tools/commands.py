"""`p2pzoo data`: get a dataset, or make it of its archives; look at it before training; convert layouts of pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.utils.errors import UserError
from p2pzoo_data_tools.check_command import check_command

if TYPE_CHECKING:
    from p2pzoo.plugin import Archive, Split
    from p2pzoo.plugin.registry import Entry

folder_type = click.Path(path_type=Path)
force_option = click.option("--force", is_flag=True, help="Replace files that are there already.")


@click.group("data")
def data_command() -> None:
    """Get a dataset, prepare it, look at it, convert between the layouts of pairs."""


@data_command.command("stats", short_help="Count and measure what a recipe trains on.")
@recipe_argument("recipe")
@profile_option
@override_option
@json_option
def stats_command(recipe: str, profile: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count and measure RECIPE's dataset: pairs, sizes, channels, stored values, shares of the classes.

    Every file of every split is read, so this also finds those that do not decode.
    """
    from p2pzoo import config
    from p2pzoo.data.pairing import SPLITS
    from p2pzoo_data_tools.preview import stats

    experiment = config.load(recipe, profile, overrides)
    found = {split: stats(experiment.dataset.build(split=split)) for split in SPLITS}
    if as_json:
        print_json({"dataset": experiment.dataset.entry.full_name, "splits": found})
    else:
        _print_stats(experiment.dataset.entry.full_name, found)


@data_command.command("preview", short_help="Draw pairs as the networks see them.")
@recipe_argument("recipe")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The PNG to write.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="train", show_default=True)
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="How many pairs.")
@profile_option
@override_option
@force_option
def preview_command(
    recipe: str, out: Path, split: Split, count: int, profile: str | None, overrides: tuple[str, ...], force: bool
) -> None:
    """Draw pairs of RECIPE's dataset as the networks will see them, x | y.

    Pairs of train are cropped and flipped as in a run's first steps, those of val and test shown as they are.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"-o {out}: a PNG is written; give a name that ends in .png")
    if out.exists() and not force:
        raise UserError(f"{out}: is there already; --force replaces it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder to write {out.name} into")
    from p2pzoo import config
    from p2pzoo.images.grid import save_png
    from p2pzoo_data_tools.preview import preview

    save_png(out, preview(config.load(recipe, profile, overrides), split, count))
    click.echo(out)


@data_command.command("combine", short_help="Two folders -> A|B side by side.")
@click.argument("a", type=folder_type)
@click.argument("b", type=folder_type)
@click.option("-o", "--out", type=folder_type, required=True, metavar="AB", help="The folder to write to.")
@force_option
def combine_command(a: Path, b: Path, out: Path, force: bool) -> None:
    """Lay the images of folders A and B side by side, matched by file name, as PNGs in AB.

    train/, val/ and test/ are kept where both folders have them. A and B are only read.
    """
    from p2pzoo.data.pairing import combine

    click.echo(f"{_pairs(combine(a, b, out, force=force))} in {out}")


@data_command.command("split", short_help="A|B side by side -> two folders.")
@click.argument("ab", type=folder_type)
@click.option("-o", "--out", type=folder_type, required=True, metavar="DIR", help="The folder to make A/ and B/ in.")
@force_option
def split_command(ab: Path, out: Path, force: bool) -> None:
    """Cut the images of folder AB into their left halves, DIR/A, and right halves, DIR/B, as PNGs.

    train/, val/ and test/ are kept. AB is only read.
    """
    from p2pzoo.data.pairing import split

    click.echo(f"{_pairs(split(ab, out, force=force))} in {out / 'A'} and {out / 'B'}")


class Preparations(click.Group):
    """A command for every dataset that has to be made of other files; its `prepare` says which (contracts.Dataset)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from p2pzoo.plugin.loader import registry

        return sorted({entry.name for entry in registry().of("dataset") if _prepares(entry)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from p2pzoo.plugin.loader import registry

        entry = registry().get("dataset", name)
        if not _prepares(entry):
            known = ", ".join(self.list_commands(ctx)) or "none"
            raise UserError(f"dataset '{name}' is read as it is: nothing to prepare (those that are prepared: {known})")
        return _preparation(name, entry.load().prepare)  # type: ignore[attr-defined]


@data_command.group("prepare", cls=Preparations, short_help="Make a dataset of its original archives.")
def prepare_command() -> None:
    """Make a dataset's files of the archives that it is published in. What is there already is kept."""


data_command.add_command(check_command)


def _prepares(entry: Entry) -> bool:
    try:
        return hasattr(entry.load(), "prepare")
    except UserError:  # its plugin is broken, which says nothing of the others
        return False


def _preparation(name: str, prepare: Any) -> click.Command:
    """A command whose options are the keyword-only parameters of `prepare`."""
    from p2pzoo.plugin.schema import Param, params_of

    params = params_of(prepare)

    def given(param: Param) -> click.Option:
        default = {} if param.required else {"default": param.default, "show_default": True}
        flag = f"--{param.name.replace('_', '-')}"
        return click.Option([flag, param.name], required=param.required, metavar=param.type_name.upper(), **default)

    def call(out: Path, **values: Any) -> None:
        from p2pzoo.runs.progress import track

        checked = {}
        for key, value in values.items():
            try:
                checked[key] = params[key].check(value)
            except ValueError as error:
                raise UserError(f"--{key.replace('_', '-')} {value}: {error}") from None
        for line in prepare(out, track, **checked):
            click.echo(line)

    out = click.Option(["-o", "--out"], type=folder_type, required=True, help="The folder to write to.")
    return click.Command(name, params=[*map(given, params.values()), out], callback=call, help=_help(prepare))


def _help(function: Any) -> str:
    """A docstring, whose second paragraph, of aligned lines, is not to be filled."""
    import inspect

    first, *rest = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join([first, *(f"\b\n{part}" for part in rest)])


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"


def _print_stats(name: str, found: Mapping[Split, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    style: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "title_justify": "left"}
    table = Table("split", "pairs", "blocks", "", "H×W×C (count)", "min / mean / max", title=name, **style)
    for split, told in found.items():
        for image in ("x", "y"):
            head = [split, str(told["pairs"]), str(told["blocks"] or "")] if image == "x" else [""] * 3
            shapes = [f"{shape} ({count})" for shape, count in told[image]["shapes"].items()]
            values = [f"{c['min']:g} / {c['mean']:.1f} / {c['max']:g}" for c in told[image]["channels"]]
            table.add_row(*head, image, "\n".join(shapes), "\n".join(values))
    Console(soft_wrap=True).print(table, markup=False)
    labelled = {split: told["labels"] for split, told in found.items() if told["labels"]}
    if labelled:
        shares = Table("class", *labelled, title="\nshare of labelled pixels", **style)
        for label in dict.fromkeys(label for told in labelled.values() for label in told):
            shares.add_row(label, *(f"{told.get(label, 0):.1%}" for told in labelled.values()))
        Console(soft_wrap=True).print(shares, markup=False)


@data_command.command("fetch", short_help="Download a published dataset into the cache.")
@click.argument("name", required=False)
@click.option("--mirror", metavar="URL", envvar="P2PZOO_MIRROR", show_envvar=True, help="A folder that has the file.")
@click.option("--from", "local", type=folder_type, metavar="FILE", help="Your own copy of the archive; no download.")
@click.option("--accept-licence", is_flag=True, help="You have agreed to the terms of a dataset that asks for it.")
def fetch_command(name: str | None, mirror: str | None, local: Path | None, accept_licence: bool) -> None:
    """Download the archive of dataset NAME, check it, and extract it to where recipes look for it.

    Called again, a download that was cut off goes on, and a dataset that is there is looked through. The archive's
    SHA-256 is recorded the first time and compared afterwards. Without NAME: what can be fetched, and what is there.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo.utils.suggest import nearest
    from p2pzoo_data_tools.download import fetch

    if name is None:
        return _print_archives(_archives())
    entry = registry().get("dataset", name)
    archive = _archive(entry)
    if archive is None:
        raise UserError(f"dataset '{name}' has no archive to fetch{nearest(name, list(_archives()))}")
    if archive.registration and not accept_licence:
        told = f"{name}: {archive.registration}. Once you have agreed: --accept-licence"
        raise UserError(f"{told}; or make it of the original: p2pzoo data prepare {name}" if _prepares(entry) else told)
    fetched = fetch(archive, _meter, lambda line: click.echo(line, err=True), mirror=mirror, local=local)
    images = ", ".join(f"{folder} {count}" for folder, count in fetched.images.items())
    click.echo(f"{fetched.folder}: {images} images{'' if fetched.new else ', as they were fetched'}")
    if fetched.sha256:
        click.echo(f"SHA-256 of its archive: {fetched.sha256}")
    click.echo(f"licence: {archive.licence}")


def _archive(entry: Entry) -> Archive | None:
    try:
        return getattr(entry.load(), "archive", None)
    except UserError:  # its plugin is broken
        return None


def _archives() -> dict[str, Archive]:
    """What can be fetched, by the datasets' names."""
    from p2pzoo.plugin.loader import registry

    found = {entry.name: _archive(entry) for entry in registry().of("dataset")}
    return {name: archive for name, archive in found.items() if archive}


def _print_archives(archives: Mapping[str, Archive]) -> None:
    from rich.console import Console
    from rich.table import Table

    from p2pzoo.utils.paths import cache_dir
    from p2pzoo_data_tools.download import there

    table = Table("dataset", "archive", "images", "", "licence", box=None, padding=(0, 2, 0, 0))
    for name, archive in archives.items():
        asks = " (--accept-licence)" if archive.registration else ""
        count = f"{sum(archive.images.values()):,}"
        table.add_row(name, archive.length, count, there(archive), archive.licence + asks)
    Console().print(table, markup=False)
    click.echo(f"\np2pzoo data fetch NAME puts one into {cache_dir() / 'datasets'}")


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
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(doing, total=total)
        yield lambda done: shown.advance(task, done)
