"""The store: where pairs are kept changes how often they are decoded, never what the networks see."""

import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from p2pzoo.config.settings import Compute
from p2pzoo.data import Store, TrainBatches, disk_cache, single_batches
from p2pzoo.images.io import write_png
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

LOCATIONS = ("memory", "disk", "stream")


class Noise:
    """Pairs of noise that count how often each is decoded. `file`: its bytes are part of the seed of the noise."""

    classes = palette = None

    def __init__(self, file=None, length=7, dtype=np.uint8, side=12, labels=True):
        self.x_range = self.y_range = (0.0, 1.0) if np.dtype(dtype).kind == "f" else (0.0, float(np.iinfo(dtype).max))
        self.length, self.dtype, self.side, self.labels = length, dtype, side, labels
        self.reads, self.threads = Counter(), set()
        if file:
            self.files = [(file,)]

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        self.reads[i] += 1
        self.threads.add(threading.current_thread().name)
        seed = [i, *(self.files[0][0].read_bytes() if hasattr(self, "files") else b"")]
        rng, shape = np.random.default_rng(seed), (self.side, self.side)
        x, y = (self._image(rng, (*shape, channels)) for channels in (3, 1))
        labels = rng.integers(0, 9, (2 * self.side, self.side), dtype=np.uint8) if self.labels else None
        return Pair(f"pair {i}", x, y, labels, f"b{i}" if i % 2 else None)

    def _image(self, rng, shape):
        if np.dtype(self.dtype).kind == "f":
            return rng.random(shape, dtype=np.float32)
        return rng.integers(0, np.iinfo(self.dtype).max, shape, dtype=self.dtype, endpoint=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the stores on disk, empty for each test."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source"
    file.write_bytes(b"a source")
    return file


def training_store(dataset, location="disk", enlarge=1.25, kernel="bicubic", origin="tests", **compute):
    store = Store(dataset, enlarge=enlarge, kernel=kernel, compute=Compute(store=location, **compute), origin=origin)
    store.prepare()
    return store


def training_batches(store, steps=12, **options):
    batches = TrainBatches(store, batch_size=3, mirror=True, seed=5, **options)
    return [batches[step] for step in range(steps)]


def is_same(batches, others):
    return all(
        (a.ids, a.blocks) == (b.ids, b.blocks)
        and torch.equal(a.x, b.x)
        and torch.equal(a.y, b.y)
        and (a.labels is b.labels is None or torch.equal(a.labels, b.labels))
        for a, b in zip(batches, others, strict=True)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("labels", [True, False])
def test_batches_are_bit_identical_for_every_location_and_number_of_readers(source, dtype, labels):
    def dataset():
        return Noise(source, dtype=dtype, labels=labels)

    expected = training_batches(training_store(dataset(), "memory", readers=0))
    assert not is_same(expected[:5], expected[5:10])
    for location, readers in product(LOCATIONS, (0, 1, 8)):
        assert is_same(expected, training_batches(training_store(dataset(), location, readers=readers))), (
            location,
            readers,
        )


@pytest.mark.parametrize("location", LOCATIONS)
def test_batches_are_bit_identical_with_replacement_with_several_per_step_and_in_evaluation(source, location):
    options = {"replacement": True, "batches_per_step": 2, "end": 12}
    expected = training_batches(training_store(Noise(source), "memory", readers=0), **options)
    assert is_same(expected, training_batches(training_store(Noise(source), location), **options))
    kept = Store(Noise(source), compute=Compute(store=location))
    assert is_same(list(single_batches(Store(Noise(source)))), list(single_batches(kept)))


def test_a_flipped_crop_is_the_crop_reversed():
    store = Store(Noise(), enlarge=1.25, compute=Compute(store="memory"))
    flipped = 0
    for step in range(20):
        [plain, mirrored] = (TrainBatches(store, batch_size=1, mirror=m, seed=1)[step] for m in (False, True))
        if not torch.equal(plain.x, mirrored.x):
            flipped += 1
            for name in ("x", "y", "labels"):
                assert torch.equal(getattr(plain, name).flip(-1), getattr(mirrored, name))
    assert 0 < flipped < 20


# --- what is decoded ---------------------------------------------------------------------------------------------


def test_in_memory_each_pair_is_decoded_once(source):
    dataset = Noise(source)
    training_batches(training_store(dataset, "memory"))
    assert dataset.reads == Counter(dict.fromkeys(range(7), 1)), "the first one, too, whose shape the store needs"


def test_on_disk_a_second_run_decodes_only_the_first_pair(source, cache):
    first, second = Noise(source), Noise(source)
    training_batches(training_store(first))
    assert first.reads == Counter(dict.fromkeys(range(7), 1))
    assert is_same(training_batches(training_store(second)), training_batches(training_store(first)))
    assert second.reads == {0: 1}
    assert [file.suffix for file in cache.iterdir() if file.suffix != ".lock"] == [".pairs"]


def test_streamed_pairs_are_decoded_in_each_epoch_by_threads_and_not_past_the_end(source):
    dataset = Noise(source)
    training_batches(training_store(dataset, "stream"), steps=7, end=7)  # three epochs
    assert sum(dataset.reads.values()) <= 21
    assert dataset.reads[3] >= 2
    assert any(name.startswith("pairs") for name in dataset.threads)


def test_without_readers_pairs_are_decoded_in_the_callers_thread(source):
    dataset = Noise(source)
    training_batches(training_store(dataset, "stream", readers=0))
    assert dataset.threads == {threading.current_thread().name}


def test_an_unreadable_pair_raises_at_its_step():
    class Broken(Noise):
        def __getitem__(self, i):
            if i == 4:
                raise UserError("pair 4 is broken")
            return super().__getitem__(i)

    for location in ("memory", "stream"):
        store = training_store(Broken(), location)
        batches = TrainBatches(store, batch_size=1, mirror=False, seed=5)
        intact = TrainBatches(Store(Noise(), enlarge=1.25), batch_size=1, mirror=False, seed=5)
        expected = [intact[step].ids[0] for step in range(7)]
        broken_step = expected.index("pair 4")
        assert [batches[step].ids[0] for step in range(broken_step)] == expected[:broken_step]
        with pytest.raises(UserError, match="pair 4 is broken"):
            _ = batches[broken_step]


# --- where pairs are kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("megabytes", "disk_megabytes", "location"), [(1, 1, "memory"), (0, 1, "disk"), (0, 0, "stream")]
)  # the pairs take 5 kB
def test_auto_chooses_memory_then_the_disk_then_neither(source, megabytes, disk_megabytes, location):
    limits = {"store_megabytes": megabytes, "store_disk_megabytes": disk_megabytes}
    assert training_store(Noise(source), "auto", **limits).location == location
    evaluation = Store(Noise(source), compute=Compute(**limits), origin="tests")
    assert evaluation.location == ("memory" if megabytes else "stream"), (
        "never on disk: evaluation reads each pair once"
    )


def test_pairs_whose_changes_go_unnoticed_are_not_kept_on_disk(source):
    for dataset, origin in ((Noise(), "tests"), (Noise(source), None)):
        assert training_store(dataset, "auto", origin=origin, store_megabytes=0).location == "stream"
        with pytest.raises(UserError, match=r'store = "disk".*nothing would show that.*set store = "stream"'):
            training_store(dataset, origin=origin)
    with_fingerprint = Noise()
    with_fingerprint.fingerprint = "abc"
    assert training_store(with_fingerprint).location == "disk"


@pytest.mark.parametrize(
    "other",
    [
        lambda file, new: training_store(Noise(file), enlarge=1.5),
        lambda file, new: training_store(Noise(file), kernel="bilinear"),
        lambda file, new: training_store(Noise(file), origin="tests with another parameter"),
        lambda file, new: (file.write_bytes(new), training_store(Noise(file)))[1],
    ],
)
def test_other_sources_or_another_resizing_write_another_file(source, cache, other):
    training_store(Noise(source))
    time.sleep(0.02)  # longer than a tick of the file system's clock
    after = other(source, b"A SOURCE")  # of the same length
    assert len(list(cache.glob("*.pairs"))) == 2
    expected = Store(Noise(source), enlarge=after.load_size[0] / 12, kernel=after.kernel)
    assert all(np.array_equal(after[i].x, expected[i].x) for i in range(7))


# --- faults on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data + b"\r",
        lambda data: data[1:],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: data[: data.rindex(b'{"ids"')] + b"5",
    ],
)
def test_a_damaged_file_is_written_again(source, cache, damage):
    expected = training_batches(training_store(Noise(source)))
    [file] = cache.glob("*.pairs")
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    assert is_same(training_batches(training_store(Noise(source))), expected)
    assert file.read_bytes() == intact


