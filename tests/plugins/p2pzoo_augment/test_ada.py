"""ADA (arXiv:2006.06676): when p moves and by how much, which images change, its state in a resumed run."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from p2pzoo_augment.ada import ADA
from p2pzoo_augment.diffaugment import DiffAugment
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.models.safetensors_io import load_tensors

SIDE = 16
POLICY = ("color", "translation", "cutout")


def images(count, seed=0):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def logits(*values):
    """D's logits of one image for each value."""
    return [torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)]


def with_p(p, **parameters):
    ada = ADA(**parameters)
    ada.p.fill_(p)
    return ada


class TestProbability:
    def test_it_rises_above_the_target_and_falls_below_by_images_seen(self):
        ada = ADA(every=2, images=100)
        steps = [logits(1.0, 2.0, 0.5, 3.0)] * 6 + [logits(1.0, -1.0, 2.0, 3.0)] * 4
        values = []
        for real in steps:
            ada.observe(real)
            values.append(round(ada.p.item(), 5))
        assert values == [0, 0.08, 0.08, 0.16, 0.16, 0.24, 0.24, 0.16, 0.16, 0.08], "r is 1, then 0.5 < 0.6"

    def test_the_signs_since_the_last_change_count_alike(self):
        """Over two updates r = (4 · 1 + 2 · (-1)) / 6 = 1/3."""
        for target, expected in ((0.3, 0.06), (0.4, 0.0)):
            ada = ADA(every=2, images=100, target=target)
            ada.observe(logits(1.0, 1.0, 1.0, 1.0))
            ada.observe(logits(-1.0, -1.0))
            assert ada.p.item() == pytest.approx(expected)

    def test_the_signs_are_averaged_over_logits_and_scales(self):
        """r = (1/2 + 1) / 2 = 0.75 with the two scales, 0.5 with the first one."""
        ada = ADA(every=1, images=10, target=0.7)
        first = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 1, 2, 2)
        ada.observe([first, torch.ones(1, 1, 1, 1)])
        assert ada.p.item() == pytest.approx(0.1)
        ada.observe([first])
        assert ada.p.item() == 0

    def test_it_stays_within_0_and_1(self):
        ada = ADA(every=1, images=3)
        for _ in range(5):
            ada.observe(logits(1.0))
        assert ada.p.item() == 1
        for _ in range(5):
            ada.observe(logits(-1.0))
        assert ada.p.item() == 0

    def test_the_threshold_is_the_logit_at_which_d_is_undecided(self):
        for threshold, expected in ((0.0, 1.0), (0.5, 0.0)):
            ada = ADA(every=1, images=1, threshold=threshold)
            ada.observe(logits(0.4))
            assert ada.p.item() == expected

    def test_logits_in_half_precision_count_alike(self):
        ada = ADA(every=1, images=10)
        ada.observe([each.bfloat16() for each in logits(1.0)])
        assert ada.p.dtype == torch.float32
        assert ada.p.item() == pytest.approx(0.1)


