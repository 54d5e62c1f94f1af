"""The Engine: chosen and rejected devices and precisions, optimizer steps, prefetched batches."""

import copy
import threading
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo import config
from p2pzoo.compute.engine import Engine, best_precision, pick_device
from p2pzoo.compute.prefetch import READY_BATCHES, Prefetcher
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.training.checkpoint import LossLogger
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError


def test_auto_picks_the_best_device_and_a_missing_device_is_rejected(monkeypatch):
    for (cuda, mps), best in [((True, True), "cuda"), ((False, True), "mps"), ((False, False), "cpu")]:
        monkeypatch.setattr("torch.cuda.is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda mps=mps: mps)
        assert pick_device("auto") == best
        assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r'device = "cuda": no CUDA device found .*: use --device auto'):
        pick_device("cuda")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7 selects one GPU"):
        pick_device("cuda:7")
    with pytest.raises(UserError, match=r'device = "tpu": give "auto", "cpu", "cuda" or "mps"$'):
        pick_device("tpu")


def test_fp16_without_cuda_is_rejected():
    with pytest.raises(UserError, match="fp16"):
        Engine(Compute(device="cpu", precision="fp16"))


def test_automatic_precision_on_a_cpu_is_fp32_and_is_described():
    described = Engine(Compute(device="cpu")).describe()
    assert described["precision"] == "fp32"
    assert described["device"] == "cpu"
    assert described["deterministic"] is True
    assert described["threads"] == torch.get_num_threads()
    assert "products" not in described


@pytest.mark.parametrize(("has_products", "products"), [(True, "bf16"), (None, "bf16"), (False, "fp32")])
def test_a_run_in_bf16_on_a_cpu_names_what_multiplied(has_products, products, monkeypatch):
    monkeypatch.setattr("p2pzoo.compute.engine.has_bf16_products", lambda: has_products)
    assert Engine(Compute(device="cpu", precision="bf16")).describe()["products"] == products


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_automatic_precision_on_cuda_depends_on_the_compute_capability(capability, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert best_precision("cuda") == expected
    assert best_precision("cuda", 256 * 256 + 1) == expected
    assert best_precision("mps") == "fp32"


@pytest.mark.parametrize(
    ("capability", "tf32", "expected"), [((8, 0), True, "fp32"), ((8, 0), False, "bf16"), ((7, 5), True, "fp16")]
)
def test_one_image_of_256_px_is_computed_in_tf32_where_the_device_has_it(capability, tf32, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert best_precision("cuda", 256 * 256, tf32=tf32) == expected


def test_switches_that_the_device_does_not_support_are_off(monkeypatch):
    monkeypatch.setattr("p2pzoo.compute.engine.pick_device", lambda requested: "mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    engine = Engine(Compute(compile=True))
    assert [switch for switch, is_enabled in engine.enabled.items() if is_enabled] == ["one_pass"]
    network = torch.nn.Conv2d(3, 3, 1)
    assert engine.maybe_compile(network, 10**9) is network
    batches = [1, 2]
    with engine.prefetch(batches, 2) as prefetched:
        assert prefetched is batches


def test_features_too_are_computed_in_half_precision_and_returned_in_fp32():
    dtypes = []

    class D(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x, y):
            return [self.features(x, y)[0][0]]

        def features(self, x, y):
            h = self.conv(y)
            dtypes.append(h.dtype)
            return [[h]]

    prepared = Engine(Compute(device="cpu", precision="bf16")).prepare_model(D())
    images = torch.rand(2, 1, 3, 8, 8)
    [[feature]], [logits] = prepared.features(*images), prepared(*images)
    assert dtypes == [torch.bfloat16, torch.bfloat16]
    assert feature.dtype == logits.dtype == torch.float32


class TestScaledLosses:
    """The fp16 loss scaler, on a CPU, since it needs CUDA otherwise. Infinite gradients stand for overflow."""

    def make_networks(self):
        torch.manual_seed(0)
        engine = Engine(Compute(device="cpu"))
        engine.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        networks = [engine.prepare_model(torch.nn.Conv2d(1, 1, 1)) for _ in range(2)]
        return engine, networks, [engine.build_optimizer(network, Optimizer()) for network in networks]

    def test_each_of_two_optimizers_steps_as_without_a_scaler(self):
        engine, networks, optimizers = self.make_networks()
        plain = copy.deepcopy(networks)
        plain_optimizers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in plain]
        x = torch.rand(1, 1, 4, 4)
        for _ in range(3):
            for network, optimizer, other, adam in zip(networks, optimizers, plain, plain_optimizers, strict=True):
                engine.backward_and_step(network(x).square().mean(), optimizer)
                adam.zero_grad()
                other(x).square().mean().backward()
                adam.step()
        for network, other in zip(networks, plain, strict=True):
            torch.testing.assert_close(network.state_dict(), other.state_dict())
        for ours, adam in zip(optimizers, plain_optimizers, strict=True):
            moments = [
                [part["exp_avg"] for part in optimizer.state_dict()["state"].values()] for optimizer in (ours, adam)
            ]
            torch.testing.assert_close(*moments)

    def test_on_overflow_only_that_optimizer_skips_its_step_and_the_scale_halves(self):
        engine, (G, D), (adam_G, adam_D) = self.make_networks()
        x = torch.rand(1, 1, 4, 4)
        for network, adam in ((G, adam_G), (D, adam_D)):
            engine.backward_and_step(network(x).mean(), adam)
        before = copy.deepcopy([D.state_dict(), adam_D.state_dict()["state"], G.state_dict()])
        engine.backward_and_step(D(x).mean() * torch.inf, adam_D)
        engine.backward_and_step(G(x).mean(), adam_G)
        assert engine.accelerator.scaler.get_scale() == 512
        for name, tensor in D.state_dict().items():
            assert torch.equal(tensor, before[0][name])
        for i, moments in adam_D.state_dict()["state"].items():
            assert all(torch.equal(tensor, before[1][i][name]) for name, tensor in moments.items())
        assert not torch.equal(G.weight, before[2]["weight"])
        engine.backward_and_step(D(x).mean(), adam_D)
        assert not torch.equal(D.weight, before[0]["weight"])


class TestGradientClipping:
    def update(self, settings, *, scaler=None, factor=100.0):
        """How one SGD step on `factor` times the mean output moves the weights of a convolution."""
        torch.manual_seed(0)
        engine = Engine(Compute(device="cpu"))
        engine.accelerator.scaler = scaler
        network = engine.prepare_model(torch.nn.Conv2d(3, 2, 3))
        optimizer = engine.build_optimizer(network, settings)
        before = [p.detach().clone() for p in network.parameters()]
        engine.backward_and_step(factor * network(torch.rand(1, 3, 8, 8)).mean(), optimizer)
        return [p.detach() - b for p, b in zip(network.parameters(), before, strict=True)]

    def length(self, updates):
        return torch.cat([update.flatten() for update in updates]).norm().item()

    @pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "scaled losses"])
    def test_a_longer_gradient_is_scaled_to_the_length_and_keeps_its_direction(self, scaled):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        free = self.update(Optimizer(use="SGD", lr=0.1))
        clipped = self.update(Optimizer(use="SGD", lr=0.1, clip_norm=0.5), scaler=scaler)
        assert self.length(free) > 1
        assert self.length(clipped) == pytest.approx(0.1 * 0.5, rel=1e-4)
        for one, other in zip(free, clipped, strict=True):
            torch.testing.assert_close(one / self.length(free), other / self.length(clipped), rtol=1e-4, atol=1e-6)

    def test_a_shorter_gradient_does_not_change(self):
        free = self.update(Optimizer(use="SGD", lr=0.1), factor=1e-3)
        assert all(map(torch.equal, free, self.update(Optimizer(use="SGD", lr=0.1, clip_norm=9.0), factor=1e-3)))


