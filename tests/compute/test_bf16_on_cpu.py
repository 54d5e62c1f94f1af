import pytest
import torch

from p2pzoo.compute.bf16_on_cpu import has_bf16_products


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "avx_ne_convert": True}, False),
        ({"neon": True}, False),
        (None, None),
    ],
    ids=["AVX-512", "AMX", "ARM", "conversions only", "old ARM", "older torch"],
)
def test_bf16_products(capabilities, expected, monkeypatch):
    has_bf16_products.cache_clear()
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    try:
        assert has_bf16_products() == expected
    finally:
        has_bf16_products.cache_clear()
