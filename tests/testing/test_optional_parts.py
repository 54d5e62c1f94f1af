"""Each check of what a network may offer or ask for fails on one that does not keep its interface."""

import pytest
import torch
from component_failures import Distance, case, failure, failures
from torch import nn
from torch.nn import functional as F

from p2pzoo.testing import CHECKS, DoesNotApply
from p2pzoo.testing.tiny_components import TinyDiscriminator, TinyGenerator, TinyNoisyGenerator, TinyTimeGenerator


class TestZ:
    def test_one_that_keeps_the_interface_passes(self):
        checks = ("z", "features", "random_numbers", "training", "resume")
        assert failures("generator", TinyNoisyGenerator, checks=checks) == {}

    def test_a_generator_that_takes_none(self):
        with pytest.raises(DoesNotApply, match="takes no z"):
            CHECKS["generator"]["z"](case("generator", TinyGenerator))

    def test_a_z_that_is_ignored_or_not_sampled_or_not_the_only_one(self):
        class Ignoring(TinyNoisyGenerator):
            def forward(self, x, z=None):
                return torch.tanh(self.layers(x))

        class Constant(TinyNoisyGenerator):
            def draw_z(self, x):
                return torch.ones_like(x[:, :1])

        class Drawing(TinyNoisyGenerator):
            def forward(self, x, z=None):
                return super().forward(x, z) * torch.rand(())

        assert "does not depend on z" in failure("generator", Ignoring, "z")
        assert "returns the same z twice" in failure("generator", Constant, "z")
        assert "two results for the same z" in failure("generator", Drawing, "z")

    def test_a_loss_that_uses_it_needs_it(self):
        class Diverse:
            side = "generator"

            def __call__(self, out):
                return -(out.G(out.x, z=out.G.draw_z(out.x)) - out.y).abs().mean()

        assert 'without needs=("z",)' in failure("loss", Diverse, "needs")


class TestFeatures:
    def test_tensors_without_a_place(self):
        class Flat(TinyGenerator):
            def features(self, x):
                return [super(Flat, self).features(x)[0].mean((2, 3))]

        assert "a tensor of the shape (2, 4), not (B, C, h, w)" in failure("generator", Flat, "features")

    @pytest.mark.parametrize("returned", [lambda x: x, lambda x: [], lambda x: [None]], ids=["tensor", "empty", "None"])
    def test_something_else_than_a_list(self, returned):
        class Other(TinyGenerator):
            def features(self, x):
                return returned(super().features(x)[0])

        assert failure("generator", Other, "features") == "`features` does not return a list of tensors"

    def test_features_without_gradients(self):
        class Detached(TinyGenerator):
            def features(self, x):
                return [x.detach() * self.layers[0].weight.sum()]

        assert failure("generator", Detached, "features") == "no gradient of `features` reaches x"

    def test_features_that_change_x(self):
        class Rude(TinyGenerator):
            def features(self, x):
                return super().features(x.mul_(0.5))

        assert "changes x in place" in failure("generator", Rude, "inputs")

    def test_a_generator_that_takes_the_time_has_features_with_it_and_without(self):
        class Untimed(TinyTimeGenerator):
            def features(self, x):
                return super().features(x)

        class OnlyTimed(TinyTimeGenerator):
            def features(self, x, t):
                return super().features(x)

        CHECKS["generator"]["features"](case("generator", TinyTimeGenerator))
        for kind in (Untimed, OnlyTimed):
            with pytest.raises(TypeError, match="positional argument"):
                CHECKS["generator"]["features"](case("generator", kind))

    def test_a_generator_without_features_passes(self):
        class Bare(nn.Module):
            def __init__(self, in_channels, out_channels):
                super().__init__()
                self.layer = nn.Conv2d(in_channels, out_channels, 1)

            def forward(self, x):
                return torch.tanh(self.layer(x))

        with pytest.raises(DoesNotApply):
            CHECKS["generator"]["features"](case("generator", Bare))


class Contrast(nn.Module):
    """A loss on the features of G with layers for them."""

    side = "generator"

    def __init__(self, feature_channels):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(count, 2, 1) for count in feature_channels)

    def forward(self, out):
        pairs = zip(self.heads, out.G.features(out.x), out.G.features(out.y_hat), strict=True)
        return torch.stack([(head(a) - head(b)).square().mean() for head, a, b in pairs]).sum()


