"""DenseAdam takes the steps of Adam, has its state, and keeps the memory of the weights."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from p2pzoo.compute import fused_adam
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.fused_adam import DENSE_OPTIMIZERS, DenseAdam, DenseAdamW, RecordableEpsAdam
from p2pzoo.config.optimizers import check_options, optimizer_class, try_step
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.models.safetensors_io import optimizer_tensors, restore_optimizer
from p2pzoo.plugin.schema import InvalidParameters

SETTINGS = {"lr": 1e-2, "betas": (0.5, 0.999), "eps": 1e-8}
LARGE_EPS = {"betas": (0.5, 0.999), "eps": 1e-2}  # large enough to change the steps
STEPS = 5


def network():
    """Weights that are channels-last, contiguous, both at once (1×1, one channel), or not 4D."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 1, 3), nn.Conv2d(1, 4, 3),
        nn.ConvTranspose2d(4, 5, (3, 2)), nn.Linear(2, 3), nn.Conv1d(5, 4, 1).requires_grad_(False),
    )  # fmt: skip


@pytest.fixture(params=["channels-last", "contiguous", "mixed"])
def net(request):
    net = network()
    if request.param == "channels-last":
        net.to(memory_format=torch.channels_last)
    if request.param == "mixed":
        net[0].to(memory_format=torch.channels_last)
    return net


def fused(net):
    return DenseAdam(net.parameters(), fused=True, **SETTINGS)


def torch_adam(net):
    return torch.optim.Adam(net.parameters(), fused=False, **SETTINGS)


def step(net, optimizer, number):
    """Take one step on gradients with the number as seed, in the memory format of each parameter."""
    generator = torch.Generator().manual_seed(number)
    for parameter in net.parameters():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = torch.empty_like(parameter).copy_(gradient) if parameter.requires_grad else None
    optimizer.step()


def assert_equal(a, b, **tolerance):
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], **tolerance)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_its_steps_are_those_of_adam(net, dtype, atol):
    net.to(dtype)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    optimizer, torch_optimizer = fused(net), torch_adam(plain)
    for number in range(STEPS):
        step(net, optimizer, number)
        step(plain, torch_optimizer, number)
        assert_equal(net, plain, rtol=0, atol=atol)


def test_a_gradient_in_another_memory_format_is_the_same_gradient(net):
    plain = copy.deepcopy(net)
    optimizer, torch_optimizer = fused(net), torch_adam(plain)
    for number in range(STEPS):
        for network_, adam in ((net, optimizer), (plain, torch_optimizer)):
            torch.manual_seed(number)
            for parameter in network_.parameters():
                parameter.grad = torch.randn(parameter.shape) if parameter.requires_grad else None  # always NCHW
            adam.step()
    assert_equal(net, plain, rtol=0, atol=1e-6)


def test_moments_loaded_in_another_memory_format_are_the_same_moments(net):
    plain = copy.deepcopy(net)
    optimizer, torch_optimizer = fused(net), torch_adam(plain)
    for number in range(STEPS):
        step(net, optimizer, number)
        step(plain, torch_optimizer, number)
        state = optimizer.state_dict()
        for part in state["state"].values():
            part.update({name: moment.contiguous() for name, moment in part.items()})
        optimizer.load_state_dict(state)
    assert_equal(net, plain, rtol=0, atol=1e-6)


def test_parameters_without_a_gradient_do_not_change(net):
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = fused(net)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [True] + [False] * (len(before) - 1)


def memory(net, optimizer):
    """Return address, shape and strides of each parameter and moment."""
    moments = [optimizer.state[p][name] for p in optimizer.state for name in ("exp_avg", "exp_avg_sq")]
    return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in (*net.parameters(), *moments)]