def test_d_may_have_another_learning_rate_which_follows_the_schedule_too(tiny):
    overrides = ["optimizer.lr=1e-4", "optimizer.lr_discriminator=4e-4", "optimizer.schedule=linear"]
    experiment = config.load(str(tiny), "smoke", overrides)
    engine = Engine(experiment.compute)
    objective = build_objective(experiment, engine, (3, 3), (64, 64))
    for progress, factor in ((0.0, 1.0), (0.75, 0.5)):
        engine.set_lr(experiment.optimizer.lr_at(progress))
        rates = [trainable.optimizer.param_groups[0]["lr"] for trainable in objective.trainables]
        assert rates == pytest.approx([factor * 1e-4, factor * 4e-4], rel=1e-12)


class NoSync(TorchDispatchMode):
    """Fails on operations that make Python wait for an accelerator: reading the value of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device_and_losses_are_read_all_at_once(tiny, monkeypatch):
    experiment = config.load(str(tiny), "smoke")
    engine = Engine(experiment.compute)
    objective = build_objective(experiment, engine, (3, 3), (64, 64))
    batch = engine.to_device(Batch(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), ("a",)))
    logger = LossLogger()
    with NoSync():
        for step in range(3):
            logger.waiting.append((step, step, objective.step(batch, step)))
    sizes, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: sizes.append(tensor.numel()) or tolist(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("losses are read one by one"))
    assert len(logger.read()) == 3
    assert sizes == [3 * 5]


class TestSeed:
    """`Engine.seed` is called in each step: torch.manual_seed would query every kind of device."""

    def test_the_random_numbers_are_those_of_manual_seed(self, monkeypatch):
        torch.manual_seed(2**62 + 5)
        expected = torch.rand(5)
        monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("it takes long"))
        Engine(Compute(device="cpu")).seed(2**62 + 5)
        assert torch.equal(torch.rand(5), expected)

    @pytest.mark.parametrize("device", ["cuda:1", "cuda"])
    def test_on_cuda_the_cpu_and_this_device_are_seeded(self, device, monkeypatch):
        engine = Engine(Compute(device="cpu"))
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        monkeypatch.setattr(torch.cuda, "default_generators", generators)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(Engine, "device", torch.device(device))
        engine.device_type = "cuda"
        engine.seed(7)
        assert (torch.initial_seed(), *(g.initial_seed() for g in generators)) == (7, 0, 7)


class TestPrefetcher:
    def test_batches_come_in_order_and_none_is_made_twice_or_after_the_end(self):
        calls = []

        class Batches:
            def __getitem__(self, step):
                calls.append((step, threading.current_thread() is threading.main_thread()))
                return step

        with Prefetcher(Batches().__getitem__, lambda _, batch: -batch, end=5) as prefetched:
            assert [prefetched[step] for step in range(2, 5)] == [-2, -3, -4]
        assert calls == [(2, False), (3, False), (4, False)]

    def test_next_batches_are_made_while_the_current_one_is_used(self):
        events = [threading.Event() for _ in range(10)]

        class Batches:
            def __getitem__(self, step):
                events[step].set()
                return step

        with Prefetcher(Batches().__getitem__, lambda _, batch: batch, end=10) as prefetched:
            assert prefetched[0] == 0
            assert all(event.wait(10) for event in events[: 1 + 1 + READY_BATCHES])
            assert prefetched[7] == 7, "any step may be requested"
        assert not events[4].is_set()

    def test_after_waiting_no_batch_is_being_made(self):
        working = set()

        class Batches:
            def __getitem__(self, step):
                working.add(step)
                time.sleep(0.05)
                working.remove(step)
                return step

        with Prefetcher(Batches().__getitem__, lambda _, batch: batch, end=10) as prefetched:
            assert prefetched[0] == 0
            assert working
            prefetched.wait()
            assert not working
            time.sleep(0.02)
            assert not working

    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_read_in_order_and_make_side_by_side(self, workers):
        all_busy = threading.Barrier(workers, timeout=10)  # breaks unless so many make a batch at one time
        read = []

        def make(step, item):
            all_busy.wait()
            return step, item

        with Prefetcher(lambda step: read.append(step) or -step, make, end=6, workers=workers) as prefetched:
            assert [prefetched[step] for step in range(6)] == [(step, -step) for step in range(6)]
        assert read == [*range(6)]

    def test_an_error_is_raised_where_its_batch_is_requested_and_the_thread_ends(self):
        class Batches:
            def __getitem__(self, step):
                if step == 1:
                    raise UserError("pair 'b': damaged")
                return step

        prefetcher = Prefetcher(Batches().__getitem__, lambda _, batch: batch, end=9)
        with pytest.raises(UserError, match="damaged"), prefetcher as prefetched:  # noqa: PT012
            assert prefetched[0] == 0
            _ = prefetched[1]
        assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert Engine(Compute(device="cpu", threads=1)).describe()["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("channels_last", "expected"), [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_networks_and_batches_share_the_memory_format(channels_last, expected):
    engine = Engine(Compute(device="cpu", channels_last=channels_last))
    network = engine.prepare_model(torch.nn.Conv2d(3, 4, 3))
    batch = engine.to_device(Batch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), ("a", "b")))
    assert network.weight.is_contiguous(memory_format=expected)
    assert batch.x.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 1.0, 0.5, 0.0]),
        ("linear-epochs", [1.0, 1 - 2 / 101, 1 - 52 / 101, 0.0]),
    ],
)
def test_learning_rate_schedules(schedule, expected):
    settings = Optimizer(lr=1.0, schedule=schedule)
    assert [settings.lr_at(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == expected


def test_linear_epochs_is_the_schedule_of_the_pytorch_code():
    """That code steps torch's scheduler at the start of each of 200 epochs."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    plain = torch.optim.Adam([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(plain, lambda epoch: 1.0 - max(0, epoch + 1 - 100) / float(100 + 1))
    settings, pairs = Optimizer(lr=1.0, schedule="linear-epochs"), 7
    plain.step()
    for epoch in range(200):
        scheduler.step()
        for step in (0, pairs - 1):
            rate = settings.lr_at((epoch * pairs + step) / (200 * pairs))
            assert rate == pytest.approx(plain.param_groups[0]["lr"], abs=1e-12)


def test_eps_before_the_correction_is_the_formula_of_torch7():
    m, v = torch.tensor(3e-9), torch.tensor(4e-18)  # gradients near eps, where the position of eps matters
    for step in (0, 10, 5000):
        corrections = (1 - 0.5 ** (step + 1), 1 - 0.999 ** (step + 1))
        torch7 = corrections[1] ** 0.5 / corrections[0] * m / (v.sqrt() + 1e-8)
        eps = Optimizer(eps_before_correction=True).eps_at(step)
        ours = (m / corrections[0]) / ((v / corrections[1]).sqrt() + eps)
        assert ours.item() == pytest.approx(torch7.item(), rel=1e-5)
    assert Optimizer().eps_at(0) == Optimizer().eps
