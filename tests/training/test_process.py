"""Training with a process: what it shares with regression, its random numbers, and runs that are stopped."""

import json
import shutil

import pytest
import torch
from fault_injection import only
from p2pzoo_process import interpolants

import p2pzoo
from p2pzoo import config
from p2pzoo.compute import distributed
from p2pzoo.compute.engine import Engine
from p2pzoo.data import Store
from p2pzoo.data.process_noise import ProcessNoise, make_process_noise
from p2pzoo.models.image_size import find_network_faults
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.training import loop
from p2pzoo.training.run_writer import RunWriter
from p2pzoo.training.setup import build_objective

# x is random in `pairs`; in `pairs-at-the-start` it is what G sees of the same pair at t = 1: x, x and a plane of ones
DATASETS = """
import numpy as np
import p2pzoo
from p2pzoo.plugin import Pair


class Pairs:
    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError(index)
        random = np.random.default_rng([index, len(self.split)])
        x, y = (random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in "xy")
        return Pair(f"{self.split}-{index}", self.seen(x), y)

    def seen(self, x):
        return x


class PairsAtTheStart(Pairs):
    def seen(self, x):
        return np.concatenate([x, x, np.full_like(x[..., :1], 255)], axis=-1)


@p2pzoo.hookimpl
def register_datasets(register):
    register("pairs", Pairs)
    register("pairs-at-the-start", PairsAtTheStart)
"""
WITHOUT_D = (
    'drop=["discriminator", "gan_loss"]',
    'generator={use="unet", width=8, norm="group", noise="none"}',
    'losses.l1={use="l2", weight=1}',
    "metrics.ssim.use=l1",
)


@pytest.fixture
def finish(run, tmp_path):
    """finish("process.use=flow", …): the folder of a complete run of the tiny recipe with a process and a D."""

    def finish(*overrides, name="runs", flags=()):
        result = run(tmp_path / name, *TINY_WITH_PROCESS, *overrides, flags=flags)
        assert result.exit_code == 0, result.output
        return only(tmp_path / name)

    return finish


TINY_WITH_PROCESS = ("generator.norm=group", "generator.noise=none", "process.use=bridge", "process.steps=2")


class TestRegression:
    @pytest.fixture
    def weights(self, install, tmp_path, run_cli):
        """weights("process.use=bridge"): of a G that is trained on the data set `pairs`, or on another one."""
        install("pairs_plugin", DATASETS)

        def weights(*overrides, dataset="pairs"):
            sets = [*WITHOUT_D, f"dataset.use={dataset}", "train.images=12", "train.batch_size=2", *overrides]
            runs = tmp_path / str(len(list(tmp_path.iterdir())))
            options = [part for override in sets for part in ("-s", override)]
            result = run_cli("run", "zoo:base.toml", "--profile", "smoke", "--runs", runs, *options)
            assert result.exit_code == 0, result.output
            return load_tensors(only(runs) / "model.safetensors")[0]

        return weights

    @pytest.mark.parametrize("sigma", [0.0, 0.5, 4.0])
    def test_at_the_start_a_bridge_trains_to_the_bits_of_regression(self, weights, sigma, monkeypatch):
        regression = weights(dataset="pairs-at-the-start")
        monkeypatch.setattr(interpolants, "START_PROBABILITY", 1.0)  # t = 1 for all samples
        bridge = weights("process.use=bridge", f"process.sigma={sigma}")
        assert regression.keys() == bridge.keys()
        assert [name for name, tensor in regression.items() if not torch.equal(bridge[name], tensor)] == []

    def test_at_other_times_it_does_not(self, weights):
        regression = weights(dataset="pairs-at-the-start")
        bridge = weights("process.use=bridge")
        assert not all(torch.equal(bridge[name], tensor) for name, tensor in regression.items())


