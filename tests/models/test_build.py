"""Networks built from components, and their cost."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from p2pzoo import config
from p2pzoo.models.build import build_network, on_meta, summarize_network
from p2pzoo.utils.errors import UserError

NOT_A_NETWORK = """
import p2pzoo

def make(in_channels: int, out_channels: int):
    return "a string"

@p2pzoo.hookimpl
def register_generators(register):
    register("text", make)
"""


def load_experiment(*overrides):
    return config.load("zoo:base.toml", "smoke", overrides)


def test_a_component_that_refuses_a_size_is_named():
    with pytest.raises(UserError, match="generator 'unet': size 50×64 does not fit"):
        build_network(load_experiment().generator, (3, 3), (50, 64))


def test_a_factory_that_returns_no_module_is_named(install):
    install("texts", NOT_A_NETWORK)
    generator = load_experiment('generator.use="text"').generator
    with pytest.raises(UserError, match=r"generator 'texts:text' must return a torch.nn.Module, not a str"):
        build_network(generator, (3, 3), (64, 64))


def test_macs_of_the_unet_are_those_of_its_layers():
    """A convolution: outputs × summands of each; a transposed one: inputs × outputs that each is added to."""
    G = load_experiment("generator.width=16").generator
    down = [(3, 16), (16, 32), (32, 64), (64, 128), *[(128, 128)] * 4]  # 4×4 kernels, from 256 px to 1
    up = [(128, 128), *[(256, 128)] * 3, (256, 64), (128, 32), (64, 16), (32, 3)]  # back to 256 px; skips double inputs
    expected = sum(16 * a * b * (128 >> level) ** 2 for level, (a, b) in enumerate(down))
    expected += sum(16 * a * b * (1 << level) ** 2 for level, (a, b) in enumerate(up))
    assert summarize_network(G, (3, 3), (256, 256)).macs == expected


def test_a_summary_has_the_parameters_of_the_network_and_the_size_of_its_output():
    recipe = load_experiment("generator.width=4", "discriminator.width=4")
    G, D = (summarize_network(part, (1, 3), (64, 128)) for part in (recipe.generator, recipe.discriminator))
    network = build_network(recipe.generator, (1, 3), (64, 128))
    assert isinstance(network, nn.Module)
    assert G.parameters == sum(p.numel() for p in network.parameters())
    assert (G.output_size, G.receptive_field, D.receptive_field) == ((64, 128), None, 70)


def test_spectral_norm_iterates_on_values_only():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = spectral_norm(nn.Linear(4, 3)).weight
        with on_meta():
            without_values = spectral_norm(nn.Linear(4, 3)).weight
            torch.manual_seed(0)
            with torch.device("cpu"):
                weight = spectral_norm(nn.Linear(4, 3)).weight
    assert without_values.is_meta
    assert torch.equal(weight, expected)


def test_what_a_network_computes_while_it_is_built_is_not_counted():
    """A backbone of timm tries itself out when it is built."""
    recipe = config.load("zoo:timm_unet.toml", "laptop")
    G = recipe.generator
    with on_meta():
        network = build_network(G, (3, 3), (64, 64)).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 64, 64))
    assert summarize_network(G, (3, 3), (64, 64)).macs == counter.get_total_flops() // 2
