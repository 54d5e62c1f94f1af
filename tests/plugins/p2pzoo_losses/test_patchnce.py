"""PatchNCE: its value by hand, which images it compares, what learns, and a resumed run."""

import math

import pytest
import timm
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from p2pzoo_losses.patchnce import NetworkPatchNCE, PatchNCE
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from p2pzoo.models.safetensors_io import load_tensors, loss_tensors
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs

SIZE = (32, 32)
CHANNELS = (5, 7)


class Encoder(nn.Module):
    """A G with two feature maps, of 16×16 and of 8×8 places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 7, 3, stride=2, padding=1)

    def features(self, x):
        h = self.first(x)
        return [h, self.second(h.relu())]


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Encoder()


def images(seed=0):
    return (torch.rand(3, 2, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1).unbind()


def step_outputs(x, y, y_hat, G):
    return StepOutputs(Batch(x, y, ("a", "b")), y_hat, G=G).for_generator()


def by_hand(loss, queries, keys, temperature):
    """The mean over maps, images and all places of −log softmax of the own place, place by place."""
    values = []
    for head, query, key in zip(loss.heads, queries, keys, strict=True):
        losses = []
        for image in range(len(query)):
            q, k = (F.normalize(head(each[image].flatten(1).T), dim=1).detach().double() for each in (query, key))
            for place in range(len(q)):
                logits = [float(q[place] @ other) / temperature for other in k]
                losses.append(math.log(sum(math.exp(each) for each in logits)) - logits[place])
        values.append(sum(losses) / len(losses))
    return sum(values) / len(values)


@pytest.mark.parametrize("keys", ["y", "x"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_with_all_places_it_is_the_papers_cross_entropy(keys, temperature, G):
    x, y, y_hat = images()
    loss = PatchNCE(3, 3, CHANNELS, keys=keys, places=256, width=6, temperature=temperature)
    expected = by_hand(loss, G.features(y_hat), G.features(y if keys == "y" else x), temperature)
    assert loss(step_outputs(x, y, y_hat, G)).item() == pytest.approx(expected, rel=1e-4)


def test_layers_are_those_of_the_encoder(G):
    x, y, y_hat = images()
    loss = PatchNCE(3, 3, CHANNELS, layers=(1,), places=64, width=6)
    assert loss.heads[0][0].in_features == 7
    expected = by_hand(loss, G.features(y_hat)[1:], G.features(y)[1:], 0.07)
    assert loss(step_outputs(x, y, y_hat, G)).item() == pytest.approx(expected, rel=1e-4)


def test_it_is_lower_for_the_target_than_for_another_image(G):
    x, y, y_hat = images()
    loss = PatchNCE(3, 3, CHANNELS)
    assert loss(step_outputs(x, y, y, G)) < 0.7 * loss(step_outputs(x, y, y_hat, G))


def test_without_a_difference_between_places_it_is_the_logarithm_of_their_number(G):
    constant = torch.full((1, 3, *SIZE), 0.5)
    G.first.padding = G.second.padding = 0
    loss = PatchNCE(3, 3, CHANNELS, places=16)
    assert loss(step_outputs(constant, constant, constant, G)).item() == pytest.approx(math.log(16), rel=1e-4)


def test_each_place_is_chosen_once(G):
    """A place that is chosen twice is its own negative: the loss could not get below log 2."""

    class OneHot(nn.Module):
        def features(self, images):
            return [torch.eye(64).view(1, 64, 8, 8).expand(len(images), -1, -1, -1)]

    x, y, _ = images()
    loss = PatchNCE(3, 3, (64,), places=60)
    loss.heads[0] = nn.Identity()
    for seed in range(3):
        torch.manual_seed(seed)
        assert loss(step_outputs(x, y, y, OneHot())).item() < 1e-3


def test_gradients_reach_the_translation_the_encoder_and_the_mlps_and_not_the_keys(G):
    x, y, y_hat = images()
    y, y_hat = y.requires_grad_(), y_hat.requires_grad_()
    loss = PatchNCE(3, 3, CHANNELS)
    loss(step_outputs(x, y, y_hat, G)).backward()
    assert y_hat.grad.any()
    assert y.grad is None
    assert all(
        p.grad.isfinite().all() and p.grad.any() for m in (G, loss) for n, p in m.named_parameters() if "weight" in n
    )


def test_features_in_half_precision_give_a_finite_loss_near_that_of_fp32(G):
    class Half(Encoder):
        def features(self, x):
            return [each.bfloat16() for each in super().features(x)]

    half = Half()
    half.load_state_dict(G.state_dict())
    x, y, y_hat = images()
    loss = PatchNCE(3, 3, CHANNELS, places=256)
    assert loss(step_outputs(x, y, y_hat, half)).item() == pytest.approx(
        loss(step_outputs(x, y, y_hat, G)).item(), rel=0.02
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 3, CHANNELS), {}, "takes images of 1 channel, and ŷ has 3: use patchnce-network"),
        ((3, 3, CHANNELS), {"layers": (2,)}, r"layers = \[2\]: G has features 0 to 1"),
        ((3, 3, CHANNELS), {"layers": ()}, r"layers = \[\]: G has features 0 to 1"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        PatchNCE(*arguments, **options)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return {"network": "test_resnet", "weights": str(path)}


class TestNetwork:
    @pytest.mark.parametrize("layers", [None, (3, 1)])
    def test_it_compares_the_feature_maps_of_the_network(self, layers, options):
        x, y, y_hat = images()
        loss = NetworkPatchNCE(3, 3, SIZE, layers=layers, places=1024, width=6, **options)
        maps = [loss.features(each) for each in (y_hat, y)]
        assert len(maps[0]) == (5 if layers is None else 2)
        small = slice(2, None) if layers is None else slice(None)  # place by place: the large maps take long
        loss.heads, full = loss.heads[small], loss.heads
        expected = by_hand(loss, *(each[small] for each in maps), 0.07)
        assert loss.contrast(*(each[small] for each in maps)).item() == pytest.approx(expected, rel=1e-4)
        loss.heads = full
        assert loss(step_outputs(x, y, y_hat, None)).item() > 0

    def test_only_its_mlps_learn_and_are_saved(self, options):
        loss = NetworkPatchNCE(3, 3, SIZE, **options).train()
        assert not loss.features.network.training
        trained = {name for name, parameter in loss.named_parameters() if parameter.requires_grad}
        assert trained == loss_tensors(loss).keys()
        assert all(name.startswith("heads.") for name in trained)

    def test_grey_inputs_and_other_channels(self, options):
        x, y, y_hat = images()
        assert NetworkPatchNCE(1, 3, SIZE, keys="x", **options)(step_outputs(x[:, :1], y, y_hat, None)) > 0
        with pytest.raises(ValueError, match='keys = "x" needs x of 1 or 3 channels, not 4'):
            NetworkPatchNCE(4, 3, SIZE, keys="x", **options)
        with pytest.raises(ValueError, match="patchnce-network needs grey or RGB images, 1 or 3 channels, not 2"):
            NetworkPatchNCE(3, 2, SIZE, **options)


def test_a_killed_run_resumes_with_bit_identical_results(run, tmp_path):
    overrides = ("losses.nce.use=patchnce", "losses.nce.width=8", "train.batch_size=2")
    assert run(tmp_path / "whole", *overrides).exit_code == 0
    with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *overrides)
    assert "resuming" in run(tmp_path / "killed", *overrides).output
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    whole, killed = (
        load_tensors(max(only(tmp_path / name).glob("checkpoints/*.safetensors")))[0] for name in ("whole", "killed")
    )
    assert "losses[nce].heads.2.2.weight" in whole
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
