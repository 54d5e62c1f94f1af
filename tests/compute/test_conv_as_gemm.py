"""Convolutions as matrix products: every algorithm gives the convolution, its gradients and their gradients."""

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
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as spectral_norm_by_hook
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.cli import main
from p2pzoo.compute.conv_algorithms import CONVOLVE, CORRELATE, SPREAD, ConvShape, ConvWindow
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser, convs_as_gemm, default_algorithm, supported_algorithms
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute
from p2pzoo.models.model_file import load_network
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.plugin.loader import registry

ALGORITHMS = ("library", "columns", "taps")
SIZES = ((8, 8), (9, 12))  # even; odd and unequal
assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)


class ForcedAlgorithm(AlgorithmChooser):
    """Choose one algorithm for every shape that supports it, else torch's kernel; record the choices.

    torch's kernels too are called one operation at a time.
    """

    def __init__(self, algorithm):
        self.preferred, self.choices = algorithm, []
        super().__init__()

    def _choose(self, shape):
        chosen = self.preferred if self.preferred in supported_algorithms(shape) else "library"
        self.choices.append(chosen)
        return chosen

    def _uses_only_library(self, *_):
        return False


def randn(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def check_every_algorithm(window, size, batch, x_channels, y_channels):
    """Compare all algorithms of the three operations with torch's convolution and its autograd gradients."""
    x = randn(batch, x_channels, *size, requires_grad=True)
    weight = randn(y_channels, x_channels, *window.kernel, requires_grad=True)
    out = F.conv2d(x, weight, None, window.stride, window.padding, window.dilation)
    y = torch.randn_like(out)
    dx, dw = torch.autograd.grad(out, (x, weight), y)
    x, weight = x.detach(), weight.detach()
    for operation in ("convolve", "spread", "correlate"):
        for algorithm in supported_algorithms(ConvShape(operation, batch, size, x_channels, y_channels, window)):
            if operation == "convolve":
                assert_close(CONVOLVE[algorithm](x, weight, window), out)
            elif operation == "spread":
                assert_close(SPREAD[algorithm](y, weight, window, size), dx)
            else:
                assert_close(CORRELATE[algorithm](x, y, window), dw)


class TestOperations:
    @pytest.mark.parametrize("kernel", [1, 3, 4])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_every_algorithm_gives_torchs_convolution_and_its_gradients(self, kernel, stride):
        torch.manual_seed(0)
        grid = itertools.product((0, 1, 2), (1, 2), SIZES, (1, 2), ((3, 4), (1, 5), (5, 1)), (False, True))
        for padding, dilation, size, batch, channels, transposed in grid:
            window = ConvWindow((kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, transposed)
            if min(window.positions(size)) > 0:
                check_every_algorithm(window, size, batch, *channels)

    @settings(max_examples=100, derandomize=True)
    @given(st.data())
    def test_height_and_width_may_differ_in_every_parameter(self, data):
        torch.manual_seed(0)
        two = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
        dilation = data.draw(st.sampled_from(((1, 1), (1, 1), (1, 2), (3, 1))))
        window = ConvWindow(two(1, 5), two(1, 4), two(0, 3), dilation, data.draw(st.booleans()))
        size = two(1, 11)
        assume(min(window.positions(size)) > 0)
        check_every_algorithm(window, size, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), 2)

    def test_a_4x4_convolution_supports_all_algorithms(self):
        window = ConvWindow((4, 4), (1, 1), (1, 1), (1, 1))
        assert {
            supported_algorithms(ConvShape(each, 1, (8, 8), 3, 4, window))
            for each in ("convolve", "spread", "correlate")
        } == {ALGORITHMS}

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_the_memory_format_of_the_inputs_does_not_matter(self, layout):
        torch.manual_seed(0)
        window = ConvWindow((4, 4), (1, 1), (1, 1), (1, 1))
        x, weight = randn(2, 3, 9, 7), randn(4, 3, 4, 4)
        y = F.conv2d(x, weight, None, 1, 1)
        inputs_ = [tensor.contiguous(memory_format=layout) for tensor in (x, y, weight)]
        for algorithm in ALGORITHMS:
            assert_close(CONVOLVE[algorithm](inputs_[0], inputs_[2], window), y)
            assert_close(
                SPREAD[algorithm](inputs_[1], inputs_[2], window, (9, 7)), SPREAD["library"](y, weight, window, (9, 7))
            )
            assert_close(CORRELATE[algorithm](*inputs_[:2], window), CORRELATE["library"](x, y, window))


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
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_a_rewritten_convolution_gives_the_same_output_and_gradients(self, convolution, algorithm):
        chooser = ForcedAlgorithm(algorithm)
        copied = convs_as_gemm(convolution, chooser)
        x = randn(2, convolution.in_channels, 5, 6, requires_grad=True)
        expected, y = convolution(x), copied(x)
        assert_close(y, expected)
        dy = torch.randn_like(y)
        inputs = (x, *convolution.parameters())
        for ours, torchs in zip(*(torch.autograd.grad(out, inputs, dy) for out in (y, expected)), strict=True):
            assert_close(ours, torchs)
        assert len(chooser.choices) == 3

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_it_is_differentiable_twice(self, convolution, algorithm):
        copied = convs_as_gemm(convolution, ForcedAlgorithm(algorithm))
        names = [name for name, _ in convolution.named_parameters()]

        def forward(x, *parameters):
            return functional_call(copied, dict(zip(names, parameters, strict=True)), (x,))

        x = randn(1, convolution.in_channels, 4, 3, requires_grad=True)
        inputs = (x, *(p.detach().clone().requires_grad_() for p in convolution.parameters()))
        assert gradcheck(forward, inputs, fast_mode=True)
        assert gradgradcheck(forward, inputs, fast_mode=True)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_it_is_differentiable_three_times(self, algorithm):
        torch.manual_seed(0)
        copied = convs_as_gemm(nn.Conv2d(2, 2, 2, bias=False).double(), ForcedAlgorithm(algorithm))

        def gradients(x, weight):
            y = functional_call(copied, {"weight": weight}, (x,))
            return torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)

        assert gradgradcheck(gradients, (randn(1, 2, 3, 3, requires_grad=True), randn(2, 2, 2, 2, requires_grad=True)))

    def test_gradients_of_frozen_weights_and_of_images_without_grad_are_not_computed(self, convolution):
        chooser = ForcedAlgorithm("columns")
        copied = convs_as_gemm(convolution, chooser)
        x = randn(1, convolution.in_channels, 5, 6)
        copied(x).sum().backward()
        assert len(chooser.choices) == 2, "no gradient of the image is computed"
        convolution.requires_grad_(False)
        chooser = ForcedAlgorithm("columns")
        convs_as_gemm(convolution, chooser)(x.requires_grad_()).sum().backward()
        assert len(chooser.choices) == 2, "no gradient of the weights is computed"

    def test_a_transposed_convolution_honours_output_size(self):
        up = nn.ConvTranspose2d(2, 3, 4, 3, 1).double()
        x = randn(1, 2, 5, 4)
        for algorithm in ALGORITHMS:
            copied = convs_as_gemm(up, ForcedAlgorithm(algorithm))
            for size in ([14, 11], [16, 12]):
                assert_close(copied(x, output_size=size), up(x, output_size=size))
            with pytest.raises(ValueError, match="requested an output size"):
                copied(x, output_size=[40, 40])

    def test_torch_is_called_directly_if_it_computes_all_three_operations(self):
        conv = nn.Conv2d(3, 64, 4, 2, 1)
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(convs_as_gemm(conv)(x), conv(x))
        assert convs_as_gemm(conv)(x).grad_fn.name() == "ConvolutionBackward0"


