"""Malicious weights files: wrong headers, headers of impossible networks, pickles with code."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from p2pzoo.images.io import write_image
from p2pzoo.models.safetensors_io import load_tensors, save_tensors


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The folder of a tiny completed run."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(runs, "train.images=2").exit_code == 0
    [folder] = (file.parent for file in runs.glob("*/*/results.json"))
    return folder


@pytest.fixture
def translated(run_cli, tmp_path):
    """translated(model): the result of `p2pzoo translate` for one small image."""
    write_image(tmp_path / "x.png", np.zeros((32, 32, 3), np.uint8))
    return lambda model: run_cli("translate", model, tmp_path / "x.png", "-o", tmp_path / "y.png", "--force")


def unpack_safetensors(file):
    """(the JSON header of safetensors, the bytes of the tensors)"""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack_safetensors(header, tensors, length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def test_safetensors_with_wrong_headers(try_each, trained, translated, altered, damaged, values, tmp_path):
    header, tensors = unpack_safetensors(trained / "model.safetensors")
    numbers = st.sampled_from([0, -1, 1, 2**40, 2**63, 2**64, [0, 2**62], [5, 1], [2**40, 2**40], "F64", "I8", "Z"])
    lengths = st.sampled_from([0, 1, 7, 2**31, 2**63, 2**64 - 1, len(json.dumps(header))])
    files = st.one_of(
        altered(header, values | numbers).map(lambda tree: pack_safetensors(tree, tensors)),
        lengths.map(lambda length: pack_safetensors(header, tensors, length)),
        damaged(pack_safetensors(header, tensors)),
        st.just(struct.pack("<Q", 90000) + b"[" * 90000),
        st.dictionaries(st.text(max_size=3), values, max_size=3).map(lambda tree: pack_safetensors(tree, b"")),
    )
    model = tmp_path / "model.safetensors"

    def act(content):
        model.write_bytes(content)
        return translated(model)

    try_each(files, act)


def test_models_with_wrong_headers_and_a_right_digest(try_each, trained, translated, altered, values, tmp_path):
    """Anyone who writes a file can compute its digest."""
    tensors, header = load_tensors(trained / "model.safetensors")
    sizes = st.sampled_from([0, -1, 2**20, 2**31, 2**62, 10**30, 1.5, "spade", "pix2pix:unet", "resnet", "label"])
    model = tmp_path / "model.safetensors"

    def act(header):
        save_tensors(model, tensors, header)
        return translated(model)

    try_each(altered(header, values | sizes).filter(encodes), act)


def test_models_with_tensors_of_other_shapes(try_each, trained, translated, altered, tmp_path):
    """Tensors without values have sides and no bytes; the header asks for networks of that size."""
    tensors, header = load_tensors(trained / "model.safetensors")
    use = st.sampled_from(
        ["pix2pix:unet", "pix2pixhd:pix2pixhd-local", "resnet:resnet9", "spade:spade", "pix2pix:encoder-decoder"]
    )
    names = st.sampled_from(["width", "depth", "blocks", "local_blocks", "downsamplings", "size", "norm", "hidden"])
    sizes = st.sampled_from([0, 1, 2, 7, 64, 1024, 1025, 65_536, 10**6, 10**9, 1e9, [10**9], 2**62])
    shapes = st.lists(st.sampled_from([0, 1, 3, 64, 2**20, 10**9]), max_size=4).filter(
        lambda shape: np.prod([max(side, 1) for side in shape], dtype=object) <= (2**62 if 0 in shape else 2**20)
    )
    changes = st.dictionaries(st.sampled_from([*tensors, "odd"]), shapes, min_size=1, max_size=3)
    pictures = st.sampled_from([None, [8, 8], [4096, 4096], [65_536, 65_536], [64, 65_536]])
    scales = st.sampled_from([None, [1, 1], [0.01, 64], [64, 64]])
    model = tmp_path / "model.safetensors"

    def act(case):
        change, use, params, size, scale, keep = case
        other = {name: torch.zeros(shape) for name, shape in change.items()}
        network = {"use": use or header["generator"]["use"], "params": params if use else header["generator"]["params"]}
        new = {**header, "generator": network, "size": size or header["size"]}
        if scale:
            new["file_layout"] = {**header["file_layout"], "scale": scale}
        save_tensors(model, tensors if keep else {**tensors, **other}, new)
        return translated(model)

    params = st.dictionaries(names, sizes, max_size=3)
    try_each(st.tuples(changes, st.none() | use, params, pictures, scales, st.booleans()), act)


def encodes(tree):
    try:
        return bool(json.dumps(tree, sort_keys=True).encode())
    except (TypeError, ValueError):
        return False


def test_run_folders_for_the_gallery_and_tables(try_each, run_cli, trained, altered, damaged, values, tmp_path):
    folder = tmp_path / "runs" / "tiny" / trained.name
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints")
    names = ("results.json", "status.json", "env.json")
    trees = {name: json.loads((trained / name).read_text()) for name in names}
    lines = (trained / "metrics.jsonl").read_bytes()
    others = {name: (trained / name).read_bytes() for name in ("recipe.toml", "stats.safetensors", "samples/test.png")}
    files = st.one_of(
        *(altered(tree, values).map(lambda t, n=n: (n, json.dumps(t).encode())) for n, tree in trees.items()),
        *(damaged(content).map(lambda c, n=n: (n, c)) for n, content in others.items()),
        damaged(lines).map(lambda content: ("metrics.jsonl", content)),
        values.map(lambda value: ("metrics.jsonl", lines + json.dumps(value).encode())),
    )

    def act(case):
        (name, content), command = case
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        try:
            if command == "gallery":
                return run_cli("gallery", folder.parent.parent, "-o", tmp_path / "page")
            return run_cli("compare", folder, "--format", "html", "-o", tmp_path / "t.html")
        finally:
            (folder / name).write_bytes(before)

    try_each(st.tuples(files, st.sampled_from(["gallery", "compare"])), act, fraction=0.5, least_taken=1)


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """(files of torch.save and pickles, with and without code; the folder where that code would leave a file)."""
    trace = tmp_path_factory.mktemp("trace")
    weights = {"model.0.weight": torch.zeros(4, 3, 4, 4), "model.0.bias": torch.zeros(4)}
    codes = (
        Calls(exec, f"open({str(trace / 'a')!r}, 'w').close()"),
        Calls(eval, f"open({str(trace / 'b')!r}, 'w')"),
        Calls(__import__("os").system, f"touch {trace / 'c'}"),
        Calls(__import__("subprocess").check_call, ["touch", str(trace / "d")]),
        Calls(open, str(trace / "e"), "w"),
        Calls(torch.load, str(trace / "f")),
    )
    files = []
    for code in (None, *codes):
        for thing in (code, {**weights, "x": code}, {"state_dict": {**weights, "x": [code]}}) if code else (weights,):
            for options in ({}, {"_use_new_zipfile_serialization": False}):
                out = io.BytesIO()
                torch.save(thing, out, **options)
                files.append(out.getvalue())
            if code:
                files += [pickle.dumps(thing, protocol) for protocol in range(6)]
    return files, trace


def replace_pickle(content, swap):
    """A zip of torch.save with another pickle: `swap` maps the old one to the new one."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, swap(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    except zipfile.BadZipFile:
        return swap(content)
    return out.getvalue()


