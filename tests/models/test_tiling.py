"""Tiles: which there are, that blending them gives the whole image back, that memory does not grow, and the seams."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from p2pzoo_pix2pix.generators import UNet
from torch import nn

from p2pzoo.models.model import Model
from p2pzoo.models.tiling import Tiling, blend_tiles
from p2pzoo.utils.errors import UserError

SEEN = 7  # pixels to each side on which one of the network below depends: its layers, at stride 2, in the worst case


class Near(nn.Module):
    """Halves and doubles the image, and sees little of it."""

    size_divisor = 2

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.largest = 0

    def forward(self, x):
        self.largest = max(self.largest, x.numel())
        return self.layers(x)


def model_of(G):
    header = {
        "in_channels": 3, "out_channels": 3, "size": [32, 32], "test_mode": "eval", "run": "none",
        "size_divisor": G.size_divisor, "generator": {"use": type(G).__name__},
    }  # fmt: skip
    return Model(G, header, torch.device("cpu"))


@pytest.fixture
def near():
    torch.manual_seed(0)
    return model_of(Near())


def smooth(height, width):
    """(3, H, W) in [-1, 1]: waves of several lengths."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(rows / a) * torch.cos(columns / b) for a, b in ((9, 23), (31, 7), (13, 17))]
    return torch.stack(waves)


@pytest.mark.parametrize(("length", "overlap"), [(64, 0), (65, 1), (96, 32), (97, 16), (98, 32), (640, 7), (1000, 32)])
def test_tiles_cover_a_side_and_what_they_count_adds_up_to_one(length, overlap):
    tiling = Tiling.of(64, overlap, 1)
    starts, weights = tiling.starts(length), tiling.weights(length)
    assert (starts[0], starts[-1] + 64) == (0, length)
    assert all(later - earlier <= 64 - overlap for earlier, later in pairwise(starts))
    assert len(starts) == 1 + -(-(length - 64) // (64 - overlap)), "no more than needed"
    total = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + 64] += weight
    torch.testing.assert_close(total, torch.ones(length))
    assert (weights >= 0).all()


def test_a_tile_counts_nothing_where_it_misses_its_surroundings():
    first, last = Tiling.of(64, 32, 1).weights(96)
    assert first[:40].eq(1).all(), "where it is alone, and in the neighbour's outer quarter"
    assert first[56:].eq(0).all()
    assert last[:8].eq(0).all()
    assert first[40:56].diff().lt(0).all(), "fading in between"


def test_tiles_begin_where_the_strides_do_unless_they_are_too_small_for_it():
    assert Tiling.of(512, None, 64).overlap == 128
    assert all(start % 64 == 0 for start in Tiling.of(512, None, 64).starts(64 * 31))
    assert Tiling.of(512, None, 256).overlap == 256
    assert Tiling.of(256, None, 256).overlap == 64, "a whole multiple would be all of the tile"


@pytest.mark.parametrize("size", [(200, 331), (64, 500), (33, 150), (129, 64)])
def test_a_network_that_sees_no_further_than_a_quarter_of_the_overlap_gives_the_whole_images_values(near, size):
    x = smooth(*size)
    tiled = near.translate(x, tile=64, overlap=4 * SEEN)
    torch.testing.assert_close(tiled, near.translate(x), rtol=0, atol=2e-6)


def test_an_overlap_too_small_for_what_the_network_sees_shows(near):
    x = smooth(200, 331)
    assert (near.translate(x, tile=64, overlap=8) - near.translate(x)).abs().max() > 1e-3


def test_every_kind_of_image_is_translated_in_tiles(near):
    x = smooth(100, 150)
    levels = ((x + 1) * 127.5).round().to(torch.uint8)
    photo = levels.permute(1, 2, 0).numpy()
    whole, tiled = near.translate(photo), near.translate(photo, tile=64, overlap=32)
    assert (tiled.shape, tiled.dtype) == (photo.shape, np.uint8)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    two = torch.stack([x, x.flip(2)]).double()
    translated = near.translate(two, tile=64)
    assert (translated.shape, translated.dtype) == (two.shape, torch.float64)
    torch.testing.assert_close(translated[1], near.translate(two[1], tile=64), rtol=0, atol=1e-6)


