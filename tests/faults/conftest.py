"""What the fault campaign's tests share. One that is marked with a promise inflicts a fault and holds the promise.

One that asks for `chance` is repeated --times times, each time elsewhere; `benchmarks/faults.py` makes the long run.
"""

import contextlib
import hashlib
import json
import pkgutil
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from p2pzoo.checkpoint import load_tensors
from p2pzoo.errors import UserError
from p2pzoo.files import parse_json, parse_toml
from p2pzoo.images import write_png

STEP = "p2pzoo.training:advance"


def pytest_configure(config):
    config.addinivalue_line("markers", "promise(text): what holds under this fault")


def pytest_generate_tests(metafunc):
    if "chance" in metafunc.fixturenames:
        metafunc.parametrize("chance", range(metafunc.config.getoption("--times")), indirect=True)


@pytest.fixture
def chance(request):
    """Where and when the fault strikes."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.name}")


# --- a run -----------------------------------------------------------------------------------------------------


def only(runs):
    [folder] = {file.parent for file in runs.glob("*/*/.lock")}
    return folder


def images(checkpoint):
    return int(checkpoint.stem.removeprefix("images-"))


def outcome(runs):
    """What may not depend on a fault: log, numbers, digests of the other files."""
    folder = only(runs)
    files = [*(folder / name for name in ("model.safetensors", "stats.safetensors")), *folder.glob("samples/*")]
    return {
        "metrics.jsonl": (folder / "metrics.jsonl").read_bytes().decode(errors="replace").splitlines(),
        "numbers": json.loads((folder / "results.json").read_text())["metrics"],
        **{file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)},
    }


def whole(file):
    """Whether a file of a run is one."""
    try:
        match file.suffix:
            case ".safetensors":
                load_tensors(file)
            case ".json":
                parse_json(file.read_bytes())
            case ".toml":
                parse_toml(file.read_text("utf-8"))
            case ".png":
                Image.open(file).load()
            case _:
                return file.stat().st_size > 0
    except (UserError, OSError, ValueError):
        return False
    return True


def on_disk(folder):
    """{file: contents} of all that is whole."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file: file.read_bytes() for file in files if whole(file)}


def bytes_lost(before):
    """Of what was whole, what is now neither as it was nor superseded by what came later."""
    return sum(len(content) for file, content in before.items() if not _there(file, content, before))


def _there(file, content, before):
    if file.exists() and file.read_bytes() == content:
        return True
    if file.parent.name == "checkpoints":
        return any(images(other) >= images(file) and whole(other) for other in file.parent.glob("*.safetensors"))
    if file.suffix == ".jsonl" and file.exists():  # what came after the last checkpoint is written anew
        saved = [images(other) for other in before if other.parent.name == "checkpoints"]
        kept = [line for line in _lines(content) if line["images"] <= max(saved, default=0)]
        return all(line in _lines(file.read_bytes()) for line in kept)
    return file.exists() and whole(file)


def _lines(content):
    found = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            found.append(parse_json(line))
    return [line for line in found if isinstance(line, dict) and isinstance(line.get("images"), int)]


@contextlib.contextmanager
def after(function, act, *, call):
    """`act()` happens once, as call number `call` of "module:function" returns."""
    module, _, path = function.partition(":")
    owner, _, name = path.rpartition(".")
    original, calls = pkgutil.resolve_name(function), 0

    def acting(*args, **kwargs):
        nonlocal calls
        answer = original(*args, **kwargs)
        calls += 1
        if calls == call:
            act()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(f"{module}:{owner}"), name, acting)
        yield


class CutOff(BaseException):
    """The end of a process as the run sees it."""


@pytest.fixture(scope="session")
def runs_of():
    """The functions above, for test modules."""
    return SimpleNamespace(
        only=only, images=images, outcome=outcome, whole=whole, on_disk=on_disk, bytes_lost=bytes_lost, after=after,
        STEP=STEP, CutOff=CutOff,
    )  # fmt: skip


@pytest.fixture(scope="module")
def complete_once(run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("unharmed") / "runs"
    assert run(runs).exit_code == 0
    return runs


@pytest.fixture(scope="module")
def unharmed(complete_once):
    """The outcome of a run that met no fault."""
    return outcome(complete_once)


@pytest.fixture(scope="module")
def halfway_once(run, tmp_path_factory):
    def cut_off():
        raise CutOff

    runs = tmp_path_factory.mktemp("halfway") / "runs"
    with after(STEP, cut_off, call=33), pytest.raises(CutOff):
        run(runs)
    return runs


@pytest.fixture
def complete(complete_once, tmp_path):
    """A runs folder with a complete run."""
    return Path(shutil.copytree(complete_once, tmp_path / "complete"))


@pytest.fixture
def halfway(halfway_once, tmp_path):
    """A runs folder with a run that was cut off at image 33 of 40: checkpoints at 20 and 30, a log until 32."""
    return Path(shutil.copytree(halfway_once, tmp_path / "halfway"))


@pytest.fixture
def photos(tmp_path):
    """(folder, overrides that train on the pictures in it): eight pairs for training, two for the rest."""
    folder = tmp_path / "photos"
    drawn = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            write_png(folder / split / f"{number}.png", drawn.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    use = f'dataset={{use="side-by-side", root="{folder}"}}'
    return folder, (use,)


@pytest.fixture
def refused():
    """refused(answer): the last line of one that is an error of the user's."""

    def refused(answer):
        assert answer.exit_code == 2, answer.output
        assert "Traceback" not in answer.output
        return answer.output.splitlines()[-1]

    return refused


@pytest.fixture
def goes_on(run, record_property):
    """goes_on(runs, before, expected): the same command again ends as if nothing had happened, and nothing is lost of
    what was on disk `before` it (`on_disk`, of the moment after the fault)."""

    def goes_on(runs, before, expected, *overrides, flags=()):
        answer = run(runs, *overrides, flags=flags)
        assert answer.exit_code == 0, answer.output
        assert outcome(runs) == expected
        lost = bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "was complete" if answer.began is None else "went on from a checkpoint")
        assert lost == 0
        assert list(runs.rglob(".*.tmp")) == []
        return answer

    return goes_on
