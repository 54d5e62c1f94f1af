"""Losses that call the generator: PatchNCE on the features of its encoder, with an MLP that is a module of the loss."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from torch import nn

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin import Batch, StepOutputs
from p2pzoo.training.gan_step import Objective, Term, Trainable

PLUGIN = '''
import torch
from torch import nn
from torch.nn import functional as F
import p2pzoo


class PatchNCE(nn.Module):
    """Features of G at one place of x and of its translation are alike, at other places not (arXiv:2007.15651)."""

    side = "generator"

    def __init__(self, in_channels, out_channels, feature_channels, *, places: int = 4, temperature: float = 0.07):
        super().__init__()
        if in_channels != out_channels:
            raise ValueError("G's encoder sees x and its translation: both need the same channels")
        self.places, self.temperature = places, temperature
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(count, 8), nn.ReLU(), nn.Linear(8, 8)) for count in feature_channels
        )

    def forward(self, out):
        real, fake = out.G.features(out.x), out.G.features(out.y_hat)
        return torch.stack([self.compare(*each) for each in zip(self.heads, real, fake)]).mean()

    def compare(self, head, real, fake):
        places = torch.randint(real[0, 0].numel(), (self.places,), device=real.device)
        rows = [head(each.flatten(2)[..., places].transpose(1, 2)) for each in (real, fake)]
        keys, queries = (F.normalize(each, dim=-1) for each in rows)
        similarities = queries @ keys.detach().transpose(1, 2) / self.temperature
        same = torch.arange(self.places, device=real.device).expand(len(real), -1)
        return F.cross_entropy(similarities.flatten(0, 1), same.flatten())


class OfD:
    side = "discriminator"

    def __call__(self, out):
        return out.G(out.x).mean()


class Plain(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x))


@p2pzoo.hookimpl
def register_losses(register):
    register("patch-nce", PatchNCE, needs=("features",))
    register("of-d", OfD)


@p2pzoo.hookimpl
def register_generators(register):
    register("plain", Plain)
'''
FEATURES = range(3)  # of the tiny recipe's U-Net of depth 3
NCE = ("losses.nce.use=patch-nce",)
GROUP_NORM = ("generator.norm=group", "generator.noise=none")


@pytest.fixture(autouse=True)
def plugin(install):
    install("nce", PLUGIN)


def newest(runs):
    return load_tensors(max(only(runs).glob("checkpoints/*.safetensors")))[0]


class TestPatchNCE:
    def test_a_killed_run_resumes_with_bit_identical_results(self, run, tmp_path):
        overrides = (*NCE, "train.accumulate=2", "train.batch_size=2")
        assert run(tmp_path / "whole", *overrides).exit_code == 0
        with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
            run(tmp_path / "killed", *overrides)
        result = run(tmp_path / "killed", *overrides)
        assert (result.exit_code, "resuming" in result.output) == (0, True), result.output
        assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
        whole, killed = newest(tmp_path / "whole"), newest(tmp_path / "killed")
        assert "losses[nce].heads.0.0.weight" in whole
        assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())

    def test_the_optimizer_of_g_trains_its_mlp(self, run, tmp_path):
        weights = []
        for images in (2, 10):
            assert run(tmp_path / str(images), *NCE, f"train.images={images}").exit_code == 0
            tensors = newest(tmp_path / str(images))
            weights.append(tensors["losses[nce].heads.2.2.weight"])
            assert sum(name.startswith("losses[nce].") for name in tensors) == 4 * len(FEATURES)
        assert not torch.equal(*weights)

    @pytest.mark.parametrize("use", ["encoder-decoder", "resnet6"])
    def test_it_trains_with_each_generator_that_has_features(self, run, tmp_path, use):
        generator = f'generator={{use="{use}", width=4}}'
        assert run(tmp_path, *NCE, generator, "train.images=2").exit_code == 0

    def test_with_a_process_g_sees_what_the_process_makes_of_x(self, run, tmp_path):
        overrides = (*NCE, *GROUP_NORM, "process.use=bridge", "process.steps=2")
        result = run(tmp_path, *overrides, "train.images=4")
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize("process", [(), ("process.use=flow",)])
    def test_a_generator_without_features_is_refused_before_training(self, run, tmp_path, process):
        result = run(tmp_path / "runs", *NCE, *process, 'generator={use="plain"}')
        assert result.exit_code == 2
        assert result.output.splitlines()[-1].endswith(
            "[losses.nce] needs features, which generator 'nce:plain' does not have: remove it, or use a generator "
            'with features(x), such as "unet"'
        )
        assert result.first_step is None
        assert not (tmp_path / "runs").exists()


def test_a_loss_of_d_cannot_call_g(run, tmp_path):
    result = run(tmp_path, "losses.of.use=of-d")
    assert 'out.G is for losses with side = "generator"' in str(result.output)


class Encoder(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, 3, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x))

    def features(self, x):
        return [self.layer(x)]


class Consistency:
    side = "generator"

    def __call__(self, out):
        self.seen = out.G.features(out.x)[0]
        self.y_hat = out.G(out.x)
        return self.seen.square().mean()


class Sum:
    """Shows G x + y + u + z."""

    channels = 3

    def noised(self, x, y, u, z):
        return x + y + u[:, None, None, None] + z, u


class TimedEncoder(Encoder):
    takes_time = True

    def forward(self, x, t=None):
        return super().forward(x + t[:, None, None, None])

    def features(self, x, t=None):
        return [self.layer(x + t[:, None, None, None])]


class PassesTime(Sum):
    passes_time = True


def step_with(process=None, kind=Encoder):
    torch.manual_seed(0)
    G, loss = kind(3), Consistency()

    def backward_and_step(loss, optimizer):
        loss.backward()

    objective = Objective(Trainable(G, None), None, None, [Term("c", loss, 2.0)], backward_and_step, process=process)
    x, y, z = torch.rand(3, 2, 3, 4, 4)
    batch = Batch(x, y, ("a", "b"), u=torch.rand(2), z=z)
    logs = objective.step(batch, 0)
    return G, loss, batch, logs


def test_gradients_of_its_features_reach_g():
    G, loss, batch, logs = step_with()
    assert torch.equal(loss.seen, G.features(batch.x)[0])
    assert G.layer.weight.grad.any()
    assert logs["G.c"] == loss.seen.square().mean()


def test_with_a_process_out_g_sees_x_at_the_times_and_noise_of_the_step():
    G, loss, batch, _ = step_with(Sum())
    seen = batch.x + batch.y + batch.u[:, None, None, None] + batch.z
    assert torch.equal(loss.seen, G.features(seen)[0])
    assert torch.equal(loss.y_hat, G(seen))


def test_with_a_process_that_passes_the_time_out_g_gets_it_too():
    G, loss, batch, _ = step_with(PassesTime(), TimedEncoder)
    seen = batch.x + batch.y + batch.u[:, None, None, None] + batch.z
    assert torch.equal(loss.seen, G.features(seen, batch.u)[0])
    assert torch.equal(loss.y_hat, G(seen, batch.u))


def test_outputs_without_a_generator_say_so():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="without a generator"):
        _ = StepOutputs(Batch(x, x, ("a",)), x).for_generator().G
