"""Faults at a chosen moment of a run, and what must be the same in spite of them."""

import contextlib
import hashlib
import json
import pkgutil
import resource

import pytest
from PIL import Image

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_json, parse_toml

STEP = "p2pzoo.training.loop:train_step"


class SimulatedKill(BaseException):
    """Ends a run as a kill does: no part of p2pzoo catches it."""


def simulate_kill():
    raise SimulatedKill


def only(runs):
    """The folder of the only run in a runs folder."""
    [folder] = {file.parent for file in runs.glob("*/*/.lock")}
    return folder


def images(checkpoint):
    return int(checkpoint.stem.removeprefix("images-"))


def outcome(runs):
    """What a fault must not change: the log, the numbers, digests of the other files."""
    folder = only(runs)
    files = [*(folder / name for name in ("model.safetensors", "average.safetensors", "stats.safetensors"))]
    files = [file for file in (*files, *folder.glob("s*/*")) if file.exists()]  # samples/, snapshots/
    return {
        "metrics.jsonl": (folder / "metrics.jsonl").read_bytes().decode(errors="replace").splitlines(),
        "numbers": json.loads((folder / "results.json").read_text())["metrics"],
        **{file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)},
    }


def is_intact(file):
    """Whether a file of a run can be read."""
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
    """{file: content} of all intact files."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file: file.read_bytes() for file in files if is_intact(file)}


def bytes_lost(before):
    """Bytes of intact files that are now neither unchanged nor replaced by later ones."""
    return sum(len(content) for file, content in before.items() if not _is_kept(file, content, before))


def _is_kept(file, content, before):
    if file.exists() and file.read_bytes() == content:
        return True
    if file.parent.name == "checkpoints":
        return any(images(other) >= images(file) and is_intact(other) for other in file.parent.glob("*.safetensors"))
    if file.suffix == ".jsonl" and file.exists():  # lines after the last checkpoint are written again
        checkpoints = [images(other) for other in before if other.parent.name == "checkpoints"]
        kept = [line for line in _lines(content) if line["images"] <= max(checkpoints, default=0)]
        return all(line in _lines(file.read_bytes()) for line in kept)
    return file.exists() and is_intact(file)


def _lines(content):
    lines = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            lines.append(parse_json(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("images"), int)]


@contextlib.contextmanager
def largest_file(size):
    """Inside, no file of this process grows past `size` bytes: a quota that needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def after(function, act, *, call):
    """Call `act()` once, when call number `call` of "module:function" returns."""
    module, _, path = function.partition(":")
    owner, _, name = path.rpartition(".")
    original, calls = pkgutil.resolve_name(function), 0

    def acting(*args, **kwargs):
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == call:
            act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(f"{module}:{owner}"), name, acting)
        yield
    assert calls >= call, f"{function} was called {calls} times"