def test_an_image_that_fits_a_tile_is_translated_whole(near):
    x = smooth(64, 64)
    assert torch.equal(near.translate(x, tile=64), near.translate(x))


def test_what_the_network_sees_at_once_does_not_grow_with_the_image(near, monkeypatch):
    monkeypatch.setattr("p2pzoo.models.model.PIXELS_AT_ONCE", {"cpu": 2 * 64**2})
    sizes = []
    for side in (130, 1000):
        near._fast.largest = 0
        near.translate(smooth(side, side), tile=64)
        sizes.append(near._fast.largest)
    assert sizes == [2 * 3 * 64 * 64] * 2


def test_strips_come_as_they_are_done_and_hold_one_row_of_tiles():
    tiling = Tiling.of(64, 16, 1)
    asked = []

    def constant(places):
        asked.extend(places)
        return torch.ones(len(places), 1, 64, 64)

    done = 0
    for top, strip in blend_tiles(constant, 1000, 80, tiling, max_batch_size=1):
        assert top == done
        assert strip.shape[1] <= 64
        assert asked[-1][0].start == top, "no row of tiles is translated before the one above it is given"
        torch.testing.assert_close(strip, torch.ones_like(strip))
        done += strip.shape[1]
    assert done == 1000


def test_the_seams_of_a_u_net_are_no_rougher_than_the_rest_of_the_image():
    """Tiles of a U-Net differ, as each sees no further than itself; blended, they may not show as edges."""
    torch.manual_seed(0)
    G = UNet(3, 3, (32, 32), width=8)
    with torch.no_grad():
        for _ in range(20):
            G.train()(smooth(64, 64)[None])
    model = model_of(G)
    x = smooth(64, 320)
    whole = model.translate(x)
    usual = whole.diff(dim=2).abs().mean()

    def roughest(overlap):
        """The largest step that tiles add between two columns, over the usual step between two in the whole image."""
        added = model.translate(x, tile=64, overlap=overlap) - whole
        return added.diff(dim=2).abs().mean((0, 1)).max() / usual

    assert roughest(32) < 0.1
    assert roughest(0) > 0.5, "else the measure would see no seam"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 65}, "a tile of 65 does not fit this generator: multiples of 2 do, 64 or 66"),
        ({"tile": 1}, "a tile of 1 does not fit this generator: multiples of 2 do, 2"),
        ({"tile": 64, "overlap": 33}, "an overlap of 33 does not fit tiles of 64: 0 to 32 does"),
        ({"tile": 64, "overlap": -1}, "an overlap of -1 does not fit"),
        ({"overlap": 8}, "an overlap of 8 needs tiles"),
        ({"tile": 64, "test_mode": "paper"}, "tiles need the test mode eval"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_in_one_line(near, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        near.translate(smooth(8, 8), **arguments)
    assert "\n" not in str(caught.value)


def test_a_generator_that_normalises_by_what_it_sees_warns_of_it():
    torch.manual_seed(0)
    instance = model_of(UNet(3, 3, (32, 32), width=4, norm="instance"))
    with pytest.warns(UserWarning, match="InstanceNorm2d takes statistics of what it sees"):
        instance.translate(smooth(64, 64), tile=32)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
        MemoryError(),
    ],
)
def test_where_memory_ends_tiles_are_advised(near, error):
    def forward(x):
        raise error

    near._fast.forward = forward
    for image in (smooth(1001, 2000), smooth(1001, 2000).permute(1, 2, 0).mul(127).byte().numpy()):
        with pytest.raises(UserError, match=r"^out of memory at 1001×2000: translate it in tiles \(.*--tile 512\)$"):
            near.translate(image)
        with pytest.raises(UserError, match=r"smaller tiles \(--test-mode eval --tile 64\)$"):
            near.translate(image, tile=128)
        with pytest.raises(UserError, match="2×2 is the least that this generator takes"):
            near.translate(image, tile=2)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory(near):
    def forward(x):
        raise RuntimeError("shapes do not match")

    near._fast.forward = forward
    with pytest.raises(RuntimeError, match="shapes do not match"):
        near.translate(smooth(64, 64))
