"""The conformance kit: each check fails on a component that does not satisfy its interface."""

import contextlib
import glob
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from component_failures import Distance, Error, case, failure, failures
from imports import imported_at_once
from torch import nn

from p2pzoo.cli import main
from p2pzoo.plugin.batch import Pair
from p2pzoo.plugin.loader import hook_name
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import KINDS, Entry
from p2pzoo.testing import CHECKS, ComponentCase, conformance, list_component_checks
from p2pzoo.testing.tiny_components import (
    TinyDataset,
    TinyDiscriminator,
    TinyGanLoss,
    TinyGenerator,
    TinyTimeGenerator,
    build_experiment,
)
from p2pzoo.utils.errors import UserError


@pytest.mark.parametrize(
    ("kind", "factory"),
    [
        ("generator", TinyGenerator),
        ("discriminator", TinyDiscriminator),
        ("gan_loss", TinyGanLoss),
        ("dataset", TinyDataset),
    ],
)
def test_tiny_components_pass_every_check(kind, factory):
    assert failures(kind, factory) == {}


def test_check_names_that_plugins_write_never_change():
    """Plugins declare failures by these names, so a renamed check breaks them."""
    network = [
        "size_divisor",
        "external_weights",
        "inputs",
        "random_numbers",
        "device",
        "gradients",
        "seed",
        "modes",
        "file",
        "meta",
        "bf16",
        "compile",
        "export",
        "rewrites",
        "training",
        "resume",
    ]
    effects = ["needs", "inputs", "random_numbers", "device"]
    loss = ["scalar", "gradients", "other_side", "minimum", *effects, "training", "resume"]
    assert {kind: list(checks) for kind, checks in CHECKS.items()} == {
        "plugin": ["imports"],
        "generator": ["shapes", "range", "time", "features", "sees_target", "z", "interval", *network],
        "discriminator": ["shapes", "logits", "gradients_reach_y", "labels", *network],
        "process": [
            "shapes",
            "times",
            "time_is_seen",
            "repeats",
            "batches",
            "sampler",
            "modes",
            "never_waits",
            "inputs",
            "random_numbers",
            "device",
            "training",
            "resume",
        ],
        "gan_loss": loss,
        "loss": [*loss, "sample_weight"],
        "dataset": ["pairs", "range", "repeats", "rebuilt", "ids", "splits", "pickle", "aligned", "training"],
        "metric": ["batches", "order", "samples", "perfect", "needs", "inputs", "random_numbers"],
        "callback": ["changes_nothing"],
        "model": ["translates", "card"],
        "augmentation": [
            "shapes",
            "repeats",
            "batches",
            "aligned",
            "gradients",
            "observe",
            "needs",
            "inputs",
            "device",
            "training",
            "resume",
        ],
    }


class TestSampleWeight:
    class Weighted(Distance):
        uses_sample_weight = True

        def __call__(self, out):
            return out.weighted_mean((out.y - out.y_hat).abs())

    def test_a_loss_that_applies_it_passes(self):
        assert failures("loss", self.Weighted) == {}

    def test_a_loss_that_does_not_say_so(self):
        class Silent(self.Weighted):
            uses_sample_weight = False

        assert "has no `uses_sample_weight`" in failure("loss", Silent, "sample_weight")

    def test_a_loss_that_ignores_it(self):
        class Deaf(Distance):
            uses_sample_weight = True

        assert "does not depend on `out.sample_weight`" in failure("loss", Deaf, "sample_weight")

    def test_a_loss_that_is_not_linear_in_it(self):
        class Squared(self.Weighted):
            def __call__(self, out):
                value = super().__call__(out)
                return value if out.sample_weight is None else value**2

        assert "is not the mean of its values" in failure("loss", Squared, "sample_weight")


def test_every_check_is_documented():
    assert all(check.__doc__ for checks in CHECKS.values() for check in checks.values())