class TestChanges:
    def test_at_p_0_nothing_changes_and_at_p_1_it_is_diffaugment(self):
        x, y, labels = images(4), images(4, 1), torch.arange(SIDE).expand(4, SIDE, SIDE)
        random = torch.rand(4, ADA().num_random, generator=torch.Generator().manual_seed(0))
        unchanged = with_p(0.0)(x, y, labels, random)
        assert all(map(torch.equal, unchanged, (x, y, labels)))
        without_gates = torch.cat([random[:, 1:4], random[:, 5:7], random[:, 8:10]], 1)
        for one, other in zip(
            with_p(1.0, color_side="both")(x, y, labels, random),
            DiffAugment(color_side="both")(x, y, labels, without_gates),
            strict=True,
        ):
            assert torch.equal(one, other)

    def test_each_change_acts_on_an_image_with_probability_p(self):
        ada = with_p(0.3, policy=("translation", "cutout"))
        random = torch.rand(2000, ada.num_random, generator=torch.Generator().manual_seed(0))
        x = torch.ones(2000, 1, SIDE, SIDE)
        hidden = (ada(x, x, None, random)[1] == 0).flatten(1).float().mean(1)
        # a shift by 0 hides nothing (1 in 25); a cutout always hides at least 1/16
        expected = 1 - (1 - 0.3 * 24 / 25) * (1 - 0.3)
        assert (hidden > 0).float().mean().item() == pytest.approx(expected, abs=0.03)

    def test_x_and_y_change_together(self):
        ada = with_p(0.5, policy=("translation", "cutout"))
        x = images(64)
        random = torch.rand(64, ada.num_random, generator=torch.Generator().manual_seed(0))
        first, second, _ = ada(x, x.clone(), None, random)
        assert torch.equal(first, second)
        assert not torch.equal(first, x)

    def test_the_changes_act_in_the_order_of_the_policy(self):
        ada = with_p(1.0, policy=("cutout", "color"))
        random = torch.rand(2, ada.num_random, generator=torch.Generator().manual_seed(0))
        plain = DiffAugment(policy=("cutout", "color"))
        inner = torch.cat([random[:, 1:3], random[:, 4:]], 1)
        assert torch.equal(ada(images(2), images(2), None, random)[1], plain(images(2), images(2), None, inner)[1])

    def test_first_and_second_derivatives_equal_finite_differences(self):
        ada = with_p(0.5).double()
        y = images(4)[:, :, :4, :4].double().requires_grad_()
        random = torch.rand(4, ada.num_random, generator=torch.Generator().manual_seed(0)).double()
        assert torch.autograd.gradcheck(lambda y: ada(y, y, None, random)[1], (y,))
        assert torch.autograd.gradgradcheck(lambda y: ada(y, y, None, random)[1], (y,))

    def test_an_empty_policy_is_an_error(self):
        with pytest.raises(ValueError, match="name one or more of color, translation, cutout, each once"):
            ADA(policy=())


class OperationRecorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(str(function))
        return function(*args, **(kwargs or {}))


def test_no_values_are_copied_between_host_and_device():
    ada, real, random = with_p(0.5), logits(1.0, 2.0), torch.rand(2, ADA().num_random)
    with OperationRecorder() as watched:
        ada.observe(real)
        ada(images(2), images(2), None, random)
    assert not [
        each for each in watched.operations if "lift_fresh" in each or "scalar_dense" in each or "nonzero" in each
    ]


FAST = ('augmentations.ada.use="ada"', "augmentations.ada.every=3", "augmentations.ada.images=10")


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("train.accumulate=2", "train.batch_size=2"), marks=pytest.mark.slow),
        pytest.param(('train.order="lua"',), marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_with_bit_identical_results(more, run, tmp_path):
    overrides = (*FAST, "augmentations.ada.target=-0.9", *more)
    assert run(tmp_path / "whole", *overrides).exit_code == 0
    with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *overrides)
    assert "resuming" in run(tmp_path / "killed", *overrides).output
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    whole, killed = (
        load_tensors(max(only(tmp_path / name).glob("checkpoints/*.safetensors")))[0] for name in ("whole", "killed")
    )
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert whole["augmentations[ada].p"] > 0, "D is never so wrong that p stays 0"
    assert "augmentations[ada].observed" in whole


def test_while_p_is_0_a_run_is_one_without_augmentation(run, tmp_path):
    assert run(tmp_path / "plain").exit_code == 0
    assert run(tmp_path / "ada", *FAST, "augmentations.ada.every=1000").exit_code == 0
    plain, ada = (
        load_tensors(max(only(tmp_path / name).glob("checkpoints/*.safetensors")))[0] for name in ("plain", "ada")
    )
    for name in (each for each in plain if each.startswith(("G.", "D."))):
        torch.testing.assert_close(plain[name], ada[name], atol=1e-5, rtol=1e-3)
