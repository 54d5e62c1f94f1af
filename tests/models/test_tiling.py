"""Tiles: where they start, that blending gives the whole image, that memory does not grow, and the seams."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from p2pzoo_pix2pix.generators import UNet
from torch import nn

from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.rows import Rows
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.tiling import Tiling, blend_tiles
from p2pzoo.utils.errors import UserError

RADIUS = 7  # pixels to each side that an output pixel of the network below depends on, in the worst case of stride 2


class Near(nn.Module):
    """Halves and doubles the image; its receptive field is small."""

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
        self.largest_input = 0

    def forward(self, x):
        self.largest_input = max(self.largest_input, x.numel())
        return self.layers(x)


def make_model(G):
    header = {
        "in_channels": 3, "out_channels": 3, "size": [32, 32], "test_mode": "eval", "run": "none",
        "size_divisor": G.size_divisor, "generator": {"use": type(G).__name__, "params": {}},
    }  # fmt: skip
    return Model(G, ModelHeader.parse(header, Path("model.safetensors")), torch.device("cpu"))


@pytest.fixture
def near():
    torch.manual_seed(0)
    return make_model(Near())


def smooth(height, width):
    """(3, H, W) in [-1, 1]: waves of several lengths."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(rows / a) * torch.cos(columns / b) for a, b in ((9, 23), (31, 7), (13, 17))]
    return torch.stack(waves)


@pytest.mark.parametrize(("length", "overlap"), [(64, 0), (65, 1), (96, 32), (97, 16), (98, 32), (640, 7), (1000, 32)])
def test_tiles_cover_a_side_and_their_weights_sum_to_1(length, overlap):
    tiling = Tiling.of(64, overlap, 1)
    starts, weights = tiling.starts(length), tiling.weights(length)
    assert (starts[0], starts[-1] + 64) == (0, length)
    assert all(later - earlier <= 64 - overlap for earlier, later in pairwise(starts))
    assert len(starts) == 1 + -(-(length - 64) // (64 - overlap)), "as few as possible"
    total = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + 64] += weight
    torch.testing.assert_close(total, torch.ones(length))
    assert (weights >= 0).all()


def test_a_tile_has_weight_0_where_it_misses_its_surroundings():
    first, last = Tiling.of(64, 32, 1).weights(96)
    assert first[:40].eq(1).all(), "where no other tile is, and in the outer quarter of the neighbour"
    assert first[56:].eq(0).all()
    assert last[:8].eq(0).all()
    assert first[40:56].diff().lt(0).all(), "fading between"


def test_tiles_start_at_multiples_of_the_divisor_unless_they_are_too_small():
    assert Tiling.of(512, None, 64).overlap == 128
    assert all(start % 64 == 0 for start in Tiling.of(512, None, 64).starts(64 * 31))
    assert Tiling.of(512, None, 256).overlap == 256
    assert Tiling.of(256, None, 256).overlap == 64, "a multiple of the divisor would be the whole tile"


@pytest.mark.parametrize("size", [(200, 331), (64, 500), (33, 150), (129, 64)])
def test_tiles_give_the_values_of_the_whole_image_if_a_quarter_of_the_overlap_covers_the_receptive_field(near, size):
    x = smooth(*size)
    tiled = near.translate(x, tile=64, overlap=4 * RADIUS)
    torch.testing.assert_close(tiled, near.translate(x), rtol=0, atol=2e-6)


def test_an_overlap_too_small_for_the_receptive_field_shows(near):
    x = smooth(200, 331)
    assert (near.translate(x, tile=64, overlap=8) - near.translate(x)).abs().max() > 1e-3


def test_every_kind_of_image_is_translated_in_tiles(near):
    x = smooth(100, 150)
    levels = ((x + 1) * 127.5).round().to(torch.uint8)
    photo = levels.permute(1, 2, 0).numpy()
    whole, tiled = near.translate(photo), near.translate(photo, tile=64, overlap=32)
    assert (tiled.shape, tiled.dtype) == (photo.shape, np.uint8)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    batch = torch.stack([x, x.flip(2)]).double()
    translated = near.translate(batch, tile=64)
    assert (translated.shape, translated.dtype) == (batch.shape, torch.float64)
    torch.testing.assert_close(translated[1], near.translate(batch[1], tile=64), rtol=0, atol=1e-6)


def test_an_image_that_fits_into_a_tile_is_translated_in_one_piece(near):
    x = smooth(64, 64)
    assert torch.equal(near.translate(x, tile=64), near.translate(x))


def test_the_networks_input_does_not_grow_with_the_image(near, monkeypatch):
    monkeypatch.setattr("p2pzoo.models.model.MAX_BATCH_PIXELS", {"cpu": 2 * 64**2})
    sizes = []
    for side in (130, 1000):
        near._eval_G.largest_input = 0
        near.translate(smooth(side, side), tile=64)
        sizes.append(near._eval_G.largest_input)
    assert sizes == [2 * 3 * 64 * 64] * 2