class OverridesForward(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class SubclassedConv(nn.Conv2d):
    """A subclass that adds a method and keeps forward."""

    def scale(self):
        return self.weight.abs().mean()


class NotCopyable(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.lock = threading.Lock()


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 2, 4, 2, 1)
    ).to(memory_format=torch.channels_last)  # fmt: skip


def rewritten(module):
    return [name for name, part in module.named_modules() if "forward" in vars(part)]


class TestTheCopy:
    def test_it_shares_every_parameter_and_buffer(self):
        net = make_network()
        copied = convs_as_gemm(net)
        assert rewritten(copied) == ["0", "3"]
        ours, its = dict(net.state_dict(keep_vars=True)), dict(copied.state_dict(keep_vars=True))
        assert list(ours) == list(its)
        assert all(ours[name] is its[name] for name in ours)

    def test_training_the_copy_trains_the_original(self):
        net, plain = make_network(), make_network()
        copied = convs_as_gemm(net, ForcedAlgorithm("columns"))
        x = torch.randn(2, 3, 8, 8)
        for network_, parameters in ((copied, net.parameters()), (plain, plain.parameters())):
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                network_(x).square().mean().backward()
                optimizer.step()
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(tensor, plain.state_dict()[name])
        assert net[1].num_batches_tracked == 3

    def test_the_original_is_not_rewritten(self):
        net = make_network()
        convs_as_gemm(net)
        assert rewritten(net) == []
        exported = torch.export.export(net.eval(), (torch.randn(1, 3, 8, 8),))
        operations = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert {name.split(".")[1] for name in operations} <= {"conv2d", "batch_norm", "relu", "conv_transpose2d"}

    def test_hooks_and_parametrizations_run_once(self):
        """Each access to a weight with spectral norm takes one more step of its power iteration."""
        torch.manual_seed(0)
        net = spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)).double()
        plain = copy.deepcopy(net)
        chooser = ForcedAlgorithm("columns")
        copied = convs_as_gemm(net, chooser)
        calls = []
        copied.register_forward_hook(lambda *_: calls.append(1))
        x = randn(1, 3, 8, 8)
        for each in (copied, plain):
            each(x).square().sum().backward()
        assert (chooser.choices, calls) == (["columns", "columns"], [1])
        assert_close(net.parametrizations.weight.original.grad, plain.parametrizations.weight.original.grad)
        assert_close(net.parametrizations.weight[0]._u, plain.parametrizations.weight[0]._u)

    def test_the_older_spectral_norm_runs_once(self):
        torch.manual_seed(0)
        net = spectral_norm_by_hook(nn.Conv2d(3, 8, 4, 2, 1)).double()
        plain = copy.deepcopy(net)
        chooser = ForcedAlgorithm("columns")
        copied = convs_as_gemm(net, chooser)
        x = randn(1, 3, 8, 8)
        for each in (copied, plain):
            each(x).square().sum().backward()
        assert chooser.choices == ["columns", "columns"]
        assert_close(net.weight_orig.grad, plain.weight_orig.grad)

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            (OverridesForward(3, 4, 3), "its class overrides forward"),
            (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
            (nn.ConvTranspose2d(4, 4, 3, groups=4), "4 groups"),
            (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding (1, 1), reflect"),
            (nn.Conv2d(3, 4, 3, padding="same"), "padding 'same', zeros"),
        ],
        ids=lambda part: part if isinstance(part, str) else type(part).__name__,
    )
    def test_unsupported_convolutions_are_not_rewritten_and_the_log_gives_the_reason(self, part, reason, caplog):
        with caplog.at_level(logging.DEBUG, "p2pzoo"):
            copied = convs_as_gemm(nn.Sequential(part, nn.Conv2d(4, 4, 3)), ForcedAlgorithm("columns"))
        assert rewritten(copied) == ["1"]
        assert [record.message for record in caplog.records] == [
            f"0 ({type(part).__name__}) is not rewritten: {reason}"
        ]
        assert caplog.records[0].levelno == logging.DEBUG
        x = torch.randn(1, part.in_channels, 8, 8)
        assert torch.equal(copied[0](x), part(x))

    def test_a_subclass_that_keeps_forward_is_rewritten(self):
        assert rewritten(convs_as_gemm(nn.Sequential(SubclassedConv(3, 4, 3)))) == ["0"]

    def test_a_module_that_cannot_be_copied_is_returned_itself(self, caplog):
        module = NotCopyable(3, 4, 3)
        with caplog.at_level(logging.DEBUG, "p2pzoo"):
            assert convs_as_gemm(module) is module
        assert rewritten(module) == []
        assert "NotCopyable is not rewritten: it cannot be copied" in caplog.text


