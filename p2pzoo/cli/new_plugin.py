"""`p2pzoo new-plugin`: write a plugin package from the templates in p2pzoo/cli/scaffold."""

from __future__ import annotations

import re
from pathlib import Path

import click

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.utils.errors import UserError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# {kind: {template: path in the package}}; MODULE and NAME are replaced by the plugin's
FILES = {
    "generator": {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "init.py": "MODULE/__init__.py",
        "generator.py": "MODULE/generator.py",
        "loss.py": "MODULE/loss.py",
        "test_conformance.py": "tests/test_conformance.py",
        "recipe.toml": "NAME.toml",
        "workflow.yml": ".github/workflows/tests.yml",
    },
    "process": {
        "pyproject.toml": "pyproject.toml",
        "process/README.md": "README.md",
        "process/init.py": "MODULE/__init__.py",
        "process/process.py": "MODULE/process.py",
        "process/test_conformance.py": "tests/test_conformance.py",
        "process/recipe.toml": "NAME.toml",
        "workflow.yml": ".github/workflows/tests.yml",
    },
}
CONTENTS = {"generator": "a generator and a loss", "process": "a process"}


@click.command("new-plugin")
@click.argument("name", metavar="NAME")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Create this folder [default: NAME]."
)
@click.option(
    "--kind", type=click.Choice(list(FILES)), default="generator", show_default=True,
    help="Write a generator and a loss, or a process.",
)  # fmt: skip
@json_option
def new_plugin_command(name: str, output: Path | None, kind: str, as_json: bool) -> None:
    """Write a plugin package with a generator and a loss (or a process), a recipe and tests, for you to change.

    NAME is the name of the package: lower-case words joined by hyphens, as in my-zoo.
    """
    import shlex

    _check_package_name(name)
    folder = output or Path(name)
    if folder.exists():
        raise UserError(f"{folder}: already exists; choose another folder with -o DIR")
    files = write_plugin(name, folder, kind)
    if as_json:
        print_json({"folder": str(folder), "files": [str(file) for file in files]})
        return
    for file in files:
        click.echo(f"written  {file}")
    click.echo(f"next     cd {shlex.quote(str(folder))} && pip install -e '.[dev]' && pytest")


def _check_package_name(name: str) -> None:
    """Raises UserError if the name is not valid for a package, or taken."""
    import importlib.util
    import keyword
    import sys
    from importlib.metadata import entry_points

    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise UserError(
            f"'{name}' is not a name for a package: use lower-case letters and digits, words joined by hyphens (my-zoo)"
        )
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise UserError(f"'{name}' is reserved by Python: choose another name")
    if name in entry_points(group="p2pzoo").names:
        raise UserError(f"'{name}': a plugin of this name is installed already; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise UserError(f"'{name}': a package {module} is installed already; choose another name")


def write_plugin(name: str, folder: Path, kind: str = "generator") -> list[Path]:
    """Create the folder and write all files of a package with a component of this kind. Returns the files."""
    import jinja2

    from p2pzoo.utils.files import write_text
    from p2pzoo.utils.paths import PACKAGE

    module = name.replace("-", "_")
    loader = jinja2.FileSystemLoader(PACKAGE / "cli" / "scaffold")
    templates = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}): choose another folder with -o DIR") from None
    written = []
    values = {"name": name, "module": module, "contents": CONTENTS[kind]}
    for template, path in FILES[kind].items():
        file = folder / path.replace("MODULE", module).replace("NAME", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, templates.get_template(f"{template}.jinja").render(values))
        written.append(file)
    return written
