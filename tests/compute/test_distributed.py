"""One run over several processes gives what a single process gives, and they begin, stop, fail and resume as one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2pzoo.compute import distributed
from p2pzoo.data import Store, TrainBatches, single_batches
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

# Gradients are sums in another order, so they differ by rounding. Adam makes whole steps of that where the true
# gradient is zero (a bias before instance norm): an eps above the noise keeps it from them. A short step and shallow
# networks keep such a game from growing the rest: at lr = 2e-4 and depth 6 some ReLU falls the other way within 4 to 10
# steps, and 1e-7 becomes 1e-4.
ALIKE = (
    "train.images=24",
    "train.batch_size=4",
    "optimizer.eps=1e-3",
    "optimizer.lr=2e-5",
    "generator.norm=instance",
    "generator.noise=none",
    "generator.depth=3",
    "discriminator.norm=instance",
)
# 3e-7 is the most that was found, in weights, pool and losses; weights move by 1e-4 in these 6 steps, losses by 1e-2
TOLERANCE = 1e-6

# What DDP alone would break: D reached by its features and inside a gradient, and a parameter that no loss reaches.
PLUGIN = """
import p2pzoo

@p2pzoo.hookimpl
def register_losses(register):
    register("reach", "reaching:Reach", summary="gradient penalty and features of D", paper="none")

@p2pzoo.hookimpl
def register_generators(register):
    register("spare", "reaching:Spare", summary="a U-Net with an idle parameter", paper="none")

def __getattr__(name):
    import torch
    from p2pzoo_pix2pix.generators import UNet

    class Reach:
        side = "discriminator"

        def __call__(self, out):
            y = out.y.clone().requires_grad_()
            [slope] = torch.autograd.grad(out.D(out.x, y)[0].sum(), y, create_graph=True)
            return 100 * slope.square().mean() + out.real_features[0][0].square().mean()

    class Spare(UNet):
        def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]):
            super().__init__(in_channels, out_channels, size, width=8, depth=3, norm="instance", noise="none")
            self.idle = torch.nn.Parameter(torch.ones(3))

    found = {"Reach": Reach, "Spare": Spare}
    if name not in found:
        raise AttributeError(name)
    return found[name]
"""
AUGMENTED = (
    *ALIKE,
    "train.pool_size=6",
    'augmentations.turn={use="flip-rotate"}',
    'augmentations.light={use="photometric"}',
    'augmentations.seen={use="diffaugment"}',
)
REACHING = (
    *(override for override in ALIKE if not override.startswith("generator.")),
    'generator={use="spare"}',
    "discriminator.norm=none",  # torch 2.14's second derivative of instance norm is wrong at batch 1 channels-last
    'losses.reach={use="reach", weight=0.1}',
    "train.pool_size=6",
    "train.ema=0.5",
)

IN_PARTS = (
    *ALIKE, "train.images=96", "train.batch_size=8", "train.d_steps=2", "train.accumulate=2", "train.pool_size=6",
    "optimizer.clip_norm=0.5", "optimizer.lr_discriminator=4e-5",
)  # fmt: skip
# alone: u and v magnify rounding where two singular values lie close, so more moves would need a wider tolerance
SPECTRAL = (*ALIKE, "train.spectral_norm=discriminator")

SEEDS = """
import torch
from p2pzoo.training.gan_step import Objective
take = Objective.step

def step(self, batch, number):
    print("seed", torch.initial_seed())
    return take(self, batch, number)

Objective.step = step
"""

TOLD_TO_STOP = """
from p2pzoo.training.gan_step import Objective
take = Objective.step

def step(self, batch, number):
    if number == 2 and os.environ.get("RANK", "0") in {ranks!r}:
        signal.raise_signal(signal.SIGTERM)
    return take(self, batch, number)

