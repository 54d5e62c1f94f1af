"""A recorded, replayed or compiled step gives the results of the eager step; if that is impossible, it falls back.

No test here needs a GPU. `FakeRecorder` replaces the CUDA recorder: it "replays" by running the step again, from the
same memory and into the same memory. tests/null_gpu records with the real one; only a GPU can show that a graph
computes the same.
"""

import contextlib
import functools
import json
import shutil
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from p2pzoo_augment.ada import ADA
from p2pzoo_augment.diffaugment import DiffAugment
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from p2pzoo_pix2pix.losses import L1, Vanilla
from torch import nn
from torch.amp.grad_scaler import OptState

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator
from p2pzoo.compute.cuda_graphs import WARMUP_STEPS, CUDAGraphStep, rollback
from p2pzoo.compute.engine import MIN_STEPS_TO_COMPILE, Engine
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.data import TrainBatches
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.plugin.batch import Batch
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool

STEPS = WARMUP_STEPS + 4
compile_for_real = torch.compile


class FakeRecorder:
    """Record by keeping the function.

    obstacle          what `watch` returns for the step
    watches           how often it returns the obstacle, and None later; None: always
    prepare_obstacle  what `watch` returns for the preparation of the batch
    broken            raise an error in `record`
    """

    def __init__(self, *, obstacle=None, watches=None, prepare_obstacle=None, broken=False):
        self.obstacle, self.prepare_obstacle, self.broken = obstacle, prepare_obstacle, broken
        self.watches_left = float("inf") if watches is None else watches
        self.calls = []

    def warm_up(self, function):
        self.calls.append("warm-up")
        return function()

    def watch(self, function):
        self.calls.append("watch")
        result = function()
        if isinstance(result, Batch):
            return result, self.prepare_obstacle
        self.watches_left -= 1
        return result, self.obstacle if self.watches_left >= 0 else None

    def record(self, function):
        self.calls.append("record")
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")
        memory = []

        def replay():
            self.calls.append("replay")
            fresh = function()
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


class CountingLoss:
    """A loss whose weight grows with each call."""

    side, calls = "generator", 0

    def __call__(self, out):
        self.calls = self.calls + 1
        return self.calls * out.y_hat.abs().mean()


class LazyPenalty:
    """A penalty on D in every fifth step."""

    side = "discriminator"

    def __call__(self, out):
        return GradientPenalty()(out) if out.step % 5 == 0 else out.y.new_zeros(())


class RarelyCountingLoss:
    """A loss that counts in the step that is watched, and not in the next one."""

    side, count = "generator", 0

    def __init__(self):
        self.steps = iter(range(STEPS))

    def __call__(self, out):
        self.count += next(self.steps) == WARMUP_STEPS - 1
        return (1 + self.count) * out.y_hat.abs().mean()


class RunningMeanLoss:
    """A loss with a tensor attribute that it replaces in each call."""

    side = "generator"

    def __init__(self):
        self.mean = torch.zeros(())

    def __call__(self, out):
        self.mean = self.mean * 0.9 + out.y_hat.detach().mean() * 0.1
        return (out.y_hat.mean() - self.mean).abs()


class CountingAugmentation(DiffAugment):
    """An augmentation of D's inputs that counts calls in Python, which a graph does not repeat."""

    calls = 0

    def __call__(self, x, y, labels, u):
        self.calls += 1
        return super().__call__(x, y, labels, u)


class Darker:
    """An augmentation of pairs. It keeps the x that it got in `calls`."""

    where, num_random = "pairs", 1

    def __init__(self, calls=()):
        self.keep = calls.append if isinstance(calls, list) else lambda _: None

    def __call__(self, x, y, labels, u):
        self.keep(x)
        factor = u.view(-1, 1, 1, 1)
        return x * factor, y * factor, labels


class CountingDarker(Darker):
    calls = 0

    def __call__(self, x, y, labels, u):
        self.calls += 1
        return super().__call__(x, y, labels, u)


class IdLoss:
    side = "generator"

    def __call__(self, out):
        return out.y_hat.abs().mean() * len(out.batch.ids[0])


