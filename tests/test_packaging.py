"""The wheel holds all that p2pzoo needs and nothing else; a stranger's plugin beside it works; the core is light.

"Clean" is a virtual environment that sees the other packages of this one, torch among them, and of p2pzoo the wheel.
"""

import ast
import csv
import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from noise_pairs import draw_pairs
from PIL import Image

import p2pzoo
from p2pzoo.plugin.loader import plugins, registry

REPOSITORY = Path(__file__).parents[1]
LIGHT = {
    "import p2pzoo": ("-c", "import p2pzoo"),
    "p2pzoo --help": ("-m", "p2pzoo", "--help"),
    "p2pzoo list": ("-m", "p2pzoo", "list"),
}
HEAVY = {"torch", "kornia", "timm", "accelerate"}
AT_MOST = {"list": 7}  # times as long as importing click and rich; 4 for the others. `list` lays out a table of 70 rows
FEW = ("-s", "train.images=4", "-s", "train.sample_every=4", "-s", "dataset.stride=256", "-s", "compute.device=cpu")
SHIPPED = ("run", "zoo:ablation_patch70.toml", "--profile", "smoke", *FEW)

NAMED_FILE = re.compile(r"\b(?:p2pzoo|plugins|recipes|benchmarks|tests)/[\w./-]+\.(?:py|md|toml)\b")

PYPROJECT = """
[build-system]
requires = ["hatchling>=1.18"]
build-backend = "hatchling.build"

[project]
name = "my-zoo"
version = "1.0"
dependencies = ["p2pzoo"]

[project.entry-points.p2pzoo]
my = "my_zoo"
"""

RECIPE = """
extends = "zoo:base.toml"
[generator]
use = "my-unet"
[discriminator]
use = "my-patch"
[gan_loss]
use = "my:my-vanilla"
[losses.l1]
use = "my-l1"
[profiles.smoke.generator]
width = 8
[profiles.smoke.discriminator]
width = 8
"""


