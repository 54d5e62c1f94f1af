"""The command line: click only. Each command lives in a module that is imported when it is called.

Exit codes: 0 done, 1 our fault, 2 the user's, 128 + N stopped by signal N.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import warnings
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.utils.errors import PeerProcessError, UserError
from p2pzoo.utils.launcher import is_follower

if TYPE_CHECKING:
    from p2pzoo.plugin.registry import Entry


CORE = {  # name: (module, summary); the summary is here so that --help imports no command
    "run": ("p2pzoo.cli.run", "Train a recipe, evaluate it and keep the results."),
    "translate": ("p2pzoo.cli.translate", "Translate images with a trained model."),
    "list": ("p2pzoo.cli.catalogue", "List the components that recipes can name, and trained models."),
    "show": ("p2pzoo.cli.catalogue", "Show one component: parameters, counts, sizes."),
    "recipe": ("p2pzoo.cli.recipes", "Print a resolved recipe, with the line that set each value."),
    "diff": ("p2pzoo.cli.recipes", "Print the differences between two recipes."),
    "plugins": ("p2pzoo.cli.catalogue", "List plugins, and why one does not load."),
    "check-plugin": ("p2pzoo.cli.check_plugin", "Check that a plugin's components satisfy their interface."),
    "new-plugin": ("p2pzoo.cli.new_plugin", "Write a new plugin package."),
}
# line ends, other control characters, marks that turn the direction of writing, halves of characters
NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


class Zoo(click.Group):
    """The core's commands and those of plugins: each is imported when it is called. Turns errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*CORE, *(entry.name for entry in commands())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        claims = [entry for entry in commands() if entry.name == name]
        if len(claims) + (name in CORE) > 1:
            raise UserError(_name_clash(name, claims))
        if claims:
            return _load_command(claims[0])
        if name not in CORE:
            return None
        command: click.Command = getattr(importlib.import_module(CORE[name][0]), f"{name.replace('-', '_')}_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from p2pzoo.utils.suggest import nearest

            ctx.fail(f"no command '{args[0]}'{nearest(args[0], names)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {"Commands": [(name, summary) for name, (_, summary) in CORE.items()]}
        for entry in commands():
            sections.setdefault(f"Commands of plugin {entry.plugin}", []).append((entry.name, entry.summary))
        widest = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), summary) for name, summary in rows])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except click.UsageError as error:
            if is_follower():
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
            if line and (code == 1 or not is_follower()):
                click.echo(line, err=True)
            if ctx.params.get("debug"):
                import traceback

                traceback.print_exception(error)
            ctx.exit(code)


def commands() -> list[Entry]:
    """The commands that plugins register, by plugin and in the order they were registered."""
    from p2pzoo.plugin.loader import registry

    return [entry for entry in registry() if entry.kind == "command"]


def _load_command(entry: Entry) -> click.Command:
    command = entry.factory if isinstance(entry.factory, click.Command) else entry.load()
    if not isinstance(command, click.Command):
        raise UserError(f"command '{entry.full_name}' ({entry.distribution}): {entry.factory} is no click command")
    return command


def _name_clash(name: str, claims: list[Entry]) -> str:
    owners = [
        *(["p2pzoo itself"] if name in CORE else []),
        *(f"plugin '{e.plugin}' ({e.distribution})" for e in claims),
    ]
    return (
        f"command '{name}' is registered by {' and '.join(owners)}: uninstall one, or name the plugins to load in "
        "P2PZOO_PLUGINS"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Those for users, in one line; deprecations and the like are for programmers."""
    if issubclass(category, UserWarning) and not is_follower():
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
        case PeerProcessError():
            return "", 1
        case OSError() if error.errno in (*FULL, *FORBIDDEN, *MISPLACED) or "No space left" in str(error):
            told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            return f"{_shown(told)}; what was saved before is kept", 2
    lines = str(error).strip().splitlines() or [""]
    where = f"process {os.environ['RANK']}: " if is_follower() else ""
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
