"""What modules import, as their text says."""

import ast
import importlib.util
from pathlib import Path


def imported(file):
    """Each module that a file imports anything of, and each name with its module before it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        yield from _names(node, file)


def imported_at_once(module):
    """All modules that `import module` imports, directly or through modules of p2pzoo and its plugins.

    Those that functions import when they are called, and those for type checking only, are not among them.
    """
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if not name.startswith("p2pzoo"):
            continue
        package = name.rpartition(".")[0]
        waiting += [package] if package else []
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is not None:  # otherwise it is a name in a module
            file = Path(spec.origin)
            waiting += _names_at_once(ast.parse(file.read_text("utf-8")), file)
    return found


def _names_at_once(node, file):
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_function and not is_for_types:
            yield from _names(child, file)
            yield from _names_at_once(child, file)


def _names(node, file):
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{file}: an import that does not say from where"
        yield node.module
        yield from (f"{node.module}.{name.name}" for name in node.names)