def call(*command, **kwargs) -> subprocess.CompletedProcess:
    """Run to a good end."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


class TestLight:
    @pytest.mark.parametrize("command", LIGHT.values(), ids=LIGHT)
    def test_it_imports_no_torch(self, command):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
        )
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "p2pzoo" in imported
        assert imported & HEAVY == set()

    @pytest.mark.slow
    @pytest.mark.parametrize("command", LIGHT.values(), ids=LIGHT)
    def test_it_answers_at_once(self, command):
        """The median of five ratios, in turns with what it cannot do without: machines and their loads differ."""
        floor, seconds = [], []
        for times, arguments in ((floor, ["-c", "import click, rich"]), (seconds, command)) * 5:
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        ratios = [own / least for own, least in zip(seconds, floor, strict=True)]
        assert statistics.median(ratios) < AT_MOST.get(command[-1], 4)


def test_the_core_names_no_component_and_no_plugin():
    """In no string of its code; docstrings and examples in help texts may."""
    names = {name for entry in registry() if entry.kind != "command" for name in (entry.name, entry.full_name)}
    modules = [plugin.module for plugin in plugins() if plugin.distribution.startswith("p2pzoo ")]
    names.remove("image")  # a noun of messages too
    assert "unet" in names
    assert "p2pzoo_pix2pix" in modules
    for file in Path(p2pzoo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                where = f"{file.name}:{node.lineno}"
                assert node.value not in names, where
                assert not any(module in node.value for module in modules), where


def find_messages(tree: ast.Module) -> list[str]:
    """The texts in a module's code: of docstrings, only those of decorated functions, which may be a command's help."""
    documented = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and not getattr(node, "decorator_list", None)
    ]
    docstrings = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text.value for text in texts if " " in text.value and id(text) not in docstrings]


def test_messages_name_only_files_that_an_installation_has():
    """Those of p2pzoo/: there is no plugins/ in it, and what is in recipes/ and benchmarks/ is called zoo:NAME."""
    for file in (*(REPOSITORY / "p2pzoo").rglob("*.py"), *(REPOSITORY / "plugins").rglob("*.py")):
        source = file.read_text("utf-8")
        for text in find_messages(ast.parse(source)) if NAMED_FILE.search(source) else ():
            for name in NAMED_FILE.findall(text):
                assert name.startswith("p2pzoo/"), f"{file.relative_to(REPOSITORY)}: {name}"
                assert (REPOSITORY / name).is_file(), f"{file.relative_to(REPOSITORY)}: {name}"


def build_wheel(project: Path, folder: Path) -> Path:
    """As a release does: a source distribution, and the wheel from that."""
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []  # else it comes from the index
    call(sys.executable, "-m", "build", *isolation, "--outdir", folder, project)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


class Clean:
    """A virtual environment that sees this one's packages except p2pzoo, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.python = folder / "venv/bin/python"
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "P2PZOO_PLUGINS")}
        call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        others = folder / "others"
        others.mkdir()
        elsewhere = [place for place in sys.path if Path(place).name == "site-packages"]  # named by a .pth
        for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *elsewhere}:
            for entry in Path(site).iterdir():
                if "p2pzoo" not in entry.name and entry.suffix != ".pth" and not (others / entry.name).exists():
                    (others / entry.name).symlink_to(entry)
        [own] = (folder / "venv/lib").glob("python*/site-packages")
        (own / "others.pth").write_text(f"{others}\n")

    def install(self, wheel: Path) -> None:
        call(sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index", wheel)

    def run(self, *command) -> subprocess.CompletedProcess:
        return call(self.python.parent / command[0], *command[1:], cwd=self.folder, env=self.environment)

    def json(self, *command):
        return json.loads(self.run("p2pzoo", *command, "--json").stdout)


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A clean environment with the wheel in it, and nothing of p2pzoo besides."""
    clean = Clean(tmp_path_factory.mktemp("clean"))
    clean.install(wheel)
    files = clean.run(
        "python", "-c", "import p2pzoo, p2pzoo_earth; print(p2pzoo.__file__, p2pzoo_earth.__file__)"
    ).stdout
    assert all(Path(file).is_relative_to(clean.python.parents[1]) for file in files.split())
    return clean


@pytest.fixture(scope="module")
def results(clean):
    """Of a shipped recipe, run before any other plugin was installed."""
    return clean.json(*SHIPPED)


@pytest.fixture(scope="module")
def beside(clean, results, tmp_path_factory):
    """The clean environment with a plugin more: p2pzoo_pix2pix, copied out and renamed with all its components."""
    project = tmp_path_factory.mktemp("my-zoo")
    (project / "pyproject.toml").write_text(PYPROJECT)
    shutil.copytree(
        REPOSITORY / "plugins/p2pzoo_pix2pix", project / "my_zoo", ignore=shutil.ignore_patterns("__pycache__")
    )
    for file in (project / "my_zoo").glob("*.py"):
        text = file.read_text("utf-8").replace("p2pzoo_pix2pix", "my_zoo")
        file.write_text(re.sub(r'(\bregister\(\s*")', r"\1my-", text), "utf-8")
    clean.install(build_wheel(project, tmp_path_factory.mktemp("wheels")))
    return clean


def within(source: str, target: str) -> set[str]:
    """Where the files of a folder of the repository belong in the wheel: in a clone, those that git tracks."""
    root = REPOSITORY / source
    if (REPOSITORY / ".git").exists():
        files = [root / name for name in call("git", "ls-files", "-z", cwd=root).stdout.split("\0")[:-1]]
    else:
        files = [file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {(Path(target) / file.relative_to(root)).as_posix() for file in files}


@pytest.mark.slow
class TestWheel:
    def test_it_holds_core_plugins_recipes_and_tables_and_nothing_else(self, wheel):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            contents = {name: archive.read(name) for name in names}
        [info] = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        assert {name for name in names if not name.startswith(info)} == {
            *within("p2pzoo", "p2pzoo"), *within("plugins", ""), *within("recipes", "p2pzoo/recipes"),
            *(f"p2pzoo/benchmarks/{file.name}" for file in (REPOSITORY / "benchmarks").glob("*.toml")),
        } - {"README.md"}  # fmt: skip
        assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
        assert wheel.stat().st_size < 30e6
        for name in ("p2pzoo/py.typed", "p2pzoo/benchmarks/table1_losses.toml", "p2pzoo_earth/land_cover.png"):
            assert name in names
        places = [os.fsencode(place) for place in (REPOSITORY, sys.prefix)]
        assert [name for name, content in contents.items() if any(place in content for place in places)] == []

    def test_a_recipe_runs_where_there_is_only_the_wheel(self, clean, results):
        assert (results["recipe"], results["profile"]) == ("ablation_patch70", "smoke")
        [folder] = (clean.folder / "runs/ablation_patch70").iterdir()
        assert (folder / "model.safetensors").is_file()
        assert list((folder / "samples").glob("*.png"))


@pytest.mark.slow
class TestPluginOfAStranger:
    def test_it_is_found_beside_the_first_party_ones(self, beside):
        plugins = {plugin["name"]: plugin for plugin in beside.json("plugins")}
        assert {plugin["name"] for plugin in plugins.values() if plugin["error"]} == set()
        assert plugins["my"]["distribution"] == "my-zoo 1.0"
        assert plugins["pix2pix"]["distribution"] == f"p2pzoo {p2pzoo.__version__}"
        own, theirs = ({(c["kind"], c["name"]) for c in plugins[name]["components"]} for name in ("pix2pix", "my"))
        assert theirs == {(kind, f"my-{name}") for kind, name in own}
        assert {"my-unet", "unet"} <= {row["name"] for row in beside.json("list", "generator")}

    def test_a_recipe_that_uses_it_runs_to_its_end(self, beside):
        (beside.folder / "mine.toml").write_text(RECIPE)
        results = beside.json("run", "mine.toml", "--profile", "smoke", *FEW)
        assert set(results["metrics"]) >= {"l1", "psnr", "ssim"}
        [folder] = (beside.folder / "runs/mine").iterdir()
        sources = json.loads((folder / "status.json").read_text())["sources"]
        assert sources["generator my:my-unet"].startswith("my-zoo 1.0 ")

    def test_its_installation_changes_no_other_result(self, beside):
        messages = beside.run("p2pzoo", *SHIPPED).stderr
        assert "already complete" in messages
        assert "changed after this run" not in messages


TILES = """
from pathlib import Path
from PIL import Image
from p2pzoo_earth.dataset import Earth

earth = Earth("train", size=128, stride=256)
for folder in ("inputs", "targets"):
    Path(folder).mkdir()
for i in range(20):
    pair = earth[i]
    Image.fromarray(pair.x).save(f"inputs/{pair.id}.png")
    Image.fromarray(pair.y).save(f"targets/{pair.id}.png")
Image.fromarray(Earth("test", size=256)[0].x[:215, :201]).save("photo.jpg")
"""


TABLE = """
title = "Generators"
baseline = "patch70"
[columns]
"l1" = "L1"
"psnr" = "PSNR"
"ssim" = "SSIM"
[rows.patch70]
recipe = "zoo:ablation_patch70.toml"
label = "U-Net"
[rows.mine]
recipe = "{recipe}"
label = "mine"
"""

PAIRS = """
extends = "zoo:base.toml"
[dataset]
use = "folders"
inputs = "a"
targets = "b"
size = [64, 64]
"""


ROW = """
[rows.mine]
recipe = "{recipe}"
label = "mine"
"""


TRIALS = f"trials = {[[f'optimizer.lr={rate}'] for rate in (1e-4, 2e-4, 4e-4, 8e-4, 1e-3)]}"  # as many as other rows


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    place = Clean(tmp_path_factory.mktemp("author"))
    place.install(wheel)
    place.run("p2pzoo", "new-plugin", "their-zoo")
    place.install(build_wheel(place.folder / "their-zoo", tmp_path_factory.mktemp("theirs")))
    return place


@pytest.fixture(scope="module")
def recipe(place):
    return place.folder / "their-zoo/their-zoo.toml"


@pytest.mark.slow
class TestNewPlugin:
    """The package that `p2pzoo new-plugin` writes, installed and used as it is, in an environment of its own."""

    def test_its_tests_pass_untouched(self, place):
        output = place.run("python", "-m", "pytest", "-q", "their-zoo").stdout
        passed = int(re.search(r"(\d+) passed", output)[1])
        assert passed >= 16, output
        assert "failed" not in output

    def test_it_is_one_more_row_of_table_3(self, place, recipe):
        table = (REPOSITORY / "benchmarks/table3_receptive_field.toml").read_text("utf-8")
        (place.folder / "table3.toml").write_text(table + ROW.format(recipe=recipe))
        lines = place.run("p2pzoo", "bench", "table3.toml", "--profile", "smoke", "--seeds", "1", "--dry-run").stdout
        rows = [line.partition(", seed 0")[0] for line in lines.splitlines()]
        assert rows == [*re.findall(r'recipe = .*\nlabel = "(.*)"', table), "mine"]

    def test_a_table_with_it_is_filled(self, place, recipe):
        (place.folder / "small.toml").write_text(TABLE.format(recipe=recipe))
        command = ("p2pzoo", "bench", "small.toml", "--profile", "smoke", "--seeds", "1", "--format", "csv", "--quiet")
        output = place.run(*command, *FEW).stdout
        cells = [*csv.DictReader(output.splitlines())]
        assert [(c["row"], c["metric"]) for c in cells] == [
            *itertools.product(("patch70", "mine"), ("l1", "psnr", "ssim"))
        ]
        assert all(float(cell["mean"]) for cell in cells), output

    def test_a_process_of_theirs_is_a_row_beside_flow_in_the_methods_table_on_other_pairs(
        self, place, tmp_path_factory
    ):
        place.run("p2pzoo", "new-plugin", "their-process", "--kind", "process")
        place.install(build_wheel(place.folder / "their-process", tmp_path_factory.mktemp("process")))
        draw_pairs(place.folder, 60, 64)
        (place.folder / "pairs.toml").write_text(PAIRS)
        table = (REPOSITORY / "benchmarks/methods.toml").read_text("utf-8")
        recipe = place.folder / "their-process/their-process.toml"
        (place.folder / "methods.toml").write_text(table + ROW.format(recipe=recipe) + TRIALS)
        document = place.json(
            "bench", "methods.toml", "--data", "pairs.toml", "--methods", "regression,flow,mine", "--profile", "smoke",
            "-s", "train.images=4", "-s", "generator.width=4", "--quiet",
        )  # fmt: skip
        rows = {row["name"]: row for row in document["rows"] if not row.get("target")}
        assert [*rows] == ["regression", "flow", "mine"]
        assert {len(row["runs"]) for row in rows.values()} == {3}, "one run in each of three folds"
        assert all(row["failed"] is None for row in rows.values())
        assert all(cell["mean"] is not None for row in rows.values() for cell in row["cells"].values())
        assert rows["mine"]["cells"].keys() == rows["flow"]["cells"].keys() >= {"l1"}
        assert rows["mine"]["cells"]["l1"]["mean"] > 0
        assert rows["mine"]["cells"]["l1"]["difference"]


@pytest.fixture(scope="module")
def walked(clean, tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    page = (REPOSITORY / "README.md").read_text("utf-8")
    section = page[page.index("## Your own images") : page.index("## Which method")]
    [recipe] = re.findall("```toml\n(.*?)```", section, re.DOTALL)
    [commands] = re.findall("```sh\n(.*?)```", section, re.DOTALL)
    [python, _] = re.findall("```python\n(.*?)```", page, re.DOTALL)
    (folder / "mine.toml").write_text(recipe)
    commands = commands.replace("run mine.toml", "run mine.toml --profile smoke --device cpu")
    commands = commands.replace("runs/mine/RUN ", "runs/mine/*/ ")
    python = python.partition("\nrun = ")[0].replace('"zoo:earth-small"', "__import__('glob').glob('runs/mine/*/')[0]")
    python = python.replace("plugins/p2pzoo_earth/earth_small/example.png", "photo.jpg").replace(
        "photo.png", "translated.png"
    )
    path = f"{clean.python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean.environment, "PATH": path}
    call(clean.python, "-c", TILES, cwd=folder, env=environment)
    call("bash", "-euc", commands, cwd=folder, env=environment)
    call(clean.python, "-c", python, cwd=folder, env=environment)
    return folder


@pytest.mark.slow
class TestNewcomer:
    """The README's way from two folders to a translated picture, as it is written, with the wheel alone."""

    def test_every_command_leaves_what_it_promises(self, walked):
        assert Image.open(walked / "pairs.png").width >= 2 * 256
        translated = Image.open(walked / "translated/photo.png")
        assert translated.size == (201, 215)
        assert json.loads(translated.text["p2pzoo"])["test_mode"] == "paper"
        assert Image.open(walked / "translated.png").tobytes() == translated.tobytes()

    def test_the_report_opens_in_a_browser(self, walked, browser):
        [report] = walked.glob("runs/mine/*/report.html")
        page = browser.new_page()
        page.goto(report.as_uri())
        assert "complete, 20 images" in page.locator("body").inner_text()
        assert page.locator("#tests ~ .tests figure").count() >= 2
        page.screenshot(path=str(walked / "report.png"), full_page=True)
        page.close()