def test_a_damaged_pair_is_decoded_again_and_the_file_written_by_the_next_run(source, cache, capsys):
    expected = training_batches(training_store(Noise(source)))
    [file] = cache.glob("*.pairs")
    intact = file.read_bytes()
    for at in (10, len(intact) // 3):
        file.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        capsys.readouterr()
        assert is_same(training_batches(training_store(Noise(source))), expected)
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{file}: damaged (pair ")
        assert not file.exists()
        assert is_same(training_batches(training_store(Noise(source))), expected)
        assert file.read_bytes() == intact


def test_a_damaged_index_is_written_again(source, cache):
    first = training_store(Noise(source))[1]
    [file] = cache.glob("*.pairs")
    intact = file.read_bytes()
    file.write_bytes(intact.replace(b"pair 1", b"pair 7", 1))
    assert training_store(Noise(source))[1].id == first.id
    assert file.read_bytes() == intact


def test_writing_into_a_pair_changes_neither_the_file_nor_later_reads(source, cache):
    store = training_store(Noise(source))
    [file] = cache.glob("*.pairs")
    before = file.read_bytes()
    store[1].x[:] = 0
    assert store[1].x.any()
    assert file.read_bytes() == before


def test_a_store_in_a_read_only_folder_is_used(source, cache):
    expected = training_batches(training_store(Noise(source)))
    for lock in cache.glob("*.lock"):
        lock.unlink()
    cache.chmod(0o500)
    try:
        assert is_same(training_batches(training_store(Noise(source))), expected)
        assert not list(cache.glob("*.lock"))
    finally:
        cache.chmod(0o700)


def test_without_room_pairs_are_streamed_or_the_error_is_one_line(source, cache, monkeypatch):
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.warns(UserWarning, match=r"read again in every epoch: .* GB are free") as warned:
        store = training_store(Noise(source), "auto", store_megabytes=0)
    assert len(warned) == 1
    assert is_same(training_batches(store), training_batches(training_store(Noise(source), "memory")))
    with pytest.raises(UserError, match=r"free, and the prepared pairs need .* P2PZOO_CACHE .*\"stream\"$") as error:
        training_store(Noise(source))
    assert len(error.value.faults) == 1
    assert not cache.exists()


def test_a_cache_that_cannot_be_created_is_reported(tmp_path, source, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"prepared pairs cannot be stored here \(Not a directory\): make room, set"):
        training_store(Noise(source))


def test_pairs_of_different_dtypes_are_refused_on_disk_and_allowed_elsewhere(source, cache):
    class Mixed(Noise):
        def __getitem__(self, i):
            pair = super().__getitem__(i)
            return Pair(pair.id, pair.x.astype(np.float32), pair.y) if i == 3 else pair

    with pytest.raises(UserError, match=r"pair 'pair 3': x is float32, the first pair's is uint8.*\"stream\""):
        training_store(Mixed(source))
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]
    assert training_store(Mixed(source), "stream")[3].x.dtype == np.float32


# --- in other processes ------------------------------------------------------------------------------------------

PROGRAM = """
import resource, sys, time
from pathlib import Path
import numpy as np
from p2pzoo.plugin import Pair
from p2pzoo.data import Store, TrainBatches
from p2pzoo.utils.errors import UserError
from p2pzoo.config.settings import Compute

class Slow:
    classes = palette = None
    x_range = y_range = (0.0, 255.0)

    def __init__(self, source, length, side, seconds):
        self.files, self.length, self.side, self.seconds = [(Path(source),)], length, side, seconds

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        time.sleep(self.seconds)
        with open(sys.argv[1] + ".log", "a") as log:
            log.write(f"{i}\\n")
        image = np.random.default_rng(i).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return Pair(f"p{i}", image, 255 - image)

def open_store(location, length, side=16, seconds=0.0):
    store = Store(Slow(sys.argv[1], length, side, seconds), enlarge=1.0, compute=Compute(store=location), origin="")
    store.prepare()
    return store
"""


@pytest.fixture
def start(fork):
    """start(program, source): run the program after the one above in another process."""
    return lambda program, source: fork(source, code=PROGRAM + program)


def finish(process):
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return output


def reads(source):
    log = Path(f"{source}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_killed_preparation_leaves_no_file_that_is_used(start, source, cache):
    killed = start("open_store('disk', 100, seconds=0.02)", source)
    deadline = time.monotonic() + 60
    while reads(source) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.wait(timeout=60)
    assert not list(cache.glob("*.pairs"))
    assert list(cache.glob(".*.tmp")), "it was killed while it wrote"
    Path(f"{source}.log").unlink()
    output = finish(start("store = open_store('disk', 100); print(store[99].id, store.location)", source))
    assert output.endswith("p99 disk\n")
    assert "preparing 100 pairs in" in output
    assert reads(source) == 100
    assert not list(cache.glob(".*.tmp"))


def test_only_one_of_two_processes_prepares(start, source):
    both = [start("store = open_store('disk', 50, seconds=0.01); print(store[49].x.sum())", source) for _ in range(2)]
    answers = [finish(process) for process in both]
    assert answers[0].splitlines()[-1] == answers[1].splitlines()[-1]
    assert sum("preparing" in answer for answer in answers) == 1
    assert reads(source) == 50 + 1, "the other process decodes the first pair for its shape"


def test_a_disk_that_fills_up_is_reported_in_one_line(start, source, cache):
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    open_store('disk', 100)
except UserError as error:
    print(error)
"""
    out = finish(start(program, source))
    assert len([line for line in out.splitlines() if "preparing" not in line]) == 1, out
    assert "0.0 GB of prepared pairs cannot be stored here (File too large): make room, set P2PZOO_CACHE" in out
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not report the peak memory of a process"
)
def test_memory_does_not_grow_with_the_set_unless_pairs_are_kept_in_it(source):
    program = """
for location in ("stream", "disk", "memory"):
    for length in (200, 1200):
        store = open_store(location, length, side=128)
        batches = TrainBatches(store, batch_size=1, mirror=True, seed=0)
        for step in range(length):
            batches[step]
        print(location, [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line])
"""
    # a process of its own: it has no freed memory that could hide the growth
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, source], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    peaks = {}
    for line in result.stdout.splitlines():
        location, kilobytes = re.fullmatch(r"(\w+) .*?(\d+) kB.*", line).groups()
        peaks.setdefault(location, []).append(int(kilobytes) * 1024 / 1e6)
    growth = {location: peak[1] - peak[0] for location, peak in peaks.items()}
    assert growth["memory"] > 60, "1000 pairs take 98 MB"
    assert growth["stream"] < 15
    assert growth["disk"] < 15


def test_a_run_has_the_same_id_and_bits_for_every_location(tmp_path, run):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for i in range(4):
            write_png(tmp_path / f"photos/{split}/{i}.png", rng.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    dataset = f'dataset={{use="side-by-side", root="{tmp_path / "photos"}"}}'
    for location in LOCATIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            result = run(tmp_path / location, dataset, "train.images=6", f"compute.store={location}")
        assert result.exit_code == 0, result.output
        assert ("are read again in every epoch" in result.output) == (location == "stream")
    folders = [next((tmp_path / location).glob("*/*")) for location in LOCATIONS]
    assert len({folder.name for folder in folders}) == 1
    for name in ("model.safetensors", "metrics.jsonl"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert list((tmp_path / "cache" / "stores").glob("*.pairs"))
