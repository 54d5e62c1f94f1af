"""A step that is recorded and replayed, or compiled, is the same step; where it cannot be, it is taken as written.

No test here needs a GPU. `Recorder` below stands for one: it "replays" by taking the step again, from the same memory
and into the same memory. That a recording is the same kernels, only CUDA can show.
"""

import contextlib
import functools
import json
import shutil
import threading
import warnings

import pytest
import torch
from p2pzoo_augment.diffaugment import DiffAugment
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from p2pzoo_pix2pix.losses import L1, Vanilla
from torch import nn

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator
from p2pzoo.compute.cuda_graphs import WARM_UP, CUDAGraphStep, rollback
from p2pzoo.compute.engine import COMPILE_FROM, Engine
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.data import TrainBatches
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.plugin.batch import Batch
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool

STEPS = WARM_UP + 4
compile_for_real = torch.compile


class Recorder:
    """Records by remembering what to do. `broken`: raises instead, after having begun."""

    def __init__(self, *, obstacle=None, broken=False):
        self.obstacle, self.broken = obstacle, broken
        self.done = []

    def warm_up(self, act):
        self.done.append("warm-up")
        return act()

    def watch(self, act):
        self.done.append("watch")
        return act(), self.obstacle

    def record(self, act):
        self.done.append("record")
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        memory = []

        def replay():
            self.done.append("replay")
            fresh = act()
            if not memory:
                memory.append(fresh)
            return memory[0].copy_(fresh)

        return replay