def test_pickles(try_each, run_cli, pickled, damaged, tmp_path):
    pickles, trace = pickled
    some = st.sampled_from(pickles)
    swapped = st.tuples(some, damaged(pickles[-1]) | some).map(lambda two: replace_pickle(two[0], lambda _: two[1]))
    truncated_inside = some.flatmap(
        lambda content: st.integers(0, 2**16).map(
            lambda i: replace_pickle(content, lambda data: data[: i % len(data)] + b"." + data[i % len(data) + 1 :])
        )
    )
    file = tmp_path / "latest_net_G.pth"

    def act(content):
        file.write_bytes(content)
        try:
            return run_cli("import", file, "-o", tmp_path / "model.safetensors", "--force")
        finally:
            assert list(trace.iterdir()) == [], "code in the file was run"

    try_each(some | some.flatmap(damaged) | swapped | truncated_inside | st.binary(max_size=80), act)


def test_weights_of_other_code_with_odd_tensors(try_each, run_cli, tmp_path):
    """Tensors that repeat a value, of any dtype and shape, under the names that `import` knows."""
    sides = st.sampled_from([0, 1, 2, 3, 4, 7, 64, 2**14, 2**20, 2**31])
    names = st.sampled_from(
        [f"model.model.{'1.model.' * min(i, 1)}{'3.model.' * max(i - 1, 0)}{layer}.{leaf}"
         for i in range(5) for layer in (0, 1, 2, 3, 5) for leaf in ("weight", "bias")]
        + [f"model.{i}.{leaf}" for i in (0, 1, 2, 4, 7, 10**9) for leaf in ("weight", "bias", "running_mean")]
        + [f"model.{i}.conv_block.{k}.weight" for i in (7, 10, 11, 15, 10**6, "x") for k in (1, 5, 6)]
    )  # fmt: skip
    dtypes = st.sampled_from(
        [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.complex64]
    )
    kinds = st.sampled_from(["repeated", "repeated", "meta", "sparse", "plain"])
    tensors = st.tuples(st.lists(sides, max_size=4), dtypes, kinds)
    dicts = st.dictionaries(names, tensors, min_size=1, max_size=8)
    file = tmp_path / "latest_net_G.pth"

    def make(shape, dtype, kind):
        if kind == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        if kind == "sparse" and shape and np.prod(shape, dtype=object) <= 2**16:
            return torch.zeros(shape, dtype=dtype).to_sparse()
        if kind == "plain" and np.prod(shape, dtype=object) <= 2**16:
            return torch.zeros(shape, dtype=dtype)
        return torch.zeros((), dtype=dtype).expand(shape)

    def act(case):
        content, nested, zipped = case
        try:
            state = {name: make(*about) for name, about in content.items()}
        except RuntimeError:  # torch cannot make a tensor of this shape
            return None
        torch.save({"state_dict": state} if nested else state, file, _use_new_zipfile_serialization=zipped)
        return run_cli("import", file, "-o", tmp_path / "model.safetensors", "--force")

    try_each(st.tuples(dicts, st.booleans(), st.booleans()), act)


def test_exports_of_models_with_wrong_headers(try_each, run_cli, trained, altered, values, tmp_path):
    tensors, header = load_tensors(trained / "model.safetensors")
    model = tmp_path / "model.safetensors"

    def act(case):
        header, command = case
        save_tensors(model, tensors, header)
        return run_cli(*command.replace("MODEL", str(model)).replace("OUT", str(tmp_path / "out")).split(), "--force")

    commands = st.sampled_from(["export MODEL --to junyanz -o OUT.pth", "export MODEL --to torch-export -o OUT.pt2"])
    try_each(st.tuples(altered(header, values).filter(encodes), commands), act, fraction=0.02)