class TestGenerators:
    def test_state_that_no_checkpoint_has(self):
        class Counts(TinyGenerator):
            def __init__(self, in_channels: int, out_channels: int):
                super().__init__(in_channels, out_channels)
                self.calls = 0

            def forward(self, x):
                self.calls += 1
                return super().forward(x) * (1 - 0.01 * self.calls)

        assert failure("generator", Counts, "resume").startswith("after a resume 'G.")

    def test_one_that_takes_the_time(self):
        assert failures("generator", TinyTimeGenerator) == {}

    def test_a_time_that_is_ignored(self):
        class Deaf(TinyTimeGenerator):
            def forward(self, x, t=None):
                return super().forward(x) + 0 * self.of_time

        assert "its forward ignores t" in failure("generator", Deaf, "time")

    def test_another_time_than_1_by_default(self):
        class Early(TinyTimeGenerator):
            def forward(self, x, t=None):
                return super().forward(x, torch.full((len(x),), 0.5) if t is None else t)

        assert "another output than at t = 1" in failure("generator", Early, "time")

    def test_a_range_beyond_one(self):
        class Loud(TinyGenerator):
            def forward(self, x):
                return 3 * super().forward(x) + 1

        assert "not within [-1, 1]" in failure("generator", Loud, "range")

    def test_a_range_that_only_large_weights_leave(self):
        class Linear(TinyGenerator):
            def forward(self, x):
                return self.layers(x)

        assert failure("generator", Linear, "range").endswith("with large weights: end with a tanh or a clamp")

    def test_gates_that_start_at_0_are_no_missing_gradient(self):
        class Gated(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.inner, self.gate = nn.Conv2d(in_channels, in_channels, 1), nn.Parameter(torch.zeros(1))

            def forward(self, x):
                return super().forward(x + self.gate * self.inner(x))

        assert failures("generator", Gated, checks=["gradients", "training", "resume"]) == {}

    def test_another_size(self):
        class Cropped(TinyGenerator):
            def forward(self, x):
                return super().forward(x)[..., 1:, :]

        assert "not (2, 3, 32, 32)" in failure("generator", Cropped, "shapes")

    def test_a_size_divisor_that_is_not_true(self):
        class Halves(TinyGenerator):
            size_divisor = 2

            def forward(self, x):
                return nn.functional.interpolate(super().forward(x)[..., ::4, ::4], scale_factor=4)

        assert "ŷ for x of (2, 3, 34, 36) is" in failure("generator", Halves, "size_divisor")

    @pytest.mark.parametrize("base", [TinyGenerator, TinyDiscriminator])
    def test_a_size_that_is_no_multiple_of_the_divisor_must_be_a_value_error(self, base):
        class Silent(base):
            size_divisor = 4

        class Refusing(Silent):
            def forward(self, x, *y):
                if x.shape[2] % 4 or x.shape[3] % 4:
                    raise ValueError(f"takes multiples of 4, not {x.shape[2]}×{x.shape[3]}")
                return super().forward(x, *y)

        class Failing(Refusing):
            def forward(self, x, *y):
                try:
                    return super().forward(x, *y)
                except ValueError:
                    raise RuntimeError("sizes of tensors must match") from None

        class HeightOnly(Silent):
            def forward(self, x, *y):
                if x.shape[2] % 4:
                    raise ValueError(f"takes multiples of 4, not {x.shape[2]}")
                return super().forward(x, *y)

        kind = "generator" if base is TinyGenerator else "discriminator"
        rule = ", although size_divisor = 4: raise a ValueError that names the size"
        assert failure(kind, Silent, "size_divisor") == f"raises nothing for images of 33×32{rule}"
        assert failure(kind, Failing, "size_divisor") == f"raises RuntimeError for images of 33×32{rule}"
        assert failure(kind, HeightOnly, "size_divisor") == f"raises nothing for images of 32×33{rule}"
        assert failures(kind, Refusing, checks=["size_divisor"]) == {}

    def test_channels_that_differ_from_the_data(self):
        class Red(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(3, 3)

        with pytest.raises(RuntimeError):
            CHECKS["generator"]["shapes"](case("generator", Red))

    def test_a_parameter_without_gradient(self):
        class Idle(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.idle = nn.Conv2d(3, 3, 1)

        assert failure("generator", Idle, "gradients") == "no gradient reaches 'idle.weight' and 1 more"

    def test_initial_weights_that_do_not_follow_the_seed(self):
        class Wild(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                nn.init.constant_(self.layers[0].bias, np.random.default_rng().random())

        assert "differs between two networks of one seed" in failure("generator", Wild, "seed")

    def test_noise_in_eval_mode(self):
        class Noisy(TinyGenerator):
            def forward(self, x):
                return super().forward(x + 0.1 * torch.randn_like(x))

        assert failure("generator", Noisy, "modes") == "draws random numbers in eval mode"

    def test_a_mean_over_the_batch_in_eval_mode(self):
        class Together(TinyGenerator):
            def forward(self, x):
                return super().forward(x - x.mean(dim=0, keepdim=True))

        assert "depends on the rest of its batch" in failure("generator", Together, "modes")

    def test_other_code_in_training_mode(self):
        class Two(TinyGenerator):
            def forward(self, x):
                return super().forward(x if self.training else -x)

        assert "give the reason in `known_failures`" in failure("generator", Two, "modes")

    def test_dropout_and_batch_norm_may_differ_in_training_mode(self):
        class Usual(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.layers = nn.Sequential(nn.BatchNorm2d(in_channels), nn.Dropout(), self.layers)

        affected = ["shapes", "inputs", "random_numbers", "gradients", "seed", "modes", "file", "bf16", "rewrites"]
        assert failures("generator", Usual, checks=[*affected, "training", "resume"]) == {}

    def test_a_tensor_that_is_not_in_the_state_dict(self):
        class Forgetful(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.register_buffer("scale", torch.rand(1), persistent=False)

            def forward(self, x):
                return super().forward(x) * self.scale

        assert "gives another output after it is loaded from its file" in failure("generator", Forgetful, "file")

    def test_memory_on_the_meta_device(self):
        class Heavy(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.register_buffer("table", torch.zeros(2, device="cpu"))

        assert failure("generator", Heavy, "meta") == "allocates 'table'"

    def test_code_that_compilers_cannot_trace(self):
        class Curious(TinyGenerator):
            def forward(self, x):
                return super().forward(x) * (0.5 if x.mean().item() > 0 else 0.25)

        entry = Entry("generator", "mine", Curious, "mine", "mine 1.0")
        for name in ("compile", "export"):
            with pytest.raises(Exception, match=r".+"):
                CHECKS["generator"][name](ComponentCase.from_entry(entry))

    def test_an_output_that_depends_on_the_memory_format(self):
        class Relaid(TinyGenerator):
            def forward(self, x):
                return super().forward(x) * (0.5 if self.layers[0].weight.is_contiguous() else 0.25)

        assert failure("generator", Relaid, "rewrites") == "gives another output"


class TestDiscriminators:
    def test_logits_that_are_not_a_list(self):
        class Bare(TinyDiscriminator):
            def forward(self, x, y):
                return super().forward(x, y)[0]

        assert failure("discriminator", Bare, "logits") == "returns a Tensor, not a list of maps"

    def test_features_of_only_one_scale(self):
        class One(TinyDiscriminator):
            def features(self, x, y):
                return super().features(x, y)[:1] if getattr(self, "asked", True) else super().features(x, y)

            def forward(self, x, y):
                self.asked = False
                maps = super().forward(x, y)
                self.asked = True
                return maps

        assert failure("discriminator", One, "logits") == "`features` returns 1 lists for 2 maps of logits"

    def test_logits_without_a_gradient_at_y_hat(self):
        class Mute(TinyDiscriminator):
            def features(self, x, y):
                return super().features(x, y.detach())

        assert failure("discriminator", Mute, "gradients_reach_y") == "no gradient of its logits reaches ŷ"


class TestLosses:
    def test_a_valid_component_passes(self):
        assert failures("loss", Distance) == {}

    def test_a_map_instead_of_a_scalar(self):
        class Map(Distance):
            def __call__(self, out):
                return (out.y - out.y_hat).abs()

        assert "must be a scalar" in failure("loss", Map, "scalar")

    def test_a_minimum_that_is_not_reached(self):
        class Shifted(Distance):
            def __call__(self, out):
                return super().__call__(out) + 1

        assert failure("loss", Shifted, "minimum") == "is 1 at ŷ = y, but declares a minimum of 0.0"

    def test_a_change_to_the_other_side(self):
        class Rude(Distance):
            def __call__(self, out):
                with torch.no_grad():
                    out.D.first.bias.add_(1)
                return super().__call__(out)

        assert failure("loss", Rude, "other_side") == "the loss of G changes D.first.bias"

    def test_a_loss_of_d_that_gives_g_a_gradient(self):
        class Leaky(Distance):
            side = "discriminator"

            def __call__(self, out):
                return out.fake[0].mean() + out._y_hat_with_graph.mean()

        assert failure("loss", Leaky, "other_side") == "the loss of D gives the generator a gradient"

    def test_state_that_no_checkpoint_has(self):
        class Remembers(Distance):
            def __init__(self):
                self.last = 0.0

            def __call__(self, out):
                value = super().__call__(out)
                loss = value * (1 + self.last)
                self.last = value.item()
                return loss

        message = failure("loss", Remembers, "resume")
        assert message.startswith("after a resume 'G.")
        assert message.endswith("in no checkpoint; keep it in buffers of an nn.Module")

    def test_state_in_buffers(self):
        class Keeps(nn.Module):
            side = "generator"

            def __init__(self):
                super().__init__()
                self.register_buffer("last", torch.zeros(()))

            def forward(self, out):
                value = (out.y_hat - out.y).abs().mean()
                loss = value * (1 + self.last.clone())
                self.last.copy_(value.detach())
                return loss

        assert failures("loss", Keeps) == {}

    def test_a_gan_loss_below_its_minimum(self):
        class Deep(TinyGanLoss):
            minimum = (0.5, None)

        assert failure("gan_loss", Deep, "minimum") == "the loss of D falls to 0, below its declared minimum of 0.5"

    def test_a_gan_loss_that_does_not_reach_its_minimum(self):
        class High(TinyGanLoss):
            minimum = (None, -1.0)

        message = "the loss of G does not fall below 0, but declares a minimum of -1.0"
        assert failure("gan_loss", High, "minimum") == message


class TestDatasets:
    def test_values_outside_of_their_range(self):
        class Narrow(TinyDataset):
            x_range = (0.0, 100.0)

        assert "not within [-1, 1]" in failure("dataset", Narrow, "range")

    @pytest.mark.parametrize(
        ("listed", "reason"),
        [
            (lambda files: files, "is a PosixPath"),
            (lambda files: [str(path) for path in files], "is a str"),
            (lambda files: [[str(path)] for path in files], "holds a str"),
            (lambda files: [[path.with_name("missing")] for path in files], "does not exist"),
            (lambda files: [[path] for path in files[1:]], "has 9 entries for 10 pairs"),
            (lambda files: [[]] * len(files), "is empty"),
        ],
        ids=["flat", "names", "strings", "missing", "too few", "none"],
    )
    def test_files_that_are_not_those_of_each_pair(self, listed, reason, tmp_path):
        class Filed(TinyDataset):
            def __init__(self, split):
                super().__init__(split)
                paths = [tmp_path / f"{split}{index}" for index in range(len(self))]
                for path in paths:
                    path.touch()
                self.files = listed(paths)

        message = failure("dataset", Filed, "pairs").replace("WindowsPath", "PosixPath")
        assert "`files" in message
        assert reason in message

    def test_ids_that_repeat(self):
        class Twins(TinyDataset):
            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair("one", pair.x, pair.y, pair.labels)

        assert failure("dataset", Twins, "ids") == "train has the id 'one' twice"

    def test_training_images_in_val(self):
        class Leak(TinyDataset):
            def __init__(self, split):
                super().__init__("train")
                self.own = split

            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair(f"{self.own}-{index}", pair.x, pair.y, pair.labels)

        assert "val and train share images" in failure("dataset", Leak, "splits")

    def test_pairs_that_change_between_accesses(self):
        class Restless(TinyDataset):
            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair(pair.id, np.random.default_rng().permutation(pair.x), pair.y, pair.labels)

        assert failure("dataset", Restless, "repeats") == "pair 0 changes between two accesses"

    def test_pairs_that_change_when_the_dataset_is_built_again(self):
        class Shuffled(TinyDataset):
            def __init__(self, split):
                super().__init__(split)
                self.order = np.random.permutation(10)

            def __getitem__(self, index):
                return super().__getitem__(int(self.order[index]))

        found = failures("dataset", Shuffled, checks=["repeats", "rebuilt"])
        assert found.keys() == {"rebuilt"}
        assert "sort lists of files, and take random numbers from a fixed seed" in found["rebuilt"]

    @pytest.mark.parametrize(
        "list_names",
        [
            lambda folder: os.listdir(folder),
            lambda folder: [file.name for file in Path(folder).iterdir()],
            lambda folder: [entry.name for entry in os.scandir(folder)],
            lambda folder: glob.glob("*", root_dir=folder),
        ],
        ids=["listdir", "iterdir", "scandir", "glob"],
    )
    def test_files_in_the_order_of_the_file_system(self, list_names, tmp_path):
        for name in "abcdefghij":
            (tmp_path / name).touch()

        class Listed(TinyDataset):
            def __init__(self, split):
                super().__init__(split)
                self.names = list_names(tmp_path)

            def __getitem__(self, index):
                return replace(super().__getitem__(index), id=self.names[index])

        class Sorted(Listed):
            def __init__(self, split):
                super().__init__(split)
                self.names.sort()

        assert "is another one when it is built again" in failure("dataset", Listed, "rebuilt")
        assert failures("dataset", Sorted, checks=["rebuilt"]) == {}

    def test_crops_of_x_and_y_that_differ(self, monkeypatch):
        from p2pzoo.data import loader

        crop = loader.TrainBatches._crop

        def crop_separately(self, sample, pair):
            (cropped, flipped), (other, _) = crop(self, sample, pair), crop(self, sample + 1, pair)
            return Pair(cropped.id, cropped.x, other.y, cropped.labels), flipped

        monkeypatch.setattr(loader.TrainBatches, "_crop", crop_separately)
        assert failure("dataset", TinyDataset, "aligned") == "x and y show different places"


class TestMetrics:
    def test_a_valid_component_passes(self):
        assert failures("metric", Error) == {}

    def test_the_wrong_direction(self):
        class Upside(Error):
            better = "higher"

        assert "although higher is better" in failure("metric", Upside, "perfect")

    def test_statistics_that_depend_on_the_batch(self):
        class Relative(Error):
            def measure(self, batch, y_hat):
                error = super().measure(batch, y_hat)["error"]
                return {"error": error / error.max()}

        assert failure("metric", Relative, "batches") == "'error' of an image depends on the rest of its batch"

    def test_numbers_that_depend_on_the_order(self):
        class First(Error):
            def reduce(self, statistics):
                return {"value": statistics["error"][0].item()}

        assert "depends on the order of the images" in failure("metric", First, "order")

    def test_a_metric_of_samples_gets_so_many_and_passes(self):
        class OfMean(Error):
            samples = 3

            def measure(self, batch, y_hats):
                assert y_hats.shape[:2] == (len(batch.y), 3)
                return super().measure(batch, y_hats.mean(1))

        assert failures("metric", OfMean) == {}

    def test_a_metric_that_sees_the_order_of_samples(self):
        class OfFirst(Error):
            samples = 3

            def measure(self, batch, y_hats):
                return super().measure(batch, y_hats[:, 0])

        assert failure("metric", OfFirst, "samples").startswith("'value' depends on the order of the samples")

    @pytest.mark.parametrize("count", [1, 0, 2.0, True, None])
    def test_a_metric_with_another_number_of_samples(self, count):
        class Few(Error):
            samples = count

        assert failure("metric", Few, "samples") == (
            f"`samples` is {count!r}, not a number of translations of each image, from 2 on"
        )


class TestModels:
    @pytest.mark.parametrize(
        ("lines", "names_one"),
        [
            ("license: mit", True),
            ('license: "cc-by-4.0"', True),
            ("license: other\nlicense_name: ours", True),
            ("license: other", False),  # as `p2pzoo card` writes it without --licence
            ("license: 'other'\ntags: [mit]", False),
            ("license:\ntags: [mit]", False),
            ("license_name: ours", False),
        ],
    )
    def test_a_card_names_a_licence(self, lines, names_one, tmp_path):
        (tmp_path / "recipe.toml").write_text('extends = "zoo:base.toml"\n')
        (tmp_path / "README.md").write_text(f"---\n{lines}\n---\n\n# Mine\n")
        raises = contextlib.nullcontext() if names_one else pytest.raises(AssertionError, match="names no licence")
        with raises:
            CHECKS["model"]["card"](SimpleNamespace(build=lambda: tmp_path))


class TestCallbacks:
    def test_a_valid_component_passes(self):
        assert failures("callback", Callback) == {}

    def test_a_callback_that_draws_random_numbers(self):
        class Drawing(Callback):
            def log(self, images, losses):
                torch.rand(1)

        assert failure("callback", Drawing, "changes_nothing") == "changes torch's random numbers"

    def test_a_callback_that_changes_the_recipe(self):
        class Writing(Callback):
            def start(self, folder, recipe):
                recipe["seed"] = 1

        assert failure("callback", Writing, "changes_nothing") == "changes its argument: the recipe"


def test_training_finds_a_loss_that_is_not_finite():
    class Infinite(Distance):
        def __call__(self, out):
            return super().__call__(out) / 0

    assert failure("loss", Infinite, "training") == "G.under_test is inf at step 0"


def test_widths_are_small_unless_given():
    class Wide(TinyGenerator):
        def __init__(self, in_channels, out_channels, *, width: int = 64):
            super().__init__(in_channels, out_channels)

    assert case("generator", Wide).component.values["width"] == 4
    assert case("generator", Wide, width=6).component.values["width"] == 6


def test_the_tiny_experiment_needs_no_other_plugin():
    experiment = build_experiment(case("loss", Distance).component, 32)
    assert {component.entry.plugin for component in experiment.components()} == {"kit", "mine"}


PLUGIN = """
import p2pzoo

class Off:
    side = "generator"
    minimum = 0.0
    def __call__(self, out):
        return (out.y - out.y_hat).abs().mean() + 1

class Declared(Off):
    known_failures = {"minimum": "it is one too much"}

@p2pzoo.hookimpl
def register_losses(register):
    register("off", Off)
    register("declared", Declared)
"""


class TestPlugins:
    def test_a_failure_is_one_line_and_exit_code_1_and_each_finished_check_a_line_on_stderr(self, install):
        install("broken", PLUGIN)
        result = CliRunner().invoke(main, ["check-plugin", "broken"])
        assert result.exit_code == 1
        rows = {row.split()[0]: row.split()[1:] for row in result.output.splitlines() if row.strip()}
        assert rows["loss"] == [*CHECKS["loss"]]
        signs = ["✗" if name == "minimum" else "✓" for name in CHECKS["loss"]]
        assert rows["off"] == signs
        assert rows["declared"] == ["x" if sign == "✗" else sign for sign in signs]
        assert "✗ loss.off minimum: is 1 at ŷ = y, but declares a minimum of 0.0" in result.output.splitlines()
        assert "x loss.declared minimum: it is one too much" in result.output.splitlines()
        assert "21 pass, 1 fails, 1 expected failure" in result.output
        lines = result.stderr.splitlines()
        assert len(lines) == 23
        assert re.fullmatch(r"\[1/23\] plugin\.broken-imports ✓ \d+\.\d s", lines[0])
        assert re.fullmatch(r"\[5/23\] loss\.off-minimum ✗ \d+\.\d s", lines[4])

    @pytest.mark.parametrize(
        "source",
        [
            "import torch\n" + PLUGIN,
            PLUGIN.replace("def register_losses(register):", "def register_losses(register):\n    import torch"),
        ],
        ids=["module", "hook"],
    )
    def test_a_plugin_that_imports_torch_when_it_is_loaded(self, install, source):
        install("broken", source)
        [check] = [each for each in list_component_checks("broken") if each.check_name == "imports"]
        result = check.run()
        line = source.splitlines().index("    import torch" if "    import torch" in source else "import torch") + 1
        assert result.status == "fail"
        assert f"broken.py:{line} imports torch when the plugin is loaded" in result.message

    def test_json_has_the_same_results(self, install):
        install("broken", PLUGIN)
        result = CliRunner().invoke(main, ["check-plugin", "broken", "--json"])
        statuses = {(row["component"], row["check"]): row["status"] for row in json.loads(result.stdout)}
        assert statuses["off", "minimum"] == "fail"
        assert statuses["off", "scalar"] == "pass"

    def test_an_unknown_plugin_is_exit_code_2_with_a_suggestion(self):
        result = CliRunner().invoke(main, ["check-plugin", "pix2pics"])
        assert result.exit_code == 2
        assert "no plugin 'pix2pics': did you mean 'pix2pix'?" in result.output

    def test_parameters_are_checked_as_in_a_recipe(self):
        result = CliRunner().invoke(main, ["check-plugin", "earth", "-s", "earth.size=65"])
        assert result.exit_code == 1
        assert "size = 65: input should be 64, 128 or 256" in result.output

    def test_an_expected_failure_that_passes_is_a_failure(self, install):
        install("broken", PLUGIN)
        expected = {"off.minimum": "known", "off.scalar": "wrongly thought to fail"}
        results = {str(check): check.run() for check in list_component_checks("broken", None, expected)}
        assert results["loss.off-minimum"].status == "expected failure"
        assert results["loss.off-minimum"].message == "known"
        assert results["loss.off-scalar"].status == "fail"
        message = "passes, but is declared as an expected failure (wrongly thought to fail): remove that entry"
        assert results["loss.off-scalar"].message == message

    def test_unknown_names_and_missing_reasons_are_errors(self, install):
        install("broken", PLUGIN)
        with pytest.raises(UserError, match="has no component 'of': did you mean 'off'"):
            conformance("broken", parameters={"of": {}})
        with pytest.raises(UserError, match="has no check 'minimun': did you mean 'minimum'"):
            conformance("broken", expected_failures={"minimun": "why"})
        with pytest.raises(UserError, match=r"'off\.minimum' needs a reason"):
            conformance("broken", expected_failures={"off.minimum": " "})
        with pytest.raises(UserError, match="no plugin 'brokn'"):
            conformance("brokn")

    def test_pytest_gets_one_test_per_component_and_check(self, install):
        install("broken", PLUGIN)
        [mark] = conformance("broken").pytestmark
        assert [str(check) for check in mark.args[1]] == [
            "plugin.broken-imports",
            *(f"loss.{name}-{check}" for name in ("off", "declared") for check in CHECKS["loss"]),
        ]

    def test_importing_the_kit_does_not_import_pytest(self):
        found = imported_at_once("p2pzoo.testing")
        assert {"torch", "p2pzoo.testing.suite", "p2pzoo.config.recipe"} <= found
        assert "pytest" not in found


PARAMETERIZED = [kind for kind in KINDS if kind != "model"]


class TestParameters:
    """Each check of a component with such a parameter fails, whatever the component's kind."""

    @pytest.mark.parametrize("kind", PARAMETERIZED)
    @pytest.mark.parametrize("name", ["use", "weight"])
    def test_a_parameter_that_no_recipe_can_set(self, kind, name, install):
        source = f"def make(*, {name}: float = 1.0): ...\n"
        assert f"its parameter '{name}' cannot be set" in self.result(kind, source, install).message

    @pytest.mark.parametrize("kind", PARAMETERIZED)
    def test_a_default_outside_of_its_own_annotation(self, kind, install):
        source = "from typing import Literal\ndef make(*, mode: Literal['a', 'b'] = 'c'): ...\n"
        message = self.result(kind, source, install).message
        assert "the default mode = \"c\" is none of its own type: input should be 'a' or 'b'" in message

    @staticmethod
    def result(kind, source, install):
        hook = hook_name(kind)
        install("broken", f"import p2pzoo\n{source}@p2pzoo.hookimpl\ndef {hook}(register): register('x', make)\n")
        check = list_component_checks("broken")[1]  # the first is that of the plugin
        assert check.entry.kind == kind
        result = check.run()
        assert result.status == "fail"
        return result

    def test_a_loss_whose_parameters_no_optimizer_has(self):
        class Weighted(Distance):
            def __init__(self):
                self.log_scale = nn.Parameter(torch.zeros(()))

            def __call__(self, out):
                return super().__call__(out) * (1 + self.log_scale)

        class Network(Distance):
            def __init__(self):
                self.layer = nn.Conv2d(3, 3, 1)

            def __call__(self, out):
                return (self.layer(out.y) - self.layer(out.y_hat)).abs().mean()

        for loss, name in ((Weighted, "log_scale"), (Network, "layer.weight")):
            message = f"its parameter '{name}' is never trained, because the loss is no nn.Module"
            assert failure("loss", loss, "training").startswith(message)


class TestNewPlugin:
    def test_invalid_names_taken_names_and_existing_folders_are_errors(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").mkdir()
        (tmp_path / "file").touch()
        for arguments, message in (
            (["My Zoo"], "is not a name for a package"),
            (["my_zoo"], "is not a name for a package"),
            (["class"], "is reserved by Python"),
            (["json"], "is reserved by Python"),
            (["torch"], "a package torch is installed already"),
            (["there"], "there: already exists"),
            (["my-zoo", "-o", "there"], "there: already exists"),
            (["pix2pix"], "'pix2pix': a plugin of this name is installed already"),
            (["my-zoo", "-o", "file/inside"], "file/inside: cannot be created"),
        ):
            result = CliRunner().invoke(main, ["new-plugin", *arguments])
            assert result.exit_code == 2
            assert message in result.output
        assert {*tmp_path.rglob("*")} == {tmp_path / "there", tmp_path / "file"}

    def test_it_writes_a_complete_package_without_placeholders(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(main, ["new-plugin", "their-zoo", "-o", "deep/place"])
        assert result.exit_code == 0
        root = tmp_path / "deep/place"
        files = {f.relative_to(root).as_posix(): f.read_text("utf-8") for f in root.rglob("*") if f.is_file()}
        assert set(files) == {
            "pyproject.toml", "README.md", "their-zoo.toml", "their_zoo/__init__.py", "their_zoo/generator.py",
            "their_zoo/loss.py", "tests/test_conformance.py", ".github/workflows/tests.yml",
        }  # fmt: skip
        assert not any("{{" in text for text in files.values())


class TestAugmentations:
    class Mirrored:
        """A valid augmentation: mirrors each pair by its own random number."""

        where, num_random = "pairs", 1

        def __call__(self, x, y, labels, random):
            labels = None if labels is None else self.flip(labels[:, None], random)[:, 0]
            return self.flip(x, random), self.flip(y, random), labels

        @staticmethod
        def flip(images, random):
            return torch.where(random[:, :1, None, None] < 0.5, images.flip(-1), images)

    def test_a_valid_component_passes(self):
        assert failures("augmentation", self.Mirrored) == {}

    def test_y_that_does_not_move_with_x(self):
        class Alone(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return self.flip(x, random), y, labels

        assert "misaligned by" in failure("augmentation", Alone, "aligned")

    def test_labels_that_do_not_move_with_x(self):
        class Unlabelled(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return self.flip(x, random), self.flip(y, random), labels

        assert "misaligned by" in failure("augmentation", Unlabelled, "aligned")

    def test_an_augmentation_that_draws_random_numbers(self):
        class Drawing(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return super().__call__(x, y, labels, torch.rand_like(random))

        assert "draws random numbers" in failure("augmentation", Drawing, "repeats")

    def test_an_augmentation_that_depends_on_the_batch(self):
        class Levelled(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return x - x.mean(), y, labels

        assert "depends on the rest of its batch" in failure("augmentation", Levelled, "batches")

    def test_changed_shapes_and_values_outside_of_the_range(self):
        class Cropped(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return x[..., 1:], y, labels

        class Glaring(self.Mirrored):
            def __call__(self, x, y, labels, random):
                return x * 2, y, labels

        assert "changes the shape of x from" in failure("augmentation", Cropped, "shapes")
        assert "leaves its range" in failure("augmentation", Glaring, "shapes")

    def test_an_augmentation_without_gradient(self):
        class Cut(self.Mirrored):
            where = "discriminator"

            def __call__(self, x, y, labels, random):
                return x, y * 0, labels

        assert "a gradient of 0" in failure("augmentation", Cut, "gradients")

    class Adaptive(nn.Module):
        """A valid augmentation: darkens y by the mean logit of real images."""

        where, num_random = "discriminator", 1

        def __init__(self):
            super().__init__()
            self.register_buffer("level", torch.zeros(()))

        def forward(self, x, y, labels, random):
            return x, y - self.level, labels

        def observe(self, real):
            self.level.lerp_(real[0].mean(), 0.5)

    def test_an_augmentation_that_learns_from_ds_logits_passes(self):
        assert failures("augmentation", self.Adaptive) == {}

    def test_an_augmentation_whose_state_is_in_no_buffer(self):
        class Hidden(self.Adaptive):
            def __init__(self):
                super().__init__()
                self.calls = 0

            def observe(self, real):
                self.calls += 1
                self.level.fill_(self.calls)

        assert "keeps state that is in no buffer" in failure("augmentation", Hidden, "observe")
        assert "after a resume" in failure("augmentation", Hidden, "resume")

    def test_an_augmentation_that_learns_and_is_no_module(self):
        class Plain(self.Mirrored):
            where = "discriminator"

            def observe(self, real):
                self.level = real[0].mean()

        assert "no checkpoint keeps what it learns" in failure("augmentation", Plain, "observe")

    def test_an_augmentation_that_changes_the_logits_or_samples_numbers(self):
        class Changing(self.Adaptive):
            def observe(self, real):
                self.level.copy_(real[0].mul_(2).mean())

        class Sampling(self.Adaptive):
            def observe(self, real):
                self.level.copy_(torch.rand(()))

        assert "changes the logits in place" in failure("augmentation", Changing, "observe")
        assert "draws random numbers" in failure("augmentation", Sampling, "observe")
