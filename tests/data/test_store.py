"""The store: where pairs are kept changes what is read and when, never what the networks see."""

import os
import signal
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
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

PLACES = ("memory", "disk", "stream")


class Noise:
    """Pairs of noise that count how often each is read. `files`: one, whose bytes are part of the pixels."""

    classes = palette = None

    def __init__(self, file=None, length=7, dtype=np.uint8, side=12, labels=True):
        self.x_range = self.y_range = (0.0, 1.0) if np.dtype(dtype).kind == "f" else (0.0, float(np.iinfo(dtype).max))
        self.length, self.dtype, self.side, self.labels = length, dtype, side, labels
        self.reads, self.names = Counter(), set()
        if file:
            self.files = [(file,)]

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        self.reads[i] += 1
        self.names.add(threading.current_thread().name)
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
    """The stores of this test."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source"
    file.write_bytes(b"a source")
    return file


def training_store(dataset, place="disk", enlarge=1.25, kernel="bicubic", origin="tests", **compute):
    store = Store(dataset, enlarge=enlarge, kernel=kernel, compute=Compute(store=place, **compute), origin=origin)
    store.prepare()
    return store


def seen(store, steps=12, **options):
    batches = TrainBatches(store, batch_size=3, mirror=True, seed=5, **options)
    return [batches[step] for step in range(steps)]


def same(one, other):
    return all(
        (a.ids, a.blocks) == (b.ids, b.blocks)
        and torch.equal(a.x, b.x)
        and torch.equal(a.y, b.y)
        and (a.labels is b.labels is None or torch.equal(a.labels, b.labels))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("labels", [True, False])
def test_batches_are_the_same_to_the_bit_wherever_pairs_are_kept_and_whoever_reads_them(source, dtype, labels):
    def dataset():
        return Noise(source, dtype=dtype, labels=labels)

    expected = seen(training_store(dataset(), "memory", readers=0))
    assert not same(expected[:5], expected[5:10])
    for place, readers in product(PLACES, (0, 1, 8)):
        assert same(expected, seen(training_store(dataset(), place, readers=readers))), (place, readers)


@pytest.mark.parametrize("place", PLACES)
def test_so_they_are_with_replacement_with_several_moves_a_step_and_in_evaluation(source, place):
    options = {"replacement": True, "moves": 2, "end": 12}
    expected = seen(training_store(Noise(source), "memory", readers=0), **options)
    assert same(expected, seen(training_store(Noise(source), place), **options))
    kept = Store(Noise(source), compute=Compute(store=place))
    assert same(list(single_batches(Store(Noise(source)))), list(single_batches(kept)))


def test_a_flipped_crop_is_the_crop_reversed():
    store = Store(Noise(), enlarge=1.25, compute=Compute(store="memory"))
    flipped = 0
    for step in range(20):
        [straight, mirrored] = (TrainBatches(store, batch_size=1, mirror=m, seed=1)[step] for m in (False, True))
        if not torch.equal(straight.x, mirrored.x):
            flipped += 1
            for name in ("x", "y", "labels"):
                assert torch.equal(getattr(straight, name).flip(-1), getattr(mirrored, name))
    assert 0 < flipped < 20


# --- what is read ------------------------------------------------------------------------------------------------


def test_in_memory_each_pair_is_read_once(source):
    dataset = Noise(source)
    seen(training_store(dataset, "memory"))
    assert dataset.reads == Counter({0: 2} | dict.fromkeys(range(1, 7), 1)), "the first one, too, to see its shape"


def test_on_disk_a_second_run_reads_the_first_pair_alone(source, cache):
    first, second = Noise(source), Noise(source)
    seen(training_store(first))
    assert sum(first.reads.values()) == 1 + 7
    assert same(seen(training_store(second)), seen(training_store(first)))
    assert second.reads == {0: 1}
    assert [file.suffix for file in cache.iterdir() if file.suffix != ".lock"] == [".pairs"]


def test_streamed_pairs_are_read_in_each_epoch_by_threads_and_not_past_the_end(source):
    dataset = Noise(source)
    seen(training_store(dataset, "stream"), steps=7, end=7)  # three epochs
    assert sum(dataset.reads.values()) <= 1 + 21
    assert dataset.reads[3] >= 2
    assert any(name.startswith("pairs") for name in dataset.names)


def test_without_readers_the_caller_reads(source):
    dataset = Noise(source)
    seen(training_store(dataset, "stream", readers=0))
    assert dataset.names == {threading.current_thread().name}


def test_what_cannot_be_read_is_told_when_its_turn_comes():
    class Broken(Noise):
        def __getitem__(self, i):
            if i == 4:
                raise UserError("pair 4 is broken")
            return super().__getitem__(i)

    for place in ("memory", "stream"):
        store = training_store(Broken(), place)
        batches = TrainBatches(store, batch_size=1, mirror=False, seed=5)
        alone = TrainBatches(Store(Noise(), enlarge=1.25), batch_size=1, mirror=False, seed=5)
        expected = [alone[step].ids[0] for step in range(7)]
        turn = expected.index("pair 4")
        assert [batches[step].ids[0] for step in range(turn)] == expected[:turn]
        with pytest.raises(UserError, match="pair 4 is broken"):
            _ = batches[turn]


# --- which place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("megabytes", "disk_megabytes", "place"), [(1, 1, "memory"), (0, 1, "disk"), (0, 0, "stream")]
)  # the pairs take 5 kB
def test_left_to_itself_it_takes_memory_then_the_disk_then_neither(source, megabytes, disk_megabytes, place):
    limits = {"store_megabytes": megabytes, "store_disk_megabytes": disk_megabytes}
    assert training_store(Noise(source), "auto", **limits).location == place
    evaluation = Store(Noise(source), compute=Compute(**limits), origin="tests")
    assert evaluation.location == ("memory" if megabytes else "stream"), "never on disk: it is read once"


def test_nothing_goes_to_the_disk_that_could_change_unnoticed(source):
    for dataset, origin in ((Noise(), "tests"), (Noise(source), None)):
        assert training_store(dataset, "auto", origin=origin, store_megabytes=0).location == "stream"
        with pytest.raises(UserError, match=r'store = "disk".*nothing would tell when.*set store = "stream"'):
            training_store(dataset, origin=origin)
    marked = Noise()
    marked.fingerprint = "abc"
    assert training_store(marked).location == "disk"


@pytest.mark.parametrize(
    "other",
    [
        lambda file, new: training_store(Noise(file), enlarge=1.5),
        lambda file, new: training_store(Noise(file), kernel="bilinear"),
        lambda file, new: training_store(Noise(file), origin="tests with another parameter"),
        lambda file, new: (file.write_bytes(new), training_store(Noise(file)))[1],
    ],
)
def test_other_sources_or_another_resize_make_another_file(source, cache, other):
    training_store(Noise(source))
    time.sleep(0.02)  # more than a file system's clock ticks
    after = other(source, b"A SOURCE")  # as long as it was
    assert len(list(cache.glob("*.pairs"))) == 2
    expected = Store(Noise(source), enlarge=after.load_size[0] / 12, kernel=after.kernel)
    assert all(np.array_equal(after[i].x, expected[i].x) for i in range(7))


# --- what can go wrong on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data[1:],
        lambda data: b"",
        lambda data: b"\0" * len(data),
    ],
)
def test_a_file_that_is_not_whole_is_made_again(source, cache, damage):
    expected = seen(training_store(Noise(source)))
    [file] = cache.glob("*.pairs")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same(seen(training_store(Noise(source))), expected)
    assert file.read_bytes() == whole


def test_what_a_caller_writes_into_a_pair_stays_with_the_caller(source, cache):
    store = training_store(Noise(source))
    [file] = cache.glob("*.pairs")
    before = file.read_bytes()
    store[1].x[:] = 0
    assert store[1].x.any()
    assert file.read_bytes() == before


def test_a_store_is_used_from_a_folder_that_cannot_be_written(source, cache):
    expected = seen(training_store(Noise(source)))
    for lock in cache.glob("*.lock"):
        lock.unlink()
    cache.chmod(0o500)
    try:
        assert same(seen(training_store(Noise(source))), expected)
        assert not list(cache.glob("*.lock"))
    finally:
        cache.chmod(0o700)


def test_without_room_it_streams_or_says_so_in_one_line(source, cache, monkeypatch):
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.warns(UserWarning, match=r"read anew in every epoch: .* GB are free") as told:
        store = training_store(Noise(source), "auto", store_megabytes=0)
    assert len(told) == 1
    assert same(seen(store), seen(training_store(Noise(source), "memory")))
    with pytest.raises(UserError, match=r"free, and the prepared pairs need .* P2PZOO_CACHE .*\"stream\"$") as error:
        training_store(Noise(source))
    assert len(error.value.faults) == 1
    assert not cache.exists()


def test_a_cache_that_cannot_be_made_is_told(tmp_path, source, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"prepared pairs cannot be stored here \(Not a directory\): make room, set"):
        training_store(Noise(source))


def test_pairs_of_different_types_are_refused_on_disk_and_kept_apart_elsewhere(source, cache):
    class Mixed(Noise):
        def __getitem__(self, i):
            pair = super().__getitem__(i)
            return Pair(pair.id, pair.x.astype(np.float32), pair.y) if i == 3 else pair

    with pytest.raises(UserError, match=r"pair 'pair 3': x is float32, the first pair's is uint8.*\"stream\""):
        training_store(Mixed(source))
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]
    assert training_store(Mixed(source), "stream")[3].x.dtype == np.float32


# --- in processes of their own -----------------------------------------------------------------------------------

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

def opened(place, length, side=16, seconds=0.0):
    store = Store(Slow(sys.argv[1], length, side, seconds), enlarge=1.0, compute=Compute(store=place), origin="")
    store.prepare()
    return store
"""


