"""First weights, and models that their own file is enough to build."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from p2pzoo import config
from p2pzoo.config.settings import Init
from p2pzoo.models.build import build, measures
from p2pzoo.models.initialization import initialize_weights, make_discriminator, make_generator
from p2pzoo.models.model_file import load_model, model_header
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError


def experiment(*overrides):
    return config.load("zoo:base.toml", "smoke", overrides)


def network():
    return nn.Sequential(nn.Conv2d(3, 64, 4), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 64, 4), nn.InstanceNorm2d(64))


def test_normal_is_the_papers_initialisation():
    net = network()
    initialize_weights(net, Init(), seed=0)
    for conv in (net[0], net[2]):
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert conv.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert not conv.bias.any()
    assert net[1].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert net[1].weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert not net[1].bias.any()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("xavier", lambda fan_in, fan_out: 0.5 * (2 / (fan_in + fan_out)) ** 0.5),
        ("kaiming", lambda fan_in, fan_out: (2 / fan_in) ** 0.5),
    ],
)
def test_the_other_initialisations_have_their_own_spread(weights, expected):
    conv = nn.Conv2d(32, 64, 4)
    initialize_weights(conv, Init(weights=weights, gain=0.5), seed=0)
    assert conv.weight.std().item() == pytest.approx(expected(32 * 16, 64 * 16), rel=0.05)


def test_orthogonal_rows_are_orthogonal_and_own_changes_nothing():
    conv = nn.Conv2d(4, 8, 4)
    initialize_weights(conv, Init(weights="orthogonal", gain=1.0), seed=0)
    rows = conv.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)
    before = conv.weight.clone()
    initialize_weights(conv, Init(weights="own"), seed=1)
    assert torch.equal(conv.weight, before)


@pytest.mark.parametrize("parametrized", [spectral_norm, weight_norm])
def test_first_weights_reach_a_convolution_whose_weight_is_computed(parametrized):
    plain, computed = nn.Conv2d(3, 64, 4), parametrized(nn.Conv2d(3, 64, 4))
    for conv in (plain, computed):
        initialize_weights(nn.Sequential(conv), Init(), seed=0)
    if parametrized is spectral_norm:
        assert torch.equal(computed.parametrizations.weight.original, plain.weight)
    else:
        torch.testing.assert_close(computed.weight, plain.weight)


class Grown(nn.Module):
    """Holds a smaller network, a, whose file is {"weight", "bias"}."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def load_smaller(self, tensors):
        if tensors.keys() != {"weight", "bias"}:
            raise ValueError("is no smaller one")
        return {**self.state_dict(), **{f"a.{name}": tensor for name, tensor in tensors.items()}}


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """begin(tensors): a Grown begun from a file of these, and one that was not begun from any."""

    def begin(tensors):
        save_tensors(tmp_path / "smaller.safetensors", tensors, {})
        monkeypatch.setattr("p2pzoo.models.build.build", lambda *_: Grown())
        made = experiment(f"init.generator={tmp_path / 'smaller.safetensors'}")
        return make_generator(made, (3, 3), (64, 64)), make_generator(experiment(), (3, 3), (64, 64))

    return begin


def test_a_generator_can_grow_from_a_smaller_one_that_it_holds(begin):
    smaller = nn.Linear(2, 2)
    grown, fresh = begin(smaller.state_dict())
    assert torch.equal(grown.a.weight, smaller.weight)
    assert torch.equal(grown.b.weight, fresh.b.weight)


def test_its_own_file_is_taken_as_it_is(begin):
    own = Grown()
    assert all(map(torch.equal, own.parameters(), begin(own.state_dict())[0].parameters()))


