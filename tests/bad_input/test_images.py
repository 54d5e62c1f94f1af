"""Image files and label maps of any bytes: read as their headers say, or refused by name."""

import io
import json
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from p2pzoo.images.io import SUFFIXES, inspect, read_image, write_image
from p2pzoo.images.label_maps import inspect_map, read_map
from p2pzoo.utils.errors import UserError


def noise(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def picture(mode, form, **options):
    out = io.BytesIO()
    rgb = Image.fromarray(noise(6, 5, 3))
    (rgb.quantize(7) if mode == "P" else rgb.convert(mode)).save(out, form, **options)
    return out.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file of every kind that is read: (suffix, bytes)."""
    folder = tmp_path_factory.mktemp("whole")
    made = [
        (".png", picture("RGB", "PNG")), (".png", picture("P", "PNG")), (".png", picture("LA", "PNG", **turned(6))),
        (".jpg", picture("RGB", "JPEG")), (".jpg", picture("CMYK", "JPEG")),
        (".jpg", picture("L", "JPEG", **turned(5))),
        (".webp", picture("RGB", "WEBP")), (".bmp", picture("P", "BMP")), (".tif", picture("RGB", "TIFF")),
        (".tif", picture("L", "TIFF", compression="tiff_lzw")), (".tif", picture("1", "TIFF", compression="group4")),
    ]  # fmt: skip
    arrays = [
        (".png", noise(6, 5, dtype="uint16")), (".tif", noise(6, 5, 4, dtype="uint16")),
        (".tif", noise(6, 5, 2, dtype="float32")), (".npy", noise(6, 5, 3, dtype="float32")), (".npy", noise(6, 5)),
    ]  # fmt: skip
    for suffix, array in arrays:
        write_image(folder / f"a{suffix}", array.reshape(6, 5, -1))
        made.append((suffix, (folder / f"a{suffix}").read_bytes()))
    np.savez_compressed(folder / "a.npz", noise(6, 5, 3))
    made.append((".npz", (folder / "a.npz").read_bytes()))
    return [*made, (".png", imagecodecs.png_encode(noise(6, 5, 3, dtype="uint16")))]


def lying_png(width, height, bits, kind, body):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def lying_npy(shape, dtype, order, body):
    head = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


sides = st.sampled_from([0, 1, 5, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**40, -1])
lying = st.one_of(
    st.tuples(
        st.just(".png"),
        st.builds(
            lying_png, sides.filter(lambda n: 0 <= n < 2**32), sides.filter(lambda n: 0 <= n < 2**32),
            st.sampled_from([1, 8, 16, 7]), st.sampled_from([0, 2, 3, 4, 6, 5]), st.binary(max_size=200),
        ),
    ),
    st.tuples(
        st.just(".npy"),
        st.builds(
            lying_npy, st.lists(sides, max_size=4).map(tuple),
            st.sampled_from(["|u1", "<u2", "<f4", ">f4", "|O", "<f8", "|S9", "<M8[s]", "|V3", [("a", "<i4")], "zzz"]),
            st.booleans(), st.binary(max_size=200),
        ),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(whole, damaged):
    """(suffix, bytes): cut, altered, of another suffix, or with a header that lies."""
    kinds = st.sampled_from(whole)
    return st.one_of(
        kinds.flatmap(lambda kind: st.tuples(st.just(kind[0]), damaged(kind[1]))),
        st.tuples(st.sampled_from(SUFFIXES), kinds.map(lambda kind: kind[1])),
        lying,
    )


def read(path, whole_file, header_only):
    """The array; a header that was read says the same of it."""
    try:
        header = header_only(path)
    except UserError:
        with pytest.raises(UserError):
            whole_file(path)
        raise
    array = whole_file(path)
    assert (array.reshape(*array.shape[:2], -1).shape, str(array.dtype)) == (header.shape, header.dtype)


def test_images(each, files, tmp_path):
    def act(file):
        path = tmp_path / f"a{file[0]}"
        path.write_bytes(file[1])
        read(path, read_image, inspect)

    each(files, act)


def test_label_maps(each, files, tmp_path):
    def act(file):
        path = tmp_path / f"a{file[0]}"
        path.write_bytes(file[1])
        inspect_map(path)
        assert read_map(path).ndim in (2, 3)

    each(files, act)


def test_manifests_and_what_they_list(each, zoo, files, hostile, values, damaged, tmp_path):
    """`data check` of pairs of which one file is odd: it tells what is wrong with the data, and the others."""
    for number in range(4):
        write_image(tmp_path / f"{number}.png", noise(16, 16, 3))
    good = [{"x": f"{n}.png", "y": f"{n}.png", "split": s} for n, s in enumerate(("train", "train", "val", "test"))]
    recipe = tmp_path / "recipe.toml"
    dataset = f'[dataset]\nuse = "manifest"\nfile = "{tmp_path}/pairs.jsonl"\n'
    recipe.write_text(dataset + '[generator]\nuse = "unet"\n[losses.l1]\nuse = "l1"\n')
    keys = st.sampled_from(["x", "y", "id", "split", "labels", "block"]) | hostile
    changes = st.dictionaries(keys, values | st.just("odd.png"), max_size=3)
    lines = changes.map(lambda more: {**good[0], "id": "odd", **more})
    text = lines.map(json.dumps).map(str.encode)
    listed = "\n".join(map(json.dumps, good)).encode()

    def act(drawn):
        manifest, (suffix, odd) = drawn
        (tmp_path / f"odd{suffix}").write_bytes(odd)
        (tmp_path / "pairs.jsonl").write_bytes(manifest)
        return zoo("data", "check", recipe, "--json")

    manifests = text.map(lambda line: listed + b"\n" + line) | damaged(listed)
    each(st.tuples(manifests, files), act)
