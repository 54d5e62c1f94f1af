"""What is there: the device, its driver, versions, a compiler, and the largest rates that this device reaches."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch

import p2pzoo
from window.context import Context, Record, say

NULL_GPU = "Null GPU"  # the name of a device that runs no kernel: see tests/null_gpu
COPIED = 2**31  # bytes of a copy whose time gives the bandwidth


def run(context: Context, record: Record) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    record.values["device"] = device
    record.set("device", {
        "type": device, "name": name, "computes": name != NULL_GPU, "torch": torch.__version__,
        **(_properties() if device == "cuda" else {}),
    })  # fmt: skip
    if device == "cpu" and not context.rehearse:
        return  # there is no window without a GPU
    record.set("versions", _versions())
    record.set("machine", measure.environment() | {"memory_gigabytes": _memory()})
    record.set("source", {"commit": _output("git", "rev-parse", "HEAD"), "core": _hash_source()})
    record.set("nvidia_smi", _nvidia_smi())
    _open_data(record)
    _rates(device, context, record)


def _properties() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(0)
    return {
        "devices": torch.cuda.device_count(),
        "capability": list(torch.cuda.get_device_capability()),
        "gigabytes": round(found.total_memory / 1e9, 1),
        "multiprocessors": found.multi_processor_count,
    }


def _versions() -> dict[str, Any]:
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "nccl": list(torch.cuda.nccl.version()) if torch.cuda.is_available() and hasattr(torch.cuda, "nccl") else None,
        "compilers": {tool: _output(tool, "--version") for tool in ("gcc", "g++", "nvcc") if shutil.which(tool)},
        "torch_built_for": torch.cuda.get_arch_list() if torch.cuda.is_available() else [],
    }


def _nvidia_smi() -> str:
    wanted = "name,driver_version,clocks.sm,clocks.mem,power.limit,persistence_mode,compute_mode,mig.mode.current"
    return _output("nvidia-smi", f"--query-gpu={wanted}", "--format=csv")


def _output(*command: str) -> str:
    """The first three lines that a command prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "\n".join(done.stdout.strip().splitlines()[:3])


def _hash_source() -> str:
    """A hash of p2pzoo's source: a copy of a repository may have no commit."""
    digest = hashlib.sha256()
    for file in sorted(Path(p2pzoo.__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _open_data(record: Record) -> None:
    """Build the layers of the embedded data, which takes seconds, before processes that need them start together."""
    from p2pzoo import config

    began = time.perf_counter()
    dataset = config.load("zoo:base.toml", "gpu").dataset.build(split="train")
    record.set("data", {"train_pairs": len(dataset), "seconds": round(time.perf_counter() - began, 2)})


def _rates(device: str, context: Context, record: Record) -> None:
    """The largest rates: of a copy, and of matrix products in each precision."""
    rates: dict[str, Any] = {}
    count = COPIED // 64 if context.rehearse else COPIED
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    rates["copy_gigabytes_per_second"] = round(2 * count / _median(lambda: target.copy_(source), device) / 1e9, 1)
    side = context.sizes.matrix
    torch.backends.cuda.matmul.allow_tf32 = False
    products = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
    for name, dtype in products.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        try:
            a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
            seconds = _median(lambda a=a, b=b: a @ b, device)
        except RuntimeError as error:  # not in this precision, or not enough memory
            say(f"{name}: {error}")
            continue
        rates[f"{name}_teraflops"] = round(2 * side**3 / seconds / 1e12, 3)
    record.set("rates", rates | {"matrix": side})


def _median(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Median seconds of one call, after two calls that are not counted."""
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])