def test_parameters_and_moments_keep_their_memory_and_the_kernel_needs_no_copies(net, monkeypatch):
    optimizer = fused(net)
    step(net, optimizer, 0)
    tensors = []
    kernel = torch._fused_adam_

    def watched(parameters, gradients, *rest, **options):
        tensors.extend([*parameters, *gradients, *rest[0], *rest[1]])
        return kernel(parameters, gradients, *rest, **options)

    monkeypatch.setattr(torch, "_fused_adam_", watched)
    before = memory(net, optimizer)
    for number in range(1, STEPS):
        step(net, optimizer, number)
    assert memory(net, optimizer) == before
    assert all(tensor.is_contiguous() for tensor in tensors), "torch's kernel copies tensors that are not contiguous"
    addresses = {address for address, *_ in before}
    gradients = {p.grad.data_ptr() for p in net.parameters() if p.grad is not None}
    assert {tensor.data_ptr() for tensor in tensors[-len(tensors) // (STEPS - 1) :]} <= addresses | gradients
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


class TestStepInBackward:
    """The gradients are never all in memory, and the numbers are those of backward, step and zero_grad."""

    def loss(self, net, number):
        generator = torch.Generator().manual_seed(number)
        return net[:4](torch.randn(2, 3, 12, 12, generator=generator)).square().mean()

    def test_the_numbers_are_the_same_to_the_bit(self, net):
        plain = copy.deepcopy(net)
        inside, after = fused(net), fused(plain)
        for number in range(STEPS):
            inside.step_in_backward(self.loss(net, number))
            self.loss(plain, number).backward()
            after.step()
            after.zero_grad(set_to_none=True)
        assert_equal(net, plain, rtol=0, atol=0)
        for mine, its in zip(net.parameters(), plain.parameters(), strict=True):
            assert mine.grad is None
            torch.testing.assert_close(inside.state[mine], after.state[its], rtol=0, atol=0)

    @pytest.mark.parametrize("limit", [0, 500, 1 << 20])
    def test_gradients_are_freed_when_they_fill_the_limit(self, net, limit, monkeypatch):
        monkeypatch.setattr(fused_adam, "PENDING_BYTES", limit)
        plain = copy.deepcopy(net)
        optimizer, alive = fused(net), []
        kernel = torch._fused_adam_

        def watched(*tensors, **options):
            alive.append([p.nbytes for p in net.parameters() if p.grad is not None])
            return kernel(*tensors, **options)

        monkeypatch.setattr(torch, "_fused_adam_", watched)
        optimizer.step_in_backward(self.loss(net, 0))
        assert sorted(itertools.chain.from_iterable(alive)) == sorted(p.nbytes for p in net[:4].parameters())
        assert all(sum(group[:-1]) <= limit or sum(group) - max(group) <= limit for group in alive)
        monkeypatch.undo()
        self.loss(plain, 0).backward()
        fused(plain).step()
        assert_equal(net, plain, rtol=0, atol=0)

    def test_a_weight_that_is_used_after_its_update_is_an_error(self, monkeypatch):
        monkeypatch.setattr(fused_adam, "PENDING_BYTES", 0)
        first, weight = nn.Parameter(torch.ones(2)), nn.Parameter(torch.eye(2))
        loss = ((first.exp() @ weight.detach()) @ weight).sum()  # the gradient of `first` needs the weight last
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            DenseAdam([first, weight], fused=True).step_in_backward(loss)

    @pytest.mark.parametrize("limit", [0, 1 << 20])
    def test_a_weight_that_gets_a_second_gradient_after_its_update_is_an_error(self, limit, monkeypatch):
        monkeypatch.setattr(fused_adam, "PENDING_BYTES", limit)
        weight, x = nn.Parameter(torch.eye(2)), torch.ones(2, requires_grad=True)
        for _ in range(2):
            x = checkpoint(lambda image: image @ weight, x, use_reentrant=True)
        if limit:
            copied = weight.detach().clone().requires_grad_()
            copied.grad = torch.autograd.grad((torch.ones(2) @ copied @ copied).sum(), copied)[0]
            DenseAdam([copied], fused=True).step()
            DenseAdam([weight], fused=True).step_in_backward(x.sum())
            assert torch.equal(weight, copied)
            return
        with pytest.raises(RuntimeError, match="two gradients in one backward pass"):
            DenseAdam([weight], fused=True).step_in_backward(x.sum())

    @pytest.mark.parametrize("change", [{}, {"clip_norm": 0.5}, {"losses": 2}], ids=["plain", "clipped", "in parts"])
    def test_the_engine_takes_the_same_steps_with_it_and_without_it(self, net, change, monkeypatch):
        plain = copy.deepcopy(net)
        for each, is_inside in ((net, True), (plain, False)):
            engine = Engine(Compute(device="cpu", threads=1))
            optimizer = engine.build_optimizer(each, Optimizer(clip_norm=change.get("clip_norm")))
            if not is_inside:
                monkeypatch.setattr(engine, "_steps_in_backward", lambda _: False)
            for number in range(STEPS):
                losses = [self.loss(each, number + part) for part in range(change.get("losses", 1))]
                engine.backward_and_step(losses if len(losses) > 1 else losses[0], optimizer)
        assert_equal(net, plain, rtol=0, atol=0)


class TestEpsBeforeCorrection:
    """Torch7's formula, with nothing that changes in Python."""

    @pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"amsgrad": True}], ids=str)
    def test_its_steps_are_those_of_an_adam_whose_eps_changes(self, options):
        ours, theirs = network(), network()
        rate = torch.tensor(1e-2)
        recordable = RecordableEpsAdam(ours.parameters(), lr=rate, fused=True, **LARGE_EPS, **options)
        adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, **LARGE_EPS, **options)
        settings = Optimizer(eps_before_correction=True, **LARGE_EPS)
        for number in range(STEPS):
            for group in adam.param_groups:
                group["eps"] = settings.eps_at(number)
            step(ours, recordable, number)
            step(theirs, adam, number)
            assert_equal(ours, theirs, rtol=1e-5, atol=1e-6)
        assert recordable.param_groups[0]["lr"] is rate
        assert rate == 1e-2
        counts = {state["step"].item() for state in recordable.state.values()}
        assert counts == {STEPS}, "a checkpoint has the true count"

    def test_its_first_step_is_the_formula(self):
        weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        optimizer = RecordableEpsAdam([weight], lr=torch.tensor(0.1), fused=True, betas=(0.9, 0.99), eps=0.5)
        weight.grad = torch.tensor(2.0, dtype=torch.float64)
        optimizer.step()
        m, v = 0.1 * 2, 0.01 * 2**2
        expected = 1 - 0.1 * (1 - 0.99) ** 0.5 / (1 - 0.9) * m / (v**0.5 + 0.5)
        assert weight.item() == pytest.approx(expected, rel=1e-6)

    def test_a_step_that_the_loss_scaler_skips_is_not_counted(self):
        weight = nn.Parameter(torch.ones(3))
        optimizer = RecordableEpsAdam([weight], lr=torch.tensor(0.1), fused=True)
        for found_inf, count in ((0.0, 1), (1.0, 1), (0.0, 2)):
            before, weight.grad = weight.detach().clone(), torch.ones(3)
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(found_inf), torch.tensor(1.0)
            optimizer.step()
            assert torch.equal(weight, before) == bool(found_inf)
            assert optimizer.state[weight]["step"] == count

    def test_its_state_resumes_bit_identically(self):
        ours, again = network(), network()
        optimizers = [
            RecordableEpsAdam(net.parameters(), lr=torch.tensor(1e-2), fused=True, **LARGE_EPS) for net in (ours, again)
        ]
        step(ours, optimizers[0], 0)
        again.load_state_dict(ours.state_dict())
        restore_optimizer(
            optimizers[1], {n.removeprefix("a."): t for n, t in optimizer_tensors("a", optimizers[0]).items()}
        )
        for net, optimizer in zip((ours, again), optimizers, strict=True):
            step(net, optimizer, 1)
        assert_equal(ours, again, rtol=0, atol=0)