class TestBf16:
    """Under autocast to bf16, which keeps 8 bits of each number: each result is rounded by up to 2 ** -9."""

    @pytest.fixture(autouse=True, params=[True, False], ids=["products", "no products"])
    def has_products(self, request, monkeypatch):
        """On a CPU that multiplies bf16 numbers, and on one that does not, whichever this is."""
        monkeypatch.setattr("p2pzoo.compute.conv_as_gemm.has_bf16_products", lambda: request.param)
        return request.param

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_it_is_close_to_fp32_in_outputs_and_gradients_of_gradients(self, convolution, algorithm):
        chooser = ForcedAlgorithm(algorithm)
        convolution = convolution.float()
        copied = convs_as_gemm(convolution, chooser)
        inputs = (torch.randn(2, convolution.in_channels, 5, 6, requires_grad=True), *convolution.parameters())

        def gradients(part, autocast):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = part(inputs[0])
            weights = torch.linspace(-1, 1, y.numel()).view_as(y)
            first = torch.autograd.grad((weights * y.float()).sum(), inputs, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), inputs[:2])
            return y, [*first, *second]

        y, ours = gradients(copied, autocast=True)
        expected, exact = gradients(convolution, autocast=False)
        assert y.dtype == torch.bfloat16
        assert {each.dtype for each in ours} == {torch.float32}, "gradients of fp32 tensors"
        for half, single in zip([y, *ours], [expected, *exact], strict=True):
            assert (half.float() - single).norm() <= 0.02 * single.norm()
        assert len(chooser.choices) >= 3

    def test_the_rounding_is_that_of_torchs_autocast_where_torchs_kernels_compute(self, convolution):
        copied = convs_as_gemm(convolution.float(), ForcedAlgorithm("library"))
        x = torch.randn(2, convolution.in_channels, 5, 6)
        with torch.autocast("cpu", torch.bfloat16):
            expected, y = convolution(x).float(), copied(x).float()
        assert (y - expected).abs().max() <= 2**-7 * expected.abs().max(), "the bias is added after rounding"

    def test_without_bf16_products_all_is_multiplied_in_fp32(self, convolution, has_products):
        class DtypesOfProducts(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.seen = set()

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if any(word in str(func) for word in ("convolution", "mm", "linear")):
                    self.seen |= {each.dtype for each in args if isinstance(each, Tensor)}
                return func(*args, **(kwargs or {}))

        copied = convs_as_gemm(convolution.float())
        with DtypesOfProducts() as products:
            with torch.autocast("cpu", torch.bfloat16):
                y = copied(torch.randn(2, convolution.in_channels, 5, 6, requires_grad=True))
            y.float().sum().backward()
        assert products.seen == {torch.bfloat16 if has_products else torch.float32}
        assert y.dtype == torch.bfloat16

    def test_without_bf16_products_the_numbers_are_rounded_as_with_them(self, convolution, has_products):
        x = torch.randn(2, convolution.in_channels, 5, 6)
        with torch.autocast("cpu", torch.bfloat16):
            y = convs_as_gemm(convolution.float())(x)
        rounded = copy.deepcopy(convolution)
        for parameter in rounded.parameters():
            parameter.data = parameter.bfloat16().float()
        exact = rounded.double()(x.bfloat16().double())
        assert (y.double() - exact).abs().max() <= 2**-7 * exact.abs().max()
        if not has_products:  # once, and to the nearest, but for numbers in the middle between two of bf16
            assert (y != exact.bfloat16()).float().mean() < 0.01

    def test_a_kernels_file_chooses_for_bf16_apart_from_fp32(self, has_products):
        window = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))
        shape = ConvShape("convolve", 1, (8, 8), 8, 8, window)
        asked = []

        class Recording(AlgorithmChooser):
            def _choose(self, shape):
                asked.append(shape)
                return "columns"

        conv = convs_as_gemm(nn.Conv2d(8, 8, 4, 2, 1), Recording())
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                conv(torch.randn(1, 8, 8, 8))
        assert {each for each in asked if each.operation == "convolve"} == {replace(shape, bf16=has_products), shape}

    def test_fp16_is_left_to_torch(self):
        chooser = ForcedAlgorithm("columns")
        conv, x = nn.Conv2d(8, 8, 4, 2, 1), torch.randn(1, 8, 8, 8)
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(convs_as_gemm(conv, chooser)(x), conv(x))
        assert chooser.choices == []


