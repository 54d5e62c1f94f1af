"""A discriminator that needs labels is asked D(x, y, labels) wherever it is asked: a projection discriminator."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from p2pzoo_augment.diffaugment import DiffAugment
from p2pzoo_losses.gan import WassersteinGP
from p2pzoo_losses.penalties import R1, R2
from torch import nn

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator, is_batch_independent
from p2pzoo.compute.cuda_graphs import WARMUP_STEPS, CUDAGraphStep
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin import Batch, StepOutputs
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool

PLUGIN = '''
import torch
from torch import nn
from torch.nn import functional as F
import numpy as np
import p2pzoo
import p2pzoo.plugin


class Projection(nn.Module):
    """The logits of a small D plus the inner product of its activations with an embedding of the labels
    (arXiv:1802.05637)."""

    def __init__(self, in_channels, out_channels, *, num_classes: int = 16, width: int = 8):
        super().__init__()
        self.first = nn.Conv2d(in_channels + out_channels, width, 4, stride=2, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.embed = nn.Embedding(num_classes, width)

    def forward(self, x, y, labels):
        small = F.interpolate(labels[:, None].float(), scale_factor=0.5)[:, 0].long()
        embedded = self.embed(small).permute(0, 3, 1, 2)
        return [self.last(h) + (h * embedded).sum(1, keepdim=True) for [h] in self.features(x, y, labels)]

    def features(self, x, y, labels):
        return [[F.leaky_relu(self.first(torch.cat([x, y], 1)), 0.2)]]


class Batched(Projection):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(8)

    def features(self, x, y, labels):
        return [[F.leaky_relu(self.norm(self.first(torch.cat([x, y], 1))), 0.2)]]


class Unlabelled:
    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError(index)
        image = np.full((64, 64, 3), 10 * index, np.uint8)
        return p2pzoo.plugin.Pair(f"{self.split}-{index}", image, image)


@p2pzoo.hookimpl
def register_datasets(register):
    register("unlabelled", Unlabelled)


@p2pzoo.hookimpl
def register_discriminators(register):
    register("projection", Projection, needs=("labels",))
    register("projection-with-norm", Batched, needs=("labels",))
'''
PROJECTION = ('discriminator={use="projection"}',)


@pytest.fixture(autouse=True)
def plugin(install):
    install("projection_plugin", PLUGIN)


class TestRuns:
    @pytest.mark.parametrize(
        "overrides",
        [
            ("train.pool_size=3",),
            ("train.accumulate=2", "train.batch_size=4", "train.d_steps=2"),
            ("train.order=lua",),
            ("train.spectral_norm=discriminator",),
            ("compute.checkpointing=true", "compute.one_pass=false"),
            ("losses.r1.use=r1", "losses.r2.use=r2", "gan_loss.use=wgan-gp", "augmentations.diff.use=diffaugment"),
            ("losses.fm.use=feature-matching", 'discriminator={use="projection-with-norm"}'),
        ],
        ids=lambda overrides: overrides[0],
    )
    def test_a_killed_run_resumes_with_bit_identical_results(self, run, tmp_path, overrides):
        overrides = (*PROJECTION, *overrides)
        result = run(tmp_path / "whole", *overrides)
        assert result.exit_code == 0, result.output
        with after(STEP, simulate_kill, call=3), pytest.raises(SimulatedKill):
            run(tmp_path / "killed", *overrides)
        assert run(tmp_path / "killed", *overrides).exit_code == 0
        assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")

    def test_checkpoints_keep_the_labels_of_the_pool(self, run, tmp_path):
        assert run(tmp_path, *PROJECTION, "train.pool_size=3").exit_code == 0
        tensors, _ = load_tensors(max(only(tmp_path).glob("checkpoints/*.safetensors")))
        assert tensors["pool.labels"].shape == (3, *tensors["pool.x"].shape[2:])
        assert tensors["pool.labels"].dtype == torch.int64

    def test_a_dataset_without_labels_is_refused_in_one_line(self, run, tmp_path):
        result = run(tmp_path / "runs", *PROJECTION, "dataset={use='unlabelled'}", "metrics={l1={use='l1'}}")
        assert result.exit_code == 2
        assert "[discriminator] needs labels, which the dataset" in result.output.splitlines()[-1]
        assert result.output.splitlines()[-1].endswith("does not have: use another one")


SIDE = 8


class Recorder(nn.Module):
    """A projection discriminator that keeps the labels and the marks of its calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(6, 2, 3, padding=1)
        self.embed = nn.Embedding(4, 2)
        self.calls = []

    def forward(self, x, y, labels):
        self.calls.append((x.detach().clone(), labels.clone()))
        h = self.first(torch.cat([x, y], 1))
        return [(h * self.embed(labels).permute(0, 3, 1, 2)).sum(1, keepdim=True)]

    def features(self, x, y, labels):
        self.calls.append((x.detach().clone(), labels.clone()))
        return [[self.first(torch.cat([x, y], 1))]]


class Gan:
    def discriminator_loss(self, out):
        return out.fake[0].mean() - out.real[0].mean()

    def generator_loss(self, out):
        return -out.fake[0].mean()


