"""Initial weights: by [init], by the networks' own code, from a file."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from p2pzoo import config
from p2pzoo.config.settings import Init
from p2pzoo.models import initialization
from p2pzoo.models.initialization import initialize_weights, make_discriminator, make_generator
from p2pzoo.models.load import load_model
from p2pzoo.models.model_file import build_header
from p2pzoo.models.safetensors_io import load_tensors, save_model, save_tensors
from p2pzoo.utils.errors import UserError


def load_experiment(*overrides):
    return config.load("zoo:base.toml", "smoke", overrides)


def small_network():
    return nn.Sequential(nn.Conv2d(3, 64, 4), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 64, 4), nn.InstanceNorm2d(64))


# --- [init] ------------------------------------------------------------------------------------------------------


def test_normal_is_the_papers_initialisation():
    network = small_network()
    initialize_weights(network, Init(), seed=0)
    for conv in (network[0], network[2]):
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert conv.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert not conv.bias.any()
    assert network[1].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert network[1].weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert not network[1].bias.any()


@pytest.mark.parametrize(
    ("weights", "expected_std"),
    [
        ("xavier", lambda fan_in, fan_out: 0.5 * (2 / (fan_in + fan_out)) ** 0.5),
        ("kaiming", lambda fan_in, fan_out: (2 / fan_in) ** 0.5),
    ],
)
def test_xavier_and_kaiming_have_the_standard_deviation_of_their_papers(weights, expected_std):
    conv = nn.Conv2d(32, 64, 4)
    initialize_weights(conv, Init(weights=weights, gain=0.5), seed=0)
    assert conv.weight.std().item() == pytest.approx(expected_std(32 * 16, 64 * 16), rel=0.05)


def test_orthogonal_rows_are_orthogonal_and_own_changes_nothing():
    conv = nn.Conv2d(4, 8, 4)
    initialize_weights(conv, Init(weights="orthogonal", gain=1.0), seed=0)
    rows = conv.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)
    before = conv.weight.clone()
    initialize_weights(conv, Init(weights="own"), seed=1)
    assert torch.equal(conv.weight, before)


@pytest.mark.parametrize("parametrize", [spectral_norm, weight_norm])
def test_a_parametrized_weight_is_initialised_like_a_plain_one(parametrize):
    plain, parametrized = nn.Conv2d(3, 64, 4), parametrize(nn.Conv2d(3, 64, 4))
    for conv in (plain, parametrized):
        initialize_weights(nn.Sequential(conv), Init(), seed=0)
    if parametrize is spectral_norm:
        assert torch.equal(parametrized.parametrizations.weight.original, plain.weight)
    else:
        torch.testing.assert_close(parametrized.weight, plain.weight)


def test_initial_weights_depend_on_the_seed_alone():
    def make_both(seed):
        recipe = load_experiment(f"seed={seed}")
        return make_generator(recipe, (3, 3), (64, 64)), make_discriminator(recipe, (3, 3), (64, 64))

    torch.manual_seed(123)
    (G1, D1), (G2, D2), (G3, _) = make_both(0), make_both(0), make_both(1)
    for a, b in zip([*G1.parameters(), *D1.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(G1.parameters()), next(G3.parameters()))


def test_a_recipe_without_a_discriminator_gives_none():
    recipe = load_experiment('drop=["discriminator", "gan_loss"]')
    assert make_discriminator(recipe, (3, 3), (64, 64)) is None


# --- from the file of a smaller network ----------------------------------------------------------------------------


class Larger(nn.Module):
    """Contains a smaller network, `a`, whose file is {"weight", "bias"}."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def load_smaller(self, tensors):
        if tensors.keys() != {"weight", "bias"}:
            raise ValueError("not a smaller network")
        return {**self.state_dict(), **{f"a.{name}": tensor for name, tensor in tensors.items()}}


@pytest.fixture
def make_larger(tmp_path, monkeypatch):
    """make_larger(tensors): a Larger that starts from a file of these tensors, and one that starts from no file."""

    def make_larger(tensors):
        save_tensors(tmp_path / "smaller.safetensors", tensors, {})
        monkeypatch.setattr(initialization, "build_network", lambda *_: Larger())
        recipe = load_experiment(f"init.generator={tmp_path / 'smaller.safetensors'}")
        return make_generator(recipe, (3, 3), (64, 64)), make_generator(load_experiment(), (3, 3), (64, 64))

    return make_larger


def test_a_generator_can_start_from_the_file_of_a_smaller_one(make_larger):
    smaller = nn.Linear(2, 2)
    expanded, fresh = make_larger(smaller.state_dict())
    assert torch.equal(expanded.a.weight, smaller.weight)
    assert torch.equal(expanded.b.weight, fresh.b.weight)


def test_a_file_of_the_same_network_is_loaded_unchanged(make_larger):
    larger = Larger()
    assert all(map(torch.equal, larger.parameters(), make_larger(larger.state_dict())[0].parameters()))


