"""The container's files: what they name exists, the base is pinned, the commands are p2pzoo's. Without Docker."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from p2pzoo.cli import main
from p2pzoo.config.recipe import find_recipe

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "benchmarks" / "docker"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def instructions():
    """(instruction, its arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(name):
    return [arguments for instruction, arguments in instructions() if instruction == name]


def is_ignored(path):
    """Whether the build leaves a file or folder out: the last pattern that fits it or a folder above it decides."""
    ignored = False
    for line in (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = [path.name] if line.startswith("**/") else [str(p) for p in (path, *path.parents) if str(p) != "."]
        if any(fnmatch.fnmatch(part, pattern) for part in parts):
            ignored = not line.startswith("!")
    return ignored


def copied():
    return [source for copy in of("COPY") if not copy.startswith("--from=") for source in copy.split()[:-1]]


def test_what_it_copies_exists_and_is_not_ignored():
    assert {"pyproject.toml", "README.md", "LICENSE"} <= {*copied()}, "what the wheel is built from"
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not is_ignored(Path(source)), source
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {*included} <= {*copied()}


@pytest.mark.parametrize("path", ["runs", "tests", ".git", "benchmarks/results", "p2pzoo/__pycache__", "data.zip"])
def test_runs_caches_and_results_stay_outside(path):
    assert is_ignored(Path(path))


def test_the_base_is_pinned_and_fits_the_python_that_p2pzoo_needs():
    for base in of("FROM"):
        version = re.match(r"python:(\d+)\.(\d+)\.\d+-slim-\w+", base)
        assert version, base
        needed = PYPROJECT["project"]["requires-python"].removeprefix(">=")
        assert tuple(map(int, version.groups())) >= tuple(map(int, needed.split(".")))


def test_pip_keeps_no_cache_and_the_versions_that_it_is_given_are_pinned():
    installs = [call for run in of("RUN") for call in re.findall(r"pip install[^&]*", run)]
    assert len(installs) == 3
    for call in installs:
        assert "--no-cache-dir" in call
        [package] = [word for word in call.split()[2:] if "==" in word or word.endswith(".whl")]
        assert re.search(r"==|\.whl$", package)
    [torch] = [value for name, _, value in (arg.partition("=") for arg in of("ARG")) if name == "TORCH"]
    [needed] = [need for need in PYPROJECT["project"]["dependencies"] if need.startswith("torch>=")]
    assert tuple(map(int, torch.split("."))) >= tuple(map(int, needed.removeprefix("torch>=").split(".")))


def test_it_does_not_run_as_root_and_its_commands_are_exec_forms_of_p2pzoo():
    assert of("USER")[-1] not in ("root", "0")
    [entrypoint], [command] = map(json.loads, of("ENTRYPOINT")), map(json.loads, of("CMD"))
    assert entrypoint[0] in PYPROJECT["project"]["scripts"]
    assert command == ["--help"]


def test_the_compose_file_builds_this_dockerfile_and_trains_a_shipped_recipe():
    yaml = pytest.importorskip("yaml")
    [service] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"].values()
    context = (DOCKER / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).samefile(DOCKER / "Dockerfile")
    assert ":latest" not in service["image"]
    assert all(volume.endswith(":/work") for volume in service["volumes"])
    name, *arguments = service["command"]
    command = main.get_command(main.make_context("p2pzoo", ["plugins"]), name)
    parsed = command.make_context(name, arguments)
    assert find_recipe(parsed.params["recipe"]).is_file()


def test_its_comments_for_a_gpu_are_what_compose_and_docker_take():
    yaml = pytest.importorskip("yaml")
    text = re.sub(r"^(\s*)# (args|deploy):", r"\1\2:", (DOCKER / "compose.yaml").read_text("utf-8"), flags=re.MULTILINE)
    [service] = yaml.safe_load(text)["services"].values()
    assert service["build"]["args"].keys() <= {arg.partition("=")[0] for arg in of("ARG")}
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert f"--build-arg TORCH_INDEX={service['build']['args']['TORCH_INDEX']}" in (DOCKER / "Dockerfile").read_text()
