"""The rooms of p2pzoo/: what each may import, the size of the kernel, public names. All from syntax trees."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE, PLUGINS = ROOT / "p2pzoo", ROOT / "plugins"

MAY_IMPORT = {  # the rooms that each imports directly; what those may import is allowed too
    "utils": [],
    "plugin": ["utils"],
    "images": ["utils"],
    "config": ["plugin"],
    "compute": ["config"],
    "data": ["images", "compute", "config"],
    "models": ["images", "compute", "config"],
    "runs": ["data", "models"],
    "training": ["runs"],
    "testing": ["training", "front door"],
    "cli": ["training", "testing", "front door"],
    "front door": ["training", "cli"],  # p2pzoo/__init__.py, __main__.py and api.py
}
# what a run of a recipe executes
KERNEL = ("plugin", "config", "training", "runs", "models/build.py", "models/initialization.py", "models/model_file.py")
# of `p2pzoo evaluate` and `p2pzoo bench`: no run executes them
NOT_IN_KERNEL = ("runs/evaluate_model.py", "runs/folder_pairs.py", "runs/changed_data.py")
KERNEL_LINES = 5000

COMPONENTS = {
    "",
    "plugin",
    "images",
    "utils",
    "data.pairing",
    "data.splits",
    "models.pickled_tensors",
    "models.safetensors_io",
}  # "": the front door
COMMANDS = COMPONENTS | {"config", "data", "compute", "models", "runs", "training", "cli.options", "cli.tables"}
COMMANDS |= {"cli.large_files"}
COMMAND_PLUGINS = {
    "p2pzoo_bench",
    "p2pzoo_data_tools",
    "p2pzoo_export",
    "p2pzoo_intervals",
    "p2pzoo_search",
    "p2pzoo_geo",
    "p2pzoo_medical",
    "p2pzoo_microscopy",
    "p2pzoo_study",
    "p2pzoo_tune",
    "p2pzoo_metrics",
    "p2pzoo_serve",
}
NEIGHBOURS = {
    "p2pzoo_export": {"p2pzoo_hub"},
    "p2pzoo_hub": {"p2pzoo_datasets"},
    "p2pzoo_intervals": {"p2pzoo_bench"},
    "p2pzoo_search": {"p2pzoo_bench"},
    "p2pzoo_study": {"p2pzoo_bench"},
    "p2pzoo_losses": {"p2pzoo_metrics"},
    "p2pzoo_timm": {"p2pzoo_metrics"},
    "p2pzoo_microscopy": {"p2pzoo_geo"},
}


def python_files(folder):
    return sorted(folder.rglob("*.py"))


def imports(file):
    """(line, dotted name) of everything a file imports, at any depth: lazy imports and those for typing too."""
    package = ".".join(file.relative_to(ROOT).parts[:-1]).removeprefix("plugins.")
    yield from imported_names(file.read_text("utf-8"), package)


def imported_names(source, package):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def room_of(name):
    """The room of a dotted name of p2pzoo; None for other packages."""
    package, *rest = name.split(".")
    if package != "p2pzoo":
        return None
    return rest[0] if rest and (CORE / rest[0]).is_dir() else "front door"


def allowed(room):
    """The rooms that a room may import, itself included."""
    rooms, waiting = {room}, list(MAY_IMPORT[room])
    while waiting:
        if (other := waiting.pop()) not in rooms:
            rooms.add(other)
            if other != "front door":  # importing it gives what it offers, not all that it may import
                waiting += MAY_IMPORT[other]
    return rooms


def arrows(files):
    """{(room, other room): [where]} of the imports between rooms."""
    result = defaultdict(list)
    for file in files:
        parts = file.relative_to(CORE).parts
        room = parts[0] if len(parts) > 1 else "front door"
        for line, name in imports(file):
            other = room_of(name)
            if other and other != room:
                result[room, other].append(f"{file.relative_to(ROOT)}:{line} {name}")
    return result


def test_a_room_imports_only_the_rooms_that_it_may():
    forbidden = [
        f"{room} -> {other}: {where}"
        for (room, other), places in arrows(python_files(CORE)).items()
        for where in places
        if other not in allowed(room)
    ]
    assert not forbidden, "\n".join(forbidden)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import p2pzoo.training.loop", "p2pzoo.training.loop"),
        ("def f():\n    from p2pzoo.cli import options", "p2pzoo.cli.options"),
        ("from ..training import loop", "p2pzoo.training.loop"),
        ("if TYPE_CHECKING:\n    from p2pzoo.training.loop import train", "p2pzoo.training.loop.train"),
    ],
)
def test_every_form_of_import_is_an_arrow(source, name):
    assert [imported for _, imported in imported_names(source, "p2pzoo.data")] == [name]
    assert room_of(name) not in allowed("data")


def test_the_core_imports_no_plugin():
    names = {path.name for path in PLUGINS.iterdir() if path.is_dir()}
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in python_files(CORE)
        for line, name in imports(file)
        if name.split(".")[0] in names
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("plugin", sorted(path.name for path in PLUGINS.glob("p2pzoo_*")))
def test_a_first_party_plugin_imports_what_a_third_partys_may(plugin):
    rooms = COMMANDS if plugin in COMMAND_PLUGINS else COMPONENTS
    forbidden = []
    for file in python_files(PLUGINS / plugin):
        for line, name in imports(file):
            package, _, inner = name.partition(".")
            if package == "p2pzoo":
                room = room_of(name)
                fine = room == "front door" or any(f"{inner}.".startswith(f"{each}.") for each in rooms if each)
            else:
                fine = not package.startswith("p2pzoo_") or package in {plugin, *NEIGHBOURS.get(plugin, ())}
            if not fine:
                forbidden.append(f"{file.relative_to(ROOT)}:{line} {name}")
    assert not forbidden, "\n".join(forbidden)


def test_the_plugins_that_may_import_more_are_those_that_register_commands():
    registering = {
        file.parent.name
        for file in PLUGINS.glob("p2pzoo_*/__init__.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "register_commands"
    }
    assert registering == COMMAND_PLUGINS


def code_lines(file):
    """How many lines hold code: no blank lines, comments or docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = file.read_text("utf-8").splitlines()
    return sum(
        1
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in docstrings
    )