def test_a_file_of_another_network_is_refused_in_one_line(make_larger):
    with pytest.raises(UserError, match=r"smaller.safetensors: not a smaller network$"):
        make_larger({"weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"the shape of tensor 'a.weight' is"):
        make_larger({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)})


# --- from a model file -----------------------------------------------------------------------------------------------


def save_generator(path, G, recipe):
    save_model(path, G, build_header(recipe, G, recipe.dataset.build(split="val"), (3, 3), (64, 64)))


def test_fine_tuning_starts_from_a_model_file(tmp_path):
    file, recipe = tmp_path / "model.safetensors", load_experiment("seed=9")
    G = make_generator(recipe, (3, 3), (64, 64))
    save_generator(file, G, recipe)
    tuned = make_generator(load_experiment(f"init.generator={file}"), (3, 3), (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(G.parameters(), tuned.parameters(), strict=True))


def test_weights_of_another_shape_are_refused(tmp_path):
    file, recipe = tmp_path / "model.safetensors", load_experiment()
    save_generator(file, make_generator(recipe, (3, 3), (64, 64)), recipe)
    with pytest.raises(UserError, match="the network's is"):
        make_generator(load_experiment(f"init.generator={file}", "generator.width=9"), (3, 3), (64, 64))


# --- networks that initialise parts themselves -----------------------------------------------------------------------


def test_modules_with_init_own_weights_draw_them_by_the_seed(own_weights):
    G, again, other = (make_generator(own_weights(f"seed={seed}"), (3, 3), (64, 64)) for seed in (0, 0, 1))
    assert G.fixed.conv.weight.min() >= 5
    assert G.conv.weight.abs().max() < 0.2, "the others are initialised by [init]"
    assert torch.equal(G.fixed.conv.weight, again.fixed.conv.weight)
    assert not torch.equal(G.fixed.conv.weight, other.fixed.conv.weight)


def test_a_generator_that_starts_from_a_file_takes_all_weights_from_it(own_weights, tmp_path):
    G = make_generator(own_weights(), (3, 3), (64, 64))
    with torch.no_grad():
        G.fixed.conv.weight.fill_(7)
    save_tensors(tmp_path / "G.safetensors", G.state_dict(), {})
    loaded = make_generator(own_weights(f'init.generator="{tmp_path / "G.safetensors"}"'), (3, 3), (64, 64))
    assert torch.equal(loaded.fixed.conv.weight, G.fixed.conv.weight)


# --- weights that no file would hold ---

FORGETFUL = """
import torch
from torch import nn
import p2pzoo

class LoRA(nn.Module):
    \"\"\"As in a LoRA: the state dict has no frozen weights.\"\"\"

    def __init__(self, in_channels: int, out_channels: int, *, remember: bool = False):
        super().__init__()
        self.remember = remember
        self.frozen = nn.Conv2d(in_channels, out_channels, 1).requires_grad_(False)
        self.down = nn.Conv2d(in_channels, out_channels, 1)

    def state_dict(self, *args, **kwargs):
        whole = super().state_dict(*args, **kwargs)
        return whole if self.remember else {name: t for name, t in whole.items() if not name.startswith("frozen")}

    def forward(self, x, y=None):
        return torch.tanh(self.frozen(x) + self.down(x)) if y is None else [self.frozen(x) + self.down(y)]

@p2pzoo.hookimpl
def register_generators(register):
    register("lora", LoRA)

@p2pzoo.hookimpl
def register_discriminators(register):
    register("lora-patch", LoRA)
"""


@pytest.mark.parametrize(
    "override", ['generator={use="lora"}', 'discriminator={use="lora-patch"}'], ids=["generator", "discriminator"]
)
def test_a_network_whose_state_dict_leaves_out_weights_is_refused_before_training(override, install, run, tmp_path):
    install("forgetful", FORGETFUL)
    result = run(tmp_path / "runs", override)
    assert result.exit_code == 2, result.output
    assert "its state_dict() leaves out 'frozen.weight' and 1 more: checkpoints and model" in result.output
    assert result.first_step is None


def test_a_file_that_such_a_network_wrote_is_refused(install, run, tmp_path):
    """As of a version that checked nothing: its weights would be whatever was in memory."""
    install("forgetful", FORGETFUL)
    assert run(tmp_path / "runs", 'generator={use="lora", remember=true}', "train.images=2").exit_code == 0
    [file] = tmp_path.glob("runs/*/*/model.safetensors")
    tensors, header = load_tensors(file)
    header["generator"]["params"]["remember"] = False
    save_tensors(file, {name: t for name, t in tensors.items() if not name.startswith("frozen")}, header)
    with pytest.raises(UserError, match=r"holds no values of 'frozen.weight' \(2 tensors of its generator"):
        load_model(file, device="cpu")
