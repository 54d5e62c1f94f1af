"""`p2pzoo new-plugin`: a plugin package to begin with, from the templates in p2pzoo/scaffold."""

from __future__ import annotations

import re
from pathlib import Path

import click

from p2pzoo.utils.errors import UserError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
FILES = {  # template -> where it goes; MODULE and NAME stand for the plugin's own
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "init.py": "MODULE/__init__.py",
    "generator.py": "MODULE/generator.py",
    "loss.py": "MODULE/loss.py",
    "test_conformance.py": "tests/test_conformance.py",
    "recipe.toml": "NAME.toml",
    "workflow.yml": ".github/workflows/tests.yml",
}


@click.command("new-plugin")
@click.argument("name", metavar="NAME")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="The folder to make [default: NAME]."
)
def new_plugin_command(name: str, output: Path | None) -> None:
    """Write a plugin package NAME: a generator, a loss, a recipe, and their tests, to be made your own.

    NAME is what the package is called: lower-case words joined by hyphens, as in my-zoo.
    """
    import shlex

    check_name(name)
    folder = output or Path(name)
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another place with -o DIR")
    files = write_plugin(name, folder)
    for file in files:
        click.echo(f"written  {file}")
    click.echo(f"next     cd {shlex.quote(str(folder))} && pip install -e '.[dev]' && pytest")


def check_name(name: str) -> None:
    """Raises UserError for what can be no package's name, or is one's already."""
    import importlib.util
    import keyword
    import sys

    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' names no package: lower-case letters and digits, words joined by hyphens (my-zoo)")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise UserError(f"'{name}' is a word of Python's own: choose another name")
    if importlib.util.find_spec(module) is not None:
        raise UserError(f"'{name}': a package {module} is installed here already; choose another name")


def write_plugin(name: str, folder: Path) -> list[Path]:
    """All files of the package, in a folder that is made. Returns them."""
    import jinja2

    from p2pzoo.utils.files import write_text
    from p2pzoo.utils.paths import PACKAGE

    module = name.replace("-", "_")
    loader = jinja2.FileSystemLoader(PACKAGE / "cli" / "scaffold")
    templates = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    folder.mkdir(parents=True)
    written = []
    for template, place in FILES.items():
        file = folder / place.replace("MODULE", module).replace("NAME", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, templates.get_template(f"{template}.jinja").render(name=name, module=module))
        written.append(file)
    return written