def make_step(recorder=None, *, terms=(), pool=None, on=(), noise="dropout", augmentation=None, **compute):
    """Return an engine, a tiny objective and its compiled step. `on` names switches to enable."""
    torch.manual_seed(0)
    engine = Engine(Compute(device="cpu", threads=1, **compute))
    engine.enabled.update(dict.fromkeys(on, True))
    engine.build_recorder = lambda: recorder
    networks = (
        UNet(3, 3, (32, 32), width=4, depth=2, noise=noise),
        PatchDiscriminator(3, 3, (32, 32), width=4, receptive_field=16),
    )
    trainables = []
    for network in map(engine.prepare_model, networks):
        trainables.append(Trainable(engine.maybe_compile(network, STEPS), engine.build_optimizer(network, Optimizer())))
    terms = [Term("l1", L1(), 100.0), *(Term("extra", term, 1.0) for term in terms)]
    both = BatchedDiscriminator(engine.unwrap(trainables[1].network))
    augmentations = Augmentations({"extra": augmentation}, batch_size=2, seed=0) if augmentation else None
    objective = Objective(
        *trainables, Vanilla(), terms, engine.backward_and_step, pool=pool, judge_both=both,
        augmentations=augmentations, prepare=augmentations.augment_pairs if augmentations else None,
    )  # fmt: skip
    return engine, objective, engine.compile_step(objective)


def batch(step, size=2):
    rng = torch.Generator().manual_seed(step)
    return Batch(*(torch.rand(size, 3, 32, 32, generator=rng) * 2 - 1 for _ in range(2)), ("a", "b"))


def train(engine, objective, step, steps=STEPS):
    """Return the losses of each step, and the weights, buffers and moments at the end."""
    losses = []
    for number in range(steps):
        engine.set_lr(2e-4 / (number + 1))
        torch.manual_seed(number)
        inputs = batch(number)
        if objective.augmentations:
            inputs = replace(inputs, random=objective.augmentations.sample(number))
        losses.append(step(engine.to_device(inputs), number))
    losses = [{name: value.item() for name, value in logs.items()} for logs in losses]  # after all steps, as in a run
    networks = [engine.unwrap(trainable.network) for trainable in objective.trainables]
    ends = [tensor for network in networks for tensor in network.state_dict().values()]
    ends += [t for p in objective.trainables for part in p.optimizer.state.values() for t in part.values()]
    return losses, ends


def same(one, other):
    (losses, ends), (other_losses, other_ends) = one, other
    return losses == other_losses and len(ends) == len(other_ends) and all(map(torch.equal, ends, other_ends))


@pytest.fixture(scope="module")
def eager_results():
    """Losses and final tensors of eager steps."""
    return train(*make_step())


@pytest.fixture
def backend(monkeypatch):
    """backend("eager") sets the backend of torch.compile."""
    torch._dynamo.reset()
    return lambda name: monkeypatch.setattr(torch, "compile", functools.partial(compile_for_real, backend=name))


