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
        name, content = case
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        try:
            result = run_cli("gallery", folder.parent.parent, "-o", tmp_path / "page")
            return (
                result
                if result.exit_code
                else run_cli("compare", folder, "--format", "html", "-o", tmp_path / "t.html")
            )
        finally:
            (folder / name).write_bytes(before)

    try_each(files, act)


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
