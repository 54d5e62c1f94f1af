"""Is the training step of a shipped recipe recorded? Its profile "smoke", with pairs of 256 px made here."""

import functools
from dataclasses import replace

from null_gpu.component_scenarios import count_steps
from null_gpu.training import print_results

from p2pzoo.config.check import check_recipe
from p2pzoo.config.recipe import read_recipe
from p2pzoo.plugin.loader import registry
from p2pzoo.testing.tiny_components import build_tiny_component
from p2pzoo.utils.paths import shipped_dir

SCRIPT = "recipe_scenarios.py"
SIDE = 256


def shipped_recipes():
    """The names of the recipes, as in `zoo:NAME`."""
    folder = shipped_dir("recipes")
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.toml"))


def train_recipe(name):
    experiment = check_recipe(read_recipe(f"zoo:{name}", "smoke"), registry())
    return count_steps(experiment=replace(experiment, dataset=build_tiny_component("dataset", {"side": SIDE})))


if __name__ == "__main__":
    print_results({name: functools.partial(train_recipe, name) for name in shipped_recipes()})