def test_strips_are_yielded_early_and_hold_one_row_of_tiles():
    tiling = Tiling.of(64, 16, 1)
    translated = []

    def constant(places):
        translated.extend(places)
        return torch.ones(len(places), 1, 64, 64)

    finished_rows = 0
    for top, strip in blend_tiles(constant, 1000, 80, tiling, max_batch_size=1):
        assert top == finished_rows
        assert strip.shape[1] <= 64
        assert translated[-1][0].start == top, "no row of tiles is translated before the one above is yielded"
        torch.testing.assert_close(strip, torch.ones_like(strip))
        finished_rows += strip.shape[1]
    assert finished_rows == 1000


def test_the_seams_of_a_u_net_are_no_rougher_than_the_rest_of_the_image():
    """Tiles of a U-Net differ, since none gets pixels from outside; blending must leave no visible edges."""
    torch.manual_seed(0)
    G = UNet(3, 3, (32, 32), width=8)
    with torch.no_grad():
        for _ in range(20):
            G.train()(smooth(64, 64)[None])
    model = make_model(G)
    x = smooth(64, 320)
    whole = model.translate(x)
    mean_step = whole.diff(dim=2).abs().mean()

    def largest_added_step(overlap):
        """The largest step that tiles add between two columns, relative to the mean step in the whole image."""
        added = model.translate(x, tile=64, overlap=overlap) - whole
        return added.diff(dim=2).abs().mean((0, 1)).max() / mean_step

    assert largest_added_step(32) < 0.1
    assert largest_added_step(0) > 0.5, "else the measure would miss seams"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 65}, "a tile of 65 does not fit this generator: multiples of 2 do, 64 or 66"),
        ({"tile": 1}, "a tile of 1 is too small for this generator: the smallest is 2"),
        ({"tile": 64, "overlap": 33}, "an overlap of 33 does not fit tiles of 64: 0 to 32 does"),
        ({"tile": 64, "overlap": -1}, "an overlap of -1 does not fit"),
        ({"overlap": 8}, "an overlap of 8 needs tiles"),
        ({"tile": 64, "test_mode": "paper"}, "tiles need test mode eval"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_in_one_line(near, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        near.translate(smooth(8, 8), **arguments)
    assert "\n" not in str(caught.value)


def test_a_norm_that_uses_its_inputs_statistics_gives_a_warning():
    torch.manual_seed(0)
    instance = make_model(UNet(3, 3, (32, 32), width=4, norm="instance"))
    with pytest.warns(UserWarning, match="InstanceNorm2d normalises by statistics of its input"):
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
def test_out_of_memory_suggests_tiles(near, error):
    def forward(x):
        raise error

    near._eval_G.forward = forward
    for image in (smooth(1001, 2000), smooth(1001, 2000).permute(1, 2, 0).mul(127).byte().numpy()):
        with pytest.raises(UserError, match=r"^out of memory at 1001×2000: translate it in tiles \(.*--tile 512\)$"):
            near.translate(image)
        with pytest.raises(UserError, match=r"smaller tiles \(--test-mode eval --tile 64\)$"):
            near.translate(image, tile=128)
        with pytest.raises(UserError, match="2×2 is the smallest image that this generator takes"):
            near.translate(image, tile=2)


def test_other_errors_of_the_network_are_not_reported_as_out_of_memory(near):
    def forward(x):
        raise RuntimeError("shapes do not match")

    near._eval_G.forward = forward
    with pytest.raises(RuntimeError, match="shapes do not match"):
        near.translate(smooth(64, 64))


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("height", [100, 130, 160, 200])
def test_a_lab_photo_that_is_read_in_bands_keeps_the_lightness_of_its_rows(height, side):
    """Where more than half of the last row of tiles is padding, its band begins above the rows that it gives."""
    size = {"size": (64, 64), "size_divisor": 64}
    header = ModelHeader(
        "generator", "mine", {}, 1, 2, run="r", test_mode="eval", encodings=Encodings("L", "ab"), **size
    )
    model = Model(nn.Conv2d(1, 2, 1), header, torch.device("cpu"))
    nn.init.zeros_(model.G.weight), nn.init.zeros_(model.G.bias)
    ramp = np.linspace(0, 255, height).astype(np.uint8)
    photo = np.broadcast_to(ramp[:, None, None], (height, 80, 3))
    bands = model.translate_rows(Rows.of(photo), Tiling.of(side, None, 64))
    assert np.array_equal(np.concatenate([*bands]), model.translate(photo, tile=side, scale="native"))