Objective.step = step
"""


@pytest.fixture
def torchrun(start, arguments):
    """torchrun(n, runs, "train.images=24", …): n processes begin to train the tiny recipe."""

    def torchrun(processes, runs, *overrides):
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", distributed)
        return start("-m", *launcher, "-m", "p2pzoo", *arguments(runs, *overrides))

    return torchrun


@pytest.fixture
def group(tmp_path):
    """group(n, arguments, before="…") runs `p2pzoo` in n processes, without a launcher that would end them.

    Gives the exit code of each, and what each said. `before`: what they do before.
    """
    site = tmp_path / "site"
    info = site / "reaching-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "reaching.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reaching\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[p2pzoo]\nreaching = reaching\n")
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(site)]))
    started = []

    def begin(program, arguments, **environment):
        member = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(member)
        return member

    def group(processes, arguments, *, before=""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = f"import os, signal, sys\n{before}\nfrom p2pzoo.cli import main\nmain(sys.argv[1:])"
        members = []
        for rank in range(distributed):
            variables = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": distributed, "LOCAL_WORLD_SIZE": distributed,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            launched = {name: str(value) for name, value in variables.items()} if distributed > 1 else {}
            if before:  # it imports torch before the command does, which sets this
                launched["TORCH_CPP_LOG_LEVEL"] = "ERROR"
            members.append(begin(program, arguments, **launched))
        told = [member.communicate(timeout=60)[0] for member in members]
        return [member.returncode for member in members], told

    yield group
    for member in started:
        member.kill()
        member.communicate()


class Dots:
    x_range = y_range = (0, 255)
    classes = palette = None

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return Pair(str(index), *(np.full((8, 8, 1), 40 * index, np.uint8),) * 2)


def only(runs: Path) -> Path:
    [folder] = {file.parent for file in runs.glob("*/*/recipe.toml")}
    return folder


def results(runs: Path) -> dict:
    return json.loads((only(runs) / "results.json").read_text())


def lines(runs: Path) -> list[dict]:
    return [json.loads(line) for line in (only(runs) / "metrics.jsonl").read_text().splitlines()]


def checkpoint(runs: Path) -> dict:
    return load_tensors(max((only(runs) / "checkpoints").glob("*.safetensors")))[0]


def contents(runs: Path) -> dict:
    names = ("metrics.jsonl", "model.safetensors", "stats.safetensors")
    return {name: (only(runs) / name).read_bytes() for name in names}


def assert_alike(one: Path, other: Path) -> None:
    """Weights, every line of the log, and the results, within what the order of sums leaves open."""
    weights, others = (
        {name: tensor for name, tensor in checkpoint(runs).items() if not name.startswith(("G_adam", "D_adam"))}
        for runs in (one, other)
    )
    assert weights.keys() == others.keys()
    assert {name for name in weights if (weights[name] - others[name]).abs().max() > TOLERANCE} == set()
    assert len(lines(one)) == len(lines(other)) == 6
    for line, its in zip(lines(one), lines(other), strict=True):
        assert line == pytest.approx(its, rel=0, abs=TOLERANCE)
    found, theirs = results(one), results(other)
    numbers, others = found.pop("metrics"), theirs.pop("metrics")
    assert found.pop("digest") != theirs.pop("digest") or numbers == others
    assert found == theirs
    assert numbers.keys() == others.keys()
    for name in numbers:
        assert numbers[name]["value"] == pytest.approx(others[name]["value"], rel=1e-4)
    (rows, header), (its, its_header) = (load_tensors(only(runs) / "stats.safetensors") for runs in (one, other))
    assert header == its_header
    for name in rows:
        assert rows[name] == pytest.approx(its[name], rel=1e-3), "one row per image, in the dataset's order"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shares_are_the_whole_in_order_and_as_even_as_can_be(count, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.shard(range(5)))
    assert [index for share in shares for index in share] == list(range(5))
    assert {len(share) for share in shares} <= {5 // count, -(-5 // count)}


def test_a_process_is_handed_only_its_share_of_a_batch(monkeypatch):
    store = Store(Dots())
    batches = TrainBatches(store, batch_size=4, mirror=True, seed=0)
    whole = batches[3]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    part = batches[3]
    assert part.ids == whole.ids[2:]
    assert part.x.equal(whole.x[2:])
    assert [batch.ids for batch in single_batches(store, range(0))] == [], "more processes than images"


def test_each_batch_of_a_step_is_shared_by_itself(monkeypatch):
    batches = TrainBatches(Store(Dots()), batch_size=4, mirror=True, seed=0, moves=2)
    whole = batches[0]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert batches[0].ids == (*whole.ids[2:4], *whole.ids[6:8])


def test_a_batch_that_has_no_equal_parts_in_each_process_is_refused(monkeypatch):
    distributed.check_batch(4, parts=4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"2 processes in 4 parts each .*train.batch_size=16"):
        distributed.check_batch(12, parts=4)


def test_two_processes_give_what_one_gives(torchrun, run, tmp_path):
    assert run(tmp_path / "one", *ALIKE).exit_code == 0
    process = torchrun(2, tmp_path / "two", *ALIKE)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert only(tmp_path / "one").name == only(tmp_path / "two").name, "the id is of the experiment alone"
    assert json.loads((only(tmp_path / "two") / "env.json").read_text())["processes"] == 2
    assert "over 2 processes" in told
    assert "arning" not in told
    said = [line.split()[0] for line in told.splitlines()]
    assert len(said) == len(set(said)), f"each line is said once:\n{told}"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    "overrides",
    [ALIKE, REACHING, AUGMENTED, IN_PARTS, SPECTRAL],
    ids=[
        "the paper's game",
        "all that reaches into D, pool, EMA",
        "augmented pairs and images of D",
        "several moves of D, batches in parts",
        "spectral norm",
    ],
)
def test_any_number_of_processes_gives_what_one_gives(processes, overrides, group, arguments, tmp_path):
    for runs, number in (("one", 1), ("several", distributed)):
        codes, told = group(number, arguments(tmp_path / runs, *overrides))
        assert set(codes) == {0}, told
    assert told[1:] == [""] * (distributed - 1)
    assert_alike(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
def test_batch_norm_and_dropout_train_over_two_processes(group, arguments, tmp_path):
    codes, told = group(2, arguments(tmp_path, "train.batch_size=4"))
    assert codes == [0, 0], told


@pytest.mark.slow
def test_each_process_has_dropout_of_its_own_and_the_first_that_of_a_single_one(group, arguments, tmp_path):
    def seeds(processes):
        codes, told = group(distributed, arguments(tmp_path / str(distributed), "train.batch_size=4"), before=SEEDS)
        assert set(codes) == {0}, told
        return [[line for line in text.splitlines() if line.startswith("seed")] for text in told]

    [single], several = seeds(1), seeds(2)
    assert single == several[0]
    assert len({seed for own in several for seed in own}) == 2 * len(single) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(before, after, group, arguments, tmp_path):
    overrides = (*ALIKE, "train.pool_size=6")
    assert group(1, arguments(tmp_path / "one", *overrides))[0] == [0]
    codes, told = group(before, arguments(tmp_path / "two", *overrides), before=TOLD_TO_STOP.format(ranks="0"))
    assert codes == [128 + signal.SIGTERM] * before, told
    codes, told = group(after, arguments(tmp_path / "two", *overrides))
    assert codes == [0] * after, told
    assert "going on with tiny" in told[0]
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_told_in_one_process_to_stop_all_stop_at_the_same_step_and_resume_to_the_same_bits(group, arguments, tmp_path):
    overrides = ("train.batch_size=4", "train.pool_size=6")  # batch norm and dropout too
    assert group(4, arguments(tmp_path / "one", *overrides))[0] == [0] * 4
    codes, told = group(4, arguments(tmp_path / "two", *overrides), before=TOLD_TO_STOP.format(ranks="2"))
    assert codes == [128 + signal.SIGTERM] * 4, told
    assert "stopped at 12 images and saved" in told[0]
    assert told[1:] == [""] * 3
    assert json.loads((only(tmp_path / "two") / "status.json").read_text())["state"] == "interrupted"
    assert group(4, arguments(tmp_path / "two", *overrides))[0] == [0] * 4
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_torchrun_told_to_stop_leaves_a_run_that_goes_on(torchrun, wait_for, group, arguments, tmp_path):
    overrides = ("train.batch_size=2", "train.images=400")
    process = torchrun(2, tmp_path, *overrides)
    wait_for(lambda: any(len(log.read_text()) for log in tmp_path.glob("*/*/metrics.jsonl")), process)
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert "saved; the same command goes on from there" in told
    assert json.loads((only(tmp_path) / "status.json").read_text())["state"] == "interrupted"
    codes, told = group(2, arguments(tmp_path, *overrides))
    assert codes == [0, 0], told
    assert "going on with tiny" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=3"], "[train] batch_size = 3 cannot be shared by 2 processes"),
        (["train.btch_size=4"], "did you mean 'batch_size'?"),
        (["generator.depth=9", "train.batch_size=4"], "depth"),
    ],
)
def test_a_mistake_is_told_once_and_ends_all(overrides, words, group, arguments, tmp_path):
    codes, told = group(2, arguments(tmp_path, *overrides))
    assert codes == [2, 2], told
    assert words in told[0].splitlines()[-1]
    assert told[1] == ""


FAULTS = {
    "the first process cannot write its log": (
        """
