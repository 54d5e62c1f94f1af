"""A run over several processes gives the results of one process; they start, stop, fail and resume together."""

import contextlib
import functools
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from p2pzoo.compute import distributed
from p2pzoo.data import Store, TrainBatches, single_batches
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

# Several processes sum gradients in another order, which changes the rounding. Where the true gradient is zero (a bias
# before instance norm), Adam turns rounding into full steps: an eps above the noise prevents this. A small learning
# rate and shallow networks keep the other differences from growing: at lr = 2e-4 and depth 6 some ReLU switches its
# side within 4 to 10 steps, and 1e-7 becomes 1e-4.
STABLE = (
    "train.images=24",
    "train.batch_size=4",
    "optimizer.eps=1e-3",
    "optimizer.lr=2e-5",
    "generator.norm=instance",
    "generator.noise=none",
    "generator.depth=3",
    "discriminator.norm=instance",
)
# The largest measured difference of weights, pool and losses is 3e-7. In these 6 steps weights move by 1e-4, losses by
# 1e-2.
TOLERANCE = 1e-6
# Of the images that the pool keeps: values up to 1, where weights are near 0.02, and sums over all layers of G. Their
# rounding reaches 1.2e-6 on an AMD EPYC of family 25. A level of 8 bits is 800 times the tolerance.
IMAGE_TOLERANCE = 1e-5

# Cases that DDP alone does not support: D called through its features and inside a gradient, and an unused parameter.
PLUGIN = """
import p2pzoo

@p2pzoo.hookimpl
def register_losses(register):
    register("reach", "reaching:Reach", summary="gradient penalty and features of D", paper="none")

@p2pzoo.hookimpl
def register_generators(register):
    register("spare", "reaching:Spare", summary="a U-Net with an idle parameter", paper="none")

@p2pzoo.hookimpl
def register_discriminators(register):
    register("labelled", "reaching:Labelled", summary="logits by labels", paper="none", needs=("labels",))

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

    class Labelled(torch.nn.Module):
        def __init__(self, in_channels: int, out_channels: int):
            super().__init__()
            self.first = torch.nn.Conv2d(in_channels + out_channels, 8, 1)
            self.embed = torch.nn.Embedding(9, 8)

        def forward(self, x, y, labels):
            [[h]] = self.features(x, y, labels)
            return [(h * self.embed(labels).permute(0, 3, 1, 2)).sum(1, keepdim=True)]

        def features(self, x, y, labels):
            return [[self.first(torch.cat([x, y], 1))]]

    classes = {"Reach": Reach, "Spare": Spare, "Labelled": Labelled}
    if name not in classes:
        raise AttributeError(name)
    return classes[name]
"""
AUGMENTED = (
    *STABLE,
    "train.pool_size=6",
    'augmentations.turn={use="flip-rotate"}',
    'augmentations.light={use="photometric"}',
    'augmentations.diffaugment={use="diffaugment"}',
)
THROUGH_D = (
    *(override for override in STABLE if not override.startswith("generator.")),
    'generator={use="spare"}',
    "discriminator.norm=none",  # torch 2.14's second derivative of instance norm is wrong at batch 1 channels-last
    'losses.reach={use="reach", weight=0.1}',
    "train.pool_size=6",
    "train.ema=0.5",
)

ACCUMULATED = (
    *STABLE, "train.images=96", "train.batch_size=8", "train.d_steps=2", "train.accumulate=2", "train.pool_size=6",
    "optimizer.clip_norm=0.5", "optimizer.lr_discriminator=4e-5",
)  # fmt: skip
# without d_steps: u and v amplify rounding if two singular values are close, so more D steps need a wider tolerance
SPECTRAL = (*STABLE, "train.spectral_norm=discriminator")
PROCESS = (*STABLE, "generator.norm=group", 'process={use="flow", steps=2}')
LABELLED = (
    *(override for override in STABLE if not override.startswith("discriminator.")),
    'discriminator={use="labelled"}', "train.pool_size=6", 'augmentations.diffaugment={use="diffaugment"}',
)  # fmt: skip

SEEDS = """
import torch
from p2pzoo.training.gan_step import Objective
original_step = Objective.step

def step(self, batch, number):
    print("seed", torch.initial_seed())
    return original_step(self, batch, number)

Objective.step = step
"""

SEND_SIGTERM = """
from p2pzoo.training.gan_step import Objective
original_step = Objective.step

def step(self, batch, number):
    if number == 2 and os.environ.get("RANK", "0") in {ranks!r}:
        signal.raise_signal(signal.SIGTERM)
    return original_step(self, batch, number)

Objective.step = step
"""


