"""Augmentations: their numbers follow from seed, name and sample alone; when they act; what they are to a run's id."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from p2pzoo_data_tools.preview import draw_preview
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.losses import Vanilla
from torch import nn

from p2pzoo import config
from p2pzoo.compute import distributed
from p2pzoo.compute.batched_discriminator import BatchedDiscriminator
from p2pzoo.compute.engine import Engine
from p2pzoo.data.augmentation import Augmentations, make_augmentations
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.protocols import Augmentation
from p2pzoo.plugin.registry import Entry, Registry
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Trainable
from p2pzoo.training.loop import train_step
from p2pzoo.training.lua_order import LuaObjective
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

SIZE = (8, 8)


class Brighter:
    """Adds its first random number to x and y, its second to y alone."""

    num_random = 2

    def __init__(self, where="pairs"):
        self.where = where

    def __call__(self, x, y, labels, u):
        first, second = (part.view(-1, 1, 1, 1) for part in u.unbind(1))
        return x + first, y + first + second, None if labels is None else labels + 1


class Onlooker(nn.Module):
    """A D that keeps what it was shown."""

    receptive_field = 1

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 1)
        self.shown = []

    def forward(self, x, y):
        self.shown.append((x, y))
        return [self.conv(torch.cat([x, y], 1))]

    def features(self, x, y):
        return [self.forward(x, y)]


def zeros(count, labels=False):
    images = torch.zeros(count, 3, *SIZE)
    marked = torch.zeros(count, *SIZE, dtype=torch.int64) if labels else None
    return Batch(images, images.clone(), tuple("abcdef"[:count]), marked)


def experiment(*overrides, known=None):
    return config.load("zoo:base.toml", "smoke", overrides, registry=known or registry())


def scene_of(count=2, seed=0, named=None):
    """A scene, the D in it, and the numbers (B, 3 moments, 2) that its augmentation adds."""
    augmentations = Augmentations(
        named or {"bright": Brighter("discriminator")}, batch_size=count, seed=seed
    )  # fmt: skip
    batch = augmentations(zeros(count), 0)
    D = Onlooker()
    y_hat = torch.ones(count, 3, *SIZE, requires_grad=True)

    def seen(moment, x, y):
        return augmentations.augment_for_d(batch.random, moment, x, y)

    return StepOutputs(batch, y_hat, D, augment=seen), D, batch.random.view(count, 3, 2)


def added(images):
    """What was added to each image of zeros."""
    assert torch.equal(images, images[:, :1, :1, :1].expand(images.shape))
    return images[:, 0, 0, 0].detach()


class TestRandomNumbers:
    def test_a_samples_numbers_do_not_depend_on_the_batch_size(self):
        named = {"pairs": Brighter(), "images": Brighter("discriminator")}
        whole = Augmentations(named, batch_size=6, seed=3)(zeros(6), 2)
        for size in (1, 2, 3):
            make = Augmentations(named, batch_size=size, seed=3)
            parts = [make(zeros(size), step) for step in range(12 // size, 18 // size)]
            for field in ("x", "y", "random"):
                assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))

    def test_a_step_of_several_batches_draws_the_numbers_of_single_batches(self):
        named = {"pairs": Brighter(), "images": Brighter("discriminator")}
        parts = Augmentations(named, batch_size=2, seed=3, batches_per_step=3)(zeros(6), 4).split(3)
        for part, batch in enumerate(parts):
            alone = Augmentations(named, batch_size=2, seed=3)(zeros(2), 4 * 3 + part)
            for field in ("x", "y", "random"):
                assert torch.equal(getattr(batch, field), getattr(alone, field))

    def test_augmentations_get_d_steps_from_the_recipe(self):
        made = experiment("train.d_steps=3", 'augmentations.turn={use="flip-rotate"}')
        assert make_augmentations(made, (3, 3), (64, 64)).batches_per_step == 3

    @pytest.mark.parametrize("setting", ["train.d_steps=2", "train.accumulate=2"])
    def test_each_image_keeps_its_numbers_when_a_step_has_several_parts(self, setting):
        overrides = ("train.batch_size=2", setting, 'augmentations.seen={use="diffaugment"}', "compute.device=cpu")
        made = experiment("generator.width=8", "discriminator.width=8", *overrides)
        objective = build_objective(made, Engine(made.compute), (3, 3), (64, 64))
        count = 2 * made.train.d_steps
        images = torch.rand(2, count, 3, 64, 64) * 2 - 1
        batch = objective.augmentations(Batch(*images, tuple("abcd"[:count])), 0)
        rows, augment_for_d = [], objective.augmentations.augment_for_d
        objective.augmentations.augment_for_d = lambda random, *rest: (
            rows.append(random) or augment_for_d(random, *rest)
        )
        objective.step(batch, 0)
        used = {tuple(row.tolist()) for random in rows for row in random}
        assert used == {tuple(row.tolist()) for row in batch.random}

    def test_each_process_draws_for_its_shard(self, monkeypatch):
        augmentations = Augmentations({"a": Brighter(), "b": Brighter("discriminator")}, batch_size=4, seed=0)
        whole = augmentations(zeros(4), 5)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda: 1)
        part = augmentations(zeros(2), 5)
        assert torch.equal(part.x, whole.x[2:])
        assert torch.equal(part.random, whole.random[2:])

    def test_numbers_depend_on_seed_name_and_sample(self):
        def drawn(name="a", seed=0, step=0):
            return added(Augmentations({name: Brighter()}, batch_size=1, seed=seed)(zeros(1), step).y).item()

        assert drawn() == drawn()
        assert len({drawn(), drawn(name="b"), drawn(seed=1), drawn(step=1)}) == 4

    def test_numbers_are_uniform_between_0_and_1(self):
        u = Augmentations({"a": Brighter()}, batch_size=2000, seed=0).sample(0)
        assert u.min() >= 0
        assert u.max() < 1
        assert u.mean(0) == pytest.approx([0.5, 0.5], abs=0.02)
        assert torch.corrcoef(u.T)[0, 1].abs() < 0.05


class TestPairs:
    def test_augmentations_act_in_order_on_x_y_and_labels(self):
        both = Augmentations({"a": Brighter(), "b": Brighter()}, batch_size=2, seed=0)(zeros(2, labels=True), 0)
        one, other = (Augmentations({n: Brighter()}, batch_size=2, seed=0)(zeros(2), 0) for n in "ab")
        assert torch.allclose(both.x, one.x + other.x)
        assert torch.allclose(both.y, one.y + other.y)
        assert torch.equal(both.labels, torch.full_like(both.labels, 2))
        assert both.ids == ("a", "b")

    def test_an_augmentation_that_changes_a_shape_is_named(self):
        class Cropping(Brighter):
            def __call__(self, x, y, labels, u):
                return x[..., 1:], y, labels

        with pytest.raises(UserError, match=r"\[augmentations.cut\] changed the shapes .* must keep their shapes"):
            Augmentations({"cut": Cropping()}, batch_size=1, seed=0)(zeros(1), 0)

    def test_a_step_is_taken_on_augmented_pairs_in_the_runs_memory_format(self):
        widths = ("generator.width=4", "discriminator.width=4")
        made = experiment(*widths, "compute.device=cpu", 'augmentations.a={use="flip-rotate"}')
        engine = Engine(made.compute)
        objective = build_objective(made, engine, (3, 3), (32, 32))
        objective.prepared_step = lambda batch, _: {"x": batch.x, "y": batch.y}
        plain = [Batch(*torch.rand(2, 1, 3, 32, 32), ("a",)) for _ in range(4)]
        for step, batch in enumerate(plain):
            logs = train_step(objective.step, engine, plain, step, 1e-4, 0, objective.augmentations)
            augmented = objective.augmentations(batch, step)
            assert torch.equal(logs["x"], augmented.x)
            assert torch.equal(logs["y"], augmented.y)
            assert logs["x"].is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(logs["x"], batch.x)

    def test_numbers_of_pairs_and_of_d_come_from_their_own_columns(self):
        named = {"seen": Brighter("discriminator"), "pairs": Brighter()}
        alone = [Augmentations({name: each}, batch_size=2, seed=0) for name, each in named.items()]
        both = Augmentations(named, batch_size=2, seed=0)
        batch = both(zeros(2), 0)
        assert torch.equal(batch.x, alone[1](zeros(2), 0).x)
        images = (torch.zeros(2, 3, *SIZE),) * 2
        of_d = alone[0].augment_for_d(alone[0].sample(0), "D.fake", *images)
        assert all(map(torch.equal, both.augment_for_d(batch.random, "D.fake", *images), of_d))

    def test_the_data_preview_shows_augmented_pairs(self):
        plain = draw_preview(experiment("dataset.stride=256"), "train", 2)
        turned = draw_preview(
            experiment("dataset.stride=256", 'augmentations.a={use="flip-rotate"}'), "train", 2
        )  # fmt: skip
        assert plain.size == turned.size
        assert plain.tobytes() != turned.tobytes()


class TestDiscriminator:
    def test_real_fake_and_the_step_of_g_have_different_numbers(self):
        out, D, u = scene_of()
        _ = out.real, out.fake
        moved = out.for_generator()
        _ = moved.fake, moved.real
        x, y = zip(*D.shown, strict=True)
        moments = [0, 1, 2, 2]  # in G's move D's features of real and fake are compared: both are changed alike
        base = [0, 1, 1, 0]
        for i, moment in enumerate(moments):
            assert torch.allclose(added(x[i]), u[:, moment, 0])
            assert torch.allclose(added(y[i]), base[i] + u[:, moment].sum(1))
        assert len({round(number, 6) for number in u.flatten().tolist()}) == u.numel()

    def test_features_and_logits_are_of_the_same_images(self):
        out, D, _ = scene_of()
        _ = out.real, out.real_features, out.fake, out.fake_features
        for one, other in ((0, 1), (2, 3)):
            assert torch.equal(D.shown[one][1], D.shown[other][1])

    def test_a_loss_that_calls_d_gets_the_augmentation_of_real_images(self):
        out, D, u = scene_of()
        _ = out.D(out.x, out.y), out.D.features(out.x, out.y), out.for_generator().D(out.x, out.y)
        for (_, y), moment in zip(D.shown, (0, 0, 2), strict=True):
            assert torch.allclose(added(y), u[:, moment].sum(1))
        assert out.D.receptive_field == 1
        _ = out.D(torch.cat([out.x, out.x]), torch.cat([out.y, out.y]))
        assert torch.allclose(added(D.shown[-1][1]), u[:, 0].sum(1).repeat(2))

    def test_losses_get_x_y_and_y_hat_without_augmentation(self):
        out, _, _ = scene_of()
        for moment in (out, out.for_generator()):
            _ = moment.fake
            assert not moment.x.any()
            assert not moment.y.any()
            assert (moment.y_hat == 1).all()

    def test_gradients_reach_g_through_augmentations_also_twice(self):
        out, _, _ = scene_of()
        moved = out.for_generator()
        moved.fake[0].mean().backward()
        assert moved.y_hat.grad.abs().sum() > 0
        y = out.y.clone().requires_grad_()
        [slope] = torch.autograd.grad(out.D(out.x, y)[0].square().sum(), y, create_graph=True)
        assert slope.square().sum().requires_grad

    def test_several_augmentations_act_in_order_with_different_numbers(self):
        named = {"a": Brighter("discriminator"), "b": Brighter("discriminator")}
        augmentations = Augmentations(named, batch_size=2, seed=0)
        drawn = augmentations(zeros(2), 0).random
        both, _ = augmentations.augment_for_d(drawn, "D.fake", *(torch.zeros(2, 3, *SIZE),) * 2)
        a, b = drawn.view(2, 2, 3, 2)[:, :, 1, 0].T
        assert torch.allclose(added(both), a + b)

    def test_a_step_equals_the_formulas_by_hand(self):
        [logs, G, D], [G2, D2, u, batch] = play(Objective)
        real, fake = batch.y + u[:, 0].sum(1).view(-1, 1, 1, 1), G2(batch.x)
        x_real, x_fake, x_g = (batch.x + u[:, moment, :1].view(-1, 1, 1, 1) for moment in range(3))
        d_fake, g_fake = (fake + u[:, moment].sum(1).view(-1, 1, 1, 1) for moment in (1, 2))
        d_loss = -(F.logsigmoid(D2(x_real, real)[0]).mean() + F.logsigmoid(-D2(x_fake, d_fake.detach())[0]).mean()) / 2
        descend(d_loss, sgd(D2).optimizer)
        g_loss = -F.logsigmoid(D2(x_g, g_fake)[0]).mean()
        descend(g_loss, sgd(G2).optimizer)
        for ours, by_hand in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
            torch.testing.assert_close(ours, by_hand)
        torch.testing.assert_close(logs["D.gan"], d_loss.detach())
        torch.testing.assert_close(logs["G.gan"], g_loss.detach())

    def test_losses_get_d_itself_when_only_pairs_are_augmented(self):
        given = []

        class Asking(Vanilla):
            def discriminator_loss(self, out):
                given.append(out.D)
                return super().discriminator_loss(out)

        G, D = nn.Conv2d(3, 3, 1), Onlooker()
        augmentations = Augmentations({"a": Brighter()}, batch_size=2, seed=0)
        objective = Objective(sgd(G), sgd(D), Asking(), [], descend, augmentations=augmentations)
        objective.step(augmentations(zeros(2), 0), 0)
        assert given == [D]

    def test_in_the_lua_order_g_is_trained_on_ds_logits_of_the_augmented_fakes(self):
        [logs, _, D], [G2, D2, u, batch] = play(LuaObjective)
        shown = G2(batch.x) + u[:, 2].sum(1).view(-1, 1, 1, 1)
        x = batch.x + u[:, 2, :1].view(-1, 1, 1, 1)
        torch.testing.assert_close(logs["G.gan"], -F.logsigmoid(D2(x, shown)[0]).mean().detach())
        assert not torch.equal(D.conv.weight, D2.conv.weight)

    @pytest.mark.parametrize(
        ("kind", "options", "counts"),
        [
            (Objective, {}, [4]),
            (LuaObjective, {}, [4]),
            (Objective, {"d_steps": 2}, [2, 2]),
            (functools.partial(AccumulatingObjective, parts=2), {}, [2, 2]),
        ],
        ids=["plain", "lua", "d_steps", "accumulate"],
    )
    def test_after_each_update_of_d_an_augmentation_may_observe_its_logits_of_real_images(self, kind, options, counts):
        observed = []

        class Observing(Brighter):
            def observe(self, real):
                observed.append(real)

        augmentations = Augmentations({"a": Observing("discriminator"), "b": Brighter()}, batch_size=4, seed=0)
        G, D = nn.Conv2d(3, 3, 1), Onlooker()
        parts = len(counts) if kind not in (Objective, LuaObjective) else 1

        def step(losses, optimizer):
            for loss in losses if parts > 1 else [losses]:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        objective = kind(sgd(G), sgd(D), Vanilla(), [], step, augmentations=augmentations, **options)
        logs = objective.step(augmentations(zeros(4), 0), 0)
        assert [len(real[0]) for real in observed] == counts
        assert not any(logits.requires_grad for real in observed for logits in real)
        means = [real[0].mean() for real in observed]
        torch.testing.assert_close(logs["D.real"], means[-1] if parts == 1 else sum(means) / parts)

    def test_one_batched_pass_sees_the_same_images_as_two_passes(self):
        def judged(one_pass):
            torch.manual_seed(0)
            D = PatchDiscriminator(3, 3, (32, 32), width=4).double()
            both = BatchedDiscriminator(D) if one_pass else None
            augmentations = Augmentations({"a": Brighter("discriminator")}, batch_size=2, seed=0)
            batch = augmentations(Batch(*torch.rand(2, 2, 3, 32, 32, dtype=torch.float64), ("a", "b")), 0)
            out = StepOutputs(
                batch, batch.x, D, judge_both=both,
                augment=lambda *args: augmentations.augment_for_d(batch.random, *args),
            )  # fmt: skip
            return Vanilla().discriminator_loss(out)

        torch.testing.assert_close(judged(True), judged(False), rtol=1e-10, atol=0)

    def test_images_of_the_pool_are_augmented_like_fakes(self):
        out, D, u = scene_of()
        old = torch.full((2, 3, *SIZE), 5.0)
        pooled = StepOutputs(out.batch, out.y_hat, D, pooled=(old, old), augment=out.augment)
        _ = pooled.fake
        assert torch.allclose(added(D.shown[-1][0]), 5 + u[:, 1, 0])


def sgd(network):
    return Trainable(network, torch.optim.SGD(network.parameters(), lr=0.1))


def descend(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def play(kind):
    """A step of this objective: what it logs, its G and D; and what to compute it from by hand."""
    torch.manual_seed(0)
    G, D = nn.Conv2d(3, 3, 1), Onlooker()
    augmentations = Augmentations({"a": Brighter("discriminator")}, batch_size=2, seed=0)
    batch = augmentations(Batch(*torch.rand(2, 2, 3, *SIZE), ("a", "b")), 0)
    by_hand = copy.deepcopy(G), copy.deepcopy(D), batch.random.view(2, 3, 2), batch
    logs = kind(sgd(G), sgd(D), Vanilla(), [], descend, augmentations=augmentations).step(batch, 0)
    return (logs, G, D), by_hand


class TestRecipe:
    RESULTS = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("*/recipe.toml"))

    @pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.parent.name)
    def test_run_ids_are_unchanged_and_recipes_without_augmentations_omit_the_table(self, file):
        made = config.load(str(file))
        assert file.parent.name.endswith(f"-{made.id}")
        assert ("augmentations" in made.identity()) == ("[augmentations." in file.read_text("utf-8"))

    def test_augmentations_and_their_order_are_part_of_the_run_id(self):
        flip, warp = 'augmentations.a={use="flip-rotate"}', 'augmentations.b={use="affine"}'
        made = [
            experiment(), experiment(flip), experiment(flip, "augmentations.a.vertical=0"),
            experiment(flip.replace(".a=", ".c=")), experiment(flip, warp), experiment(warp, flip),
        ]  # fmt: skip
        assert len({each.id for each in made}) == len(made)
        assert "augment:flip-rotate" in [component.entry.full_name for component in made[1].components()]

    def test_a_resolved_recipe_keeps_the_order(self, tmp_path):
        import tomli_w

        made = experiment('augmentations.z={use="affine"}', 'augmentations.a={use="flip-rotate"}')
        (tmp_path / "again.toml").write_text(tomli_w.dumps(made.resolved()))
        again = config.load(str(tmp_path / "again.toml"))
        assert list(again.augmentations) == ["z", "a"]
        assert again.id == made.id

    def test_the_diff_of_two_recipes_shows_the_order(self, run_cli, tmp_path):
        tables = [f'[augmentations.{name}]\nuse = "flip-rotate"\n' for name in "ab"]
        for name, text in (("one", tables), ("other", reversed(tables))):
            (tmp_path / f"{name}.toml").write_text('extends = "zoo:base.toml"\n' + "".join(text))
        logs = json.loads(run_cli("diff", tmp_path / "one.toml", tmp_path / "other.toml", "--json").output)
        assert logs == [{"key": "augmentations", "a": ["a", "b"], "b": ["b", "a"]}]

    def test_faults_are_reported_with_their_lines(self):
        with pytest.raises(UserError) as caught:
            experiment('augmentations.a={use="flip-rotat"}', 'augmentations.b={use="affine", weight=2, degrees=-1}')
        logs = "\n".join(caught.value.faults)
        for part in (
            "did you mean 'flip-rotate'?",
            "[augmentations.b] has no weight",
            "[augmentations.b] degrees = -1",
        ):
            assert part in logs

    def test_augmentations_of_ds_images_need_a_discriminator(self):
        made = experiment('drop=["discriminator", "gan_loss"]', 'augmentations.a={use="diffaugment"}')
        with pytest.raises(
            UserError, match=r"\[augmentations.a\] augments what the discriminator sees, and this recipe"
        ):
            make_augmentations(made, (3, 3), (32, 32))

    def test_an_augmentation_with_parameters_to_train_is_refused(self):
        class Trained(Brighter, nn.Module):
            def __init__(self):
                nn.Module.__init__(self)
                Brighter.__init__(self)
                self.strength = nn.Parameter(torch.zeros(()))

        known = Registry([*registry(), Entry("augmentation", "trained", Trained, "test", "test")])
        made = experiment('augmentations.a={use="trained"}', known=known)
        with pytest.raises(UserError, match=r"\[augmentations.a\] has a parameter 'strength', which nothing trains"):
            make_augmentations(made, (3, 3), (32, 32))

    def test_all_faults_are_reported_at_once_before_anything_is_written(self, run_cli, tmp_path):
        known = Registry([*registry(), Entry("augmentation", "odd", lambda: Brighter("nowhere"), "test", "test")])
        made = experiment(
            'augmentations.a={use="odd"}', 'augmentations.b={use="affine", scale=[2, 1]}', known=known
        )  # fmt: skip
        with pytest.raises(UserError) as caught:
            make_augmentations(made, (3, 3), (32, 32))
        assert len(caught.value.faults) == 2
        assert "has where 'nowhere'" in caught.value.faults[0]
        assert "give the minimum factor first" in caught.value.faults[1]
        recipe = ("run", "zoo:base.toml", "--profile", "smoke", "--runs", tmp_path, "-s", "dataset.stride=256")
        answer = run_cli(*recipe, "-s", 'augmentations.b={use="affine", scale=[2, 1]}')
        assert answer.exit_code == 2
        assert "augmentation 'affine': scale = [2.0, 1.0]" in answer.output
        assert list(tmp_path.iterdir()) == []

    def test_without_augmentations_the_objective_is_unchanged(self):
        made = experiment("compute.device=cpu", "generator.width=4", "discriminator.width=4")
        assert build_objective(made, Engine(made.compute), (3, 3), (32, 32)).augmentations is None

    def test_first_party_augmentations_satisfy_their_interface(self):
        for entry in registry().of("augmentation"):
            offered = {"in_channels": 3, "out_channels": 3, "size": (32, 32)}
            from p2pzoo.plugin import schema

            made = schema.call_factory(entry.load(), offered, schema.check_params(entry.load(), {}))
            assert isinstance(made, Augmentation), entry
