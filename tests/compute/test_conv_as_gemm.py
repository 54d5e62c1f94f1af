"""Convolutions as matrix products: every form is the convolution, its gradients and theirs; nothing else changes."""

import copy
import functools
import itertools
import json
import logging
import threading
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as spectral_norm_by_hook
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo.cli import main
from p2pzoo.compute.conv_as_gemm import (
    CONVOLVE,
    CORRELATE,
    SPREAD,
    Chooser,
    Shape,
    Window,
    convs_as_gemm,
    forms,
    shipped_rule,
)
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute
from p2pzoo.models.model_file import load_model
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.plugin.loader import registry

FORMS = ("library", "columns", "taps")
SIZES = ((8, 8), (9, 12))  # even; odd and unequal
close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)


class Forced(Chooser):
    """One form wherever a shape has it, and torch's kernel elsewhere; also torch's is called operation by operation."""

    def __init__(self, form):
        self.wanted, self.asked = form, []
        super().__init__()

    def _form(self, shape):
        chosen = self.wanted if self.wanted in forms(shape) else "library"
        self.asked.append(chosen)
        return chosen

    def _library_only(self, *_):
        return False


def randn(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def check_every_form(window, size, batch, x_channels, y_channels):
    """All forms of the three operations against torch's convolution and the gradients that autograd makes of it."""
    x = randn(batch, x_channels, *size, requires_grad=True)
    weight = randn(y_channels, x_channels, *window.kernel, requires_grad=True)
    out = F.conv2d(x, weight, None, window.stride, window.padding, window.dilation)
    y = torch.randn_like(out)
    dx, dw = torch.autograd.grad(out, (x, weight), y)
    x, weight = x.detach(), weight.detach()
    for operation in ("convolve", "spread", "correlate"):
        for form in forms(Shape(operation, batch, size, x_channels, y_channels, window)):
            if operation == "convolve":
                close(CONVOLVE[form](x, weight, window), out)
            elif operation == "spread":
                close(SPREAD[form](y, weight, window, size), dx)
            else:
                close(CORRELATE[form](x, y, window), dw)


class TestOperations:
    @pytest.mark.parametrize("kernel", [1, 3, 4])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_every_form_is_torchs_convolution_and_its_gradients(self, kernel, stride):
        torch.manual_seed(0)
        grid = itertools.product((0, 1, 2), (1, 2), SIZES, (1, 2), ((3, 4), (1, 5), (5, 1)), (False, True))
        for padding, dilation, size, batch, channels, transposed in grid:
            window = Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, transposed)
            if min(window.positions(size)) > 0:
                check_every_form(window, size, batch, *channels)

    @settings(deadline=None, max_examples=300, derandomize=True)
    @given(st.data())
    def test_also_where_height_and_width_differ_in_everything(self, data):
        torch.manual_seed(0)
        two = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
        dilation = data.draw(st.sampled_from(((1, 1), (1, 1), (1, 2), (3, 1))))
        window = Window(two(1, 5), two(1, 4), two(0, 3), dilation, data.draw(st.booleans()))
        size = two(1, 11)
        assume(min(window.positions(size)) > 0)
        check_every_form(window, size, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), 2)

    def test_each_form_is_somewhere_in_the_grid(self):
        window = Window((4, 4), (1, 1), (1, 1), (1, 1))
        assert {forms(Shape(each, 1, (8, 8), 3, 4, window)) for each in ("convolve", "spread", "correlate")} == {FORMS}

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_the_memory_format_of_what_comes_in_does_not_matter(self, layout):
        torch.manual_seed(0)
        window = Window((4, 4), (1, 1), (1, 1), (1, 1))
        x, weight = randn(2, 3, 9, 7), randn(4, 3, 4, 4)
        y = F.conv2d(x, weight, None, 1, 1)
        laid = [tensor.contiguous(memory_format=layout) for tensor in (x, y, weight)]
        for form in FORMS:
            close(CONVOLVE[form](laid[0], laid[2], window), y)
            close(SPREAD[form](laid[1], laid[2], window, (9, 7)), SPREAD["library"](y, weight, window, (9, 7)))
            close(CORRELATE[form](*laid[:2], window), CORRELATE["library"](x, y, window))


