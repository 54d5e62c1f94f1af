"""The command line. It imports click only; the module of a command is imported when the command is called.

Exit codes: 0 success, 1 an error in p2pzoo or a plugin, 2 an error that the user can fix, 128 + N stopped by signal N.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.cli.options import JSON_REQUESTED, print_error
from p2pzoo.utils.errors import ComponentError, Error, PeerProcessError, UserError
from p2pzoo.utils.launcher import check_environment, is_follower
from p2pzoo.utils.signals import exit_code, interrupting
from p2pzoo.utils.terminal import drop_unread_output, escape, prepare_streams

if TYPE_CHECKING:
    from p2pzoo.plugin.registry import Entry


ALIASES = {"train": "run", "test": "evaluate", "predict": "translate"}  # accepted, and not listed
OTHER_COMMAND_NAMES = {  # what other tools call commands
    "fit": "run", "infer": "translate", "inference": "translate", "eval": "evaluate", "validate": "evaluate",
    "benchmark": "bench", "components": "list", "recipes": "list recipes",
}  # fmt: skip
CORE_COMMANDS = {  # name: (module, summary); the summary is here so that --help imports no command
    "run": ("p2pzoo.cli.run", "Train a recipe, evaluate it and keep the results."),
    "translate": ("p2pzoo.cli.translate", "Translate images with a trained model."),
    "evaluate": ("p2pzoo.cli.evaluate", "Measure a trained model on a recipe's data or two folders."),
    "list": ("p2pzoo.cli.catalogue", "List components for recipes, and trained models."),
    "show": ("p2pzoo.cli.show", "Show the parameters of a component or of a settings table."),
    "recipe": ("p2pzoo.cli.recipes", "Print a resolved recipe, with the line that set each value."),
    "diff": ("p2pzoo.cli.recipes", "Print the differences between two recipes."),
    "plugins": ("p2pzoo.cli.catalogue", "List the installed plugins and their errors."),
    "check-plugin": ("p2pzoo.cli.check_plugin", "Check that a plugin's components satisfy their interface."),
    "new-plugin": ("p2pzoo.cli.new_plugin", "Write a new plugin package."),
}
# errors of the operating system that the user can fix
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


class Zoo(click.Group):
    """The commands of the core and of plugins. Prints each error as one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare_streams()
        try:
            return super().main(*args, **kwargs)
        except Error as error:  # raised before `invoke`, as by --help
            line, code = _explain(error)
            print_error(line, code)
            sys.exit(code)
        finally:
            drop_unread_output()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*CORE_COMMANDS, *(entry.name for entry in plugin_commands())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        claims = [entry for entry in plugin_commands() if entry.name == name]
        if len(claims) + (name in CORE_COMMANDS) > 1:
            raise UserError(_name_clash(name, claims))
        if claims:
            return _load_command(claims[0])
        if name not in CORE_COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(CORE_COMMANDS[name][0]), f"{name.replace('-', '_')}_command"
        )
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = args[: args.index("--")] if "--" in args else args
        ctx.meta[JSON_REQUESTED] = "--json" in words  # here, since errors can come before the command's own parser
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names:  # a plugin's command comes first
            args = [ALIASES.get(args[0], args[0]), *args[1:]]
        if args and args[0] not in names and not args[0].startswith("-"):
            from p2pzoo.plugin.loader import registry
            from p2pzoo.utils.suggest import did_you_mean

            meant = OTHER_COMMAND_NAMES.get(args[0])
            meant = meant if meant and meant.partition(" ")[0] in names else None
            suggestion = f": did you mean '{meant}'?" if meant else did_you_mean(args[0], names)
            ctx.fail(f"no command '{args[0]}'{suggestion}{registry().describe_missing()}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from p2pzoo.plugin.loader import registry

        sections = {"Commands": [(name, summary) for name, (_, summary) in CORE_COMMANDS.items()]}
        for entry in plugin_commands():
            sections.setdefault(f"Commands of plugin {entry.plugin}", []).append((entry.name, entry.summary))
        widest = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), summary) for name, summary in rows])
        if missing := registry().describe_missing():
            formatter.write_text(missing.strip())

    def invoke(self, ctx: click.Context) -> Any:
        signals: list[int] = []
        try:
            with warnings.catch_warnings(), interrupting() as signals:
                warnings.showwarning = _show_warning
                check_environment()
                return super().invoke(ctx)
        except click.ClickException as error:
            if is_follower() and isinstance(error, click.UsageError):
                ctx.exit(error.exit_code)
            if not ctx.meta[JSON_REQUESTED]:
                raise
            print_error(error.format_message(), error.exit_code)
            ctx.exit(error.exit_code)
        except (click.exceptions.Exit, click.Abort):
            raise
        except SystemExit as error:  # raised by a plugin or library: the command is not finished, even with code 0
            if error.code not in (0, None):
                raise
            print_error("p2pzoo failed: a plugin or library called sys.exit() before the command had finished", 1)
            ctx.exit(1)
        except BrokenPipeError:  # the reader closed the pipe, as `head` does; click ends quietly
            raise
        except (Exception, KeyboardInterrupt) as error:
            is_from_library = not isinstance(error, (Error, KeyboardInterrupt))
            line, code = _explain(KeyboardInterrupt(signals[0]) if signals and is_from_library else error)
            if line and (code == 1 or not is_follower()):
                with contextlib.suppress(OSError):  # nobody reads standard error any more
                    print_error(line, code, [*map(str, error.faults)] if isinstance(error, UserError) else ())
            if ctx.params.get("debug"):
                import traceback

                traceback.print_exception(error)
            ctx.exit(code)


