"""Faults outside the recipe: a full disk, a folder that cannot be written, a loss that is NaN.

The error is one line that says what and where, with exit code 2. Files on disk stay; once the cause is gone, the run
resumes.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace

import fault_injection
import numpy as np
import pytest
import torch
from fault_injection import largest_file
from p2pzoo_datasets.published import Facades

from p2pzoo.images.io import write_png
from p2pzoo.models.safetensors_io import load_tensors

MIB = 2**20


def junyanz_unet():
    """The state dict of that code's U-Net without norms, of width 1 and depth 5."""
    tensors, prefix = {}, "model.model."
    for level, (outer, inner) in enumerate([(3, 1), (1, 2), (2, 4), (4, 8), (8, 8)]):
        down, up = ("0", "3") if level == 0 else ("1", "3") if level == 4 else ("1", "5")
        tensors |= {
            f"{prefix}{down}.weight": torch.zeros(inner, outer, 4, 4), f"{prefix}{down}.bias": torch.zeros(inner),
            f"{prefix}{up}.weight": torch.zeros(inner * (1 + (level < 4)), outer, 4, 4),
            f"{prefix}{up}.bias": torch.zeros(outer),
        }  # fmt: skip
        prefix += "1.model." if level == 0 else "3.model."
    return tensors


BROKEN = """
import p2pzoo
import torch
from fault_injection import largest_file
from p2pzoo_datasets.published import Facades

@p2pzoo.hookimpl
def register_losses(register):
    register("nan-value", Value, summary="NaN in call number `at`")
    register("nan-gradient", Gradient, summary="Zero, with a gradient of NaN in call number `at`")


class Value:
    side = "generator"

    def __init__(self, *, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, out):
        self.calls += 1
        return self.value(out.y_hat.mean()) if self.calls == self.at else 0 * out.y_hat.mean()

    def value(self, mean):
        return mean * float("nan")


class Gradient(Value):
    def value(self, mean):
        return (mean - mean).abs().sqrt()
"""


def only(runs):
    [folder] = {file.parent for file in runs.glob("*/*/checkpoints")}
    return folder


def checkpoints(runs):
    return {int(f.stem.removeprefix("images-")): f for f in sorted(only(runs).glob("checkpoints/*.safetensors"))}


def refused(result) -> str:
    """The error line of an result that is an error of the user's."""
    assert result.exit_code == 2, result.output
    *before, line = result.output.splitlines()
    assert all(
        re.match(r"tiny, profile|training tiny|resuming tiny|this CPU has bf16|\d+/\d+ images", line_before)
        for line_before in before
    )
    return line


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(MiB): a file system of its own."""
    mounted = []

    def small_disk(size):
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        options = f"size={round(size * MIB)}"
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)
        if mount.returncode:
            pytest.skip(f"needs the right to mount a file system: {mount.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield small_disk
    for disk in mounted:
        subprocess.run(["umount", disk], check=True)


def fill(disk, leave: int):
    """A file that leaves only so many bytes of the disk free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - leave))
    return filler


@pytest.fixture(scope="module")
def straight(shared_complete):
    """metrics.jsonl and the model's tensors of a run that met no fault."""
    return log(shared_complete), load_tensors(only(shared_complete) / "model.safetensors")[0]


@pytest.fixture(scope="module")
def checkpoint_bytes(shared_complete):
    """The length of a checkpoint of these runs."""
    return max(file.stat().st_size for file in checkpoints(shared_complete).values())


def log(runs):
    return (only(runs) / "metrics.jsonl").read_text()


def assert_goes_on(result, runs, straight, *, after: int):
    """The run was taken up after so many images, and ended as if nothing had happened."""
    assert (result.exit_code, result.first_step) == (0, after), result.output
    assert log(runs) == straight[0]
    tensors, _ = load_tensors(only(runs) / "model.safetensors")
    assert all(tensors[name].equal(tensor) for name, tensor in straight[1].items())