@pytest.fixture
def torchrun(start, arguments):
    """torchrun(n, runs, "train.images=24", …) starts n processes that train the tiny recipe."""

    def torchrun(processes, runs, *overrides):
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", processes)
        return start("-m", *launcher, "-m", "p2pzoo", *arguments(runs, *overrides))

    return torchrun


# Reports are left out, as by the fixture `no_reports`. {site}: where the plugin above is installed.
PREPARE = """
import os, signal, sys
from p2pzoo.plugin import loader
from p2pzoo.training import run_experiment, run_writer
run_writer.write_report = run_experiment.write_report = lambda *_: None
sys.path.insert(0, {site!r})
loader.plugins.cache_clear()
loader.registry.cache_clear()
"""


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """Source code that installs the plugin above in a forked process."""
    site = tmp_path_factory.mktemp("site")
    info = site / "reaching-1.0.dist-info"
    info.mkdir()
    (site / "reaching.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reaching\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[p2pzoo]\nreaching = reaching\n")
    return PREPARE.format(site=str(site))


@pytest.fixture(scope="module")
def group(fork_server, prepare, tmp_path_factory):
    """group(n, arguments, before="…") runs `p2pzoo` in n processes, without a launcher that would terminate them.

    before  source code that each process runs first

    Returns the exit codes and the outputs of the processes. Fails if they take longer than ten minutes.
    """

    def group(processes, arguments, *, before=""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs = tmp_path_factory.mktemp("logs")
        with contextlib.ExitStack() as stack:
            running = []
            for rank in range(processes):
                variables = {
                    "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                } if processes > 1 else {}  # fmt: skip
                running.append(
                    fork_server.fork(*arguments, before=prepare + before, env=variables, output=logs / f"{rank}.log")
                )
                stack.callback(running[-1].close)
            end = time.monotonic() + 600
            try:
                codes = [process.wait(max(0, end - time.monotonic())) for process in running]
            except subprocess.TimeoutExpired:
                codes = None
        outputs = [log.read_text() for log in sorted(logs.iterdir())]
        assert codes, f"the processes did not end within ten minutes:\n{outputs}"
        return codes, outputs

    return group


@pytest.fixture(scope="module")
def one_process(group, arguments, tmp_path_factory):
    """one_process(*overrides): the runs folder of a run in one process. Tests must not change it."""

    @functools.cache
    def one_process(*overrides):
        runs = tmp_path_factory.mktemp("one")
        codes, outputs = group(1, arguments(runs, *overrides))
        assert codes == [0], outputs
        return runs

    return one_process


class GrayDataset:
    x_range = y_range = (0, 255)
    classes = palette = None

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return Pair(str(index), *(np.full((8, 8, 1), 40 * index, np.uint8),) * 2)


def run_folder(runs: Path) -> Path:
    [folder] = {file.parent for file in runs.glob("*/*/recipe.toml")}
    return folder


def read_results(runs: Path) -> dict:
    return json.loads((run_folder(runs) / "results.json").read_text())


def read_log(runs: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder(runs) / "metrics.jsonl").read_text().splitlines()]


def read_checkpoint(runs: Path) -> dict:
    return load_tensors(max((run_folder(runs) / "checkpoints").glob("*.safetensors")))[0]


def read_files(runs: Path) -> dict:
    names = ("metrics.jsonl", "model.safetensors", "stats.safetensors")
    return {name: (run_folder(runs) / name).read_bytes() for name in names}


def assert_close(one: Path, other: Path) -> None:
    """Compare weights, all log lines and results, with the tolerance that another order of summation needs."""
    weights, others = (
        {name: tensor for name, tensor in read_checkpoint(runs).items() if not name.startswith(("G_adam", "D_adam"))}
        for runs in (one, other)
    )
    assert weights.keys() == others.keys()
    limits = {name: IMAGE_TOLERANCE if name.startswith("pool.") else TOLERANCE for name in weights}
    assert {name for name in weights if (weights[name] - others[name]).abs().max() > limits[name]} == set()
    assert len(read_log(one)) == len(read_log(other)) == 6
    for line, other_line in zip(read_log(one), read_log(other), strict=True):
        assert line == pytest.approx(other_line, rel=0, abs=TOLERANCE)
    results, other_results = read_results(one), read_results(other)
    metrics, other_metrics = results.pop("metrics"), other_results.pop("metrics")
    (timing,), (other_timing,) = results.pop("timings"), other_results.pop("timings")
    assert timing["translations"] == other_timing["translations"]
    assert results.pop("digest") != other_results.pop("digest"), "their times differ"
    assert results == other_results
    assert metrics.keys() == other_metrics.keys()
    for name in metrics:
        assert metrics[name]["value"] == pytest.approx(other_metrics[name]["value"], rel=1e-4)
    (rows, header), (other_rows, other_header) = (
        load_tensors(run_folder(runs) / "stats.safetensors") for runs in (one, other)
    )
    assert header == other_header
    for name in rows:
        assert rows[name] == pytest.approx(other_rows[name], rel=1e-3), "one row per image, in the dataset's order"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shards_cover_all_items_in_order_and_differ_in_length_by_at_most_one(count, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    shards = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards.append(distributed.shard(range(5)))
    assert [index for shard in shards for index in shard] == list(range(5))
    assert {len(shard) for shard in shards} <= {5 // count, -(-5 // count)}


def test_a_process_gets_only_its_shard_of_a_batch(monkeypatch):
    store = Store(GrayDataset())
    batches = TrainBatches(store, batch_size=4, mirror=True, seed=0)
    full = batches[3]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    part = batches[3]
    assert part.ids == full.ids[2:]
    assert part.x.equal(full.x[2:])
    assert [batch.ids for batch in single_batches(store, range(0))] == [], "more processes than images"


def test_each_batch_of_a_step_is_sharded_separately(monkeypatch):
    batches = TrainBatches(Store(GrayDataset()), batch_size=4, mirror=True, seed=0, batches_per_step=2)
    full = batches[0]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert batches[0].ids == (*full.ids[2:4], *full.ids[6:8])


def test_a_batch_without_equal_parts_per_process_is_rejected(monkeypatch):
    distributed.check_batch(4, parts=4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"2 processes in 4 parts each .*train.batch_size=16"):
        distributed.check_batch(12, parts=4)


def test_two_processes_give_the_results_of_one(group, one_process, arguments, tmp_path):
    codes, outputs = group(2, arguments(tmp_path, *STABLE))
    assert codes == [0, 0], outputs
    assert "over 2 processes" in outputs[0]
    assert outputs[1] == ""
    assert_close(one_process(*STABLE), tmp_path)


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_results_of_one(torchrun, run, tmp_path):
    assert run(tmp_path / "one", *STABLE).exit_code == 0
    process = torchrun(2, tmp_path / "two", *STABLE)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_close(tmp_path / "one", tmp_path / "two")
    assert run_folder(tmp_path / "one").name == run_folder(tmp_path / "two").name, (
        "the run id does not depend on the number of processes"
    )
    assert json.loads((run_folder(tmp_path / "two") / "env.json").read_text())["processes"] == 2
    assert "over 2 processes" in output
    assert "arning" not in output
    first_words = [line.split()[0] for line in output.splitlines()]
    assert len(first_words) == len(set(first_words)), f"each line is printed once:\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (4, STABLE),
        (2, THROUGH_D),
        (4, THROUGH_D),
        (4, AUGMENTED),
        (2, ACCUMULATED),
        (2, SPECTRAL),
        (2, PROCESS),
        (2, LABELLED),
    ],
    ids=[
        "4, the paper's step",
        "2, features and gradients of D, pool, EMA",
        "4, features and gradients of D, pool, EMA",
        "4, augmented pairs and inputs of D",
        "2, several D steps, accumulated batches",
        "2, spectral norm",
        "2, a process",
        "2, labels for D, pool, inputs of D augmented",
    ],
)
def test_any_number_of_processes_gives_the_results_of_one(
    processes, overrides, group, one_process, arguments, tmp_path
):
    codes, outputs = group(processes, arguments(tmp_path, *overrides))
    assert codes == [0] * processes, outputs
    assert outputs[1:] == [""] * (processes - 1)
    assert_close(one_process(*overrides), tmp_path)


@pytest.mark.slow
def test_batch_norm_and_dropout_train_over_two_processes(group, arguments, tmp_path):
    codes, outputs = group(2, arguments(tmp_path, "train.batch_size=4"))
    assert codes == [0, 0], outputs


@pytest.mark.slow
def test_each_process_seeds_dropout_differently_and_rank_0_as_a_single_process(group, arguments, tmp_path):
    def seeds(processes):
        codes, outputs = group(processes, arguments(tmp_path / str(processes), "train.batch_size=4"), before=SEEDS)
        assert set(codes) == {0}, outputs
        return [[line for line in text.splitlines() if line.startswith("seed")] for text in outputs]

    [single], several = seeds(1), seeds(2)
    assert single == several[0]
    assert len({seed for seeds_of_rank in several for seed in seeds_of_rank}) == 2 * len(single) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_run_resumes_with_another_number_of_processes(before, after, group, one_process, arguments, tmp_path):
    overrides = (*STABLE, "train.pool_size=6")
    codes, outputs = group(before, arguments(tmp_path, *overrides), before=SEND_SIGTERM.format(ranks="0"))
    assert codes == [128 + signal.SIGTERM] * before, outputs
    codes, outputs = group(after, arguments(tmp_path, *overrides))
    assert codes == [0] * after, outputs
    assert "resuming tiny" in outputs[0]
    assert_close(one_process(*overrides), tmp_path)


@pytest.mark.slow
def test_on_sigterm_in_one_process_all_stop_at_the_same_step_and_resume_bit_identically(group, arguments, tmp_path):
    overrides = ("train.batch_size=4", "train.pool_size=6")  # batch norm and dropout too
    assert group(4, arguments(tmp_path / "one", *overrides))[0] == [0] * 4
    codes, outputs = group(4, arguments(tmp_path / "two", *overrides), before=SEND_SIGTERM.format(ranks="2"))
    assert codes == [128 + signal.SIGTERM] * 4, outputs
    assert "stopped at 12 images and saved" in outputs[0]
    assert outputs[1:] == [""] * 3
    assert json.loads((run_folder(tmp_path / "two") / "status.json").read_text())["state"] == "interrupted"
    assert group(4, arguments(tmp_path / "two", *overrides))[0] == [0] * 4
    assert read_files(tmp_path / "two") == read_files(tmp_path / "one")


@pytest.mark.slow
def test_on_sigterm_torchrun_leaves_a_run_that_resumes(torchrun, wait_for, group, arguments, tmp_path):
    overrides = ("train.batch_size=2", "train.images=160")
    process = torchrun(2, tmp_path, *overrides)
    wait_for(lambda: any(len(log.read_text()) for log in tmp_path.glob("*/*/metrics.jsonl")), process)
    process.terminate()
    output, _ = process.communicate(timeout=600)
    assert "saved; the same command resumes from there" in output
    assert json.loads((run_folder(tmp_path) / "status.json").read_text())["state"] == "interrupted"
    codes, outputs = group(2, arguments(tmp_path, *overrides))
    assert codes == [0, 0], outputs
    assert "resuming tiny" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=3"], "[train] batch_size = 3 cannot be split among 2 processes"),
        (["train.btch_size=4"], "did you mean 'batch_size'?"),
        (["generator.depth=9", "train.batch_size=4"], "depth"),
        (['losses.far={use="dists", vgg16="nowhere.pth"}', "train.batch_size=4"], "nowhere.pth"),
    ],
)
def test_a_mistake_is_printed_once_and_ends_all_processes(overrides, words, group, arguments, tmp_path):
    codes, outputs = group(2, arguments(tmp_path, *overrides))
    assert codes == [2, 2], outputs
    assert words in outputs[0].splitlines()[-1]
    assert outputs[1] == ""
    assert "training tiny" not in outputs[0]
    assert [*tmp_path.iterdir()] == []


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
checked, ids = Store._checked, []