def marked(first, count=2):
    """A batch whose image i has the value of its label, so that both can be compared."""
    labels = (torch.arange(first, first + count) % 4)[:, None, None].expand(count, SIDE, SIDE)
    x = (labels[:, None].float() / 4).expand(count, 3, SIDE, SIDE).contiguous()
    return Batch(x, x.flip(-1), tuple("ab"), labels=labels.contiguous())


def agree(calls):
    return all(torch.equal((x[:, 0] * 4).long(), labels) for x, labels in calls)


def backward(loss, optimizer):
    for part in [loss] if isinstance(loss, torch.Tensor) else loss:
        part.backward()


@pytest.mark.parametrize("kind", [Objective, lambda *a, **k: AccumulatingObjective(*a, parts=2, **k)])
@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("one_pass", [False, True])
def test_labels_belong_to_the_images_in_each_call(kind, pool, one_pass):
    torch.manual_seed(0)
    D = Recorder()
    terms = [Term("r1", R1(), 1.0), Term("r2", R2(), 1.0)]
    objective = kind(
        Trainable(nn.Conv2d(3, 3, 1), None), Trainable(D, None), Gan(), terms, backward, labels_for_D=True,
        pool=ImagePool(pool, seed=0) if pool else None, judge_both=BatchedDiscriminator(D) if one_pass else None,
    )  # fmt: skip
    of_other_batches = 0
    for step in range(6):
        batch, first_call = marked(2 * step), len(D.calls)
        objective.step(batch, step)
        seen = torch.cat([labels for _, labels in D.calls[first_call:]])
        of_other_batches += (~torch.isin(seen, batch.labels)).any().item()
    assert agree(D.calls)
    assert bool(of_other_batches) == bool(pool)


class KeptFunction:
    """A stand-in for a CUDA graph: keeps the function and calls it again."""

    def warm_up(self, function):
        return function()

    def watch(self, function):
        return function(), None

    def record(self, function):
        return function


def test_a_replayed_step_gets_the_labels_of_its_batch():
    D = Recorder()
    objective = Objective(
        Trainable(nn.Conv2d(3, 3, 1), None), Trainable(D, None), Gan(), [], backward, labels_for_D=True
    )
    step = CUDAGraphStep(objective.step, KeptFunction())
    for number in range(WARMUP_STEPS + 3):
        step(marked(2 * number), number)
        assert D.calls[-1][1].equal(marked(2 * number).labels)
    assert agree(D.calls)


def test_the_pool_keeps_labels_with_their_images_and_restores_them():
    pool, other = ImagePool(3, seed=0), ImagePool(3, seed=0)
    for step in range(8):
        batch = marked(step)
        x, _, labels = pool(batch.x, batch.y, step, batch.labels)
        assert agree([(x, labels)])
    other.restore(pool.tensors(), torch.device("cpu"))
    for mine, theirs in zip(pool.kept, other.kept, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_losses_may_give_labels_of_their_own():
    D, batch = Recorder(), marked(0)
    out = StepOutputs(batch, batch.y, D, labels_for_D=True)
    other = 3 - batch.labels
    out.D(batch.x, batch.y, other)
    out.D(batch.x, batch.y)
    out.D.features(batch.x, batch.y)
    assert D.calls[0][1].equal(other)
    assert all(labels.equal(batch.labels) for _, labels in D.calls[1:])
    assert out.D.embed is D.embed


def test_gradient_penalties_of_mixed_images_take_the_labels_of_the_batch():
    D, batch = Recorder(), marked(1)
    WassersteinGP().discriminator_loss(StepOutputs(batch, batch.y, D, labels_for_D=True)).backward()
    assert agree(D.calls)
    assert D.embed.weight.grad.any()


def test_augmentations_for_d_move_labels_with_the_images():
    augment = Augmentations({"a": DiffAugment(policy=("translation",))}, batch_size=2, seed=0)
    D, batch = Recorder(), Batch(*torch.zeros(2, 2, 3, SIDE, SIDE), ("a", "b"))
    batch.x[:, :, 3, 3] = 1
    labels = batch.x[:, 0].long()
    batch = augment(Batch(batch.x, batch.x, batch.ids, labels=labels), 0)
    seen = lambda *args: augment.augment_for_d(batch.random, *args)  # noqa: E731
    out = StepOutputs(batch, batch.y, D, augment=seen, labels_for_D=True)
    _ = out.real, out.fake, out.D(batch.x, batch.y)
    assert len(D.calls) == 3
    moved = [x[:, 0].equal(labels.float()) for x, labels in D.calls]
    assert all(moved)
    assert not D.calls[0][1].equal(D.calls[1][1]), "real and fake images are augmented apart"


def test_whether_one_pass_is_possible_is_found_with_labels():
    assert is_batch_independent(Recorder(), (3, 3), (SIDE, SIDE), 2, with_labels=True)
    assert not is_batch_independent(Recorder(), (3, 3), (SIDE, SIDE), 2), "it cannot be called without them"