class TestRandomNumbers:
    NOISE = ProcessNoise((3, 4, 4), batch_size=4, seed=5, batches_per_step=2)

    def test_those_of_a_sample_depend_on_the_seed_and_its_number_alone(self):
        u, z = self.NOISE.sample(3)
        single = ProcessNoise((3, 4, 4), batch_size=1, seed=5)
        singles = [single.sample(sample) for sample in range(24, 32)]
        assert torch.equal(u, torch.cat([each for each, _ in singles]))
        assert torch.equal(z, torch.cat([each for _, each in singles]))
        assert not torch.equal(u, ProcessNoise((3, 4, 4), batch_size=8, seed=6).sample(3)[0])

    def test_they_are_uniform_and_normal(self):
        u, z = ProcessNoise((1, 8, 8), batch_size=2000, seed=0).sample(0)
        assert 0 <= u.min() < 0.01
        assert 0.99 < u.max() < 1
        assert u.mean().item() == pytest.approx(0.5, abs=0.02)
        assert (z.mean().item(), z.std().item()) == pytest.approx((0, 1), abs=0.02)

    def test_each_process_draws_for_its_shard(self, monkeypatch):
        whole = self.NOISE.sample(3)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        shards = []
        for number in range(2):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            shards.append(self.NOISE.sample(3))
        for tensor, *parts in zip(whole, *shards, strict=True):  # of each batch of the step, its half
            joined = [part.split(2) for part in parts]
            assert torch.equal(torch.cat([half[i] for i in range(2) for half in joined]), tensor)

    def test_they_stay_with_their_pairs_when_a_batch_is_split(self, tiny):
        experiment = config.load(str(tiny), "smoke", [*TINY_WITH_PROCESS, "train.batch_size=4"])
        store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
        batch = Engine(experiment.compute).to_device(loop.make_batches(experiment, store, None)[0])
        parts = batch.split(2)
        assert torch.equal(torch.cat([part.u for part in parts]), batch.u)
        assert torch.equal(torch.cat([part.z for part in parts]), batch.z)
        assert batch.z.shape == batch.y.shape

    def test_a_recipe_without_a_process_draws_none(self, tiny):
        experiment = config.load(str(tiny), "smoke")
        assert make_process_noise(experiment, (3, 3), (64, 64)) is None
        store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
        batch = loop.make_batches(experiment, store, None)[0]
        assert batch.u is batch.z is None
        assert build_objective(experiment, Engine(experiment.compute), (3, 3), (64, 64)).process is None


class TestStep:
    def test_d_and_the_losses_get_x_and_not_what_g_sees(self, tiny):
        experiment = config.load(str(tiny), "smoke", TINY_WITH_PROCESS)
        store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
        engine = Engine(experiment.compute)
        objective = build_objective(experiment, engine, store.channels, store.size)
        batch = engine.to_device(loop.make_batches(experiment, store, None)[0])
        seen = []
        objective.G.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        logs = objective.step(batch, 0)
        assert {"D.gan", "G.gan", "G.l1"} <= logs.keys()
        assert [each.shape[1] for each in seen] == [7]
        assert torch.equal(seen[0][:, :3], batch.x)

    def test_parts_of_a_batch_see_the_same_noise_as_the_batch(self, tiny):
        """G has no random numbers of its own here, so accumulation changes only the rounding of the sums."""
        logs = []
        for parts in (1, 2):
            overrides = [*TINY_WITH_PROCESS, "train.batch_size=4", f"train.accumulate={parts}"]
            experiment = config.load(str(tiny), "smoke", overrides)
            store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
            engine = Engine(experiment.compute)
            objective = build_objective(experiment, engine, store.channels, store.size)
            logs.append(objective.step(engine.to_device(loop.make_batches(experiment, store, None)[0]), 0)["G.l1"])
        torch.testing.assert_close(*logs)


TIMED = """
import torch
import p2pzoo
from torch import nn


class Timed(nn.Module):
    takes_time = True

    def __init__(self, in_channels, out_channels, *, uses_time: bool = True):
        super().__init__()
        self.layer, self.film, self.uses_time = nn.Conv2d(in_channels, out_channels, 1), nn.Linear(1, 1), uses_time
        self.times = []

    def init_own_weights(self):
        nn.init.zeros_(self.film.weight)  # the time has no effect at first

    def forward(self, x, t=None):
        self.times.append(t)
        t = x.new_ones(len(x)) if t is None else t
        return torch.tanh(self.layer(x) * (1 + self.film(t[:, None] * self.uses_time)[..., None, None]))


class Own:
    def __init__(self, in_channels, out_channels):
        self.channels = in_channels + 1

    def noised(self, x, y, u, z):
        return torch.cat([x, u[:, None, None, None].expand_as(x[:, :1])], 1), u

    def sampler(self, G):
        return nn.Sequential(nn.ZeroPad2d((0, 0, 0, 0)), G)


class Careless(Own):
    passes_time = True


@p2pzoo.hookimpl
def register_generators(register):
    register("timed", Timed)


@p2pzoo.hookimpl
def register_processes(register):
    register("own", Own)
    register("careless", Careless)
"""


