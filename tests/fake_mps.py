"""Apple's device on a machine without one: tensors whose device is "mps", computed on the CPU.

It refuses what the real device refuses or computes wrongly: float64, tensors of two devices in one operation, and
convolutions and norms of tensors in channels-last (https://github.com/pytorch/pytorch/issues/175189). To C++ the
tensors are on the device "meta": so autograd works.
"""

import contextlib

import pytest
import torch
import torch._dynamo  # optimizers import it when they are made, which fails in a TorchFunctionMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

MPS = "mps"
CONTIGUOUS_ONLY = ("convolution", "batch_norm", "group_norm")
ACROSS_DEVICES = ("aten.copy_", "aten._to_copy", "aten.index", "aten._index_put")  # they take a CPU's tensors too
UNSUPPORTED = (torch.float64, torch.complex128)


class MpsTensor(torch.Tensor):
    """on_cpu  a tensor with its values"""

    device = property(lambda self: torch.device(MPS))
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        if values.dtype in UNSUPPORTED:
            raise TypeError(f"Cannot convert a MPS Tensor to {values.dtype}: the MPS framework does not support it")
        empty = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device="meta")
        tensor = torch.Tensor._make_subclass(cls, empty, values.requires_grad)
        tensor.on_cpu = values.detach()
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves_device = kwargs.get("device") is not None and not is_mps(kwargs["device"])
        if leaves_device and kwargs.get("dtype") in UNSUPPORTED:
            raise TypeError(f"a copy from MPS converts on the device, which has no {kwargs['dtype']}")
        if not str(func).startswith(ACROSS_DEVICES):
            check_devices(func, (args, kwargs))
        on_cpu = tree_map(to_cpu, (args, kwargs))
        if any(name in str(func) for name in CONTIGUOUS_ONLY):
            check_contiguous(func, on_cpu[0])
        values = func(*on_cpu[0], **on_cpu[1])
        return values if leaves_device else tree_map(to_mps, values)

    def __repr__(self):
        return f"MpsTensor({self.on_cpu})"


def is_mps(device):
    return isinstance(device, str | torch.device) and str(device).partition(":")[0] == MPS


def to_cpu(value):
    if isinstance(value, MpsTensor):
        return value.on_cpu
    return torch.device("cpu") if is_mps(value) else value


def to_mps(value):
    return MpsTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, MpsTensor) else value


def check_devices(func, values):
    """A CPU's tensor without dimensions is a number to all devices."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    if strangers := [tensor for tensor in tensors if not isinstance(tensor, MpsTensor) and tensor.ndim]:
        raise RuntimeError(f"{func}: expected all tensors to be on mps, and one is on {strangers[0].device}")


def check_contiguous(func, args):
    for tensor in args:
        is_image = isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and not tensor.is_contiguous()
        if is_image and tensor.is_contiguous(memory_format=torch.channels_last):
            raise RuntimeError(f"{func} of a channels-last tensor is wrong on MPS")


class _OnMps(TorchFunctionMode):
    """Make tensors of functions that get the device "mps"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], MpsTensor):  # torch refuses it for a subclass
            return args[0].on_cpu.tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], MpsTensor):  # torch would make it on "meta"
            return to_mps(args[0].on_cpu.new_tensor(*args[1:], **kwargs))
        if func is torch.device or not any(map(is_mps, (*args[1:], kwargs.get("device")))):
            return func(*args, **kwargs)
        if args and isinstance(args[0], MpsTensor):  # it is there already
            dtypes = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
            tensor = args[0].to(dtypes[0]) if dtypes else args[0]
            memory_format = kwargs.get("memory_format") or torch.preserve_format
            return tensor if memory_format == torch.preserve_format else tensor.contiguous(memory_format=memory_format)
        return to_mps(func(*map(to_cpu, args), **{name: to_cpu(value) for name, value in kwargs.items()}))


@contextlib.contextmanager
def simulated_mps():
    """Inside, "mps" is available, and what "auto" picks."""
    with pytest.MonkeyPatch.context() as patch, _OnMps():
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.backends.mps, "is_built", lambda: True)
        patch.setattr(torch.mps, "synchronize", lambda: None)
        patch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
        patch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
        yield
