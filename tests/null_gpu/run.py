"""Run Python on the null GPU.

    python tests/null_gpu/run.py p2pzoo run zoo:base.toml --profile smoke --device cuda     (p2pzoo's command line)
    python tests/null_gpu/run.py script.py ARGUMENTS                                        (a script)

The first process builds the null GPU where it is missing (NULL_GPU_BUILD names the folder) and starts itself again with
it preloaded. NULL_GPUS=2 makes two devices, NULL_CC=75 is another compute capability, NULL_REPORT=1 prints the counters
at the end. A script can import `null_gpu.run` for `counters`, `set_memory_limit` and `patch_torch`.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from null_gpu import build  # noqa: E402

COUNTERS = (
    "launches", "memcpy", "memset", "captured", "captures", "graph_launches", "sync", "h2d_pageable", "malloc",
    "hostalloc", "collectives",
)  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Return the variables with which a Python process finds the null GPU that was built in `folder`."""
    return {
        "LD_PRELOAD": str(folder / build.RUNTIME),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "DISABLE_ADDMM_CUDA_LT": "1",  # torch would warn that linear layers fall back from cuBLASLt, which is not here
        "NULL_GPU_BUILD": str(folder),
    }


def counters() -> dict[str, int]:
    """Return what was counted since the process started: see the README for the names."""
    return {name: _c_long(name).value for name in COUNTERS}


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Count what happens inside: the dict is filled at the end."""
    before, counted = counters(), dict[str, int]()
    yield counted
    counted.update({name: value - before[name] for name, value in counters().items()})


def set_memory_limit(num_bytes: int) -> None:
    """Bound the memory of the device: an allocation beyond it fails. 0: no bound but 80 GB."""
    _c_long("limit").value = num_bytes


def memory_in_use() -> int:
    """Return the bytes that are allocated on the device, freed blocks that torch keeps included."""
    return int(_c_long("used").value)


def patch_torch() -> None:
    """Change what cannot work without arithmetic: cuDNN, isfinite, the checks of Adam's rate and of DDP's shapes.

    The losses that `tolist` reads from the device are what its memory held before. Those that are not finite become 0,
    so that no training stops because of them.
    """
    import torch
    import torch.nn.parallel.distributed as ddp

    torch.backends.cudnn.enabled = False
    for attention in ("cudnn", "flash", "mem_efficient"):  # kernels that the null GPU has not: it computes by products
        getattr(torch.backends.cuda, f"enable_{attention}_sdp")(False)
    torch.Tensor.isfinite = lambda _: torch.ones((), dtype=torch.bool)
    torch.Tensor.tolist = _reading_finite_numbers(torch.Tensor.tolist)
    ddp._verify_param_shape_across_processes = lambda *_: True
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):
        _skip_check_of_rate(optimizer)


def _reading_finite_numbers(read: Any) -> Any:
    """Tensor.tolist, with 0 for each number of the device that is not finite."""

    def read_finite(tensor: Any) -> Any:
        return _finite(read(tensor)) if tensor.is_cuda else read(tensor)

    return read_finite


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else 0.0


def _skip_check_of_rate(optimizer: Any) -> None:
    original_init = optimizer.__init__

    def init(self: Any, params: Any, lr: Any = 1e-3, *args: Any, **options: Any) -> None:
        import torch

        is_tensor = isinstance(lr, torch.Tensor)
        original_init(self, params, 1e-4 if is_tensor else lr, *args, **options)
        for group in self.param_groups:
            group["lr"] = lr
        self.defaults["lr"] = lr

    optimizer.__init__ = init


def _c_long(name: str) -> Any:
    return ctypes.c_long.in_dll(ctypes.CDLL(None), f"null_{name}")


def _default_folder() -> Path:
    sources = b"".join(file.read_bytes() for file in sorted([*build.SOURCES.iterdir(), HERE / "build.py"]))
    key = hashlib.sha256(sources + sys.prefix.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"null_gpu-{os.getuid()}-{key}"


def _start(arguments: list[str], variables: Mapping[str, str]) -> None:
    folder = Path(variables.get("NULL_GPU_BUILD") or _default_folder())
    if not (folder / build.DRIVER).is_file():  # it is built last
        if obstacle := build.find_obstacle():
            sys.exit(obstacle)
        build.build(folder)
    python = [sys.executable, "-W", "ignore:Attempting to run cuBLAS", __file__, *arguments]
    os.execve(sys.executable, python, {**variables, **environment(folder)})


def _run(arguments: list[str]) -> object:
    patch_torch()
    if arguments[0] == "p2pzoo":
        from p2pzoo.cli import main

        sys.argv = arguments
        return main()
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def main() -> None:
    """Run the command line, then leave without the destructors of CUDA's libraries."""
    if build.RUNTIME not in os.environ.get("LD_PRELOAD", ""):
        _start(sys.argv[1:], os.environ)
    code: object = 1
    try:
        code = _run(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    if os.environ.get("NULL_REPORT"):
        print(counters(), file=sys.stderr)
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