class TestFallbackToTorch:
    def test_images_without_a_batch_and_batches_without_images(self):
        chooser = ForcedAlgorithm("columns")
        for part in (nn.Conv2d(3, 8, 4), nn.ConvTranspose2d(3, 8, 4)):
            for shape in ((3, 8, 8), (0, 3, 8, 8)):
                x = torch.randn(shape)
                assert torch.equal(convs_as_gemm(part, chooser)(x), part(x))
        assert chooser.choices == []

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
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_inputs_that_torch_rejects_raise_the_error_of_torch(self, x, algorithm):
        for part in (nn.Conv2d(8, 8, 4), nn.ConvTranspose2d(8, 8, 1, padding=2)):
            with pytest.raises(RuntimeError) as torchs:
                part(x)
            with pytest.raises(RuntimeError) as ours:
                convs_as_gemm(part, ForcedAlgorithm(algorithm))(x)
            assert str(ours.value) == str(torchs.value)


shapes = st.builds(
    ConvShape,
    st.sampled_from(("convolve", "spread", "correlate")),
    st.integers(1, 16),
    st.tuples(st.integers(16, 512), st.integers(16, 512)),
    st.integers(1, 1024),
    st.integers(1, 1024),
    st.builds(
        ConvWindow,
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.booleans(),
    ),
)