def test_and_any_other_file_is_refused_in_one_line(begin):
    with pytest.raises(UserError, match=r"smaller.safetensors: is no smaller one$"):
        begin({"weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"'a.weight' is"):
        begin({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)})


def test_first_weights_depend_on_the_seed_alone():
    def weights(seed):
        made = experiment(f"seed={seed}")
        return make_generator(made, (3, 3), (64, 64)), make_discriminator(made, (3, 3), (64, 64))

    torch.manual_seed(123)
    (G1, D1), (G2, D2), (G3, _) = weights(0), weights(0), weights(1)
    for a, b in zip([*G1.parameters(), *D1.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(G1.parameters()), next(G3.parameters()))


def test_a_recipe_without_a_discriminator_makes_none():
    assert make_discriminator(experiment('drop=["discriminator", "gan_loss"]'), (3, 3), (64, 64)) is None


def save(path, G, made, channels=(3, 3), size=(64, 64)):
    header = model_header(made, G, made.dataset.build(split="val"), channels, size)
    from p2pzoo.models.safetensors_io import save_model

    save_model(path, G, header)


def test_a_model_file_alone_is_enough_to_translate(tmp_path):
    made = experiment("generator.noise=gaussian")
    G = make_generator(made, (1, 4), (64, 128))
    save(tmp_path / "model.safetensors", G, made, (1, 4), (64, 128))
    again, header = load_model(tmp_path / "model.safetensors", registry())
    assert header["generator"]["use"] == "pix2pix:unet"
    assert (header["in_channels"], header["out_channels"], header["size"], header["size_divisor"]) == (
        1,
        4,
        [64, 128],
        64,
    )
    assert header["test_mode"] == "paper"
    x = torch.rand(1, 1, 64, 128) * 2 - 1
    assert torch.equal(translate(again, x, "paper"), translate(G, x, "paper"))


def test_fine_tuning_starts_from_a_model_file(tmp_path):
    G = make_generator(experiment("seed=9"), (3, 3), (64, 64))
    save(tmp_path / "model.safetensors", G, experiment("seed=9"))
    tuned = make_generator(experiment(f"init.generator={tmp_path / 'model.safetensors'}"), (3, 3), (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(G.parameters(), tuned.parameters(), strict=True))


def test_model_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    G = make_generator(experiment(), (3, 3), (64, 64))
    path = tmp_path / "model.safetensors"
    save(path, G, experiment())
    with pytest.raises(UserError, match="the network's is"):
        make_generator(experiment(f"init.generator={path}", "generator.width=9"), (3, 3), (64, 64))

    tensors, header = load_tensors(path)
    for change, message in [
        ({"generator": {"use": "pix2pix:vnet", "params": {}}}, "no generator 'pix2pix:vnet'"),
        ({"generator": {"use": "pix2pix:unet", "params": {"wdith": 3}}}, "did you mean 'width'"),
        ({"generator": None}, "holds no generator"),
        ({"x_range": [0, 0]}, "header is damaged: x_range: .*first number is to be the lower one"),
        ({"y_range": [1, -1]}, "header is damaged: y_range: .*first number is to be the lower one"),
    ]:
        save_tensors(path, tensors, {**header, **change})
        with pytest.raises(UserError, match=message):
            load_model(path, registry())


def test_a_model_header_says_nothing_of_time_or_place(tmp_path):
    G = make_generator(experiment(), (3, 3), (64, 64))
    save(tmp_path / "a.safetensors", G, experiment())
    _, header = load_tensors(tmp_path / "a.safetensors")
    assert str(tmp_path) not in json.dumps(header)
    save(tmp_path / "b.safetensors", G, experiment())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_constructor_that_refuses_is_named():
    with pytest.raises(UserError, match="generator 'unet': size 50×64 does not fit"):
        build(experiment().generator, (3, 3), (50, 64))


BRINGS = """
import torch
from torch import nn
import p2pzoo

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("computed", torch.arange(3.0), persistent=False)

    def init_own_weights(self):
        nn.init.uniform_(self.conv.weight, 5, 6)

    def forward(self, x):
        return self.conv(x) + self.computed[:, None, None]

class Mine(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, gains: Path | None = None):
        super().__init__()
        self.fixed, self.drawn = Fixed(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return torch.tanh(self.drawn(self.fixed(x)))

@p2pzoo.hookimpl
def register_generators(register):
    register("mine", Mine)
"""


@pytest.fixture
def mine(install):
    install("brings", BRINGS.replace("import torch\n", "import torch\nfrom pathlib import Path\n", 1))
    return lambda *overrides: experiment('generator.use="mine"', *overrides)


def test_parts_that_bring_their_own_weights_keep_them_and_a_seed_gives_the_same(mine):
    G, again, other = (make_generator(mine(f"seed={seed}"), (3, 3), (64, 64)) for seed in (0, 0, 1))
    assert G.fixed.conv.weight.min() >= 5
    assert G.drawn.weight.abs().max() < 0.2
    assert torch.equal(G.fixed.conv.weight, again.fixed.conv.weight)
    assert not torch.equal(G.fixed.conv.weight, other.fixed.conv.weight)


def test_a_generator_that_starts_from_a_file_takes_all_weights_from_there(mine, tmp_path):
    G = make_generator(mine(), (3, 3), (64, 64))
    with torch.no_grad():
        G.fixed.conv.weight.fill_(7)
    save_tensors(tmp_path / "G.safetensors", G.state_dict(), {})
    started = make_generator(mine(f'init.generator="{tmp_path / "G.safetensors"}"'), (3, 3), (64, 64))
    assert torch.equal(started.fixed.conv.weight, G.fixed.conv.weight)


def test_a_model_file_holds_no_path_and_what_it_lacks_the_constructor_computes(mine, tmp_path):
    recipe = mine('generator.gains="/somewhere/gains.bin"')
    G = make_generator(recipe, (3, 3), (64, 64))
    header = model_header(recipe, G, recipe.dataset.build(split="test"), (3, 3), (64, 64))
    assert "somewhere" not in json.dumps(header)
    save_tensors(tmp_path / "G.safetensors", G.state_dict(), header)
    random_numbers = torch.get_rng_state()
    loaded, _ = load_model(tmp_path / "G.safetensors", registry())
    assert torch.equal(random_numbers, torch.get_rng_state())
    assert torch.equal(loaded.fixed.computed, torch.arange(3.0))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(x), G(x))


def test_the_arithmetic_of_the_unet_is_that_of_its_layers():
    """Each convolution: outputs × what one is a sum of; each transposed one: inputs × what one is spread over."""
    G = experiment("generator.width=16").generator
    down = [(3, 16), (16, 32), (32, 64), (64, 128), *[(128, 128)] * 4]  # 4×4 kernels, from 256 px to 1
    up = [(128, 128), *[(256, 128)] * 3, (256, 64), (128, 32), (64, 16), (32, 3)]  # and back; inputs are joined
    by_hand = sum(16 * a * b * (128 >> level) ** 2 for level, (a, b) in enumerate(down))
    by_hand += sum(16 * a * b * (1 << level) ** 2 for level, (a, b) in enumerate(up))
    assert measures(G, (3, 3), (256, 256)).macs == by_hand
