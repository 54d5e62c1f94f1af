"""The conformance kit finds components that change their arguments, sample on their own, or leave their device."""

import numpy as np
import pytest
import torch
from component_failures import Distance, Error, failure, failures
from torch import nn
from torch.nn import functional as F

from p2pzoo.testing.tiny_components import TinyDiscriminator, TinyGanLoss, TinyGenerator


class Darker:
    where, num_random = "pairs", 1

    def __call__(self, x, y, labels, random):
        scale = random[:, :1, None, None]
        return x * scale, y * scale, labels


class TestInputs:
    def test_a_generator_that_changes_x(self):
        class Rude(TinyGenerator):
            def forward(self, x):
                return super().forward(x.mul_(0.5))

        found = failures("generator", Rude, checks=["inputs", "modes"])
        assert found["inputs"] == "in training mode it changes x in place: compute a new tensor instead"
        assert "modes" not in found, "a change of x is no dependence on the batch"

    def test_a_discriminator_whose_features_change_y(self):
        class Rude(TinyDiscriminator):
            def features(self, x, y):
                return super().features(x, y.clamp_(-0.5, 0.5))

        assert "changes y in place" in failure("discriminator", Rude, "inputs")

    def test_a_loss_that_changes_labels(self):
        class Rude(Distance):
            def __call__(self, out):
                out.batch.labels.clamp_(max=1)
                return super().__call__(out)

        assert failure("loss", Rude, "inputs").startswith("changes labels in place")

    def test_a_gan_loss_that_changes_y_hat(self):
        class Rude(TinyGanLoss):
            def discriminator_loss(self, out):
                out.y_hat.clamp_(-0.1, 0.1)
                return super().discriminator_loss(out)

        assert failure("gan_loss", Rude, "inputs").startswith("the loss of D changes ŷ in place")

    def test_a_metric_that_changes_x(self):
        class Rude(Error):
            def measure(self, batch, y_hat):
                batch.x.zero_()
                return super().measure(batch, y_hat)

        assert failure("metric", Rude, "inputs").startswith("changes x in place")

    def test_an_augmentation_that_changes_its_arguments(self):
        class Rude(Darker):
            def __call__(self, x, y, labels, random):
                return x.mul_(random[:, :1, None, None]), y, labels

        assert failure("augmentation", Rude, "inputs").startswith("changes x in place")