class TestState:
    @pytest.mark.parametrize("second", [fused, torch_adam])
    @pytest.mark.parametrize("first", [fused, torch_adam])
    def test_it_resumes_from_its_own_state_and_from_that_of_adam_and_vice_versa(self, net, first, second):
        straight = copy.deepcopy(net)
        uninterrupted = fused(straight)
        current = first(net)
        for number in range(STEPS):
            step(straight, uninterrupted, number)
            if number == 2:
                resumed = second(net)
                resumed.load_state_dict({**current.state_dict(), "param_groups": resumed.state_dict()["param_groups"]})
                current = resumed
            step(net, current, number)
        assert_equal(net, straight, rtol=0, atol=0 if (first, second) == (fused, fused) else 1e-6)

    def test_a_checkpoint_resumes_bit_identically(self, net):
        straight = copy.deepcopy(net)
        uninterrupted, current = fused(straight), fused(net)
        for number in range(STEPS):
            step(straight, uninterrupted, number)
            if number == 2:
                saved = {name: tensor.clone() for name, tensor in optimizer_tensors("adam", current).items()}
                current = fused(net)
                restore_optimizer(current, {name.removeprefix("adam."): tensor for name, tensor in saved.items()})
            step(net, current, number)
        assert_equal(net, straight, rtol=0, atol=0)
        for parameter, state in current.state.items():
            assert state["exp_avg"].stride() == parameter.stride()

    def test_its_state_has_the_names_shapes_and_types_of_adam(self, net):
        plain = copy.deepcopy(net)
        optimizer, torch_optimizer = fused(net), torch_adam(plain)
        step(net, optimizer, 0)
        step(plain, torch_optimizer, 0)
        ours, torch_has = optimizer.state_dict()["state"], torch_optimizer.state_dict()["state"]
        assert ours.keys() == torch_has.keys()
        for index, part in ours.items():
            assert {name: (v.shape, v.dtype) for name, v in part.items()} == {
                name: (v.shape, v.dtype) for name, v in torch_has[index].items()
            }


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}], ids=str)
@pytest.mark.parametrize("kind", [DenseAdam, DenseAdamW], ids=["Adam", "AdamW"])
def test_weight_decay_and_amsgrad_work_as_in_torch(net, kind, options):
    net.to(torch.float64)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    torch_kind = torch.optim.AdamW if kind is DenseAdamW else torch.optim.Adam
    optimizer = kind(net.parameters(), fused=True, **SETTINGS, **options)
    torch_optimizer = torch_kind(plain.parameters(), fused=False, **SETTINGS, **options)
    for number in range(STEPS):
        step(net, optimizer, number)
        step(plain, torch_optimizer, number)
    assert_equal(net, plain, rtol=0, atol=1e-13)