CONVOLUTIONS = {
    "4×4, stride 2": functools.partial(nn.Conv2d, 2, 3, 4, 2, 1),
    "4×4, stride 1": functools.partial(nn.Conv2d, 2, 3, 4, 1, 1),
    "1×1": functools.partial(nn.Conv2d, 2, 3, 1),
    "3×3, dilated": functools.partial(nn.Conv2d, 3, 2, 3, 1, 2, 2),
    "3×2, stride 2×3": functools.partial(nn.Conv2d, 2, 2, (3, 2), (2, 3), (1, 0), bias=False),
    "transposed 4×4, stride 2": functools.partial(nn.ConvTranspose2d, 2, 3, 4, 2, 1),
    "transposed 3×3, stride 1": functools.partial(nn.ConvTranspose2d, 2, 3, 3, 1, 1),
    "transposed, output padding": functools.partial(nn.ConvTranspose2d, 3, 2, 3, 2, 1, output_padding=1, bias=False),
    "transposed, dilated": functools.partial(nn.ConvTranspose2d, 2, 2, 3, 3, 2, output_padding=(2, 0), dilation=2),
}


@pytest.fixture(params=CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def convolution(request):
    torch.manual_seed(0)
    return request.param().double()


class TestModules:
    @pytest.mark.parametrize("form", FORMS)
    def test_a_lowered_convolution_gives_what_it_gave_and_the_same_gradients(self, convolution, form):
        choose = Forced(form)
        twin = convs_as_gemm(convolution, choose)
        x = randn(2, convolution.in_channels, 5, 6, requires_grad=True)
        expected, y = convolution(x), twin(x)
        close(y, expected)
        dy = torch.randn_like(y)
        wanted = (x, *convolution.parameters())
        for ours, torchs in zip(*(torch.autograd.grad(out, wanted, dy) for out in (y, expected)), strict=True):
            close(ours, torchs)
        assert len(choose.asked) == 3

    @pytest.mark.parametrize("form", FORMS)
    def test_it_is_differentiable_twice(self, convolution, form):
        twin = convs_as_gemm(convolution, Forced(form))
        names = [name for name, _ in convolution.named_parameters()]

        def forward(x, *parameters):
            return functional_call(twin, dict(zip(names, parameters, strict=True)), (x,))

        x = randn(1, convolution.in_channels, 4, 3, requires_grad=True)
        inputs = (x, *(p.detach().clone().requires_grad_() for p in convolution.parameters()))
        assert gradcheck(forward, inputs)
        assert gradgradcheck(forward, inputs)

    @pytest.mark.parametrize("form", FORMS)
    def test_and_a_third_time(self, form):
        torch.manual_seed(0)
        twin = convs_as_gemm(nn.Conv2d(2, 2, 2, bias=False).double(), Forced(form))

        def gradients(x, weight):
            y = functional_call(twin, {"weight": weight}, (x,))
            return torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)

        assert gradgradcheck(gradients, (randn(1, 2, 3, 3, requires_grad=True), randn(2, 2, 2, 2, requires_grad=True)))

    def test_frozen_weights_and_images_that_need_no_gradient_are_not_paid_for(self, convolution):
        choose = Forced("columns")
        twin = convs_as_gemm(convolution, choose)
        x = randn(1, convolution.in_channels, 5, 6)
        twin(x).sum().backward()
        assert len(choose.asked) == 2, "no gradient of the image"
        convolution.requires_grad_(False)
        choose = Forced("columns")
        convs_as_gemm(convolution, choose)(x.requires_grad_()).sum().backward()
        assert len(choose.asked) == 2, "no gradient of the weights"

    def test_the_size_asked_of_a_transposed_convolution_is_given(self):
        up = nn.ConvTranspose2d(2, 3, 4, 3, 1).double()
        x = randn(1, 2, 5, 4)
        for form in FORMS:
            twin = convs_as_gemm(up, Forced(form))
            for size in ([14, 11], [16, 12]):
                close(twin(x, output_size=size), up(x, output_size=size))
            with pytest.raises(ValueError, match="requested an output size"):
                twin(x, output_size=[40, 40])

    def test_where_all_three_are_torchs_nothing_stands_in_between(self):
        conv = nn.Conv2d(3, 64, 4, 2, 1)
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(convs_as_gemm(conv)(x), conv(x))
        assert convs_as_gemm(conv)(x).grad_fn.name() == "ConvolutionBackward0"


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class OwnWeight(nn.Conv2d):
    """A subclass that only adds something beside the convolution."""

    def scale(self):
        return self.weight.abs().mean()