class TestRandomNumbers:
    @pytest.mark.parametrize(
        "sample",
        [
            lambda self, x: torch.rand(x.shape, generator=self.own),
            lambda self, x: torch.from_numpy(np.random.default_rng().random(x.shape, np.float32)),
        ],
        ids=["own generator", "unseeded"],
    )
    def test_a_generator_with_random_numbers_of_its_own(self, sample):
        class Noisy(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.own = torch.Generator().manual_seed(0)

            def forward(self, x):
                return super().forward(x + sample(self, x))

        found = failures("generator", Noisy, checks=["random_numbers", "modes"])
        assert "it has its own random numbers" in found["random_numbers"]
        assert "modes" not in found, "random numbers are no dependence on the batch"

    def test_a_generator_that_samples_with_numpy(self):
        class Noisy(TinyGenerator):
            def forward(self, x):
                return super().forward(x) * float(np.random.rand())

        assert "samples NumPy's random numbers" in failure("generator", Noisy, "random_numbers")

    def test_noise_of_torch_in_training_mode_is_allowed(self):
        class Noisy(TinyGenerator):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                self.layers = nn.Sequential(nn.utils.parametrizations.spectral_norm(self.layers[0]), self.layers[2])

            def forward(self, x):
                return super().forward(F.dropout(x, 0.5, self.training))

        assert failures("generator", Noisy, checks=["random_numbers", "inputs", "device"]) == {}

    def test_a_loss_with_random_numbers_of_its_own(self):
        class Noisy(Distance):
            def __init__(self):
                self.own = np.random.default_rng(0)

            def __call__(self, out):
                return super().__call__(out) * self.own.random()

        assert "it has its own random numbers" in failure("loss", Noisy, "random_numbers")

    def test_a_loss_that_samples_with_torch_is_allowed(self):
        class Noisy(Distance):
            minimum = None

            def __call__(self, out):
                return super().__call__(out) * (1 + torch.rand((), device=out.y.device))

        assert failures("loss", Noisy) == {}

    def test_a_metric_with_random_numbers(self):
        class Noisy(Error):
            def measure(self, batch, y_hat):
                noise = np.random.default_rng().random(len(y_hat))
                return {"error": super().measure(batch, y_hat)["error"] + torch.from_numpy(noise)}

        assert "it has its own random numbers" in failure("metric", Noisy, "random_numbers")


class TestDevice:
    def test_a_generator_that_makes_a_tensor_on_the_cpu(self):
        class Ramp(TinyGenerator):
            def forward(self, x):
                return super().forward(x + torch.linspace(-1, 1, x.shape[-1]))

        found = failures("generator", Ramp)
        assert found.keys() == {"device"}
        assert "with a tensor on the CPU and one on the device of x (test_side_effects.py:" in found["device"]

    @pytest.mark.parametrize(
        "compute",
        [
            lambda x: torch.cat([x, torch.zeros(len(x), 1, *x.shape[2:])], 1)[:, :3],
            lambda x: F.grid_sample(x, torch.zeros(len(x), *x.shape[2:], 2), align_corners=False),
            lambda x: F.conv2d(x, torch.zeros(3, 3, 1, 1)) + x,
        ],
        ids=["cat", "grid_sample", "conv2d"],
    )
    def test_operations_that_torch_does_not_always_refuse(self, compute):
        class Mixed(TinyGenerator):
            def forward(self, x):
                return super().forward(compute(x))

        assert "device" in failure("generator", Mixed, "device")

    def test_a_scalar_an_index_and_a_copy_may_come_from_the_cpu(self):
        class Fine(TinyGenerator):
            def forward(self, x):
                x = x * torch.tensor(0.5) + torch.zeros(1, x.shape[1], 1, 1).to(x.device)
                return super().forward(x[:, torch.arange(x.shape[1])])

        assert failures("generator", Fine, checks=["device"]) == {}

    def test_a_loss_with_labels_on_the_cpu(self):
        class Ones(TinyGanLoss):
            def generator_loss(self, out):
                return torch.stack([F.mse_loss(m, torch.ones(m.shape)) for m in out.fake]).mean()

        assert "computes" in failure("gan_loss", Ones, "device")

    def test_a_loss_that_keeps_a_tensor_and_is_no_module(self):
        class Keeps(Distance):
            def __init__(self):
                self.weights = torch.ones(1, 3, 1, 1)

            def __call__(self, out):
                return ((out.y - out.y_hat).abs() * self.weights).mean()

        assert "keep it in a buffer" in failure("loss", Keeps, "device")

    def test_an_augmentation_with_a_constant_on_the_cpu(self):
        class Fixed(Darker):
            def __call__(self, x, y, labels, random):
                return x * torch.ones(1, 3, 1, 1), y, labels

        assert "with a tensor on the CPU" in failure("augmentation", Fixed, "device")

    def test_autocast_on_the_device_of_x(self):
        class Careful(Distance):
            def __call__(self, out):
                with torch.autocast(out.y.device.type, enabled=False):
                    return super().__call__(out)

        assert failures("loss", Careful) == {}


class Labelled(Distance):
    minimum = None

    def __call__(self, out):
        return (out.y - out.y_hat).abs().mean() * (1 + (out.batch.labels > 0).float().mean())


class TestNeeds:
    def test_a_loss_that_reads_labels_must_say_so(self):
        found = failures("loss", Labelled)
        assert found.keys() == {"needs"}
        assert found["needs"].startswith("reads `labels` of the batch (")
        assert found["needs"].endswith('but is registered without needs=("labels",)')
        assert failures("loss", Labelled, needs=("labels",)) == {}

    def test_a_metric_that_reads_blocks(self):
        class Blocked(Error):
            def measure(self, batch, y_hat):
                return {"error": torch.tensor([float(batch.blocks[i] is None) for i in range(len(y_hat))])}

        assert "reads `blocks` of the batch" in failure("metric", Blocked, "needs")

    def test_an_augmentation_that_reads_labels(self):
        class Striped(Darker):
            def __call__(self, x, y, labels, random):
                return x * (labels[:, None] % 2), y, labels

        assert "reads `labels` of the batch" in failure("augmentation", Striped, "needs")
        assert failures("augmentation", Striped, needs=("labels",), checks=["needs", "repeats", "batches"]) == {}
