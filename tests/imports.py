"""What modules import, as their text says."""

import ast


def imported(file):
    """Each module that a file imports anything of, and each name with its module before it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: an import that does not say from where"
            yield from (f"{node.module}.{name.name}" for name in node.names)