class TestDefaultAlgorithm:
    @settings(max_examples=300, derandomize=True)
    @given(shapes)
    def test_it_supports_the_shape_and_depends_on_the_shape_alone(self, shape):
        chosen = default_algorithm(shape)
        assert chosen in supported_algorithms(shape)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            assert default_algorithm(copy.deepcopy(shape)) == chosen
        finally:
            torch.set_num_threads(threads)
        assert AlgorithmChooser().algorithm(shape) == chosen

    def test_the_papers_networks_use_all_algorithms(self):
        """A change of the default changes every run in the last bits, so it must be deliberate."""
        down = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))
        up = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1), transposed=True)
        one = ConvWindow((4, 4), (1, 1), (1, 1), (1, 1))
        chosen = {
            "e1": [
                default_algorithm(ConvShape(o, 1, (256, 256), 3, 64, down)) for o in ("convolve", "spread", "correlate")
            ],
            "e4": [
                default_algorithm(ConvShape(o, 1, (32, 32), 256, 512, down))
                for o in ("convolve", "spread", "correlate")
            ],
            "e8": [
                default_algorithm(ConvShape(o, 1, (2, 2), 512, 512, down)) for o in ("convolve", "spread", "correlate")
            ],
            "d8": [
                default_algorithm(ConvShape(o, 1, (256, 256), 3, 128, up)) for o in ("convolve", "spread", "correlate")
            ],
            "logit": [
                default_algorithm(ConvShape(o, 1, (31, 31), 512, 1, one)) for o in ("convolve", "spread", "correlate")
            ],
        }
        assert chosen == {
            "e1": ["library", "library", "library"],
            "e4": ["columns", "columns", "columns"],
            "e8": ["columns", "columns", "columns"],
            "d8": ["library", "columns", "library"],
            "logit": ["taps", "taps", "taps"],
        }

    @pytest.mark.parametrize(("x", "y"), [(3, 2), (3, 8), (64, 3), (64, 8), (128, 8)])
    def test_few_channels_of_x_go_to_the_library(self, x, y):
        """Copies and sums of windows took up to 80 times as long there as torch's kernels."""
        down = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))
        up = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1), transposed=True)
        one = ConvWindow((7, 7), (1, 1), (3, 3), (1, 1))
        shapes = [ConvShape("convolve", 1, (256, 256), x, y, window) for window in (down, one)]
        if x < 64:
            shapes.append(ConvShape("spread", 1, (256, 256), x, y, up))
        assert {default_algorithm(shape) for shape in shapes} == {"library"}

    def test_an_override_affects_only_its_shape(self):
        shape = ConvShape("correlate", 1, (64, 64), 64, 1024, ConvWindow((4, 4), (2, 2), (1, 1), (1, 1)))
        other = ConvShape("correlate", 2, (64, 64), 64, 1024, shape.window)
        chooser = AlgorithmChooser({shape.key(): "library"})
        assert (default_algorithm(shape), chooser.algorithm(shape), chooser.algorithm(other)) == (
            "columns",
            "library",
            "columns",
        )

    def test_different_shapes_have_different_keys(self):
        window = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))
        shape = ConvShape("convolve", 1, (64, 64), 3, 8, window)
        others = [{"operation": "spread"}, {"batch": 2}, {"size": (64, 32)}, {"x": 8}, {"y": 3}, {"bf16": True}]
        windows = [
            {"kernel": (4, 3)}, {"stride": (1, 2)}, {"padding": (0, 1)}, {"dilation": (2, 1)}, {"transposed": True}
        ]  # fmt: skip
        shapes = [shape, *(replace(shape, **other) for other in others)]
        shapes += [replace(shape, window=replace(window, **other)) for other in windows]
        assert len({other.key() for other in shapes}) == len(shapes) == 12