class TestTime:
    @pytest.fixture
    def step(self, install, tiny):
        """step("process.use=flow", …): the times that `timed` got, those of the process, and the channels of x."""
        install("timed_plugin", TIMED)

        def step(*overrides):
            sets = ["generator.use=timed", "train.batch_size=4", 'drop=["discriminator", "gan_loss"]', *overrides]
            experiment = config.load(str(tiny), "smoke", sets)
            store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
            engine = Engine(experiment.compute)
            objective = build_objective(experiment, engine, store.channels, store.size)
            batch = engine.to_device(loop.make_batches(experiment, store, None)[0])
            objective.step(batch, 0)
            G = objective.G.network
            return G.times, objective.process.noised(batch.x, batch.y, batch.u, batch.z)[1], G.layer.in_channels

        return step

    def test_a_generator_that_takes_it_gets_it_in_place_of_a_plane(self, step):
        for name in ("bridge", "flow", "diffusion"):
            times, expected, channels = step(f"process.use={name}")
            assert channels == 6
            assert torch.equal(times[0], expected)

    def test_each_part_of_a_batch_gets_its_own(self, step):
        times, expected, _ = step("process.use=flow", "train.accumulate=2")
        assert torch.equal(torch.cat(times), expected)

    def test_a_process_that_keeps_planes_passes_none(self, step):
        times, _, channels = step("process.use=own")
        assert times == [None]
        assert channels == 4

    def test_a_process_cannot_pass_it_to_a_generator_that_takes_none(self, install, tiny):
        install("timed_plugin", TIMED)
        made = config.load(str(tiny), "smoke", ["generator.norm=group", "process.use=careless"])
        [fault] = find_network_faults(made, (3, 3), (64, 64))
        assert "process 'timed_plugin:careless' passes the time to the generator" in fault

    @pytest.mark.parametrize("uses_time", [True, False])
    def test_a_generator_that_ignores_it_is_refused(self, install, tiny, uses_time):
        """One whose time has no effect at first, as in blocks that begin at 0, is not."""
        install("timed_plugin", TIMED)
        sets = ["generator.use=timed", f"generator.uses_time={str(uses_time).lower()}", "process.use=flow"]
        found = find_network_faults(config.load(str(tiny), "smoke", sets), (3, 3), (64, 64))
        assert [fault.partition("generator ")[2] for fault in found] == (
            [] if uses_time else ["'timed' takes the time, and gives one image at all times: its forward ignores t"]
        )

    def test_no_recipe_can_set_it(self, tiny):
        with pytest.raises(p2pzoo.UserError, match="has no parameter 'takes_time'"):
            config.load(str(tiny), "smoke", [*TINY_WITH_PROCESS, "process.takes_time=true"])