class TestFullDisk:
    def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(self, small_disk, run, straight, checkpoint_bytes):
        disk = small_disk(20)
        filler = fill(disk, leave=round(1.5 * checkpoint_bytes))
        line = refused(run(disk))
        assert "images-0000000010.safetensors" in line
        assert "No space left on device" in line
        assert [*checkpoints(disk)] == [5]
        filler.unlink()
        assert_goes_on(run(disk), disk, straight, after=5)

    def test_small_files_that_do_not_fit_leave_the_run_as_it_was(self, small_disk, run, straight, checkpoint_bytes):
        disk = small_disk(20)
        filler = fill(disk, leave=round(1.5 * checkpoint_bytes))
        refused(run(disk))
        status = (only(disk) / "status.json").read_bytes()
        filler.unlink()
        filler = fill(disk, leave=0)
        line = refused(run(disk))
        assert str(only(disk)) in line  # where
        assert "No space left on device" in line
        assert (only(disk) / "status.json").read_bytes() == status
        assert list(only(disk).rglob(".*.tmp")) == []
        filler.unlink()
        assert_goes_on(run(disk), disk, straight, after=5)

    @pytest.mark.parametrize(
        ("share", "file"), [(0.7, "images-0000000005.safetensors"), (0.002, "recipe.toml")], ids=["large", "small"]
    )
    def test_a_limit_of_the_file_size_is_reported_in_one_line(
        self, share, file, run, straight, checkpoint_bytes, tmp_path
    ):
        with largest_file(round(share * checkpoint_bytes)):
            line = refused(run(tmp_path))
        assert file in line
        assert "File too large" in line
        assert_goes_on(run(tmp_path), tmp_path, straight, after=0)


