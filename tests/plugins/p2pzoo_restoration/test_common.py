"""What the generators share."""

import pytest
import torch
from p2pzoo_restoration.common import LayerNorm2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_is_over_the_channels_of_each_pixel(memory_format):
    h = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    expected = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(LayerNorm2d(8, eps=1e-6)(h), expected)