def start(program, source, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program, str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def ended(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out, err


def reads(source):
    log = Path(f"{source}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_preparation_that_was_killed_leaves_nothing_that_is_trusted(source, cache):
    killed = start("opened('disk', 100, seconds=0.02)", source)
    deadline = time.monotonic() + 60
    while reads(source) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(cache.glob("*.pairs"))
    assert list(cache.glob(".*.tmp")), "it was in the middle of it"
    Path(f"{source}.log").unlink()
    out, err = ended(start("store = opened('disk', 100); print(store[99].id, store.place)", source))
    assert out == "p99 disk\n"
    assert "preparing 100 pairs in" in err
    assert reads(source) == 101
    assert not list(cache.glob(".*.tmp"))


def test_of_two_processes_that_begin_together_one_prepares(source):
    both = [start("store = opened('disk', 50, seconds=0.01); print(store[49].x.sum())", source) for _ in range(2)]
    answers = [ended(process) for process in both]
    assert answers[0][0] == answers[1][0]
    assert sum("preparing" in err for _, err in answers) == 1
    assert reads(source) == 50 + 2, "each looks at the first pair"


def test_a_disk_that_fills_up_meanwhile_is_told_in_one_line(source, cache):
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    opened('disk', 100)
except UserError as error:
    print(error)
"""
    out, _ = ended(start(program, source))
    assert len(out.splitlines()) == 1
    assert "0.0 GB of prepared pairs cannot be stored here (File too large): make room, set P2PZOO_CACHE" in out
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nobody tells the peak of a single process")
def test_memory_does_not_grow_with_the_set_unless_pairs_are_kept_in_it(source):
    def megabytes(place, length):
        program = f"""
store = opened('{place}', {length}, side=128)
batches = TrainBatches(store, batch_size=1, mirror=True, seed=0)
for step in range({length}):
    batches[step]
print(Path("/proc/self/status").read_text())
"""
        out, _ = ended(start(program, source))
        [peak] = [line for line in out.splitlines() if line.startswith("VmHWM")]  # ru_maxrss begins with its parent's
        return int(peak.split()[1]) * 1024 / 1e6

    more = {place: megabytes(place, 1200) - megabytes(place, 200) for place in PLACES}
    assert more["memory"] > 60, "of 98 MB"
    assert more["stream"] < 15
    assert more["disk"] < 15


def test_a_run_is_the_same_run_with_the_same_bits_wherever_its_pairs_are(tmp_path, run, no_reports):
    from p2pzoo_earth.dataset import Earth

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Earth, "fingerprint", "the embedded data", raising=False)
        for place in PLACES:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                told = run(tmp_path / place, "train.images=12", f"compute.store={place}")
            assert told.exit_code == 0, told.output
            assert ("are read anew in every epoch" in told.output) == (place == "stream")
    folders = [next((tmp_path / place).glob("*/*")) for place in PLACES]
    assert len({folder.name for folder in folders}) == 1
    for name in ("model.safetensors", "metrics.jsonl"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert list((tmp_path / "cache" / "stores").glob("*.pairs"))
