"""Each check of a process fails on one that does not satisfy its interface."""

import json
import sys

import numpy as np
import pytest
import torch
from component_failures import failure, failures
from torch import nn

from p2pzoo.testing.tiny_components import TinyDataset


class Line:
    """s_t = (1 - t) y + t x, as a process that passes."""

    def __init__(self, in_channels, out_channels):
        if in_channels != out_channels:
            raise ValueError("other channels")
        self.channels = 2 * in_channels + 1

    def time(self, u):
        return 1 - u

    def noised(self, x, y, u, z):
        t = self.time(u)
        w = t[:, None, None, None]
        return see(x, (1 - w) * y + w * x, w), t

    def sampler(self, G):
        return Ask(G)


class Ask(nn.Module):
    def __init__(self, G):
        super().__init__()
        self.G = G

    def forward(self, x):
        return self.G(see(x, x, torch.ones_like(x[:1, :1, :1, :1])))


def see(x, s, t):
    return torch.cat([x, s, t.expand(x.shape[0], 1, *x.shape[2:])], dim=1)


def test_a_process_that_keeps_the_interface_passes():
    assert failures("process", Line) == {}


class TestNoised:
    def test_fewer_channels_than_declared(self):
        class Short(Line):
            def noised(self, x, y, u, z):
                seen, t = super().noised(x, y, u, z)
                return seen[:, :-1], t

        assert "gives G (2, 6, 32, 32): it must be (2, 7, 32, 32)" in failure("process", Short, "shapes")

    def test_one_time_for_all_images(self):
        class Single(Line):
            def noised(self, x, y, u, z):
                seen, t = super().noised(x, y, u, z)
                return seen, t[:1]

        assert "times of the shape (1,)" in failure("process", Single, "shapes")

    def test_refusing_equal_channels(self):
        class Grey(Line):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels)
                if in_channels == 1:
                    raise ValueError("no grey images")

        with pytest.raises(Exception, match="no grey images"):
            failure("process", Grey, "shapes")

    @pytest.mark.parametrize(
        ("time", "message"),
        [
            (lambda self, u: u, "no u gives t = 1: the largest time is 0.999"),
            (lambda self, u: 1 - 2 * u, "a time is -0.998, below 0"),
            (lambda self, u: 2 - u, "a time is 2, above 1"),
        ],
    )
    def test_times_outside_of_their_range(self, time, message):
        assert message in failure("process", type("Other", (Line,), {"time": time}), "times")

    def test_a_time_that_g_cannot_see(self):
        class Blind(Line):
            def noised(self, x, y, u, z):
                seen, t = super().noised(x, y, u, z)
                return torch.cat([seen[:, :6], torch.zeros_like(seen[:, 6:])], 1), t

        assert "add a channel with t" in failure("process", Blind, "time_is_seen")

    def test_random_numbers_of_its_own(self):
        class Drawing(Line):
            def noised(self, x, y, u, z):
                return super().noised(x, y + torch.randn_like(y), u, z)

        assert "`noised` samples torch's random numbers" in failure("process", Drawing, "repeats")

    def test_state(self):
        class Counting(Line):
            calls = 0

            def noised(self, x, y, u, z):
                self.calls += 1
                return super().noised(x, y + self.calls, u, z)

        assert set(failures("process", Counting)) == {"repeats", "batches", "random_numbers", "resume"}

    def test_images_that_depend_on_their_batch(self):
        class Together(Line):
            def noised(self, x, y, u, z):
                return super().noised(x, y - y.mean(0), u, z)

        assert "another result alone" in failure("process", Together, "batches")

    def test_a_change_in_place(self):
        class Rude(Line):
            def noised(self, x, y, u, z):
                return super().noised(x, y.mul_(0.5), u, z)

        assert "`noised` changes y in place" in failure("process", Rude, "inputs")

    def test_a_value_that_python_reads(self):
        class Reading(Line):
            def noised(self, x, y, u, z):
                return super().noised(x, y if u.max().item() < 2 else x, u, z)

        assert "so it waits for a GPU" in failure("process", Reading, "never_waits")

    def test_a_tensor_on_the_cpu(self):
        class Fixed(Line):
            def noised(self, x, y, u, z):
                return super().noised(x, y + torch.ones(1, 3, 1, 1), u, z)

        found = failures("process", Fixed, checks=["never_waits", "device"])
        assert "tensor on the CPU" in found["device"]


class TestSampler:
    def of(self, forward, check="sampler", **attributes):
        """The message for a sampler with this forward."""
        asking = type("Asking", (Ask,), {"forward": forward, **attributes})
        return failure("process", type("Process", (Line,), {"sampler": lambda self, G: asking(G)}), check)

    def test_a_function(self):
        process = type("Process", (Line,), {"sampler": lambda self, G: lambda x: x})
        assert "gives a function: it must be an nn.Module" in failure("process", process, "sampler")

    def test_another_size_or_range(self):
        assert "the sampler gives (2, 3, 16, 16)" in self.of(lambda self, x: Ask.forward(self, x)[:, :, ::2, ::2])
        assert "outside [-1, 1]" in self.of(lambda self, x: 40 * Ask.forward(self, x))

    def test_weights_of_its_own(self):
        class Weighted(Ask):
            def __init__(self, G):
                super().__init__(G)
                self.scale = nn.Parameter(torch.ones(()))

        process = type("Process", (Line,), {"sampler": lambda self, G: Weighted(G)})
        assert "has other parameters than G" in failure("process", process, "sampler")

    def test_no_noise_in_eval_mode(self):
        def forward(self, x):
            return Ask.forward(self, x + torch.randn_like(x) if self.training else x)

        assert "another ŷ in eval mode" in self.of(forward, "modes")

    def test_a_path_that_does_not_fit(self):
        def path(t, *images):
            return lambda self, x, limit: [(t, self(x) * i) for i in images]

        assert "gives 3 images for a limit of 2" in self.of(Ask.forward, path=path(1, 1, 1, 1))
        assert "is not the translation" in self.of(Ask.forward, path=path(1, 0.5))
        early = lambda self, x, limit: [(0.5, self(x)), (1.0, self(x))]  # noqa: E731
        assert "they must decrease" in self.of(Ask.forward, path=early)

    def test_random_numbers_of_numpy(self):
        def forward(self, x):
            return Ask.forward(self, x * np.random.rand())

        assert "samples NumPy's random numbers" in self.of(forward, "random_numbers")

    def test_a_change_of_x(self):
        assert "the sampler changes x in place" in self.of(lambda self, x: Ask.forward(self, x.mul_(0.5)), "inputs")


