"""The command line: click only. Each command lives in a module that is imported when it is called.

Exit codes: 0 done, 1 our fault, 2 the user's, 128 + N stopped by signal N.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from p2pzoo.errors import Elsewhere, UserError

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS = {  # name: (module, summary); the summary is here so that --help imports no command
    "run": ("p2pzoo.cli.run", "Train a recipe, evaluate it and keep the results."),
    "bench": ("p2pzoo.cli.bench", "Train what a table compares, and print the table."),
    "compare": ("p2pzoo.cli.bench", "Put finished runs beside one another."),
    "gallery": ("p2pzoo.cli.gallery", "Write a page to browse all runs of a folder."),
    "study": ("p2pzoo.cli.study", "Write a page that asks people which image is fake."),
    "study-analyze": ("p2pzoo.cli.study", "Say how often people were fooled."),
    "tune": ("p2pzoo.cli.tune", "Find faster kernels for a recipe's convolutions."),
    "translate": ("p2pzoo.cli.translate", "Translate images with a trained model."),
    "import": ("p2pzoo.cli.exchange", "Bring weights that other code trained."),
    "export": ("p2pzoo.cli.exchange", "Write a model for other code, as a graph, or as a web page."),
    "card": ("p2pzoo.cli.card", "Make a folder of a run to share: model, card, pictures."),
    "data": ("p2pzoo.cli.data", "Look at a dataset; convert between layouts."),
    "list": ("p2pzoo.cli.catalogue", "List the components that recipes can name, and trained models."),
    "show": ("p2pzoo.cli.catalogue", "Show one component: parameters, counts, sizes."),
    "plugins": ("p2pzoo.cli.catalogue", "List plugins, and why one does not load."),
    "check-plugin": ("p2pzoo.cli.check_plugin", "Check that a plugin's components keep their promises."),
    "new-plugin": ("p2pzoo.cli.new_plugin", "Write a plugin package to begin with."),
    "recipe": ("p2pzoo.cli.recipes", "Print a recipe resolved, with the line that set each value."),
    "diff": ("p2pzoo.cli.recipes", "Print what differs between two recipes."),
}
# line ends, other control characters, marks that turn the direction of writing, halves of characters
NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


class Zoo(click.Group):
    """A group that imports a command when it is called, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from p2pzoo.registry import nearest

            ctx.fail(f"no command '{args[0]}'{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except click.UsageError as error:
            if follows():
                ctx.exit(error.exit_code)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except SystemExit as error:  # of a plugin: a run that it ends is not done
            if error.code not in (0, None):
                raise
            click.echo("p2pzoo failed: the process was told to end by what it called", err=True)
            ctx.exit(1)
        except BrokenPipeError:  # whoever read our output has read enough; click ends quietly
            raise
        except (Exception, KeyboardInterrupt) as error:
            line, code = _told(error)
            if line and (code == 1 or not follows()):
                click.echo(line, err=True)
            if ctx.params.get("debug"):
                import traceback

                traceback.print_exception(error)
            ctx.exit(code)


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def follows() -> bool:
    """Whether it has started it beside a first one, which speaks for it."""
    return launched() and os.environ.get("RANK", "0") != "0"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Those for users, in one line; deprecations and the like are for programmers."""
    if issubclass(category, UserWarning) and not follows():
        click.echo(f"warning: {_shown(str(message))}", err=True)


def _shown(line: str) -> str:
    """What a file or its name says may neither break the line, nor steer the terminal, nor stop it from being said."""
    return NOT_SHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def _told(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    match error:
        case KeyboardInterrupt():
            signum = error.args[0] if error.args else signal.SIGINT
            return "stopped; the same command goes on from what was saved", 128 + signum
        case UserError():
            return "\n".join("\n  ".join(map(_shown, getattr(fault, "lines", [fault]))) for fault in error.faults), 2
        case Elsewhere():
            return "", 1
        case OSError() if error.errno in (*FULL, *FORBIDDEN, *MISPLACED) or "No space left" in str(error):
            told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            return f"{_shown(told)}; what was saved before is kept", 2
    lines = str(error).strip().splitlines() or [""]
    where = f"process {os.environ['RANK']}: " if follows() else ""
    return f"{where}p2pzoo failed: {type(error).__name__}: {_shown(lines[0])} (`p2pzoo --debug ...` shows where)", 1


@click.command(cls=Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pzoo")
@click.option("--debug", is_flag=True, help="Show a traceback with an error, and what was decided on the way.")
def main(debug: bool) -> None:
    """A zoo of architectures for paired image-to-image translation (pix2pix).

    \b
    p2pzoo run zoo:ablation_patch70.toml     train the 70x70 PatchGAN and measure it
    p2pzoo list                              what recipes can be made of
    p2pzoo export zoo:earth-small --to web -o page.html    see a trained model at work
    """
    if debug:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("p2pzoo").setLevel(logging.DEBUG)


def the_same(fresh: bool) -> str:
    """What to type in order to go on."""
    return f"the same command{' without --fresh' * fresh}"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    import json

    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
profile_option = click.option("--profile", metavar="NAME", help="smoke, laptop, gpu, paper [default: by hardware].")
override_option = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: -s losses.l1.weight=50."
)


def recipe_argument(name: str, metavar: str = "RECIPE") -> Callable[[F], F]:
    """An argument that names a recipe; the shell completes those that travel with p2pzoo, and files."""
    return click.argument(name, metavar=metavar, shell_complete=_complete_recipe)


def _complete_recipe(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.paths import shipped

    folder = shipped("recipes")
    names = [f"zoo:{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.toml"))]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found if incomplete.startswith("zoo:") else [*found, CompletionItem(incomplete, type="file")]
