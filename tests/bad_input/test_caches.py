"""A cache is a copy: damaged, it is made again, and what is read is the same."""

import numpy as np
import pytest
from hypothesis import strategies as st
from p2pzoo_earth import cache

from p2pzoo.config.settings import Compute
from p2pzoo.data.store import Store
from p2pzoo.images.io import write_png
from p2pzoo.plugin.batch import Pair


class Pairs:
    x_range = y_range = (0, 255)
    files, fingerprint = None, "1"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        x = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        return Pair(f"pair {index}", x, 255 - x, block="ab"[index % 2])


def test_stores_of_pairs(try_each, damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
    compute = Compute(store="disk", readers=0)

    def read():
        store = Store(Pairs(), enlarge=1.0, compute=compute, origin={})
        store.prepare()
        return [(pair.id, pair.x.tolist(), pair.y.tolist(), pair.block) for pair in (store[i] for i in range(3))]

    expected = read()
    [file] = tmp_path.rglob("*.pairs")
    intact = file.read_bytes()
    at_index = len(intact) - 400
    contents = damaged(intact) | damaged(intact[at_index:]).map(lambda index: intact[:at_index] + index)

    def act(content):
        file.write_bytes(content)
        assert read() == expected
        read()  # a damaged pair is decoded again, and the next process writes the file again
        assert file.read_bytes() == intact

    try_each(contents, act)


def test_layers_of_earth(try_each, damaged, tmp_path):
    layers = {
        "a": cache.Layer(lambda: np.arange(60, dtype=np.int16).reshape(6, 10)),
        "b": cache.Layer(lambda a: a[::2] + 1, of=("a",)),
    }

    def read():
        return {name: array.tolist() for name, array in cache.open_layers(tmp_path, layers, ["a", "b"]).items()}

    expected = read()
    intact = {name: (tmp_path / f"{name}.npy").read_bytes() for name in layers}

    def act(case):
        name, content = case
        (tmp_path / f"{name}.npy").write_bytes(content)
        cache._verified.clear()  # as in another process
        assert read() == expected
        assert {name: (tmp_path / f"{name}.npy").read_bytes() for name in layers} == intact

    names = st.sampled_from(sorted(intact))
    try_each(names.flatmap(lambda name: st.tuples(st.just(name), damaged(intact[name]))), act)


@pytest.mark.slow
def test_caches_of_a_run(try_each, run_cli, damaged, tmp_path, monkeypatch):
    """All files that a run leaves in the cache, among them which splits had no faults."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pairs"
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            write_png(folder / split / f"{number}.png", np.full((64, 128, 3), number + len(split), np.uint8))
    dataset = f'dataset={{use="side-by-side", root="{folder}"}}'
    settings = (dataset, "train.images=1", "generator.width=2", "discriminator.width=2", "evaluate.samples=1",
                "compute.store=disk", "compute.device=cpu")  # fmt: skip
    command = ["run", "zoo:base.toml", "--profile", "smoke", "--runs", tmp_path / "runs", "--fresh"]
    command += [part for setting in settings for part in ("-s", setting)]
    assert run_cli(*command).exit_code == 0
    [model] = tmp_path.rglob("model.safetensors")
    expected = model.read_bytes()
    contents = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    files = [file for file, content in contents.items() if content]
    assert files

    def act(case):
        file, content = case
        file.write_bytes(content)
        try:
            result = run_cli(*command)
            assert result.exit_code == 0, result.output
            assert model.read_bytes() == expected
        finally:
            for path, before in contents.items():
                path.write_bytes(before)

    cases = st.sampled_from(files).flatmap(lambda file: st.tuples(st.just(file), damaged(contents[file])))
    try_each(cases, act, fraction=0.01)
