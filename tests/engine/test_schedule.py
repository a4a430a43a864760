"""Schedules against torch's and fvcore's, which are written differently."""

import math

import pytest
import torch

from d2proj.engine.schedule import ConstantSchedule, CosineSchedule, MultiStepSchedule


def torch_factors(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_multistep_equals_torch():
    schedule = MultiStepSchedule(milestones=[0.5, 0.8], gamma=0.1)
    reference = torch_factors(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [50, 80], gamma=0.1), 100
    )
    assert [schedule.factor(i, 100) for i in range(100)] == pytest.approx(reference)


def test_cosine_equals_torch():
    schedule = CosineSchedule(final_factor=0.01)
    reference = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.01), 100
    )
    assert [schedule.factor(i, 100) for i in range(100)] == pytest.approx(reference)


def test_warmup_equals_torch():
    schedule = ConstantSchedule(warmup_iters=10, warmup_factor=0.1)
    reference = torch_factors(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=10), 40
    )
    assert [schedule.factor(i, 40) for i in range(40)] == pytest.approx(reference)


def test_published_schedule():
    """Detectron2's 1x: drops at 60 000 and 80 000 of 90 000, whatever the length is scaled to."""
    schedule = MultiStepSchedule(milestones=[0.6667, 0.8889], warmup_iters=1000)
    assert [schedule.factor(i, 90_000) for i in (1000, 59_990, 60_010, 79_990, 80_010)] == [
        pytest.approx(f) for f in (1, 1, 0.1, 0.1, 0.01)
    ]
    assert schedule.factor(0, 90_000) == pytest.approx(0.001)


def test_darknets_burn_in():
    """darknet's get_current_rate: learning_rate * pow(batch / burn_in, power), power 4."""
    schedule = ConstantSchedule(warmup_iters=1000, warmup_factor=0.0, warmup_power=4.0)
    for i in (0, 1, 250, 999, 1000):
        assert schedule.factor(i, 500_200) == pytest.approx(min(1.0, (i / 1000) ** 4))


def test_short_runs_warm_up_for_half_at_most():
    schedule = ConstantSchedule(warmup_iters=1000)
    assert schedule.factor(5, 10) == 1
    assert 0 < schedule.factor(0, 1) <= 1


def test_flat_part_of_a_cosine():
    schedule = CosineSchedule(flat_fraction=0.5)
    assert schedule.factor(50, 100) == 1
    assert schedule.factor(75, 100) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("milestones", [[0.8, 0.5], [10, 20]])
def test_bad_milestones(milestones):
    with pytest.raises(ValueError, match="fractions"):
        MultiStepSchedule(milestones=milestones)