class TestLossWeight:
    """Flows of which an image at t counts min(1 + a² / c², 25) in losses of pixels."""

    @pytest.fixture
    def step(self, tiny):
        """step("losses.l1.use=l2", …): the batch, its ŷ and the logs of one step, with and without a D."""

        def step(*overrides):
            sets = [*TINY_WITH_PROCESS, "process={use='flow', loss_weight='snr'}", "train.batch_size=4", *overrides]
            experiment = config.load(str(tiny), "smoke", sets)
            store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
            engine = Engine(experiment.compute)
            objective = build_objective(experiment, engine, store.channels, store.size)
            batch = engine.to_device(loop.make_batches(experiment, store, None)[0])
            seen, t = objective.process.noised(batch.x, batch.y, batch.u, batch.z)
            weight_of = objective.process.loss_weight
            weights = weight_of(t) if weight_of else None
            with torch.no_grad():
                difference = objective.G.network(seen) - batch.y
            return difference, weights, objective.step(batch, 0)

        return step

    @pytest.mark.parametrize("without_d", [[], ['drop=["discriminator", "gan_loss"]']])
    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize(("loss", "of"), [("l1", torch.abs), ("l2", torch.square)])
    def test_losses_of_pixels_weight_each_image(self, step, loss, of, parts, without_d):
        difference, weights, logs = step(f"losses.l1.use={loss}", f"train.accumulate={parts}", *without_d)
        assert weights.max() > 2 * weights.min()
        expected = (of(difference).mean((1, 2, 3)) * weights).mean()
        torch.testing.assert_close(logs["G.l1"], expected, rtol=1e-4, atol=1e-6)

    def test_other_losses_do_not(self, step):
        _, _, logs = step("losses.edges.use=edge", "losses.charbonnier.use=charbonnier")
        _, _, plain = step("losses.edges.use=edge", "losses.charbonnier.use=charbonnier", "process.loss_weight=none")
        assert torch.equal(logs["G.edges"], plain["G.edges"])
        assert torch.equal(logs["G.gan"], plain["G.gan"])
        assert not torch.equal(logs["G.charbonnier"], plain["G.charbonnier"])

    def test_a_recipe_without_such_a_loss_is_refused(self, tiny):
        sets = [*TINY_WITH_PROCESS, "process.loss_weight=snr", "losses.l1.use=edge"]
        [fault] = find_network_faults(config.load(str(tiny), "smoke", sets), (3, 3), (64, 64))
        assert fault == (
            '-s process.loss_weight=snr  [process] use = "bridge" weights losses of pixels, and this recipe has none '
            "that uses the weights: add a loss such as l2, or set no weights"
        )
        assert find_network_faults(config.load(str(tiny), "smoke", sets[:-1]), (3, 3), (64, 64)) == []

    def test_the_defaults_of_its_parameters_are_left_out_of_the_run_id(self, tiny):
        ids = [
            config.load(str(tiny), "smoke", [*TINY_WITH_PROCESS, *more]).id
            for more in (
                (),
                ("process.loss_weight=none", "process.time_law=uniform"),
                ("process.time_law=logit-normal",),
            )
        ]
        assert ids[0] == ids[1] != ids[2]


GENERATORS = ["unet", "encoder-decoder", "resnet6", "spade", "adm-unet", "timm-unet", "pix2pixhd-global"]