from p2pzoo.runs.run_folder import Run
append = Run.append

def full(self, name, lines):
    if lines[0]["images"] == 8:
        raise OSError(28, "No space left on device", str(self.folder))
    append(self, name, lines)

Run.append = full
""",
        2,
        "No space left on device; what was saved before is kept",
    ),
    "the second process has a broken image": (
        """
from p2pzoo.data.store import Store
from p2pzoo.utils.errors import UserError
checked, seen = Store._checked, []

def broken(self, pair):
    seen.append(pair.id)
    if os.environ["RANK"] == "1" and len(seen) > 4:
        raise UserError("photo.png: cut short")
    return checked(self, pair)

Store._checked = broken
""",
        2,
        "process 1: photo.png: cut short",
    ),
    "the first process alone is told to stop while it evaluates": (
        """
from p2pzoo import evaluate
translate = evaluate.translate

def told(*args):
    if os.environ["RANK"] == "0":
        signal.raise_signal(signal.SIGTERM)
    return translate(*args)

evaluate.translate = told
""",
        128 + signal.SIGTERM,
        "stopped; the same command goes on from what was saved",
    ),
    "a loss diverges": (
        """
from p2pzoo.training.gan_step import Objective
take = Objective.step

def step(self, batch, number):
    off = float("nan") if number == 3 and os.environ["RANK"] == "1" else 1
    return {name: value * off for name, value in take(self, batch, number).items()}

Objective.step = step
""",
        2,
        "D.gan became nan at step 4 (image 16): training has diverged",
    ),
    "the second process fails in a way of our own": (
        """
from p2pzoo.data import batches
from p2pzoo.data.store import Store
collate = batches.collate

def failing(*args):
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("none")
    return collate(*args)

batches.collate = failing
""",
        1,
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "code", "words"), FAULTS.values(), ids=FAULTS)
def test_where_one_process_fails_all_end_with_its_code(before, code, words, group, arguments, tmp_path):
    codes, told = group(2, arguments(tmp_path, "train.batch_size=4"), before=before)
    assert codes == [code, code], told
    if code == 1:  # the process that failed tells it
        assert told[1].startswith("process 1: p2pzoo failed: ZeroDivisionError: none")
    else:
        assert words in told[0].splitlines()[-1]
        assert told[1] == ""
