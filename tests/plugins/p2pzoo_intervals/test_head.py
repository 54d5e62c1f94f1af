"""quantile-head: its bounds, its loss, the generators inside, training and what it refuses."""

import json

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, simulate_kill
from p2pzoo_intervals.head import QuantileHead, pinball_loss
from torch import nn

import p2pzoo
from p2pzoo import config
from p2pzoo.config.frozen_table import FrozenTable
from p2pzoo.models import safetensors_io
from p2pzoo.utils.errors import UserError

UNET = {"use": "unet", "width": 4, "depth": 3}
INSIDE = {
    "unet": UNET,
    "encoder-decoder": {"use": "encoder-decoder", "width": 4, "depth": 3},
    "resnet6": {"use": "resnet6", "width": 4},
    "adm-unet": {
        "use": "adm-unet", "width": 4, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 4
    },
}  # fmt: skip
HEAD = ("generator.use=quantile-head", 'generator.of={use="unet", width=4, depth=3}')
ALONE = 'drop=["discriminator", "gan_loss"]'


class Constants(nn.Module):
    """Two numbers that do not depend on x, the larger one first."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.1, 0.0]))

    def forward(self, x):
        return self.values.tanh()[None, :, None, None].expand(len(x), 2, *x.shape[2:])


def build(channels=(3, 2), size=(32, 32), of=UNET, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return QuantileHead(*channels, size, of=FrozenTable(of), **options)


def images(channels=3, side=32, batch=2):
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("of", INSIDE.values(), ids=INSIDE)
def test_any_generator_gives_two_ordered_bounds_around_the_translation(of):
    G, x = build(of=of).eval(), images()
    lower, upper = G.interval(x)
    assert lower.shape == upper.shape == G(x).shape == (2, 2, 32, 32)
    assert (lower <= upper).all()
    assert (lower < upper).any()
    assert torch.equal(G(x), (lower + upper) / 2)
    assert max(lower.abs().max(), upper.abs().max()) <= 1


def test_bounds_do_not_cross_in_bfloat16():
    G, x = build().eval(), images()
    with torch.autocast("cpu", torch.bfloat16):
        lower, upper = G.interval(x)
        y_hat, losses = G(x, images(2))
    assert (lower <= upper).all()
    assert y_hat.isfinite().all()
    assert losses["pinball"].isfinite()


def test_the_size_divisor_is_that_of_the_generator_inside():
    assert build().size_divisor == 8
    with pytest.raises(ValueError, match="8"):
        build()(torch.zeros(1, 3, 36, 32))


class TestPinball:
    def test_it_is_asymmetric_around_the_bound(self):
        y, bound = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 0.0, 0.5])
        torch.testing.assert_close(pinball_loss(y, bound, 0.1), torch.tensor((0.1 * 2 + 0.9 * 1) / 3))
        torch.testing.assert_close(pinball_loss(y, bound, 0.9), torch.tensor((0.9 * 2 + 0.1 * 1) / 3))

    @pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
    def test_the_quantile_minimises_it(self, level):
        y = torch.linspace(0, 1, 101)
        losses = [pinball_loss(y, torch.full_like(y, bound), level).item() for bound in y.tolist()]
        assert y[losses.index(min(losses))].item() == pytest.approx(level, abs=0.011)

    def test_training_gets_the_mean_of_both_levels(self):
        G, x, y = build(levels=(0.2, 0.7)).eval(), images(), images(2)
        y_hat, losses = G(x, y)
        lower, upper = G.interval(x)
        expected = (pinball_loss(y, lower, 0.2) + pinball_loss(y, upper, 0.7)) / 2
        torch.testing.assert_close(losses["pinball"], expected)
        assert torch.equal(y_hat, G(x))
        assert G.loss_weights == {"pinball": 100}

    def test_the_bounds_learn_the_quantiles_of_noise(self):
        """y is uniform in [-1, 1] whatever x is: its quantiles are -0.8 and 0.8."""
        G, generator = build(channels=(1, 1)), torch.Generator().manual_seed(0)
        G.inner, x = Constants(), torch.zeros(1, 1, 32, 32)
        optimizer = torch.optim.Adam(G.parameters(), 0.05)
        for _ in range(150):
            _, losses = G(x, torch.rand(x.shape, generator=generator) * 2 - 1)
            optimizer.zero_grad()
            losses["pinball"].backward()
            optimizer.step()
        lower, upper = G.interval(x)
        assert lower.mean().item() == pytest.approx(-0.8, abs=0.05)
        assert upper.mean().item() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('generator.of={use="unett"}', "no generator 'unett': did you mean 'unet'"),
        ('generator.of={use="unet", widht=4}', "generator 'unet' has no parameter 'widht': did you mean 'width'"),
        ("generator.of={width=4}", "names no generator: write of = { use"),
        ('generator.of={use="quantile-head"}', "a head is around another generator"),
        ("generator.of=3", "give a table"),
        ("generator.levels=[0.9, 0.1]", "write the lower level first"),
        ("generator.levels=[0.0, 0.9]", "greater than 0"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_in_one_line(tiny, setting, message):
    of = () if "of=" in setting else HEAD[1:]
    with pytest.raises(UserError) as raised:
        config.load(str(tiny), "smoke", [HEAD[0], *of, setting])
    [fault] = [fault for fault in raised.value.faults if "[generator]" in fault]
    assert message in fault


def test_a_generator_that_sees_the_target_itself_is_refused(install):
    install(
        "seeing_plugin",
        """