class Locked(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.lock = threading.Lock()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 2, 4, 2, 1)
    ).to(memory_format=torch.channels_last)  # fmt: skip


def rewritten(module):
    return [name for name, part in module.named_modules() if "forward" in vars(part)]


class TestTheCopy:
    def test_it_shares_every_parameter_and_buffer(self):
        net = network()
        twin = convs_as_gemm(net)
        assert rewritten(twin) == ["0", "3"]
        ours, its = dict(net.state_dict(keep_vars=True)), dict(twin.state_dict(keep_vars=True))
        assert list(ours) == list(its)
        assert all(ours[name] is its[name] for name in ours)

    def test_to_train_it_is_to_train_the_original(self):
        net, plain = network(), network()
        twin = convs_as_gemm(net, Forced("columns"))
        x = torch.randn(2, 3, 8, 8)
        for network_, parameters in ((twin, net.parameters()), (plain, plain.parameters())):
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                network_(x).square().mean().backward()
                optimizer.step()
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(tensor, plain.state_dict()[name])
        assert net[1].num_batches_tracked == 3

    def test_the_original_is_not_rewritten(self):
        net = network()
        convs_as_gemm(net)
        assert rewritten(net) == []
        exported = torch.export.export(net.eval(), (torch.randn(1, 3, 8, 8),))
        operations = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert {name.split(".")[1] for name in operations} <= {"conv2d", "batch_norm", "relu", "conv_transpose2d"}

    def test_hooks_and_parametrizations_act_as_they_did(self):
        """Once: each reading of a spectral norm's weight is one more step of its power iteration."""
        torch.manual_seed(0)
        net = spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)).double()
        plain = copy.deepcopy(net)
        choose = Forced("columns")
        twin = convs_as_gemm(net, choose)
        seen = []
        twin.register_forward_hook(lambda *_: seen.append(1))
        x = randn(1, 3, 8, 8)
        for each in (twin, plain):
            each(x).square().sum().backward()
        assert (choose.asked, seen) == (["columns", "columns"], [1])
        close(net.parametrizations.weight.original.grad, plain.parametrizations.weight.original.grad)
        close(net.parametrizations.weight[0]._u, plain.parametrizations.weight[0]._u)

    def test_the_older_spectral_norm_too(self):
        torch.manual_seed(0)
        net = spectral_norm_by_hook(nn.Conv2d(3, 8, 4, 2, 1)).double()
        plain = copy.deepcopy(net)
        choose = Forced("columns")
        twin = convs_as_gemm(net, choose)
        x = randn(1, 3, 8, 8)
        for each in (twin, plain):
            each(x).square().sum().backward()
        assert choose.asked == ["columns", "columns"]
        close(net.weight_orig.grad, plain.weight_orig.grad)

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            (OwnForward(3, 4, 3), "it has a forward of its own"),
            (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
            (nn.ConvTranspose2d(4, 4, 3, groups=4), "4 groups"),
            (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding (1, 1), reflect"),
            (nn.Conv2d(3, 4, 3, padding="same"), "padding 'same', zeros"),
        ],
        ids=lambda part: part if isinstance(part, str) else type(part).__name__,
    )
    def test_what_it_does_not_know_stays_as_it_is_and_the_log_says_why(self, part, reason, caplog):
        with caplog.at_level(logging.DEBUG, "p2pzoo"):
            twin = convs_as_gemm(nn.Sequential(part, nn.Conv2d(4, 4, 3)), Forced("columns"))
        assert rewritten(twin) == ["1"]
        assert [record.message for record in caplog.records] == [f"0 ({type(part).__name__}) stays as it is: {reason}"]
        assert caplog.records[0].levelno == logging.DEBUG
        x = torch.randn(1, part.in_channels, 8, 8)
        assert torch.equal(twin[0](x), part(x))

    def test_a_subclass_with_the_forward_of_its_class_is_one_of_them(self):
        assert rewritten(convs_as_gemm(nn.Sequential(OwnWeight(3, 4, 3)))) == ["0"]

    def test_a_module_that_cannot_be_copied_is_returned_as_it_was(self, caplog):
        locked = Locked(3, 4, 3)
        with caplog.at_level(logging.DEBUG, "p2pzoo"):
            assert convs_as_gemm(locked) is locked
        assert rewritten(locked) == []
        assert "Locked stays as it is: it cannot be copied" in caplog.text


