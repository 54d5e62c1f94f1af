"""The recipes of these generators are base.toml with another generator and its code's initialisation."""

from dataclasses import replace

import pytest

from p2pzoo import config
from p2pzoo.models.image_size import find_network_faults

RECIPES = {  # name: generator, initialisation, widths in the profiles smoke, laptop, gpu, paper
    "nafnet": ("nafnet", "own", (8, 16, 32, 32)),
    "restormer": ("restormer", "own", (8, 8, 48, 48)),
    "lama": ("lama", "own", (8, 16, 64, 64)),
    "attention_unet": ("attention-unet", "kaiming", (8, 16, 64, 64)),
}
PROFILES = ("smoke", "laptop", "gpu", "paper")


def open_recipe(name, profile, *options):
    return config.load(f"zoo:{name}.toml", profile, options)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_base_with_another_generator_at_the_papers_width_where_there_is_a_gpu(name, profile):
    use, weights, widths = RECIPES[name]
    made, base = open_recipe(f"modern/{name}", profile), open_recipe("base", profile)
    assert made.generator.entry.name == use
    assert made.generator.values["width"] == dict(zip(PROFILES, widths, strict=True))[profile]
    assert made.init == replace(base.init, weights=weights)
    assert made.discriminator.values == base.discriminator.values
    assert {name: loss.weight for name, loss in made.losses.items()} == {"l1": 100.0}
    assert (made.train, made.optimizer, made.dataset.values) == (base.train, base.optimizer, base.dataset.values)


@pytest.mark.parametrize("name", RECIPES)
def test_with_the_papers_blocks_where_there_is_a_gpu(name):
    made = open_recipe(f"modern/{name}", "gpu").generator
    defaults = open_recipe("base", "gpu", 'drop=["generator"]', f"generator.use={made.entry.name}").generator.values
    assert made.values == {**defaults, "width": made.values["width"]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_process_can_train_it(name):
    norm = ("generator.norm=group",) if name in ("lama", "attention_unet") else ()
    options = ('drop=["discriminator", "gan_loss"]', "process.use=flow")
    made = open_recipe(f"modern/{name}", "smoke", *options, *norm)
    assert find_network_faults(made, (3, 3), (64, 64)) == []
    if norm:
        [fault] = find_network_faults(open_recipe(f"modern/{name}", "smoke", *options), (3, 3), (64, 64))
        assert 'norm = "group"' in fault


def test_a_residual_that_cannot_be_added_names_the_line():
    made = open_recipe("modern/nafnet", "smoke", "generator.residual=true", "process.use=flow")
    [fault] = find_network_faults(made, (3, 3), (64, 64))
    assert "residual = true adds x to ŷ, but G sees 7 channels and ŷ has 3: set residual = false" in fault
