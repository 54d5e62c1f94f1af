"""Whether this machine's CPU multiplies bf16 numbers faster than fp32 numbers.

Imports torch only.
"""

from __future__ import annotations

import functools

import torch

# Names of torch.cpu.get_capabilities: x86 first, then ARM. Other instructions only convert.
_BF16_PRODUCTS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


@functools.cache
def has_bf16_products() -> bool | None:
    """Return whether the CPU has instructions that multiply bf16 numbers; None if this torch cannot tell.

    Without them torch converts to fp32 and back around each product; conv_as_gemm.py does so around each convolution.

    >>> has_bf16_products() in (True, False, None)
    True
    """
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is None:
        return None
    capabilities = get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16_PRODUCTS)