class TestOfADisk:
    @pytest.mark.promise("one line, exit code 2; with room again bit-identical results")
    def test_filling_up(self, chance, small_disk, run, unharmed, goes_on, checkpoint_bytes):
        disk = small_disk(24)
        room = chance.choice([0, checkpoint_bytes // 60, chance.randrange(4 * checkpoint_bytes)])
        with fault_injection.after(fault_injection.STEP, lambda: fill(disk, leave=room), call=chance.randint(1, 19)):
            result = run(disk)
        before = {file: data for file, data in fault_injection.on_disk(disk).items() if file.name != "filler"}
        if result.exit_code:
            assert "No space left on device" in refused(result)
        (disk / "filler").unlink()
        goes_on(disk, before, unharmed)

    @pytest.mark.promise("one line, exit code 2; without the limit bit-identical results")
    def test_a_limit_on_file_sizes(self, chance, halfway, run, unharmed, goes_on, checkpoint_bytes):
        with largest_file(chance.choice([chance.randrange(20_000), chance.randrange(checkpoint_bytes * 6 // 5)])):
            result = run(halfway)
        before = fault_injection.on_disk(halfway)
        if result.exit_code:
            assert "File too large" in refused(result)
        goes_on(halfway, before, unharmed)

    @pytest.mark.slow
    @pytest.mark.promise("what is complete is shown, else one line; nothing is changed; then bit-identical results")
    @pytest.mark.parametrize("state", ["halfway", "complete"])
    def test_a_read_only_mount(self, state, request, chance, small_disk, run, unharmed, goes_on):
        disk = small_disk(chance.randint(20, 60))
        shutil.copytree(request.getfixturevalue(state), disk, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = fault_injection.on_disk(disk)
        result = run(disk)
        if state == "halfway":
            assert "Read-only file system" in refused(result)
        else:
            assert result.exit_code == 0
        assert fault_injection.on_disk(disk) == before
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        goes_on(disk, before, unharmed)


WRITERS = {  # MODEL, RUN, RUNS, PAIRS, A, B, X, PTH and TAR are inputs; OUT is what the command writes
    "translate to PNG": "translate MODEL X -o OUT.png",
    "translate to npy": "translate MODEL X -o OUT.npy",
    "translate to TIFF": "translate MODEL X -o OUT.tif",
    "translate a folder": "translate MODEL A -o OUT",
    "import": "import PTH -o OUT.safetensors",
    "export to torch-export": "export MODEL --to torch-export -o OUT.pt2",
    "export to onnx": "export MODEL --to onnx -o OUT.onnx",
    "export to junyanz": "export IMPORTED --to junyanz -o OUT.pth",
    "card": "card RUN -o OUT",
    "gallery": "gallery RUNS -o OUT",
    "compare": "compare RUN --format html -o OUT.html",
    "data check": "data check RECIPE -o OUT.html",
    "data preview": "data preview RECIPE -o OUT.png",
    "data combine": "data combine A B -o OUT",
    "data split": "data split PAIRS/train -o OUT",
    "data fetch": "data fetch facades --from TAR",
    "new-plugin": "new-plugin my-zoo",
}


class TestWriters:
    @pytest.fixture(scope="class")
    def inputs(self, shared_complete, run_cli, tmp_path_factory):
        """{name: what stands for it in a command}"""
        folder = tmp_path_factory.mktemp("inputs")
        rng, pixels = np.random.default_rng(0), lambda width: rng.integers(0, 256, (64, width, 3), dtype=np.uint8)
        for split in ("train", "val", "test"):
            (folder / "pairs" / split).mkdir(parents=True)
            for number in range(3):
                write_png(folder / "pairs" / split / f"{number}.png", pixels(128))
        for name in ("a", "b"):
            (folder / name).mkdir()
            for number in range(3):
                write_png(folder / name / f"{number}.png", pixels(64))
        (folder / "recipe.toml").write_text(
            f'extends = "zoo:base.toml"\n[dataset]\nuse = "side-by-side"\nroot = "{folder / "pairs"}"\n'
        )
        with tarfile.open(folder / "facades.tar.gz", "w:gz") as tar:
            tar.add(folder / "pairs", "facades")
        run_folder = only(shared_complete)
        junyanz = folder / "latest_net_G.pth"
        torch.save(junyanz_unet(), junyanz)
        assert run_cli("import", junyanz, "-o", folder / "imported.safetensors").exit_code == 0
        return {
            "MODEL": run_folder / "model.safetensors", "RUN": run_folder, "RUNS": shared_complete, "A": folder / "a",
            "B": folder / "b",
            "PAIRS": folder / "pairs", "X": folder / "a" / "0.png", "PTH": junyanz, "TAR": folder / "facades.tar.gz",
            "RECIPE": folder / "recipe.toml", "IMPORTED": folder / "imported.safetensors",
        }  # fmt: skip

    @pytest.mark.promise("one line that names the file, exit code 2; nothing half-written is left")
    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.slow) if name == "export to onnx" else name for name in WRITERS]
    )
    def test_a_full_disk_under_a_command_that_writes(self, name, inputs, run_cli, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        if name == "data fetch":
            size, images = inputs["TAR"].stat().st_size, {"train": 3, "val": 3, "test": 3}
            monkeypatch.setattr(Facades, "archive", replace(Facades.archive, size=size, images=images))
        words = WRITERS[name].split()
        arguments = [re.sub("^[A-Z]+", lambda m: str(inputs.get(m[0], m[0])), word) for word in words]
        arguments = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
        with largest_file(100):
            result = run_cli(*arguments)
        assert result.exit_code == 2, result.output
        line = result.output.splitlines()[-1]
        assert "File too large" in line
        assert (str(tmp_path) if name != "new-plugin" else "my-zoo/") in line
        assert "failed" not in line
        assert "Traceback" not in result.output
        left = [
            file
            for file in tmp_path.rglob("*")
            if file.is_file() and file.suffix != ".lock" and file.stat().st_size > 100
        ]
        assert left == []
        assert [*tmp_path.rglob(".*.tmp")] == []


class TestUnwritableFolder:
    def test_a_runs_folder_under_a_file(self, run, tmp_path):
        (tmp_path / "file").touch()
        line = refused(run(tmp_path / "file" / "runs"))
        assert str(tmp_path / "file") in line
        assert "a file is in the place of a folder" in line

    def test_a_read_only_disk(self, small_disk, run):
        disk = small_disk(1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        line = refused(run(disk))
        assert str(disk) in line
        assert "Read-only file system" in line

    def test_a_folder_without_the_right_to_write(self, run, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.chmod(0o500)
        line = refused(run(tmp_path))
        assert str(tmp_path) in line
        assert "Permission denied" in line


class TestDivergence:
    @pytest.fixture(autouse=True)
    def broken(self, install):
        install("broken", BROKEN)

    def test_a_loss_of_nan_stops_the_run_and_is_named(self, run, tmp_path):
        overrides = ("losses.odd.use=nan-value", "losses.odd.at=9")
        line = refused(run(tmp_path, *overrides))
        assert line.startswith("G.odd became nan at step 9 (image 9): ")
        assert json.loads((only(tmp_path) / "status.json").read_text())["state"] == "failed"
        [last_good] = checkpoints(tmp_path).values()
        tensors, header = load_tensors(last_good)
        assert header["images"] == 5
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert [json.loads(line)["images"] for line in log(tmp_path).splitlines()] == [2, 4, 6, 8]

    def test_the_run_can_resume_from_the_last_good_checkpoint(self, run, tmp_path):
        overrides = ("losses.odd.use=nan-value", "losses.odd.at=9")
        run(tmp_path, *overrides)
        result = run(tmp_path, *overrides)  # counts calls from the checkpoint: would be image 14
        assert result.first_step == 5
        assert refused(result).startswith("G.odd became nan at step 14 (image 14): ")
        assert [*checkpoints(tmp_path)] == [5, 10]

    def test_weights_of_nan_are_never_saved(self, run, tmp_path):
        overrides = ("losses.odd.use=nan-gradient", "losses.odd.at=10")  # a checkpoint is due in this very step
        assert "nan" in refused(run(tmp_path, *overrides))
        for file in checkpoints(tmp_path).values():
            tensors, _ = load_tensors(file)
            assert all(tensor.isfinite().all() for tensor in tensors.values() if torch.is_floating_point(tensor))
        assert 5 in checkpoints(tmp_path)
