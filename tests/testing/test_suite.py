"""The conformance kit finds what it says it finds: each check fails on a component that breaks its promise."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from p2pzoo.cli import main
from p2pzoo.plugin.batch import Pair
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import Entry
from p2pzoo.testing import CHECKS, Case, DoesNotApply, conformance, trials_of
from p2pzoo.testing.partners import Drawings, Judge, Squares, Translator, experiment
from p2pzoo.utils.errors import UserError


def case(kind, factory, **parameters):
    return Case.of(Entry(kind, "mine", factory, "mine", "mine 1.0"), parameters)


def failures(kind, factory):
    """{check: why it fails} of a component."""
    found = {}
    for check in CHECKS[kind]:
        try:
            check(case(kind, factory))
        except AssertionError as error:
            found[check.__name__.removeprefix("check_")] = str(error)
        except DoesNotApply:
            continue
    return found


def fails(kind, factory, check):
    """Why this check fails: the first line."""
    [found] = [each for each in CHECKS[kind] if each.__name__ == f"check_{check}"]
    with pytest.raises(AssertionError) as told:
        found(case(kind, factory))
    return str(told.value).splitlines()[0]


@pytest.mark.parametrize(
    ("kind", "factory"),
    [("generator", Translator), ("discriminator", Judge), ("gan_loss", Squares), ("dataset", Drawings)],
)
def test_the_kits_own_partners_keep_every_promise(kind, factory):
    assert failures(kind, factory) == {}


class TestGenerators:
    def test_a_range_beyond_one(self):
        class Loud(Translator):
            def forward(self, x):
                return 3 * super().forward(x) + 1

        assert "not within [-1, 1]" in fails("generator", Loud, "range")

    def test_another_size(self):
        class Cropped(Translator):
            def forward(self, x):
                return super().forward(x)[..., 1:, :]

        assert "not (2, 3, 32, 32)" in fails("generator", Cropped, "shapes")

    def test_a_size_divisor_that_is_not_true(self):
        class Halves(Translator):
            size_divisor = 2

            def forward(self, x):
                return nn.functional.interpolate(super().forward(x)[..., ::4, ::4], scale_factor=4)

        assert "ŷ of a (2, 3, 34, 36) x is" in fails("generator", Halves, "shapes")

    def test_channels_that_are_not_the_datas(self):
        class Red(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(3, 3)

        with pytest.raises(RuntimeError):
            CHECKS["generator"][0](case("generator", Red))

    def test_a_parameter_that_takes_no_part(self):
        class Idle(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.idle = nn.Conv2d(3, 3, 1)

        assert fails("generator", Idle, "gradients") == "no gradient reaches 'idle.weight' and 1 more"

    def test_first_weights_that_no_seed_makes(self):
        class Wild(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                nn.init.constant_(self.layers[0].bias, np.random.default_rng().random())

        assert "differs between two that one seed made" in fails("generator", Wild, "seed")

    def test_noise_in_eval_mode(self):
        class Noisy(Translator):
            def forward(self, x):
                return super().forward(x + 0.1 * torch.randn_like(x))

        assert fails("generator", Noisy, "modes") == "draws random numbers in eval mode"

    def test_a_norm_over_the_batch_in_eval_mode(self):
        class Together(Translator):
            def forward(self, x):
                return super().forward(x - x.mean(dim=0, keepdim=True))

        assert "depends on the rest of its batch" in fails("generator", Together, "modes")

    def test_code_of_its_own_for_training_unless_that_is_declared(self):
        class Two(Translator):
            def forward(self, x):
                return super().forward(x if self.training else -x)

        assert "declare why in known_failures" in fails("generator", Two, "modes")

    def test_dropout_and_batch_norm_are_no_code_of_its_own(self):
        class Usual(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.layers = nn.Sequential(nn.BatchNorm2d(in_channels), nn.Dropout(), self.layers)

        assert failures("generator", Usual) == {}

    def test_values_that_no_file_keeps(self):
        class Forgetful(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.register_buffer("scale", torch.rand(1), persistent=False)

            def forward(self, x):
                return super().forward(x) * self.scale

        assert "gives something else once it is read from its file" in fails("generator", Forgetful, "file")

    def test_memory_on_the_meta_device(self):
        class Heavy(Translator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.register_buffer("table", torch.zeros(2, device="cpu"))

        assert fails("generator", Heavy, "meta") == "allocates 'table'"

    def test_what_a_compiler_cannot_trace(self):
        class Curious(Translator):
            def forward(self, x):
                return super().forward(x) * (0.5 if x.mean().item() > 0 else 0.25)

        entry = Entry("generator", "mine", Curious, "mine", "mine 1.0")
        for check in CHECKS["generator"]:
            if check.__name__ in ("check_compile", "check_export"):
                with pytest.raises(Exception, match=r".+"):
                    check(Case.of(entry))

    def test_numbers_that_another_memory_format_changes(self):
        class Relaid(Translator):
            def forward(self, x):
                return super().forward(x) * (0.5 if self.layers[0].weight.is_contiguous() else 0.25)

        assert fails("generator", Relaid, "rewrites") == "gives another output"


class TestDiscriminators:
    def test_logits_that_are_no_list(self):
        class Bare(Judge):
            def forward(self, x, y):
                return super().forward(x, y)[0]

        assert fails("discriminator", Bare, "logits") == "gives a Tensor where a list of maps is expected"

    def test_features_of_one_scale_only(self):
        class One(Judge):
            def features(self, x, y):
                return super().features(x, y)[:1] if getattr(self, "asked", True) else super().features(x, y)

            def forward(self, x, y):
                self.asked = False
                maps = super().forward(x, y)
                self.asked = True
                return maps

        assert fails("discriminator", One, "logits") == "features has 1 lists, and there are 2 maps"

    def test_a_verdict_that_teaches_nothing(self):
        class Mute(Judge):
            def features(self, x, y):
                return super().features(x, y.detach())

        assert fails("discriminator", Mute, "gradients_reach_y") == "no gradient of its logits reaches ŷ"


class Distance:
    side = "generator"
    minimum = 0.0

    def __call__(self, out):
        return (out.y - out.y_hat).abs().mean()


class TestLosses:
    def test_a_good_one(self):
        assert failures("loss", Distance) == {}

    def test_a_map_in_place_of_a_number(self):
        class Map(Distance):
            def __call__(self, out):
                return (out.y - out.y_hat).abs()

        assert "is no scalar" in fails("loss", Map, "scalar")

    def test_a_minimum_that_is_not_reached(self):
        class Shifted(Distance):
            def __call__(self, out):
                return super().__call__(out) + 1

        assert fails("loss", Shifted, "minimum") == "is 1 where ŷ = y, and declares 0.0"

    def test_a_change_to_the_other_side(self):
        class Rude(Distance):
            def __call__(self, out):
                with torch.no_grad():
                    out.D.first.bias.add_(1)
                return super().__call__(out)

        assert fails("loss", Rude, "other_side") == "what G minimises changes D.first.bias"

    def test_a_gradient_to_g_from_ds_side(self):
        class Leaky(Distance):
            side = "discriminator"

            def __call__(self, out):
                return out.fake[0].mean() + out._attached.mean()

        assert fails("loss", Leaky, "other_side") == "what D minimises sends the generator a gradient"

    def test_a_gan_loss_below_its_minimum(self):
        class Deep(Squares):
            minimum = (0.5, None)

        assert fails("gan_loss", Deep, "minimum") == "what D minimises falls to 0, below 0.5"

    def test_a_gan_loss_that_does_not_reach_its_minimum(self):
        class High(Squares):
            minimum = (None, -1.0)

        assert fails("gan_loss", High, "minimum") == "what G minimises does not fall below 0 to -1.0"


class TestDatasets:
    def test_values_beyond_their_range(self):
        class Narrow(Drawings):
            x_range = (0.0, 100.0)

        assert "not within [-1, 1]" in fails("dataset", Narrow, "range")

    def test_ids_that_repeat(self):
        class Twins(Drawings):
            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair("one", pair.x, pair.y, pair.labels)

        assert fails("dataset", Twins, "ids") == "train has the id 'one' twice"

    def test_what_is_tested_was_trained_on(self):
        class Leak(Drawings):
            def __init__(self, split):
                super().__init__("train")
                self.own = split

            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair(f"{self.own}-{index}", pair.x, pair.y, pair.labels)

        assert "val and train share images" in fails("dataset", Leak, "splits")

    def test_pairs_that_change(self):
        class Restless(Drawings):
            def __getitem__(self, index):
                pair = super().__getitem__(index)
                return Pair(pair.id, np.random.default_rng().permutation(pair.x), pair.y, pair.labels)

        assert fails("dataset", Restless, "repeats") == "pair 0 differs from itself"

    def test_batches_that_are_cropped_apart(self, monkeypatch):
        from p2pzoo.data import loader

        cut = loader.TrainBatches._augmented

        def apart(self, sample):
            (pair, flipped), (other, _) = cut(self, sample), cut(self, sample + 1)
            return Pair(pair.id, pair.x, other.y, pair.labels), flipped

        monkeypatch.setattr(loader.TrainBatches, "_augmented", apart)
        assert fails("dataset", Drawings, "aligned") == "x and y show different places"


class Error:
    version, better = "1", "lower"

    def __init__(self, dataset):
        pass

    def measure(self, batch, y_hat):
        return {"error": (batch.y - y_hat).abs().flatten(1).mean(1)}

    def reduce(self, statistics):
        return {"value": statistics["error"].mean().item()}


class TestMetrics:
    def test_a_good_one(self):
        assert failures("metric", Error) == {}

    def test_a_direction_that_is_the_wrong_one(self):
        class Upside(Error):
            better = "higher"

        assert "where higher is better" in fails("metric", Upside, "perfect")

    def test_an_image_judged_by_its_neighbours(self):
        class Relative(Error):
            def measure(self, batch, y_hat):
                error = super().measure(batch, y_hat)["error"]
                return {"error": error / error.max()}

        assert fails("metric", Relative, "batches") == "'error' of an image depends on the rest of its batch"

    def test_an_order_that_counts(self):
        class First(Error):
            def reduce(self, statistics):
                return {"value": statistics["error"][0].item()}

        assert "depends on the order of images" in fails("metric", First, "order")


class TestCallbacks:
    def test_a_good_one(self):
        assert failures("callback", Callback) == {}

    def test_one_that_draws(self):
        class Drawing(Callback):
            def log(self, images, losses):
                torch.rand(1)

        assert fails("callback", Drawing, "changes_nothing") == "changes torch's random numbers"

    def test_one_that_rewrites_the_recipe(self):
        class Writing(Callback):
            def start(self, folder, recipe):
                recipe["seed"] = 1

        assert fails("callback", Writing, "changes_nothing") == "changes the recipe that it is told"


def test_training_meets_a_loss_that_explodes():
    class Infinite(Distance):
        def __call__(self, out):
            return super().__call__(out) / 0

    assert fails("loss", Infinite, "training") == "G.under_test is inf at step 0"


def test_widths_are_small_unless_they_are_given():
    class Wide(Translator):
        def __init__(self, in_channels, out_channels, *, width: int = 64):
            super().__init__(in_channels, out_channels)

    assert case("generator", Wide).component.values["width"] == 4
    assert case("generator", Wide, width=6).component.values["width"] == 6


def test_the_partners_play_without_any_plugin():
    game = experiment(case("loss", Distance).component, 32)
    assert {component.entry.plugin for component in game.components()} == {"kit", "mine"}


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
    def test_a_failure_is_one_line_of_a_table_and_exit_code_1(self, install):
        install("broken", PLUGIN)
        answer = CliRunner().invoke(main, ["check-plugin", "broken"])
        assert answer.exit_code == 1
        rows = {row.split()[0]: row.split()[1:] for row in answer.output.splitlines() if row.strip()}
        assert rows["loss"] == ["scalar", "gradients", "other_side", "minimum", "training"]
        assert rows["off"] == ["✓", "✓", "✓", "✗", "✓"]
        assert rows["declared"] == ["✓", "✓", "✓", "x", "✓"]
        assert "✗ loss.off minimum: is 1 where ŷ = y, and declares 0.0" in answer.output.splitlines()
        assert "x loss.declared minimum: it is one too much" in answer.output.splitlines()
        assert "8 pass, 1 fails, 1 expected failure" in answer.output

    def test_json_says_the_same(self, install):
        install("broken", PLUGIN)
        answer = CliRunner().invoke(main, ["check-plugin", "broken", "--json"])
        found = {(row["component"], row["check"]): row["status"] for row in json.loads(answer.stdout)}
        assert found["off", "minimum"] == "fail"
        assert found["off", "scalar"] == "pass"

    def test_an_unknown_plugin_is_exit_code_2_with_the_nearest(self):
        answer = CliRunner().invoke(main, ["check-plugin", "pix2pics"])
        assert answer.exit_code == 2
        assert "no plugin 'pix2pics': did you mean 'pix2pix'?" in answer.output

    def test_parameters_are_checked_as_a_recipes_are(self):
        answer = CliRunner().invoke(main, ["check-plugin", "earth", "-s", "earth.size=65"])
        assert answer.exit_code == 1
        assert "size = 65: input should be 64, 128 or 256" in answer.output

    def test_an_expected_failure_is_met_and_one_that_passes_is_a_failure(self, install):
        install("broken", PLUGIN)
        expected = {"off.minimum": "known", "off.scalar": "wrongly thought to fail"}
        found = {str(trial): trial.run() for trial in trials_of("broken", None, expected)}
        assert found["loss.off-minimum"].status == "expected failure"
        assert found["loss.off-minimum"].told == "known"
        assert found["loss.off-scalar"].status == "fail"
        assert found["loss.off-scalar"].told == "is expected to fail (wrongly thought to fail), and passes"

    def test_names_that_are_nobodys_and_reasons_that_are_none_are_refused(self, install):
        install("broken", PLUGIN)
        with pytest.raises(UserError, match="has no component 'of': did you mean 'off'"):
            conformance("broken", parameters={"of": {}})
        with pytest.raises(UserError, match="has no check 'minimun': did you mean 'minimum'"):
            conformance("broken", expected_failures={"minimun": "why"})
        with pytest.raises(UserError, match=r"'off\.minimum' needs a reason"):
            conformance("broken", expected_failures={"off.minimum": " "})
        with pytest.raises(UserError, match="no plugin 'brokn'"):
            conformance("brokn")

    def test_pytest_gets_a_test_for_each_component_and_check(self, install):
        install("broken", PLUGIN)
        [mark] = conformance("broken").pytestmark
        assert [str(trial) for trial in mark.args[1]] == [
            f"loss.{name}-{check}"
            for name in ("off", "declared")
            for check in ("scalar", "gradients", "other_side", "minimum", "training")
        ]

    def test_pytest_is_imported_only_where_tests_are_asked_for(self):
        code = "import sys, p2pzoo.testing; assert 'pytest' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestNewPlugin:
    def test_it_refuses_names_that_are_none_or_taken_and_folders_that_exist(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").mkdir()
        for arguments, told in (
            (["My Zoo"], "names no package"),
            (["my_zoo"], "names no package"),
            (["class"], "a word of Python's own"),
            (["json"], "a word of Python's own"),
            (["torch"], "a package torch is installed here already"),
            (["there"], "there: exists already"),
            (["my-zoo", "-o", "there"], "there: exists already"),
        ):
            answer = CliRunner().invoke(main, ["new-plugin", *arguments])
            assert answer.exit_code == 2
            assert told in answer.output
        assert list(tmp_path.rglob("*")) == [tmp_path / "there"]

    def test_what_it_writes_is_whole_and_names_only_itself(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        answer = CliRunner().invoke(main, ["new-plugin", "their-zoo", "-o", "deep/place"])
        assert answer.exit_code == 0
        root = tmp_path / "deep/place"
        files = {f.relative_to(root).as_posix(): f.read_text("utf-8") for f in root.rglob("*") if f.is_file()}
        assert set(files) == {
            "pyproject.toml", "README.md", "their-zoo.toml", "their_zoo/__init__.py", "their_zoo/generator.py",
            "their_zoo/loss.py", "tests/test_conformance.py", ".github/workflows/tests.yml",
        }  # fmt: skip
        assert not any("{{" in text for text in files.values())


class TestAugmentations:
    class Mirrored:
        """As it should be: pairs mirrored by their own number."""

        where, num_random = "pairs", 1

        def __call__(self, x, y, labels, u):
            return self.moved(x, u), self.moved(y, u), None if labels is None else self.moved(labels[:, None], u)[:, 0]

        @staticmethod
        def moved(images, u):
            return torch.where(u[:, :1, None, None] < 0.5, images.flip(-1), images)

    def test_a_good_one(self):
        assert failures("augmentation", self.Mirrored) == {}

    def test_one_that_leaves_y_where_it_was(self):
        class Alone(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return self.moved(x, u), y, labels

        assert "px apart" in fails("augmentation", Alone, "aligned")

    def test_one_that_leaves_the_labels_where_they_were(self):
        class Unlabelled(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return self.moved(x, u), self.moved(y, u), labels

        assert "px apart" in fails("augmentation", Unlabelled, "aligned")

    def test_one_that_draws_for_itself(self):
        class Drawing(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return super().__call__(x, y, labels, torch.rand_like(u))

        assert "draws random numbers" in fails("augmentation", Drawing, "repeats")

    def test_one_that_looks_at_the_rest_of_the_batch(self):
        class Levelled(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return x - x.mean(), y, labels

        assert "where other images stand beside it" in fails("augmentation", Levelled, "batches")

    def test_one_that_changes_shapes_and_one_that_leaves_the_range(self):
        class Cropped(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return x[..., 1:], y, labels

        class Glaring(self.Mirrored):
            def __call__(self, x, y, labels, u):
                return x * 2, y, labels

        assert "had the shape" in fails("augmentation", Cropped, "shapes")
        assert "leaves its range" in fails("augmentation", Glaring, "shapes")

    def test_one_that_cuts_the_gradient_to_g(self):
        class Cut(self.Mirrored):
            where = "discriminator"

            def __call__(self, x, y, labels, u):
                return x, y * 0, labels

        assert "a gradient of 0" in fails("augmentation", Cut, "gradients")