BY_NAME = {
    "Adam": {"weight_decay": 0.01, "amsgrad": True},
    "AdamW": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "Adadelta": {"rho": 0.8},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {},
    "Rprop": {"etas": (0.4, 1.1)},
}


def settings(use):
    return Optimizer(use=use, lr=1e-2, options=tuple(BY_NAME[use].items()))


@pytest.mark.parametrize("use", BY_NAME)
def test_an_optimizer_by_name_steps_as_in_torch(net, use):
    net.to(torch.float64)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    engine = Engine(Compute(device="cpu", threads=1))
    optimizer = engine.build_optimizer(net, settings(use))
    assert engine.enabled["fused_adam"] is (use in DENSE_OPTIMIZERS)
    arguments = BY_NAME[use] | ({"betas": (0.5, 0.999), "eps": 1e-8} if use == "Adam" else {})
    torch_optimizer = getattr(torch.optim, use)(plain.parameters(), lr=1e-2, **arguments)
    for number in range(STEPS):
        step(net, optimizer, number)
        step(plain, torch_optimizer, number)
    assert_equal(net, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("use", BY_NAME)
def test_a_checkpoint_of_any_class_resumes_bit_identically(net, use):
    straight = copy.deepcopy(net)
    engine = Engine(Compute(device="cpu", threads=1))
    uninterrupted, current = engine.build_optimizer(straight, settings(use)), engine.build_optimizer(net, settings(use))
    for number in range(STEPS):
        step(straight, uninterrupted, number)
        if number == 2:
            saved = {name: tensor.clone() for name, tensor in optimizer_tensors("G_adam", current).items()}
            current = engine.build_optimizer(net, settings(use))
            restore_optimizer(current, {name.removeprefix("G_adam."): tensor for name, tensor in saved.items()})
        step(net, current, number)
    assert_equal(net, straight, rtol=0, atol=0)


def test_only_names_of_torch_optimizers_are_accepted():
    assert optimizer_class("RMSprop") is torch.optim.RMSprop
    for use in ("Optimizer", "lr_scheduler", "__name__", "os.system", "adam"):
        with pytest.raises(ValueError, match=r"no optimizer of torch\.optim"):
            optimizer_class(use)
    with pytest.raises(ValueError, match=r"did you mean 'RMSprop'"):
        optimizer_class("RMSProp")


def test_every_fault_of_the_parameters_is_reported():
    table = {"momentun": 0.9, "nesterov": 1, "dampening": "high", "foreach": True, "maximize": True}
    with pytest.raises(InvalidParameters) as caught:
        check_options("SGD", table, ["lr"])
    faults = dict(caught.value.faults)
    assert faults["momentun"] == "has no parameter 'momentun': did you mean 'momentum'?"
    assert faults["nesterov"] == "nesterov = 1: give true or false"
    assert faults["dampening"] == 'dampening = "high": give a number'
    assert {"foreach", "maximize"} <= faults.keys(), "a recipe sets neither the implementation nor the direction"
    with pytest.raises(InvalidParameters, match=r"etas = \[0.5\]: give an array of 2 numbers"):
        check_options("Rprop", {"etas": [0.5]}, ["lr"])


@pytest.mark.parametrize("use", ["LBFGS", "SparseAdam"])
def test_optimizers_that_need_more_than_a_gradient_are_found_by_a_trial_step(use):
    with pytest.raises(ValueError, match=r"closure|dense"):
        try_step(use, 0.1, {})


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_what_it_keeps_between_steps_follows_the_network_and_the_state(net, kind):
    """Gradients that are missing in some steps, weights in other memory, a state that was loaded, another group."""
    plain = copy.deepcopy(net)
    dense, torch_optimizer = (
        getattr(module, name)([each[0].weight, *each[4:].parameters()], fused=fused, **SETTINGS)
        for module, name, each, fused in (
            (fused_adam, f"Dense{kind}", net, True), (torch.optim, kind, plain, False),
        )
    )  # fmt: skip

    def both(act):
        for each, optimizer in ((net, dense), (plain, torch_optimizer)):
            act(each, optimizer)
            assert_equal(net, plain, rtol=0, atol=1e-6) if each is plain else None

    def without_first(each, optimizer):
        step(each, torch.optim.SGD([each[0].bias], lr=0), 0)  # sets gradients
        each[0].weight.grad = None
        optimizer.step()

    def reload(each, optimizer):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(each, optimizer, 4)

    def move(each, optimizer):
        each[0].weight.data = each[0].weight.data.clone()
        step(each, optimizer, 5)

    def add_group(each, optimizer):
        optimizer.add_param_group({"params": [each[0].bias], "lr": 0.1, "weight_decay": 0.01})
        step(each, optimizer, 6)

    both(lambda each, optimizer: step(each, optimizer, 1))
    for act in (without_first, lambda each, optimizer: step(each, optimizer, 2), reload, move, add_group, move):
        both(act)
    counts = [[int(s["step"]) for s in optimizer.state.values()] for optimizer in (dense, torch_optimizer)]
    assert counts[0] == counts[1]
    assert sorted(set(counts[0])) == [2, 6, 7]