class TestLossesWithFeatures:
    def test_one_that_keeps_the_interface_passes(self):
        assert failures("loss", Contrast, needs=("features",)) == {}

    def test_features_without_needs(self):
        class Reads(Distance):
            minimum = None

            def __call__(self, out):
                return super().__call__(out) + out.G.features(out.x)[0].square().mean()

        assert failures("loss", Reads, needs=("features",)) == {}
        message = failure("loss", Reads, "needs")
        assert message.startswith("reads `features` of G (")
        assert message.endswith('is registered without needs=("features",)')

    def test_a_loss_of_d_that_calls_g(self):
        class OfD(Distance):
            side = "discriminator"

            def __call__(self, out):
                return out.G(out.x).mean() + out.real[0].mean()

        with pytest.raises(ValueError, match=r'out\.G is for losses with side = "generator"'):
            CHECKS["loss"]["gradients"](case("loss", OfD))


class Projection(TinyDiscriminator):
    """The logits of TinyDiscriminator plus the inner product with an embedding of the labels (arXiv:1802.05637)."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.embed = nn.Embedding(4, 4)

    def forward(self, x, y, labels):
        return [self.last(h) + self.project(h, labels) for [h] in self.features(x, y, labels)]

    def features(self, x, y, labels):
        return super().features(x, y)

    def project(self, h, labels):
        small = F.interpolate(labels[:, None].float(), h.shape[2:])[:, 0].long()
        return (h * self.embed(small).permute(0, 3, 1, 2)).sum(1, keepdim=True)


class TestLabels:
    def test_a_projection_discriminator_passes(self):
        assert failures("discriminator", Projection, needs=("labels",)) == {}

    def test_labels_that_change_nothing(self):
        class Deaf(Projection):
            def project(self, h, labels):
                return 0 * super().project(h, labels)

        assert "its logits do not depend on labels" in failure("discriminator", Deaf, "labels", needs=("labels",))

    def test_labels_that_are_changed_in_place(self):
        class Rude(Projection):
            def project(self, h, labels):
                return super().project(h, labels.clamp_(max=1))

        assert "changes labels in place" in failure("discriminator", Rude, "inputs", needs=("labels",))

    def test_an_augmentation_for_d_that_leaves_labels_where_they_are(self):
        class Mirror:
            where, num_random = "discriminator", 1

            def __call__(self, x, y, labels, random):
                return x.flip(-1), y.flip(-1), labels

        class Forgets(Mirror):
            def __call__(self, x, y, labels, random):
                return x, y, None

        assert "misaligned" in failure("augmentation", Mirror, "aligned")
        assert failure("augmentation", Forgets, "shapes") == "returns no labels where it is given them"


class Seeing(TinyGenerator):
    """A code z of y in training, N(0, 1) at use."""

    sees_target = True

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels + 1, out_channels)
        self.loss_weights = {"kl": 0.1}
        self.encode = nn.Conv2d(out_channels, 2, 1)

    def forward(self, x, y=None):
        if y is None:
            return self.decode(x, torch.randn(len(x), 1, 1, 1, device=x.device, dtype=x.dtype))
        mean, log_variance = self.encode(y).mean((2, 3), keepdim=True).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decode(x, z), {"kl": self.kl(mean, log_variance)}

    def kl(self, mean, log_variance):
        return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2

    def decode(self, x, z):
        return super().forward(torch.cat([x, z.expand(-1, -1, *x.shape[2:])], dim=1))

    def features(self, x):
        return super().features(torch.cat([x, torch.zeros_like(x[:, :1])], dim=1))


class TestSeesTarget:
    def test_one_that_keeps_the_interface_passes(self):
        assert failures("generator", Seeing) == {}

    def test_a_generator_that_does_not_see_it_passes(self):
        with pytest.raises(DoesNotApply):
            CHECKS["generator"]["sees_target"](case("generator", TinyGenerator))

    def test_one_that_takes_the_time_too(self):
        class Timed(Seeing):
            takes_time = True

        message = "has `sees_target` and `takes_time`: it can have one of the two"
        assert failure("generator", Timed, "sees_target") == message

    def test_weights_of_other_losses(self):
        class Other(Seeing):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.loss_weights = {"code": 1.0}

        assert "returns the losses ['kl'] for G(x, y), and its loss_weights are for ['code']" in failure(
            "generator", Other, "sees_target"
        )

    def test_no_weights(self):
        class Without(Seeing):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                del self.loss_weights

        assert "`loss_weights` is None" in failure("generator", Without, "sees_target")

    def test_a_loss_for_each_image(self):
        class Rows(Seeing):
            def kl(self, mean, log_variance):
                return mean.square().flatten(1).sum(1)

        assert failure("generator", Rows, "sees_target") == "its loss 'kl' is no scalar tensor"

    def test_an_infinite_loss(self):
        class Infinite(Seeing):
            def kl(self, mean, log_variance):
                return super().kl(mean, log_variance) / 0

        assert failure("generator", Infinite, "sees_target") == "its loss 'kl' is inf"

    def test_losses_without_a_target_too(self):
        class Always(Seeing):
            def forward(self, x, y=None):
                return super().forward(x, x if y is None else y)

        assert failure("generator", Always, "sees_target") == "G(x) does not return ŷ alone"

    def test_an_image_alone(self):
        class Alone(Seeing):
            def forward(self, x, y=None):
                return super().forward(x)

        message = failure("generator", Alone, "sees_target")
        assert message.startswith("the generator has sees_target = True and returns a Tensor for G(x, y)")

    def test_a_part_that_neither_use_trains(self):
        class Idle(Seeing):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.idle = nn.Conv2d(3, 3, 1)

        assert "no gradient reaches 'idle.weight'" in failure("generator", Idle, "gradients")


class Adapted(TinyGenerator):
    """A layer whose weights come from elsewhere, and low-rank matrices beside it."""

    external_weights = ("layers.0", "norm")

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(4)
        self.down, self.up = nn.Conv2d(in_channels, 1, 1), nn.Conv2d(1, 4, 1)

    def init_own_weights(self):
        with torch.no_grad():
            for weight in self.layers[0].parameters():
                weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return torch.tanh(self.layers[2](self.features(x)[0]))

    def features(self, x):
        return [self.layers[1](self.norm(self.layers[0](x)) + self.up(self.down(x)))]


class TestExternalWeights:
    def test_one_that_keeps_the_interface_passes(self):
        assert failures("generator", Adapted) == {}

    def test_a_discriminator_that_keeps_the_interface_passes(self):
        class Frozen(TinyDiscriminator):
            external_weights = ("first",)

            def init_own_weights(self):
                for parameter in self.first.parameters():
                    nn.init.constant_(parameter, 0.1)

        assert failures("discriminator", Frozen) == {}

    def test_a_network_without_any_passes(self):
        with pytest.raises(DoesNotApply):
            CHECKS["generator"]["external_weights"](case("generator", TinyGenerator))

    def test_weights_that_follow_from_the_seed(self):
        class Drawn(Adapted):
            def init_own_weights(self):
                nn.init.normal_(self.layers[0].weight)

        assert "differ from build to build" in failure("generator", Drawn, "external_weights")

    def test_a_name_of_nothing(self):
        class Misspelt(Adapted):
            external_weights = ("layer.0",)

        assert "names 'layer.0', which is no parameter" in failure("generator", Misspelt, "external_weights")

    def test_norms_that_training_changes(self):
        class Drifting(Adapted):
            def train(self, mode=True):
                return nn.Module.train(self, mode)

        assert "training changes its external weights" in failure("generator", Drifting, "external_weights")


class TestInterval:
    def bounded(self, bounds):
        class Bounded(TinyGenerator):
            def interval(self, x):
                return bounds(self(x))

        return Bounded

    def test_one_that_keeps_the_interface_passes(self):
        assert failures("generator", self.bounded(lambda y: (y - 0.1, y))) == {}

    def test_a_generator_without_it_passes(self):
        with pytest.raises(DoesNotApply):
            CHECKS["generator"]["interval"](case("generator", TinyGenerator))

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [
            (lambda y: (y, y - 0.1), "its lower bound is above its upper one"),
            (lambda y: (y, y / 0), "its upper bound is nan or inf"),
            (lambda y: (y[:, :1], y), "its lower bound has the shape (2, 1, 32, 32), not (2, 3, 32, 32)"),
            (lambda y: torch.cat([y, y]), "`interval` does not return a tuple of two tensors"),
        ],
        ids=["crossing", "infinite", "shape", "tensor"],
    )
    def test_one_that_does_not(self, bounds, message):
        assert failure("generator", self.bounded(bounds), "interval") == message