@pytest.mark.parametrize("process", ["bridge", "flow", "diffusion"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_of_the_zoo_train_and_translate_unchanged(process, generator, tiny):
    own = {"adm-unet": "", "timm-unet": ', norm="group", backbone="test_efficientnet"'}.get(generator, ', norm="group"')
    overrides = [
        f'generator={{use="{generator}", width=4{own}}}', f'process={{use="{process}", steps=2, eta=1.0}}',
        'drop=["discriminator", "gan_loss"]',
    ]  # fmt: skip
    experiment = config.load(str(tiny), "smoke", overrides)
    store = Store(experiment.dataset.build(split="train"), compute=experiment.compute)
    engine = Engine(experiment.compute)
    objective, state = loop.build_state(experiment, engine, store)
    before = {name: tensor.clone() for name, tensor in state.final.state_dict().items()}
    batch = engine.to_device(loop.make_batches(experiment, store, None)[0])
    assert objective.step(batch, 0)["G.l1"].isfinite()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.final.state_dict().items())
    y_hat = translate(state.translator, batch.x, "eval")
    assert y_hat.shape == batch.y.shape
    assert y_hat.abs().max() <= 1


class TestRun:
    def test_the_model_file_holds_g_alone_and_names_the_process(self, finish):
        tensors, header = load_tensors(finish("train.images=4") / "model.safetensors")
        assert header["process"]["use"] == "process:bridge"
        assert header["process"]["params"].items() >= {"sigma": 0.5, "steps": 2, "eta": 0.0}.items()
        assert header["process"]["source"].startswith("p2pzoo ")
        assert (header["in_channels"], tensors["encoder.0.0.weight"].shape[1]) == (3, 7)

    def test_a_loaded_model_gives_the_numbers_of_its_run(self, finish):
        folder = finish("train.images=6", "process.use=flow", "process.eta=1")
        expected = json.loads((folder / "results.json").read_text())["metrics"]
        assert p2pzoo.evaluate(folder).metrics == {name: number["value"] for name, number in expected.items()}
        average = p2pzoo.load(folder, weights="average", device="cpu")
        assert type(average.G).__name__ == "GaussianSampler"

    def test_a_run_without_a_process_has_the_header_and_the_identity_of_before(self, tiny, shared_complete):
        _, header = load_tensors(only(shared_complete) / "model.safetensors")
        assert "process" not in header
        assert "process" not in config.load(str(tiny), "smoke").identity()
        assert "process" not in config.load(str(tiny), "smoke").resolved()

    def test_the_process_and_its_parameters_are_part_of_the_run_id(self, tiny):
        made = [
            config.load(str(tiny), "smoke", [*TINY_WITH_PROCESS, *more])
            for more in ((), ("process.steps=3",), ("process.use=flow",), ('drop=["process"]',))
        ]
        assert len({each.id for each in made}) == 4
        assert "process process:bridge" in made[0].sources

    def test_a_stopped_run_translates_with_its_checkpoint(self, finish, tmp_path):
        folder = finish("train.images=20")
        shutil.copytree(folder, tmp_path / "stopped" / "smoke")
        stopped = tmp_path / "stopped" / "smoke"
        (stopped / "model.safetensors").unlink()
        with pytest.warns(UserWarning, match="a checkpoint at 20 of 20 images"):
            model = p2pzoo.load(stopped, device="cpu")
        x = torch.rand(3, 64, 64) * 2 - 1
        assert torch.equal(model.translate(x), p2pzoo.load(folder, device="cpu").translate(x))


ADM = "{use='adm-unet', width=4, multipliers=[1, 2], blocks=1, attention=[2], head_channels=4}"
WITH_TIME = ('drop=["generator"]', f"generator={ADM}", "process={use='flow', steps=2}")


class TestRunWithTime:
    """A run whose generator takes the time."""

    def test_a_stopped_run_has_the_bits_of_one_that_was_not(self, run, tmp_path, monkeypatch):
        sets = [*WITH_TIME, "train.images=4", "train.checkpoint_every=1"]
        assert run(tmp_path / "whole", *sets).exit_code == 0
        original = RunWriter.write

        def write(self, step, *rest):
            original(self, step, *rest)
            if step == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(RunWriter, "write", write)
            assert run(tmp_path / "stopped", *sets).exit_code != 0
        assert not (only(tmp_path / "stopped") / "model.safetensors").exists()
        resumed = run(tmp_path / "stopped", *sets)
        assert (resumed.exit_code, resumed.first_step) == (0, 2)
        for file in ("model.safetensors", "average.safetensors"):
            whole, stopped = (load_tensors(only(tmp_path / name) / file)[0] for name in ("whole", "stopped"))
            assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())

    @pytest.mark.parametrize("setting", ["train.ema=0.9", "compute.checkpointing=true", "compute.precision=bf16"])
    def test_settings_of_training_work(self, setting, run, tmp_path):
        result = run(tmp_path, *WITH_TIME, setting, "train.images=2")
        assert result.exit_code == 0, result.output

    def test_the_file_suffices(self, run, tmp_path):
        assert run(tmp_path, *WITH_TIME, "train.images=2").exit_code == 0
        folder = only(tmp_path)
        _, header = load_tensors(folder / "model.safetensors")
        assert "takes_time" not in json.dumps(header)
        model = p2pzoo.load(folder, device="cpu")
        x = torch.rand(3, 40, 64) * 2 - 1
        y_hat = model.translate(x, test_mode="eval")
        assert y_hat.shape == (3, 40, 64)
        torch.testing.assert_close(model.translate(x, test_mode="paper"), y_hat, atol=1e-4, rtol=0)
        expected = json.loads((folder / "results.json").read_text())["metrics"]
        assert p2pzoo.evaluate(folder).metrics == {name: number["value"] for name, number in expected.items()}