class Passing(Line):
    """Line, for a generator that takes the time as well."""

    def __init__(self, in_channels, out_channels, takes_time):
        super().__init__(in_channels, out_channels)
        self.passes_time = takes_time
        self.channels -= takes_time

    def noised(self, x, y, u, z):
        seen, t = super().noised(x, y, u, z)
        return seen[:, : self.channels], t

    def sampler(self, G):
        return Pass(G) if self.passes_time else Ask(G)


class Pass(Ask):
    def forward(self, x):
        return self.G(torch.cat([x, x], 1), torch.ones(len(x), device=x.device))


class TestPassedTime:
    def of(self, forward):
        """The message for a sampler with this forward, around a G that takes the time."""
        asking = type("Asking", (Ask,), {"forward": forward})
        process = type("Process", (Passing,), {"sampler": lambda self, G: (asking if self.passes_time else Ask)(G)})
        return failure("process", process, "sampler")

    def test_a_process_that_passes_it_to_generators_that_take_it_passes(self):
        assert failures("process", Passing) == {}

    def test_a_sampler_that_does_not_pass_it(self):
        assert "asks G without the time" in self.of(lambda self, x: self.G(torch.cat([x, x], 1)))

    @pytest.mark.parametrize(
        ("t", "message"),
        [
            (torch.ones(1), "times of the shape (1,) for 2 images"),
            (torch.full((2,), 2.0), "passes the time 2: it must be in [0, 1]"),
            (torch.full((2,), 0.5), "begins at t = 0.5: it must begin at 1"),
        ],
    )
    def test_times_that_it_may_not_pass(self, t, message):
        assert message in self.of(lambda self, x: self.G(torch.cat([x, x], 1), t))

    def test_a_process_that_ignores_what_its_generator_takes(self):
        class Always(Passing):
            def __init__(self, in_channels, out_channels):
                super().__init__(in_channels, out_channels, True)

        with pytest.raises(Exception, match="passes the time to the generator"):
            failure("process", Always, "shapes")


class TestLossWeight:
    def of(self, weigh, check="shapes"):
        return failure("process", type("Weighting", (Line,), {"loss_weight": staticmethod(weigh)}), check)

    def test_a_process_with_weights_of_mean_one_passes(self):
        assert failures("process", type("Weighting", (Line,), {"loss_weight": staticmethod(lambda t: 2 * t)})) == {}

    def test_weights_that_it_may_not_have(self):
        assert "gives () for 1000 times" in self.of(lambda t: t.mean())
        assert "gives weights from -0.996 to 3" in self.of(lambda t: 4 * t - 1)
        assert "have the mean 0.5" in self.of(lambda t: t)
        assert "on the CPU for times elsewhere" in self.of(lambda t: torch.ones(len(t)), "never_waits")


class TestScaffold:
    def test_it_writes_a_process_that_passes_every_check_and_trains(self, run_cli, tmp_path, monkeypatch, install):
        monkeypatch.chdir(tmp_path)
        written = json.loads(run_cli("new-plugin", "other-zoo", "--kind", "process", "--json").output)
        root = tmp_path / "other-zoo"
        assert {str((tmp_path / file).relative_to(root)) for file in written["files"]} == {
            "pyproject.toml", "README.md", "other-zoo.toml", "other_zoo/__init__.py", "other_zoo/process.py",
            "tests/test_conformance.py", ".github/workflows/tests.yml",
        }  # fmt: skip
        assert not any("{{" in file.read_text("utf-8") for file in root.rglob("*") if file.is_file())
        monkeypatch.syspath_prepend(root)
        install("other-zoo", "")
        (tmp_path / "site" / "other-zoo-1.0.dist-info" / "entry_points.txt").write_text(
            "[p2pzoo]\nother-zoo = other_zoo\n"
        )
        checked = run_cli("check-plugin", "other-zoo", "--json")
        assert checked.exit_code == 0, checked.output
        arguments = ("--profile", "smoke", "--runs", tmp_path / "runs", "-s", "train.images=2", "-s", "dataset.size=64")
        trained = run_cli("run", root / "other-zoo.toml", *arguments, "-s", "dataset.stride=256")
        assert trained.exit_code == 0, trained.output
        for name in [name for name in sys.modules if name.partition(".")[0] == "other_zoo"]:
            monkeypatch.delitem(sys.modules, name)


def test_the_tiny_data_set_has_equal_channels():
    """The checks train a process on it, and a bridge needs them."""
    pair = TinyDataset("train")[0]
    assert pair.x.shape == pair.y.shape