import p2pzoo
from torch import nn

class Seeing(nn.Conv2d):
    sees_target = True
    loss_weights = {}
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

@p2pzoo.hookimpl
def register_generators(register):
    register("seeing", Seeing)
""",
    )
    with pytest.raises(UserError, match="'seeing' sees the target in training, as the head does"):
        p2pzoo.create("generator", "quantile-head", in_channels=3, out_channels=3, of={"use": "seeing"})


class TestFilesOfTheGeneratorInside:
    """`of` is a table of a generator as [generator] is: its files are found beside the recipe, and count by content."""

    @pytest.fixture
    def recipe(self, install, tiny, tmp_path):
        """A recipe beside a file that its inner generator reads. It is loaded in another folder."""
        install(
            "filed_plugin",
            """
from pathlib import Path

import p2pzoo
from torch import nn

class Filed(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, *, weights: Path | None = None, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)
        if weights:
            assert weights.read_text()

@p2pzoo.hookimpl
def register_generators(register):
    register("filed", Filed)
""",
        )
        file = tmp_path / "Dr_Secret" / "of.toml"
        file.parent.mkdir()
        (file.parent / "w.pth").write_text("one")
        file.write_text(
            f"extends = {json.dumps(str(tiny))}\ndrop = ['discriminator', 'gan_loss']\n"
            '[generator]\nuse = "quantile-head"\nof = { use = "filed", weights = "w.pth" }\n'
        )
        return file

    def test_another_content_is_another_run(self, recipe):
        experiment = config.load(str(recipe), "smoke")
        first = experiment.id
        assert experiment.generator.values["of"]["weights"] == recipe.parent / "w.pth"
        (recipe.parent / "w.pth").write_text("two")
        second = config.load(str(recipe), "smoke").id
        (recipe.parent / "w.pth").write_text("one")
        (recipe.parent / "w.pth").rename(recipe.parent / "v.pth")
        elsewhere = "generator.of.weights=" + json.dumps(str(recipe.parent / "v.pth"))
        assert first == config.load(str(recipe), "smoke", [elsewhere]).id != second

    def test_the_model_loads_alone_and_does_not_say_where_the_file_was(self, recipe, run_cli, tmp_path):
        result = run_cli("run", recipe, "--profile", "smoke", "--runs", tmp_path / "runs", "-s", "train.images=2",
                         "-s", "generator.of.bias=false")  # fmt: skip
        assert result.exit_code == 0, result.output
        [file] = (tmp_path / "runs").glob("*/*/model.safetensors")
        assert b"Dr_Secret" not in file.read_bytes()
        (recipe.parent / "w.pth").unlink()
        assert p2pzoo.load(file, device="cpu").header.params["of"] == {"use": "filed", "bias": False}


def test_another_generator_inside_drops_the_parameters_of_the_one_before(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "zoo:modern/quantiles.toml"\n[generator.of]\nuse = "resnet6"\n')
    of = config.load(str(recipe), "smoke").generator.values["of"]
    assert (of["use"], "noise" in of) == ("resnet6", False)
    kept = config.load("zoo:modern/quantiles.toml", "smoke", ['generator.of={use="pix2pix:unet"}'])
    assert kept.generator.values["of"]["noise"] == "none"


def test_ids_without_files_are_those_of_earlier_versions():
    assert config.load("zoo:modern/quantiles.toml", "smoke").id == "44dd2b949e"


def test_it_trains_resumes_to_the_same_bits_and_loads_alone(run, tmp_path):
    settings = (*HEAD, ALONE, "train.images=8", "train.checkpoint_every=4", "train.log_every=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *settings).exit_code == 0
    with after(STEP, simulate_kill, call=6), pytest.raises(SimulatedKill):
        run(parts, *settings)
    assert run(parts, *settings).exit_code == 0
    files = [next(runs.glob("*/*/model.safetensors")) for runs in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = next(whole.glob("*/*/metrics.jsonl")).read_text()
    assert "G.pinball" in logs
    tensors, _ = safetensors_io.load_tensors(files[0])
    assert all(name.startswith("inner.") for name in tensors)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(files[0].read_bytes())
    assert p2pzoo.load(alone, device="cpu").G.levels == (0.1, 0.9)
