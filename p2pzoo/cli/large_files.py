"""What commands of plugins share that translate one large file: a scene, a volume, a stack. Imports click only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.options import F, at_use_options, json_option, weights_option
from p2pzoo.utils.errors import UserError

ShowProgress = Callable[[str, int, int], None]  # what is done, such as "planes"; how many; of how many


def model_options(command: F) -> F:
    """The options seed, at_use, weights, force, device, quiet and as_json."""
    options = (
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Seed the random numbers of the translation."),
        at_use_options,
        weights_option,
        click.option("--force", is_flag=True, help="Overwrite OUT."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                     help="Compute on this device."),
        click.option("--quiet", is_flag=True, help="Print no progress."),
        json_option,
    )  # fmt: skip
    return _with(command, options)


def tile_options(whole: str) -> Callable[[F], F]:
    """The options tile and overlap. whole: what is translated without --tile, for their help."""

    def with_tiles(command: F) -> F:
        options = (
            click.option("--tile", type=click.IntRange(min=1), metavar="SIDE",
                         help=f"Translate tiles of this side in pixels [default: {whole}]."),
            click.option("--overlap", type=click.IntRange(min=0), metavar="PIXELS",
                         help="Let neighbouring tiles overlap by this much [default: about a quarter of SIDE]."),
        )  # fmt: skip
        return _with(command, options)

    return with_tiles


def _with(command: F, options: Iterable[Callable[[F], F]]) -> F:
    for option in reversed([*options]):
        command = option(command)
    return command


def check_output(output: Path, source: Path, what: str, *, force: bool) -> None:
    """Raises UserError if a file cannot be written here. what: the source is, such as "scene"."""
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; create it, or write {output.name} elsewhere")
    if not output.exists():
        return
    if output.is_dir() or output.samefile(source):
        raise UserError(f"{output}: is {'a folder' if output.is_dir() else f'the {what} itself'}; give another name")
    if not force:
        raise UserError(f"{output}: already exists; --force overwrites it")


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[ShowProgress]:
    """A function that shows how far the work is: one bar for each kind, on a terminal, unless `quiet`."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