class TestWhereTorchDecides:
    def test_under_autocast(self):
        conv, up = nn.Conv2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        choose = Forced("columns")
        x = torch.randn(1, 8, 8, 8)
        for part in (conv, up):
            with torch.autocast("cpu", torch.bfloat16):
                assert convs_as_gemm(part, choose)(x).dtype == torch.bfloat16
                assert torch.equal(convs_as_gemm(part, choose)(x), part(x))
        assert choose.asked == []

    def test_images_without_a_batch_and_batches_without_images(self):
        choose = Forced("columns")
        for part in (nn.Conv2d(3, 8, 4), nn.ConvTranspose2d(3, 8, 4)):
            for shape in ((3, 8, 8), (0, 3, 8, 8)):
                x = torch.randn(shape)
                assert torch.equal(convs_as_gemm(part, choose)(x), part(x))
        assert choose.asked == []

    @pytest.mark.parametrize(
        "x",
        [
            torch.zeros(1, 8, 8, 8, dtype=torch.float64),
            torch.zeros(1, 8, 8, 8).bfloat16(),
            torch.zeros(1, 4, 8, 8),
            torch.zeros(1, 8, 2, 2),
            torch.zeros(8, 8),
        ],
        ids=["float64", "bfloat16", "channels", "size", "dimensions"],
    )
    @pytest.mark.parametrize("form", FORMS)
    def test_what_torch_refuses_is_refused_in_its_words(self, x, form):
        for part in (nn.Conv2d(8, 8, 4), nn.ConvTranspose2d(8, 8, 1, padding=2)):
            with pytest.raises(RuntimeError) as torchs:
                part(x)
            with pytest.raises(RuntimeError) as ours:
                convs_as_gemm(part, Forced(form))(x)
            assert str(ours.value) == str(torchs.value)


shapes = st.builds(
    Shape,
    st.sampled_from(("convolve", "spread", "correlate")),
    st.integers(1, 16),
    st.tuples(st.integers(16, 512), st.integers(16, 512)),
    st.integers(1, 1024),
    st.integers(1, 1024),
    st.builds(
        Window,
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.booleans(),
    ),
)