class GradientPenalty:
    side = "discriminator"

    def __call__(self, out):
        y = out.y.clone().requires_grad_()
        [gradient] = torch.autograd.grad(out.D(out.x, y)[0].sum(), y, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()


class Counting:
    """A loss whose weight grows with its calls."""

    side, calls = "generator", 0

    def __call__(self, out):
        self.calls = self.calls + 1
        return self.calls * out.y_hat.abs().mean()


class Lazy:
    """A penalty on D in every fifth step."""

    side = "discriminator"

    def __call__(self, out):
        return GradientPenalty()(out) if out.step % 5 == 0 else out.y.new_zeros(())


class Drifting:
    """A loss that keeps a tensor and puts another in its place each time."""

    side = "generator"

    def __init__(self):
        self.mean = torch.zeros(())

    def __call__(self, out):
        self.mean = self.mean * 0.9 + out.y_hat.detach().mean() * 0.1
        return (out.y_hat.mean() - self.mean).abs()


class Drawing(DiffAugment):
    """An augmentation of D's images that keeps count in Python, which no recording repeats."""

    calls = 0

    def __call__(self, x, y, labels, u):
        self.calls += 1
        return super().__call__(x, y, labels, u)


class Naming:
    side = "generator"

    def __call__(self, out):
        return out.y_hat.abs().mean() * len(out.batch.ids[0])


def game(recorder=None, *, terms=(), pool=None, on=(), noise="dropout", seen=None, **compute):
    """An engine, a tiny game on it, and its `play`."""
    torch.manual_seed(0)
    engine = Engine(Compute(device="cpu", threads=1, **compute))
    engine.on.update(dict.fromkeys(on, True))
    engine.recorder = lambda: recorder
    networks = UNet(3, 3, (32, 32), width=4, noise=noise), PatchDiscriminator(3, 3, (32, 32), width=4)
    players = []
    for network in map(engine.prepare_model, networks):
        players.append(Trainable(engine.compiled(network, STEPS), engine.optimizer(network, Optimizer())))
    terms = [Term("l1", L1(), 100.0), *(Term("extra", term, 1.0) for term in terms)]
    both = BatchedDiscriminator(engine.unwrap(players[1].network))
    augmentations = Augmentations({"seen": seen}, batch_size=2, seed=0) if seen else None
    objective = Objective(
        *players, Vanilla(), terms, engine.backward_and_step, pool=pool, both=both, augmentations=augmentations
    )  # fmt: skip
    return engine, objective, engine.compile_step(objective)


def batch(step, size=2):
    draw = torch.Generator().manual_seed(step)
    return Batch(*(torch.rand(size, 3, 32, 32, generator=draw) * 2 - 1 for _ in range(2)), ("a", "b"))


def train(engine, objective, play, steps=STEPS):
    """What is told, and the weights, buffers and moments at the end."""
    told = []
    for step in range(steps):
        engine.set_rate(2e-4 / (step + 1))
        torch.manual_seed(step)
        given = objective.augmentations(batch(step), step) if objective.augmentations else batch(step)
        told.append(play(engine.move(given), step))
    told = [{name: value.item() for name, value in losses.items()} for losses in told]  # only now: as a run reads them
    networks = [engine.unwrap(player.network) for player in objective.players]
    ends = [tensor for network in networks for tensor in network.state_dict().values()]
    ends += [t for p in objective.players for part in p.optimizer.state.values() for t in part.values()]
    return told, ends


def same(one, other):
    (told, ends), (others_told, others_ends) = one, other
    return told == others_told and len(ends) == len(others_ends) and all(map(torch.equal, ends, others_ends))


@pytest.fixture(scope="module")
def as_written():
    """What the game comes to when steps are taken as they are written."""
    return train(*game())


@pytest.fixture
def backend(monkeypatch):
    """backend("eager"): what torch.compile compiles with."""
    torch._dynamo.reset()
    return lambda name: monkeypatch.setattr(torch, "compile", functools.partial(compile_for_real, backend=name))


class TestRecorded:
    def test_replayed_steps_are_the_steps_to_the_bit(self, as_written):
        recorder = Recorder()
        engine, objective, play = game(recorder, on=["cuda_graphs"])
        assert same(train(engine, objective, play), as_written)
        replays = STEPS - WARM_UP
        assert recorder.done == ["warm-up"] * (WARM_UP - 1) + ["watch", "record"] + ["replay"] * replays
        assert "cuda_graphs" in engine.describe()["on"]
        assert all(g["capturable"] for p in objective.players for g in p.optimizer.param_groups)

    def test_a_step_replays_images_and_labels_of_its_own(self):
        seen = []

        def step(given, _):
            return {"x": given.x.mean(), "y": given.y.mean(), "labels": given.labels.float().mean()}

        play = CUDAGraphStep(step, Recorder())
        for i in range(STEPS):
            images = torch.full((1, 1, 2, 2), float(i))
            seen.append(play(Batch(images, -images, ("a",), torch.full((1, 2, 2), i)), i))
        assert [{k: v.item() for k, v in told.items()} for told in seen] == [
            {"x": i, "y": -i, "labels": i} for i in range(STEPS)
        ]

    def test_what_d_sees_is_augmented_anew_in_every_replayed_step(self, as_written):
        plain = train(*game(seen=DiffAugment()))
        assert not same(plain, as_written)
        recorder = Recorder()
        assert same(train(*game(recorder, seen=DiffAugment(), on=["cuda_graphs"])), plain)
        assert recorder.done.count("replay") == STEPS - WARM_UP

    def test_an_augmentation_that_changes_by_itself_is_not_recorded(self):
        plain = train(*game(seen=Drawing()))
        recorder = Recorder()
        with pytest.warns(UserWarning, match=r"Drawing\.calls changes from step to step"):
            assert same(train(*game(recorder, seen=Drawing(), on=["cuda_graphs"])), plain)
        assert "record" not in recorder.done

    @pytest.mark.parametrize(
        ("recorder", "terms", "reason"),
        [
            (Recorder(broken=True), (), "RuntimeError: operation not permitted when stream is capturing"),
            (Recorder(obstacle="it waits for the device (loss.py:7)"), (), r"it waits for the device \(loss.py:7\)"),
            (Recorder(), (Counting,), "Counting.calls changes from step to step"),
            (Recorder(), (Drifting,), "Drifting.mean changes from step to step"),
        ],
        ids=["the recording fails", "it waits", "a loss counts in Python", "a loss swaps its tensors"],
    )
    def test_where_it_cannot_be_one_warning_says_so_and_the_steps_are_taken(self, recorder, terms, reason):
        plain = train(*game(terms=[term() for term in terms]))
        engine, objective, play = game(recorder, terms=[term() for term in terms], on=["cuda_graphs"])
        with pytest.warns(UserWarning, match=reason) as told:
            assert same(train(engine, objective, play), plain)
        assert len(told) == 1
        assert "replay" not in recorder.done
        assert "cuda_graphs" not in engine.describe()["on"]
        assert not any(g.get("capturable") for p in objective.players for g in p.optimizer.param_groups)

    def test_a_loss_that_reads_ids_is_not_given_those_of_the_recorded_step(self):
        _, _, play = game(Recorder(), terms=[Naming()], on=["cuda_graphs"])
        for step in range(WARM_UP):
            play(batch(step), step)
        with pytest.raises(IndexError):
            play(batch(WARM_UP), WARM_UP)  # of a true recording this is the recording's own failure

    def test_nor_is_one_that_goes_by_the_number_of_the_step(self):
        _, _, play = game(Recorder(), terms=[Lazy()], on=["cuda_graphs"])
        for step in range(WARM_UP):
            play(batch(step), step)
        with pytest.raises(RuntimeError, match="a loss goes by the number of the step"):
            play(batch(WARM_UP), WARM_UP)  # likewise

    @pytest.mark.parametrize("what", ["pool", "scaler", "processes", "Adam", "eps", "checkpointing"])
    def test_what_can_never_be_recorded_is_not_tried(self, what, monkeypatch):
        recorder = Recorder()
        pool = ImagePool(2, 0) if what == "pool" else None
        engine, objective, _ = game(
            recorder, pool=pool, fused_adam=what != "Adam", checkpointing=what == "checkpointing"
        )
        engine.on["cuda_graphs"] = True
        if what == "eps":
            engine.optimizer(objective.G.network, Optimizer(eps_before_correction=True))
        if what == "scaler":
            engine.accelerator.scaler = torch.amp.GradScaler("cpu")
        if what == "processes":
            monkeypatch.setattr("p2pzoo.compute.distributed.world_size", lambda: 2)
        with pytest.warns(UserWarning, match="training without a CUDA graph: ") as told:
            play = engine.compile_step(objective)
        assert len(told) == 1
        assert play == objective.step
        assert recorder.done == []
        assert "cuda_graphs" not in engine.describe()["on"]

    def test_on_a_cpu_there_is_none_and_nothing_is_said(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine, objective, play = game(cuda_graphs=True)
        assert play == objective.step
        assert not {"cuda_graphs", "prefetch", "compile"} & {*engine.describe()["on"]}


class TestCompiled:
    def test_compiled_networks_play_the_same_game_and_are_not_seen_in_what_is_saved(self, backend, as_written):
        backend("eager")
        engine, objective, play = game(compile=True, lowering=False)
        plain = train(*game(lowering=False))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without")
            compiled = train(engine, objective, play)
        assert same(compiled, plain), "rehearsing left no trace"
        assert "compile" in engine.describe()["on"]
        assert hasattr(objective.G.network, "_orig_mod")
        assert not any("_orig_mod" in name for name in engine.unwrap(objective.G.network).state_dict())

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_traced_gradients_are_the_same_up_to_rounding(self, precision, backend):
        backend("aot_eager")
        plain, _ = train(*game(precision=precision, lowering=False), steps=2)
        compiled, _ = train(*game(precision=precision, compile=True), steps=2)
        for one, other in zip(compiled, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-4 if precision == "fp32" else 2e-2, abs=1e-3)

    def test_a_gradient_of_a_gradient_falls_back_in_one_warning(self, backend):
        backend("aot_eager")
        plain = train(*game(terms=[GradientPenalty()], lowering=False))
        engine, objective, play = game(terms=[GradientPenalty()], compile=True)
        with pytest.warns(UserWarning, match=r"training without torch\.compile: .*double backward") as told:
            assert same(train(engine, objective, play), plain)
        assert len([each for each in told if "torch.compile:" in str(each.message)]) == 1
        assert "compile" not in engine.describe()["on"]

    def test_and_where_that_comes_in_some_steps_only_it_does_so_before_the_first(self, backend):
        """A run that is resumed in a step that has none would else meet it later."""
        backend("aot_eager")
        _, objective, play = game(terms=[Lazy()], compile=True)
        with pytest.warns(UserWarning, match=r"training without torch\.compile: .*double backward"):
            play(batch(3), 3)
        assert not hasattr(objective.D.network, "_orig_mod")

    def test_a_compiler_that_is_missing_falls_back_with_the_graph_still_recorded(self, backend):
        def missing(*_):
            raise RuntimeError("no C++ compiler found")

        backend(missing)
        plain = train(*game(lowering=False))
        recorder = Recorder()
        engine, objective, play = game(recorder, compile=True, on=["cuda_graphs"])
        with pytest.warns(UserWarning, match="no C\\+\\+ compiler found") as told:
            assert same(train(engine, objective, play), plain)
        assert len(told) == 1
        assert recorder.done.count("replay") == STEPS - WARM_UP

    def test_it_has_to_pay_unless_it_is_asked_for(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch, "compile", lambda model, **_: calls.append(model) or model)
        network = nn.Conv2d(3, 3, 1)
        for device, setting, steps, expected in [
            ("cuda", "auto", COMPILE_FROM, True),
            ("cuda", "auto", COMPILE_FROM - 1, False),
            ("cuda", False, COMPILE_FROM, False),
            ("cpu", "auto", 100 * COMPILE_FROM, False),
            ("cpu", True, 1, True),
        ]:
            engine = Engine(Compute(device="cpu", compile=setting))
            engine.device_type = device
            calls.clear()
            engine.compiled(network, steps)
            assert (calls == [network], engine.on["compile"]) == (expected, expected), (device, setting, steps)

    def test_rehearsing_leaves_no_trace_in_a_game_that_has_begun(self):
        engine, objective, play = game(pool=ImagePool(8, 0))
        train(engine, objective, play, steps=2)

        def everything():
            tensors = [t for p in objective.players for t in p.network.state_dict().values()]
            tensors += [t for p in objective.players for part in p.optimizer.state.values() for t in part.values()]
            return [t.clone() for t in (*tensors, *objective.pool.tensors().values(), torch.get_rng_state())]

        before = everything()
        with rollback(objective), contextlib.suppress(ZeroDivisionError):
            objective.step(batch(7), 7)
            raise ZeroDivisionError
        assert all(map(torch.equal, before, everything()))

    @pytest.mark.slow
    def test_what_inductor_makes_of_it_is_the_same_up_to_rounding(self):
        if shutil.which("g++") is None:
            pytest.skip("inductor needs a C++ compiler, and there is no g++ here")
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without")
            compiled, _ = train(*game(compile=True, noise="none"))  # its dropout draws numbers of its own
        plain, _ = train(*game(noise="none", lowering=False))
        for one, other in zip(compiled, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


class TestRun:
    @pytest.fixture
    def as_on_cuda(self, monkeypatch):
        """as_on_cuda(recorder): from now on runs record their steps with it, and make their batches ahead."""
        make = Engine.__init__

        def as_on_cuda(recorder):
            def made(engine, settings, chooser=None):
                make(engine, settings, chooser)
                engine.on |= {"cuda_graphs": True, "prefetch": True}
                engine.recorder = lambda: recorder

            monkeypatch.setattr(Engine, "__init__", made)
            return recorder

        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        return as_on_cuda

    @pytest.mark.usefixtures("no_reports")
    def test_a_run_with_all_of_it_gives_the_bits_of_one_without_cut_off_or_not(
        self, run, as_on_cuda, tmp_path, monkeypatch
    ):
        def outcome(runs):
            [log] = runs.glob("*/*/metrics.jsonl")
            return log.read_text(), (log.parent / "model.safetensors").read_bytes()

        overrides = ("train.ema=0.9", "optimizer.schedule=linear")
        run(tmp_path / "plain", *overrides)
        recorder = as_on_cuda(Recorder())
        answer = run(tmp_path / "recorded", *overrides)
        assert answer.exit_code == 0, answer.output
        assert outcome(tmp_path / "recorded") == outcome(tmp_path / "plain")
        assert recorder.done.count("replay") == 40 - WARM_UP
        [env] = (tmp_path / "recorded").glob("*/*/env.json")
        assert {"cuda_graphs", "prefetch"} <= {*json.loads(env.read_text())["on"]}

        with monkeypatch.context() as patch:
            patch.setattr(TrainBatches, "__getitem__", breaking_at(33))
            assert "KeyError: 33" in run(tmp_path / "cut", *overrides).output
        assert not any(thread.name.startswith("batches") for thread in threading.enumerate())
        assert run(tmp_path / "cut", *overrides).began == 30
        assert outcome(tmp_path / "cut") == outcome(tmp_path / "plain")

    @pytest.mark.usefixtures("no_reports")
    def test_a_run_whose_steps_cannot_be_recorded_says_so_and_its_env_does_not_claim_it(
        self, run, as_on_cuda, tmp_path
    ):
        as_on_cuda(Recorder(broken=True))
        answer = run(tmp_path, "train.images=8")
        assert answer.exit_code == 0, answer.output
        assert answer.output.count("training without a CUDA graph: RuntimeError: operation not permitted") == 1
        [env] = tmp_path.glob("*/*/env.json")
        assert "cuda_graphs" not in json.loads(env.read_text())["on"]


def breaking_at(step):
    make = TrainBatches.__getitem__

    def broken(batches, asked):
        if asked == step:
            raise KeyError(asked)
        return make(batches, asked)

    return broken