def test_the_kernel_is_small_enough_to_read():
    files = {file for part in KERNEL for file in (python_files(CORE / part) or [CORE / part])}
    files -= {CORE / part for part in NOT_IN_KERNEL}
    assert sum(map(code_lines, files)) <= KERNEL_LINES


def test_the_top_of_the_package_is_a_map_of_it():
    names = [p.name for p in CORE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))]
    assert len(names) <= 15, names
    assert {"p2pzoo/" + name for name in MAY_IMPORT if name != "front door"} == {
        f"p2pzoo/{p.name}" for p in CORE.iterdir() if p.is_dir() and any(p.glob("*.py"))
    }


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room != "front door"])
def test_each_room_says_in_its_first_line_what_it_is_for(room):
    docstring = ast.get_docstring(ast.parse((CORE / room / "__init__.py").read_text("utf-8"))) or ""
    assert docstring.splitlines()[0].endswith("."), f"{room}: one sentence in the first line"


def test_a_public_name_has_one_meaning_in_the_core():
    places = defaultdict(set)
    for file in python_files(CORE):
        if file.relative_to(CORE).parts[0] in ("__init__.py", "api.py"):
            continue  # the front door offers again, under the same name, what a room has
        for node in ast.parse(file.read_text("utf-8")).body:
            names = []
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_"):
                    places[name].add(file.relative_to(CORE).as_posix())
    twice = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(files)}" for name, files in sorted(twice.items()))


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for folder in (CORE, PLUGINS)
        for file in python_files(folder)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long, "\n".join(long)


def test_tests_mirror_the_rooms():
    """Each folder of tests is named after a room or a plugin (or one of the campaigns)."""
    rooms = {room for room in MAY_IMPORT if room != "front door"}
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.rglob("test_*.py"))}
    assert folders <= rooms | {"plugins", "benchmarks", "bad_input", "faults", "null_gpu"}
    assert {p.name for p in (ROOT / "tests" / "plugins").iterdir() if p.is_dir()} - {"__pycache__"} <= {
        p.name for p in PLUGINS.iterdir()
    }
