"""The learning rate schedules are those of torch's schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from p2pzoo.config.settings import Optimizer

STEPS, LR = 60, 0.3


def torch_rates(make, steps=STEPS):
    """The learning rates of a torch scheduler in this many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=LR)
    scheduler, rates = make(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "constant"}, lambda o: lr_scheduler.LambdaLR(o, lambda step: 1)),
        ({"schedule": "linear"}, lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1, 2 * (1 - step / STEPS)))),
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)),
        ({"schedule": "step"}, lambda o: lr_scheduler.StepLR(o, step_size=STEPS // 3, gamma=0.1)),
        (
            {"schedule": "step", "schedule_every": 0.15, "schedule_gamma": 0.5},
            lambda o: lr_scheduler.StepLR(o, step_size=9, gamma=0.5),
        ),
        ({"schedule": "polynomial"}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=1)),
        (
            {"schedule": "polynomial", "schedule_power": 0.9},
            lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=0.9),
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_schedule_equals_torchs_scheduler_of_the_same_name(settings, make):
    ours = Optimizer(lr=LR, **settings)
    assert [ours.lr_at(step / STEPS) for step in range(STEPS)] == pytest.approx(torch_rates(make), rel=1e-9)


def test_one_cycle_has_the_curves_of_torch_in_phases_one_step_longer():
    """torch has its peak at step 0.3 T - 1 and its end at T - 1; each phase is the same curve."""
    expected = torch_rates(lambda o: lr_scheduler.OneCycleLR(o, max_lr=LR, total_steps=STEPS))
    peak = 0.3 * STEPS - 1
    progress = [0.3 * s / peak if s <= peak else 0.3 + 0.7 * (s - peak) / (STEPS - 1 - peak) for s in range(STEPS)]
    ours = Optimizer(lr=LR, schedule="one-cycle")
    assert [ours.lr_at(t) for t in progress] == pytest.approx(expected, rel=1e-9)
    assert max(expected) == pytest.approx(LR)