WITHOUT_A_CHOICE = """
from torch import nn

import p2pzoo


class Generator(nn.Sequential):
    def __init__(self, in_channels, out_channels, size):
        super().__init__(nn.Conv2d(in_channels, 4, 3), nn.InstanceNorm2d(4), nn.ConvTranspose2d(4, out_channels, 3))


@p2pzoo.hookimpl
def register_generators(register):
    register("their-generator", Generator)
"""
BAD = {
    "steps = 0": "steps = 0: input should be greater than or equal to 1",
    "eta = 1.5": "eta = 1.5: input should be less than or equal to 1",
    "eta = -0.1": "eta = -0.1: input should be greater than or equal to 0",
    "sigma = -1": "sigma = -1: input should be greater than or equal to 0",
}


class TestBadInput:
    @pytest.fixture
    def refused(self, run_cli, tmp_path, monkeypatch):
        """refused(text): the message for a recipe with this text, which must end before there is a run folder."""
        monkeypatch.chdir(tmp_path)

        def refused(text, *flags):
            (tmp_path / "mine.toml").write_text(f'extends = "zoo:base.toml"\n{text}')
            result = run_cli("run", "mine.toml", "--profile", "smoke", "--runs", tmp_path / "runs", *flags)
            assert result.exit_code == 2, result.output
            assert not (tmp_path / "runs").exists()
            return [line for line in result.output.splitlines() if "mine.toml" in line]

        return refused

    @pytest.mark.parametrize(("line", "expected"), BAD.items())
    def test_a_parameter_out_of_its_range_names_its_line(self, line, expected, refused):
        text = f'[generator]\nnorm = "group"\nnoise = "none"\n[process]\nuse = "bridge"\n{line}\n'
        [found] = refused(text)
        assert found.endswith(f"mine.toml:7  [process] {expected}")

    def test_batch_norm_is_refused_with_the_way_out(self, refused):
        [found] = refused('[process]\nuse = "flow"\n')
        assert found.endswith(
            "mine.toml:3  [process] use = \"flow\": generator 'unet' has batch norm, which mixes times in training: "
            'set generator.norm = "group"'
        )
        [found] = refused('[generator]\nnorm = "batch"\n[process]\nuse = "flow"\n')
        assert "mine.toml:3  [process]" in found

    def test_a_norm_without_a_choice_is_refused_too(self, refused, install):
        install("their_networks", WITHOUT_A_CHOICE)
        [found] = refused('[generator]\nuse = "their-generator"\n[process]\nuse = "flow"\n')
        assert found.endswith('set another generator, such as "unet" with norm = "group"')

    def test_a_generator_that_cannot_see_the_time_is_refused(self, refused):
        """Instance norm after the first convolution removes a constant plane, up to rounding."""
        [found] = refused('[generator]\nuse = "resnet6"\n[process]\nuse = "flow"\n')
        assert found.endswith(
            "mine.toml:5  [process] use = \"flow\": generator 'resnet6' gives one image at all times, because its "
            'norms remove the plane with the time: set generator.norm = "group"'
        )

    @pytest.mark.parametrize(
        "generator", ["unet", "encoder-decoder", "resnet6", "spade", "timm-unet", "pix2pixhd-global", "pix2pixhd-local"]
    )
    def test_generators_with_group_norm_see_the_time(self, generator):
        overrides = [f"generator.use={generator}", "generator.norm=group", "process.use=flow"]
        made = config.load("zoo:base.toml", "smoke", overrides)
        assert find_network_faults(made, (3, 3), (64, 64)) == []

    def test_a_bridge_between_other_channels_is_refused_with_the_way_out(self, refused, install):
        install("pairs_plugin", DATASETS)
        text = '[generator]\nnorm = "group"\n[process]\nuse = "bridge"\n'
        [found] = refused(text, "-s", "dataset.use=pairs-at-the-start")
        assert "mine.toml:4  process 'bridge': x has 7 channels and y has 3" in found
        assert 'use = "flow" or "diffusion"' in found

    def test_an_unknown_process_is_a_suggestion(self, refused):
        [found] = refused('[process]\nuse = "brige"\n')
        assert "did you mean 'bridge'?" in found
