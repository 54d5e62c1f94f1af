"""Image files and label maps with any bytes are read as their headers describe, or refused with their name."""

import io
import json
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from p2pzoo.images.io import IMAGE_SUFFIXES, inspect_image, read_image, write_image
from p2pzoo.images.label_maps import inspect_map, read_map
from p2pzoo.utils.errors import UserError


def noise(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def encode(mode, file_format, **options):
    out = io.BytesIO()
    rgb = Image.fromarray(noise(6, 5, 3))
    (rgb.quantize(7) if mode == "P" else rgb.convert(mode)).save(out, file_format, **options)
    return out.getvalue()


def exif_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    """A small file of every supported format: (suffix, bytes)."""
    folder = tmp_path_factory.mktemp("valid")
    valid = [
        (".png", encode("RGB", "PNG")), (".png", encode("P", "PNG")), (".png", encode("LA", "PNG", **exif_rotation(6))),
        (".jpg", encode("RGB", "JPEG")), (".jpg", encode("CMYK", "JPEG")),
        (".jpg", encode("L", "JPEG", **exif_rotation(5))),
        (".webp", encode("RGB", "WEBP")), (".bmp", encode("P", "BMP")), (".tif", encode("RGB", "TIFF")),
        (".tif", encode("L", "TIFF", compression="tiff_lzw")), (".tif", encode("1", "TIFF", compression="group4")),
    ]  # fmt: skip
    arrays = [
        (".png", noise(6, 5, dtype="uint16")), (".tif", noise(6, 5, 4, dtype="uint16")),
        (".tif", noise(6, 5, 2, dtype="float32")), (".npy", noise(6, 5, 3, dtype="float32")), (".npy", noise(6, 5)),
    ]  # fmt: skip
    for suffix, array in arrays:
        write_image(folder / f"a{suffix}", array.reshape(6, 5, -1))
        valid.append((suffix, (folder / f"a{suffix}").read_bytes()))
    np.savez_compressed(folder / "a.npz", noise(6, 5, 3))
    valid.append((".npz", (folder / "a.npz").read_bytes()))
    return [*valid, (".png", imagecodecs.png_encode(noise(6, 5, 3, dtype="uint16")))]


def png_with_wrong_header(width, height, bits, kind, body):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def npy_with_wrong_header(shape, dtype, order, body):
    head = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


sides = st.sampled_from([0, 1, 5, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**40, -1])
wrong_headers = st.one_of(
    st.tuples(
        st.just(".png"),
        st.builds(
            png_with_wrong_header, sides.filter(lambda n: 0 <= n < 2**32), sides.filter(lambda n: 0 <= n < 2**32),
            st.sampled_from([1, 8, 16, 7]), st.sampled_from([0, 2, 3, 4, 6, 5]), st.binary(max_size=200),
        ),
    ),
    st.tuples(
        st.just(".npy"),
        st.builds(
            npy_with_wrong_header, st.lists(sides, max_size=4).map(tuple),
            st.sampled_from(["|u1", "<u2", "<f4", ">f4", "|O", "<f8", "|S9", "<M8[s]", "|V3", [("a", "<i4")], "zzz"]),
            st.booleans(), st.binary(max_size=200),
        ),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(valid_files, damaged):
    """(suffix, bytes): truncated, altered, with another suffix, or with a wrong header."""
    valid = st.sampled_from(valid_files)
    return st.one_of(
        valid.flatmap(lambda file: st.tuples(st.just(file[0]), damaged(file[1]))),
        st.tuples(st.sampled_from(IMAGE_SUFFIXES), valid.map(lambda file: file[1])),
        wrong_headers,
    )


def check_header(path, read_file, read_header):
    """Read the file: if its header can be read, the array must have its shape and dtype."""
    try:
        header = read_header(path)
    except UserError:
        with pytest.raises(UserError):
            read_file(path)
        raise
    array = read_file(path)
    assert (array.reshape(*array.shape[:2], -1).shape, str(array.dtype)) == (header.shape, header.dtype)


def test_images(try_each, files, tmp_path):
    def act(file):
        path = tmp_path / f"a{file[0]}"
        path.write_bytes(file[1])
        check_header(path, read_image, inspect_image)

    try_each(files, act)


def test_label_maps(try_each, files, tmp_path):
    def act(file):
        path = tmp_path / f"a{file[0]}"
        path.write_bytes(file[1])
        inspect_map(path)
        assert read_map(path).ndim in (2, 3)

    try_each(files, act)


def test_manifests_and_what_they_list(try_each, run_cli, files, hostile, values, damaged, tmp_path):
    """`data check` of pairs with one odd file and an odd manifest: it reports the faults."""
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        write_image(tmp_path / f"{number}.png", image)
    good = [{"x": f"{n}.png", "y": f"{n + 4}.png", "split": s} for n, s in enumerate(("train", "train", "val", "test"))]
    recipe = tmp_path / "recipe.toml"
    dataset = f'[dataset]\nuse = "manifest"\nfile = "{tmp_path}/pairs.jsonl"\n'
    recipe.write_text(dataset + '[generator]\nuse = "unet"\n[losses.l1]\nuse = "l1"\n[train]\nimages = 1\n')
    keys = st.sampled_from(["x", "y", "id", "split", "labels", "block"]) | hostile
    changes = st.dictionaries(keys, values | st.just("odd.png"), max_size=3)
    lines = changes.map(lambda more: {**good[0], "id": "odd", **more})
    text = lines.map(json.dumps).map(str.encode)
    good_lines = "\n".join(map(json.dumps, good)).encode()
    (tmp_path / "pairs.jsonl").write_bytes(good_lines)
    assert run_cli("data", "check", recipe, "--json").exit_code == 0, "else it would refuse every manifest"

    def act(case):
        manifest, (suffix, odd) = case
        (tmp_path / f"odd{suffix}").write_bytes(odd)
        (tmp_path / "pairs.jsonl").write_bytes(manifest)
        return run_cli("data", "check", recipe, "--json")

    manifests = text.map(lambda line: good_lines + b"\n" + line) | damaged(good_lines)
    try_each(st.tuples(manifests, files), act)
