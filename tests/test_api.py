"""The Python front: components by name, whole runs, and a snapshot of the names and signatures that people rely on."""

import inspect

import pytest
import torch

import p2pzoo
import p2pzoo.testing
from p2pzoo.api import Trained
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError

SNAPSHOT = {
    "p2pzoo.create": "(kind: str, name: str, **arguments: Any) -> Any",
    "p2pzoo.list_components": "(kind: str | None = None) -> list[str]",
    "p2pzoo.load": "(path: str | pathlib.Path, *, device: str = 'auto', precision: str = 'fp32') -> 'Model'",
    "p2pzoo.train": "(recipe: str | pathlib.Path, *, profile: str | None = None, "
    "overrides: collections.abc.Sequence[str] = (), runs: str | pathlib.Path = 'runs') -> 'Trained'",
    "p2pzoo.api.Trained": "(folder: 'Path', metrics: 'Mapping[str, float]', results: 'Mapping[str, Any]') -> None",
    "p2pzoo.api.Trained.load": "(self, *, device: 'str' = 'auto', precision: 'str' = 'fp32') -> 'Model'",
    "p2pzoo.testing.conformance": "(plugin: 'str', *, parameters: 'Mapping[str, Mapping[str, Any]] | None' = None, "
    "expected_failures: 'Mapping[str, str] | None' = None) -> 'Callable[[Trial], None]'",
}


def test_the_public_names_are_those_of_the_snapshot():
    assert set(p2pzoo.__all__) == {"__version__", "hookimpl", "create", "list_components", "load", "train"}
    assert set(p2pzoo.testing.__all__) == {
        "CHECKS", "Case", "DoesNotApply", "Finding", "Trial", "conformance", "trials_of"
    }  # fmt: skip


def test_the_public_signatures_are_those_of_the_snapshot():
    found = {}
    for name in SNAPSHOT:
        thing = p2pzoo
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
        found[name] = str(inspect.signature(thing)).replace("typing.", "")
    assert found == SNAPSHOT


def test_components_are_listed_by_kind():
    assert {"unet", "encoder-decoder"} <= set(p2pzoo.list_components("generator"))
    assert "unet" not in p2pzoo.list_components("loss")
    assert {name.partition(".")[0] for name in p2pzoo.list_components()} <= set(KINDS)
    assert "generator.unet" in p2pzoo.list_components()
    with pytest.raises(UserError, match="no kind 'generators': did you mean 'generator'"):
        p2pzoo.list_components("generators")


def test_a_name_that_two_plugins_claim_is_listed_with_both(install):
    install("other", 'import p2pzoo\n@p2pzoo.hookimpl\ndef register_losses(register):\n    register("l1", dict)\n')
    assert {"other:l1", "pix2pix:l1"} <= set(p2pzoo.list_components("loss"))
    assert "l1" not in p2pzoo.list_components("loss")


def test_a_network_is_made_by_name():
    G = p2pzoo.create("generator", "unet", in_channels=1, out_channels=3, size=(32, 64), width=4)
    assert G(torch.zeros(2, 1, 32, 64)).shape == (2, 3, 32, 64)


def test_a_network_is_made_for_256_px_if_nobody_says_otherwise():
    G = p2pzoo.create("generator", "unet", in_channels=3, out_channels=3, width=1)
    assert G.size_divisor == 256


def test_a_loss_and_a_dataset_are_made_by_name():
    assert p2pzoo.create("loss", "l1").side == "generator"
    assert p2pzoo.create("dataset", "earth", split="test", size=64, stride=256)[0].x.shape == (64, 64, 3)


def test_all_that_is_wrong_with_arguments_is_told_at_once():
    with pytest.raises(UserError) as told:
        p2pzoo.create("generator", "unet", in_chanels=3, out_channels=3, widht=32, norm="bach")
    assert sorted(told.value.faults) == [
        "generator 'unet' has no parameter 'in_chanels': did you mean 'in_channels'?",
        "generator 'unet' has no parameter 'widht': did you mean 'width'?",
        "generator 'unet' needs in_channels",
        "generator 'unet' norm = \"bach\": input should be 'batch', 'instance' or 'none'",
    ]
    with pytest.raises(UserError, match="no generator 'unett': did you mean 'unet'"):
        p2pzoo.create("generator", "unett", in_channels=3, out_channels=3)


def test_what_a_constructor_refuses_is_told_in_one_line():
    with pytest.raises(UserError, match=r"generator 'unet': size 30×30 does not fit"):
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


def test_a_recipe_that_is_not_there_is_the_callers_mistake(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        p2pzoo.train(tmp_path / "none.toml")