class TestOnlyTrainingIsRewritten:
    """Networks that are printed, saved or exported are not rewritten."""

    def test_a_model_file_has_the_same_bytes_with_and_without_lowering(self, tmp_path):
        for name, on in (("with", True), ("without", False)):
            engine = Engine(Compute(device="cpu", lowering=on))
            prepared = engine.prepare_model(make_network())
            assert bool(rewritten(prepared)) is on
            save_model(tmp_path / name, engine.unwrap(prepared), {})
        assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()

    def test_a_loaded_model_is_not_rewritten(self, run, tmp_path):
        answer = run(tmp_path, "train.images=2", "generator.width=2")
        assert answer.exit_code == 0, answer.output
        [file] = tmp_path.glob("*/*/model.safetensors")
        model, _ = load_network(file, registry())
        assert rewritten(model) == []
        assert "lowering" not in json.dumps(load_tensors(file)[1])

    def test_show_does_not_rewrite_networks(self, monkeypatch):
        def fail(*_):
            raise AssertionError("show must not rewrite networks")

        for module in ("compute.conv_as_gemm", "compute.engine", "models.test_modes"):
            monkeypatch.setattr(f"p2pzoo.{module}.convs_as_gemm", fail)
        answer = CliRunner().invoke(main, ["show", "generator", "unet", "--json"])
        assert answer.exit_code == 0, answer.output