class TestRecorded:
    def test_replayed_steps_are_bit_identical(self, eager_results):
        recorder = FakeRecorder()
        engine, objective, train_step = make_step(recorder, on=["cuda_graphs"])
        assert same(train(engine, objective, train_step), eager_results)
        replays = STEPS - WARMUP_STEPS
        assert recorder.calls == ["warm-up"] * (WARMUP_STEPS - 1) + ["watch"] * 2 + ["record"] + ["replay"] * replays
        assert "cuda_graphs" in engine.describe()["on"]
        assert all(g["capturable"] for p in objective.trainables for g in p.optimizer.param_groups)

    def test_a_replay_uses_images_and_labels_of_its_own_batch(self):
        losses = []

        def step(inputs, _):
            return {"x": inputs.x.mean(), "y": inputs.y.mean(), "labels": inputs.labels.float().mean()}

        train_step = CUDAGraphStep(step, FakeRecorder())
        for i in range(STEPS):
            images = torch.full((1, 1, 2, 2), float(i))
            losses.append(train_step(Batch(images, -images, ("a",), torch.full((1, 2, 2), i)), i))
        assert [{k: v.item() for k, v in logs.items()} for logs in losses] == [
            {"x": i, "y": -i, "labels": i} for i in range(STEPS)
        ]

    def test_inputs_of_d_get_new_augmentations_in_every_replayed_step(self, eager_results):
        plain = train(*make_step(augmentation=DiffAugment()))
        assert not same(plain, eager_results)
        recorder = FakeRecorder()
        assert same(train(*make_step(recorder, augmentation=DiffAugment(), on=["cuda_graphs"])), plain)
        assert recorder.calls.count("replay") == STEPS - WARMUP_STEPS

    def test_pairs_are_augmented_inside_the_recorded_step(self, eager_results):
        plain = train(*make_step(augmentation=Darker()))
        assert not same(plain, eager_results)
        recorder, calls = FakeRecorder(), []
        engine, objective, train_step = make_step(recorder, augmentation=Darker(calls), on=["cuda_graphs"])
        assert same(train(engine, objective, train_step), plain)
        assert recorder.calls.count("replay") == STEPS - WARMUP_STEPS
        assert len({id(x) for x in calls[WARMUP_STEPS:]}) == 1, "a replay reads x from the memory of the recording"

    @pytest.mark.parametrize("how", ["it waits", "it counts"])
    def test_if_augmenting_pairs_cannot_be_recorded_it_runs_before_each_replay(self, how):
        reason = "the step waits for the device" if how == "it waits" else r"CountingDarker\.calls changes from step"
        augmentation = Darker() if how == "it waits" else CountingDarker()
        plain = train(*make_step(augmentation=Darker()))
        recorder = FakeRecorder(prepare_obstacle="the step waits for the device" if how == "it waits" else None)
        engine, objective, train_step = make_step(recorder, augmentation=augmentation, on=["cuda_graphs"])
        with pytest.warns(UserWarning, match=f"pairs are augmented outside the CUDA graph: {reason}") as caught:
            assert same(train(engine, objective, train_step), plain)
        assert len(caught) == 1
        num_watched = 2 if how == "it waits" else 1  # another thread may wait, but does not count
        assert recorder.calls.count("replay") == STEPS - WARMUP_STEPS - num_watched + 1
        assert "cuda_graphs" in engine.describe()["on"]

    def test_an_augmentation_that_changes_its_python_state_is_not_recorded(self):
        plain = train(*make_step(augmentation=CountingAugmentation()))
        recorder = FakeRecorder()
        with pytest.warns(UserWarning, match=r"CountingAugmentation\.calls changes from step to step"):
            assert same(train(*make_step(recorder, augmentation=CountingAugmentation(), on=["cuda_graphs"])), plain)
        assert "record" not in recorder.calls

    @pytest.mark.parametrize(
        ("recorder", "terms", "reason"),
        [
            (FakeRecorder(broken=True), (), "RuntimeError: operation not permitted when stream is capturing"),
            (
                FakeRecorder(obstacle="the step waits for the device (loss.py:7)"),
                (),
                r"the step waits for the device \(loss.py:7\)",
            ),
            (FakeRecorder(), (CountingLoss,), "CountingLoss.calls changes from step to step"),
            (FakeRecorder(), (RunningMeanLoss,), "RunningMeanLoss.mean changes from step to step"),
            (FakeRecorder(), (RarelyCountingLoss,), "RarelyCountingLoss.count changes from step to step"),
        ],
        ids=[
            "the recording fails",
            "the step waits",
            "a loss counts in Python",
            "a loss replaces a tensor",
            "a loss counts in one step",
        ],
    )
    def test_if_it_cannot_be_recorded_one_warning_gives_the_reason_and_steps_run_eagerly(self, recorder, terms, reason):
        plain = train(*make_step(terms=[term() for term in terms]))
        engine, objective, train_step = make_step(recorder, terms=[term() for term in terms], on=["cuda_graphs"])
        with pytest.warns(UserWarning, match=reason) as caught:
            assert same(train(engine, objective, train_step), plain)
        assert len(caught) == 1
        assert "replay" not in recorder.calls
        assert "cuda_graphs" not in engine.describe()["on"]
        assert not any(g.get("capturable") for p in objective.trainables for g in p.optimizer.param_groups)

    def test_an_obstacle_that_the_next_step_does_not_have_was_of_another_thread(self, eager_results):
        recorder = FakeRecorder(obstacle="the step draws random numbers outside the device", watches=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without")
            assert same(train(*make_step(recorder, on=["cuda_graphs"])), eager_results)
        assert recorder.calls[2:7] == [*["watch", "watch"] * 2, "record"], "the batch and the step, in two steps"

    def test_gradients_of_a_failed_recording_are_not_added_to_those_of_the_next_step(self):
        """A recorded backward pass leaves gradients that no kernel has computed."""

        class FailingAfterBackward(FakeRecorder):
            def record(self, function):
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = torch.full_like(parameter, torch.nan)
                raise RuntimeError("out of memory")

        weight = nn.Parameter(torch.ones(()))
        optimizer = torch.optim.Adam([weight])

        def step(batch, _):
            (weight * batch.x.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"w": weight.detach().clone()}

        train_step = CUDAGraphStep(step, FailingAfterBackward(), optimizers=[optimizer], on_failure=lambda _: None)
        losses = [train_step(batch(number), number)["w"] for number in range(STEPS)]
        assert all(value.isfinite() for value in losses)

    def test_a_recording_that_fails_in_an_optimizer_leaves_the_loss_scaler_before_a_step(self):
        class FailingInOptimizer(FakeRecorder):
            def record(self, function):
                optimizer = objective.D.optimizer
                optimizer.grad_scale = torch.tensor(8.0)
                engine.accelerator.scaler._per_optimizer_states[id(optimizer)]["stage"] = OptState.STEPPED
                raise RuntimeError("out of memory")

        def scaled(recorder, *on):
            engine, objective, train_step = make_step(recorder, on=on)
            engine.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            return engine, objective, train_step

        plain = train(*scaled(None))
        engine, objective, train_step = scaled(FailingInOptimizer(), "cuda_graphs")
        with pytest.warns(UserWarning, match="training without a CUDA graph: RuntimeError: out of memory"):
            assert same(train(engine, objective, train_step), plain)

    def test_a_loss_that_reads_ids_does_not_get_those_of_the_recorded_step(self):
        _, _, train_step = make_step(FakeRecorder(), terms=[IdLoss()], on=["cuda_graphs"])
        for step in range(WARMUP_STEPS):
            train_step(batch(step), step)
        with pytest.raises(IndexError):
            train_step(batch(WARMUP_STEPS), WARMUP_STEPS)  # with CUDA the recording fails with this error

    def test_a_loss_that_reads_the_step_number_does_not_get_that_of_the_recorded_step(self):
        _, _, train_step = make_step(FakeRecorder(), terms=[LazyPenalty()], on=["cuda_graphs"])
        for step in range(WARMUP_STEPS):
            train_step(batch(step), step)
        with pytest.raises(RuntimeError, match=r"a loss reads StepOutputs\.step"):
            train_step(batch(WARMUP_STEPS), WARMUP_STEPS)  # with CUDA the recording fails with this error

    @pytest.mark.parametrize("what", ["pool", "processes", "Adam", "checkpointing"])
    def test_a_step_that_can_never_be_recorded_is_not_tried(self, what, monkeypatch):
        recorder = FakeRecorder()
        pool = ImagePool(2, 0) if what == "pool" else None
        engine, objective, _ = make_step(
            recorder, pool=pool, fused_adam=what != "Adam", checkpointing=what == "checkpointing"
        )
        engine.enabled["cuda_graphs"] = True
        if what == "processes":
            monkeypatch.setattr("p2pzoo.compute.distributed.world_size", lambda: 2)
        with pytest.warns(UserWarning, match="training without a CUDA graph: ") as caught:
            train_step = engine.compile_step(objective)
        assert len(caught) == 1
        assert train_step == objective.step
        assert recorder.calls == []
        assert "cuda_graphs" not in engine.describe()["on"]

    def test_on_a_cpu_there_is_no_graph_and_no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine, objective, train_step = make_step(cuda_graphs=True)
        assert train_step == objective.step
        assert not {"cuda_graphs", "prefetch", "compile"} & {*engine.describe()["on"]}


class TestCompiled:
    def test_compiled_networks_give_the_same_results_and_state_dict_names(self, backend, eager_results):
        backend("eager")
        engine, objective, _ = make_step(compile=True, lowering=False)
        plain, notes = train(*make_step(lowering=False)), []
        train_step = engine.compile_step(objective, notes.append)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without")
            compiled = train(engine, objective, train_step)
        assert same(compiled, plain), "the warm-up step left no trace"
        assert [note.split()[0] for note in notes] == ["compiling", "compiled"], "a line before and one after, once"
        assert "compile" in engine.describe()["on"]
        assert hasattr(objective.G.network, "_orig_mod")
        assert not any("_orig_mod" in name for name in engine.unwrap(objective.G.network).state_dict())

    @pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
    def test_traced_gradients_are_the_same_up_to_rounding(self, precision, backend):
        backend("aot_eager")
        plain, _ = train(*make_step(precision=precision, lowering=False), steps=2)
        compiled, _ = train(*make_step(precision=precision, compile=True), steps=2)
        for one, other in zip(compiled, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-4 if precision == "fp32" else 2e-2, abs=1e-3)

    @pytest.mark.slow
    def test_a_gradient_of_a_gradient_falls_back_in_one_warning(self, backend):
        backend("aot_eager")
        plain = train(*make_step(terms=[GradientPenalty()], lowering=False))
        engine, objective, train_step = make_step(terms=[GradientPenalty()], compile=True)
        notes = []
        train_step = engine.compile_step(objective, notes.append)
        with pytest.warns(UserWarning, match=r"training without torch\.compile: .*double backward") as caught:
            assert same(train(engine, objective, train_step), plain)
        assert notes == ["compiling the networks, before the first step: this takes minutes"], "and it is not compiled"
        assert len([warning for warning in caught if "torch.compile:" in str(warning.message)]) == 1
        assert "compile" not in engine.describe()["on"]

    def test_a_gradient_of_a_gradient_in_only_some_steps_falls_back_before_the_first(self, backend):
        """Otherwise a run that resumes at a step without it would fail later."""
        backend("aot_eager")
        _, objective, train_step = make_step(terms=[LazyPenalty()], compile=True)
        with pytest.warns(UserWarning, match=r"training without torch\.compile: .*double backward"):
            train_step(batch(3), 3)
        assert not hasattr(objective.D.network, "_orig_mod")

    def test_a_missing_compiler_falls_back_and_the_graph_is_still_recorded(self, backend):
        def missing(*_):
            raise RuntimeError("no C++ compiler found")

        backend(missing)
        plain = train(*make_step(lowering=False))
        recorder = FakeRecorder()
        engine, objective, train_step = make_step(recorder, compile=True, on=["cuda_graphs"])
        with pytest.warns(UserWarning, match="no C\\+\\+ compiler found") as caught:
            assert same(train(engine, objective, train_step), plain)
        assert len(caught) == 1
        assert recorder.calls.count("replay") == STEPS - WARMUP_STEPS

    def test_auto_compiles_only_long_runs_on_cuda(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch, "compile", lambda model, **_: calls.append(model) or model)
        network = nn.Conv2d(3, 3, 1)
        for device, setting, steps, expected in [
            ("cuda", "auto", MIN_STEPS_TO_COMPILE, True),
            ("cuda", "auto", MIN_STEPS_TO_COMPILE - 1, False),
            ("cuda", False, MIN_STEPS_TO_COMPILE, False),
            ("cpu", "auto", 100 * MIN_STEPS_TO_COMPILE, False),
            ("cpu", True, 1, True),
        ]:
            engine = Engine(Compute(device="cpu", compile=setting))
            engine.device_type = device
            calls.clear()
            engine.maybe_compile(network, steps)
            assert (calls == [network], engine.enabled["compile"]) == (expected, expected), (device, setting, steps)

    def test_rollback_leaves_no_trace_after_some_steps(self):
        ada = ADA(every=1, images=100, target=-0.99)
        engine, objective, train_step = make_step(pool=ImagePool(8, 0), augmentation=ada)
        train(engine, objective, train_step, steps=2)

        def everything():
            tensors = [*ada.buffers()]
            tensors += [t for p in objective.trainables for t in p.network.state_dict().values()]
            tensors += [t for p in objective.trainables for part in p.optimizer.state.values() for t in part.values()]
            return [t.clone() for t in (*tensors, *objective.pool.tensors().values(), torch.get_rng_state())]

        before = everything()
        with rollback(objective), contextlib.suppress(ZeroDivisionError):
            objective.step(replace(batch(7), random=objective.augmentations.sample(7)), 7)
            assert not torch.equal(before[0], ada.p)
            raise ZeroDivisionError
        assert all(map(torch.equal, before, everything()))

    @pytest.mark.slow
    def test_inductor_gives_the_same_up_to_rounding(self):
        if shutil.which("g++") is None:
            pytest.skip("inductor needs a C++ compiler, and g++ is not installed")
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without")
            compiled, _ = train(*make_step(compile=True, noise="none"))  # the dropout of inductor draws other numbers
        plain, _ = train(*make_step(noise="none", lowering=False))
        for one, other in zip(compiled, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


class TestRun:
    @pytest.fixture
    def as_on_cuda(self, monkeypatch):
        """as_on_cuda(recorder): later runs record their steps with it and prefetch their batches."""
        original_init = Engine.__init__

        def as_on_cuda(recorder):
            def init(engine, *args, **options):
                original_init(engine, *args, **options)
                engine.enabled |= {"cuda_graphs": True, "prefetch": True}
                engine.build_recorder = lambda: recorder

            monkeypatch.setattr(Engine, "__init__", init)
            return recorder

        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        return as_on_cuda

    @pytest.mark.parametrize(
        "overrides",
        [
            [f'augmentations.{name}={{use="{name}"}}' for name in ("affine", "diffaugment")],
            ['process={use="bridge", steps=2}', "generator.norm=group"],
        ],
        ids=["augmentations", "a process"],
    )
    def test_a_run_with_graphs_and_prefetch_is_bit_identical_also_after_a_resume(
        self, overrides, run, as_on_cuda, tmp_path, monkeypatch
    ):
        def outcome(runs):
            [log] = runs.glob("*/*/metrics.jsonl")
            return log.read_text(), (log.parent / "model.safetensors").read_bytes()

        overrides = ("train.ema=0.9", "optimizer.schedule=linear", *overrides)
        run(tmp_path / "plain", *overrides)
        recorder = as_on_cuda(FakeRecorder())
        answer = run(tmp_path / "recorded", *overrides)
        assert answer.exit_code == 0, answer.output
        assert outcome(tmp_path / "recorded") == outcome(tmp_path / "plain")
        assert recorder.calls.count("replay") == 20 - WARMUP_STEPS
        [env] = (tmp_path / "recorded").glob("*/*/env.json")
        assert {"cuda_graphs", "prefetch"} <= {*json.loads(env.read_text())["on"]}

        with monkeypatch.context() as patch:
            patch.setattr(TrainBatches, "read", breaking_at(17))
            assert "KeyError: 17" in run(tmp_path / "cut", *overrides).output
        assert not any(thread.name.startswith("batches") for thread in threading.enumerate())
        assert run(tmp_path / "cut", *overrides).first_step == 15
        assert outcome(tmp_path / "cut") == outcome(tmp_path / "plain")

    def test_a_run_whose_steps_cannot_be_recorded_warns_and_env_json_says_so(self, run, as_on_cuda, tmp_path):
        as_on_cuda(FakeRecorder(broken=True))
        answer = run(tmp_path, "train.images=8")
        assert answer.exit_code == 0, answer.output
        assert answer.output.count("training without a CUDA graph: RuntimeError: operation not permitted") == 1
        [env] = tmp_path.glob("*/*/env.json")
        assert "cuda_graphs" not in json.loads(env.read_text())["on"]


def breaking_at(step):
    read = TrainBatches.read

    def broken(batches, number):
        if number == step:
            raise KeyError(number)
        return read(batches, number)

    return broken