class TestTheRule:
    @settings(max_examples=300, derandomize=True)
    @given(shapes)
    def test_it_chooses_a_form_that_the_shape_has_by_the_shape_alone(self, shape):
        chosen = shipped_rule(shape)
        assert chosen in forms(shape)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            assert shipped_rule(copy.deepcopy(shape)) == chosen
        finally:
            torch.set_num_threads(threads)
        assert Chooser().form(shape) == chosen

    def test_it_chooses_among_all_forms_in_the_papers_networks(self):
        """A change of the rule changes the bits of every run: this is where it shows."""
        down = Window((4, 4), (2, 2), (1, 1), (1, 1))
        up = Window((4, 4), (2, 2), (1, 1), (1, 1), transposed=True)
        one = Window((4, 4), (1, 1), (1, 1), (1, 1))
        chosen = {
            "e1": [shipped_rule(Shape(o, 1, (256, 256), 3, 64, down)) for o in ("convolve", "spread", "correlate")],
            "e4": [shipped_rule(Shape(o, 1, (32, 32), 256, 512, down)) for o in ("convolve", "spread", "correlate")],
            "e8": [shipped_rule(Shape(o, 1, (2, 2), 512, 512, down)) for o in ("convolve", "spread", "correlate")],
            "d8": [shipped_rule(Shape(o, 1, (256, 256), 3, 128, up)) for o in ("convolve", "spread", "correlate")],
            "logit": [shipped_rule(Shape(o, 1, (31, 31), 512, 1, one)) for o in ("convolve", "spread", "correlate")],
        }
        assert chosen == {
            "e1": ["library", "library", "library"],
            "e4": ["columns", "columns", "columns"],
            "e8": ["columns", "columns", "columns"],
            "d8": ["library", "columns", "library"],
            "logit": ["taps", "taps", "taps"],
        }

    def test_an_override_counts_for_its_shape_alone(self):
        shape = Shape("correlate", 1, (64, 64), 64, 1024, Window((4, 4), (2, 2), (1, 1), (1, 1)))
        other = Shape("correlate", 2, (64, 64), 64, 1024, shape.window)
        choose = Chooser({shape.key(): "library"})
        assert (shipped_rule(shape), choose.form(shape), choose.form(other)) == ("columns", "library", "columns")

    def test_shapes_that_differ_in_anything_have_keys_that_differ(self):
        window = Window((4, 4), (2, 2), (1, 1), (1, 1))
        shape = Shape("convolve", 1, (64, 64), 3, 8, window)
        others = [{"operation": "spread"}, {"batch": 2}, {"size": (64, 32)}, {"x": 8}, {"y": 3}]
        windows = [
            {"kernel": (4, 3)}, {"stride": (1, 2)}, {"padding": (0, 1)}, {"dilation": (2, 1)}, {"transposed": True}
        ]  # fmt: skip
        found = [shape, *(replace(shape, **other) for other in others)]
        found += [replace(shape, window=replace(window, **other)) for other in windows]
        assert len({each.key() for each in found}) == len(found) == 11


class TestOutside:
    """The rewrite is the training's own: nothing that is shown, saved or exported has it."""

    def test_a_model_file_is_the_same_bytes_with_and_without(self, tmp_path):
        for name, on in (("with", True), ("without", False)):
            engine = Engine(Compute(device="cpu", lowering=on))
            placed = engine.prepare_model(network())
            assert bool(rewritten(placed)) is on
            save_model(tmp_path / name, engine.unwrap(placed), {})
        assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()

    def test_a_trained_model_is_plain_when_it_is_loaded(self, run, tmp_path):
        answer = run(tmp_path, "train.images=2", "generator.width=2")
        assert answer.exit_code == 0, answer.output
        [file] = tmp_path.glob("*/*/model.safetensors")
        model, _ = load_model(file, registry())
        assert rewritten(model) == []
        assert "lowering" not in json.dumps(load_tensors(file)[1])

    def test_show_builds_networks_as_their_plugin_made_them(self, monkeypatch):
        def fail(*_):
            raise AssertionError("show has no use for kernels")

        for module in ("speed.lowering", "compute", "translate"):
            monkeypatch.setattr(f"p2pzoo.{module}.lowered", fail)
        answer = CliRunner().invoke(main, ["show", "generator", "unet", "--json"])
        assert answer.exit_code == 0, answer.output