def broken(self, pair):
    ids.append(pair.id)
    if os.environ["RANK"] == "1" and len(ids) > 4:
        raise UserError("photo.png: cut short")
    return checked(self, pair)

Store._checked = broken
""",
        2,
        "process 1: photo.png: cut short",
    ),
    "only the first process gets SIGTERM while it evaluates": (
        """
from p2pzoo.models import translator
translate = translator.translate_watched

def interrupted(*args, **options):
    if os.environ["RANK"] == "0":
        signal.raise_signal(signal.SIGTERM)
    return translate(*args, **options)

translator.translate_watched = interrupted
""",
        128 + signal.SIGTERM,
        "stopped; the same command resumes from what was saved",
    ),
    "a loss diverges": (
        """
from p2pzoo.training.gan_step import Objective
original_step = Objective.step

def step(self, batch, number):
    off = float("nan") if number == 3 and os.environ["RANK"] == "1" else 1
    return {name: value * off for name, value in original_step(self, batch, number).items()}

Objective.step = step
""",
        2,
        "D.gan became nan at step 4 (image 16): training has diverged",
    ),
    "the second process has an unexpected error": (
        """
from p2pzoo.data import loader
from p2pzoo.data.store import Store
collate = loader.collate

def failing(*args):
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("none")
    return collate(*args)

loader.collate = failing
""",
        1,
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "code", "words"), FAULTS.values(), ids=FAULTS)
def test_if_one_process_fails_all_end_with_its_exit_code(before, code, words, group, arguments, tmp_path):
    codes, outputs = group(2, arguments(tmp_path, "train.batch_size=4"), before=before)
    assert codes == [code, code], outputs
    if code == 1:  # the failed process prints it
        assert outputs[1].startswith("process 1: p2pzoo failed: ZeroDivisionError: none")
    else:
        assert words in outputs[0].splitlines()[-1]
        assert outputs[1] == ""