def plugin_commands() -> list[Entry]:
    """The commands that plugins register, in the order of plugins and of registration."""
    from p2pzoo.plugin.loader import registry

    return [entry for entry in registry() if entry.kind == "command"]


def _load_command(entry: Entry) -> click.Command:
    command = entry.factory if isinstance(entry.factory, click.Command) else entry.load()
    if not isinstance(command, click.Command):
        raise UserError(f"command '{entry.full_name}' ({entry.distribution}): {entry.factory} is not a click command")
    return command


def _name_clash(name: str, claims: list[Entry]) -> str:
    owners = ["p2pzoo itself"] if name in CORE_COMMANDS else []
    owners += [f"plugin '{entry.plugin}' ({entry.distribution})" for entry in claims]
    return (
        f"command '{name}' is registered by {' and '.join(owners)}: uninstall one, or name the plugins to load in "
        "P2PZOO_PLUGINS"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a UserWarning as one line. Other categories, such as DeprecationWarning, are for programmers."""
    if issubclass(category, UserWarning) and not is_follower():
        with contextlib.suppress(OSError):  # nobody reads standard error any more
            click.echo(f"warning: {escape(str(message))}", err=True)


def _escape_lines(fault: str) -> str:
    """The same for a fault with a list below it, whose lines begin with two blanks."""
    return "\n  ".join(map(escape, fault.split("\n  ")))


def _explain(error: BaseException) -> tuple[str, int]:
    """(line to print, exit code) of an error."""
    match error:
        case KeyboardInterrupt():
            return "stopped; the same command resumes from what was saved", exit_code(error)
        case UserError():
            faults = ("\n  ".join(map(_escape_lines, getattr(fault, "lines", [fault]))) for fault in error.faults)
            return "\n".join(faults), 2
        case ComponentError():
            return f"{escape(str(error))} (`p2pzoo --debug ...` shows where)", 1
        case PeerProcessError():
            return "", 1
        case FileExistsError() | NotADirectoryError() if error.filename:
            return f"{escape(str(error.filename))}: a file is in the place of a folder: choose another place", 2
        case OSError() if error.errno in (*DISK_FULL, *NO_PERMISSION, *WRONG_PATH) or "No space left" in str(error):
            reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            return f"{escape(reason)}; what was saved before is kept", 2
    lines = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    where = f"process {os.environ['RANK']}: " if is_follower() else ""
    return f"{where}{_blame(error)} failed: {escape(': '.join(lines))} (`p2pzoo --debug ...` shows where)", 1


def _blame(error: BaseException) -> str:
    """Whose code raised an error: p2pzoo's, or that of a plugin that is not p2pzoo's own."""
    from p2pzoo.plugin.loader import plugins

    packages = {}
    with contextlib.suppress(Error):
        packages = {plugin.module.partition(".")[0]: plugin for plugin in plugins()}
    blamed, traceback = "p2pzoo", error.__traceback__
    while traceback:  # from the outermost frame to the innermost
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "p2pzoo":
            blamed = "p2pzoo"
        elif plugin := packages.get(package):
            is_own = plugin.distribution.partition(" ")[0] == "p2pzoo"
            blamed = "p2pzoo" if is_own else f"plugin '{plugin.name}' ({plugin.distribution})"
        traceback = traceback.tb_next
    return blamed


@click.command(cls=Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pzoo")
@click.option("--debug", is_flag=True, help="Print tracebacks of errors, and debug messages.")
def main(debug: bool) -> None:
    """A zoo of architectures for paired image-to-image translation (pix2pix).

    \b
    p2pzoo run zoo:ablation_patch70.toml     train and evaluate the 70x70 PatchGAN
    p2pzoo list                              list the components for recipes
    p2pzoo show generator unet               describe the parameters of a component
    p2pzoo COMMAND --help                    describe a command
    """
    if debug:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("p2pzoo").setLevel(logging.DEBUG)
