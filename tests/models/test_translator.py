"""What an evaluation asks of G: samples of an image are those of `translate`, and no pass is made in vain."""

import pytest
import torch
from torch import nn

from p2pzoo.config.settings import Translations
from p2pzoo.models import translator as module
from p2pzoo.models.test_modes import translate
from p2pzoo.models.translator import Translator


class Counting(nn.Module):
    """A G with dropout in training mode; with `draws` it draws in eval mode too. It counts its calls."""

    def __init__(self, *, dropout=0.5, draws=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(dropout))
        self.draws, self.calls = draws, 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(self.layers(x) + (torch.randn_like(x) if self.draws else 0))


X = torch.linspace(-1, 1, 4 * 3 * 64).reshape(4, 3, 8, 8)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("test_mode", ["paper", "eval"])
def test_samples_are_the_translations_of_the_first_seeds(test_mode, together):
    G = Counting(draws=True)
    translate_x = Translator(G, Translations(test_mode=test_mode, test_batch=together))
    for x in X.split(together):
        samples = translate_x(x, 3)
        expected = [translate(G, x, test_mode, seed=seed, together=together) for seed in range(3)]
        assert all(torch.equal(*pair) for pair in zip(samples, expected, strict=True))
        assert not torch.equal(samples[0], samples[1])
        [alone] = translate_x(x)
        assert torch.equal(alone, samples[0])


@pytest.mark.parametrize(("test_mode", "dropout"), [("eval", 0.5), ("paper", 0.0)])
def test_a_g_that_draws_no_random_numbers_is_asked_once(test_mode, dropout):
    G = Counting(dropout=dropout)
    [y_hat] = Translator(G, Translations(test_mode=test_mode))(X[:1], 19)
    assert G.calls == 1
    assert torch.equal(y_hat, translate(G, X[:1], test_mode, seed=5))


def test_each_sample_is_one_pass():
    G = Counting()
    assert len(Translator(G, Translations())(X[:1], 5)) == 5
    assert G.calls == 5


def test_whether_g_draws_in_eval_mode_is_found_out_once():
    G = Counting(draws=True)
    translate_x = Translator(G, Translations(test_mode="eval"))
    translate_x(X[:1], 2)
    assert G.calls == 3
    translate_x(X[1:2], 2)
    assert G.calls == 5


def test_images_of_any_size_are_padded_and_cut():
    G = Counting()
    x = torch.rand(1, 3, 7, 10)
    for y_hat in Translator(G, Translations(), size_divisor=4)(x, 2):
        assert y_hat.shape == x.shape


def test_the_first_pass_is_not_timed_and_times_are_of_single_images(monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(module, "_wait_and_read_clock", lambda device: float(next(clock)))
    translate_x = Translator(Counting(), Translations(test_batch=2))
    translate_x(X[:2])
    assert translate_x.seconds == []
    translate_x(X[2:], 3)
    assert translate_x.seconds == [3.0, 3.0, 3.0]
