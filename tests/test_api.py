"""The Python API: components by name, whole runs, errors, and a snapshot of public names and signatures."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import p2pzoo
import p2pzoo.plugin
import p2pzoo.testing
from p2pzoo.api import Evaluated, Trained
from p2pzoo.cli.catalogue import list_command
from p2pzoo.cli.show import show_command
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import PeerProcessError

SNAPSHOT = Path(__file__).with_name("public_api.txt")
OPERATORS = ("__call__", "__getitem__", "__len__")
HEADER = "The public API: names and signatures. After a change that is meant, run `python tests/test_api.py`.\n\n"


def public_api():
    """One line for each public name of p2pzoo, p2pzoo.plugin and p2pzoo.testing, and for each member of its classes."""
    lines = []
    for module in (p2pzoo, p2pzoo.plugin, p2pzoo.testing):
        for name in sorted(module.__all__):
            lines += describe(f"{module.__name__}.{name}", getattr(module, name))
    return (
        HEADER
        + "\n".join([*lines, *describe("p2pzoo.api.Trained", Trained), *describe("p2pzoo.api.Evaluated", Evaluated)])
        + "\n"
    )


def describe(path, value):
    if inspect.isclass(value):
        has_own_init = "__init__" in vars(value) and not getattr(value, "_is_protocol", False)
        yield f"{path}{signature(value) if has_own_init else ''}"
        is_plain = not dataclasses.is_dataclass(value)  # the fields of a dataclass are in its signature
        for name, annotation in (inspect.get_annotations(value) if is_plain else {}).items():
            yield f"{path}.{name}: {annotation}"
        for name, member in vars(value).items():
            if isinstance(member, property) and not name.startswith("_"):
                yield f"{path}.{name}: {member.fget.__annotations__['return']}"
            elif inspect.isfunction(member) and (
                not name.startswith("_") or name in ("__call__", "__getitem__", "__len__")
            ):
                yield f"{path}.{name}{signature(member)}"
            elif hasattr(member, "attrname") and not name.startswith("_"):  # functools.cached_property
                yield f"{path}.{name}: {member.func.__annotations__['return']}"
    elif inspect.isfunction(value):
        yield f"{path}{signature(value)}"
    else:
        yield path


class Unquoted(str):
    """An annotation that is text in its module; a signature would show it in quotes."""

    def __repr__(self):
        return str(self)


def signature(function):
    shown = inspect.signature(function)
    parameters = [each.replace(annotation=unquoted(each.annotation)) for each in shown.parameters.values()]
    shown = shown.replace(parameters=parameters, return_annotation=unquoted(shown.return_annotation))
    return str(shown).replace("typing.", "").replace("collections.abc.", "").replace("pathlib.", "")


def unquoted(annotation):
    return Unquoted(annotation) if isinstance(annotation, str) else annotation


def test_public_names_and_signatures_are_those_of_the_snapshot():
    assert public_api() == SNAPSHOT.read_text("utf-8")


def test_dir_shows_the_public_names_alone():
    code = "import p2pzoo, p2pzoo.utils.files; assert dir(p2pzoo) == sorted(p2pzoo.__all__), dir(p2pzoo)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dir(p2pzoo) == sorted(p2pzoo.__all__)  # here, many submodules were imported
    assert all(hasattr(p2pzoo, name) for name in p2pzoo.__all__)


def test_importing_p2pzoo_imports_no_torch():
    code = "import sys, p2pzoo; assert p2pzoo.UserError and p2pzoo.OutOfMemory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_errors_have_one_base_class():
    from p2pzoo.runs.monitor import Diverged

    for error in (p2pzoo.UserError, p2pzoo.DamagedFile, p2pzoo.OutOfMemory, Diverged, PeerProcessError):
        assert issubclass(error, p2pzoo.Error)
    for error in (p2pzoo.DamagedFile, p2pzoo.OutOfMemory, Diverged):
        assert issubclass(error, p2pzoo.UserError)
    assert not issubclass(PeerProcessError, p2pzoo.UserError)


def test_a_damaged_model_file_is_a_user_error(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(p2pzoo.DamagedFile, match=r"model\.safetensors"):
        p2pzoo.load(tmp_path / "model.safetensors")


def test_components_are_listed_by_kind():
    assert {"unet", "encoder-decoder"} <= set(p2pzoo.list_components("generator"))
    assert "unet" not in p2pzoo.list_components("loss")
    assert {name.partition(".")[0] for name in p2pzoo.list_components()} <= set(KINDS)
    assert "generator.unet" in p2pzoo.list_components()
    with pytest.raises(p2pzoo.UserError, match="no kind 'generators': did you mean 'generator'"):
        p2pzoo.list_components("generators")
    with pytest.raises(p2pzoo.UserError, match="no kind 'command'"):
        p2pzoo.list_components("command")


def test_texts_that_list_the_kinds_list_all():
    for text in (p2pzoo.list_components.__doc__, list_command.help, show_command.help):
        assert set(KINDS) <= set(re.findall(r"\w+", text))


def test_a_name_that_two_plugins_register_is_listed_with_both(install):
    install("other", 'import p2pzoo\n@p2pzoo.hookimpl\ndef register_losses(register):\n    register("l1", dict)\n')
    assert {"other:l1", "pix2pix:l1"} <= set(p2pzoo.list_components("loss"))
    assert "l1" not in p2pzoo.list_components("loss")


def test_a_network_is_created_by_name():
    G = p2pzoo.create("generator", "unet", in_channels=1, out_channels=3, size=(32, 64), width=4)
    assert G(torch.zeros(2, 1, 32, 64)).shape == (2, 3, 32, 64)


def test_a_network_is_created_for_256_px_by_default():
    G = p2pzoo.create("generator", "unet", in_channels=3, out_channels=3, width=1)
    assert G.size_divisor == 256


def test_a_loss_and_a_dataset_are_created_by_name():
    assert p2pzoo.create("loss", "l1").side == "generator"
    assert p2pzoo.create("dataset", "earth", split="test", size=64, stride=256)[0].x.shape == (64, 64, 3)


def test_all_wrong_arguments_are_reported_at_once():
    with pytest.raises(p2pzoo.UserError) as caught:
        p2pzoo.create("generator", "unet", in_chanels=3, out_channels=3, widht=32, norm="bach")
    assert sorted(caught.value.faults) == [
        "generator 'unet' has no parameter 'in_chanels': did you mean 'in_channels'?",
        "generator 'unet' has no parameter 'widht': did you mean 'width'?",
        "generator 'unet' needs in_channels",
        "generator 'unet' norm = \"bach\": input should be 'batch', 'instance', 'none' or 'group'",
    ]
    with pytest.raises(p2pzoo.UserError, match="no generator 'unett': did you mean 'unet'"):
        p2pzoo.create("generator", "unett", in_channels=3, out_channels=3)


def test_an_error_of_a_constructor_is_one_line():
    with pytest.raises(p2pzoo.UserError, match=r"generator 'unet': size 30×30 does not fit"):
        p2pzoo.create("generator", "unet", in_channels=3, out_channels=3, size=(30, 30))


def test_a_recipe_is_trained_and_its_model_loaded(tiny, tmp_path):
    threads = torch.get_num_threads()
    try:
        trained = p2pzoo.train(tiny, profile="smoke", overrides=["train.images=4"], runs=tmp_path)
        again = p2pzoo.train(str(tiny), profile="smoke", overrides=["train.images=4"], runs=str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert isinstance(trained, Trained)
    assert trained.folder.parent == tmp_path / "tiny"
    assert {"l1", "psnr"} <= set(trained.metrics)
    assert trained.metrics["l1"] == trained.results["metrics"]["l1"]["value"]
    assert again == trained
    assert trained.load(device="cpu").run == trained.results["id"]


def test_the_seed_of_a_training_is_an_argument(tiny, tmp_path, monkeypatch):
    from p2pzoo.training import run_experiment

    seeds = []

    def stop(experiment, *_args, **_kwargs):
        seeds.append(experiment.seed)
        raise p2pzoo.UserError("stop here")

    monkeypatch.setattr(run_experiment, "run_experiment", stop)
    for arguments in ({}, {"seed": 3}, {"seed": 3, "overrides": ["seed=5"]}):
        with pytest.raises(p2pzoo.UserError, match="stop here"):
            p2pzoo.train(tiny, profile="smoke", runs=tmp_path, **arguments)
    assert seeds == [0, 3, 3]
    with pytest.raises(p2pzoo.UserError, match="seed = -1: give an integer from 0"):
        p2pzoo.train(tiny, profile="smoke", seed=-1)


def test_a_missing_recipe_is_a_user_error(tmp_path):
    with pytest.raises(p2pzoo.UserError, match="no such recipe"):
        p2pzoo.train(tmp_path / "none.toml")


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), "utf-8")
