"""What tests of runs that something disturbs share: to strike at a chosen moment, and what may not change by it."""

import contextlib
import hashlib
import json
import pkgutil

import pytest
from PIL import Image

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_json, parse_toml

STEP = "p2pzoo.training.loop:train_step"


class CutOff(BaseException):
    """The end of a process as the run sees it."""


def cut_off():
    raise CutOff


def only(runs):
    """The folder of the only run."""
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
    assert calls >= call, f"{function} was called {calls} times"
