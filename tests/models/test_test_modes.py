"""Test modes: results are reproducible, and the network does not change."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.test_modes import optimize_for_eval, translate
from p2pzoo.plugin import FileLayout


class Noisy(nn.Module):
    """Batch norm and dropout, as in the generators of pix2pix."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Noisy()


X = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


def test_paper_mode_gives_the_same_pixels_alone_or_in_a_batch(G):
    together = translate(G, X, "paper")
    alone = torch.cat([translate(G, X[i : i + 1], "paper") for i in (2, 1, 0)])
    assert torch.equal(together, alone.flip(0))


def test_paper_mode_does_not_depend_on_the_rounding_of_the_scaled_pixels(G):
    levels = torch.arange(64.0).reshape(1, 1, 8, 8)
    one_way, other_way = levels / 127.5 - 1, levels.mul(2 / 255).sub(1)
    assert not torch.equal(one_way, other_way)
    torch.testing.assert_close(translate(G, one_way, "paper"), translate(G, other_way, "paper"))


def test_paper_mode_drops_out_and_uses_the_images_own_statistics(G):
    with torch.no_grad():
        G.layers[2].p = 0.0
    expected = G.train()(X[:1])
    torch.testing.assert_close(translate(G, X[:1], "paper"), expected.detach())
    G.layers[2].p = 0.5
    assert not torch.allclose(translate(G, X[:1], "paper"), expected)
    assert not torch.equal(translate(G, X[:1], "paper", seed=1), translate(G, X[:1], "paper"))


def test_eval_mode_uses_running_statistics_and_no_dropout(G):
    for _ in range(5):
        G.train()(torch.randn(8, 1, 8, 8) * 3 + 1)
    expected = G.eval()(X)
    assert torch.equal(translate(G, X, "eval"), expected)


@pytest.mark.parametrize("mode", ["paper", "eval"])
@pytest.mark.parametrize("training", [True, False])
def test_translate_restores_buffers_modes_and_random_state(G, mode, training):
    G.train(training)
    G.layers[1].eval()  # a frozen norm stays frozen
    state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    translate(G, X, mode)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in G.state_dict().items())
    assert (G.training, G.layers[1].training, G.layers[1].track_running_stats) == (training, False, True)
    assert not translate(G, X, mode).requires_grad


class ReadsBetweenLayers(Noisy):
    """Uses the output of its convolution twice, so its norm cannot be folded."""

    def forward(self, x):
        convolved = self.layers[0](x)
        return convolved.mean(1, keepdim=True) + self.layers[1:](convolved)


def test_eval_mode_is_optimized_on_a_copy(G):
    for _ in range(5):
        G.train()(torch.randn(8, 1, 8, 8) * 3 + 1)
    expected = translate(G, X, "eval")
    fast = optimize_for_eval(G, X[:1])
    assert fast is not G
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    with torch.no_grad():
        torch.testing.assert_close(fast(X), expected)
    assert torch.equal(translate(G, X, "eval"), expected)


def test_a_generator_whose_norms_cannot_be_folded_is_returned_unchanged_with_a_warning():
    torch.manual_seed(0)
    G = ReadsBetweenLayers()
    for _ in range(5):
        G.train()(torch.randn(8, 1, 8, 8) * 3 + 1)
    with pytest.warns(UserWarning, match="folding the batch norms into convolutions changes the output"):
        assert optimize_for_eval(G, X[:1]) is G
    assert not G.training


class ChangesBuffers(nn.Module):
    """Training changes its buffers: one in place, like batch norm, one by replacement."""

    def __init__(self):
        super().__init__()
        self.layer = spectral_norm(nn.Conv2d(1, 1, 3, padding=1))
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x):
        self.total = self.total + x.mean()
        return self.layer(x) + self.total


def test_paper_mode_restores_all_buffers_after_each_image():
    torch.manual_seed(0)
    G = ChangesBuffers()
    state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    together = translate(G, X, "paper")
    alone = torch.cat([translate(G, X[i : i + 1], "paper") for i in (2, 1, 0)])
    assert torch.equal(together, alone.flip(0))
    assert all(torch.equal(tensor, state[name]) for name, tensor in G.state_dict().items())


class AlwaysRandom(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return torch.tanh(self.conv(x) + 0.5 * torch.randn_like(x))


def test_what_g_draws_in_eval_mode_is_seeded_by_the_image():
    G, x = AlwaysRandom(), torch.rand(2, 3, 8, 8) * 2 - 1
    state = torch.get_rng_state()
    first = translate(G, x, "eval")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(translate(G, x, "eval"), first)
    assert torch.equal(translate(G, x[1:], "eval"), first[1:]), "whatever else is in the batch"
    assert not torch.equal(translate(G, x, "eval", seed=1), first)


def test_a_model_with_such_a_generator_gives_one_picture_for_an_image(tmp_path):
    header = ModelHeader(
        "generator", "mine", {}, 3, 3, (8, 8), run="r", size_divisor=1, test_mode="eval", file_layout=FileLayout()
    )
    model = Model(AlwaysRandom(), header, torch.device("cpu"))
    photo = np.zeros((8, 12, 3), np.uint8)
    first = model.translate(photo)
    torch.rand(3)
    assert np.array_equal(model.translate(photo), first)


def test_tiles_of_such_a_generator_are_refused_since_each_would_draw_its_own_noise():
    header = ModelHeader("generator", "mine", {}, 3, 3, (8, 8), run="r", size_divisor=1, test_mode="eval")
    model = Model(AlwaysRandom(), header, torch.device("cpu"))
    with pytest.raises(ValueError, match="the generator draws its own noise, which would differ from tile to tile"):
        model.translate(np.zeros((8, 12, 3), np.uint8), tile=4, scale="native")
