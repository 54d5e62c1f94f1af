"""What changes around a run: its dataset's files, the clock, who else works on its folder, the process itself."""

import os
import signal
import subprocess
import sys
import time

import fault_injection
import numpy as np
import pytest

from p2pzoo.images.io import write_png

slow = pytest.mark.slow


# --- the dataset's folder ----------------------------------------------------------------------------------------


def remove(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:-300])


def replace(file):
    write_png(file, np.zeros((32, 64, 3), np.uint8))


def add(file):
    write_png(file.with_name("new.png"), np.zeros((64, 128, 3), np.uint8))


CHANGES = [remove, cut, replace, add]


@pytest.mark.promise("reported in one line; once the files are as they were the run resumes with bit-identical results")
def test_a_dataset_that_changes_between_two_parts_of_a_run(
    chance, photos, unharmed_on_photos, run, refused, goes_on, tmp_path
):
    folder, overrides = photos
    unharmed = unharmed_on_photos(*overrides)

    def stop():
        raise fault_injection.SimulatedKill

    with (
        fault_injection.after(fault_injection.STEP, stop, call=chance.randint(6, 19)),
        pytest.raises(fault_injection.SimulatedKill),
    ):
        run(tmp_path / "runs", *overrides)
    before = fault_injection.on_disk(tmp_path / "runs")
    for change in CHANGES:
        file = chance.choice(sorted((folder / "train").iterdir()))
        content = file.read_bytes()
        change(file)
        refused(run(tmp_path / "runs", *overrides))
        assert fault_injection.on_disk(tmp_path / "runs") == before, change.__name__
        (folder / "train/new.png").unlink(missing_ok=True)
        file.write_bytes(content)
    goes_on(tmp_path / "runs", before, unharmed, *overrides)


@slow
@pytest.mark.parametrize(
    ("store", "change"),
    [("memory", replace), *(("stream", change) for change in CHANGES)],
    ids=["memory-replace", *(f"stream-{change.__name__}" for change in CHANGES)],
)
@pytest.mark.promise("what was read is trained on; else reported in one line, and then bit-identical results")
def test_a_dataset_that_changes_under_a_run(
    store, change, chance, photos, unharmed_on_photos, run, refused, goes_on, tmp_path
):
    folder, overrides = photos[0], (*photos[1], f"compute.store={store}")
    unharmed = unharmed_on_photos(*overrides)
    file = chance.choice(sorted((folder / "train").iterdir()))
    content = file.read_bytes()
    with fault_injection.after(fault_injection.STEP, lambda: change(file), call=chance.randint(1, 19)):
        result = run(tmp_path / "runs", *overrides)
    before = fault_injection.on_disk(tmp_path / "runs")
    if result.exit_code:
        assert file.stem in refused(result)
    (folder / "train/new.png").unlink(missing_ok=True)
    file.write_bytes(content)
    goes_on(tmp_path / "runs", before, unharmed, *overrides)


READERS = """
import p2pzoo

@p2pzoo.hookimpl
def register_datasets(register):
    register("flaky", "flaky:Flaky", summary="Its reading fails where a file of that name is there")

def __getattr__(name):
    import os
    from p2pzoo_datasets.folders import SideBySide

    class Flaky(SideBySide):
        def __init__(self, split, *, root: str, **rest: int) -> None:
            super().__init__(split, root=root)
            self.reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if os.path.exists("fails") and self.reads > 5:
                raise SystemExit("the thread ends")
            return super().__getitem__(index)

    return {"Flaky": Flaky}[name]
""".replace(", **rest: int", "")


@pytest.mark.promise("the run ends at that pair, and resumes from its last checkpoint: bit-identical results")
def test_a_thread_that_reads_pairs_dies(chance, photos, run, goes_on, install, tmp_path, monkeypatch):
    install("flaky", READERS)
    monkeypatch.chdir(tmp_path)
    overrides = (photos[1][0].replace("side-by-side", "flaky"), "compute.store=stream")
    assert run(tmp_path / "unharmed", *overrides).exit_code == 0
    with fault_injection.after(fault_injection.STEP, (tmp_path / "fails").touch, call=chance.randint(1, 8)):
        result = run(tmp_path / "runs", *overrides)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    before = fault_injection.on_disk(tmp_path / "runs")
    (tmp_path / "fails").unlink()
    goes_on(tmp_path / "runs", before, fault_injection.outcome(tmp_path / "unharmed"), *overrides)


# --- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.promise("times are not asked for what is trained: bit-identical results")
def test_a_clock_that_jumps(chance, halfway, unharmed, goes_on, monkeypatch):
    now = time.time()
    for file in halfway.rglob("*"):
        moment = now + chance.choice([-1, 1]) * chance.uniform(0, 10 * 365 * 86400)
        os.utime(file, (moment, moment))
    monkeypatch.setattr(time, "time", lambda: now + chance.uniform(-1e9, 1e9))
    goes_on(halfway, fault_injection.on_disk(halfway), unharmed)


# --- processes -----------------------------------------------------------------------------------------------


WAITING = """
import itertools, sys
from p2pzoo.training import loop

def wait_at_a_step(*arguments, step=loop.train_step, numbers=itertools.count()):
    if next(numbers) == {number}:
        print("waits", flush=True)
        sys.stdin.read()
    return step(*arguments)

loop.train_step = wait_at_a_step
"""


@slow
@pytest.mark.promise("one works, the other is refused in one line: bit-identical results")
def test_two_processes_on_one_run(chance, fork, arguments, halfway, unharmed, goes_on):
    before = fault_injection.on_disk(halfway)
    first = fork(*arguments(halfway), before=WAITING.format(number=chance.randrange(5)))
    lines = iter(first.stdout.readline, "")
    assert "waits\n" in lines
    second = fork(*arguments(halfway))
    assert "another process is working on this run" in second.communicate(timeout=600)[0].splitlines()[-1]
    first.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (0, 2)
    goes_on(halfway, before, unharmed)


@slow
@pytest.mark.promise("the others end within a minute, and one process resumes from the last checkpoint")
def test_a_process_of_several_dies(chance, arguments, run, record_property, tmp_path, wait_for):
    overrides = ("train.images=400", "train.batch_size=4", "train.checkpoint_every=8", "generator.norm=instance")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "p2pzoo"]
    process = subprocess.Popen(
        [sys.executable, *command, *map(str, arguments(tmp_path / "runs", *overrides, "discriminator.norm=instance"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: any((tmp_path / "runs").glob("*/*/checkpoints/*.safetensors")), process)
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        children = [int(child) for child in listed.stdout.split()]
        time.sleep(chance.uniform(0, 1))
        for child in children:  # nothing is written while the files are read
            os.kill(child, signal.SIGSTOP)
        before = fault_injection.on_disk(tmp_path / "runs")
        os.kill(children.pop(chance.randrange(len(children))), signal.SIGKILL)
        for child in children:
            os.kill(child, signal.SIGCONT)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0, output
    result = run(tmp_path / "runs", *overrides, "discriminator.norm=instance", flags=["--quiet"])
    assert result.exit_code == 0, result.output
    assert result.first_step >= 2
    lost = fault_injection.bytes_lost(before)
    record_property("bytes_lost", lost)
    record_property("observed", "resumed from a checkpoint")
    assert lost == 0
